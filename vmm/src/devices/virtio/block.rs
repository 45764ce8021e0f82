//! virtio-blk (virtio 1.2, 5.2): a disk on a file or a block device.
//!
//! * [`open`]: opens and locks an image; [`raw`]: reads and writes it; [`backend`]: what any
//!   image format must offer.
//! * `request`: from descriptors to a checked request; `execute`: from a request to an outcome;
//!   `worker`: queues and threads.
//!
//! A disk's size, block size, identity and kind never change while a guest knows them, so a
//! restore refuses a file for which they differ. Errors of the disk go to the guest as `IOERR`,
//! are counted, and logged ever more rarely.

pub mod backend;
mod execute;
pub mod lock;
pub mod open;
pub mod raw;
mod request;
mod sys;
#[cfg(test)]
mod tests;
mod worker;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;

pub use self::backend::{DiskBackend, WriteObserver};
use self::execute::Disk;
pub use self::lock::DiskLock;
pub use self::open::{DiskOpenError, open_disk};
use self::raw::RawDisk;
use self::request::{ID_BYTES, Limits, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZERO_SECTORS, SECTOR};
use self::worker::BlockWorker;
use super::thread::DeviceThread;
use super::{Activation, DeviceError, VirtioDevice};
use crate::state::v1::{BlockState, VirtioDeviceState};

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Most queues of a disk: more than the vCPUs of any guest make no sense.
pub const MAX_QUEUES: u16 = 32;
/// Most data buffers in a request, and most bytes in each.
const SEG_MAX: u32 = 126;
const SIZE_MAX: u32 = 1 << 20;
/// Bytes of `struct virtio_blk_config` up to `write_zeroes_may_unmap` and its padding (5.2.4).
const CONFIG_BYTES: usize = 60;
/// Offset of the only field that a driver may write.
const WRITEBACK_OFFSET: usize = 32;

/// A disk to be given to a guest.
pub struct BlockSpec {
    /// From [`open_disk`].
    pub file: File,
    /// The guest must not write.
    pub read_only: bool,
    /// `file` was opened for direct I/O.
    pub direct: bool,
    /// Offers discard and write-zeroes, which give space back to the host.
    pub discard: bool,
    /// Identity string for the guest, at most 20 bytes of printable ASCII.
    pub serial: String,
    /// Request queues, 1 to [`MAX_QUEUES`]; usually 1, or one for each vCPU.
    pub queues: u16,
    /// Hears of every change before it is submitted.
    pub observer: Option<Arc<dyn WriteObserver>>,
}

/// Why a disk cannot be given to a guest.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file is no disk.
    #[error(transparent)]
    Disk(#[from] DiskOpenError),
    /// Bad identity string.
    #[error("disk serial {0:?} is not at most {ID_BYTES} printable ASCII characters")]
    Serial(String),
    /// Bad number of queues.
    #[error("{0} disk queues are out of range: give between 1 and {MAX_QUEUES}")]
    Queues(u16),
    /// The guest that is to be restored knew another disk.
    #[error(
        "the disk's {field} is {found}, but the saved guest knows {saved}; give it its own disk"
    )]
    Differs {
        /// What differs.
        field: &'static str,
        /// In the saved state.
        saved: String,
        /// Of this disk.
        found: String,
    },
}

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    /// Logical block size that the guest is told, in bytes.
    logical_size: u32,
    serial: String,
    queue_sizes: Vec<u16>,
    thread: Option<DeviceThread<BlockWorker>>,
}

impl Block {
    /// A disk that the guest does not know yet.
    pub fn new(spec: BlockSpec) -> Result<Self, BlockError> {
        let BlockSpec { file, read_only, direct, discard, serial, queues, observer } = spec;
        let backend = Arc::new(RawDisk::new(file, direct)?);
        Self::on(backend, read_only, discard, serial, queues, observer)
    }

    /// The device on any kind of image.
    fn on(
        backend: Arc<dyn DiskBackend>,
        read_only: bool,
        discard: bool,
        serial: String,
        queues: u16,
        observer: Option<Arc<dyn WriteObserver>>,
    ) -> Result<Self, BlockError> {
        let mut id = [0; ID_BYTES];
        let printable = serial.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        match id.get_mut(..serial.len()) {
            Some(start) if printable => start.copy_from_slice(serial.as_bytes()),
            _ => return Err(BlockError::Serial(serial)),
        }
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(BlockError::Queues(queues));
        }
        let discard = discard && !read_only;
        Ok(Self {
            logical_size: backend.block_size(),
            disk: Arc::new(Disk {
                limits: Limits { size: backend.size(), read_only, discard },
                backend,
                observer,
                id,
                writeback: AtomicBool::new(true),
                errors: Arc::default(),
            }),
            serial,
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            thread: None,
        })
    }

    /// A disk that the guest knows: it must be the one that `state` describes. What the guest
    /// was told stays as it was, also where this host could do better.
    pub fn restore(spec: BlockSpec, state: &BlockState) -> Result<Self, BlockError> {
        let mut new = Self::new(spec)?;
        let differs = |field, saved: &dyn ToString, found: &dyn ToString| {
            Err(BlockError::Differs { field, saved: saved.to_string(), found: found.to_string() })
        };
        let (sectors, read_only) = (new.sectors(), new.disk.limits.read_only);
        if state.sectors != sectors {
            return differs("size in sectors", &state.sectors, &sectors);
        }
        if state.read_only != read_only {
            return differs("read-only flag", &state.read_only, &read_only);
        }
        if state.serial != new.serial {
            return differs("serial", &state.serial, &new.serial);
        }
        // The guest aligns to what it was told, so this host must not need more.
        let fits = state.block_size.is_power_of_two()
            && (new.logical_size..=4096).contains(&state.block_size);
        if !fits {
            return differs("block size", &state.block_size, &new.logical_size);
        }
        new.logical_size = state.block_size;
        new.disk.writeback.store(state.writeback, Ordering::Relaxed);
        Ok(new)
    }

    /// Counts the requests that the disk failed; it goes on counting after the device was handed
    /// to its transport.
    pub fn errors(&self) -> Arc<AtomicU64> {
        self.disk.errors.clone()
    }

    fn sectors(&self) -> u64 {
        self.disk.limits.size / SECTOR
    }

    /// `struct virtio_blk_config` (5.2.4). Fields of features that are not offered are zero.
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            config[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.sectors().to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &self.logical_size.to_le_bytes());
        put(WRITEBACK_OFFSET, &[self.disk.writeback.load(Ordering::Relaxed).into()]);
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(MAX_QUEUES);
        put(34, &queues.to_le_bytes());
        if self.disk.limits.discard {
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &MAX_RANGES.to_le_bytes());
            let sectors = u32::try_from(u64::from(self.logical_size) / SECTOR).unwrap_or(1);
            put(44, &sectors.to_le_bytes());
            put(48, &MAX_ZERO_SECTORS.to_le_bytes());
            put(52, &MAX_RANGES.to_le_bytes());
            put(56, &[1]);
        }
        config
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_CONFIG_WCE,
        ];
        if self.disk.limits.read_only {
            bits.push(blk::VIRTIO_BLK_F_RO);
        }
        if self.queue_sizes.len() > 1 {
            bits.push(blk::VIRTIO_BLK_F_MQ);
        }
        if self.disk.limits.discard {
            bits.extend([blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.into_iter().fold(0, |all, bit| all | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let config = self.config();
        let rest = usize::try_from(offset).ok().and_then(|at| config.get(at..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        if usize::try_from(offset) == Ok(WRITEBACK_OFFSET)
            && let [mode @ (0 | 1)] = data
        {
            self.disk.writeback.store(*mode == 1, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation { ram, queues, interrupt, features } = activation;
        if queues.first().is_none_or(|q| q.index != 0) {
            return Err(DeviceError::MissingQueue(0));
        }
        let durable = features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0;
        let kicks = queues.iter().map(|q| q.kick.clone()).collect();
        let worker = BlockWorker::start(ram, self.disk.clone(), interrupt, durable, queues)
            .map_err(|source| DeviceError::Host { what: "cannot start disk threads", source })?;
        self.thread = Some(DeviceThread::start("disk", worker, kicks)?);
        Ok(())
    }

    fn reset(&mut self) {
        // Dropping the thread completes what is in flight.
        self.thread = None;
        self.disk.writeback.store(true, Ordering::Relaxed);
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
        self.thread.as_ref().map_or_else(Vec::new, |t| t.worker().queues())
    }

    fn save(&self) -> VirtioDeviceState {
        VirtioDeviceState::Block(BlockState {
            sectors: self.sectors(),
            read_only: self.disk.limits.read_only,
            block_size: self.logical_size,
            serial: self.serial.clone(),
            writeback: self.disk.writeback.load(Ordering::Relaxed),
        })
    }
}
