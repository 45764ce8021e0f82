//! What this host's KVM can show a guest: asked of the kernel.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};

use super::{ARCH_CAPABILITIES, CpuModel, Msr, features};
use crate::kvm::{Backend, Kvm, KvmError};
use crate::vcpu::regs;

/// A host's CPU, as far as it matters to guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCpu {
    /// What it can show a guest.
    pub model: CpuModel,
    /// What the CPU calls itself.
    pub brand: String,
    /// Frequency of the TSC of a guest that is started here.
    pub tsc_khz: u32,
    /// A guest's TSC can run at another frequency.
    pub tsc_scaling: bool,
    /// Bytes of a vCPU's extended state.
    pub xsave_bytes: u64,
    /// What stands behind KVM.
    pub backend: Backend,
}

/// Asks KVM. Makes an empty machine for it, which is gone again when this returns.
///
/// # Errors
/// A call to KVM fails.
pub fn probe(kvm: &Kvm) -> Result<HostCpu, KvmError> {
    let vm = kvm.fd().create_vm().map_err(KvmError::call("KVM_CREATE_VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(KvmError::call("KVM_CREATE_VCPU"))?;
    let caps = kvm.capabilities();
    Ok(HostCpu {
        model: offered(kvm)?,
        brand: brand(),
        tsc_khz: vcpu.get_tsc_khz().map_err(KvmError::call("KVM_GET_TSC_KHZ"))?,
        tsc_scaling: caps.tsc_control,
        xsave_bytes: caps.xsave_bytes as u64,
        backend: kvm.backend(),
    })
}

/// What a guest can be shown here: what KVM supports, without what is hidden on this host and what
/// is shown to no guest.
///
/// # Errors
/// A call to KVM fails.
pub fn offered(kvm: &Kvm) -> Result<CpuModel, KvmError> {
    let supported = kvm
        .fd()
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
    let mut model = CpuModel::from_entries(&regs::cpuid_entries(&supported), capabilities(kvm));
    for leaf in &mut model.leaves {
        match leaf.leaf {
            // Nested guests are not saved.
            1 => leaf.ecx &= !(1 << 5),
            0x8000_0001 => leaf.ecx &= !(1 << 2),
            _ => {}
        }
    }
    if kvm.backend() == Backend::Software {
        // Its emulator of guest kernels does not know the instruction.
        features::hide(&mut model, &["cx16".to_owned()]);
    }
    if !kvm.hidden().is_empty() {
        features::hide(&mut model, kvm.hidden());
    }
    Ok(model)
}

/// `IA32_ARCH_CAPABILITIES`, where KVM tells of it.
fn capabilities(kvm: &Kvm) -> Vec<Msr> {
    let entry = kvm_msr_entry { index: ARCH_CAPABILITIES, ..Default::default() };
    let Ok(mut msrs) = Msrs::from_entries(&[entry]) else { return Vec::new() };
    match kvm.fd().get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().iter().map(|m| Msr { index: m.index, value: m.data }).collect(),
        // One that it does not have.
        _ => Vec::new(),
    }
}

fn brand() -> String {
    use std::arch::x86_64::__cpuid;
    if __cpuid(0x8000_0000).eax < 0x8000_0004 {
        return String::new();
    }
    let words = (0x8000_0002..=0x8000_0004).flat_map(|leaf| {
        let r = __cpuid(leaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    });
    let bytes = words.flat_map(u32::to_le_bytes);
    let text: String =
        bytes.map(char::from).filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    text.trim().to_owned()
}
