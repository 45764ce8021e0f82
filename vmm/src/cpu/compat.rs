//! What a host lacks of what a guest was shown. Pure.
//!
//! KVM takes a CPUID that promises more than the host has, and the guest then dies at some later
//! instruction. So the promise is compared before anything is restored, and what is missing is
//! named.

use std::fmt;

use super::rules::{self, How, Rule};
use super::{ARCH_CAPABILITIES, CpuModel, Leaf, Register, features};

/// Bits that KVM provides on every host or that follow the guest's shape: x2APIC, TSC deadline,
/// the hypervisor bit; HTT.
const PROVIDED: &[(u32, u32, Register, u32)] =
    &[(1, 0, Register::Ecx, 1 << 21 | 1 << 24 | 1 << 31), (1, 0, Register::Edx, 1 << 28)];

/// What a host lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The CPU is of another vendor: (the guest's, here).
    Vendor(String, String),
    /// Features, by name or by place.
    Features(Vec<String>),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendor(guest, here) => {
                write!(f, "the guest knows a CPU of {guest}, this host's is of {here}")
            }
            Self::Features(names) => write!(
                f,
                "this host's CPU or KVM lacks {}, which the guest was promised",
                names.join(", ")
            ),
        }
    }
}

impl Lack {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Vendor(..) => "use a host of the same vendor",
            Self::Features(_) => {
                "use a host that has it, or start the guest with what all hosts have: migrate host \
                 cpu -o FILE, then run it with --cpu-template @FILE"
            }
        }
    }
}

/// What a host that can show `supported` lacks of the `promised` CPU of a guest.
pub fn lack(promised: &CpuModel, supported: &CpuModel) -> Option<Lack> {
    let (guest, here) = (promised.vendor(), supported.vendor());
    if promised.leaf(0, 0).is_some() && supported.leaf(0, 0).is_some() && guest != here {
        return Some(Lack::Vendor(guest, here));
    }
    let missing = missing(promised, supported);
    if missing.is_empty() { None } else { Some(Lack::Features(missing)) }
}

/// Whether KVM takes two TSC frequencies for the same, and does not scale. A quarter of a
/// thousandth is what NTP corrects; KVM tolerates as much.
pub fn same_frequency(guest_khz: u32, host_khz: u32) -> bool {
    host_khz.abs_diff(guest_khz) <= host_khz / 4000
}

/// The names of everything that `promised` has and `supported` has not.
pub fn missing(promised: &CpuModel, supported: &CpuModel) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: String| {
        if !names.contains(&name) {
            names.push(name);
        }
    };
    for leaf in &promised.leaves {
        let (function, subleaf) = leaf.place();
        match rules::of(function, subleaf) {
            Some(How::Registers(rules)) => {
                for (register, rule) in Register::ALL.into_iter().zip(rules) {
                    lacking(leaf, register, rule, supported).into_iter().for_each(&mut add);
                }
            }
            Some(How::Whole(_)) => {
                differing(leaf, promised, supported).into_iter().for_each(&mut add);
            }
            None => {}
        }
    }
    capabilities(promised, supported).into_iter().for_each(&mut add);
    names
}

fn lacking(leaf: &Leaf, register: Register, rule: Rule, supported: &CpuModel) -> Vec<String> {
    let (function, subleaf) = leaf.place();
    let (guest, here) = (leaf.get(register), supported.register(function, subleaf, register));
    match rule {
        Rule::Bits { and, .. } => {
            let provided = PROVIDED
                .iter()
                .filter(|p| (p.0, p.1, p.2) == (function, subleaf, register))
                .fold(0, |all, p| all | p.3);
            let lacking = guest & !here & and & !provided;
            let bits = (0..32).filter(|bit| lacking & (1 << bit) != 0);
            bits.map(|bit| features::name(function, subleaf, register, bit)).collect()
        }
        // Addresses: a guest uses the bits beyond as it likes.
        Rule::Fields(_) if function == 0x8000_0008 => {
            let kinds = [(0u32, "physical"), (8, "linear")];
            let wider = kinds
                .into_iter()
                .filter(|(first, _)| (guest >> first) & 0xFF > (here >> first) & 0xFF && here != 0);
            let name = |(first, kind): (u32, &str)| {
                format!("{}-bit {kind} addresses", (guest >> first) & 0xFF)
            };
            wider.map(name).collect()
        }
        Rule::Fields(_) | Rule::Zero | Rule::Same | Rule::Min => Vec::new(),
    }
}

/// Things that are described by a whole leaf and are used as they are described: components of the
/// extended state, and tiles.
fn differing(leaf: &Leaf, promised: &CpuModel, supported: &CpuModel) -> Option<String> {
    let (function, subleaf) = leaf.place();
    let here = supported.leaf(function, subleaf);
    let same = here.is_some_and(|here| Register::ALL.iter().all(|r| here.get(*r) == leaf.get(*r)));
    let used = match function {
        0xD => {
            let enabled = |model: &CpuModel| {
                model.register(0xD, 0, Register::Eax) | model.register(0xD, 1, Register::Ecx)
            };
            // One that is not there at all is named by its bit.
            subleaf < 32 && enabled(promised) & enabled(supported) & (1 << subleaf) != 0
        }
        0x1D | 0x1E => promised.register(7, 0, Register::Edx) & (1 << 24) != 0 && here.is_some(),
        _ => false,
    };
    (used && !same).then(|| format!("the layout of CPUID {function:#x}.{subleaf}"))
}

/// Weaknesses that the guest was told are not there, and those that it was not told of.
fn capabilities(promised: &CpuModel, supported: &CpuModel) -> Vec<String> {
    if !promised.has_capabilities() {
        return Vec::new();
    }
    let (guest, here) = (promised.msr(ARCH_CAPABILITIES), supported.msr(ARCH_CAPABILITIES));
    let lacking = guest & !here & rules::CAPABILITIES_AND;
    let untold = here & !guest & rules::CAPABILITIES_OR;
    let bits = |set: u64| (0..64).filter(move |bit| set & (1 << bit) != 0);
    let untold = bits(untold).map(|bit| format!("no_{}", features::capability(bit)));
    bits(lacking).map(features::capability).chain(untold).collect()
}
