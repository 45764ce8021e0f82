//! How each part of CPUID is brought together for several hosts, as a table. What is not in the
//! table is not shown to a guest that is to move. Bits are those of the Intel SDM, volume 2,
//! CPUID, and of the AMD APM, volume 3, appendix E.

/// What several hosts' values of one register become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Zero: it tells of the host, not of what a guest can do.
    Zero,
    /// The value, if all agree; else zero.
    Same,
    /// The smallest.
    Min,
    /// Each of these fields (first bit, number of bits) is a number: the smallest.
    Fields(&'static [(u32, u32)]),
    /// Single bits. Those of `and` must be set on all hosts; those of `or` tell of something that
    /// is *not* there, so one host is enough. All others are zero.
    Bits {
        /// Needed everywhere.
        and: u32,
        /// Needed somewhere.
        or: u32,
    },
}

/// What several hosts' answers to one question become. A leaf that one of them lacks is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Each register by itself: EAX, EBX, ECX, EDX.
    Registers([Rule; 4]),
    /// The leaf describes one thing: these bits of it must agree, or it is dropped.
    Whole([u32; 4]),
}

/// The rule of one leaf.
#[derive(Clone, Copy, Debug)]
pub struct LeafRule {
    /// Leaf.
    pub leaf: u32,
    /// Subleaf; all that have no rule of their own if absent.
    pub subleaf: Option<u32>,
    /// What becomes of it.
    pub how: How,
}

use Rule::{Fields, Min, Same, Zero};

/// All single bits, on all hosts.
const ALL: Rule = and(u32::MAX);

const fn and(and: u32) -> Rule {
    Rule::Bits { and, or: 0 }
}

const fn rule(leaf: u32, subleaf: u32, registers: [Rule; 4]) -> LeafRule {
    LeafRule { leaf, subleaf: Some(subleaf), how: How::Registers(registers) }
}

const fn whole(leaf: u32, mask: [u32; 4]) -> LeafRule {
    LeafRule { leaf, subleaf: None, how: How::Whole(mask) }
}

const FULL: [u32; 4] = [u32::MAX; 4];
/// Caches, without how many threads of the host share them, which follows the guest's topology.
const CACHE: [u32; 4] = [0x3FFF, u32::MAX, u32::MAX, u32::MAX];
/// FPU details that newer CPUs gave up: the last opcode pointer, and the segments with it.
const GIVEN_UP: u32 = 1 << 6 | 1 << 13;

/// The table.
pub const RULES: &[LeafRule] = &[
    rule(0x0, 0, [Min, Same, Same, Same]),
    // EBX: size of a cache line that CLFLUSH takes. ECX: not VMX, nor OSXSAVE, which follows CR4.
    rule(0x1, 0, [Min, Fields(&[(8, 8)]), and(!(1 << 5 | 1 << 27)), ALL]),
    whole(0x2, FULL),
    whole(0x4, CACHE),
    // ARAT and no power management.
    rule(0x6, 0, [and(1 << 2), Zero, Zero, Zero]),
    // Not SGX, whose memory belongs to one host, nor OSPKE, which follows CR4.
    rule(
        0x7,
        0,
        [
            Min,
            Rule::Bits { and: !(1 << 2 | GIVEN_UP), or: GIVEN_UP },
            and(!(1 << 4 | 1 << 30)),
            and(!(1 << 1)),
        ],
    ),
    rule(0x7, 1, [ALL; 4]),
    rule(0x7, 2, [Zero, Zero, Zero, ALL]),
    // Topology is made for each guest; that there is such a leaf is kept.
    rule(0xB, 0, [Zero; 4]),
    // Sizes are worked out from the components that are left.
    rule(0xD, 0, [ALL, Zero, Zero, ALL]),
    rule(0xD, 1, [ALL, Zero, ALL, ALL]),
    whole(0xD, FULL),
    whole(0x14, FULL),
    whole(0x1D, FULL),
    whole(0x1E, FULL),
    rule(0x1F, 0, [Zero; 4]),
    whole(0x24, FULL),
    rule(0x4000_0000, 0, [Min, Same, Same, Same]),
    rule(0x4000_0001, 0, [ALL, Zero, Zero, ALL]),
    rule(0x8000_0000, 0, [Min, Same, Same, Same]),
    // Not SVM.
    rule(0x8000_0001, 0, [Min, Same, and(!(1 << 2)), ALL]),
    // The CPU's name, which is looked at as one.
    rule(0x8000_0002, 0, [Same; 4]),
    rule(0x8000_0003, 0, [Same; 4]),
    rule(0x8000_0004, 0, [Same; 4]),
    rule(0x8000_0005, 0, [Same; 4]),
    rule(0x8000_0006, 0, [Same; 4]),
    // Not the invariant TSC, which would promise a frequency.
    rule(0x8000_0007, 0, [Zero, ALL, Zero, and(!(1 << 8))]),
    // Bits of physical, of linear, of a guest's physical addresses.
    rule(0x8000_0008, 0, [Fields(&[(0, 8), (8, 8), (16, 8)]), ALL, Zero, Zero]),
    rule(0x8000_0019, 0, [Same; 4]),
    rule(0x8000_001A, 0, [ALL, Zero, Zero, Zero]),
    whole(0x8000_001D, CACHE),
    rule(0x8000_001E, 0, [Zero; 4]),
    rule(0x8000_0021, 0, [ALL, Zero, ALL, Zero]),
];

/// The rule for one question.
pub fn of(leaf: u32, subleaf: u32) -> Option<How> {
    let of_leaf = || RULES.iter().filter(|r| r.leaf == leaf);
    let own = of_leaf().find(|r| r.subleaf == Some(subleaf));
    own.or_else(|| of_leaf().find(|r| r.subleaf.is_none())).map(|r| r.how)
}

impl Rule {
    /// What two values become.
    pub fn join(self, a: u32, b: u32) -> u32 {
        match self {
            Self::Zero => 0,
            Self::Same => {
                if a == b {
                    a
                } else {
                    0
                }
            }
            Self::Min => a.min(b),
            Self::Fields(fields) => fields.iter().fold(0, |sum, (first, bits)| {
                let mask = (u32::MAX >> (32 - bits)) << first;
                sum | (a & mask).min(b & mask)
            }),
            Self::Bits { and, or } => (a & b & and) | ((a | b) & or),
        }
    }
}

/// Bits of `IA32_ARCH_CAPABILITIES` that say that something is well, or that a register is there:
/// what Linux names in `msr-index.h`.
pub const CAPABILITIES_AND: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 17
    | 1 << 18
    | 1 << 20
    | 1 << 21
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 62;
/// Those that say that something is wrong: RSBA and RRSBA, predictors that look elsewhere when a
/// return stack is empty.
pub const CAPABILITIES_OR: u64 = 1 << 2 | 1 << 19;

/// What two values of `IA32_ARCH_CAPABILITIES` become.
pub fn join_capabilities(a: u64, b: u64) -> u64 {
    (a & b & CAPABILITIES_AND) | ((a | b) & CAPABILITIES_OR)
}
