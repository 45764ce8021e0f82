//! The guest process.

pub mod caller;
pub mod confine;
pub mod decide;
pub mod disks;
pub mod ending;
pub mod facts;
pub mod fdsock;
pub mod fingerprint;
pub mod inbox;
pub mod journal;
pub mod load;
pub mod lockfile;
pub mod log;
pub mod machine;
mod measure;
pub mod moving;
pub mod owner;
pub mod peer;
pub mod process;
pub mod runtime;
pub mod save;
pub mod savefile;
pub mod server;
pub mod sys;
#[cfg(test)]
pub(crate) mod testing;
