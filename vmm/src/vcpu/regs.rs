//! A vCPU's registers to and from plain data, in the order that KVM needs.
//!
//! The order matters and is explained at each step; see also the kernel's
//! Documentation/virt/kvm/api.rst on the single calls.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{VcpuError, msrs};
use crate::cpu::compat::same_frequency;
use crate::kvm::{Capabilities, Kvm, ioctls};
use crate::state::v1::{CpuidEntry, VcpuState};

/// What a vCPU of this machine has, found out once.
#[derive(Clone, Debug)]
pub struct Abilities {
    /// Bytes of extended state.
    pub xsave_bytes: usize,
    /// Components of the extended state that KVM has for a guest: those of XCR0, and those that
    /// only the guest's kernel switches (CPUID 0xD).
    pub components: Components,
    /// The TSC-offset attribute is there.
    pub tsc_offset: bool,
    /// The TSC frequency can be set.
    pub tsc_control: bool,
    /// Registers to save.
    pub msrs: Vec<u32>,
}

/// Components of the extended state, by bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Components {
    /// Those that XCR0 may have.
    pub user: u64,
    /// Those of `IA32_XSS`.
    pub supervisor: u64,
}

impl Components {
    fn of(kvm: &Kvm) -> Result<Self, VcpuError> {
        let supported = kvm
            .fd()
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(VcpuError::call("KVM_GET_SUPPORTED_CPUID"))?;
        let leaf = |index| {
            let all = supported.as_slice().iter();
            all.filter(|e| e.function == 0xD).find(|e| e.index == index).copied()
        };
        let wide = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        Ok(Self {
            // x87 and SSE are there without the leaf.
            user: leaf(0).map_or(0, |e| wide(e.edx, e.eax)) | 3,
            supervisor: leaf(1).map_or(0, |e| wide(e.edx, e.ecx)),
        })
    }
}

impl Abilities {
    /// Finds out, on the first vCPU.
    pub fn probe(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, VcpuError> {
        let caps: &Capabilities = kvm.capabilities();
        Ok(Self {
            xsave_bytes: caps.xsave_bytes,
            components: Components::of(kvm)?,
            tsc_offset: ioctls::has_tsc_offset(vcpu),
            tsc_control: caps.tsc_control,
            msrs: msrs::saveable(kvm, vcpu)?,
        })
    }
}

fn bytes<T: IntoBytes + Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

fn parse<T: FromBytes>(field: &'static str, bytes: &[u8]) -> Result<T, VcpuError> {
    T::read_from_bytes(bytes).map_err(|_| VcpuError::Field {
        field,
        found: bytes.len(),
        wanted: size_of::<T>(),
    })
}

/// Converts KVM's CPUID list.
pub fn cpuid_entries(cpuid: &CpuId) -> Vec<CpuidEntry> {
    let plain = |e: &kvm_cpuid_entry2| CpuidEntry {
        function: e.function,
        index: e.index,
        flags: e.flags,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    };
    cpuid.as_slice().iter().map(plain).collect()
}

/// Gives a vCPU its CPUID.
pub fn set_cpuid(vcpu: &VcpuFd, entries: &[CpuidEntry]) -> Result<(), VcpuError> {
    let raw = |e: &CpuidEntry| kvm_cpuid_entry2 {
        function: e.function,
        index: e.index,
        flags: e.flags,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
        padding: [0; 3],
    };
    let list: Vec<_> = entries.iter().map(raw).collect();
    let list = CpuId::from_entries(&list).map_err(|_| VcpuError::TooMany("CPUID leaves"))?;
    vcpu.set_cpuid2(&list).map_err(VcpuError::call("KVM_SET_CPUID2"))
}

/// Reads a vCPU that is not in `KVM_RUN` and has no unfinished exit. `cpuid` is what it was given.
pub fn save(
    vcpu: &VcpuFd,
    abilities: &Abilities,
    cpuid: &[CpuidEntry],
) -> Result<VcpuState, VcpuError> {
    let io = |call| move |source| VcpuError::Call { call, source };
    // First: reading it can process INIT and SIPI, which changes everything else.
    let mp_state = vcpu.get_mp_state().map_err(VcpuError::call("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(VcpuError::call("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(VcpuError::call("KVM_GET_SREGS"))?;
    let xsave = ioctls::get_xsave(vcpu, abilities.xsave_bytes).map_err(io("KVM_GET_XSAVE2"))?;
    let xcrs = vcpu.get_xcrs().map_err(VcpuError::call("KVM_GET_XCRS"))?;
    let debugregs = vcpu.get_debug_regs().map_err(VcpuError::call("KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.get_lapic().map_err(VcpuError::call("KVM_GET_LAPIC"))?;
    let msrs = msrs::read(vcpu, &abilities.msrs)?;
    // Last: reading MSRs and LAPIC may still move a pending event.
    let events = vcpu.get_vcpu_events().map_err(VcpuError::call("KVM_GET_VCPU_EVENTS"))?;
    let tsc_offset = if abilities.tsc_offset {
        Some(ioctls::tsc_offset(vcpu).map_err(io("KVM_VCPU_TSC_OFFSET"))?)
    } else {
        None
    };
    Ok(VcpuState {
        mp_state: mp_state.mp_state,
        regs: bytes(&regs),
        sregs: bytes(&sregs),
        xsave,
        xcrs: bytes(&xcrs),
        debugregs: bytes(&debugregs),
        lapic: bytes(&lapic),
        cpuid: cpuid.to_vec(),
        msrs,
        events: bytes(&events),
        tsc_offset,
        tsc_khz: vcpu.get_tsc_khz().map_err(VcpuError::call("KVM_GET_TSC_KHZ"))?,
    })
}

/// First half of a restore: all that comes before guest time is set.
pub fn restore_before_clock(
    vcpu: &VcpuFd,
    abilities: &Abilities,
    state: &VcpuState,
) -> Result<(), VcpuError> {
    let khz = vcpu.get_tsc_khz().map_err(VcpuError::call("KVM_GET_TSC_KHZ"))?;
    if !same_frequency(state.tsc_khz, khz) {
        // Also where KVM could scale: the saved offset counts unscaled ticks, and used with scaled
        // ones it would throw guest time forward or back.
        return Err(VcpuError::TscKhz { state: state.tsc_khz, host: khz });
    }
    if abilities.tsc_control {
        vcpu.set_tsc_khz(state.tsc_khz).map_err(VcpuError::call("KVM_SET_TSC_KHZ"))?;
    }
    set_cpuid(vcpu, &state.cpuid)?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: state.mp_state })
        .map_err(VcpuError::refused("KVM_SET_MP_STATE", || {
            format!("mp_state {}", state.mp_state)
        }))?;
    let regs: kvm_regs = parse("regs", &state.regs)?;
    vcpu.set_regs(&regs).map_err(VcpuError::call("KVM_SET_REGS"))?;
    let sregs: kvm_sregs = parse("sregs", &state.sregs)?;
    vcpu.set_sregs(&sregs).map_err(VcpuError::refused("KVM_SET_SREGS", || {
        format!("cr0 {:#x}, cr4 {:#x}, efer {:#x}", sregs.cr0, sregs.cr4, sregs.efer)
    }))?;
    let xsave = fit_xsave(&state.xsave, abilities.xsave_bytes)?;
    let Components { user, supervisor } = abilities.components;
    has_components("XSTATE_BV", components_in_use(&xsave), user | supervisor)?;
    ioctls::set_xsave(vcpu, &xsave, abilities.xsave_bytes)
        .map_err(|source| VcpuError::Call { call: "KVM_SET_XSAVE", source })?;
    let xcrs: kvm_xcrs = parse("xcrs", &state.xcrs)?;
    if xcrs.nr_xcrs as usize > xcrs.xcrs.len() {
        return Err(VcpuError::TooMany("XCRs"));
    }
    let first = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|x| x.xcr == 0);
    has_components("XCR0", first.map_or(0, |x| x.value), user)?;
    vcpu.set_xcrs(&xcrs).map_err(VcpuError::call("KVM_SET_XCRS"))?;
    let debugregs: kvm_debugregs = parse("debugregs", &state.debugregs)?;
    vcpu.set_debug_regs(&debugregs).map_err(VcpuError::refused("KVM_SET_DEBUGREGS", || {
        format!("dr6 {:#x}, dr7 {:#x}, flags {:#x}", debugregs.dr6, debugregs.dr7, debugregs.flags)
    }))
}

/// The extended state in this host's size. The size depends on what the host's CPU has, not on
/// what the guest uses: what is cut off must be empty.
fn fit_xsave(saved: &[u8], wanted: usize) -> Result<Vec<u8>, VcpuError> {
    let misfit = VcpuError::Field { field: "xsave", found: saved.len(), wanted };
    let cut = saved.get(wanted..).unwrap_or_default();
    if saved.len() < size_of::<kvm_xsave>() || cut.iter().any(|b| *b != 0) {
        return Err(misfit);
    }
    let mut fitted = saved.to_vec();
    fitted.resize(wanted, 0);
    Ok(fitted)
}

/// The components that are not in their initial state: `XSTATE_BV`, in the header behind the legacy
/// region of 512 bytes (Intel SDM, volume 1, 13.4.2).
fn components_in_use(xsave: &[u8]) -> u64 {
    let header = xsave.get(512..520).and_then(|b| b.try_into().ok());
    header.map_or(0, u64::from_le_bytes)
}

/// KVM says no more than "invalid"; this says what is missing.
fn has_components(register: &'static str, saved: u64, here: u64) -> Result<(), VcpuError> {
    if saved & !here == 0 { Ok(()) } else { Err(VcpuError::Components { register, saved, here }) }
}

/// Second half: what depends on guest time. `offset` is guest TSC minus host TSC.
pub fn restore_after_clock(
    vcpu: &VcpuFd,
    abilities: &Abilities,
    state: &VcpuState,
    offset: Option<i64>,
) -> Result<(), VcpuError> {
    if let Some(offset) = offset.filter(|_| abilities.tsc_offset) {
        ioctls::set_tsc_offset(vcpu, offset)
            .map_err(|source| VcpuError::Call { call: "KVM_VCPU_TSC_OFFSET", source })?;
    }
    // After SREGS, which hold the APIC base; before MSRs, whose deadline needs the APIC mode.
    let lapic: kvm_lapic_state = parse("lapic", &state.lapic)?;
    vcpu.set_lapic(&lapic).map_err(VcpuError::call("KVM_SET_LAPIC"))?;
    let by_offset = abilities.tsc_offset && offset.is_some();
    let now = offset.map(|o| ioctls::host_tsc().wrapping_add_signed(o));
    let rearm = now.filter(|_| timer_in_deadline_mode(&state.lapic));
    msrs::write(vcpu, &msrs::restore_order(&state.msrs, by_offset, rearm))?;
    // After REGS, which drop pending exceptions.
    let events: kvm_vcpu_events = parse("events", &state.events)?;
    vcpu.set_vcpu_events(&events).map_err(VcpuError::refused("KVM_SET_VCPU_EVENTS", || {
        format!("flags {:#x}", events.flags)
    }))?;
    // Tells the guest's watchdogs that it was stopped. Guests without kvmclock answer EINVAL.
    let _ = vcpu.kvmclock_ctrl();
    Ok(())
}

/// Whether the LAPIC's timer is unmasked and in TSC-deadline mode (LVT timer, offset 0x320).
fn timer_in_deadline_mode(lapic: &[u8]) -> bool {
    let Some(lvt) = lapic.get(0x320..0x324) else { return false };
    let lvt = u32::from_le_bytes([lvt[0], lvt[1], lvt[2], lvt[3]]);
    (lvt >> 17) & 3 == 2 && lvt & (1 << 16) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_the_same_while_kvm_does_not_scale() {
        assert!(same_frequency(2_500_000, 2_500_000));
        assert!(same_frequency(2_499_999, 2_500_001));
        assert!(!same_frequency(2_500_000, 2_600_000));
        assert!(!same_frequency(2_600_000, 2_500_000));
        assert!(!same_frequency(0, 2_500_000) && !same_frequency(u32::MAX, 2_500_000));
    }
}
