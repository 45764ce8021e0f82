//! Which model-specific registers are saved, and in what order they are restored.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::VcpuError;
use crate::kvm::Kvm;
use crate::state::v1::MsrEntry;

/// `IA32_TSC`: restored through the TSC offset wherever that attribute exists, because writing
/// it on each vCPU separately makes them drift apart.
pub const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: last of all, when LAPIC mode and TSC are in place.
pub const TSC_DEADLINE: u32 = 0x6E0;
/// VMX capability registers: properties of the host, not state.
const VMX_CAPABILITIES: std::ops::RangeInclusive<u32> = 0x480..=0x493;
/// Performance counters, events and their control: the guest is told that it has none.
const PERFORMANCE: [std::ops::RangeInclusive<u32>; 4] =
    [0xC1..=0xC8, 0x186..=0x18D, 0x309..=0x30B, 0x38D..=0x390];
/// Made sure of even if the kernel's list forgets them.
const ALWAYS: [u32; 11] = [
    0x4B56_4D00,
    0x4B56_4D01,
    0x4B56_4D02,
    0x4B56_4D03,
    0x4B56_4D04,
    0x4B56_4D05,
    TSC,
    0x3B, // TSC_ADJUST
    TSC_DEADLINE,
    0x277, // PAT
    0x1A0, // MISC_ENABLE
];
/// Memory types: variable ranges, fixed ranges, default. KVM's list leaves them out.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20F, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26F, 0x2FF..=0x2FF];
/// Most registers in one call to KVM.
const BATCH: usize = kvm_bindings::KVM_MAX_MSR_ENTRIES;

/// The registers that this host's KVM can save, found out by reading each on `vcpu`.
pub fn saveable(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>, VcpuError> {
    let list = kvm.fd().get_msr_index_list().map_err(VcpuError::call("KVM_GET_MSR_INDEX_LIST"))?;
    let mut wanted: Vec<u32> = list.as_slice().iter().chain(&ALWAYS).copied().collect();
    wanted.extend(MTRRS.into_iter().flatten());
    wanted.retain(|m| !VMX_CAPABILITIES.contains(m) && !PERFORMANCE.iter().any(|r| r.contains(m)));
    wanted.sort_unstable();
    wanted.dedup();
    // KVM reads up to the first register it does not have: leave that one out and go on.
    let mut readable = Vec::with_capacity(wanted.len());
    let mut rest = &wanted[..];
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        let mut msrs = request(batch)?;
        let done = vcpu.get_msrs(&mut msrs).map_err(VcpuError::call("KVM_GET_MSRS"))?;
        readable.extend_from_slice(&batch[..done.min(batch.len())]);
        rest = &rest[(done + usize::from(done < batch.len())).min(rest.len())..];
    }
    Ok(readable)
}

fn request(indices: &[u32]) -> Result<Msrs, VcpuError> {
    let entries: Vec<_> =
        indices.iter().map(|i| kvm_msr_entry { index: *i, ..Default::default() }).collect();
    Msrs::from_entries(&entries).map_err(|_| VcpuError::TooMany("MSRs"))
}

/// Reads `indices`; every one must answer.
pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<MsrEntry>, VcpuError> {
    let mut out = Vec::with_capacity(indices.len());
    for batch in indices.chunks(BATCH) {
        let mut msrs = request(batch)?;
        let done = vcpu.get_msrs(&mut msrs).map_err(VcpuError::call("KVM_GET_MSRS"))?;
        if let Some(index) = batch.get(done) {
            return Err(VcpuError::MsrRead(*index));
        }
        out.extend(msrs.as_slice().iter().map(|e| MsrEntry { index: e.index, value: e.data }));
    }
    Ok(out)
}

/// The order of restoring: as saved, without what is not written by number, the deadline last.
/// A deadline that reads 0 may have fired between the LAPIC and this register: `now` makes it
/// fire again, and a guest takes a spurious timer interrupt with grace, a lost one never.
pub fn restore_order(saved: &[MsrEntry], tsc_by_offset: bool, now: Option<u64>) -> Vec<MsrEntry> {
    let mut order: Vec<_> = saved
        .iter()
        .filter(|m| m.index != TSC_DEADLINE && !(tsc_by_offset && m.index == TSC))
        .copied()
        .collect();
    order.extend(saved.iter().filter(|m| m.index == TSC_DEADLINE).map(|m| MsrEntry {
        value: match now {
            Some(now) if m.value == 0 => now,
            _ => m.value,
        },
        ..*m
    }));
    order
}

/// Writes `msrs` in order. A register that refuses is an error that names it, unless it has the
/// wanted value already (some are read-only facts of the host).
pub fn write(vcpu: &VcpuFd, msrs: &[MsrEntry]) -> Result<(), VcpuError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        let entries: Vec<_> = batch
            .iter()
            .map(|m| kvm_msr_entry { index: m.index, data: m.value, ..Default::default() })
            .collect();
        let list = Msrs::from_entries(&entries).map_err(|_| VcpuError::TooMany("MSRs"))?;
        let done = vcpu.set_msrs(&list).map_err(VcpuError::call("KVM_SET_MSRS"))?;
        rest = &rest[done.min(rest.len())..];
        if let Some(refused) = batch.get(done) {
            let has = read(vcpu, &[refused.index]).ok().and_then(|r| r.first().map(|e| e.value));
            if has != Some(refused.value) {
                return Err(VcpuError::MsrWrite {
                    index: refused.index,
                    value: refused.value,
                    has,
                });
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_is_last_and_tsc_is_left_out() {
        let m = |index, value| MsrEntry { index, value };
        let saved = [m(TSC, 5), m(TSC_DEADLINE, 0), m(0x277, 7)];
        assert_eq!(restore_order(&saved, true, Some(9)), [m(0x277, 7), m(TSC_DEADLINE, 9)]);
        assert_eq!(
            restore_order(&saved, false, None),
            [m(TSC, 5), m(0x277, 7), m(TSC_DEADLINE, 0)]
        );
    }
}
