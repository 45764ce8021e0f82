//! What a driver says about one queue before it turns the device on. Plain values: anything may
//! stand here, and it is judged only when a queue is built from it.

use virtio_queue::{Queue, QueueState};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::memory::Mem;
use crate::state::v1::QueueStateV1;

/// Bytes of a descriptor, of an entry of the available and of the used ring, and of what
/// surrounds the entries of a ring (virtio 1.2, 2.7).
const DESC: usize = 16;
const AVAIL_ENTRY: usize = 2;
const USED_ENTRY: usize = 8;
const RING_FRAME: usize = 6;

/// Half of a 64-bit register pair.
#[derive(Clone, Copy, Debug)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

impl Half {
    /// Replaces this half of `register`.
    pub fn set(self, register: &mut u64, value: u32) {
        let (keep, shift) = match self {
            Self::Low => (0xFFFF_FFFF_0000_0000, 0),
            Self::High => (0x0000_0000_FFFF_FFFF, 32),
        };
        *register = *register & keep | u64::from(value) << shift;
    }
}

/// Registers of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// `QueueNumMax`.
    pub max: u16,
    /// `QueueNum`: a power of two, at most `max`.
    pub size: u16,
    /// `QueueReady`.
    pub ready: bool,
    /// `QueueDesc`.
    pub desc: u64,
    /// `QueueDriver`, the available ring.
    pub avail: u64,
    /// `QueueDevice`, the used ring.
    pub used: u64,
}

impl QueueSetup {
    /// A queue as it is after reset.
    pub fn new(max: u16) -> Self {
        Self { max, size: max, ready: false, desc: 0, avail: 0, used: 0 }
    }

    /// Takes a size; one that is no power of two or too large is ignored.
    pub fn set_size(&mut self, value: u32) {
        if let Ok(size) = u16::try_from(value)
            && size.is_power_of_two()
            && size <= self.max
        {
            self.size = size;
        }
    }

    /// The queue, with its indices, if rings and table are aligned and lie in RAM.
    pub fn build(
        &self,
        mem: &Mem,
        event_idx: bool,
        next_avail: u16,
        next_used: u16,
    ) -> Result<Queue, String> {
        let n = usize::from(self.size);
        let parts = [
            ("descriptor table", self.desc, n * DESC, Permissions::Read),
            ("available ring", self.avail, n * AVAIL_ENTRY + RING_FRAME, Permissions::Read),
            ("used ring", self.used, n * USED_ENTRY + RING_FRAME, Permissions::Write),
        ];
        for (what, at, len, access) in parts {
            if !mem.check_range(GuestAddress(at), len, access) {
                return Err(format!("{what} at {at:#x}, length {len:#x}, is not in guest memory"));
            }
        }
        Queue::try_from(QueueState {
            max_size: self.max,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
        })
        .map_err(|e| e.to_string())
    }

    /// For the saved state: the registers, and the indices of a device that is on.
    pub fn save(&self, live: Option<&QueueState>) -> QueueStateV1 {
        QueueStateV1 {
            size: self.size,
            ready: self.ready,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
            next_avail: live.map_or(0, |q| q.next_avail),
            next_used: live.map_or(0, |q| q.next_used),
            event_idx: live.is_some_and(|q| q.event_idx_enabled),
        }
    }

    /// From a saved state, for a queue of at most `max` entries.
    pub fn restore(max: u16, saved: &QueueStateV1) -> Result<Self, String> {
        if !saved.size.is_power_of_two() || saved.size > max {
            return Err(format!("size {} is no power of two up to {max}", saved.size));
        }
        Ok(Self {
            max,
            size: saved.size,
            ready: saved.ready,
            desc: saved.desc_table,
            avail: saved.avail_ring,
            used: saved.used_ring,
        })
    }
}
