//! Descriptors over Unix sockets (`SCM_RIGHTS`), and the exchange on a guest's `fd.sock`.
//!
//! One exchange on `fd.sock`: the client connects, sends a token of 1 to [`TOKEN_MAX`] bytes in
//! one message with exactly one descriptor, shuts down its writing side and reads the answer: one
//! byte [`ACK`] once the guest process holds the descriptor, or end of file if it was refused.
//! The client then names the token in an API request. A token that no request took within a
//! minute is dropped.

#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// Longest token on `fd.sock`, in bytes.
pub const TOKEN_MAX: usize = 64;
/// What the guest process answers on `fd.sock` once it holds the descriptor.
pub const ACK: u8 = 1;
/// Most descriptors in one message.
pub const FDS_MAX: usize = 20;
/// The kernel's own limit (`SCM_MAX_FD`): with room for so many none can be cut off and leak.
const KERNEL_MAX: usize = 253;

/// Sends all of `bytes`, with `fds` attached to the first of them.
///
/// # Errors
/// What the socket says; `InvalidInput` if there are no bytes or more than [`FDS_MAX`] fds.
pub fn send_with_fds(
    mut socket: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if bytes.is_empty() || fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
        {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    // The descriptors went with the first byte; the rest is plain.
    socket.write_all(bytes.get(sent..).unwrap_or_default())
}

/// Receives up to `buffer.len()` bytes and the descriptors that came with them. Zero bytes mean
/// that the peer closed. Descriptors are close-on-exec.
///
/// # Errors
/// What the socket says; `InvalidData` if more than [`FDS_MAX`] descriptors were sent.
pub fn receive_with_fds(
    socket: &impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([i32; KERNEL_MAX]);
    let mut parts = [IoSliceMut::new(buffer)];
    let raw = socket.as_fd().as_raw_fd();
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<UnixAddr>(raw, &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            for fd in received {
                // SAFETY: the kernel made `fd` for this message; nobody else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if fds.len() > FDS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors were sent"));
    }
    Ok((message.bytes, fds))
}

/// Client of `fd.sock`: hands `fd` to the guest process under `token` and waits until it has it.
///
/// # Errors
/// What the socket says; `ConnectionRefused` if the guest process does not take it.
pub fn hand_over_fd(fd_sock: &Path, token: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    if token.is_empty() || token.len() > TOKEN_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut socket = UnixStream::connect(fd_sock)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    send_with_fds(&socket, token.as_bytes(), &[fd])?;
    socket.shutdown(Shutdown::Write)?;
    let mut answer = [0; 1];
    match socket.read(&mut answer)? {
        1 if answer[0] == ACK => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "the guest process did not take the descriptor",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        send_with_fds(&a, b"hello", &[file.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (n, fds) = receive_with_fds(&b, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"hello");
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        let mut same = std::fs::File::from(fd);
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[test]
    fn a_closed_peer_is_zero_bytes_and_nothing_to_send_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        assert!(send_with_fds(&a, b"", &[]).is_err());
        drop(a);
        assert_eq!(receive_with_fds(&b, &mut [0; 4]).unwrap().0, 0);
    }

    #[test]
    fn too_many_descriptors_are_an_error_not_a_loss() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let raw = [file.as_raw_fd(); FDS_MAX + 1];
        sendmsg::<UnixAddr>(
            a.as_raw_fd(),
            &[IoSlice::new(b"x")],
            &[ControlMessage::ScmRights(&raw)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        assert!(receive_with_fds(&b, &mut [0; 4]).is_err());
    }
}
