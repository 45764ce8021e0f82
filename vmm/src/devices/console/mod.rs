//! The host side of a guest's console: output to whoever listens, input to the device.
//!
//! Output goes into a ring that holds the last [`SCROLLBACK`] bytes. Every listener (a client on
//! the socket, standard output, a file, the log, a reader in this process) is a position in that
//! ring, so a slow one costs no memory and never blocks the guest: when the ring overtakes it, it
//! loses bytes and gets a line that says how many. Whoever keeps up is written to from the
//! guest's own thread, byte by byte if the guest writes so, because an observer may time it.
//! A thread serves the socket, the input, the laggards and the log; it sleeps when nothing
//! happens.
//!
//! Input waits in a queue of at most [`INPUT_ROOM`] bytes. When it is full nothing more is read
//! from clients, and they feel it.
//!
//! The console outlives the device: a guest's reset makes a new device on the same
//! [`ConsolePort`]. Nothing here opens or names a file.

mod input;
mod log;
mod output;
mod reader;
mod ring;
mod service;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

pub use input::InputListener;
pub use log::LogFiles;
pub use reader::{Missed, OutputReader, Position};

use self::input::Input;
use self::log::Log;
use self::output::{Output, Sink, Target};
use crate::eventfd::EventFd;

/// Bytes of output that a new client gets first.
pub const SCROLLBACK: usize = 256 << 10;
/// Bytes of input that wait for the guest.
pub const INPUT_ROOM: usize = 4096;
/// Clients at a time; further ones are turned away.
pub const MAX_CLIENTS: usize = 16;
/// Size at which the log starts anew; the last full one is kept beside it.
pub const LOG_SIZE: u64 = 1 << 20;

/// Where a console's output goes and its input comes from. Everything is optional.
#[derive(Debug, Default)]
pub struct ConsoleConfig {
    /// Clients connect here. Each gets the scrollback, then what comes; what it sends is input.
    pub listener: Option<UnixListener>,
    /// A log of bounded size.
    pub log: Option<LogFiles>,
    /// Output to standard output, input from standard input.
    pub stdio: bool,
    /// Output to this file (regular, pipe or terminal), without bound.
    pub file: Option<File>,
}

/// A console. Cloning shares it; dropping the last clone disconnects all clients and waits for
/// the thread, so it must not be done under a lock that an [`InputListener`] takes.
#[derive(Clone)]
pub struct Console {
    shared: Arc<Shared>,
    _service: Arc<Service>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

/// What the service thread, the devices and the readers share.
struct Shared {
    output: Mutex<Output>,
    /// Output grew, or the console closed. Only signalled while somebody waits.
    grown: Condvar,
    input: Mutex<Input>,
    /// Signalled whenever input comes.
    input_ready: EventFd,
    /// Wakes the service thread.
    wake: EventFd,
}

impl Shared {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bytes: &[u8]) {
        let mut output = self.output();
        let wake = output.write(bytes);
        if output.waiting > 0 {
            self.grown.notify_all();
        }
        drop(output);
        if wake {
            self.wake.signal();
        }
    }

    /// Queues input and tells the device. Returns how many bytes found room.
    fn offer(&self, bytes: &[u8]) -> usize {
        let mut input = self.input();
        let taken = input.push(bytes);
        let listener = input.listener();
        drop(input);
        if taken > 0 {
            self.input_ready.signal();
            if let Some(listener) = listener {
                listener.input_ready();
            }
        }
        taken
    }
}

/// The thread, ended when the last [`Console`] goes.
struct Service {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            // The last clone may go in a listener that the thread itself calls.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Console {
    /// Opens the console and starts its thread.
    ///
    /// # Errors
    /// When the kernel refuses an event counter, a thread, or to look at the log's size.
    pub fn new(config: ConsoleConfig) -> io::Result<Self> {
        let mut sinks = Vec::new();
        if config.stdio {
            sinks.push(Sink::new(Target::Stdout(io::stdout()), 0, 0));
        }
        if let Some(file) = config.file {
            sinks.push(Sink::new(Target::File(Arc::new(file)), 1, 0));
        }
        if let Some(listener) = &config.listener {
            listener.set_nonblocking(true)?;
        }
        let log = config.log.map(Log::new).transpose()?;
        let shared = Arc::new(Shared {
            output: Mutex::new(Output::new(sinks, log.is_some())),
            grown: Condvar::new(),
            input: Mutex::new(Input::default()),
            input_ready: EventFd::new()?,
            wake: EventFd::new()?,
        });
        let stop = Arc::new(AtomicBool::new(false));
        let worker = service::Worker::new(&shared, &stop, config.listener, config.stdio, log);
        let thread =
            std::thread::Builder::new().name("console".into()).spawn(move || worker.run())?;
        let service = Service { shared: shared.clone(), stop, thread: Some(thread) };
        Ok(Self { shared, _service: Arc::new(service) })
    }

    /// What a device needs. Any number of ports share one input queue: give one to one device.
    pub fn port(&self) -> ConsolePort {
        ConsolePort { shared: self.shared.clone() }
    }

    /// Types `bytes`, as a client would. Returns how many found room in the input queue.
    pub fn send_input(&self, bytes: &[u8]) -> usize {
        self.shared.offer(bytes)
    }

    /// A reader of the output, for this process.
    pub fn subscribe(&self, from: Position) -> OutputReader {
        OutputReader::new(self.shared.clone(), from)
    }
}

/// A device's end of a console. Cloning shares it. It does not keep the console open: once that
/// is closed, output goes nowhere and no input comes.
#[derive(Clone)]
pub struct ConsolePort {
    shared: Arc<Shared>,
}

impl fmt::Debug for ConsolePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsolePort").finish_non_exhaustive()
    }
}

impl ConsolePort {
    /// Takes output of the guest. Never blocks on a listener, never fails.
    pub fn write(&self, bytes: &[u8]) {
        self.shared.write(bytes);
    }

    /// Takes at most `max` bytes of input, oldest first.
    pub fn take(&self, max: usize) -> Vec<u8> {
        let (bytes, was_full) = self.shared.input().take(max);
        if was_full {
            // There is room again: clients are read from again.
            self.shared.wake.signal();
        }
        bytes
    }

    /// Signalled whenever input comes. Clear it, then [`take`](Self::take) until nothing comes.
    pub fn input_ready(&self) -> EventFd {
        self.shared.input_ready.clone()
    }

    /// Calls `listener` whenever input comes, from the console's thread and with no lock of the
    /// console held; for a device without a thread of its own. It replaces any other.
    pub fn on_input(&self, listener: Weak<dyn InputListener>) {
        self.shared.input().set_listener(listener);
    }
}
