//! A Unix socket of a host program, never blocking, and how the two find each other: the host
//! program connects and sends `CONNECT <port>\n`, and reads `OK <host port>\n` once the guest
//! has accepted; for a call from the guest it listens at `<path>_<port>`.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};

use super::connection::Connection;

/// Longest greeting: `CONNECT 4294967295\n`.
const MAX_GREETING: usize = 19;

/// Where the host program listens for the guest's calls to `port`.
pub fn path_of(path: &Path, port: u32) -> PathBuf {
    let mut whole = path.as_os_str().to_owned();
    whole.push(format!("_{port}"));
    whole.into()
}

/// What a host program has sent of its greeting.
#[derive(Debug, Default)]
pub struct Greeting(Vec<u8>);

/// How far a greeting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It names this guest port.
    Done(u32),
    /// It goes on.
    Wait,
    /// It is none, or its sender is gone.
    Failed,
}

impl Greeting {
    /// Takes the next byte.
    fn push(&mut self, byte: u8) -> Progress {
        if byte != b'\n' {
            self.0.push(byte);
            return if self.0.len() < MAX_GREETING { Progress::Wait } else { Progress::Failed };
        }
        let line = std::str::from_utf8(&self.0).unwrap_or("");
        let port = line.strip_prefix("CONNECT ").filter(|p| p.bytes().all(|b| b.is_ascii_digit()));
        port.and_then(|p| p.parse().ok()).map_or(Progress::Failed, Progress::Done)
    }
}

/// See the module.
#[derive(Debug)]
pub struct HostSocket {
    stream: UnixStream,
    /// The host program was told that nothing more comes.
    finished: bool,
}

impl HostSocket {
    /// Calls the host program that listens at `path`. A full backlog is an error: waiting would
    /// hold up everybody else.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { stream: UnixStream::from(fd), finished: false })
    }

    /// The next caller; `None` if nobody calls.
    pub fn accept(listener: &UnixListener) -> io::Result<Option<Self>> {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(Self { stream, finished: false }))
            }
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads the greeting, byte by byte: what follows it belongs to the guest.
    pub fn greeting(&mut self, greeting: &mut Greeting) -> Progress {
        let mut byte = [0];
        loop {
            match self.read(&mut byte) {
                Ok(Some(1)) => match greeting.push(byte[0]) {
                    Progress::Wait => {}
                    progress => return progress,
                },
                Ok(None) => return Progress::Wait,
                Ok(Some(_)) | Err(_) => return Progress::Failed,
            }
        }
    }

    /// Tells the host program that the guest has accepted. The socket is fresh: a few bytes fit.
    pub fn welcome(&mut self, host_port: u32) -> io::Result<()> {
        let line = format!("OK {host_port}\n");
        let sent = self.send(line.as_bytes())?;
        if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads; `Some(0)` is the end, `None` means not now.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.stream.read(buf) {
                Ok(n) => return Ok(Some(n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes what the connection has for the host program, as far as the socket takes it, and
    /// passes the end on.
    pub fn deliver(&mut self, connection: &mut Connection) {
        loop {
            let (bytes, _) = connection.for_host();
            if bytes.is_empty() {
                break;
            }
            match self.send(bytes) {
                Ok(n) => connection.host_took(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => connection.host_stopped_receiving(),
            }
        }
        if connection.guest_finished_sending() && !self.finished {
            self.finished = true;
            // It fails if the host program is gone, which its descriptor reports anyway.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Makes the host program's writes fail: the guest takes nothing more.
    pub fn shut_read(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Never raises SIGPIPE.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match send(self.stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent?),
            }
        }
    }
}

impl AsFd for HostSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Progress {
        let mut greeting = Greeting::default();
        let mut progress = Progress::Wait;
        for byte in text.bytes() {
            assert_eq!(progress, Progress::Wait, "{text:?}");
            progress = greeting.push(byte);
        }
        progress
    }

    #[test]
    fn greetings() {
        assert_eq!(parse("CONNECT 0\n"), Progress::Done(0));
        assert_eq!(parse("CONNECT 4294967295\n"), Progress::Done(u32::MAX));
        assert_eq!(parse("CONNECT 42949672"), Progress::Wait);
        for bad in
            ["\n", "CONNECT \n", "CONNECT x\n", "CONNECT +5\n", "connect 5\n", "CONNECT 5 \n"]
        {
            assert_eq!(parse(bad), Progress::Failed, "{bad:?}");
        }
        assert_eq!(parse("CONNECT 4294967296\n"), Progress::Failed);
        assert_eq!(parse("CONNECT 00000000001"), Progress::Failed);
    }

    #[test]
    fn paths() {
        assert_eq!(path_of(Path::new("/run/a.vsock"), 5000), Path::new("/run/a.vsock_5000"));
    }

    proptest! {
        #[test]
        fn any_greeting_ends_soon(bytes: Vec<u8>, port in "CONNECT [ -~]{0,14}\n", number: u32) {
            for bytes in [bytes, port.into_bytes()] {
                let mut greeting = Greeting::default();
                let ends = bytes.iter().position(|b| greeting.push(*b) != Progress::Wait);
                prop_assert!(ends.is_some() || bytes.len() < MAX_GREETING);
                prop_assert!(greeting.0.len() <= MAX_GREETING);
            }
            prop_assert_eq!(parse(&format!("CONNECT {number}\n")), Progress::Done(number));
        }
    }
}
