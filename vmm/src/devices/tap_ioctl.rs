//! The ioctls of `/dev/net/tun` (`linux/if_tun.h`), each behind a safe function. Nothing else.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_short};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Longest interface name, without its final NUL.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// Name and flags (`IFF_TAP`, `IFF_NO_PI`, …) of the interface behind a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name, at most [`MAX_NAME`] bytes.
    pub name: String,
    /// `IFF_*` of `linux/if_tun.h`.
    pub flags: c_int,
}

fn request(name: &str, flags: c_int) -> io::Result<libc::ifreq> {
    if name.len() > MAX_NAME || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let flags = c_short::try_from(flags).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: all-zero bytes are a valid `ifreq`: an empty name and a union of plain data.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    req.ifr_ifru.ifru_flags = flags;
    Ok(req)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `TUNSETIFF`: attaches a fresh descriptor of `/dev/net/tun` to the interface `name`. The
/// kernel makes the interface if it does not exist and the caller may.
pub fn attach(fd: &impl AsFd, name: &str, flags: c_int) -> io::Result<()> {
    let mut req = request(name, flags)?;
    // SAFETY: the descriptor is open and the kernel reads and writes one `ifreq` at the pointer.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut req) })
}

/// `TUNGETIFF`: what the descriptor is attached to.
pub fn interface(fd: &impl AsFd) -> io::Result<Interface> {
    let mut req = request("", 0)?;
    // SAFETY: the descriptor is open and the kernel writes one `ifreq` at the pointer.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut req) })?;
    // SAFETY: the kernel fills in the flags, which any bits are valid for.
    let flags = unsafe { req.ifr_ifru.ifru_flags };
    let name: Vec<u8> = (req.ifr_name.iter().take_while(|c| **c != 0))
        .map(|c| u8::from_ne_bytes(c.to_ne_bytes()))
        .collect();
    // The flags fill the whole short, its sign bit included.
    let flags = c_int::from(u16::from_ne_bytes(flags.to_ne_bytes()));
    Ok(Interface { name: String::from_utf8_lossy(&name).into_owned(), flags })
}

/// `TUNSETVNETHDRSZ`: bytes of virtio-net header before each frame.
pub fn set_header_len(fd: &impl AsFd, len: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open and the kernel reads one `int` at the pointer.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// `TUNSETOFFLOAD`: what the reader of the tap can take, `TUN_F_*`.
pub fn set_offloads(fd: &impl AsFd, flags: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open and the argument is a number, not a pointer.
    check(unsafe {
        libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
    })
}
