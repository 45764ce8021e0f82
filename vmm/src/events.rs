//! What a guest does that its owner must hear of: reset, power-off, a crash.
//!
//! Devices and vCPUs report; nothing here decides what follows.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::eventfd::EventFd;

/// Something that ends or restarts the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest asked for a reset (keyboard controller, ACPI reset register).
    Reset,
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// A vCPU triple-faulted, which resets a real machine.
    TripleFault {
        /// Index of the vCPU.
        vcpu: u32,
    },
    /// A vCPU or a device cannot go on. The guest stands still.
    Crash {
        /// What happened, in a sentence.
        reason: String,
    },
}

/// The reporting end. Cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct EventSink {
    sender: Sender<GuestEvent>,
    wake: EventFd,
}

impl EventSink {
    /// Reports `event`. A receiver that is gone is ignored.
    pub fn send(&self, event: GuestEvent) {
        if self.sender.send(event).is_ok() {
            self.wake.signal();
        }
    }
}

/// The owner's end.
#[derive(Debug)]
pub struct EventSource {
    receiver: Receiver<GuestEvent>,
    wake: EventFd,
}

impl EventSource {
    /// The next event, if one is waiting.
    pub fn try_next(&self) -> Option<GuestEvent> {
        // Clear the wake-up first, so that an event that comes now wakes again.
        self.wake.clear();
        self.receiver.try_recv().ok()
    }

    /// Blocks until an event comes; `None` when every sink is gone.
    pub fn next(&self) -> Option<GuestEvent> {
        self.receiver.recv().ok()
    }
}

impl AsFd for EventSource {
    /// Readable when an event may be waiting.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// A connected pair.
pub fn channel_pair() -> std::io::Result<(EventSink, EventSource)> {
    let (sender, receiver) = channel();
    let wake = EventFd::new()?;
    Ok((EventSink { sender, wake: wake.clone() }, EventSource { receiver, wake }))
}
