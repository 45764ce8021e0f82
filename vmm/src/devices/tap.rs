//! A tap: the host's end of a guest's network card. Frames go in and out with a virtio-net
//! header of 12 bytes before them, and never block.
//!
//! A tap is never made here, only used; [`super::bridge`] makes some.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::tap_ioctl::{self, MAX_NAME};

/// Bytes of `virtio_net_hdr_v1` (virtio 1.2, 5.1.6), which the tap puts before every frame.
pub const HEADER_LEN: usize = 12;
/// Longest frame with its header: 64 KiB of segment, Ethernet header, virtio-net header.
pub const MAX_FRAME: usize = 65_550 + HEADER_LEN;

pub(super) const DEVICE: &str = "/dev/net/tun";
pub(super) const WANTED: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a tap cannot be used. The text says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error("'{0}' is no interface name: give 1 to {MAX_NAME} bytes without '/' and blanks")]
    Name(String),
    /// `/dev/net/tun` cannot be opened.
    #[error(
        "cannot open {DEVICE}: {0}; the host needs the tun module and this user access to the file"
    )]
    Device(io::Error),
    /// There is no such interface.
    #[error(
        "tap {0} does not exist: create it with `ip tuntap add {0} mode tap user \
         \"$(id -un)\"` and `ip link set {0} up`"
    )]
    Missing(String),
    /// Somebody else has it open.
    #[error(
        "tap {0} is in use by another process: stop that one or give this guest a tap of its own"
    )]
    Busy(String),
    /// The user may not.
    #[error(
        "tap {0} belongs to another user: create it with `ip tuntap add {0} mode tap user \
         \"$(id -un)\"`, or run with CAP_NET_ADMIN"
    )]
    Permission(String),
    /// The interface is something else.
    #[error(
        "{0} is not a tap with one queue: remove it and create it with `ip tuntap add {0} mode tap` \
         (without multi_queue)"
    )]
    NotTap(String),
    /// A passed descriptor was opened with other flags.
    #[error(
        "the descriptor passed for tap {name} has flags {found:#x} where {WANTED:#x} (IFF_TAP, \
         IFF_NO_PI, IFF_VNET_HDR) are needed: attach it with exactly these"
    )]
    Flags {
        /// Interface.
        name: String,
        /// Its flags.
        found: c_int,
    },
    /// The kernel refused something else.
    #[error("cannot {what} tap {name}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether an interface can have this name.
pub(super) fn check_name(name: &str) -> Result<(), TapError> {
    let bad = |c: char| c == '/' || c.is_whitespace() || c == '\0';
    if name.is_empty() || name.len() > MAX_NAME || name.contains(bad) {
        return Err(TapError::Name(name.to_owned()));
    }
    Ok(())
}

/// An attached tap, ready for frames with a 12-byte header.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Attaches to the existing tap `name` in the network namespace of the calling thread.
    pub fn open(name: &str) -> Result<Self, TapError> {
        check_name(name)?;
        // TUNSETIFF would make an interface that is missing, gone again when we are.
        if nix::net::if_::if_nametoindex(name).is_err() {
            return Err(TapError::Missing(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(TapError::Device)?;
        tap_ioctl::attach(&file, name, WANTED).map_err(|source| {
            let name = name.to_owned();
            match source.raw_os_error() {
                Some(libc::EBUSY) => TapError::Busy(name),
                Some(libc::EPERM | libc::EACCES) => TapError::Permission(name),
                Some(libc::EINVAL) => TapError::NotTap(name),
                _ => TapError::Host { what: "attach to", name, source },
            }
        })?;
        Self::prepare(file, name.to_owned())
    }

    /// Takes over a descriptor that somebody with more rights attached.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TapError> {
        let unnamed = || "(passed descriptor)".to_owned();
        let interface = tap_ioctl::interface(&fd).map_err(|source| TapError::Host {
            what: "ask for the name of",
            name: unnamed(),
            source,
        })?;
        // IFF_PERSIST and the like are the maker's business.
        let kind = WANTED | libc::IFF_TUN | libc::IFF_MULTI_QUEUE;
        if interface.flags & kind != WANTED {
            return Err(TapError::Flags { name: interface.name, found: interface.flags });
        }
        let failed = |e: nix::Error| TapError::Host {
            what: "make non-blocking",
            name: interface.name.clone(),
            source: e.into(),
        };
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(failed)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(failed)?;
        Self::prepare(File::from(fd), interface.name)
    }

    fn prepare(file: File, name: String) -> Result<Self, TapError> {
        let host = |what| {
            let name = name.clone();
            move |source| TapError::Host { what, name, source }
        };
        let len = c_int::try_from(HEADER_LEN).unwrap_or(c_int::MAX);
        tap_ioctl::set_header_len(&file, len).map_err(host("set the header length of"))?;
        // Until a driver says what it can take, frames come whole and with checksums.
        tap_ioctl::set_offloads(&file, 0).map_err(host("set the offloads of"))?;
        Ok(Self { file, name })
    }

    /// Interface name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells the kernel what the guest can take (`TUN_F_*`).
    pub fn set_offloads(&self, flags: u32) -> io::Result<()> {
        tap_ioctl::set_offloads(&self.file, flags)
    }

    /// Receives one frame with its header; what does not fit is cut off. `WouldBlock` if none
    /// is waiting.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buf)
    }

    /// Sends one frame with its header.
    pub fn send(&self, frame: &[u8]) -> io::Result<usize> {
        (&self.file).write(frame)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
