//! The definition of a guest: the same document in saved files and in the API. (TOML files have a
//! friendlier form of their own.) Fields are only ever added, and an unknown one is ignored, so
//! that an older command can still read a newer guest process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm::cpu::CpuModel;

/// A guest as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own in the user's file")]
pub struct GuestDefinition {
    /// `[a-z0-9][a-z0-9.-]{0,62}`.
    pub name: String,
    /// Identity; made when absent.
    pub uuid: Uuid,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// RAM on huge pages.
    pub huge_pages: bool,
    /// vCPUs.
    pub cpus: u32,
    /// Name of the CPU template.
    pub cpu_template: String,
    /// What the template shows, if it is none of the built-in ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuModel>,
    /// Dirty pages through per-vCPU rings instead of the log.
    pub dirty_ring: bool,
    /// Kernel image; absent if `guest` names a built-in one.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Built-in guest: `scribbler:KEY=VALUE,…`.
    pub guest: Option<String>,
    /// ACPI tables (else an MP table and `virtio_mmio.device=` parameters).
    pub acpi: bool,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskDefinition>,
    /// Network interfaces.
    pub nets: Vec<NetDefinition>,
    /// A virtio console (`hvc0`) beside the serial port.
    pub virtio_console: bool,
    /// A virtio entropy source.
    pub rng: bool,
    /// Context id of a virtio socket.
    pub vsock_cid: Option<u32>,
    /// A file that serial output is appended to, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_file: Option<PathBuf>,
    /// What happens after a crash.
    pub on_crash: OnCrash,
    /// What SIGTERM to the guest process does.
    pub on_host_stop: OnHostStop,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDefinition {
    /// Raw image or block device, absolute.
    pub path: PathBuf,
    /// The guest cannot write it.
    pub read_only: bool,
    /// Other hosts reach the same image at the same path.
    #[serde(default)]
    pub shared: bool,
    /// Host cache.
    pub cache: Cache,
    /// Identity that the guest sees, at most 20 bytes.
    pub serial: String,
}

/// Whether the host's page cache lies between guest and disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// `O_DIRECT`: none.
    #[default]
    None,
    /// The host caches; a guest's flush reaches the disk.
    Writeback,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDefinition {
    /// What it is joined to.
    #[serde(flatten)]
    pub link: NetLink,
    /// MAC address; made once and kept.
    pub mac: [u8; 6],
    /// MTU that the guest is told.
    pub mtu: Option<u16>,
}

/// What a network interface is joined to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetLink {
    /// An existing tap of this name.
    Tap(String),
    /// A tap that is made in this bridge and lives as long as the guest.
    Bridge(String),
    /// The same, in the bridge that `host.toml` of the guest's host calls so.
    Network(String),
}

impl NetLink {
    /// Its tap is made by whoever starts the guest.
    pub fn is_made(&self) -> bool {
        !matches!(self, Self::Tap(_))
    }
}

impl std::fmt::Display for NetLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap {name}"),
            Self::Bridge(name) => write!(f, "bridge {name}"),
            Self::Network(name) => write!(f, "network {name}"),
        }
    }
}

/// What happens after a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCrash {
    /// Keep the process and its memory for a look.
    Keep,
    /// Boot again.
    Restart,
    /// End.
    #[default]
    Stop,
}

/// What SIGTERM to the guest process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnHostStop {
    /// Power button, then deadline, then kill.
    #[default]
    Shutdown,
    /// Save to the state directory.
    Save,
    /// End at once.
    Kill,
}
