//! Machines of `vmm` behind the traits that the guest process works with.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use vmm::config::{MachineConfig, MemoryConfig};
use vmm::devices::console::{Console, ConsoleConfig};
use vmm::devices::tap::Tap;
use vmm::devices::virtio::block::{BlockSpec, WriteObserver};
use vmm::devices::virtio::net::NetSpec;
use vmm::devices::virtio::vsock::VsockSpec;
use vmm::machine::{Builder, ClockMode, Parts, Paused, Running, VirtioSpec};
use vmm::memory::GuestRam;
use vmm::state::v1::{MachineState, VirtioDeviceState};

use super::failure;
use super::open::Opened;
use super::receiver::VmmReceiver;
use super::units::{Log, Ram};
use crate::api::Failure;
use crate::config::Cache;
use crate::guest::machine::{
    Controls, Fill, MakeMachine, PausedMachine, RamFile, Restore, RunningMachine,
};

/// Makes the machines of one guest.
pub struct VmmMachines {
    parts: Opened,
    console: Console,
    hvc: Option<Console>,
}

impl VmmMachines {
    pub fn new(parts: Opened, console: Console, hvc: Option<Console>) -> Self {
        Self { parts, console, hvc }
    }

    /// What a new machine is made of. Every handle is a copy, so that a reset can do it again.
    fn machine_parts(&self) -> Result<Parts, Failure> {
        let Opened { config, events, .. } = &self.parts;
        Ok(Parts {
            config: config.clone(),
            events: events.clone(),
            serial: self.console.clone(),
            virtio: self.virtio().map_err(|e| failure::unexpected("a device", &e))?,
        })
    }

    /// Devices in slot order: disks, nets, console, random, socket. The order is part of a saved
    /// state.
    fn virtio(&self) -> io::Result<Vec<VirtioSpec>> {
        let parts = &self.parts;
        let mut specs = Vec::new();
        for (index, disk) in parts.disks.iter().enumerate() {
            let track = parts.tracks.get(index).cloned().flatten();
            specs.push(VirtioSpec::Block(BlockSpec {
                file: disk.file.try_clone()?,
                read_only: disk.definition.read_only,
                direct: disk.definition.cache == Cache::None,
                discard: true,
                serial: disk.definition.serial.clone(),
                queues: 1,
                observer: track.map(|t| -> Arc<dyn WriteObserver> { t }),
            }));
        }
        for (tap, net) in parts.taps.iter().zip(&parts.definition.nets) {
            let fd: OwnedFd = tap.as_fd().try_clone_to_owned()?;
            let tap = Tap::from_fd(fd).map_err(io::Error::other)?;
            specs.push(VirtioSpec::Net(NetSpec { tap, mac: net.mac, mtu: net.mtu }));
        }
        specs.extend(self.hvc.as_ref().map(|hvc| VirtioSpec::Console(hvc.port())));
        if let Some(random) = &parts.random {
            specs.push(VirtioSpec::Rng(random.try_clone()?));
        }
        if let Some(vsock) = &parts.vsock {
            specs.push(VirtioSpec::Vsock(VsockSpec {
                cid: vsock.cid.into(),
                listener: vsock.listener.try_clone()?,
                path: vsock.path.clone(),
            }));
        }
        Ok(specs)
    }

    /// Parts for a machine that is only tried: same devices, nobody to talk to.
    fn trial_parts(&self) -> Result<Parts, Failure> {
        let unexpected = |e: io::Error| failure::unexpected("a device", &e);
        let (events, _nobody) = vmm::events::channel_pair().map_err(unexpected)?;
        let serial = Console::new(ConsoleConfig::default()).map_err(unexpected)?;
        let mut virtio = self.virtio().map_err(unexpected)?;
        for spec in &mut virtio {
            if matches!(spec, VirtioSpec::Console(_)) {
                let console = Console::new(ConsoleConfig::default()).map_err(unexpected)?;
                *spec = VirtioSpec::Console(console.port());
            }
        }
        let parts = self.machine_parts()?;
        // Huge pages are reserved, and the guest's own are already. The trial touches next to
        // nothing of its memory.
        let memory = MemoryConfig::new(parts.config.memory.bytes(), false)
            .map_err(|e| failure::unexpected("the memory of the trial", &e))?;
        let config = MachineConfig { memory, ..parts.config };
        Ok(Parts { config, events, serial, virtio })
    }

    fn builder(&self) -> Result<Builder, Failure> {
        let parts = self.machine_parts()?;
        Builder::new(&self.parts.kvm, parts).map_err(|e| failure::machine(&e))
    }

    /// A clone's interfaces have their own addresses.
    fn readdress(&self, state: &mut MachineState) {
        let nets = state.virtio.iter_mut().filter_map(|v| match &mut v.device {
            VirtioDeviceState::Net(net) => Some(net),
            _ => None,
        });
        for (net, definition) in nets.zip(&self.parts.definition.nets) {
            net.mac = definition.mac;
        }
    }
}

impl MakeMachine for VmmMachines {
    type Paused = VmmPaused;
    type Receiver = VmmReceiver;

    fn receiver(&mut self) -> Result<VmmReceiver, Failure> {
        // Restored at most twice at a time: once for good, once on trial.
        VmmReceiver::new(&self.parts.kvm, self.machine_parts()?, self.trial_parts()?)
    }

    fn boot(&mut self) -> Result<VmmPaused, Failure> {
        let parts = self.machine_parts()?;
        let builder = Builder::new(&self.parts.kvm, parts).map_err(|e| failure::machine(&e))?;
        builder.boot(&mut self.parts.boot).map(VmmPaused).map_err(|e| failure::machine(&e))
    }

    fn restore(
        &mut self,
        state: &[u8],
        how: Restore,
        fill: &mut Fill<'_>,
    ) -> Result<(VmmPaused, Duration), Failure> {
        let mut state = vmm::state::decode(state).map_err(|e| failure::state(&e))?;
        if how.new_macs {
            self.readdress(&mut state);
        }
        let mode = if how.account_for_pause { ClockMode::Account } else { ClockMode::Freeze };
        let mut fill_error = None;
        let mut fill_ram = |ram: &GuestRam| {
            fill(&mut |offset, bytes| ram.write_at(offset, bytes)).map_err(|e| {
                let text = e.to_string();
                fill_error = Some(e);
                io::Error::other(text)
            })
        };
        let restored = self.builder()?.restore(&state, mode, &mut fill_ram);
        if let Some(error) = fill_error {
            return Err(error.failure());
        }
        let (paused, report) = restored.map_err(|e| failure::restore(&e))?;
        if report.implausible {
            tracing::warn!("the host's clock went back or jumped: guest time was not put forward");
        }
        if how.new_generation {
            paused
                .controls()
                .change_generation(uuid::Uuid::new_v4().into_bytes())
                .map_err(|e| failure::unexpected("the generation id cannot be changed", &e))?;
        }
        Ok((VmmPaused(paused), Duration::from_nanos(report.accounted_ns)))
    }
}

/// A machine that stands still.
#[derive(Debug)]
pub struct VmmPaused(pub(super) Paused);

/// A machine that runs.
#[derive(Debug)]
pub struct VmmRunning(Running);

impl PausedMachine for VmmPaused {
    type Running = VmmRunning;
    type Ram = Ram;
    type Log = Log;

    fn units(&self) -> io::Result<Ram> {
        Ram::new(self.0.ram().clone())
    }

    fn start_log(&self) -> Result<Log, Failure> {
        self.0.dirty_log().map(Log::from).map_err(|e| failure::dirty(&e))
    }

    fn stop_time(&self) -> Duration {
        let times = self.0.stop_times();
        times.vcpus + times.devices
    }

    fn resume(self) -> Result<VmmRunning, (Option<Self>, Failure)> {
        match self.0.resume() {
            Ok(running) => Ok(VmmRunning(running)),
            Err((paused, error)) => Err((Some(Self(*paused)), failure::machine(&error))),
        }
    }

    fn save_state(&mut self) -> Result<Vec<u8>, Failure> {
        let state = self.0.save().map_err(|e| failure::machine(&e))?;
        vmm::state::encode(&state).map_err(|e| failure::state(&e))
    }

    fn ram(&self) -> io::Result<RamFile> {
        ram_file(self.0.ram())
    }

    fn controls(&self) -> Box<dyn Controls> {
        Box::new(VmmControls(self.0.controls()))
    }
}

fn ram_file(ram: &GuestRam) -> io::Result<RamFile> {
    let file: File = ram.file().try_clone()?;
    Ok(RamFile { file, bytes: ram.bytes() })
}

impl RunningMachine for VmmRunning {
    type Paused = VmmPaused;

    fn start_log(&self) -> Result<Log, Failure> {
        self.0.dirty_log().map(Log::from).map_err(|e| failure::dirty(&e))
    }

    fn units(&self) -> io::Result<Ram> {
        Ram::new(self.0.ram().clone())
    }

    fn ram(&self) -> io::Result<RamFile> {
        ram_file(self.0.ram())
    }

    fn controls(&self) -> Box<dyn Controls> {
        Box::new(VmmControls(self.0.controls()))
    }

    fn pause(self) -> VmmPaused {
        VmmPaused(self.0.pause())
    }
}

/// Knobs and buttons.
#[derive(Debug)]
struct VmmControls(vmm::machine::Controls);

impl Controls for VmmControls {
    fn cpu(&self) -> vmm::cpu::Shown {
        self.0.cpu().clone()
    }

    fn cpu_share(&self) -> u8 {
        self.0.cpu_share()
    }

    fn set_cpu_share(&self, percent: u8) -> io::Result<()> {
        self.0.set_cpu_share(percent)
    }

    fn press_power_button(&self) {
        self.0.press_power_button();
    }

    fn announce(&self) -> io::Result<()> {
        self.0.announce()
    }
}
