//! The guest process.

pub mod decide;
pub mod facts;
pub mod fingerprint;
pub mod inbox;
pub mod journal;
pub mod lockfile;
pub mod machine;
pub mod owner;
pub mod save;
pub mod savefile;
#[cfg(test)]
mod testing;
