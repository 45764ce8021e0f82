//! Deciding for a dead target. Its memory died with it.

use super::super::effect::{Effect, Input, Timer};
use super::super::journal::{Mark, Marks, Record};
use super::super::message::{Body, Message, SourceSays, TargetSays, ToSource, ToTarget};
use super::super::term::{Millis, QuestionId, Switch};
use super::{Acting, Next, again, record};

/// It died taking part in an offer.
pub(super) fn receiving(switch: &Switch, marks: &Marks, now: Millis) -> (Acting, Vec<Effect>) {
    match marks.has(Mark::Ran(switch.id)) {
        Some(true) => record(*switch, Record::Owner { term: switch.term }),
        // Also if the source has ceded meanwhile: it has the memory, and takes it back.
        Some(false) => record(*switch, Record::Tombstone(*switch)),
        None => (Acting::AskingSource(*switch), ask(*switch, now)),
    }
}

fn says(switch: Switch, what: TargetSays, question: Option<QuestionId>) -> Effect {
    Effect::Send(Message::to_source(switch, ToSource::Says(what, question)))
}

fn ask(switch: Switch, now: Millis) -> Vec<Effect> {
    vec![Effect::Send(Message::to_source(switch, ToSource::Ask)), again(now)]
}

/// Its host rebooted: whether it ran, only the source's side can tell.
pub(super) fn asking(switch: Switch, input: Input, now: Millis) -> Next {
    let here = Acting::AskingSource(switch);
    match input {
        Input::Timer(Timer::Again) => Some((here, ask(switch, now))),
        Input::Heard(Message { body: Body::ToTarget(what), .. }) => match what {
            ToTarget::Says(SourceSays::Ceded) => {
                Some(record(switch, Record::Owner { term: switch.term }))
            }
            ToTarget::Says(SourceSays::Withdrawn | SourceSays::OnlyOffered) => {
                Some(record(switch, Record::Tombstone(switch)))
            }
            ToTarget::Probe(question) => {
                Some((here, vec![says(switch, TargetSays::LostMemory, Some(question))]))
            }
            _ => None,
        },
        _ => None,
    }
}
