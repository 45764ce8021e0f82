//! Where somebody else has a word: the arbiter in the doubt, the disks on the way back.

use super::super::effect::{Effect, Input, Notice, Step, Timer, Why};
use super::super::journal::Record;
use super::super::message::{SourceSays, ToSource};
use super::super::term::{Beside, Millis, Stamp, Switch, Term};
use super::doubt::heard;
use super::{Next, Return, Setup, State, again, ask_arbiter, cede, says, withdraw};

/// One key, two wishes: whichever stands in the arbiter is the decision, also if it is the one
/// that we asked for first and gave up.
pub(super) fn deciding(switch: Switch, give: bool, input: Input, now: Millis) -> Next {
    let here = |cede| State::Deciding { switch, cede };
    match input {
        Input::Arbiter(s) if s == switch.moved() => Some(cede(switch)),
        Input::Arbiter(s) if s == switch.withdrawn() => Some(withdraw(switch, Why::Deadline)),
        Input::Arbiter(s) if switch.is_held(s) => Some(ask_arbiter(switch, give, s, now)),
        Input::Arbiter(_) => {
            Some((State::Superseded(switch), vec![Effect::Report(Notice::Superseded)]))
        }
        Input::ArbiterSilent | Input::Timer(Timer::Again) => {
            let report = Effect::Report(Notice::Retrying(Step::Arbiter));
            Some((here(give), vec![report, Effect::ReadArbiter, again(now)]))
        }
        // From now on we would rather keep it; what was asked for may still be granted.
        Input::Timer(Timer::Deadline) => Some((here(false), Vec::new())),
        _ if heard(input) == Some(ToSource::Ask) => {
            Some((here(give), vec![says(switch, SourceSays::Undecided)]))
        }
        _ => None,
    }
}

/// The target's durable word that it never ran is there: OWNER, a new term that is reserved beside
/// the disks (an operator may take the guest over elsewhere before it is written there as ours),
/// journal, disks, run.
pub(super) fn returning(
    setup: &Setup,
    switch: Switch,
    step: Return,
    input: Input,
    now: Millis,
) -> Next {
    let to = |step| State::Returning { switch, step };
    let own = |term| Record::Owner { term };
    match (step, input) {
        (Return::Locking, Input::OwnerTaken(beside)) => Some(locked(setup, switch, beside)),
        (Return::Locking, Input::Timer(Timer::Again)) => Some((to(step), vec![Effect::TakeOwner])),
        (Return::Reserving(term), Input::OfferStamped) => Some(reserved(setup, switch, term)),
        (Return::Reserving(term), Input::Timer(Timer::Again)) => {
            Some((to(step), vec![Effect::StampOffer(term)]))
        }
        (Return::Deciding(term), Input::Arbiter(s)) if s == mine(setup, term) => {
            Some((to(Return::Recording(term)), vec![Effect::Record(own(term))]))
        }
        // An answer from before the guest was given away may come late.
        (Return::Deciding(_), Input::Arbiter(s)) if s != switch.moved() && !switch.is_held(s) => {
            Some(superseded(switch))
        }
        (
            Return::Deciding(term),
            Input::Arbiter(_) | Input::ArbiterSilent | Input::Timer(Timer::Again),
        ) => Some((to(step), vec![claim(setup, switch, term), again(now)])),
        (Return::Recording(term), Input::Recorded(r)) if r == own(term) => {
            Some((to(Return::Stamping(term)), vec![Effect::Stamp(term)]))
        }
        (Return::Locking, Input::OwnerBusy)
        | (
            Return::Reserving(_) | Return::Recording(_) | Return::Stamping(_),
            Input::RecordFailed(_) | Input::StampFailed,
        ) => Some((to(step), vec![again(now)])),
        (Return::Recording(term), Input::Timer(Timer::Again)) => {
            Some((to(step), vec![Effect::Record(own(term))]))
        }
        (Return::Stamping(term), Input::Timer(Timer::Again)) => {
            Some((to(step), vec![Effect::Stamp(term)]))
        }
        (Return::Stamping(term), Input::Stamped(t)) if t == term => {
            let effects = vec![Effect::Resume, Effect::Report(Notice::Kept(Why::NeverRan))];
            Some((State::Kept { switch: Some(switch), said: true }, effects))
        }
        _ => None,
    }
}

/// A target that died before its mark may have left its term beside the disks; nobody else may.
fn locked(setup: &Setup, switch: Switch, beside: Beside) -> (State, Vec<Effect>) {
    if beside.owner != switch.moved() && beside.supersedes(switch.withdrawn()) {
        return superseded(switch);
    }
    let term = Term::above(&[setup.highest, switch.term, beside.highest()]);
    (State::Returning { switch, step: Return::Reserving(term) }, vec![Effect::StampOffer(term)])
}

fn reserved(setup: &Setup, switch: Switch, term: Term) -> (State, Vec<Effect>) {
    let (step, effect) = if setup.arbiter {
        (Return::Deciding(term), claim(setup, switch, term))
    } else {
        (Return::Recording(term), Effect::Record(Record::Owner { term }))
    };
    (State::Returning { switch, step }, vec![effect])
}

fn mine(setup: &Setup, term: Term) -> Stamp {
    Stamp { term, host: setup.host }
}

fn claim(setup: &Setup, switch: Switch, term: Term) -> Effect {
    Effect::CompareAndSet { expect: switch.moved(), want: mine(setup, term) }
}

fn superseded(switch: Switch) -> (State, Vec<Effect>) {
    let effects = vec![Effect::DropOwner, Effect::Report(Notice::Superseded)];
    (State::Superseded(switch), effects)
}
