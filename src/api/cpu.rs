//! CPUs in the API: what a guest is shown, what hosts have, what they have in common.

use serde::{Deserialize, Serialize};
use vmm::cpu::{CpuModel, Shown};

use super::ErrorBody;
use crate::config::TemplateFile;

/// The CPU of a guest: `GET /v1/cpu` of its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCpu {
    /// Version of this document.
    pub schema: u32,
    /// What it is shown.
    #[serde(flatten)]
    pub shown: Shown,
}

/// A host's CPU, as far as it matters to guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCpu {
    /// Version of this document.
    pub schema: u32,
    /// Vendor, as CPUID has it.
    pub vendor: String,
    /// Family, as the vendor counts.
    pub family: u32,
    /// Model, as the vendor counts.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// What the CPU calls itself.
    pub brand: String,
    /// Bits of a physical address.
    pub physical_bits: u32,
    /// Bits of a linear address.
    pub linear_bits: u32,
    /// Bytes of a vCPU's extended state.
    pub xsave_bytes: u64,
    /// Frequency of a guest's TSC.
    pub tsc_khz: u32,
    /// A guest's TSC can run at another frequency.
    pub tsc_scaling: bool,
    /// KVM runs guests without VMX or SVM.
    pub software_kvm: bool,
    /// Features that this host is set to hide from guests.
    #[serde(default)]
    pub hidden: Vec<String>,
    /// Names of all features that a guest can be shown.
    pub features: Vec<String>,
    /// All that a guest can be shown.
    pub shown: CpuModel,
}

/// What do these hosts have in common?
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CompareRequest {
    /// Names of hosts; all of the site if there are none.
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// What hosts have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CpuComparison {
    /// Version of this document.
    pub schema: u32,
    /// Each host, in the order asked for.
    pub hosts: Vec<ComparedHost>,
    /// Names of the features that all have.
    pub common: Vec<String>,
    /// A template that shows guests no more than all have: the document that a file holds.
    pub template: TemplateFile,
    /// What hinders moves between these hosts all the same, each with its remedy.
    pub problems: Vec<ErrorBody>,
}

/// A host among others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparedHost {
    /// Its name.
    pub name: String,
    /// What it has.
    pub cpu: HostCpu,
    /// What it has beyond what is common.
    pub beyond: Vec<String>,
}
