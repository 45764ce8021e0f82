//! Words of a hand-over as daemons carry them while the link between the processes is gone: a
//! control frame of protocol version 1 each, as it would stand on the link.

use super::words;
use crate::handover::message::{Body, Message, ToTarget};
use crate::pump::talk::message_of;
use crate::wire::Version;

/// Longest frame, in bytes.
pub const MAX_FRAME: usize = 4096;

/// The frame of `message`. `None` for the last piece: it goes with the state, over a link only.
pub fn encode(message: &Message) -> Option<Vec<u8>> {
    if matches!(message.body, Body::ToTarget(ToTarget::LastPiece { .. })) {
        return None;
    }
    Some(words::to_wire(message, "", None).encode(Version::V1))
}

/// The message of a frame that [`encode`] made. `None` for any other bytes.
pub fn decode(frame: &[u8]) -> Option<Message> {
    if frame.len() > MAX_FRAME {
        return None;
    }
    let wire = message_of(Version::V1, &frame.to_vec().into()).ok()?;
    let message = words::from_wire(&wire)?;
    let whole = !matches!(message.body, Body::ToTarget(ToTarget::LastPiece { .. }));
    whole.then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::message::{SourceSays, TargetSays, ToSource};
    use crate::handover::term::{HostId, QuestionId, Switch, SwitchId, Term};

    #[test]
    fn words_come_back_and_nothing_else_does() {
        let switch = Switch {
            id: SwitchId(1),
            before: Term::new(2),
            term: Term::new(3),
            from: HostId(4),
            to: HostId(5),
        };
        let says = TargetSays::Ran { durable: true };
        for message in [
            Message::to_target(switch, ToTarget::Offer),
            Message::to_target(switch, ToTarget::Says(SourceSays::Withdrawn)),
            Message::to_target(switch, ToTarget::Probe(QuestionId(9))),
            Message::to_source(switch, ToSource::Ask),
            Message::to_source(switch, ToSource::Says(says, Some(QuestionId(9)))),
        ] {
            let frame = encode(&message).unwrap();
            assert_eq!(decode(&frame), Some(message));
            for cut in 0..frame.len() {
                assert_eq!(decode(&frame[..cut]), None);
            }
            for at in 0..frame.len() {
                let mut bad = frame.clone();
                bad[at] ^= 1;
                assert_ne!(decode(&bad), Some(message), "byte {at}");
            }
        }
        let piece = Message::to_target(switch, ToTarget::LastPiece { paused: false });
        assert_eq!(encode(&piece), None);
        assert_eq!(decode(&words::to_wire(&piece, "", None).encode(Version::V1)), None);
    }
}
