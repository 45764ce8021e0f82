//! `migrate daemon`: the service of a host. It knows the host's guests, talks to commands over a
//! Unix socket and to other daemons over QUIC, brings moves together and keeps their reports. It
//! is not needed for a guest to live: guests go on when it stops, crashes or is upgraded, and a
//! restarted one goes on where it was.
//!
//! | module | what it does |
//! |---|---|
//! | [`settings`] | `host.toml` |
//! | [`identity`] | key, certificate, CA, hosts of the site; [`identity::init`], [`identity::join`] |
//! | [`peer`] | other daemons: protocol, sessions |
//!
//! It never touches a guest's memory, never decides whose a guest is, and holds no guest's keys
//! longer than it takes to hand them over.

pub mod identity;
pub mod peer;
pub mod settings;

use crate::api::{ErrorCode, Failure};
use crate::config::Dirs;

/// Program and release, as other hosts hear it.
pub const PROGRAM: &str = concat!("migrate ", env!("CARGO_PKG_VERSION"));

/// How the service runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// End when the process that started it ends.
    pub end_with_parent: bool,
}

/// Runs the service until it is told to stop (SIGTERM, SIGINT).
///
/// # Errors
/// `busy` if one runs already for this instance; `file` or `bad-definition` if its files cannot
/// be used.
pub fn run(dirs: &Dirs, options: &Options) -> Result<(), Failure> {
    let _ = (dirs, options);
    Err(Failure::new(ErrorCode::Unexpected, "not yet", ""))
}
