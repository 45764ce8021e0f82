//! Output on its way to the listeners.

use std::fs::File;
use std::io::{self, Stdout};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use super::SCROLLBACK;
use super::ring::Ring;

/// What is written at once to a descriptor that says it has room: a pipe then takes as much
/// without blocking (`PIPE_BUF`).
const PIECE: usize = 4096;

/// Where a listener's bytes go.
pub(super) enum Target {
    Socket(Arc<UnixStream>),
    Stdout(Stdout),
    File(Arc<File>),
}

impl Clone for Target {
    fn clone(&self) -> Self {
        match self {
            Self::Socket(stream) => Self::Socket(stream.clone()),
            Self::Stdout(_) => Self::Stdout(io::stdout()),
            Self::File(file) => Self::File(file.clone()),
        }
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(stream) => stream.as_fd(),
            Self::Stdout(stdout) => stdout.as_fd(),
            Self::File(file) => file.as_fd(),
        }
    }
}

impl Target {
    /// Writes without ever blocking; `EAGAIN` if there is no room.
    fn write(&self, bytes: &[u8]) -> nix::Result<usize> {
        if let Self::Socket(stream) = self {
            return send(
                stream.as_raw_fd(),
                bytes,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            );
        }
        // Others share these descriptors, so they cannot be made non-blocking: ask first.
        let mut ready = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut ready, PollTimeout::ZERO)? == 0 {
            return Err(Errno::EAGAIN);
        }
        nix::unistd::write(self.as_fd(), &bytes[..bytes.len().min(PIECE)])
    }
}

/// A listener that this process writes to.
pub(super) struct Sink {
    pub(super) target: Target,
    pub(super) id: u64,
    /// Position of the next byte that it gets.
    cursor: u64,
    /// A line about lost bytes that goes first.
    marker: Vec<u8>,
    /// It may still send input (clients only).
    pub(super) reading: bool,
    /// It still takes output.
    pub(super) writable: bool,
}

impl Sink {
    /// A listener that gets everything from position `cursor` on.
    pub(super) fn new(target: Target, id: u64, cursor: u64) -> Self {
        let reading = matches!(target, Target::Socket(_));
        Self { target, id, cursor, marker: Vec::new(), reading, writable: true }
    }

    pub(super) fn lags(&self, ring: &Ring) -> bool {
        self.writable && (self.cursor != ring.end() || !self.marker.is_empty())
    }

    /// It takes no more output. A client that hangs up is no news; a file that fails is.
    fn end(&mut self, error: Errno) {
        self.writable = false;
        if !matches!(self.target, Target::Socket(_)) {
            tracing::warn!("a console output ends here, it cannot be written: {error}");
        }
    }

    /// Writes what it will take now.
    pub(super) fn pump(&mut self, ring: &Ring) {
        while self.lags(ring) {
            if self.marker.is_empty() && self.cursor < ring.start() {
                self.marker = lost(ring.start() - self.cursor);
                self.cursor = ring.start();
            }
            let from_marker = !self.marker.is_empty();
            let bytes =
                if from_marker { &self.marker } else { ring.from(self.cursor).unwrap_or_default() };
            match self.target.write(bytes) {
                Ok(0) | Err(Errno::EAGAIN) => return,
                Ok(n) if from_marker => drop(self.marker.drain(..n.min(self.marker.len()))),
                Ok(n) => self.cursor += n as u64,
                Err(Errno::EINTR) => {}
                Err(e) => self.end(e),
            }
        }
    }
}

/// What stands in place of `count` lost bytes.
pub(super) fn lost(count: u64) -> Vec<u8> {
    format!("\r\n[{count} bytes of console output lost]\r\n").into_bytes()
}

/// The stream, and how far each listener has come.
pub(super) struct Output {
    pub(super) ring: Ring,
    pub(super) sinks: Vec<Sink>,
    /// Readers that wait for the stream to grow.
    pub(super) waiting: usize,
    /// Nothing more will come.
    pub(super) closed: bool,
    /// How the log stands; `None` without one.
    log: Option<LogProgress>,
}

struct LogProgress {
    /// Everything before is in the log.
    done: u64,
    /// The service knows that there is more.
    told: bool,
    /// The service knows that it must not wait.
    hurried: bool,
}

impl Output {
    pub(super) fn new(sinks: Vec<Sink>, log: bool) -> Self {
        let log = log.then_some(LogProgress { done: 0, told: false, hurried: false });
        Self { ring: Ring::new(), sinks, waiting: 0, closed: false, log }
    }

    /// Appends `bytes` and writes them to every listener that keeps up. `true` if the service
    /// thread has something new to do.
    pub(super) fn write(&mut self, bytes: &[u8]) -> bool {
        let mut wake = false;
        // In pieces, so that a listener that keeps up never loses anything.
        for piece in bytes.chunks(SCROLLBACK / 4) {
            let before = self.ring.end();
            self.ring.push(piece);
            for sink in &mut self.sinks {
                // A laggard is left to the service, which knows when it has room again.
                if sink.writable && sink.cursor == before && sink.marker.is_empty() {
                    sink.pump(&self.ring);
                    wake |= sink.lags(&self.ring) || !sink.writable;
                }
            }
        }
        if let Some(log) = &mut self.log {
            let hurry = self.ring.end() - log.done > SCROLLBACK as u64 / 2;
            wake |= !log.told || (hurry && !log.hurried);
            log.told = true;
            log.hurried |= hurry;
        }
        wake
    }

    /// Whether something waits to be logged, and whether that cannot wait longer.
    pub(super) fn log_pending(&self) -> (bool, bool) {
        self.log.as_ref().map_or((false, false), |l| (l.told, l.hurried))
    }

    /// Notes that the log has everything, which is `done` bytes.
    pub(super) fn logged(&mut self, done: u64) {
        if let Some(log) = &mut self.log {
            *log = LogProgress { done, told: false, hurried: false };
        }
    }

    /// Forgets the log: it cannot be written any more.
    pub(super) fn drop_log(&mut self) {
        self.log = None;
    }
}
