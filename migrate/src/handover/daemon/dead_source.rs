//! Deciding for a dead source.

use super::super::effect::{Effect, Input, Notice, Timer};
use super::super::journal::{Mark, Marks, Record};
use super::super::message::{Body, Message, SourceSays, TargetSays, ToSource};
use super::super::term::{Millis, QuestionId, Stamp, Switch};
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

/// Gives the guest away or keeps it; with an arbiter, in its words.
fn settle(switch: Switch, cede: bool, arbiter: bool, now: Millis) -> (Acting, Vec<Effect>) {
    let (decision, want) = if cede {
        (Record::Ceded(switch), switch.moved())
    } else {
        (Record::Withdrawn(switch), switch.withdrawn())
    };
    if !arbiter {
        return record(decision);
    }
    let expect = switch.held();
    ask(Acting::Deciding { switch, expect, want }, expect, want, now)
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
        (TargetSays::NeverRan, _) => false,
        (TargetSays::NotPrepared | TargetSays::NeverRecorded, true) => false,
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
        TargetSays::Ran { durable: true } => Some(record(Record::Moved(switch))),
        TargetSays::NeverRan => Some((Acting::TakingBack(switch), vec![Effect::TakeOwner])),
        _ => None,
    }
}

/// OWNER keeps everybody from the disks while the new term is found and recorded.
pub(super) fn taking_back(keeper: &Keeper, switch: Switch, input: Input, now: Millis) -> Next {
    match input {
        Input::OwnerTaken(beside) => {
            if beside.owner != switch.moved() && beside.supersedes(switch.withdrawn()) {
                let effects = vec![Effect::DropOwner, Effect::Report(Notice::Superseded)];
                return Some((Acting::Superseded(switch), effects));
            }
            let term = new_term(&keeper.ledger, &beside);
            if !keeper.arbiter {
                return Some(record(Record::Owner { term }));
            }
            let (expect, want) = (switch.moved(), stamp(keeper.ledger.host(), term));
            Some(ask(Acting::Deciding { switch, expect, want }, expect, want, now))
        }
        Input::OwnerBusy => Some((Acting::TakingBack(switch), vec![again(now)])),
        Input::Timer(Timer::Again) => Some((Acting::TakingBack(switch), vec![Effect::TakeOwner])),
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
    let taking_back = expect == switch.moved();
    let wait = |expect| ask(Acting::Deciding { switch, expect, want }, expect, want, now);
    match input {
        Input::Arbiter(s) if taking_back && s == want => {
            Some(record(Record::Owner { term: s.term }))
        }
        Input::Arbiter(s) if taking_back && s != expect => {
            let effects = vec![Effect::DropOwner, Effect::Report(Notice::Superseded)];
            Some((Acting::Superseded(switch), effects))
        }
        Input::Arbiter(s) if s == switch.moved() && !taking_back => {
            Some(record(Record::Ceded(switch)))
        }
        Input::Arbiter(s) if s == switch.withdrawn() => Some(record(Record::Withdrawn(switch))),
        Input::Arbiter(s) if taking_back || switch.is_held(s) => Some(wait(s)),
        Input::Arbiter(_) => {
            Some((Acting::Superseded(switch), vec![Effect::Report(Notice::Superseded)]))
        }
        Input::ArbiterSilent | Input::Timer(Timer::Again) => Some(wait(expect)),
        _ if is_ask(input) => {
            let here = Acting::Deciding { switch, expect, want };
            let answer = if taking_back {
                Effect::Commit(switch)
            } else {
                tell(switch, SourceSays::Undecided)
            };
            Some((here, vec![answer]))
        }
        _ => None,
    }
}
