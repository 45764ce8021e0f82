//! The thread of a virtio device: waits for queue notifications and the device's own
//! descriptors, and parks on request so that the device can be saved.
//!
//! The worker sits in a mutex that its thread holds only while it handles an event. Parked means:
//! the worker has drained, its thread sleeps, and the owner may read the worker.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::DeviceError;
use crate::eventfd::EventFd;

/// Tokens from here on are the worker's own; smaller ones are queue slots.
pub const FIRST_OWN_TOKEN: u64 = 64;
const CONTROL_TOKEN: u64 = u64::MAX;
const EVENTS_PER_WAIT: usize = 16;

/// The back half of a device.
pub trait Worker: Send + 'static {
    /// Called once, before anything else: register own descriptors with tokens from
    /// [`FIRST_OWN_TOKEN`] up to `u64::MAX - 1`. The worker may keep the `Arc` to change them.
    fn attach(&mut self, events: &Arc<Epoll>) -> io::Result<()>;
    /// The driver notified the queue in `slot` (its place in `Activation::queues`), or the device
    /// resumes. Must cope with a queue that has nothing new.
    fn queue(&mut self, slot: usize);
    /// One of the worker's own descriptors is ready.
    fn event(&mut self, token: u64, flags: EpollFlags);
    /// Complete everything in flight. Afterwards neither guest memory nor the interrupt is
    /// touched until `queue` or `event` is called again.
    fn drain(&mut self);
}

enum Command {
    Resume,
    Park(Sender<()>),
    Stop,
}

/// A running or parked device thread. Dropping it stops the thread.
pub struct DeviceThread<W: Worker> {
    worker: Arc<Mutex<W>>,
    commands: Sender<Command>,
    wake: EventFd,
    join: Option<JoinHandle<()>>,
}

impl<W: Worker> DeviceThread<W> {
    /// Starts the thread, parked. `kicks` are the notifications of the queues, by slot.
    pub fn start(name: &str, mut worker: W, kicks: Vec<EventFd>) -> Result<Self, DeviceError> {
        let host = |what| move |source: io::Error| DeviceError::Host { what, source };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|e| host("cannot create an epoll descriptor")(e.into()))?;
        let wake = EventFd::new().map_err(host("cannot create an event descriptor"))?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        let watch = |fd: &EventFd, token| {
            epoll
                .add(fd.as_fd(), readable(token))
                .map_err(|e| host("cannot watch an event descriptor")(e.into()))
        };
        watch(&wake, CONTROL_TOKEN)?;
        for (slot, kick) in kicks.iter().enumerate() {
            watch(kick, slot as u64)?;
        }
        let epoll = Arc::new(epoll);
        worker.attach(&epoll).map_err(host("cannot watch the device's descriptors"))?;
        let worker = Arc::new(Mutex::new(worker));
        let (commands, inbox) = channel();
        let body = Loop { worker: worker.clone(), wake: wake.clone(), epoll, kicks, inbox };
        let join = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body.run())
            .map_err(host("cannot start the device's thread"))?;
        Ok(Self { worker, commands, wake, join: Some(join) })
    }

    /// Goes on; every queue is looked at once.
    pub fn resume(&self) {
        let _ = self.commands.send(Command::Resume);
    }

    /// Drains the worker and parks the thread. Parking a parked thread does nothing.
    pub fn park(&self) -> Result<(), DeviceError> {
        let (done, parked) = channel();
        self.commands.send(Command::Park(done)).map_err(|_| DeviceError::ThreadGone)?;
        self.wake.signal();
        parked.recv().map_err(|_| DeviceError::ThreadGone)
    }

    /// The worker. While the thread runs this may wait for the event in hand.
    pub fn worker(&self) -> MutexGuard<'_, W> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drains, ends the thread and gives the worker back; `None` if its thread panicked.
    pub fn stop(mut self) -> Option<W> {
        self.join_thread();
        let worker = self.worker.clone();
        drop(self);
        Arc::into_inner(worker).and_then(|m| m.into_inner().ok())
    }

    fn join_thread(&mut self) {
        let _ = self.commands.send(Command::Stop);
        self.wake.signal();
        if let Some(join) = self.join.take() {
            let _ = join.join();
        }
    }
}

impl<W: Worker> Drop for DeviceThread<W> {
    fn drop(&mut self) {
        self.join_thread();
    }
}

struct Loop<W> {
    worker: Arc<Mutex<W>>,
    wake: EventFd,
    epoll: Arc<Epoll>,
    kicks: Vec<EventFd>,
    inbox: Receiver<Command>,
}

impl<W: Worker> Loop<W> {
    fn worker(&self) -> MutexGuard<'_, W> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self) {
        while let Ok(command) = self.inbox.recv() {
            match command {
                Command::Resume => {
                    for slot in 0..self.kicks.len() {
                        self.worker().queue(slot);
                    }
                    if !self.serve() {
                        return;
                    }
                }
                Command::Park(done) => {
                    let _ = done.send(());
                }
                Command::Stop => return,
            }
        }
    }

    /// Handles events until told to park (`true`) or to stop (`false`).
    fn serve(&self) -> bool {
        let mut events = [EpollEvent::empty(); EVENTS_PER_WAIT];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(n) => &events[..n],
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => {
                    tracing::error!(error = %e, "device thread cannot wait for events");
                    self.worker().drain();
                    return false;
                }
            };
            for event in ready {
                match event.data() {
                    CONTROL_TOKEN => {}
                    token if token < FIRST_OWN_TOKEN => self.kicked(token),
                    token => self.worker().event(token, event.events()),
                }
            }
            // After the batch, so that a worker's stale events never follow its drain.
            self.wake.clear();
            match self.commanded() {
                None => {}
                Some(Command::Park(done)) => {
                    self.worker().drain();
                    let _ = done.send(());
                    return true;
                }
                Some(_) => {
                    self.worker().drain();
                    return false;
                }
            }
        }
    }

    /// The next command that matters while running. All of them are looked at, because one
    /// wake-up may stand for several: a second `Resume` must not hide the `Park` behind it.
    fn commanded(&self) -> Option<Command> {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Resume) => {}
                Ok(command) => return Some(command),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(Command::Stop),
            }
        }
    }

    fn kicked(&self, token: u64) {
        let Some((slot, kick)) =
            usize::try_from(token).ok().and_then(|s| self.kicks.get(s).map(|k| (s, k)))
        else {
            return;
        };
        kick.clear();
        self.worker().queue(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count {
        queue: usize,
        drained: usize,
    }

    impl Worker for Count {
        fn attach(&mut self, _: &Arc<Epoll>) -> io::Result<()> {
            Ok(())
        }
        fn queue(&mut self, _: usize) {
            self.queue += 1;
        }
        fn event(&mut self, _: u64, _: EpollFlags) {}
        fn drain(&mut self) {
            self.drained += 1;
        }
    }

    #[test]
    fn parks_resumes_and_gives_the_worker_back() {
        let kick = EventFd::new().unwrap();
        let ours = kick.clone();
        let thread =
            DeviceThread::start("count", Count { queue: 0, drained: 0 }, vec![kick]).unwrap();
        thread.park().unwrap();
        assert_eq!(thread.worker().queue, 0);
        assert_eq!(thread.worker().drained, 0);
        ours.signal();
        thread.resume();
        while thread.worker().queue < 2 {
            std::thread::yield_now();
        }
        thread.park().unwrap();
        thread.park().unwrap();
        assert_eq!(thread.worker().drained, 1);
        ours.signal();
        let worker = thread.stop().unwrap();
        assert_eq!(worker.queue, 2, "a parked device handles nothing");
    }

    #[test]
    fn parks_after_being_resumed_twice() {
        let thread = DeviceThread::start("twice", Count { queue: 0, drained: 0 }, vec![]).unwrap();
        thread.resume();
        thread.resume();
        thread.resume();
        thread.park().unwrap();
        assert_eq!(thread.worker().drained, 1);
        assert!(thread.stop().is_some());
    }
}
