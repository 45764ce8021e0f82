//! What tests of the whole program may do to a process of it: harm at [named
//! places](migrate_engine::failpoint), another boot id, a clock that is wrong. A test says so in
//! a directory that the environment names. Without the feature `fail-points`, so in every
//! release, nothing is read, nothing is asked, and the program does not know the variable.

#[cfg(feature = "fail-points")]
mod harm;
#[cfg(feature = "fail-points")]
pub mod plan;
#[cfg(feature = "fail-points")]
pub mod points;

#[cfg(feature = "fail-points")]
pub use self::harm::{HANDED_ON, begin, boot_id, skew_s};
pub use migrate_engine::failpoint::{Fate, at, kind, plain};

use jiff::{SignedDuration, Timestamp};

/// Variables that a guest process inherits: none.
#[cfg(not(feature = "fail-points"))]
pub const HANDED_ON: &[&str] = &[];

/// Nothing is to be begun.
#[cfg(not(feature = "fail-points"))]
#[inline]
pub fn begin() {}

/// No other boot id.
#[cfg(not(feature = "fail-points"))]
#[inline]
pub fn boot_id() -> Option<String> {
    None
}

/// Seconds by which this host's clock is ahead: none.
#[cfg(not(feature = "fail-points"))]
#[inline]
pub fn skew_s() -> i64 {
    0
}

/// Now, by this host's clock.
pub fn now() -> Timestamp {
    let ahead = SignedDuration::from_secs(skew_s());
    Timestamp::now().checked_add(ahead).unwrap_or(Timestamp::MAX)
}
