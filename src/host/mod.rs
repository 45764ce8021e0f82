//! What happens on the host around guest processes: finding them, starting them, clearing up
//! after those that were killed, and the records of those that ended.

pub mod doubt;
pub mod exits;
pub mod leftover;
pub mod persistent;
pub mod registry;
pub mod scope;
pub mod spawn;
pub mod taps;
