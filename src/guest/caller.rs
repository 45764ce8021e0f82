//! Ends with the caller of `run --rm`, however that ends.
//!
//! `PR_SET_PDEATHSIG` is not used: it fires when the *thread* that started us ends, and it cannot
//! clean up. A pidfd has neither fault; the race at the start (the caller died before we looked,
//! and its number may be someone else's by now) is closed by asking for our parent afterwards: as
//! long as that still is the caller, it was alive when the pidfd was made.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::unistd::getppid;

use super::{peer, sys};

/// A descriptor that is readable once the caller has ended. `socket` is the launch socket, which
/// the caller made.
///
/// # Errors
/// The caller is gone already, or is not our parent.
pub fn watch(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let caller = peer::process(socket)?;
    let fd = sys::pidfd(caller)?;
    if getppid().as_raw() == caller {
        Ok(fd)
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "the calling process has ended"))
    }
}
