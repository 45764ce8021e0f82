//! Who is at the other end of a Unix socket.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

/// Whether the peer may command this process: its own user, or root.
pub fn may_command(socket: &impl AsFd) -> bool {
    getsockopt(socket, PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

/// Process id of whoever made the socket pair, or connected.
///
/// # Errors
/// What the kernel says.
pub fn process(socket: &impl AsFd) -> io::Result<i32> {
    Ok(getsockopt(socket, PeerCredentials)?.pid())
}
