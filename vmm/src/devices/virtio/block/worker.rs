//! The back half: the device's thread takes requests off the queues, a few threads of a pool do
//! the disk's work and return them. A slow disk therefore holds up neither a vCPU nor the
//! device's thread. What is in flight is bounded by the queues' sizes.
//!
//! A drain waits only for what the pool has begun. What still waits for a thread goes back onto
//! its queue: the pool begins requests in the order in which they were taken, so those are the
//! last ones of each queue, and taking the queue's position back gives them back. The guest
//! stands still for as long as the slowest of a few requests needs, however deep its queues.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollFlags};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::execute::{Disk, Outcome};
use super::request::{Limits, Request, parse};
use crate::devices::virtio::thread::Worker;
use crate::devices::virtio::{ActiveQueue, Interrupt};
use crate::eventfd::EventFd;
use crate::memory::{GuestRam, Mem};

/// Threads that wait for the disk: enough to keep one busy, few enough to be cheap.
const POOL_THREADS: usize = 4;

/// The worker of the device's thread. Dropping it ends the pool.
pub struct BlockWorker {
    shared: Arc<Shared>,
    pool: Vec<JoinHandle<()>>,
}

/// What all threads of a device work on.
struct Shared {
    ram: GuestRam,
    disk: Arc<Disk>,
    interrupt: Interrupt,
    /// The driver cannot flush.
    durable: bool,
    rings: Vec<Ring>,
    jobs: Mutex<Jobs>,
    /// There is something to do, or the pool ends.
    work: Condvar,
    /// Nothing is running any more.
    idle: Condvar,
}

struct Ring {
    index: u16,
    kick: EventFd,
    state: Mutex<RingState>,
}

struct RingState {
    queue: Queue,
    /// Taken and not yet returned: at most the queue's size.
    in_flight: u16,
    /// Entries were left because too many were in flight.
    stalled: bool,
    /// The driver broke the ring: it is left alone until a reset.
    broken: bool,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    running: usize,
    stop: bool,
}

struct Job {
    slot: usize,
    head: u16,
    request: Request,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockWorker {
    /// Starts the pool. `durable`: the driver cannot flush (`VIRTIO_BLK_F_FLUSH` is off).
    pub fn start(
        ram: GuestRam,
        disk: Arc<Disk>,
        interrupt: Interrupt,
        durable: bool,
        queues: Vec<ActiveQueue>,
    ) -> io::Result<Self> {
        let rings = queues.into_iter().map(|q| Ring {
            index: q.index,
            kick: q.kick,
            state: Mutex::new(RingState {
                queue: q.queue,
                in_flight: 0,
                stalled: false,
                broken: false,
            }),
        });
        let shared = Arc::new(Shared {
            ram,
            disk,
            interrupt,
            durable,
            rings: rings.collect(),
            jobs: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
        });
        // Made first, so that a failure half-way ends the threads that run already.
        let mut worker = Self { shared, pool: Vec::new() };
        for n in 0..POOL_THREADS {
            let shared = worker.shared.clone();
            let name = format!("disk-io-{n}");
            worker.pool.push(std::thread::Builder::new().name(name).spawn(move || shared.work())?);
        }
        Ok(worker)
    }

    /// The queues with their numbers. Only while parked.
    pub fn queues(&self) -> Vec<(u16, QueueState)> {
        self.shared.rings.iter().map(|r| (r.index, lock(&r.state).queue.state())).collect()
    }
}

impl Drop for BlockWorker {
    fn drop(&mut self) {
        lock(&self.shared.jobs).stop = true;
        self.shared.work.notify_all();
        for thread in self.pool.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Worker for BlockWorker {
    fn attach(&mut self, _: &Arc<Epoll>) -> io::Result<()> {
        Ok(())
    }

    fn queue(&mut self, slot: usize) {
        self.shared.take_requests(slot);
    }

    fn event(&mut self, _: u64, _: EpollFlags) {}

    fn drain(&mut self) {
        let mut jobs = lock(&self.shared.jobs);
        let waiting = std::mem::take(&mut jobs.waiting);
        while jobs.running > 0 {
            jobs = self.shared.idle.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        drop(jobs);
        self.shared.give_back(&waiting);
    }
}

impl Shared {
    /// Hands everything new on a queue to the pool.
    fn take_requests(&self, slot: usize) {
        let Some(ring) = self.rings.get(slot) else { return };
        let mut taken = Vec::new();
        {
            let mut state = lock(&ring.state);
            if state.broken {
                return;
            }
            if let Err(error) = state.take(self.ram.mem(), self.disk.limits, &mut taken) {
                state.broken = true;
                let queue = ring.index;
                tracing::warn!(queue, %error, "the driver broke a disk's queue; it stands still");
            }
        }
        if taken.is_empty() {
            return;
        }
        let mut jobs = lock(&self.jobs);
        jobs.waiting.extend(taken.into_iter().map(|(head, request)| Job { slot, head, request }));
        drop(jobs);
        self.work.notify_all();
    }

    /// Undoes the taking of requests that nobody has begun: the last ones of their queues.
    fn give_back(&self, waiting: &VecDeque<Job>) {
        for job in waiting {
            let Some(ring) = self.rings.get(job.slot) else { continue };
            let mut state = lock(&ring.state);
            let position = state.queue.next_avail().wrapping_sub(1);
            state.queue.set_next_avail(position);
            state.in_flight = state.in_flight.saturating_sub(1);
        }
    }

    /// A thread of the pool.
    fn work(&self) {
        while let Some(job) = self.next_job() {
            let _running = Running(self);
            let outcome = self.disk.carry_out(self.ram.mem(), &job.request, self.durable);
            self.finish(&job, outcome);
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut jobs = lock(&self.jobs);
        loop {
            if jobs.stop {
                return None;
            }
            if let Some(job) = jobs.waiting.pop_front() {
                jobs.running += 1;
                return Some(job);
            }
            jobs = self.work.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns a request to the driver.
    fn finish(&self, job: &Job, outcome: Outcome) {
        let Some(ring) = self.rings.get(job.slot) else { return };
        let mem = self.ram.mem();
        // The length counts what was written without a gap (2.7.8.2), the status comes last.
        let mut written = outcome.written;
        if let Some(status) = job.request.status {
            // Fails only if the driver put it outside its memory; then nobody misses it.
            let _ = mem.write_obj(outcome.status, GuestAddress(status));
            written = written.saturating_add((written == job.request.writable).into());
        }
        let mut state = lock(&ring.state);
        state.in_flight = state.in_flight.saturating_sub(1);
        // The rings were checked against guest memory and the head against the queue's size.
        let _ = state.queue.add_used(mem, job.head, u32::try_from(written).unwrap_or(u32::MAX));
        if state.queue.needs_notification(mem).unwrap_or(true) {
            self.interrupt.used_ring();
        }
        if std::mem::take(&mut state.stalled) {
            ring.kick.signal();
        }
    }
}

/// A job in hand; also a panic must not leave `drain` waiting for it.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut jobs = lock(&self.0.jobs);
        jobs.running -= 1;
        if jobs.running == 0 {
            self.0.idle.notify_all();
        }
    }
}

/// Why a queue cannot be served any longer.
#[derive(Debug, thiserror::Error)]
enum RingError {
    #[error(transparent)]
    Queue(#[from] virtio_queue::Error),
    #[error("descriptor {0} is beyond the queue's size")]
    Head(u16),
}

impl RingState {
    /// Takes new requests, as many as may be in flight.
    fn take(
        &mut self,
        mem: &Mem,
        limits: Limits,
        taken: &mut Vec<(u16, Request)>,
    ) -> Result<(), RingError> {
        let size = self.queue.size();
        loop {
            self.queue.disable_notification(mem)?;
            loop {
                // Only a driver that reuses descriptors too early gets here. The next
                // completion looks at the queue again.
                if self.in_flight >= size {
                    self.stalled = true;
                    return Ok(());
                }
                let Some(chain) = self.queue.iter(mem)?.next() else { break };
                let head = chain.head_index();
                if head >= size {
                    // The position counts what was taken, see `give_back`.
                    self.queue.go_to_previous_position();
                    return Err(RingError::Head(head));
                }
                taken.push((head, parse(mem, chain, limits)));
                self.in_flight += 1;
            }
            if !self.queue.enable_notification(mem)? {
                return Ok(());
            }
        }
    }
}
