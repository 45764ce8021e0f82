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
    use proptest::prelude::*;

    use super::*;
    use crate::handover::message::{Refusal, SourceSays, TargetSays, ToSource};
    use crate::handover::term::{HostId, QuestionId, Switch, SwitchId, Term};
    use crate::wire::Message as Wire;
    use crate::wire::control::CONTROL_HEADER;
    use crate::wire::switch::{REFUSALS, SOURCE_WORDS, TARGET_WORDS};

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

    fn any_message() -> impl Strategy<Value = Message> {
        let switch =
            any::<(u128, u64, u64, u128, u128)>().prop_map(|(id, before, term, from, to)| Switch {
                id: SwitchId(id),
                before: Term::new(before),
                term: Term::new(term),
                from: HostId(from),
                to: HostId(to),
            });
        let source = prop::sample::select(SOURCE_WORDS);
        let target = prop_oneof![
            prop::sample::select(TARGET_WORDS.to_vec()),
            prop::sample::select(REFUSALS).prop_map(|r: Refusal| TargetSays::Refuses(r)),
        ];
        let question = prop::option::of(any::<u128>().prop_map(QuestionId));
        (switch, source, target, question, any::<u128>(), 0..5u8).prop_map(
            |(switch, source, target, question, probe, kind)| match kind {
                0 => Message::to_target(switch, ToTarget::Offer),
                1 => Message::to_target(switch, ToTarget::Says(source)),
                2 => Message::to_target(switch, ToTarget::Probe(QuestionId(probe))),
                3 => Message::to_source(switch, ToSource::Ask),
                _ => Message::to_source(switch, ToSource::Says(target, question)),
            },
        )
    }

    /// What is read is what stands there, but for the text, which is not carried.
    fn refused_or_the_same(frame: &[u8]) {
        if let Some(message) = decode(frame) {
            let again = encode(&message).unwrap();
            assert_eq!(decode(&again), Some(message));
            let text = matches!(message.body, Body::ToSource(ToSource::Says(..)));
            assert!(text || again == frame);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_word_comes_back_and_only_whole(message in any_message(), more in 1..40usize) {
            let frame = encode(&message).unwrap();
            prop_assert!(frame.len() <= MAX_FRAME);
            prop_assert_eq!(decode(&frame), Some(message));
            for cut in 0..frame.len() {
                prop_assert_eq!(decode(&frame[..cut]), None);
            }
            for bit in 0..frame.len() * 8 {
                let mut bad = frame.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(decode(&bad), None, "bit {}", bit);
            }
            prop_assert_eq!(decode(&[&frame[..], &vec![0; more]].concat()), None);
        }

        #[test]
        fn any_bytes_are_refused_or_a_word(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            message in any_message(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            refused_or_the_same(&bytes);
            let mut frame = encode(&message).unwrap();
            for (at, value) in changes {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            // A sender that computes the checksum of what it made up.
            let mut sum = crc32fast::Hasher::new();
            sum.update(&frame[..CONTROL_HEADER - 4]);
            sum.update(&frame[CONTROL_HEADER..]);
            frame[CONTROL_HEADER - 4..CONTROL_HEADER].copy_from_slice(&sum.finalize().to_le_bytes());
            refused_or_the_same(&frame);
        }
    }

    #[test]
    fn a_longer_frame_than_any_word_is_not_looked_at() {
        let long = vec![0; MAX_FRAME + 1];
        assert_eq!(decode(&long), None);
        // A proper message, but none of these, and a long one.
        let state = vec![7; MAX_FRAME].try_into().unwrap();
        assert_eq!(decode(&Wire::Rehearse { state }.encode(Version::V1)), None);
        assert_eq!(decode(&Wire::Ping { nonce: 1 }.encode(Version::V1)), None);
    }
}
