//! Moves, as the process of a guest makes them: the engine's sessions between this process's
//! machine, journal and disks.
//!
//! | module | what it does |
//! |---|---|
//! | [`departure`] | gives a guest away, on a thread of its own |
//! | [`arrival`] | receives one |
//! | [`lease`] | the owner's machine in the engine's hands |
//! | [`landed`] | a machine that arrived, before it has an owner |
//! | [`rights`] | journal, marks, locks and terms behind the engine's traits |
//! | [`trial`] | what goes with a rehearsal: nonces and looks of disks |
//! | [`link`] | the link that the daemons agreed on |
//! | [`feed`], [`tell`], [`report`] | what people and daemons hear |
//!
//! Whose the guest is, is decided in the engine's hand-over; when to switch, in its convergence.

pub mod arrival;
pub mod claim;
pub mod departure;
pub mod feed;
pub mod landed;
pub mod lease;
pub mod link;
pub mod report;
pub mod rights;
mod tell;
pub mod trial;

use uuid::Uuid;

use crate::api::{ErrorCode, Failure};

/// Program and release, as the other side hears it.
pub const PROGRAM: &str = concat!("migrate ", env!("CARGO_PKG_VERSION"));

fn unexpected(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Unexpected, format!("{what}: {error}"), "see the guest's log")
}

/// 32 random bytes. (A random uuid has 122 random bits.)
fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    let (first, second) = key.split_at_mut(16);
    first.copy_from_slice(Uuid::new_v4().as_bytes());
    second.copy_from_slice(Uuid::new_v4().as_bytes());
    key
}

/// Now, in milliseconds since 1970.
fn unix_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// The bytes of a definition that both sides must have alike.
fn definition_bytes(definition: &crate::config::GuestDefinition) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(definition).map_err(|e| unexpected("the guest's definition", &e))
}
