//! The few system calls that no crate here wraps.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Closes every descriptor but standard input, output and error: whatever the process inherited.
/// Only for the first lines of the process: an owner of a closed descriptor would use whatever
/// takes its number.
///
/// # Errors
/// The kernel is older than 5.9.
pub(super) fn close_inherited() -> io::Result<()> {
    // SAFETY: takes numbers only. Nothing in the process owns these descriptors yet: the one
    // caller is the entry of the guest process, before it opens anything.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor that is readable once process `pid` has ended.
///
/// # Errors
/// There is no such process.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One heap for all threads: the process has many threads that allocate little.
pub fn one_heap() {
    // SAFETY: sets a parameter of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability of the calling thread and of those it starts (capset(2)).
///
/// # Errors
/// What the kernel says.
pub fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapHeader { version: VERSION_3, pid: 0 };
    let none = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: both pointers are valid for what version 3 of the call reads: one header, two
    // elements of data.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    #[test]
    fn a_pidfd_tells_of_the_end() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let fd = pidfd(i32::try_from(child.id()).unwrap()).unwrap();
        let readable = |timeout| {
            poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout).unwrap() == 1
        };
        assert!(!readable(PollTimeout::ZERO));
        drop(child.stdin.take());
        assert!(readable(PollTimeout::from(10_000u16)));
        child.wait().unwrap();
    }
}
