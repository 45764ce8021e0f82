//! The bytes that two hosts exchange during a move: layout, limits, versions. Nothing else: what
//! the messages mean for a move is decided elsewhere, and who may send them was settled before.
//!
//! All numbers are little-endian. Every decoder is total: any input gives a value or a
//! [`WireError`] that says what is wrong. Lengths are checked against constants of this module
//! before memory is taken for them, and lists grow only with bytes that have arrived.
//!
//! # Opening (the same in all versions, for ever)
//!
//! The side that dials sends a [`Hello`](hello::Hello) first on the control stream, the other
//! answers with a [`Reply`](hello::Reply); see [`hello`].
//!
//! | bytes | opening |
//! |---|---|
//! | 8 | `MIGRATE` and a line feed |
//! | 2 | length of the body, at most 512 |
//! | 4 | CRC-32 of the body |
//! | … | body: `1` hello, `2` chosen or `3` refused (1 byte), then its fields |
//!
//! hello: list of versions, text that names the program. chosen: version, text. refused: list of
//! versions, text with the reason. A version has 2 bytes; a list has a count of 2 bytes.
//!
//! # Control stream, version 1
//!
//! | bytes | control frame |
//! |---|---|
//! | 4 | length of the body; the limit depends on the kind |
//! | 2 | kind: the number of a [`Message`] |
//! | 2 | 0 |
//! | 4 | CRC-32 of the 8 bytes before and the body |
//! | … | body: the fields of the message in the order of [`control`], nothing after them |
//!
//! | field | bytes |
//! |---|---|
//! | number | 1, 2, 4 or 8 |
//! | id, digest | 16 |
//! | text | count of bytes (2), UTF-8 without control characters |
//! | blob | count of bytes (4), bytes |
//! | list | count of entries (2), entries |
//! | yes or no | 1 or 0 (1) |
//! | words of a switch | see [`switch`] |
//!
//! # Lanes, version 1
//!
//! | bytes | data frame |
//! |---|---|
//! | 4 | length of the body, at most [`MAX_DATA_BODY`](data::MAX_DATA_BODY) |
//! | 1 | kind: `1` units, `2` zeros, `3` end of round |
//! | 1 | codec of the payload: `0` raw, `1` LZ4 block; 0 for other kinds |
//! | 2 | region |
//! | 4 | round |
//! | 8 | number of the frame on its lane, from 0 |
//! | 4 | bytes of the decoded payload; 0 for other kinds |
//! | 4 | CRC-32 of the 24 bytes before and the body |
//! | … | body |
//!
//! | kind | body |
//! |---|---|
//! | units | count of runs (1); runs of first unit (8) and count (1); payload: their content |
//! | zeros | count of runs (2); runs of first unit (8) and count (4) |
//! | end of round | units (8) and zero units (8) that went over this lane in this round |
//!
//! Runs ascend and do not overlap. A batch has at most 16 units and 1 MiB.
//!
//! # Changing it
//!
//! A layout that was released never changes: a change is a new [`Version`], offered beside the
//! old one for as long as neighbouring releases must talk to each other. Golden bytes of each
//! version are in the tests.

pub mod bounded;
mod bytes;
pub mod control;
pub mod data;
mod field;
pub mod hello;
pub mod ids;
pub mod switch;

pub use bounded::{Blob, List, Text, TooLong};
pub use control::{ControlHeader, Message};
pub use data::{DataFrame, DataHeader};
pub use ids::{AttemptId, GuestId, MoveId};

/// A version of the protocol that this program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Version {
    /// The first.
    V1 = 1,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: &[Self] = &[Self::V1];

    /// Its number.
    pub fn number(self) -> u16 {
        self as u16
    }
}

/// Why bytes are not what they should be. The connection is of no use afterwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than the fields need.
    #[error("it ends in the middle of {0}")]
    Short(&'static str),
    /// Bytes after the last field.
    #[error("{0} bytes follow after its end")]
    Trailing(usize),
    /// A length or count beyond its limit.
    #[error("{what} of {found} is more than the limit of {limit}")]
    Limit {
        /// What has a limit.
        what: &'static str,
        /// Announced.
        found: u64,
        /// Allowed.
        limit: u64,
    },
    /// A number that stands for nothing.
    #[error("{what} {found} is not known")]
    Unknown {
        /// What it should stand for.
        what: &'static str,
        /// The number.
        found: u64,
    },
    /// A value that its field cannot have.
    #[error("{0}")]
    Invalid(&'static str),
    /// The opening is not that of this protocol.
    #[error("the peer does not speak this protocol: it must be a migrate host")]
    Magic,
    /// The bytes are not those that were sent.
    #[error("the checksum is wrong: the data was damaged on the way or by a defect")]
    Checksum,
}

#[cfg(test)]
mod tests;
