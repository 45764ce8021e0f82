//! What the two sides of a switch say to each other, as it stands on the wire. A side is the guest
//! process or the daemon that acts for it; the meaning is the hand-over's.
//!
//! | type | bytes |
//! |---|---|
//! | [`Switch`] | id (16), term before (8), term (8), host of the source (16), of the target (16) |
//! | [`SourceSays`] | number (1) |
//! | [`TargetSays`] | number (1); `Refuses`: reason (1); `Ran`: 1 if durable, else 0 (1) |
//! | [`QuestionId`] | 16, all zero for none |

use super::WireError;
use super::bytes::Reader;
use super::field::Field;
use crate::handover::message::{Refusal, SourceSays, TargetSays};
use crate::handover::term::{HostId, QuestionId, Switch, SwitchId, Term};

macro_rules! ids {
    ($($type:ident),*) => {$(
        impl Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.0.to_be_bytes());
            }

            fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
                from.array(what).map(|bytes| Self(u128::from_be_bytes(bytes)))
            }
        }
    )*};
}
ids!(SwitchId, HostId, QuestionId);

impl Field for Term {
    fn put(&self, out: &mut Vec<u8>) {
        self.get().put(out);
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        from.u64(what).map(Self::new)
    }
}

/// 0 stands for none: a daemon draws its questions at random.
impl Field for Option<QuestionId> {
    fn put(&self, out: &mut Vec<u8>) {
        self.unwrap_or(QuestionId(0)).put(out);
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        let question = QuestionId::take(from, what)?;
        Ok((question != QuestionId(0)).then_some(question))
    }
}

impl Field for Switch {
    fn put(&self, out: &mut Vec<u8>) {
        self.id.put(out);
        self.before.put(out);
        self.term.put(out);
        self.from.put(out);
        self.to.put(out);
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        Ok(Self {
            id: Field::take(from, what)?,
            before: Field::take(from, what)?,
            term: Field::take(from, what)?,
            from: Field::take(from, what)?,
            to: Field::take(from, what)?,
        })
    }
}

/// A table of an enum whose values stand as one byte.
macro_rules! byte_enum {
    ($name:ident, $all:ident, $what:literal { $( $number:literal $entry:ident, )* }) => {
        #[cfg(test)]
        pub(crate) const $all: &[$name] = &[$($name::$entry),*];

        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(match self { $( Self::$entry => $number, )* });
            }

            fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
                match from.u8(what)? {
                    $( $number => Ok(Self::$entry), )*
                    found => Err(WireError::Unknown { what: $what, found: found.into() }),
                }
            }
        }
    };
}

byte_enum! {
    SourceSays, SOURCE_WORDS, "a word of the source" {
        0 Undecided,
        1 Ceded,
        2 Withdrawn,
        3 OnlyOffered,
    }
}

/// All words of a target but refusals.
#[cfg(test)]
pub const TARGET_WORDS: [TargetSays; 9] = [
    TargetSays::Ready,
    TargetSays::NotYet,
    TargetSays::Prepared,
    TargetSays::NotPrepared,
    TargetSays::Ran { durable: false },
    TargetSays::Ran { durable: true },
    TargetSays::NeverRan,
    TargetSays::NeverRecorded,
    TargetSays::LostMemory,
];

byte_enum! {
    Refusal, REFUSALS, "a reason of a refusal" {
        0 OldTerm,
        1 Malformed,
        2 DiskTaken,
        3 DiskNewer,
        4 Incompatible,
        5 Journal,
        6 NotWaiting,
    }
}

impl Field for TargetSays {
    fn put(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Ready => out.push(0),
            Self::Refuses(reason) => {
                out.push(1);
                reason.put(out);
            }
            Self::NotYet => out.push(2),
            Self::Prepared => out.push(3),
            Self::NotPrepared => out.push(4),
            Self::Ran { durable } => out.extend([5, u8::from(durable)]),
            Self::NeverRan => out.push(6),
            Self::NeverRecorded => out.push(7),
            Self::LostMemory => out.push(8),
        }
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        Ok(match from.u8(what)? {
            0 => Self::Ready,
            1 => Self::Refuses(Field::take(from, what)?),
            2 => Self::NotYet,
            3 => Self::Prepared,
            4 => Self::NotPrepared,
            5 => Self::Ran { durable: Field::take(from, what)? },
            6 => Self::NeverRan,
            7 => Self::NeverRecorded,
            8 => Self::LostMemory,
            found => {
                let what = "a word of the target";
                return Err(WireError::Unknown { what, found: found.into() });
            }
        })
    }
}
