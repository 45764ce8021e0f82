//! The devices of one machine: made fresh or from a saved state, wired to interrupts and buses,
//! drained, resumed and saved together.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::IoEventAddress;

use super::MachineError;
use crate::devices::acpi_pm::{AcpiPm, IrqLine};
use crate::devices::bus::{Bus, BusDevice};
use crate::devices::console::{Console, ConsolePort};
use crate::devices::i8042::I8042;
use crate::devices::serial::Serial;
use crate::devices::virtio::block::{Block, BlockSpec};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::virtio::net::{Announcer, NetDevice, NetSpec};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vconsole::ConsoleDevice;
use crate::devices::virtio::vsock::{VsockDevice, VsockSpec};
use crate::devices::virtio::{DeviceError, VirtioDevice};
use crate::devices::vmgenid::VmGenId;
use crate::eventfd::EventFd;
use crate::events::EventSink;
use crate::kvm::{KvmError, Vm};
use crate::memory::layout;
use crate::state::v1::{
    MachineState, MmioState, PmState, SerialState, VirtioDeviceState, VmGenIdState,
};
use crate::vcpu::Buses;

/// One virtio device, with what the host opened for it.
pub enum VirtioSpec {
    /// A disk.
    Block(BlockSpec),
    /// A network interface.
    Net(NetSpec),
    /// A console, `hvc0` in Linux.
    Console(ConsolePort),
    /// A source of random bytes, read from the file.
    Rng(File),
    /// A socket to the host.
    Vsock(VsockSpec),
}

impl VirtioSpec {
    fn name(&self) -> &'static str {
        match self {
            Self::Block(_) => "disk",
            Self::Net(_) => "network interface",
            Self::Console(_) => "virtio console",
            Self::Rng(_) => "entropy source",
            Self::Vsock(_) => "vsock",
        }
    }

    fn fresh(self, announcers: &mut Vec<Announcer>) -> Result<Box<dyn VirtioDevice>, DeviceError> {
        Ok(match self {
            Self::Block(spec) => Box::new(Block::new(spec).map_err(spec_error("disk"))?),
            Self::Net(spec) => net(NetDevice::new(spec)?, announcers),
            Self::Console(port) => Box::new(ConsoleDevice::new(port, None)),
            Self::Rng(file) => Box::new(Rng::new(file)),
            Self::Vsock(spec) => Box::new(VsockDevice::new(spec)?),
        })
    }

    fn restore(
        self,
        state: &VirtioDeviceState,
        announcers: &mut Vec<Announcer>,
    ) -> Result<Box<dyn VirtioDevice>, DeviceError> {
        use VirtioDeviceState as S;
        let name = self.name();
        Ok(match (self, state) {
            (Self::Block(spec), S::Block(s)) => {
                Box::new(Block::restore(spec, s).map_err(spec_error("disk"))?)
            }
            (Self::Net(spec), S::Net(s)) => net(NetDevice::restore(spec, s)?, announcers),
            (Self::Console(port), S::Console(s)) => Box::new(ConsoleDevice::restore(port, s)?),
            (Self::Rng(file), S::Rng(s)) => Box::new(Rng::restore(file, s)),
            (Self::Vsock(spec), S::Vsock(s)) => Box::new(VsockDevice::restore(spec, s)?),
            (_, other) => {
                let reason = format!("the saved guest has another device there: {}", kind(other));
                return Err(DeviceError::State { device: name, reason });
            }
        })
    }
}

/// What a saved device is, in the words of [`VirtioSpec::name`].
fn kind(state: &VirtioDeviceState) -> &'static str {
    match state {
        VirtioDeviceState::Block(_) => "disk",
        VirtioDeviceState::Net(_) => "network interface",
        VirtioDeviceState::Console(_) => "virtio console",
        VirtioDeviceState::Rng(_) => "entropy source",
        VirtioDeviceState::Vsock(_) => "vsock",
    }
}

fn net(device: NetDevice, announcers: &mut Vec<Announcer>) -> Box<dyn VirtioDevice> {
    announcers.push(device.announcer());
    Box::new(device)
}

fn spec_error<E: std::fmt::Display>(device: &'static str) -> impl FnOnce(E) -> DeviceError {
    move |e| DeviceError::Spec { device, reason: e.to_string() }
}

/// The ACPI system control interrupt, driven through KVM.
struct Sci(Vm);

impl IrqLine for Sci {
    fn set(&self, level: bool) {
        if let Err(error) = self.0.fd().set_irq_line(layout::SCI_GSI, level) {
            tracing::error!(%error, "cannot drive the ACPI interrupt");
        }
    }
}

/// Everything on the buses.
pub struct Devices {
    /// Kept because a console closes when its last holder goes.
    _console: Console,
    buses: Arc<Buses>,
    serial: Arc<Mutex<Serial>>,
    pm: Arc<Mutex<AcpiPm>>,
    vmgenid: Arc<Mutex<VmGenId>>,
    virtio: Vec<Arc<Mutex<MmioTransport>>>,
    announcers: Arc<[Announcer]>,
}

/// Base, length and device of a port range.
type Window = (u16, u16, Arc<Mutex<dyn BusDevice>>);

/// The devices that every machine has, not on the bus yet.
struct Legacy {
    console: Console,
    serial: Arc<Mutex<Serial>>,
    pm: AcpiPm,
    vmgenid: VmGenId,
}

/// The virtio devices, not on the bus yet.
#[derive(Default)]
struct Virtio {
    transports: Vec<MmioTransport>,
    announcers: Vec<Announcer>,
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn platform(what: &str) -> impl Fn(&dyn std::fmt::Display) -> MachineError {
    move |e| MachineError::Platform(format!("{what}: {e}"))
}

/// An interrupt line that an event descriptor raises.
fn irqfd(vm: &Vm, gsi: u32) -> Result<EventFd, MachineError> {
    let fd = EventFd::new().map_err(|e| platform("cannot create an event descriptor")(&e))?;
    vm.fd().register_irqfd(fd.sys(), gsi).map_err(KvmError::call("KVM_IRQFD"))?;
    Ok(fd)
}

impl Devices {
    /// The devices of a machine that boots.
    pub fn fresh(
        vm: &Vm,
        specs: Vec<VirtioSpec>,
        console: Console,
        events: &EventSink,
        generation_id: [u8; 16],
    ) -> Result<Self, MachineError> {
        let serial = Serial::new(console.port(), irqfd(vm, layout::SERIAL_GSI)?);
        let pm = AcpiPm::new(Box::new(Sci(vm.clone())), events.clone());
        let vmgenid = VmGenId::new(vm.ram().clone(), generation_id)
            .map_err(|e| platform("VM generation id")(&e))?;
        let mut virtio = Virtio::default();
        for (slot, spec) in specs.into_iter().enumerate() {
            let name = spec.name();
            let device = spec.fresh(&mut virtio.announcers).map_err(at_slot(name, slot))?;
            let line = irqfd(vm, layout::VIRTIO_GSIS[slot])?;
            let transport = MmioTransport::new(device, vm.ram().clone(), line)
                .map_err(|e| platform("cannot create event descriptors")(&e))?;
            virtio.transports.push(transport);
        }
        let legacy = Legacy { console, serial, pm, vmgenid };
        Self::wire(vm, legacy, virtio, events)
    }

    /// The devices of a saved machine, parked.
    pub fn restore(
        vm: &Vm,
        specs: Vec<VirtioSpec>,
        console: Console,
        events: &EventSink,
        state: &MachineState,
    ) -> Result<Self, MachineError> {
        let serial = Serial::restore(&state.serial, console.port(), irqfd(vm, layout::SERIAL_GSI)?)
            .map_err(|e| platform("serial port")(&e))?;
        let pm = AcpiPm::restore(&state.pm, Box::new(Sci(vm.clone())), events.clone())
            .map_err(|e| platform("ACPI hardware")(&e))?;
        let vmgenid = VmGenId::restore(&state.vmgenid, vm.ram().clone());
        let mut virtio = Virtio::default();
        for (slot, (spec, saved)) in specs.into_iter().zip(&state.virtio).enumerate() {
            let name = spec.name();
            let device =
                spec.restore(&saved.device, &mut virtio.announcers).map_err(at_slot(name, slot))?;
            let line = irqfd(vm, layout::VIRTIO_GSIS[slot])?;
            let transport = MmioTransport::restore(device, vm.ram().clone(), line, saved)
                .map_err(at_slot(name, slot))?;
            virtio.transports.push(transport);
        }
        let legacy = Legacy { console, serial, pm, vmgenid };
        Self::wire(vm, legacy, virtio, events)
    }

    /// Puts the devices on the buses and their notifications into KVM.
    fn wire(
        vm: &Vm,
        legacy: Legacy,
        devices: Virtio,
        events: &EventSink,
    ) -> Result<Self, MachineError> {
        let Legacy { console, serial, pm, vmgenid } = legacy;
        let overlap = platform("the bus");
        let mut pio = Bus::default();
        let mut mmio = Bus::default();
        let pm = Arc::new(Mutex::new(pm));
        let i8042 = Arc::new(Mutex::new(I8042::new(events.clone())));
        let ports: [Window; 3] = [
            (layout::SERIAL_PORT, layout::SERIAL_PORTS, serial.clone()),
            (layout::ACPI_PM_PORT, layout::ACPI_PM_PORTS, pm.clone()),
            (layout::I8042_PORT, layout::I8042_PORTS, i8042),
        ];
        for (base, len, device) in ports {
            pio.insert(base.into(), len.into(), device).map_err(|e| overlap(&e))?;
        }
        let mut virtio = Vec::new();
        for (slot, transport) in devices.transports.into_iter().enumerate() {
            let base = layout::virtio_mmio_base(slot);
            notify_through_kvm(vm, base, &transport)?;
            let transport = Arc::new(Mutex::new(transport));
            mmio.insert(base, layout::VIRTIO_MMIO_SIZE, transport.clone())
                .map_err(|e| overlap(&e))?;
            virtio.push(transport);
        }
        let buses = Arc::new(Buses { pio, mmio });
        let vmgenid = Arc::new(Mutex::new(vmgenid));
        let announcers = devices.announcers.into();
        Ok(Self { _console: console, buses, serial, pm, vmgenid, virtio, announcers })
    }

    pub fn buses(&self) -> Arc<Buses> {
        self.buses.clone()
    }

    pub fn pm(&self) -> Arc<Mutex<AcpiPm>> {
        self.pm.clone()
    }

    pub fn vmgenid(&self) -> Arc<Mutex<VmGenId>> {
        self.vmgenid.clone()
    }

    pub fn announcers(&self) -> Arc<[Announcer]> {
        self.announcers.clone()
    }

    /// Completes what is in flight and parks every device. Returns what failed.
    pub fn drain(&self) -> Vec<String> {
        lock(&self.serial).drain();
        let mut faults = Vec::new();
        for (slot, transport) in self.virtio.iter().enumerate() {
            if let Err(error) = lock(transport).drain() {
                faults.push(format!("virtio device {slot}: {error}"));
            }
        }
        faults
    }

    /// Lets every device go on.
    pub fn resume(&self) {
        lock(&self.serial).resume();
        lock(&self.pm).drive();
        for transport in &self.virtio {
            lock(transport).resume();
        }
    }

    pub fn save_serial(&self) -> SerialState {
        lock(&self.serial).save()
    }

    pub fn save_pm(&self) -> PmState {
        lock(&self.pm).save()
    }

    pub fn save_vmgenid(&self) -> VmGenIdState {
        lock(&self.vmgenid).save()
    }

    pub fn save_virtio(&self) -> Vec<MmioState> {
        self.virtio.iter().map(|t| lock(t).save()).collect()
    }
}

fn at_slot(name: &'static str, slot: usize) -> impl FnOnce(DeviceError) -> MachineError {
    move |source| MachineError::Device { device: format!("{name} in slot {slot}"), source }
}

/// A driver's notification reaches the device's thread without leaving the kernel.
fn notify_through_kvm(vm: &Vm, base: u64, transport: &MmioTransport) -> Result<(), MachineError> {
    for (queue, fd) in (0u32..).zip(transport.notify_fds()) {
        vm.fd()
            .register_ioevent(fd.sys(), &IoEventAddress::Mmio(base + QUEUE_NOTIFY), queue)
            .map_err(KvmError::call("KVM_IOEVENTFD"))?;
    }
    Ok(())
}
