//! State of vCPUs and of what KVM keeps for the whole machine.
//!
//! Fields named after a KVM structure hold its bytes in the kernel's layout
//! (include/uapi/asm/kvm.h, x86-64), which is ABI; their lengths are checked before use.

use serde::{Deserialize, Serialize};

use super::devices::{MmioState, PmState, SerialState, VmGenIdState};

/// A whole machine, without its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// What the machine is made of; must match the machine that is restored into.
    pub shape: Shape,
    /// Guest time.
    pub clock: ClockState,
    /// vCPUs by index.
    pub vcpus: Vec<VcpuState>,
    /// `kvm_irqchip` of the two PICs and the IOAPIC.
    pub irqchips: [Vec<u8>; 3],
    /// `kvm_pit_state2`.
    pub pit: Vec<u8>,
    /// COM1.
    pub serial: SerialState,
    /// ACPI fixed hardware.
    pub pm: PmState,
    /// VM generation id.
    pub vmgenid: VmGenIdState,
    /// Virtio devices by slot.
    pub virtio: Vec<MmioState>,
}

/// What must be alike for a state to fit a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Name of the CPU template, for messages; what counts is each vCPU's CPUID.
    pub cpu_template: String,
}

/// Guest time at one instant (Documentation/virt/kvm/devices/vcpu.rst, `KVM_VCPU_TSC_OFFSET`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// kvmclock, nanoseconds.
    pub kvmclock_ns: u64,
    /// Host wall-clock time (`CLOCK_REALTIME`), nanoseconds since 1970.
    pub realtime_ns: u64,
    /// Host TSC at the same instant.
    pub host_tsc: u64,
    /// Boot id of the host: its TSC goes on only within one boot.
    pub boot_id: [u8; 16],
}

/// One vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// `kvm_mp_state`.
    pub mp_state: u32,
    /// `kvm_regs`.
    pub regs: Vec<u8>,
    /// `kvm_sregs`.
    pub sregs: Vec<u8>,
    /// Extended state, as `KVM_GET_XSAVE2` gives it.
    pub xsave: Vec<u8>,
    /// `kvm_xcrs`.
    pub xcrs: Vec<u8>,
    /// `kvm_debugregs`.
    pub debugregs: Vec<u8>,
    /// `kvm_lapic_state`.
    pub lapic: Vec<u8>,
    /// CPUID as the guest sees it.
    pub cpuid: Vec<CpuidEntry>,
    /// Model-specific registers.
    pub msrs: Vec<MsrEntry>,
    /// `kvm_vcpu_events`.
    pub events: Vec<u8>,
    /// Guest TSC minus host TSC; without the attribute the guest TSC is in `msrs`.
    pub tsc_offset: Option<i64>,
    /// Frequency of the guest TSC.
    pub tsc_khz: u32,
}

/// One leaf of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// EAX of the request.
    pub function: u32,
    /// ECX of the request, if it counts.
    pub index: u32,
    /// `KVM_CPUID_FLAG_*`.
    pub flags: u32,
    /// Answer.
    pub eax: u32,
    /// Answer.
    pub ebx: u32,
    /// Answer.
    pub ecx: u32,
    /// Answer.
    pub edx: u32,
}

/// One model-specific register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrEntry {
    /// Number.
    pub index: u32,
    /// Value.
    pub value: u64,
}
