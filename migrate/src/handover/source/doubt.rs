//! From the point of doubt on: the guest stands still until it is proved whose it is.

use super::super::effect::{Effect, Input, Notice, Step, Timer, Why};
use super::super::journal::{Mark, Record};
use super::super::message::{Body, Message, SourceSays, TargetSays, ToSource};
use super::super::term::{Millis, Switch};
use super::{Next, Return, Setup, State, again, ask_arbiter, cede, says, withdraw};

/// What the target's side says in `input`.
pub(super) fn heard(input: Input) -> Option<ToSource> {
    match input {
        Input::Heard(Message { body: Body::ToSource(what), .. }) => Some(what),
        _ => None,
    }
}

/// The last piece is on its way.
pub(super) fn in_doubt(setup: &Setup, switch: Switch, input: Input, now: Millis) -> Next {
    let here = State::InDoubt(switch);
    let (give, why) = match (input, heard(input)) {
        (_, Some(ToSource::Says(TargetSays::Prepared, _))) => (true, Why::Deadline),
        (_, Some(ToSource::Says(TargetSays::NeverRan, _))) => (false, Why::NeverRan),
        (Input::Timer(Timer::Deadline), _) => (false, Why::Deadline),
        (_, Some(ToSource::Ask)) => {
            return Some((here, vec![says(switch, SourceSays::Undecided)]));
        }
        (Input::Cancel, _) => return Some((here, vec![Effect::Report(Notice::TooLateToCancel)])),
        _ => return None,
    };
    Some(match (setup.arbiter, give) {
        (true, _) => ask_arbiter(switch, give, switch.held(), now),
        (false, true) => cede(switch),
        (false, false) => withdraw(switch, why),
    })
}

/// Keeping the guest is being made durable: first the journal, then the disks, then it runs.
pub(super) fn withdrawing(
    switch: Switch,
    recorded: bool,
    why: Why,
    input: Input,
    now: Millis,
) -> Next {
    let record = Record::Withdrawn(switch);
    let to = |recorded| State::Withdrawing { switch, recorded, why };
    let step = if recorded { Effect::Stamp(switch.term) } else { Effect::Record(record) };
    match input {
        Input::Recorded(r) if r == record && !recorded => {
            let effects = vec![Effect::Stamp(switch.term), says(switch, SourceSays::Withdrawn)];
            Some((to(true), effects))
        }
        Input::Stamped(term) if recorded && term == switch.term => {
            let effects = vec![Effect::Resume, Effect::Report(Notice::Kept(why))];
            Some((State::Kept { switch: Some(switch), said: true }, effects))
        }
        Input::RecordFailed(_) if !recorded => Some((to(recorded), retry(Step::Journal, now))),
        Input::StampFailed if recorded => Some((to(recorded), retry(Step::Stamp, now))),
        Input::Timer(Timer::Again) => Some((to(recorded), vec![step])),
        _ if heard(input) == Some(ToSource::Ask) => {
            let answer = if recorded { SourceSays::Withdrawn } else { SourceSays::Undecided };
            Some((to(recorded), vec![says(switch, answer)]))
        }
        _ => None,
    }
}

fn retry(step: Step, now: Millis) -> Vec<Effect> {
    vec![Effect::Report(Notice::Retrying(step)), again(now)]
}

/// Only with the mark set may the target hear of it.
pub(super) fn ceding(switch: Switch, input: Input, now: Millis) -> Next {
    let mark = Mark::Ceded(switch.id);
    match input {
        Input::Marked(m) if m == mark => Some((
            State::Ceded(switch),
            vec![
                Effect::DropOwner,
                Effect::Commit(switch),
                Effect::Record(Record::Ceded(switch)),
                again(now),
            ],
        )),
        // It may be set all the same: nothing but trying again is safe.
        Input::MarkFailed(_) => Some((State::Ceding(switch), retry(Step::Mark, now))),
        Input::Timer(Timer::Again) => Some((State::Ceding(switch), vec![Effect::Mark(mark)])),
        _ if heard(input) == Some(ToSource::Ask) => {
            Some((State::Ceding(switch), vec![says(switch, SourceSays::Undecided)]))
        }
        _ => None,
    }
}

/// Says so until it is answered; a send that fails proves nothing about its delivery.
pub(super) fn ceded(switch: Switch, input: Input, now: Millis) -> Next {
    let here = State::Ceded(switch);
    match (input, heard(input)) {
        (Input::Timer(Timer::Again), _) => Some((here, vec![Effect::Commit(switch), again(now)])),
        (_, Some(ToSource::Says(TargetSays::Ran { durable: true }, _))) => {
            let effects = vec![Effect::Record(Record::Moved(switch)), Effect::Audit];
            Some((State::Auditing(switch), effects))
        }
        (_, Some(ToSource::Says(TargetSays::NeverRan, _))) => {
            let state = State::Returning { switch, step: Return::Locking };
            Some((state, vec![Effect::TakeOwner]))
        }
        (_, Some(ToSource::Ask | ToSource::Says(TargetSays::Prepared, _))) => {
            Some((here, vec![Effect::Commit(switch)]))
        }
        (Input::RecordFailed(record), _) => Some((here, vec![Effect::Record(record)])),
        // The operator's word counts as the other side's.
        (Input::Claimed, _) => {
            let effects = vec![Effect::Resume, Effect::Report(Notice::Kept(Why::Operator))];
            Some((State::Kept { switch: Some(switch), said: true }, effects))
        }
        (Input::GivenUp, _) => {
            let effects = vec![Effect::Record(Record::Moved(switch)), Effect::Audit];
            Some((State::Auditing(switch), effects))
        }
        _ => None,
    }
}
