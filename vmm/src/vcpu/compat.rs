//! Whether this host can show a saved guest the CPU that it knows. Pure.
//!
//! KVM takes a CPUID that promises more than the host has, and the guest then dies at some later
//! instruction. So the promise is compared before anything is restored, and what is missing is
//! named. Bits are those of the Intel SDM, volume 2, CPUID, and of the AMD APM, volume 3.

use std::fmt;

use super::template::Register::{self, Eax, Ebx, Ecx, Edx};
use crate::state::v1::CpuidEntry;

/// Registers of leaves that hold one feature in each bit; the bits that count.
const FEATURES: &[(u32, u32, Register, u32)] = &[
    // Not OSXSAVE, which follows the guest's CR4; nor x2APIC, TSC deadline and the hypervisor
    // bit, which KVM provides on every host.
    (1, 0, Ecx, !(1 << 27 | 1 << 21 | 1 << 24 | 1 << 31)),
    // Not HTT, which follows the topology.
    (1, 0, Edx, !(1 << 28)),
    (7, 0, Ebx, u32::MAX),
    (7, 0, Ecx, !(1 << 4)), // OSPKE follows CR4
    (7, 0, Edx, u32::MAX),
    (7, 1, Eax, u32::MAX),
    (7, 1, Edx, u32::MAX),
    (0xD, 0, Eax, u32::MAX),
    (0xD, 1, Eax, u32::MAX),
    (0x8000_0001, 0, Ecx, u32::MAX),
    (0x8000_0001, 0, Edx, u32::MAX),
    (0x8000_0008, 0, Ebx, u32::MAX),
];

/// Names of features that guests are likely to use.
const NAMES: &[(u32, u32, Register, u32, &str)] = &[
    (1, 0, Ecx, 0, "SSE3"),
    (1, 0, Ecx, 1, "PCLMULQDQ"),
    (1, 0, Ecx, 9, "SSSE3"),
    (1, 0, Ecx, 12, "FMA"),
    (1, 0, Ecx, 13, "CMPXCHG16B"),
    (1, 0, Ecx, 17, "PCID"),
    (1, 0, Ecx, 19, "SSE4.1"),
    (1, 0, Ecx, 20, "SSE4.2"),
    (1, 0, Ecx, 22, "MOVBE"),
    (1, 0, Ecx, 23, "POPCNT"),
    (1, 0, Ecx, 25, "AES"),
    (1, 0, Ecx, 26, "XSAVE"),
    (1, 0, Ecx, 28, "AVX"),
    (1, 0, Ecx, 29, "F16C"),
    (1, 0, Ecx, 30, "RDRAND"),
    (7, 0, Ebx, 0, "FSGSBASE"),
    (7, 0, Ebx, 3, "BMI1"),
    (7, 0, Ebx, 5, "AVX2"),
    (7, 0, Ebx, 7, "SMEP"),
    (7, 0, Ebx, 8, "BMI2"),
    (7, 0, Ebx, 9, "ERMS"),
    (7, 0, Ebx, 10, "INVPCID"),
    (7, 0, Ebx, 16, "AVX512F"),
    (7, 0, Ebx, 17, "AVX512DQ"),
    (7, 0, Ebx, 18, "RDSEED"),
    (7, 0, Ebx, 19, "ADX"),
    (7, 0, Ebx, 20, "SMAP"),
    (7, 0, Ebx, 21, "AVX512IFMA"),
    (7, 0, Ebx, 23, "CLFLUSHOPT"),
    (7, 0, Ebx, 24, "CLWB"),
    (7, 0, Ebx, 28, "AVX512CD"),
    (7, 0, Ebx, 29, "SHA"),
    (7, 0, Ebx, 30, "AVX512BW"),
    (7, 0, Ebx, 31, "AVX512VL"),
    (7, 0, Ecx, 1, "AVX512VBMI"),
    (7, 0, Ecx, 2, "UMIP"),
    (7, 0, Ecx, 3, "PKU"),
    (7, 0, Ecx, 6, "AVX512VBMI2"),
    (7, 0, Ecx, 8, "GFNI"),
    (7, 0, Ecx, 9, "VAES"),
    (7, 0, Ecx, 10, "VPCLMULQDQ"),
    (7, 0, Ecx, 11, "AVX512VNNI"),
    (7, 0, Ecx, 16, "LA57"),
    (7, 0, Ecx, 22, "RDPID"),
    (7, 0, Edx, 4, "FSRM"),
    (7, 0, Edx, 14, "SERIALIZE"),
    (7, 0, Edx, 24, "AMX-TILE"),
    (7, 0, Edx, 26, "IBRS"),
    (7, 0, Edx, 27, "STIBP"),
    (7, 0, Edx, 29, "ARCH_CAPABILITIES"),
    (7, 0, Edx, 31, "SSBD"),
    (7, 1, Eax, 4, "AVX-VNNI"),
    (7, 1, Eax, 5, "AVX512-BF16"),
    (0xD, 0, Eax, 2, "AVX state"),
    (0xD, 0, Eax, 5, "AVX-512 state"),
    (0xD, 0, Eax, 9, "PKRU state"),
    (0xD, 0, Eax, 18, "AMX state"),
    (0xD, 1, Eax, 0, "XSAVEOPT"),
    (0xD, 1, Eax, 1, "XSAVEC"),
    (0xD, 1, Eax, 3, "XSAVES"),
    (0x8000_0001, 0, Ecx, 5, "LZCNT"),
    (0x8000_0001, 0, Ecx, 6, "SSE4A"),
    (0x8000_0001, 0, Edx, 20, "NX"),
    (0x8000_0001, 0, Edx, 26, "1 GiB pages"),
    (0x8000_0001, 0, Edx, 27, "RDTSCP"),
];

/// What a host lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The CPU is of another vendor: (saved, here).
    Vendor(String, String),
    /// Features, by name or by place.
    Features(Vec<String>),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendor(saved, here) => write!(
                f,
                "the guest knows a CPU of {saved}, this host's is of {here}: use a host of the same vendor"
            ),
            Self::Features(names) => write!(
                f,
                "this host's CPU or KVM lacks {}, which the guest was promised: use a host that has it, or start the guest with a CPU template that all hosts have (migrate cpu-template)",
                names.join(", ")
            ),
        }
    }
}

fn register(entry: &CpuidEntry, register: Register) -> u32 {
    match register {
        Eax => entry.eax,
        Ebx => entry.ebx,
        Ecx => entry.ecx,
        Edx => entry.edx,
    }
}

fn find(entries: &[CpuidEntry], function: u32, index: u32) -> Option<&CpuidEntry> {
    entries.iter().find(|e| e.function == function && e.index == index)
}

fn vendor(entries: &[CpuidEntry]) -> Option<String> {
    let leaf = find(entries, 0, 0)?;
    let bytes: Vec<u8> =
        [leaf.ebx, leaf.edx, leaf.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What the host, whose KVM supports `supported`, lacks of a guest's `promised` CPUID.
pub fn lack(promised: &[CpuidEntry], supported: &[CpuidEntry]) -> Option<Lack> {
    if let (Some(saved), Some(here)) = (vendor(promised), vendor(supported))
        && saved != here
    {
        return Some(Lack::Vendor(saved, here));
    }
    let mut missing = Vec::new();
    for (function, index, reg, counts) in FEATURES {
        let bits = |entries| find(entries, *function, *index).map_or(0, |e| register(e, *reg));
        let lacking = bits(promised) & !bits(supported) & counts;
        missing.extend((0..32).filter(|b| lacking & (1 << b) != 0).map(|bit| {
            let known = |n: &&(u32, u32, Register, u32, &str)| {
                (n.0, n.1, n.2, n.3) == (*function, *index, *reg, bit)
            };
            let place = || format!("CPUID {function:#x}.{index} {reg:?} bit {bit}");
            NAMES.iter().find(known).map_or_else(place, |n| n.4.to_owned())
        }));
    }
    if missing.is_empty() { None } else { Some(Lack::Features(missing)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ecx: u32) -> CpuidEntry {
        CpuidEntry { function, ecx, ..CpuidEntry::default() }
    }

    #[test]
    fn what_is_missing_is_named() {
        let promised = [leaf(1, 1 << 25 | 1 << 28 | 1 << 31), leaf(0x8000_0001, 1 << 11)];
        let supported = [leaf(1, 1 << 25)];
        let lack = lack(&promised, &supported).unwrap();
        assert_eq!(
            lack,
            Lack::Features(vec!["AVX".into(), "CPUID 0x80000001.0 Ecx bit 11".into()])
        );
        assert!(lack.to_string().contains("AVX"));
    }

    #[test]
    fn a_richer_host_lacks_nothing() {
        assert_eq!(lack(&[leaf(1, 1 << 25)], &[leaf(1, u32::MAX)]), None);
        assert_eq!(lack(&[leaf(1, 1 << 21 | 1 << 24 | 1 << 27)], &[leaf(1, 0)]), None);
    }

    #[test]
    fn another_vendor_is_refused() {
        let of = |text: &[u8; 4]| CpuidEntry { ebx: u32::from_le_bytes(*text), ..leaf(0, 0) };
        assert!(matches!(lack(&[of(b"Auth")], &[of(b"Genu")]), Some(Lack::Vendor(..))));
    }
}
