//! A machine and the handles that say what it is doing.
//!
//! [`Builder`] → [`Paused`] ⇄ [`Running`]. Handles move by value and are not `Clone`: whoever
//! holds neither cannot run anything. Only `Paused` can be saved; only `Running` has vCPUs in
//! `KVM_RUN`. A restore is a constructor: it yields a complete machine or an error that leaves
//! nothing behind. Nothing here knows names, files or hosts.

mod announce;
mod assemble;
pub mod clock;
mod controls;
mod devices;
mod throttle;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

pub use assemble::{Builder, Parts};
pub use clock::{ClockMode, ClockReport};
pub use controls::Controls;
pub use devices::VirtioSpec;

use devices::Devices;
use throttle::Throttle;

use crate::boot::BootError;
use crate::config::MachineConfig;
use crate::cpu::Shown;
use crate::cpu::compat::Lack;
use crate::devices::virtio::DeviceError;
use crate::kvm::{KvmError, Vm};
use crate::memory::GuestRam;
use crate::memory::dirty::{DirtyError, DirtyLog};
use crate::memory::ram::RamError;
use crate::memory::ring::RingSet;
use crate::state::StateError;
use crate::state::v1::{MachineState, Shape};
use crate::vcpu::{VcpuError, VcpuThread};

/// Why a machine could not be made, saved, restored or resumed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Kernel, initrd, command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A vCPU.
    #[error("vCPU {index}: {source}")]
    Vcpu {
        /// Its number.
        index: u32,
        /// What went wrong.
        source: VcpuError,
    },
    /// A device.
    #[error("{device}: {source}")]
    Device {
        /// Which one.
        device: String,
        /// What went wrong.
        source: DeviceError,
    },
    /// A legacy device or the bus.
    #[error("{0}")]
    Platform(String),
    /// The bytes of a saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A saved state is of another machine.
    #[error("the saved state is of a machine with {field} {saved}, this one has {here}")]
    Shape {
        /// What differs.
        field: &'static str,
        /// In the state.
        saved: String,
        /// Here.
        here: String,
    },
    /// This host cannot show the guest the CPU that it knows.
    #[error("{0}")]
    Cpu(Lack),
    /// The CPU template is unknown.
    #[error("there is no CPU template called '{0}': choose one of host, x86-64-v3, x86-64-v2")]
    Template(String),
    /// More vCPUs than this host's KVM has.
    #[error("{wanted} vCPUs are more than this host's KVM has ({limit})")]
    TooManyVcpus {
        /// Asked for.
        wanted: u32,
        /// Possible.
        limit: u32,
    },
    /// Guest memory could not be filled.
    #[error("cannot fill the guest's memory: {0}")]
    Fill(std::io::Error),
    /// The dirty log.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// A part of the machine failed while it was being stopped, so its state cannot be trusted.
    #[error("the machine is broken and cannot be saved: {0}")]
    Broken(String),
}

/// All of a machine. Fields drop in order: vCPUs end before the devices they talk to.
struct Machine {
    throttle: Arc<Throttle>,
    vcpus: Vec<VcpuThread>,
    devices: Devices,
    vm: Vm,
    rings: Option<Arc<RingSet>>,
    log_in_use: Arc<AtomicBool>,
    config: MachineConfig,
    cpu: Arc<Shown>,
    boot_id: [u8; 16],
    /// What failed while it was being stopped.
    faults: Vec<String>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How long the parts of a stop took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopTimes {
    /// Until no vCPU was in `KVM_RUN`.
    pub vcpus: Duration,
    /// From there until every device had drained.
    pub devices: Duration,
}

/// A machine whose vCPUs run.
#[derive(Debug)]
pub struct Running(Box<Machine>);

/// A machine that stands still: no vCPU in `KVM_RUN`, no device at work.
#[derive(Debug)]
pub struct Paused {
    machine: Box<Machine>,
    stop: StopTimes,
}

impl Running {
    /// Stops the vCPUs, then drains the devices. What fails on the way makes the machine refuse
    /// to be saved; it stands still all the same.
    pub fn pause(self) -> Paused {
        let mut machine = self.0;
        let start = Instant::now();
        machine.stop_vcpus();
        let vcpus = start.elapsed();
        let faults = machine.devices.drain();
        machine.faults.extend(faults);
        Paused {
            machine,
            stop: StopTimes { vcpus, devices: start.elapsed().saturating_sub(vcpus) },
        }
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        self.0.vm.ram()
    }

    /// Switches the dirty log on; at most one exists at a time.
    pub fn dirty_log(&self) -> Result<DirtyLog, DirtyError> {
        self.0.dirty_log()
    }

    /// What can be done to the machine in any state.
    pub fn controls(&self) -> Controls {
        self.0.controls()
    }
}

impl Paused {
    /// Lets devices and vCPUs go on.
    pub fn resume(self) -> Result<Running, (Box<Self>, MachineError)> {
        self.machine.devices.resume();
        for (index, vcpu) in (0u32..).zip(&self.machine.vcpus) {
            if let Err(source) = vcpu.run() {
                // Only a thread that is gone fails here: the others must not run on without it.
                let mut machine = self.machine;
                machine.stop_some(index as usize);
                let faults = machine.devices.drain();
                machine.faults.extend(faults);
                let error = MachineError::Vcpu { index, source };
                return Err((Box::new(Self { machine, stop: self.stop }), error));
            }
        }
        Ok(Running(self.machine))
    }

    /// Collects the machine's state, all but its memory. Harvest the dirty log *after* this:
    /// reading the state can make KVM write guest memory.
    pub fn save(&mut self) -> Result<MachineState, MachineError> {
        self.machine.save()
    }

    /// How long the stop took.
    pub fn stop_times(&self) -> StopTimes {
        self.stop
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        self.machine.vm.ram()
    }

    /// Switches the dirty log on; at most one exists at a time.
    pub fn dirty_log(&self) -> Result<DirtyLog, DirtyError> {
        self.machine.dirty_log()
    }

    /// What can be done to the machine in any state.
    pub fn controls(&self) -> Controls {
        self.machine.controls()
    }

    /// Ends the machine; its memory is freed when no one else holds it.
    pub fn retire(self) {}
}

impl Machine {
    fn stop_vcpus(&mut self) {
        self.stop_some(self.vcpus.len());
    }

    /// Stops the first `count` vCPUs: asks all, then waits for all.
    fn stop_some(&mut self, count: usize) {
        for vcpu in self.vcpus.iter().take(count) {
            vcpu.request_stop();
        }
        for (index, vcpu) in self.vcpus.iter().enumerate().take(count) {
            if let Err(error) = vcpu.wait_parked() {
                self.faults.push(format!("vCPU {index}: {error}"));
            }
        }
    }

    fn dirty_log(&self) -> Result<DirtyLog, DirtyError> {
        DirtyLog::start(&self.vm, self.rings.clone(), self.log_in_use.clone())
    }

    fn controls(&self) -> Controls {
        Controls::new(
            self.throttle.clone(),
            self.devices.pm(),
            self.devices.vmgenid(),
            self.devices.announcers(),
            self.cpu.clone(),
        )
    }

    fn shape(&self) -> Shape {
        Shape {
            memory_bytes: self.config.memory.bytes(),
            vcpus: self.config.vcpus.get(),
            cpu_template: self.config.cpu_template.clone(),
        }
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        if !self.faults.is_empty() {
            return Err(MachineError::Broken(self.faults.join("; ")));
        }
        // Time first and together: everything after it may take long.
        let clock = clock::sample(&self.vm, self.boot_id)?;
        let vcpu = |index| move |source| MachineError::Vcpu { index, source };
        let mut replies = Vec::with_capacity(self.vcpus.len());
        for (index, thread) in (0u32..).zip(&self.vcpus) {
            replies.push(thread.save().map_err(vcpu(index))?);
        }
        let mut vcpus = Vec::with_capacity(replies.len());
        for (index, reply) in (0u32..).zip(replies) {
            let state = reply.recv().map_err(|_| vcpu(index)(VcpuError::ThreadGone))?;
            vcpus.push(state.map_err(vcpu(index))?);
        }
        Ok(MachineState {
            shape: self.shape(),
            clock,
            vcpus,
            irqchips: assemble::save_irqchips(&self.vm)?,
            pit: assemble::save_pit(&self.vm)?,
            serial: self.devices.save_serial(),
            pm: self.devices.save_pm(),
            vmgenid: self.devices.save_vmgenid(),
            virtio: self.devices.save_virtio(),
        })
    }
}
