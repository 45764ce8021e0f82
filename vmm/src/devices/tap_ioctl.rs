//! The ioctls of `/dev/net/tun` (`linux/if_tun.h`), and those that put a tap into a bridge, each
//! behind a safe function. Nothing else.

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

/// `SIOCGIFMTU`: the MTU of the interface `name`. Like all below it takes any socket of the
/// network namespace.
pub fn mtu(socket: &impl AsFd, name: &str) -> io::Result<u32> {
    let mut req = request(name, 0)?;
    // SAFETY: the descriptor is open and the kernel reads and writes one `ifreq` at the pointer.
    check(unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFMTU as libc::c_ulong, &raw mut req)
    })?;
    // SAFETY: the kernel filled in the MTU, which any bits are valid for.
    let mtu = unsafe { req.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// `SIOCSIFMTU`
pub fn set_mtu(socket: &impl AsFd, name: &str, mtu: u32) -> io::Result<()> {
    let mut req = request(name, 0)?;
    let beyond = |_| io::Error::from_raw_os_error(libc::EINVAL);
    req.ifr_ifru.ifru_mtu = c_int::try_from(mtu).map_err(beyond)?;
    set(socket, libc::SIOCSIFMTU as libc::c_ulong, &req)
}

/// `SIOCSIFHWADDR`: the Ethernet address of the interface `name`.
pub fn set_address(socket: &impl AsFd, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut req = request(name, 0)?;
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(mac) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    req.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    set(socket, libc::SIOCSIFHWADDR as libc::c_ulong, &req)
}

/// `SIOCBRADDIF`: makes the interface with this index a port of `bridge`.
pub fn join_bridge(socket: &impl AsFd, bridge: &str, index: u32) -> io::Result<()> {
    let mut req = request(bridge, 0)?;
    let beyond = |_| io::Error::from_raw_os_error(libc::EINVAL);
    req.ifr_ifru.ifru_ifindex = c_int::try_from(index).map_err(beyond)?;
    // From linux/sockios.h; the C library does not have it.
    set(socket, 0x89A2, &req)
}

/// `SIOCSIFFLAGS`: switches the new interface `name` on.
pub fn set_up(socket: &impl AsFd, name: &str) -> io::Result<()> {
    let req = request(name, libc::IFF_UP)?;
    set(socket, libc::SIOCSIFFLAGS as libc::c_ulong, &req)
}

fn set(socket: &impl AsFd, ioctl: libc::c_ulong, req: &libc::ifreq) -> io::Result<()> {
    // SAFETY: the descriptor is open and these ioctls read one `ifreq` at the pointer.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), ioctl, &raw const *req) })
}
