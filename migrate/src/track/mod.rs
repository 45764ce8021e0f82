//! What changed: sets of units, and the epochs in which units last changed.
//!
//! Both may report a unit that did not change; neither ever leaves out one that did.

pub mod disk;
pub mod epoch;
pub mod set;

pub use epoch::{Epoch, EpochError, EpochMap, InFlight};
pub use set::{Cursor, SetError, UnitSet};
