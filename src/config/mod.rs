//! What a guest is made of as its user writes it down (flags, TOML), and where things lie on the
//! host. Checked on construction; nothing here opens a device.

mod arbiter;
mod cpu;
mod definition;
mod dirs;
mod file;
pub mod hex;
mod host_id;
mod identity;
mod instance;
mod names;
mod networks;
mod units;

pub use arbiter::ArbiterConfig;
pub use cpu::{TemplateFile, hidden_features};
pub use definition::{
    Cache, DiskDefinition, GuestDefinition, NetDefinition, NetLink, OnCrash, OnHostStop,
};
pub use dirs::{Dirs, GuestPaths};
pub use file::{DiskFile, GuestFile, NetFile};
pub use host_id::host_id;
pub use identity::keep_identity;
pub use instance::{Instance, SOCKET_PATH_MAX, Surroundings};
pub use names::{
    NAME_MAX, check_name, format_mac, generate_mac, generate_name, parse_mac, parse_name,
};
pub use networks::bridge_of;
pub use units::{parse_duration, parse_size};
