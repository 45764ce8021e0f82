//! What a guest is made of as its user writes it down (flags, TOML), and where things lie on the
//! host. Checked on construction; nothing here opens a device.

mod definition;
mod dirs;
mod units;

pub use definition::{Cache, DiskDefinition, GuestDefinition, NetDefinition, OnCrash, OnHostStop};
pub use dirs::{Dirs, GuestPaths};
pub use units::{parse_duration, parse_size};
