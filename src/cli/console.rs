//! `console`: joins a terminal, or a pipe, to a guest's serial console. The terminal is restored
//! however the connection ends, also by an error, a panic or a signal.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::{Done, OK, Session};
use crate::api::{ErrorCode, Failure};
use crate::host::registry::locate;

/// Ctrl-], which leaves the console.
pub const ESCAPE: u8 = 0x1d;

/// A terminal in raw mode; dropping it restores the former mode.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal on stdin into raw mode.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

/// How a connection to a console ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The user left.
    Left,
    /// The guest process closed it.
    Closed,
    /// `--timeout` passed.
    Late,
    /// A signal asked us to end.
    Signalled,
}

/// `console`
pub fn console(session: &Session, name: &str) -> Done {
    let client = locate(&session.dirs, name)?;
    let lost = |e: io::Error| {
        Failure::new(
            ErrorCode::Unreachable,
            format!("the console of '{name}' cannot be used: {e}"),
            format!("see what the guest does: migrate show {name}"),
        )
        .retryable()
    };
    let socket = UnixStream::connect(client.paths().console()).map_err(lost)?;
    // Before the terminal changes: from here on no signal ends us without restoring it.
    let signals = ending_signals().map_err(lost)?;
    let terminal = io::stdin().is_terminal();
    let raw = if terminal {
        session.out.progress(&format!("Connected to {name}. Leave with Ctrl-]."));
        Some(RawTerminal::enter().map_err(lost)?)
    } else {
        None
    };
    let end = join(&socket, &signals, terminal, session.global.timeout);
    drop(raw);
    let end = end.map_err(lost)?;
    if terminal {
        session.out.progress(match end {
            End::Left => "\nLeft; the guest goes on.",
            End::Closed => "\nThe console was closed by the guest's process.",
            End::Late | End::Signalled => "\nDisconnected; the guest goes on.",
        });
    }
    Ok(if end == End::Signalled { ErrorCode::Interrupted.exit_code() } else { OK })
}

/// The signals that ask us to end, as a descriptor.
fn ending_signals() -> io::Result<SignalFd> {
    let mut ending = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ending.add(signal);
    }
    ending.thread_block()?;
    Ok(SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Copies both ways until one side ends.
fn join(
    socket: &UnixStream,
    signals: &SignalFd,
    terminal: bool,
    limit: Option<Duration>,
) -> io::Result<End> {
    socket.set_nonblocking(true)?;
    let stdin = io::stdin();
    let start = Instant::now();
    let mut stdin_open = true;
    let mut unsent = Vec::new();
    loop {
        let timeout = match limit.map(|limit| limit.saturating_sub(start.elapsed())) {
            Some(Duration::ZERO) => return Ok(End::Late),
            Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let to_guest = if unsent.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN | to_guest),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
        ];
        // A user's keys are only read when the former ones are with the guest, except on a
        // terminal: there the way out must always work.
        let watch_stdin = stdin_open && (terminal || unsent.is_empty());
        let watched = if watch_stdin { 3 } else { 2 };
        match poll(ready.get_mut(..watched).unwrap_or_default(), timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let [from_guest, from_signals, from_stdin] = ready.map(|fd| fd.any().unwrap_or(false));
        if from_signals {
            return Ok(End::Signalled);
        }
        if from_guest {
            send(socket, &mut unsent)?;
            if !show(socket)? {
                return Ok(End::Closed);
            }
        }
        if watch_stdin && from_stdin {
            match keys(stdin.as_fd(), terminal, &mut unsent)? {
                Keys::Some => send(socket, &mut unsent)?,
                Keys::Escape => return Ok(End::Left),
                Keys::End => {
                    stdin_open = false;
                    socket.shutdown(Shutdown::Write)?;
                }
            }
        }
    }
}

/// What came from stdin.
enum Keys {
    Some,
    Escape,
    End,
}

/// Most bytes that wait for a guest that does not read; what a user types beyond is dropped.
const UNSENT_MAX: usize = 64 << 10;

fn keys(stdin: BorrowedFd<'_>, terminal: bool, unsent: &mut Vec<u8>) -> io::Result<Keys> {
    let mut buffer = [0; 4096];
    let bytes = match nix::unistd::read(stdin, &mut buffer) {
        Ok(0) if terminal => return Ok(Keys::Escape),
        Ok(0) => return Ok(Keys::End),
        Ok(n) => buffer.get(..n).unwrap_or_default(),
        Err(Errno::EINTR | Errno::EAGAIN) => return Ok(Keys::Some),
        Err(e) => return Err(e.into()),
    };
    if terminal && bytes.contains(&ESCAPE) {
        return Ok(Keys::Escape);
    }
    if unsent.len() + bytes.len() <= UNSENT_MAX {
        unsent.extend_from_slice(bytes);
    }
    Ok(Keys::Some)
}

fn send(mut socket: &UnixStream, unsent: &mut Vec<u8>) -> io::Result<()> {
    while !unsent.is_empty() {
        match socket.write(unsent) {
            Ok(n) => drop(unsent.drain(..n)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            // The other side's end is seen when reading.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => unsent.clear(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Shows what the guest wrote; `false` if it closed the connection.
fn show(mut socket: &UnixStream) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    match socket.read(&mut buffer) {
        Ok(0) => Ok(false),
        Ok(n) => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(buffer.get(..n).unwrap_or_default())?;
            stdout.flush()?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(false),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(true)
        }
        Err(e) => Err(e),
    }
}
