//! Messages of a hand-over as they stand on the wire, and back.

use crate::handover::message::{Body, Message, ToSource, ToTarget};
use crate::wire::Message as Wire;
use crate::wire::control::{Note, State};

/// `message` as it is sent. `text` says the cause of a target's word, `state` goes with the last
/// piece.
pub(super) fn to_wire(message: &Message, text: &str, state: Option<State>) -> Wire {
    let switch = message.switch;
    match message.body {
        Body::ToTarget(ToTarget::Offer) => Wire::OfferSwitch { switch },
        Body::ToTarget(ToTarget::LastPiece { paused }) => {
            Wire::LastPiece { switch, paused, state: state.unwrap_or_default() }
        }
        Body::ToTarget(ToTarget::Says(says)) => Wire::FromSource { switch, says },
        Body::ToTarget(ToTarget::Probe(question)) => Wire::Probe { switch, question },
        Body::ToSource(ToSource::Ask) => Wire::Ask { switch },
        Body::ToSource(ToSource::Says(says, question)) => {
            Wire::FromTarget { switch, says, question, text: Note::clipped(text) }
        }
    }
}

/// The word of a hand-over in `wire`, if it is one.
pub(super) fn from_wire(wire: &Wire) -> Option<Message> {
    Some(match *wire {
        Wire::OfferSwitch { switch } => Message::to_target(switch, ToTarget::Offer),
        Wire::LastPiece { switch, paused, .. } => {
            Message::to_target(switch, ToTarget::LastPiece { paused })
        }
        Wire::FromSource { switch, says } => Message::to_target(switch, ToTarget::Says(says)),
        Wire::Probe { switch, question } => Message::to_target(switch, ToTarget::Probe(question)),
        Wire::Ask { switch } => Message::to_source(switch, ToSource::Ask),
        Wire::FromTarget { switch, says, question, .. } => {
            Message::to_source(switch, ToSource::Says(says, question))
        }
        _ => return None,
    })
}
