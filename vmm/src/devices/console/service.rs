//! The console's thread: it accepts clients, reads input, serves those who lag, and logs.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};

use super::log::Log;
use super::output::{Sink, Target, lost};
use super::{INPUT_ROOM, MAX_CLIENTS, Shared};

/// How long output may wait to be logged. The guest's thread never writes to the log, because a
/// slow disk would stop it; and one wake-up for each byte would cost more than the byte.
const LOG_DELAY: Duration = Duration::from_millis(20);
/// Pause after the kernel refused something (out of descriptors or memory), so as not to spin.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    listener: Option<UnixListener>,
    /// Standard input is read.
    stdin: bool,
    /// Input that was read and found no room; at most [`INPUT_ROOM`] bytes a source.
    spill: Vec<u8>,
    log: Option<Log>,
    /// When the log is written next.
    log_due: Option<Instant>,
    /// No client is accepted before.
    accept_after: Option<Instant>,
    next_id: u64,
}

/// What a descriptor in the poll set is for.
enum Source {
    Wake,
    Listener,
    Stdin,
    Sink(u64),
}

impl Worker {
    pub(super) fn new(
        shared: &Arc<Shared>,
        stop: &Arc<AtomicBool>,
        listener: Option<UnixListener>,
        stdin: bool,
        log: Option<Log>,
    ) -> Self {
        Self {
            shared: shared.clone(),
            stop: stop.clone(),
            listener,
            stdin,
            spill: Vec::new(),
            log,
            log_due: None,
            accept_after: None,
            next_id: 16, // below are standard output and the file
        }
    }

    pub(super) fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            self.retry();
            let now = Instant::now();
            self.schedule_log(now);
            let ready = self.wait(now);
            for (source, flags) in ready {
                match source {
                    Source::Wake => drop(self.shared.wake.clear()),
                    Source::Listener => self.accept(),
                    Source::Stdin => self.read_stdin(),
                    Source::Sink(id) => self.serve(id, flags),
                }
            }
        }
        self.close();
    }

    /// Waits until something happens, and says what.
    fn wait(&mut self, now: Instant) -> Vec<(Source, PollFlags)> {
        let room = self.spill.is_empty() && self.shared.input().room() > 0;
        if self.accept_after.is_some_and(|t| t <= now) {
            self.accept_after = None;
        }
        let targets = self.targets(room);
        let stdin = std::io::stdin();
        let mut sources = vec![Source::Wake];
        let mut fds = vec![PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
        if let (Some(listener), None) = (&self.listener, self.accept_after) {
            sources.push(Source::Listener);
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        if self.stdin && room {
            sources.push(Source::Stdin);
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        for (id, target, flags) in &targets {
            sources.push(Source::Sink(*id));
            fds.push(PollFd::new(target.as_fd(), *flags));
        }
        let due = [self.log_due, self.accept_after].into_iter().flatten().min();
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            // Rounded up, or the last millisecond would be spent spinning.
            let left = due.saturating_duration_since(now) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        if let Err(e) = poll(&mut fds, timeout) {
            if e != Errno::EINTR {
                tracing::warn!("the console cannot wait for its clients: {e}");
                std::thread::sleep(ERROR_PAUSE);
            }
            return Vec::new();
        }
        let flags: Vec<_> =
            fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        sources.into_iter().zip(flags).filter(|(_, f)| !f.is_empty()).collect()
    }

    /// The listeners to wait for, and for what. Those that are gone are forgotten.
    fn targets(&self, room: bool) -> Vec<(u64, Target, PollFlags)> {
        let mut output = self.shared.output();
        let output = &mut *output;
        output.sinks.retain(|s| s.reading || s.writable);
        let mut targets = Vec::new();
        for sink in &output.sinks {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, sink.reading && room);
            flags.set(PollFlags::POLLOUT, sink.lags(&output.ring));
            // A client is also watched for hanging up, until it has.
            let client = matches!(sink.target, Target::Socket(_)) && sink.writable;
            if client || !flags.is_empty() {
                targets.push((sink.id, sink.target.clone(), flags));
            }
        }
        targets
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let stream = match listener.accept() {
            Ok((stream, _)) => Arc::new(stream),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(e) => {
                tracing::warn!("a console client could not be accepted: {e}");
                self.accept_after = Some(Instant::now() + ERROR_PAUSE);
                return;
            }
        };
        let mut output = self.shared.output();
        let output = &mut *output;
        let clients =
            |sinks: &[Sink]| sinks.iter().filter(|s| matches!(s.target, Target::Socket(_))).count();
        if clients(&output.sinks) >= MAX_CLIENTS {
            // Those that hung up, and whose last input no guest reads, must not lock others out.
            output.sinks.retain(|s| s.writable);
        }
        if clients(&output.sinks) >= MAX_CLIENTS {
            // Closing it is the message; there is no room in the protocol for another.
            return;
        }
        let mut sink = Sink::new(Target::Socket(stream), self.next_id, output.ring.start());
        self.next_id += 1;
        sink.pump(&output.ring);
        output.sinks.push(sink);
    }

    fn read_stdin(&mut self) {
        let mut bytes = [0; INPUT_ROOM];
        match nix::unistd::read(std::io::stdin(), &mut bytes) {
            Ok(n @ 1..) => self.offer(&bytes[..n]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Ok(0) | Err(_) => self.stdin = false,
        }
    }

    /// Something happened to the listener `id`.
    fn serve(&mut self, id: u64, flags: PollFlags) {
        if let Some(stream) = self.pump(id, flags) {
            let mut bytes = [0; INPUT_ROOM];
            match recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(n @ 1..) => self.offer(&bytes[..n]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Ok(0) | Err(_) => self.stop_reading(id),
            }
        }
    }

    /// Writes what the listener takes, and returns its socket if there may be input to read.
    fn pump(&self, id: u64, flags: PollFlags) -> Option<Arc<UnixStream>> {
        let mut output = self.shared.output();
        let output = &mut *output;
        let sink = output.sinks.iter_mut().find(|s| s.id == id)?;
        if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            sink.writable = false;
        }
        sink.pump(&output.ring);
        // What a client sent before it hung up waits in the socket until there is room.
        let readable = sink.reading && flags.contains(PollFlags::POLLIN) && self.spill.is_empty();
        match &sink.target {
            Target::Socket(stream) if readable => Some(stream.clone()),
            _ => None,
        }
    }

    fn stop_reading(&self, id: u64) {
        if let Some(sink) = self.shared.output().sinks.iter_mut().find(|s| s.id == id) {
            sink.reading = false;
        }
    }

    /// Hands input on. No lock is held: the device's listener is called from here.
    fn offer(&mut self, bytes: &[u8]) {
        let taken = self.shared.offer(bytes);
        self.spill.extend_from_slice(&bytes[taken..]);
    }

    /// Tries again what found no room. Until it is gone nothing more is read.
    fn retry(&mut self) {
        if !self.spill.is_empty() {
            let taken = self.shared.offer(&self.spill);
            self.spill.drain(..taken);
        }
    }

    fn schedule_log(&mut self, now: Instant) {
        let (pending, hurried) = self.shared.output().log_pending();
        if !pending {
            return;
        }
        let due = *self.log_due.get_or_insert(now + LOG_DELAY);
        if hurried || due <= now {
            self.log_due = None;
            self.write_log();
        }
    }

    /// Logs everything that there is.
    fn write_log(&mut self) {
        let Some(log) = &mut self.log else { return };
        loop {
            let mut output = self.shared.output();
            let (bytes, next) = match output.ring.from(log.cursor) {
                // Under the same lock: what comes next wakes this thread again.
                Some([]) => return output.logged(log.cursor),
                Some(bytes) => (bytes.to_vec(), log.cursor + bytes.len() as u64),
                None => (lost(output.ring.start() - log.cursor), output.ring.start()),
            };
            drop(output);
            if let Err(e) = log.append(&bytes) {
                tracing::warn!("the console log ends here, it cannot be written: {e}");
                self.shared.output().drop_log();
                self.log = None;
                return;
            }
            log.cursor = next;
        }
    }

    /// Writes what can still be written and lets everybody go.
    fn close(&mut self) {
        self.write_log();
        let mut output = self.shared.output();
        let output_ref = &mut *output;
        for sink in &mut output_ref.sinks {
            sink.pump(&output_ref.ring);
        }
        output.sinks.clear();
        output.drop_log();
        output.closed = true;
        self.shared.grown.notify_all();
    }
}
