//! From the first page to the restored guest.

use super::super::effect::{Effect, Input, Notice, Timer, Why};
use super::super::journal::Record;
use super::super::message::{Refusal, TargetSays, ToTarget};
use super::super::term::{Millis, Switch, Term};
use super::{Arrived, Next, ORPHAN_MS, Setup, State, again, asks, bury, says};

/// Leaves no trace.
fn not_taken(why: Why, mut effects: Vec<Effect>) -> (State, Vec<Effect>) {
    effects.extend([Effect::Discard, Effect::Report(Notice::NotTaken(why))]);
    (State::NotTaken, effects)
}

fn refuse(switch: Switch, why: Refusal, effects: Vec<Effect>) -> (State, Vec<Effect>) {
    let no = says(switch, TargetSays::Refuses(why), None);
    not_taken(Why::Refused(why), [vec![no], effects].concat())
}

/// The first message that names a switch.
pub(super) fn first_heard(setup: &Setup, state: State, switch: Switch, what: ToTarget) -> Next {
    match (state, what) {
        (State::Filling, ToTarget::Offer) => {
            let fits = switch.to == setup.host
                && switch.from != setup.host
                && switch.before < switch.term
                && switch.term < Term::LIMIT;
            if !fits {
                return Some(refuse(switch, Refusal::Malformed, Vec::new()));
            }
            if switch.term <= setup.highest {
                return Some(refuse(switch, Refusal::OldTerm, Vec::new()));
            }
            Some((State::Accepting { switch, locked: false }, vec![Effect::TakeNext]))
        }
        // The source is dead, and we have nothing of it on record.
        // Older switches are answered from the journal.
        (State::Filling | State::NotTaken, ToTarget::Probe(_)) if switch.term <= setup.highest => {
            None
        }
        (State::Filling, ToTarget::Probe(question)) => {
            let answer = says(switch, TargetSays::NeverRecorded, Some(question));
            Some(not_taken(Why::LinkLost, vec![answer]))
        }
        (State::NotTaken, ToTarget::Offer) => {
            let no = says(switch, TargetSays::Refuses(Refusal::NotWaiting), None);
            Some((state, vec![no]))
        }
        (State::NotTaken, ToTarget::Probe(question)) => {
            Some((state, vec![says(switch, TargetSays::NeverRecorded, Some(question))]))
        }
        _ => None,
    }
}

/// Nothing was offered: whatever goes wrong, nothing is left.
pub(super) fn filling(input: Input, now: Millis) -> Next {
    match input {
        Input::LinkLost => {
            let limit = Effect::SetTimer(Timer::Link, now.after(ORPHAN_MS));
            Some((State::Filling, vec![limit]))
        }
        Input::LinkBack => {
            Some((State::Filling, vec![Effect::SetTimer(Timer::Link, Millis(u64::MAX))]))
        }
        Input::Timer(Timer::Link) => Some(not_taken(Why::LinkLost, Vec::new())),
        Input::AttemptEnded | Input::Cancel => Some(not_taken(Why::Cancelled, Vec::new())),
        Input::Rehearsed(false) => Some(not_taken(Why::Refused(Refusal::Incompatible), Vec::new())),
        _ => None,
    }
}

/// NEXT of every disk, then the record.
pub(super) fn accepting(switch: Switch, locked: bool, input: Input, now: Millis) -> Next {
    let record = Record::Receiving(switch);
    match input {
        Input::NextTaken(beside) if !locked => {
            if beside.supersedes(switch.moved()) || beside.highest() > switch.term {
                return Some(refuse(switch, Refusal::DiskNewer, vec![Effect::DropNext]));
            }
            Some((State::Accepting { switch, locked: true }, vec![Effect::Record(record)]))
        }
        Input::NextBusy if !locked => Some(refuse(switch, Refusal::DiskTaken, Vec::new())),
        Input::Recorded(r) if r == record => {
            let effects = vec![says(switch, TargetSays::Ready, None), again(now)];
            Some((State::Receiving { switch, ended: false }, effects))
        }
        // It may be there all the same: only a tombstone makes this host's word good again.
        Input::RecordFailed(_) => Some(bury(switch, Why::Journal)),
        _ => None,
    }
}

/// The last round arrives.
pub(super) fn receiving(switch: Switch, ended: bool, input: Input, now: Millis) -> Next {
    match input {
        Input::StreamsEnded => Some((State::Receiving { switch, ended: true }, Vec::new())),
        Input::LinkBack => Some((State::Receiving { switch, ended: false }, Vec::new())),
        _ => asks(State::Receiving { switch, ended }, input, now),
    }
}

/// One that cannot become prepared may give up by itself.
pub(super) fn restoring(arrived: Arrived, input: Input, now: Millis) -> Next {
    let switch = arrived.switch;
    match input {
        Input::Restored => {
            let effects = vec![says(switch, TargetSays::Prepared, None), again(now)];
            Some((State::Prepared(arrived), effects))
        }
        Input::RestoreFailed => Some(bury(switch, Why::NeverRan)),
        _ => asks(State::Restoring(arrived), input, now),
    }
}
