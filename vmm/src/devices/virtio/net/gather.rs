//! Sends a frame straight out of guest memory, in one system call. Nothing else.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::devices::virtio::ring::{MAX_SEGMENTS, Segment};

/// Writes the bytes of `segments`, in order, as one frame. The guest may change them meanwhile:
/// the kernel copies each byte once and checks its copy.
pub fn send(fd: &impl AsFd, segments: &[Segment<'_>]) -> io::Result<usize> {
    let segments = segments.get(..MAX_SEGMENTS).unwrap_or(segments);
    // The guards keep the mappings in place until the call is over.
    let guards: Vec<_> = segments.iter().map(Segment::ptr_guard).collect();
    let pieces: Vec<libc::iovec> = guards
        .iter()
        .map(|g| libc::iovec { iov_base: g.as_ptr().cast_mut().cast(), iov_len: g.len() })
        .collect();
    let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: every piece lies in guest memory that stays mapped while its guard lives, the
    // kernel only reads through the pointers, and no Rust reference to that memory exists.
    let sent = unsafe { libc::writev(fd.as_fd().as_raw_fd(), pieces.as_ptr(), count) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
