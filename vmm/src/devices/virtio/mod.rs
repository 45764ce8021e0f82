//! Virtio devices: the contract between the MMIO transport and a device.
//!
//! A device has two halves. The front half (configuration space, features) is called by the
//! transport under its lock, from vCPU threads. The back half is a [`thread::Worker`] that owns
//! the queues while the driver has the device on, and runs in a thread of its own, so that no
//! vCPU ever waits for a disk, a socket or a tap.
//!
//! Life: made (`new` or `restore`) → `activate` (parked) → `resume` ⇄ `drain` → `reset`.
//! After `drain` and until `resume` a device touches neither guest memory nor its interrupt.
//!
//! The transport offers indirect descriptors and `VIRTIO_F_RING_EVENT_IDX` for every device.
//! `virtio-queue` does the work, if the worker holds to this: whenever it found a queue empty it
//! calls `enable_notification` and looks again if that returns `true`, or the driver, which
//! notifies only beyond the entry named there, falls silent for ever; and it interrupts if
//! `needs_notification` says so after a batch of `add_used`.

pub mod block;
pub mod interrupt;
pub mod mmio;
pub mod net;
mod ring;
pub mod rng;
#[cfg(test)]
pub mod testkit;
pub mod thread;
pub mod vconsole;
pub mod vsock;

pub use interrupt::Interrupt;

use virtio_queue::{Queue, QueueState};

use crate::eventfd::EventFd;
use crate::memory::GuestRam;
use crate::state::v1::VirtioDeviceState;

/// One queue that the driver made ready.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Its number, as the driver knows it.
    pub index: u16,
    /// Validated against guest memory by the transport.
    pub queue: Queue,
    /// Signalled when the driver notifies the queue.
    pub kick: EventFd,
}

/// What a device gets when the driver turns it on.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub ram: GuestRam,
    /// The queues that the driver made ready, by rising number. Some may be missing.
    pub queues: Vec<ActiveQueue>,
    /// How to interrupt the guest.
    pub interrupt: Interrupt,
    /// The features that driver and device agreed on.
    pub features: u64,
}

/// Why a device could not be turned on, drained or brought back.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver left out a queue that the device cannot do without.
    #[error("queue {0} is needed but the driver did not make it ready")]
    MissingQueue(u16),
    /// A device cannot be made as described.
    #[error("{device} cannot be made: {reason}")]
    Spec {
        /// The kind of device.
        device: &'static str,
        /// Field, value, and what would be right.
        reason: String,
    },
    /// A saved state does not fit the device.
    #[error("saved state of {device} does not fit: {reason}")]
    State {
        /// The kind of device.
        device: &'static str,
        /// Field and values.
        reason: String,
    },
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
    /// The device's thread ended unexpectedly.
    #[error("the device's thread is gone")]
    ThreadGone,
}

/// A virtio device behind the transport. No method has a default: a device that forgets one
/// must not compile.
pub trait VirtioDevice: Send {
    /// Virtio device id (`virtio_bindings::virtio_ids`).
    fn device_type(&self) -> u32;
    /// Offered features, without those that the transport adds ([`mmio::TRANSPORT_FEATURES`]).
    fn features(&self) -> u64;
    /// Largest size of each queue.
    fn queue_sizes(&self) -> &[u16];
    /// Reads the configuration space; bytes beyond its end read as zero.
    fn read_config(&self, offset: u32, data: &mut [u8]);
    /// Writes the configuration space; read-only fields ignore it.
    fn write_config(&mut self, offset: u32, data: &[u8]);
    /// The driver is ready. The device is parked afterwards, until `resume`.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// The driver gave the device up: what is in flight is completed or dropped, and queues and
    /// guest memory are not touched again. The device can be activated anew.
    fn reset(&mut self);
    /// Completes what is in flight and parks. The guest is not served if the device is not active.
    fn drain(&mut self) -> Result<(), DeviceError>;
    /// Goes on after `activate` or `drain`, looking at every queue once, since a notification
    /// may have been lost with a save. Without a driver it must do nothing with the guest.
    fn resume(&mut self);
    /// The active queues with their numbers; empty if not active. Only while parked.
    fn queues(&self) -> Vec<(u16, QueueState)>;
    /// The device's own state. Only while parked.
    fn save(&self) -> VirtioDeviceState;
}
