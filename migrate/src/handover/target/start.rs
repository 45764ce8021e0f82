//! From the commit to the running guest: OWNER, the term beside the disks, the mark, run.

use super::super::effect::{Effect, Input, Notice, Step, Timer};
use super::super::journal::{Mark, Record};
use super::super::message::TargetSays;
use super::super::term::Millis;
use super::super::term::Switch;
use super::{Arrived, Next, Start, State, again, says};

/// The guest is ours. Each step waits for the one before it.
pub(super) fn starting(arrived: Arrived, start: Start, input: Input, now: Millis) -> Next {
    let switch = arrived.switch;
    let to = |start| State::Starting(arrived, start);
    let stamp = Effect::Stamp(switch.term);
    let mark = Mark::Ran(switch.id);
    match (start, input) {
        (Start::Locking, Input::OwnerTaken(beside)) => {
            // It may find a stamp of its own, from a write that failed halfway.
            if beside.supersedes(switch.moved()) || beside.owner.term > switch.term {
                let effects = vec![Effect::DropOwner, Effect::Report(Notice::Superseded)];
                return Some((State::Superseded(switch), effects));
            }
            Some((to(Start::Stamping), vec![stamp]))
        }
        // The source has said *ceded* and lets go presently.
        (Start::Locking, Input::OwnerBusy) => Some((to(start), retry(Step::Lock, now))),
        (Start::Locking, Input::Timer(Timer::Again)) => Some((to(start), vec![Effect::TakeOwner])),
        (Start::Stamping, Input::Stamped(term)) if term == switch.term => {
            Some((to(Start::Marking), vec![Effect::Mark(mark)]))
        }
        (Start::Stamping, Input::StampFailed) => Some((to(start), retry(Step::Stamp, now))),
        (Start::Stamping, Input::Timer(Timer::Again)) => Some((to(start), vec![stamp])),
        (Start::Marking, Input::Marked(m)) if m == mark => Some((
            State::Running { switch, durable: false },
            vec![
                Effect::Run { paused: arrived.paused },
                Effect::Record(Record::Owner { term: switch.term }),
                Effect::DropNext,
                says(switch, TargetSays::Ran { durable: false }, None),
                Effect::Report(Notice::Arrived),
            ],
        )),
        (Start::Marking, Input::MarkFailed(_)) => Some((to(start), retry(Step::Mark, now))),
        (Start::Marking, Input::Timer(Timer::Again)) => Some((to(start), vec![Effect::Mark(mark)])),
        _ => None,
    }
}

fn retry(step: Step, now: Millis) -> Vec<Effect> {
    vec![Effect::Report(Notice::Retrying(step)), again(now)]
}

/// It runs. The source keeps its copy until our ownership is durable.
pub(super) fn running(switch: Switch, durable: bool, input: Input) -> Next {
    let owner = Record::Owner { term: switch.term };
    match input {
        Input::Recorded(r) if r == owner && !durable => {
            let confirm = says(switch, TargetSays::Ran { durable: true }, None);
            Some((State::Running { switch, durable: true }, vec![confirm]))
        }
        Input::RecordFailed(r) if r == owner => {
            Some((State::Running { switch, durable }, vec![Effect::Record(owner)]))
        }
        _ => None,
    }
}
