//! Deciding for a dead source.

use super::super::effect::{Effect, Input, Notice, Timer};
use super::super::journal::{Mark, Marks, Record};
use super::super::message::{Body, Message, SourceSays, TargetSays, ToSource};
use super::super::term::{Millis, QuestionId, Stamp, Switch, Term};
use super::{Acting, Keeper, Next, again, new_term, probe, record, stamp, tell};

/// It died with an open offer.
pub(super) fn offered(
    switch: &Switch,
    marks: &Marks,
    question: QuestionId,
    arbiter: bool,
    now: Millis,
) -> (Acting, Vec<Effect>) {
    match marks.has(Mark::Ceded(switch.id)) {
        Some(true) => settle(*switch, true, arbiter, now),
        known => {
            let acting = Acting::AskingTarget { switch: *switch, not_ceded: known.is_some() };
            (acting, probe(*switch, question, now))
        }
    }
}

/// Gives the guest away, or keeps it; with an arbiter, in its words.
///
/// Keeping it needs a new term, never the offered one: after a reboot of both hosts nobody knows
/// whether the target ran under that.
fn settle(switch: Switch, cede: bool, arbiter: bool, now: Millis) -> (Acting, Vec<Effect>) {
    let (expect, want) = (switch.held(), switch.moved());
    match (cede, arbiter) {
        (true, false) => record(switch, Record::Ceded(switch)),
        (true, true) => ask(Acting::Deciding { switch, expect, want }, expect, want, now),
        (false, _) => {
            let right = switch.held();
            (Acting::TakingBack { switch, right, term: None }, vec![Effect::TakeOwner])
        }
    }
}

fn ask(acting: Acting, expect: Stamp, want: Stamp, now: Millis) -> (Acting, Vec<Effect>) {
    (acting, vec![Effect::CompareAndSet { expect, want }, again(now)])
}

/// What the target's side says, and whether it was asked for after the death was proved.
fn heard(keeper: &Keeper, input: Input) -> Option<(TargetSays, bool)> {
    match input {
        Input::Heard(Message { body: Body::ToSource(ToSource::Says(says, to)), .. }) => {
            Some((says, to == Some(keeper.question)))
        }
        _ => None,
    }
}

fn is_ask(input: Input) -> bool {
    matches!(input, Input::Heard(Message { body: Body::ToSource(ToSource::Ask), .. }))
}

/// `not_ceded`: the marks are intact, and `ceded` is not among them.
pub(super) fn asking(
    keeper: &Keeper,
    switch: Switch,
    not_ceded: bool,
    input: Input,
    now: Millis,
) -> Next {
    let here = Acting::AskingTarget { switch, not_ceded };
    if is_ask(input) {
        let answer = if not_ceded { SourceSays::Undecided } else { SourceSays::OnlyOffered };
        return Some((here, vec![tell(switch, answer)]));
    }
    if input == Input::Timer(Timer::Again) {
        return Some((here, probe(switch, keeper.question, now)));
    }
    let cede = match heard(keeper, input)? {
        // Only we could let a prepared target go; these words stay true.
        (TargetSays::Prepared | TargetSays::Ran { .. }, _) => true,
        (TargetSays::NeverRan, _) | (TargetSays::NotPrepared | TargetSays::NeverRecorded, true) => {
            false
        }
        (TargetSays::LostMemory, true) if not_ceded => false,
        _ => return None,
    };
    Some(settle(switch, cede, keeper.arbiter, now))
}

/// It had ceded: the guest is the target's, unless the target's side proves that it never ran.
pub(super) fn fate(keeper: &Keeper, switch: Switch, input: Input, now: Millis) -> Next {
    let here = Acting::AskingFate(switch);
    if is_ask(input) {
        return Some((here, vec![Effect::Commit(switch)]));
    }
    if input == Input::Timer(Timer::Again) {
        let effects = [vec![Effect::Commit(switch)], probe(switch, keeper.question, now)];
        return Some((here, effects.concat()));
    }
    match heard(keeper, input)?.0 {
        TargetSays::Ran { durable: true } => Some(record(switch, Record::Moved(switch))),
        TargetSays::NeverRan => {
            let right = switch.moved();
            let acting = Acting::TakingBack { switch, right, term: None };
            Some((acting, vec![Effect::TakeOwner]))
        }
        _ => None,
    }
}

/// OWNER keeps everybody from the disks while the new term is found, reserved and recorded.
/// `right` is what it replaces: the source's before the switch, or the target's.
pub(super) fn taking_back(
    keeper: &Keeper,
    switch: Switch,
    (right, term): (Stamp, Option<Term>),
    input: Input,
    now: Millis,
) -> Next {
    let to = |term| Acting::TakingBack { switch, right, term };
    match (term, input) {
        (None, Input::OwnerTaken(beside)) => {
            if beside.owner != switch.moved() && beside.supersedes(switch.withdrawn()) {
                return Some(superseded(switch));
            }
            let term = new_term(&keeper.ledger, &beside);
            Some((to(Some(term)), vec![Effect::StampOffer(term)]))
        }
        (Some(term), Input::OfferStamped) => {
            if !keeper.arbiter {
                return Some(record(switch, Record::Owner { term }));
            }
            let want = stamp(keeper.ledger.host(), term);
            Some(ask(Acting::Deciding { switch, expect: right, want }, right, want, now))
        }
        (None, Input::OwnerBusy) | (Some(_), Input::StampFailed) => {
            Some((to(term), vec![again(now)]))
        }
        (_, Input::Timer(Timer::Again)) => {
            Some((to(term), vec![term.map_or(Effect::TakeOwner, Effect::StampOffer)]))
        }
        _ if is_ask(input) => Some((to(term), vec![meanwhile(switch, right)])),
        _ => None,
    }
}

/// Whatever stands in the arbiter is the decision.
pub(super) fn deciding(
    switch: Switch,
    (expect, want): (Stamp, Stamp),
    input: Input,
    now: Millis,
) -> Next {
    let retry = |expect| ask(Acting::Deciding { switch, expect, want }, expect, want, now);
    let ceded = expect == switch.moved();
    match input {
        Input::Arbiter(s) if s == switch.moved() && !ceded => {
            Some(record(switch, Record::Ceded(switch)))
        }
        // We, or the source before it died, took the guest back: nobody else writes this host.
        Input::Arbiter(s) if s.host == switch.from && s.term > switch.term => {
            Some(record(switch, Record::Owner { term: s.term }))
        }
        // The source had asked for it before it died.
        Input::Arbiter(s) if s == switch.withdrawn() => {
            Some(record(switch, Record::Withdrawn(switch)))
        }
        Input::Arbiter(s) if s == expect || switch.is_held(s) => Some(retry(s)),
        Input::Arbiter(_) => Some(superseded(switch)),
        Input::ArbiterSilent | Input::Timer(Timer::Again) => Some(retry(expect)),
        _ if is_ask(input) => {
            let here = Acting::Deciding { switch, expect, want };
            Some((here, vec![meanwhile(switch, expect)]))
        }
        _ => None,
    }
}

fn superseded(switch: Switch) -> (Acting, Vec<Effect>) {
    let effects = vec![Effect::DropOwner, Effect::Report(Notice::Superseded)];
    (Acting::Superseded(switch), effects)
}

/// What may be said while the decision is being made.
fn meanwhile(switch: Switch, right: Stamp) -> Effect {
    if right == switch.moved() {
        Effect::Commit(switch)
    } else {
        tell(switch, SourceSays::Undecided)
    }
}
