//! What a guest process tells of its guest.

use std::path::PathBuf;

use jiff::Timestamp;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::api::{DiskTracking, GuestInfo, GuestState};
use crate::config::{DiskDefinition, GuestDefinition};

/// Version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What does not change while the process lives.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The guest.
    pub definition: GuestDefinition,
    /// The right under which it runs.
    pub term: u64,
    /// When the process started.
    pub started: Timestamp,
    /// Socket of the serial console.
    pub console: PathBuf,
    /// How far its clocks were put forward by its load.
    pub loaded_pause_ms: Option<u64>,
}

/// What does.
#[derive(Clone, Debug)]
pub struct Now {
    /// What it is doing.
    pub state: GuestState,
    /// Bytes of RAM in use on the host.
    pub memory_used_bytes: u64,
    /// Share of time, percent.
    pub cpu_share_percent: u8,
    /// Times it was reset.
    pub resets: u64,
    /// Why it crashed.
    pub crash: Option<String>,
    /// How the changes of its disks are tracked.
    pub disk_tracking: Vec<DiskTracking>,
}

impl Facts {
    /// The document.
    pub fn info(&self, now: Now) -> GuestInfo {
        let definition = &self.definition;
        GuestInfo {
            schema: 1,
            name: definition.name.clone(),
            uuid: definition.uuid,
            state: now.state,
            term: self.term,
            pid: std::process::id(),
            version: VERSION.into(),
            started: self.started,
            memory_bytes: definition.memory_bytes,
            memory_used_bytes: now.memory_used_bytes,
            cpus: definition.cpus,
            cpu_ms: cpu_ms(),
            cpu_template: definition.cpu_template.clone(),
            cpu_share_percent: now.cpu_share_percent,
            definition: definition.clone(),
            console: self.console.clone(),
            resets: now.resets,
            crash: now.crash,
            disk_tracking: now.disk_tracking,
            loaded_pause_ms: self.loaded_pause_ms,
        }
    }

    /// Whether it has a disk that it can write.
    pub fn writable_disk(&self) -> bool {
        self.definition.disks.iter().any(|d: &DiskDefinition| !d.read_only)
    }
}

/// CPU time of this process so far, that of ended threads included.
fn cpu_ms() -> u64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0 };
    let ms = usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds();
    u64::try_from(ms).unwrap_or(0)
}
