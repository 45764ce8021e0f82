//! virtio-rng (virtio 1.2, 5.4): random bytes from the host.
//!
//! The source is handed over open (usually `/dev/urandom`), so that a confined process needs no
//! right to open anything. It must not block for long: the device's thread reads it.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::epoll::{Epoll, EpollFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::thread::{DeviceThread, Worker};
use super::{Activation, ActiveQueue, DeviceError, Interrupt, VirtioDevice};
use crate::memory::{GuestRam, Mem};
use crate::state::v1::{RngState, VirtioDeviceState};

/// Most bytes for one request; the rest of its buffers stays as it was (5.4.6.1 allows that).
pub const MAX_BYTES: usize = 64 << 10;
const QUEUE_SIZES: [u16; 1] = [256];
/// Most descriptors looked at in one request.
const MAX_DESCRIPTORS: usize = 256;
/// Bytes that pass through the process's memory at a time.
const CHUNK: usize = 4096;

/// Where random bytes come from. It is kept over resets.
type Source = Arc<Mutex<dyn Read + Send>>;

/// The device.
pub struct Rng {
    source: Source,
    thread: Option<DeviceThread<RngWorker>>,
}

impl Rng {
    /// A device that reads `source`.
    pub fn new(source: impl Read + Send + 'static) -> Self {
        Self { source: Arc::new(Mutex::new(source)), thread: None }
    }

    /// A device on the kernel's generator.
    pub fn from_host() -> io::Result<Self> {
        Ok(Self::new(File::open("/dev/urandom")?))
    }

    /// A device that a guest knows. It has no state but its queue's.
    pub fn restore(source: impl Read + Send + 'static, state: &RngState) -> Self {
        let RngState {} = state;
        Self::new(source)
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _: u32, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { ram, queues, interrupt, features: _ } = activation;
        let queue = queues.into_iter().next().ok_or(DeviceError::MissingQueue(0))?;
        let kicks = vec![queue.kick.clone()];
        let source = self.source.clone();
        let worker = RngWorker { ram, queue, interrupt, source, broken: false };
        self.thread = Some(DeviceThread::start("rng", worker, kicks)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.thread = None;
    }

    fn drain(&mut self) -> Result<(), DeviceError> {
        self.thread.as_ref().map_or(Ok(()), DeviceThread::park)
    }

    fn resume(&mut self) {
        if let Some(thread) = &self.thread {
            thread.resume();
        }
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        let Some(thread) = &self.thread else { return Vec::new() };
        let worker = thread.worker();
        vec![(worker.queue.index, worker.queue.queue.state())]
    }

    fn save(&self) -> VirtioDeviceState {
        VirtioDeviceState::Rng(RngState {})
    }
}

struct RngWorker {
    ram: GuestRam,
    queue: ActiveQueue,
    interrupt: Interrupt,
    source: Source,
    /// The driver broke the ring, or the source failed: the device stands still until a reset.
    broken: bool,
}

#[derive(Debug, thiserror::Error)]
enum RngError {
    #[error(transparent)]
    Queue(#[from] virtio_queue::Error),
    #[error("descriptor {0} is beyond the queue's size")]
    Head(u16),
    #[error("cannot read the random source: {0}")]
    Source(#[source] io::Error),
}

impl Worker for RngWorker {
    fn attach(&mut self, _: &Arc<Epoll>) -> io::Result<()> {
        Ok(())
    }

    fn queue(&mut self, _: usize) {
        if self.broken {
            return;
        }
        let mut served = 0;
        if let Err(error) = self.serve(&mut served) {
            self.broken = true;
            tracing::warn!(%error, "the random number device stands still");
        }
        let mem = self.ram.mem();
        if served > 0 && self.queue.queue.needs_notification(mem).unwrap_or(true) {
            self.interrupt.used_ring();
        }
    }

    fn event(&mut self, _: u64, _: EpollFlags) {}

    // Nothing is ever in flight: a request is served before `queue` returns.
    fn drain(&mut self) {}
}

impl RngWorker {
    /// Serves at most one round of the queue, then signals itself if there may be more, so that
    /// a busy driver cannot keep the thread from parking.
    fn serve(&mut self, served: &mut u16) -> Result<(), RngError> {
        let mem = self.ram.mem();
        let queue = &mut self.queue.queue;
        let size = queue.size();
        loop {
            queue.disable_notification(mem)?;
            while let Some(chain) = queue.iter(mem)?.next() {
                let head = chain.head_index();
                if head >= size {
                    return Err(RngError::Head(head));
                }
                let written = fill(mem, chain, &self.source).map_err(RngError::Source)?;
                queue.add_used(mem, head, written)?;
                *served += 1;
                if *served == size {
                    self.queue.kick.signal();
                    return Ok(());
                }
            }
            if !queue.enable_notification(mem)? {
                return Ok(());
            }
        }
    }
}

/// Fills a chain's writable buffers up to [`MAX_BYTES`], stopping at memory that is none.
fn fill(mem: &Mem, chain: DescriptorChain<&Mem>, source: &Source) -> io::Result<u32> {
    let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
    let mut chunk = [0; CHUNK];
    let mut left = MAX_BYTES;
    for desc in chain.take(MAX_DESCRIPTORS).filter(Descriptor::is_write_only) {
        let mut at = desc.addr().0;
        let mut len = (desc.len() as usize).min(left);
        while len > 0 {
            let n = len.min(CHUNK);
            source.read_exact(&mut chunk[..n])?;
            let next = at.checked_add(n as u64);
            let (Ok(()), Some(next)) = (mem.write_slice(&chunk[..n], GuestAddress(at)), next)
            else {
                return Ok(written(left));
            };
            at = next;
            len -= n;
            left -= n;
        }
    }
    Ok(written(left))
}

fn written(left: usize) -> u32 {
    u32::try_from(MAX_BYTES - left).unwrap_or(0)
}

#[cfg(test)]
mod tests;
