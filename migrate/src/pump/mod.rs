//! The pumps: what carries units from a guest's memory over the lanes of a link into the memory of
//! another. They work in rounds; who asks for a round, and when it is enough, is decided in
//! [`precopy`](crate::precopy).
//!
//! | module | what it does |
//! |---|---|
//! | [`send`] | a round at the source: clear the log, read, classify, encode, send |
//! | [`recv`] | the target: lanes into memory, rounds acknowledged, sums told |
//! | [`audit`] | the frozen source compared with what was sent |
//! | [`talk`] | messages on the control stream |
//! | [`cancel`] | a token that says stop |
//!
//! # Order
//!
//! A unit always travels on the same lane ([`Shards`]), lanes keep their order, and a round begins
//! when the one before is acknowledged. So an older copy can never land on a newer one, in
//! whatever order lanes deliver; the target checks all three and names what breaks them.
//!
//! # Memory
//!
//! At the source a lane holds one batch, one frame, and what its queue holds; at the target one
//! decoded batch and its queue. A full queue stops the reader, so clearing never runs further
//! ahead of reading than two stripes for each lane.

use std::num::NonZeroUsize;

use crate::unit::{Layout, Run};

mod arrive;
pub mod audit;
pub mod cancel;
mod feeder;
pub mod recv;
pub mod send;
pub mod talk;
mod touched;
mod worker;

#[cfg(test)]
pub(crate) mod fake;

pub use audit::Sealed;
pub use cancel::Cancel;
pub use recv::{RecvError, Target, Written};
pub use send::{Lanes, Live, SendFail, Source, Tally};
pub use talk::{Talk, TalkError};

/// Something of the guest failed, in its own words.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Units of a stripe. Part of protocol version 1.
pub const STRIPE_UNITS: u64 = 4096;

/// Which lane a unit travels on: stripes of units go round the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    lanes: NonZeroUsize,
    stripe: u64,
}

impl Shards {
    /// Stripes of [`STRIPE_UNITS`] over so many lanes.
    pub fn new(lanes: NonZeroUsize) -> Self {
        Self { lanes, stripe: STRIPE_UNITS }
    }

    /// Stripes of `words` × 64 units, so that small memories in tests have many.
    #[cfg(test)]
    pub(crate) fn small(lanes: NonZeroUsize, words: u64) -> Self {
        Self { lanes, stripe: words * crate::track::set::WORD_UNITS }
    }

    /// Number of lanes.
    pub fn lanes(&self) -> usize {
        self.lanes.get()
    }

    /// The stripes of `layout`, in order.
    fn stripes(&self, layout: &Layout) -> impl Iterator<Item = Run> + use<> {
        layout.whole().parts(self.stripe)
    }

    /// The lane of `run`, if all of it lies in one stripe.
    fn lane_of(&self, run: Run) -> Option<usize> {
        let stripe = run.first().get() / self.stripe;
        let lane = usize::try_from(stripe % self.lanes.get() as u64).ok()?;
        ((run.end() - 1) / self.stripe == stripe).then_some(lane)
    }

    /// Whether every unit of `run` travels on `lane`.
    fn belongs(&self, run: Run, lane: usize) -> bool {
        let to_stripe_end = self.stripe - run.first().get() % self.stripe;
        let (head, rest) = run.split(to_stripe_end);
        let first = self.lane_of(head) == Some(lane);
        match rest {
            None => first,
            // With one lane runs may be as long as they like; otherwise the next stripe is
            // another lane's.
            Some(_) => first && self.lanes.get() == 1,
        }
    }
}
