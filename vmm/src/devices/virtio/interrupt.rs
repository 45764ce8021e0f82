//! How a virtio device interrupts its guest: the status register of the transport and an irqfd.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::eventfd::EventFd;

/// Used buffers were returned.
pub const USED_RING: u32 = 1;
/// The configuration changed.
pub const CONFIG_CHANGE: u32 = 2;

/// Interrupt line of one device. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    generation: Arc<AtomicU32>,
    irqfd: EventFd,
}

impl Interrupt {
    /// A line that sets bits in `status` and signals `irqfd`. The generation of the
    /// configuration starts at zero.
    pub fn new(status: Arc<AtomicU32>, irqfd: EventFd) -> Self {
        Self::with_generation(status, 0, irqfd)
    }

    /// As `new`, with the generation of the configuration that the driver saw last.
    pub fn with_generation(status: Arc<AtomicU32>, generation: u32, irqfd: EventFd) -> Self {
        Self { status, generation: Arc::new(AtomicU32::new(generation)), irqfd }
    }

    /// Used buffers were returned to the driver.
    pub fn used_ring(&self) {
        self.raise(USED_RING);
    }

    /// The configuration space changed. Call it after the change: the new generation makes a
    /// driver that read half of it read again.
    pub fn config_change(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    /// Generation of the configuration space (`ConfigGeneration`).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Signals again whatever the guest has not acknowledged: an edge may have been lost between
    /// the reading of the interrupt controllers and the save. A spurious one does no harm.
    pub fn repeat(&self) {
        if self.status.load(Ordering::SeqCst) != 0 {
            self.irqfd.signal();
        }
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.irqfd.signal();
    }
}
