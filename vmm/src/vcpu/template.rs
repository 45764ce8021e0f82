//! CPU templates: what a guest sees of the host's CPU, by name.
//!
//! A template starts from what KVM supports on the host and takes features away. It never adds
//! one. Topology leaves are always rewritten: one package, a core for each vCPU, one thread for
//! each core. Bits are those of the Intel SDM, volume 2, CPUID.

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use crate::cpu::Register::{self, Eax, Ebx, Ecx, Edx};
use crate::kvm::Backend;
use crate::state::v1::CpuidEntry;

/// Bits that a template takes away.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Leaf.
    pub function: u32,
    /// Subleaf.
    pub index: u32,
    /// Register.
    pub register: Register,
    /// The bits that stay.
    pub keep: u32,
    /// What goes, for people.
    pub what: &'static str,
}

/// A named set of masks.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Name, as in definitions.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// What it takes away.
    pub masks: &'static [Mask],
}

const fn keep(
    function: u32,
    index: u32,
    register: Register,
    keep: u32,
    what: &'static str,
) -> Mask {
    Mask { function, index, register, keep, what }
}

/// What Haswell and Zen have in common. Mitigations (IBRS, STIBP, SSBD) stay: every host that is
/// kept up to date has them.
const V3: &[Mask] = &[
    keep(1, 0, Ecx, 0xFFF8_3203, "PCID and what came after Haswell"),
    keep(6, 0, Eax, 1 << 2, "power management but ARAT"),
    keep(7, 0, Ebx, 0x0000_01AB, "all but FSGSBASE, TSC_ADJUST, BMI1/2, AVX2, SMEP"),
    keep(7, 0, Ecx, 0, "PKU, VAES, AVX-512, …"),
    keep(7, 0, Edx, 0x8C00_0000, "all but IBRS, STIBP, SSBD"),
    keep(7, 1, Eax, 0, "AVX-VNNI, BF16, AMX, …"),
    keep(7, 1, Ebx, 0, "later features"),
    keep(7, 1, Ecx, 0, "later features"),
    keep(7, 1, Edx, 0, "AVX-VNNI-INT8, AVX10, …"),
    keep(7, 2, Edx, 0, "later controls"),
    keep(0xD, 0, Eax, 0x7, "extended state beyond AVX"),
    keep(0xD, 1, Eax, 0x1, "XSAVEC, XGETBV1, XSAVES"),
    keep(0xD, 1, Ecx, 0, "supervisor state"),
    keep(0x14, 0, Ebx, 0, "processor trace"),
    keep(0x1D, 0, Eax, 0, "AMX tiles"),
    keep(0x8000_0001, 0, Ecx, 0x0000_0121, "all but LAHF, LZCNT, PREFETCHW"),
    keep(0x8000_0001, 0, Edx, 0x2D93_FBFF, "AMD's extensions of MMX and FXSR, 3DNow!"),
    keep(0x8000_0008, 0, Ebx, 0x0100_D000, "all but IBPB, IBRS, STIBP, SSBD"),
    keep(0x8000_000A, 0, Edx, 0, "nested virtualization"),
    keep(0x8000_0021, 0, Eax, 0, "later AMD features"),
];

/// What Nehalem has.
const V2: &[Mask] = &[
    keep(1, 0, Ecx, 0x81B8_2201, "AVX, AES, XSAVE, MOVBE, RDRAND, PCID, …"),
    keep(6, 0, Eax, 1 << 2, "power management but ARAT"),
    keep(7, 0, Ebx, 0x0000_0002, "all but TSC_ADJUST, which KVM provides"),
    keep(7, 0, Ecx, 0, "everything"),
    keep(7, 0, Edx, 0x8C00_0000, "all but IBRS, STIBP, SSBD"),
    keep(7, 1, Eax, 0, "everything"),
    keep(7, 1, Ebx, 0, "everything"),
    keep(7, 1, Ecx, 0, "everything"),
    keep(7, 1, Edx, 0, "everything"),
    keep(7, 2, Edx, 0, "everything"),
    keep(0xD, 0, Eax, 0x3, "extended state beyond SSE"),
    keep(0xD, 1, Eax, 0, "everything"),
    keep(0xD, 1, Ecx, 0, "supervisor state"),
    keep(0x14, 0, Ebx, 0, "processor trace"),
    keep(0x1D, 0, Eax, 0, "AMX tiles"),
    keep(0x8000_0001, 0, Ecx, 0x0000_0001, "all but LAHF"),
    keep(0x8000_0001, 0, Edx, 0x2993_FBFF, "1 GiB pages, AMD's extensions"),
    keep(0x8000_0008, 0, Ebx, 0x0100_D000, "all but IBPB, IBRS, STIBP, SSBD"),
    keep(0x8000_000A, 0, Edx, 0, "nested virtualization"),
    keep(0x8000_0021, 0, Eax, 0, "later AMD features"),
];

/// All templates.
pub const TEMPLATES: &[Template] = &[
    Template { name: "host", about: "everything that KVM supports on this host", masks: &[] },
    Template {
        name: "x86-64-v3",
        about: "AVX2 and no more: for hosts of one vendor from Haswell or Zen on",
        masks: V3,
    },
    Template {
        name: "x86-64-v2",
        about: "SSE4.2 and no more: for hosts of one vendor from Nehalem or Bulldozer on",
        masks: V2,
    },
];

/// Hidden on software backends only: their emulator of guest kernels lacks `cmpxchg16b`.
const SOFTWARE_QUIRK: Mask =
    keep(1, 0, Ecx, !(1 << 13), "CMPXCHG16B (this KVM backend cannot emulate it)");

/// The template called `name`.
pub fn find(name: &str) -> Option<&'static Template> {
    TEMPLATES.iter().find(|t| t.name == name)
}

/// What a guest's vCPUs have in common.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// What stands behind KVM.
    pub backend: Backend,
    /// The LAPIC timer has TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Frequency of the guest TSC.
    pub tsc_khz: u32,
}

impl Template {
    /// The CPUID of vCPU `vcpu`, made from what KVM supports.
    pub fn apply(
        &self,
        supported: &[CpuidEntry],
        platform: &Platform,
        vcpu: u32,
    ) -> Vec<CpuidEntry> {
        let mut entries = supported.to_vec();
        for mask in self.masks {
            mask.apply(&mut entries);
        }
        complete(entries, platform, vcpu)
    }
}

/// The CPUID of vCPU `vcpu` of a guest that is shown `entries`: with its topology, and what
/// depends on how it is run.
pub fn complete(mut entries: Vec<CpuidEntry>, platform: &Platform, vcpu: u32) -> Vec<CpuidEntry> {
    if platform.backend == Backend::Software {
        SOFTWARE_QUIRK.apply(&mut entries);
    }
    for entry in &mut entries {
        features(entry, platform);
        topology(entry, platform.vcpus, vcpu);
    }
    extended_topology(&mut entries, platform.vcpus, vcpu);
    hypervisor_timing(&mut entries, platform.tsc_khz);
    entries
}

impl Mask {
    fn apply(&self, entries: &mut [CpuidEntry]) {
        for entry in entries {
            if entry.function == self.function && entry.index == self.index {
                let register = match self.register {
                    Eax => &mut entry.eax,
                    Ebx => &mut entry.ebx,
                    Ecx => &mut entry.ecx,
                    Edx => &mut entry.edx,
                };
                *register &= self.keep;
            }
        }
    }
}

/// Features that depend on how we run the guest, not on the CPU.
fn features(entry: &mut CpuidEntry, platform: &Platform) {
    match entry.function {
        1 => {
            entry.ecx &= !(1 << 5); // VMX: the state of nested guests is not saved
            entry.ecx |= 1 << 31; // a hypervisor is present
            entry.ecx |= 1 << 21; // x2APIC, which KVM emulates
            if platform.tsc_deadline {
                entry.ecx |= 1 << 24;
            } else {
                entry.ecx &= !(1 << 24);
            }
        }
        // SVM: as VMX.
        0x8000_0001 => entry.ecx &= !(1 << 2),
        // An invariant TSC would promise a frequency that a move may not keep.
        0x8000_0007 => entry.edx &= !(1 << 8),
        // Performance counters are not saved.
        0xA => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// Bits of an APIC id that number the cores of the package.
fn core_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

fn topology(entry: &mut CpuidEntry, vcpus: u32, vcpu: u32) {
    let ids = 1u32 << core_bits(vcpus);
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0xFFFF) | (ids << 16) | (vcpu << 24);
            entry.edx = if vcpus > 1 { entry.edx | (1 << 28) } else { entry.edx & !(1 << 28) };
        }
        // Caches (Intel): levels 1 and 2 belong to a core, level 3 to the package.
        4 if entry.eax & 0x1F != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { ids - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3FFF) | (sharing << 14) | ((ids - 1) << 26);
        }
        // The same (AMD), where nothing counts cores.
        0x8000_001D if entry.eax & 0x1F != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3FFF) | (sharing << 14);
        }
        // AMD: number of threads in the package, size of the core id.
        0x8000_0008 => entry.ecx = (entry.ecx & !0xF0FF) | (core_bits(vcpus) << 12) | (vcpus - 1),
        // AMD: extended APIC id, one thread in a core, one node.
        0x8000_001E => (entry.eax, entry.ebx, entry.ecx) = (vcpu, vcpu, 0),
        _ => {}
    }
}

/// Leaves 0xB and 0x1F, if the host has them: level 0 is threads of a core, level 1 cores of the
/// package. All levels are made anew, because KVM may name the first only (Linux 6.2 and newer).
fn extended_topology(entries: &mut Vec<CpuidEntry>, vcpus: u32, vcpu: u32) {
    for function in [0xB, 0x1F] {
        let before = entries.len();
        entries.retain(|e| e.function != function);
        if entries.len() == before {
            continue;
        }
        let levels = [(0, 1, 1), (core_bits(vcpus), vcpus, 2), (0, 0, 0)];
        for (index, (eax, ebx, kind)) in (0..).zip(levels) {
            entries.push(CpuidEntry {
                function,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx: (kind << 8) | index,
                edx: vcpu,
            });
        }
    }
}

/// Leaf `0x4000_0010` tells frequencies, so that a guest need not calibrate against a timer chip.
fn hypervisor_timing(entries: &mut Vec<CpuidEntry>, tsc_khz: u32) {
    const LEAF: u32 = 0x4000_0010;
    /// KVM's LAPIC timer runs at 1 GHz.
    const APIC_BUS_KHZ: u32 = 1_000_000;
    if let Some(first) = entries.iter_mut().find(|e| e.function == 0x4000_0000) {
        first.eax = first.eax.max(LEAF);
    }
    entries.retain(|e| e.function != LEAF);
    entries.push(CpuidEntry {
        function: LEAF,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..CpuidEntry::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> CpuidEntry {
        CpuidEntry {
            function,
            index,
            flags: 0,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        }
    }

    fn platform(vcpus: u32, backend: Backend) -> Platform {
        Platform { vcpus, backend, tsc_deadline: true, tsc_khz: 2_000_000 }
    }

    #[test]
    fn templates_only_take_away() {
        let all: Vec<_> = [(1, 0), (7, 0), (7, 1), (0xD, 0)].map(|(f, i)| entry(f, i)).into();
        for template in TEMPLATES {
            for (before, after) in
                all.iter().zip(template.apply(&all, &platform(2, Backend::Hardware), 0))
            {
                assert_eq!(after.ecx & !before.ecx, 0);
                assert_eq!(after.edx & !before.edx, 0);
            }
        }
    }

    /// Nested guests would not survive a save, so no template offers what runs them.
    #[test]
    fn nothing_offers_nested_virtualization() {
        for template in TEMPLATES {
            let leaves = [entry(1, 0), entry(0x8000_0001, 0)];
            let out = template.apply(&leaves, &platform(1, Backend::Hardware), 0);
            assert_eq!((out[0].ecx & 1 << 5, out[1].ecx & 1 << 2), (0, 0), "{}", template.name);
        }
    }

    #[test]
    fn topology_numbers_every_vcpu() {
        let host = find("host").unwrap();
        for vcpus in [1, 2, 3, 8, 32] {
            for vcpu in 0..vcpus {
                let platform = platform(vcpus, Backend::Hardware);
                let out = host.apply(&[entry(1, 0), entry(0xB, 0)], &platform, vcpu);
                assert_eq!(out[0].ebx >> 24, vcpu);
                assert!((out[0].ebx >> 16) & 0xFF >= vcpus);
                let level = |index| {
                    let is_it = |e: &&CpuidEntry| (e.function, e.index) == (0xB, index);
                    let found: Vec<_> = out.iter().filter(is_it).collect();
                    assert_eq!(found.len(), 1);
                    assert_eq!(found[0].flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
                    assert_eq!(found[0].edx, vcpu);
                    *found[0]
                };
                let (threads, cores, end) = (level(0), level(1), level(2));
                assert_eq!((threads.eax, threads.ebx, threads.ecx >> 8), (0, 1, 1));
                assert_eq!((cores.ebx, cores.ecx), (vcpus, 0x201));
                assert!(vcpu >> cores.eax == 0, "all cores are in package 0");
                assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
            }
        }
    }

    #[test]
    fn topology_leaves_the_host_lacks_are_not_made_up() {
        let host = find("host").unwrap();
        let out = host.apply(&[entry(1, 0), entry(0xB, 1)], &platform(2, Backend::Hardware), 0);
        let made = |function| out.iter().filter(|e| e.function == function).count();
        assert_eq!((made(0xB), made(0x1F)), (3, 0));
    }

    #[test]
    fn the_quirk_is_for_software_backends_only() {
        let host = find("host").unwrap();
        let leaf = [entry(1, 0)];
        let bit = |b| host.apply(&leaf, &platform(1, b), 0)[0].ecx & (1 << 13);
        assert_ne!(bit(Backend::Hardware), 0);
        assert_eq!(bit(Backend::Software), 0);
    }
}
