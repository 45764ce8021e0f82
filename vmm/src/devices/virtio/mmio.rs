//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2): the registers through which a driver
//! finds a device, agrees on features, lays out queues and turns it on.
//!
//! It keeps the order that the specification asks of a driver: features are taken only before
//! `FEATURES_OK`, queues only between `FEATURES_OK` and `DRIVER_OK`. Whatever comes out of turn,
//! with a wrong width or at a place where no register is, is ignored, and reads as zero. A queue
//! cannot be taken back by `QueueReady = 0` while the device is on: only by a reset.
//!
//! It runs under its lock on vCPU threads and never waits for I/O, but for one case: a reset (by
//! the driver) waits until the device has let go of guest memory.

mod queues;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::queues::{Half, QueueSetup};
use super::interrupt::{CONFIG_CHANGE, USED_RING};
use super::{Activation, ActiveQueue, DeviceError, Interrupt, VirtioDevice};
use crate::devices::bus::BusDevice;
use crate::eventfd::EventFd;
use crate::memory::GuestRam;
use crate::state::v1::MmioState;

/// Features that the transport offers for every device: `VIRTIO_F_VERSION_1`, without which no
/// driver is accepted, indirect descriptors, and `VIRTIO_F_RING_EVENT_IDX`.
pub const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Offset of `QueueNotify`, where the number of a queue is written: the place for an ioeventfd.
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Ours; drivers do not care.
const VENDOR: u32 = 0x4D49_4752;
/// The steps by which a driver turns a device on, in order.
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// One device and its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    ram: GuestRam,
    interrupt: Interrupt,
    interrupt_status: Arc<AtomicU32>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    kicks: Vec<EventFd>,
    /// The device is on, and must be reset before it is turned on again.
    active: bool,
    /// Between `drain` and `resume`: a device turned on now stays parked.
    parked: bool,
}

impl MmioTransport {
    /// A device as it is after reset. `irqfd` is its interrupt line, edge triggered.
    pub fn new(device: Box<dyn VirtioDevice>, ram: GuestRam, irqfd: EventFd) -> io::Result<Self> {
        let interrupt_status = Arc::new(AtomicU32::new(0));
        let sizes = device.queue_sizes();
        Ok(Self {
            queues: sizes.iter().map(|max| QueueSetup::new(*max)).collect(),
            kicks: sizes.iter().map(|_| EventFd::new()).collect::<io::Result<_>>()?,
            device,
            ram,
            interrupt: Interrupt::new(interrupt_status.clone(), irqfd),
            interrupt_status,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            active: false,
            parked: false,
        })
    }

    /// A device as it was saved, parked until [`MmioTransport::resume`]. `device` was made from
    /// `state.device`; guest memory must hold its saved content before `resume`, not before.
    pub fn restore(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        irqfd: EventFd,
        state: &MmioState,
    ) -> Result<Self, DeviceError> {
        let refuse = |reason: String| DeviceError::State { device: "virtio-mmio", reason };
        let host = |source| DeviceError::Host { what: "cannot create event descriptors", source };
        let mut new = Self::new(device, ram, irqfd.clone()).map_err(host)?;
        new.check(state).map_err(refuse)?;
        new.interrupt_status.store(state.interrupt_status, Ordering::SeqCst);
        new.interrupt = Interrupt::with_generation(
            new.interrupt_status.clone(),
            state.config_generation,
            irqfd,
        );
        new.status = state.status;
        new.device_features_sel = state.device_features_sel;
        new.driver_features_sel = state.driver_features_sel;
        new.driver_features = state.driver_features;
        new.queue_sel = state.queue_sel;
        for (n, (setup, saved)) in new.queues.iter_mut().zip(&state.queues).enumerate() {
            *setup = QueueSetup::restore(setup.max, saved)
                .map_err(|e| refuse(format!("queue {n}: {e}")))?;
        }
        new.parked = true;
        if new.status & DRIVER_OK != 0 && new.status & NEEDS_RESET == 0 {
            let indices: Vec<_> =
                state.queues.iter().map(|q| (q.next_avail, q.next_used)).collect();
            new.activate(&indices)?;
        }
        Ok(new)
    }

    /// The notifications by queue number: to be bound to [`QUEUE_NOTIFY`] with the number, 32
    /// bits wide, as the value to match. Without that, writes there come here and do the same.
    pub fn notify_fds(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Virtio device id of the device behind.
    pub fn device_type(&self) -> u32 {
        self.device.device_type()
    }

    /// Completes what is in flight and parks the device. No vCPU may run.
    pub fn drain(&mut self) -> Result<(), DeviceError> {
        self.parked = true;
        self.device.drain()
    }

    /// Lets the device go on, and repeats an interrupt that the driver has not acknowledged.
    pub fn resume(&mut self) {
        self.parked = false;
        self.device.resume();
        self.interrupt.repeat();
    }

    /// The saved state. Only after `drain` and before `resume`.
    pub fn save(&self) -> MmioState {
        debug_assert!(self.parked, "a device must be drained before it is saved");
        let live = if self.active { self.device.queues() } else { Vec::new() };
        let queue = |(n, setup): (usize, &QueueSetup)| {
            setup.save(live.iter().find(|(i, _)| usize::from(*i) == n).map(|(_, q)| q))
        };
        MmioState {
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            queue_sel: self.queue_sel,
            interrupt_status: self.interrupt_status.load(Ordering::SeqCst),
            config_generation: self.interrupt.generation(),
            queues: self.queues.iter().enumerate().map(queue).collect(),
            device: self.device.save(),
        }
    }

    /// Back to the state after `new`, as when the machine is reset.
    pub fn reset(&mut self) {
        self.device.reset();
        self.active = false;
        self.status = 0;
        self.interrupt_status.store(0, Ordering::SeqCst);
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        for (setup, kick) in self.queues.iter_mut().zip(&self.kicks) {
            *setup = QueueSetup::new(setup.max);
            kick.clear();
        }
    }

    /// Judges a saved state before anything is made of it.
    fn check(&self, state: &MmioState) -> Result<(), String> {
        let MmioState { status, driver_features, interrupt_status, queues, .. } = state;
        let steps = status & !(FAILED | NEEDS_RESET);
        // The steps are taken in order, so only these five prefixes exist.
        let prefixes = STEPS.iter().scan(0, |sum, step| {
            *sum |= step;
            Some(*sum)
        });
        if steps != 0 && !prefixes.into_iter().any(|p| p == steps) {
            return Err(format!("status {status:#x} is none that a driver can reach"));
        }
        if status & FEATURES_OK != 0 && !self.acceptable(*driver_features) {
            let offered = self.offered();
            return Err(format!(
                "the driver uses features {driver_features:#x}, this device offers {offered:#x}"
            ));
        }
        if interrupt_status & !(USED_RING | CONFIG_CHANGE) != 0 {
            return Err(format!("interrupt status {interrupt_status:#x} has unknown bits"));
        }
        if queues.len() != self.queues.len() {
            return Err(format!("{} queues saved, {} here", queues.len(), self.queues.len()));
        }
        let event_idx = driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let on = status & DRIVER_OK != 0 && status & NEEDS_RESET == 0;
        for (n, q) in queues.iter().enumerate() {
            let live = on && q.ready;
            if q.event_idx != (live && event_idx) {
                return Err(format!("queue {n}: event_idx {} does not fit", q.event_idx));
            }
            if !live && (q.next_avail, q.next_used) != (0, 0) {
                return Err(format!("queue {n} is off but has indices"));
            }
        }
        Ok(())
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn acceptable(&self, features: u64) -> bool {
        features & !self.offered() == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// Turns the device on with the queues' indices (missing ones are zero).
    fn activate(&mut self, indices: &[(u16, u16)]) -> Result<(), DeviceError> {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut queues = Vec::new();
        for (n, (setup, kick)) in self.queues.iter().zip(&self.kicks).enumerate() {
            let Ok(index) = u16::try_from(n) else { break };
            if !setup.ready {
                continue;
            }
            let (avail, used) = indices.get(n).copied().unwrap_or_default();
            let queue = setup.build(self.ram.mem(), event_idx, avail, used).map_err(|e| {
                DeviceError::State { device: "virtio-mmio", reason: format!("queue {n}: {e}") }
            })?;
            queues.push(ActiveQueue { index, queue, kick: kick.clone() });
        }
        self.device.activate(Activation {
            ram: self.ram.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        })?;
        self.active = true;
        Ok(())
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // A driver never takes a bit back (2.1.1), and a device that gave up waits for a reset.
        let kept = self.status & !NEEDS_RESET;
        if value & kept != kept {
            return;
        }
        if self.status & (FAILED | NEEDS_RESET) == 0 {
            for step in STEPS {
                if self.status & step != 0 {
                    continue;
                }
                if value & step == 0 || !self.step(step) {
                    break;
                }
            }
        }
        self.status |= value & FAILED;
    }

    /// Takes the next step of the driver; `false` if it is refused.
    fn step(&mut self, step: u32) -> bool {
        if step == FEATURES_OK && !self.acceptable(self.driver_features) {
            return false;
        }
        self.status |= step;
        if step == DRIVER_OK {
            match self.activate(&[]) {
                Ok(()) if self.parked => {}
                Ok(()) => self.device.resume(),
                Err(error) => {
                    let device = self.device.device_type();
                    tracing::warn!(device, %error, "a virtio device cannot be turned on");
                    self.status |= NEEDS_RESET;
                    self.interrupt.config_change();
                }
            }
        }
        true
    }

    fn selected(&self) -> Option<&QueueSetup> {
        usize::try_from(self.queue_sel).ok().and_then(|n| self.queues.get(n))
    }

    /// The selected queue, if the driver may change it now.
    fn changeable(&mut self) -> Option<&mut QueueSetup> {
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED | NEEDS_RESET) != FEATURES_OK {
            return None;
        }
        usize::try_from(self.queue_sel).ok().and_then(|n| self.queues.get_mut(n))
    }

    fn set_address(&mut self, half: Half, value: u32, field: fn(&mut QueueSetup) -> &mut u64) {
        // An address is laid down before the queue is made ready (4.2.3.2).
        if let Some(setup) = self.changeable()
            && !setup.ready
        {
            half.set(field(setup), value);
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_sel {
                0 => (self.offered() & 0xFFFF_FFFF) as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |q| q.max.into()),
            reg::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |q| q.ready.into()),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status.load(Ordering::SeqCst),
            reg::VIRTIO_MMIO_STATUS => self.status,
            // There is no shared memory region, which an all-ones length says (4.2.2).
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NUM => {
                if let Some(setup) = self.changeable()
                    && !setup.ready
                {
                    setup.set_size(value);
                }
            }
            reg::VIRTIO_MMIO_QUEUE_READY => {
                if let Some(setup) = self.changeable() {
                    setup.ready = value & 1 != 0;
                }
            }
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                let kick = usize::try_from(value).ok().and_then(|n| self.kicks.get(n));
                if let Some(kick) = kick
                    && self.active
                {
                    kick.signal();
                }
            }
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => self.set_address(Half::Low, value, |q| &mut q.desc),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                self.set_address(Half::High, value, |q| &mut q.desc);
            }
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                self.set_address(Half::Low, value, |q| &mut q.avail);
            }
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                self.set_address(Half::High, value, |q| &mut q.avail);
            }
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => self.set_address(Half::Low, value, |q| &mut q.used),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => {
                self.set_address(Half::High, value, |q| &mut q.used);
            }
            _ => {}
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return;
        }
        match self.driver_features_sel {
            0 => Half::Low.set(&mut self.driver_features, value),
            1 => Half::High.set(&mut self.driver_features, value),
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = u32::try_from(offset) else { return };
        if let Some(config) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG) {
            self.device.read_config(config, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = u32::try_from(offset) else { return };
        if let Some(config) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG) {
            if self.status & (DRIVER | FAILED | NEEDS_RESET) == DRIVER {
                self.device.write_config(config, data);
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}
