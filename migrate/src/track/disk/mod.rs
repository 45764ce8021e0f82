//! What changed on a disk, across kills and power losses: an [`EpochMap`] whose stamps lie in a
//! file that is mapped, and a record of what of it is durable.
//!
//! # What is promised
//!
//! **A change is never left out**, and what is reported too much is bounded:
//!
//! * while the process lives, and after it was killed: exactly the units that a write was
//!   announced for;
//! * after a power loss: those, and the regions that were *hot*, that is written to during the
//!   last two turns of [`Tracker::cool`], or while it could not finish;
//! * after anything else happened to image or sidecar: everything, with the reason ([`Fresh`]).
//!
//! It holds for a [`Base`], and a base may only be taken from [`Tracker::bump`]: its epoch is
//! closed, no write of it is in flight, and what was written in it is durable.
//!
//! # How
//!
//! The record holds an epoch that no stamp exceeds, so it is durable before the epoch opens. It
//! holds the hot regions: a write stamps its units, then looks whether their regions are hot, and
//! if one is not waits until the record says so; then it is submitted. A region cools in this
//! order: writers no longer find it hot; the map is synced; the record leaves it out. A writer
//! that stamped too late for the sync did not find it hot, and the record has it again before the
//! write is submitted.
//!
//! After a power loss the record is what it was, the stamps of cold regions are what they were,
//! and everything else may be anything between. So an epoch begins that is after every base, and
//! the hot regions are stamped with it. Only then does the record say that this boot has seen the
//! map; a crash before it begins again.
//!
//! The parts: [`head`] is the record, [`judge`] says what it is worth, [`open`] continues or
//! makes a map, [`store`] is what must be lent, `tracker` and `commit` do the above. Nothing here
//! opens a file, maps memory, or knows the time.
//!
//! [`EpochMap`]: super::EpochMap

mod commit;
pub mod head;
pub mod judge;
pub mod open;
pub mod regions;
pub mod store;
#[cfg(test)]
mod tests;
mod tracker;

pub use self::head::{Fresh, Head, Look, Shape};
pub use self::open::OpenError;
pub use self::store::{Live, Sidecar};
pub use self::tracker::{Base, BumpError, Changed, Closing, Tracker, Whole, Write};
