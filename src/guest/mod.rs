//! The guest process.

pub mod fingerprint;
pub mod journal;
pub mod lockfile;
pub mod savefile;
#[cfg(test)]
mod testing;
