//! Guest memory: where it lies, how it is reached, and which pages changed.

pub mod dirty;
pub mod layout;
pub mod own_writes;
pub mod ram;
pub(crate) mod ring;

pub use ram::{GuestRam, Mem};
