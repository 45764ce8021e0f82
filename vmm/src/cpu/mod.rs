//! What a CPU shows through CPUID and the registers that go with it: as a value, as a text that
//! can be kept in a file, what hosts have in common, what one lacks of another. Pure but for
//! [`host`], which asks KVM.
//!
//! The same type, [`CpuModel`], describes what a host can show its guests, what a guest was shown,
//! and what a template is made of. It never says what a guest's topology is like: that is made
//! anew for each guest.

pub mod baseline;
pub mod compat;
pub mod features;
mod hex;
pub mod host;
mod names;
pub mod rules;

#[cfg(test)]
mod tests;

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
use serde::{Deserialize, Serialize};

pub use crate::state::v1::{CpuidEntry, MsrEntry};

/// Most leaves of a model that comes from outside.
pub const MAX_LEAVES: usize = 256;
/// Most registers of a model that comes from outside.
pub const MAX_MSRS: usize = 64;
/// `IA32_ARCH_CAPABILITIES`: which weaknesses the CPU has not, and a few that it has.
pub const ARCH_CAPABILITIES: u32 = 0x10A;

/// One of the four registers of a CPUID answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Register {
    /// All, in the order of a [`Leaf`].
    pub const ALL: [Self; 4] = [Self::Eax, Self::Ebx, Self::Ecx, Self::Edx];
}

/// What CPUID answers to one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    /// EAX of the question.
    #[serde(with = "hex::short")]
    pub leaf: u32,
    /// ECX of the question, if it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subleaf: Option<u32>,
    /// Answer.
    #[serde(with = "hex::word")]
    pub eax: u32,
    /// Answer.
    #[serde(with = "hex::word")]
    pub ebx: u32,
    /// Answer.
    #[serde(with = "hex::word")]
    pub ecx: u32,
    /// Answer.
    #[serde(with = "hex::word")]
    pub edx: u32,
}

impl Leaf {
    /// A leaf that answers nothing.
    pub fn blank(leaf: u32, subleaf: Option<u32>) -> Self {
        Self { leaf, subleaf, eax: 0, ebx: 0, ecx: 0, edx: 0 }
    }

    /// Question: leaf, and subleaf or 0.
    pub fn place(&self) -> (u32, u32) {
        (self.leaf, self.subleaf.unwrap_or(0))
    }

    /// One register of the answer.
    pub fn get(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    /// The same register, to be changed.
    pub fn get_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// A model-specific register that tells of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Msr {
    /// Number.
    #[serde(with = "hex::short")]
    pub index: u32,
    /// Value.
    #[serde(with = "hex::long")]
    pub value: u64,
}

/// What a CPU shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    /// By leaf and subleaf, each once.
    pub leaves: Vec<Leaf>,
    /// By number, each once.
    #[serde(default)]
    pub msrs: Vec<Msr>,
}

/// The CPU of a guest that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// What it is shown, topology included.
    pub model: CpuModel,
    /// Frequency of its TSC; 0 if it is not known.
    pub tsc_khz: u32,
}

/// Why a model from outside is no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Too much of something.
    #[error("it has {found} {what}, more than the {limit} that are read")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// So many.
        found: usize,
        /// At most.
        limit: usize,
    },
    /// Something is there twice.
    #[error("{0} is there twice")]
    Twice(String),
    /// Leaf 0, which names the vendor, is missing, or leaf 1.
    #[error("CPUID leaf {0:#x} is missing")]
    Missing(u32),
    /// A register that a model must not set.
    #[error("MSR {0:#x} is none that a CPU model sets")]
    Register(u32),
}

impl CpuModel {
    /// From KVM's form.
    pub fn from_entries(entries: &[CpuidEntry], msrs: Vec<Msr>) -> Self {
        let leaf = |e: &CpuidEntry| Leaf {
            leaf: e.function,
            subleaf: (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(e.index),
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        };
        let mut model = Self { leaves: entries.iter().map(leaf).collect(), msrs };
        model.leaves.sort_by_key(Leaf::place);
        model.leaves.dedup_by_key(|l| l.place());
        model.msrs.sort_by_key(|m| m.index);
        model
    }

    /// In KVM's form.
    pub fn entries(&self) -> Vec<CpuidEntry> {
        let entry = |l: &Leaf| CpuidEntry {
            function: l.leaf,
            index: l.subleaf.unwrap_or(0),
            flags: l.subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
            eax: l.eax,
            ebx: l.ebx,
            ecx: l.ecx,
            edx: l.edx,
        };
        self.leaves.iter().map(entry).collect()
    }

    /// Checks what came from outside, and puts it in order.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn checked(mut self) -> Result<Self, ModelError> {
        let limit = |what, found, limit| {
            if found > limit { Err(ModelError::TooMany { what, found, limit }) } else { Ok(()) }
        };
        limit("CPUID leaves", self.leaves.len(), MAX_LEAVES)?;
        limit("MSRs", self.msrs.len(), MAX_MSRS)?;
        self.leaves.sort_by_key(Leaf::place);
        self.msrs.sort_by_key(|m| m.index);
        let twice = self.leaves.windows(2).find(|w| w[0].place() == w[1].place());
        if let Some([leaf, _]) = twice {
            let (leaf, subleaf) = leaf.place();
            return Err(ModelError::Twice(format!("CPUID leaf {leaf:#x}.{subleaf}")));
        }
        if let Some([msr, _]) = self.msrs.windows(2).find(|w| w[0].index == w[1].index) {
            return Err(ModelError::Twice(format!("MSR {:#x}", msr.index)));
        }
        if let Some(msr) = self.msrs.iter().find(|m| m.index != ARCH_CAPABILITIES) {
            return Err(ModelError::Register(msr.index));
        }
        match [0, 1].into_iter().find(|leaf| self.leaf(*leaf, 0).is_none()) {
            Some(missing) => Err(ModelError::Missing(missing)),
            None => Ok(self),
        }
    }

    /// The answer to one question, if there is one.
    pub fn leaf(&self, leaf: u32, subleaf: u32) -> Option<&Leaf> {
        self.leaves.iter().find(|l| l.place() == (leaf, subleaf))
    }

    /// One register; 0 if there is no such leaf, as the CPU itself answers.
    pub fn register(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        self.leaf(leaf, subleaf).map_or(0, |l| l.get(register))
    }

    /// A model-specific register; 0 if it is not there.
    pub fn msr(&self, index: u32) -> u64 {
        self.msrs.iter().find(|m| m.index == index).map_or(0, |m| m.value)
    }

    /// Whether it shows that there is an `IA32_ARCH_CAPABILITIES`.
    pub fn has_capabilities(&self) -> bool {
        self.register(7, 0, Register::Edx) & (1 << 29) != 0
    }

    /// The vendor's name, as leaf 0 has it.
    pub fn vendor(&self) -> String {
        let leaf = self.leaf(0, 0).copied().unwrap_or_else(|| Leaf::blank(0, None));
        let bytes: Vec<u8> =
            [leaf.ebx, leaf.edx, leaf.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.into_iter().filter(u8::is_ascii_graphic).map(char::from).collect()
    }

    /// Family, model and stepping, as the vendors' manuals count them.
    pub fn signature(&self) -> (u32, u32, u32) {
        let eax = self.register(1, 0, Register::Eax);
        let base = (eax >> 8) & 0xF;
        let family = if base == 0xF { base + ((eax >> 20) & 0xFF) } else { base };
        let low = (eax >> 4) & 0xF;
        let model = if base == 0xF || base == 6 { low | ((eax >> 12) & 0xF0) } else { low };
        (family, model, eax & 0xF)
    }

    /// Bits of physical and of linear addresses; 36 and 48 where the CPU does not say.
    pub fn address_bits(&self) -> (u32, u32) {
        let eax = self.register(0x8000_0008, 0, Register::Eax);
        if eax == 0 { (36, 48) } else { (eax & 0xFF, (eax >> 8) & 0xFF) }
    }
}
