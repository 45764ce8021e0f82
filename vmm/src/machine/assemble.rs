//! Puts a machine together: from a boot source, or from a saved state.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MP_STATE_RUNNABLE,
    kvm_irqchip, kvm_mp_state, kvm_pit_state2,
};
use kvm_ioctls::VcpuFd;
use zerocopy::{FromBytes, IntoBytes};

use super::clock::{self, ClockMode, ClockReport};
use super::devices::{Devices, VirtioSpec};
use super::throttle::Throttle;
use super::{Machine, MachineError, Paused, StopTimes};
use crate::boot::{self, BootSource, Entry};
use crate::config::{DirtyTracking, MachineConfig};
use crate::cpu::{ARCH_CAPABILITIES, CpuModel, Msr, Shown, compat, host, rules};
use crate::devices::console::Console;
use crate::events::EventSink;
use crate::kvm::{Kvm, KvmError, LogMode, Vm};
use crate::memory::GuestRam;
use crate::memory::ring::RingSet;
use crate::state::v1::{CpuidEntry, MachineState, MsrEntry, VcpuState};
use crate::vcpu::regs::{self, Abilities};
use crate::vcpu::template::{self, Platform, Template};
use crate::vcpu::thread::VcpuParts;
use crate::vcpu::{Buses, VcpuError, VcpuThread, kick, msrs};

/// `IA32_MTRR_DEF_TYPE`: MTRRs on, memory is write-back, as firmware leaves it.
const MTRR_DEF_TYPE: MsrEntry = MsrEntry { index: 0x2FF, value: 1 << 11 | 6 };
/// `IA32_MISC_ENABLE`: fast string operations, as firmware leaves it.
const MISC_ENABLE: MsrEntry = MsrEntry { index: 0x1A0, value: 1 };
const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// What a machine is made of: the guest's view in `config`, and what the host opened for it.
pub struct Parts {
    /// The guest's view.
    pub config: MachineConfig,
    /// Whom to tell of resets, power-off and crashes.
    pub events: EventSink,
    /// Host side of COM1.
    pub serial: Console,
    /// Virtio devices, in slot order.
    pub virtio: Vec<VirtioSpec>,
}

/// A machine that is being put together: it has memory and KVM, no vCPUs and no devices.
pub struct Builder {
    kvm: Kvm,
    parts: Parts,
    template: Choice,
    vm: Vm,
}

/// What a guest that boots is shown of the CPU.
enum Choice {
    /// What a template leaves of this host's.
    Named(&'static Template),
    /// Just this.
    Model(CpuModel),
}

impl Choice {
    fn of(config: &MachineConfig) -> Result<Self, MachineError> {
        if let Some(model) = &config.cpu_model {
            return Ok(Self::Model(model.clone()));
        }
        let named = template::find(&config.cpu_template);
        named.map(Self::Named).ok_or_else(|| MachineError::Template(config.cpu_template.clone()))
    }

    /// The CPUID of vCPU `vcpu`.
    fn cpuid(&self, offered: &CpuModel, platform: &Platform, vcpu: u32) -> Vec<CpuidEntry> {
        match self {
            Self::Named(template) => template.apply(&offered.entries(), platform, vcpu),
            Self::Model(model) => template::complete(model.entries(), platform, vcpu),
        }
    }
}

/// vCPU `index` failed.
fn vcpu(index: u32) -> impl FnOnce(VcpuError) -> MachineError {
    move |source| MachineError::Vcpu { index, source }
}

impl Builder {
    /// Makes the machine's memory and its KVM side.
    pub fn new(kvm: &Kvm, parts: Parts) -> Result<Self, MachineError> {
        let config = &parts.config;
        let template = Choice::of(config)?;
        let (wanted, limit) = (config.vcpus.get(), kvm.capabilities().max_vcpus);
        if wanted > limit {
            return Err(MachineError::TooManyVcpus { wanted, limit });
        }
        let ram = GuestRam::new(&config.memory)?;
        let vm = Vm::new(kvm, ram, config.dirty_tracking)?;
        Ok(Self { kvm: kvm.clone(), parts, template, vm })
    }

    /// Guest RAM.
    pub fn ram(&self) -> &GuestRam {
        self.vm.ram()
    }

    /// Loads a kernel. The machine is paused just before its first instruction.
    pub fn boot(self, source: &mut BootSource) -> Result<Paused, MachineError> {
        let platform = boot::Platform {
            vcpus: self.parts.config.vcpus.get(),
            virtio_slots: self.parts.virtio.len(),
            ram: self.vm.ram(),
        };
        let entry = boot::load(&platform, source)?;
        let devices = Devices::fresh(
            &self.vm,
            self.parts.virtio,
            self.parts.serial,
            &self.parts.events,
            self.parts.config.generation_id,
        )?;
        let mut makers = Makers::new(&self.kvm, &self.vm, &self.parts.config)?;
        for index in 0..self.parts.config.vcpus.get() {
            makers.create(index)?;
        }
        makers.start_at(&self.template, &entry)?;
        makers.finish(devices, self.parts.config, &self.parts.events)
    }

    /// Brings a saved machine back, paused. `fill` puts the saved content into guest RAM; it is
    /// called once, before any vCPU exists. Whatever fails, nothing is left behind.
    pub fn restore(
        self,
        state: &MachineState,
        mode: ClockMode,
        fill: &mut dyn FnMut(&GuestRam) -> io::Result<()>,
    ) -> Result<(Paused, ClockReport), MachineError> {
        self.check_shape(state)?;
        self.check_cpu(state)?;
        fill(self.vm.ram()).map_err(MachineError::Fill)?;
        restore_irqchips(&self.vm, &state.irqchips)?;
        restore_pit(&self.vm, &state.pit)?;
        let mut makers = Makers::new(&self.kvm, &self.vm, &self.parts.config)?;
        for (index, saved) in (0u32..).zip(&state.vcpus) {
            makers.create(index)?;
            makers.restore_first(index, saved)?;
        }
        let report = makers.restore_rest(state, mode)?;
        let devices = Devices::restore(
            &self.vm,
            self.parts.virtio,
            self.parts.serial,
            &self.parts.events,
            state,
        )?;
        let paused = makers.finish(devices, self.parts.config, &self.parts.events)?;
        Ok((paused, report))
    }

    /// Before anything is filled in: a CPU that lacks what the guest was promised.
    fn check_cpu(&self, state: &MachineState) -> Result<(), MachineError> {
        let offered = host::offered(&self.kvm)?;
        for vcpu in &state.vcpus {
            let told = vcpu.msrs.iter().find(|m| m.index == ARCH_CAPABILITIES);
            // A state that does not say what the guest was told promises nothing.
            let value = told.map_or_else(|| offered.msr(ARCH_CAPABILITIES), |m| m.value);
            let told = Msr { index: ARCH_CAPABILITIES, value };
            has_all(&CpuModel::from_entries(&vcpu.cpuid, vec![told]), &offered)?;
        }
        Ok(())
    }

    fn check_shape(&self, state: &MachineState) -> Result<(), MachineError> {
        let config = &self.parts.config;
        let differ = |field, saved: u64, here: u64| {
            if saved == here {
                return Ok(());
            }
            let (saved, here) = (saved.to_string(), here.to_string());
            Err(MachineError::Shape { field, saved, here })
        };
        differ("memory (bytes)", state.shape.memory_bytes, config.memory.bytes())?;
        differ("vCPUs", u64::from(state.shape.vcpus), u64::from(config.vcpus.get()))?;
        differ("virtio devices", state.virtio.len() as u64, self.parts.virtio.len() as u64)
    }
}

/// vCPUs on their way to becoming threads.
struct Makers<'a> {
    kvm: &'a Kvm,
    vm: &'a Vm,
    vcpus: u32,
    rings: Option<Arc<RingSet>>,
    abilities: Option<Arc<Abilities>>,
    made: Vec<(VcpuFd, Vec<CpuidEntry>)>,
    boot_id: [u8; 16],
}

impl<'a> Makers<'a> {
    fn new(kvm: &'a Kvm, vm: &'a Vm, config: &MachineConfig) -> Result<Self, MachineError> {
        kick::install()
            .map_err(|source| vcpu(0)(VcpuError::Call { call: "a signal handler", source }))?;
        let rings =
            (config.dirty_tracking == DirtyTracking::Ring).then(|| Arc::new(RingSet::default()));
        let vcpus = config.vcpus.get();
        let boot_id = clock::boot_id();
        Ok(Self { kvm, vm, vcpus, rings, abilities: None, made: Vec::new(), boot_id })
    }

    fn create(&mut self, index: u32) -> Result<(), MachineError> {
        let fd = self
            .vm
            .fd()
            .create_vcpu(u64::from(index))
            .map_err(|e| vcpu(index)(VcpuError::call("KVM_CREATE_VCPU")(e)))?;
        if let (Some(rings), LogMode::Ring(entries)) = (&self.rings, self.vm.log_mode()) {
            rings.add(&fd, entries).map_err(|source| {
                vcpu(index)(VcpuError::Call { call: "the mapping of the dirty ring", source })
            })?;
        }
        if self.abilities.is_none() {
            let abilities = Abilities::probe(self.kvm, &fd).map_err(vcpu(index))?;
            self.abilities = Some(Arc::new(abilities));
        }
        self.made.push((fd, Vec::new()));
        Ok(())
    }

    fn abilities(&self) -> Result<Arc<Abilities>, MachineError> {
        self.abilities.clone().ok_or_else(|| MachineError::Platform("no vCPU was made".into()))
    }

    /// CPUID and start registers of a machine that boots.
    fn start_at(&mut self, template: &Choice, entry: &Entry) -> Result<(), MachineError> {
        let offered = host::offered(self.kvm)?;
        if let Choice::Model(model) = template {
            has_all(model, &offered)?;
        }
        for (index, (fd, cpuid)) in (0u32..).zip(&mut self.made) {
            let khz =
                fd.get_tsc_khz().map_err(|e| vcpu(index)(VcpuError::call("KVM_GET_TSC_KHZ")(e)))?;
            let platform = Platform {
                vcpus: self.vcpus,
                backend: self.kvm.backend(),
                tsc_deadline: self.kvm.capabilities().tsc_deadline,
                tsc_khz: khz,
            };
            *cpuid = template.cpuid(&offered, &platform, index);
            regs::set_cpuid(fd, cpuid).map_err(vcpu(index))?;
            if let Choice::Model(model) = template {
                tell_capabilities(fd, model).map_err(vcpu(index))?;
            }
            start_registers(fd, index, entry).map_err(vcpu(index))?;
        }
        Ok(())
    }

    fn restore_first(&mut self, index: u32, state: &VcpuState) -> Result<(), MachineError> {
        let abilities = self.abilities()?;
        let Some((fd, cpuid)) = self.made.last_mut() else { return Ok(()) };
        cpuid.clone_from(&state.cpuid);
        regs::restore_before_clock(fd, &abilities, state).map_err(vcpu(index))
    }

    /// Guest time, and all that depends on it.
    fn restore_rest(
        &self,
        state: &MachineState,
        mode: ClockMode,
    ) -> Result<ClockReport, MachineError> {
        let abilities = self.abilities()?;
        let khz = state.vcpus.first().map_or(0, |v| v.tsc_khz);
        let now = clock::sample(self.vm, self.boot_id)?;
        let plan = clock::plan(&state.clock, &now, khz, mode);
        clock::set_kvmclock(self.vm, plan.kvmclock_ns)?;
        for ((index, saved), (fd, _)) in (0u32..).zip(&state.vcpus).zip(&self.made) {
            let offset = saved.tsc_offset.map(|o| o.wrapping_add(plan.offset_delta));
            regs::restore_after_clock(fd, &abilities, saved, offset).map_err(vcpu(index))?;
        }
        Ok(plan.report)
    }

    /// Starts the threads, parked.
    fn finish(
        self,
        devices: Devices,
        config: MachineConfig,
        events: &EventSink,
    ) -> Result<Paused, MachineError> {
        let abilities = self.abilities()?;
        let cpu = Arc::new(self.made.first().map(shown).unwrap_or_default());
        let buses: Arc<Buses> = devices.buses();
        let rings = self.rings.as_ref().map(|r| (self.vm.clone(), r.clone()));
        let mut vcpus = Vec::with_capacity(self.made.len());
        for (index, (fd, cpuid)) in (0u32..).zip(self.made) {
            let parts = VcpuParts {
                index,
                fd,
                cpuid,
                abilities: abilities.clone(),
                buses: buses.clone(),
                events: events.clone(),
                rings: rings.clone(),
            };
            vcpus.push(VcpuThread::start(parts).map_err(vcpu(index))?);
        }
        let throttle = Arc::new(Throttle::new(vcpus.iter().map(VcpuThread::kicker).collect()));
        let machine = Machine {
            throttle,
            vcpus,
            devices,
            vm: self.vm.clone(),
            rings: self.rings,
            log_in_use: Arc::new(AtomicBool::new(false)),
            config,
            cpu,
            boot_id: self.boot_id,
            faults: Vec::new(),
        };
        Ok(Paused { machine: Box::new(machine), stop: StopTimes::default() })
    }
}

/// Whether this host has what a guest is promised.
fn has_all(promised: &CpuModel, offered: &CpuModel) -> Result<(), MachineError> {
    compat::lack(promised, offered).map_or(Ok(()), |lack| Err(MachineError::Cpu(lack)))
}

/// Puts into `IA32_ARCH_CAPABILITIES` what the template says; untold, KVM shows the host's. A KVM
/// that keeps its own value may, if that promises no more.
fn tell_capabilities(fd: &VcpuFd, model: &CpuModel) -> Result<(), VcpuError> {
    if !model.has_capabilities() {
        return Ok(());
    }
    let value = model.msr(ARCH_CAPABILITIES);
    match msrs::write(fd, &[MsrEntry { index: ARCH_CAPABILITIES, value }]) {
        Err(VcpuError::MsrWrite { has: Some(has), .. })
            if rules::join_capabilities(has, value) == has =>
        {
            Ok(())
        }
        written => written,
    }
}

/// What the guest of this vCPU is shown.
fn shown((fd, cpuid): &(VcpuFd, Vec<CpuidEntry>)) -> Shown {
    let mut model = CpuModel::from_entries(cpuid, Vec::new());
    if model.has_capabilities()
        && let Ok(told) = msrs::read(fd, &[ARCH_CAPABILITIES])
    {
        model.msrs.extend(told.iter().map(|m| Msr { index: m.index, value: m.value }));
    }
    Shown { model, tsc_khz: fd.get_tsc_khz().unwrap_or(0) }
}

/// What firmware would have left behind; the boot CPU at its entry point, the others waiting for
/// SIPI, as KVM makes them.
fn start_registers(fd: &VcpuFd, index: u32, entry: &Entry) -> Result<(), VcpuError> {
    msrs::write(fd, &[MTRR_DEF_TYPE, MISC_ENABLE])?;
    if index != 0 {
        return Ok(());
    }
    let sregs = fd.get_sregs().map_err(VcpuError::call("KVM_GET_SREGS"))?;
    fd.set_sregs(&entry.sregs(sregs)).map_err(VcpuError::call("KVM_SET_SREGS"))?;
    fd.set_regs(&entry.regs()).map_err(VcpuError::call("KVM_SET_REGS"))?;
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
        .map_err(VcpuError::call("KVM_SET_MP_STATE"))
}

/// Reads both PICs and the IOAPIC.
pub(super) fn save_irqchips(vm: &Vm) -> Result<[Vec<u8>; 3], MachineError> {
    let mut out: [Vec<u8>; 3] = Default::default();
    for (bytes, chip_id) in out.iter_mut().zip(IRQCHIPS) {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.fd().get_irqchip(&mut chip).map_err(KvmError::call("KVM_GET_IRQCHIP"))?;
        *bytes = chip.as_bytes().to_vec();
    }
    Ok(out)
}

fn restore_irqchips(vm: &Vm, saved: &[Vec<u8>; 3]) -> Result<(), MachineError> {
    for (bytes, chip_id) in saved.iter().zip(IRQCHIPS) {
        let chip = kvm_irqchip::read_from_bytes(bytes)
            .map_err(|_| wrong_size("interrupt controller", bytes, size_of::<kvm_irqchip>()))?;
        if chip.chip_id != chip_id {
            return Err(MachineError::Shape {
                field: "interrupt controller",
                saved: chip.chip_id.to_string(),
                here: chip_id.to_string(),
            });
        }
        vm.fd().set_irqchip(&chip).map_err(KvmError::call("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}

/// Reads the timer chip.
pub(super) fn save_pit(vm: &Vm) -> Result<Vec<u8>, MachineError> {
    let pit = vm.fd().get_pit2().map_err(KvmError::call("KVM_GET_PIT2"))?;
    Ok(pit.as_bytes().to_vec())
}

fn restore_pit(vm: &Vm, saved: &[u8]) -> Result<(), MachineError> {
    let pit = kvm_pit_state2::read_from_bytes(saved)
        .map_err(|_| wrong_size("timer chip", saved, size_of::<kvm_pit_state2>()))?;
    vm.fd().set_pit2(&pit).map_err(KvmError::call("KVM_SET_PIT2"))?;
    Ok(())
}

fn wrong_size(field: &'static str, saved: &[u8], here: usize) -> MachineError {
    MachineError::Shape {
        field,
        saved: format!("({} bytes)", saved.len()),
        here: format!("({here} bytes)"),
    }
}
