//! A whole move between two guest processes, over one link: the effects at the edge of the pure
//! machines.
//!
//! | module | what it does |
//! |---|---|
//! | [`source`] | the process that has the guest: copies, offers, stops, gives it away or keeps it |
//! | [`target`] | the process that receives it: fills, rehearses, restores, runs it or buries it |
//! | [`edge`] | the clock, and where messages go that cannot go over the link |
//! | [`relay`] | words that daemons carry while the link is gone |
//! | [`report`] | what a move was like, as plain data |
//!
//! What is decided here is nothing: when to switch is decided in [`converge`](crate::converge),
//! whose the guest is in [`handover`](crate::handover). A session performs effects in the order in
//! which a machine asks for them, and answers. The guest of the source is held in the types of
//! [`handover::proof`](crate::handover::proof), so that a wrong order does not compile.
//!
//! A session ends with an answer, never with an error: whatever goes wrong, the guest is here,
//! there, or waits for an operator, and the answer says so. It panics only if the edge does; then
//! the process must end, and the host's daemon decides by the rules for the dead.
//!
//! # Calling it
//!
//! [`source::run`] and [`target::run`] are futures of a tokio runtime with time enabled. Journal,
//! disks, guest and memory are used on threads that may block. Neither future may be dropped
//! after the point of doubt, except by ending the process. Commands may come at any time; if
//! nobody can give any more (all senders are dropped) the session goes on without.

use crate::handover::message::Message;

pub mod edge;
mod line;
mod record;
pub mod relay;
pub mod report;
pub mod source;
pub mod target;
mod wait;
mod words;

pub use edge::{Clock, SystemClock};
pub use report::{Phase, Reason, Report};

use crate::converge::Advice;
use crate::handover::effect::Step;
use crate::precopy::RoundReport;
use crate::pump::{Live, Written};

/// The two sides must have agreed to the attempt within this time, in milliseconds.
pub const OPENING_MS: u64 = 30_000;

/// Something from outside, at any time.
#[derive(Clone, Debug)]
pub enum Command {
    /// The user cancels the move. Exact until the point of doubt: then the answer is the outcome,
    /// and [`Event::TooLateToCancel`] says so.
    Cancel(String),
    /// The source's guest ended by itself: power-off, reset, crash, an error of its machine.
    GuestEnded(String),
    /// A message of the other side that came another way, through the daemons.
    Heard(Message),
    /// The other process is dead, as the daemons know for certain. Ends what may end freely; after
    /// that the link ends, and only words of the other side's daemon count.
    PeerGone(String),
}

/// Something that happened, for displays and logs. A session never waits for its listener.
#[derive(Clone, Debug)]
pub enum Event {
    /// A new phase began.
    Phase(Phase),
    /// Copying began; the handle tells how far the round is that goes on.
    Copying(Live),
    /// Memory begins to arrive; the handle tells how much has.
    Filling(Written),
    /// A round is done, and this is thought of it.
    Round(Box<RoundReport>, Box<Advice>),
    /// The trial restore at the target is done.
    Rehearsed {
        /// Time it took there, in microseconds.
        restore_us: u64,
        /// What would fail. Empty: nothing.
        problems: Vec<String>,
    },
    /// The link is gone, for this reason.
    LinkLost(String),
    /// A cancel came after the point of doubt: the outcome will tell.
    TooLateToCancel,
    /// A step that must succeed does not, and is tried again.
    Retrying {
        /// Which.
        step: Step,
        /// In the words of the edge; may be empty.
        why: String,
    },
    /// The guest runs at the target. Its ownership follows.
    Ran,
    /// The frozen source was compared with what it sent.
    Audited {
        /// Units that differ. Empty: nothing was missed.
        differing: Vec<u64>,
    },
}

#[cfg(test)]
mod tests;
