//! What the two sides of a switch say to each other, as it stands on the wire. A side is the guest
//! process or the daemon that acts for it; the meaning is the hand-over's.
//!
//! | type | bytes |
//! |---|---|
//! | [`Switch`] | id (16), term before (8), term (8), host of the source (16), of the target (16) |
//! | [`SourceSays`] | number (1) |
//! | [`TargetSays`] | number (1); `Refuses`: reason (1); `Ran`: 1 if durable, else 0 (1) |
//! | [`Question`] | 16, all zero for none |

use super::WireError;
use super::bytes::Reader;
use super::field::Field;
use super::ids::{HostId, SwitchId, Term};

/// What both sides know of one switch. It never changes while the switch lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Its name.
    pub id: SwitchId,
    /// The source's term before it.
    pub before: Term,
    /// The offered term.
    pub term: Term,
    /// Host of the source.
    pub from: HostId,
    /// Host of the target.
    pub to: HostId,
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

/// Defines an enum that stands as one byte.
macro_rules! byte_enum {
    (
        $(#[$doc:meta])*
        $name:ident, $what:literal { $( $(#[$entry_doc:meta])* $number:literal $entry:ident, )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name {
            $( $(#[$entry_doc])* $entry = $number, )*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$entry),*];
        }

        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(*self as u8);
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
    /// Where the source's side stands.
    SourceSays, "a word of the source" {
        /// Wait.
        0 Undecided,
        /// The commit: the guest is the target's.
        1 Ceded,
        /// The source keeps the guest; durable.
        2 Withdrawn,
        /// The source's host rebooted and knows only that it offered.
        3 OnlyOffered,
    }
}

byte_enum! {
    /// Why the target does not take part.
    Refusal, "a reason of a refusal" {
        /// It knows this or a later term.
        0 OldTerm,
        /// The offer is for another host, or out of all bounds.
        1 Malformed,
        /// Somebody else holds the NEXT lock of a disk.
        2 DiskTaken,
        /// Another host's term beside a disk is not older than the offer.
        3 DiskNewer,
        /// The rehearsal found the guest incompatible.
        4 Incompatible,
        /// Its journal cannot be written.
        5 Journal,
        /// It does not wait for an offer.
        6 NotWaiting,
    }
}

/// Where the target's side stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSays {
    /// Its `Receiving` is durable.
    Ready,
    /// Does not take part, and recorded nothing.
    Refuses(Refusal),
    /// Not prepared yet, but may become so.
    NotYet,
    /// Restored and verified.
    Prepared,
    /// Alive, not prepared, and all streams of the switch have ended.
    NotPrepared,
    /// Runs, or ran, the guest.
    Ran {
        /// Its ownership is durable.
        durable: bool,
    },
    /// Will never run this switch; durable.
    NeverRan,
    /// This host never recorded the switch.
    NeverRecorded,
    /// Its host rebooted: the memory is gone, and whether it ran is not known.
    LostMemory,
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

/// Names a question of a daemon, so that an answer from before it does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question(pub u128);

impl Field for Question {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_be_bytes());
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        from.array(what).map(|bytes| Self(u128::from_be_bytes(bytes)))
    }
}
