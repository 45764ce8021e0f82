//! The description of a machine, checked on construction: a config that exists is valid.

use serde::{Deserialize, Serialize};

use crate::cpu::CpuModel;
use crate::memory::layout;

/// Least RAM of a guest.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Most RAM of a guest: what the device's page indices and tables are laid out for.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Bytes of a huge page.
pub const HUGE_PAGE: u64 = 2 << 20;
/// Most vCPUs of a guest.
pub const MAX_VCPUS: u32 = 32;

/// Why a description is refused. The text says what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// RAM size out of range.
    #[error(
        "memory of {0} bytes is out of range: give between {MIN_MEMORY} (16M) and {MAX_MEMORY} (1T)"
    )]
    MemoryRange(u64),
    /// RAM size not a multiple of the page size in use.
    #[error("memory of {bytes} bytes is not a multiple of the page size {page}")]
    MemoryAlign {
        /// Asked for.
        bytes: u64,
        /// 4096, or 2 MiB with huge pages.
        page: u64,
    },
    /// vCPU count out of range.
    #[error("{0} vCPUs are out of range: give between 1 and {MAX_VCPUS}")]
    Vcpus(u32),
}

/// Size and backing of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawMemory")]
pub struct MemoryConfig {
    bytes: u64,
    huge_pages: bool,
}

#[derive(Deserialize)]
struct RawMemory {
    bytes: u64,
    huge_pages: bool,
}

impl TryFrom<RawMemory> for MemoryConfig {
    type Error = ConfigError;
    fn try_from(raw: RawMemory) -> Result<Self, ConfigError> {
        Self::new(raw.bytes, raw.huge_pages)
    }
}

impl MemoryConfig {
    /// `bytes` of RAM, on 2 MiB pages if `huge_pages`.
    pub fn new(bytes: u64, huge_pages: bool) -> Result<Self, ConfigError> {
        let page = if huge_pages { HUGE_PAGE } else { layout::PAGE_SIZE };
        if !bytes.is_multiple_of(page) {
            return Err(ConfigError::MemoryAlign { bytes, page });
        }
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
            return Err(ConfigError::MemoryRange(bytes));
        }
        Ok(Self { bytes, huge_pages })
    }

    /// Bytes of RAM.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether RAM lies on 2 MiB pages.
    pub fn huge_pages(&self) -> bool {
        self.huge_pages
    }
}

/// Number of vCPUs, 1 to 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VcpuCount(u32);

impl TryFrom<u32> for VcpuCount {
    type Error = ConfigError;
    fn try_from(n: u32) -> Result<Self, ConfigError> {
        if (1..=MAX_VCPUS).contains(&n) { Ok(Self(n)) } else { Err(ConfigError::Vcpus(n)) }
    }
}

impl From<VcpuCount> for u32 {
    fn from(n: VcpuCount) -> u32 {
        n.0
    }
}

impl VcpuCount {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// How KVM reports dirty pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirtyTracking {
    /// A bitmap for each memory slot, cleared by hand where the kernel offers it.
    #[default]
    Log,
    /// A ring of dirty pages for each vCPU.
    Ring,
    /// The bitmap as kernels before 5.0 offer it: reading it re-arms every page at once. `Log`
    /// falls back to it; named here so that the fall-back can be tested.
    PlainLog,
}

/// The parts of a machine that the guest can see and that do not name anything on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// RAM.
    pub memory: MemoryConfig,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Name of the CPU template (see [`crate::vcpu::template`]), or of `cpu_model`.
    pub cpu_template: String,
    /// The CPU that the guest is shown, if it is none of the named templates.
    #[serde(default)]
    pub cpu_model: Option<CpuModel>,
    /// How dirty pages are reported.
    pub dirty_tracking: DirtyTracking,
    /// The guest's identity: what the VM generation id is derived from.
    pub generation_id: [u8; 16],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_bounds() {
        assert!(MemoryConfig::new(16 << 20, false).is_ok());
        assert_eq!(
            MemoryConfig::new((16 << 20) + 1, false),
            Err(ConfigError::MemoryAlign { bytes: (16 << 20) + 1, page: 4096 })
        );
        assert_eq!(
            MemoryConfig::new((17 << 20) + 4096, true),
            Err(ConfigError::MemoryAlign { bytes: (17 << 20) + 4096, page: 2 << 20 })
        );
        for bytes in [0, 4096, (1 << 40) + 4096, u64::MAX - 4095] {
            assert_eq!(MemoryConfig::new(bytes, false), Err(ConfigError::MemoryRange(bytes)));
        }
    }

    #[test]
    fn vcpu_bounds() {
        for n in [0, 33, u32::MAX] {
            assert_eq!(VcpuCount::try_from(n), Err(ConfigError::Vcpus(n)));
        }
        assert_eq!(VcpuCount::try_from(32).unwrap().get(), 32);
    }
}
