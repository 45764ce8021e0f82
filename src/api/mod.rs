//! The contract between the command, scripts and a guest process: requests and answers of the
//! HTTP/JSON API that every guest process serves on its Unix socket (`/v1`, owner-only).
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/guest` | – | [`GuestInfo`] |
//! | `GET /v1/cpu` | – | [`GuestCpu`](cpu::GuestCpu): what the guest is shown of a CPU |
//! | `POST /v1/dirty-rate` | – | [`DirtyRate`]: the guest's writes are watched for half a second |
//! | `POST /v1/pause` | – | [`GuestInfo`]; pausing a paused guest is fine |
//! | `POST /v1/resume` | – | [`GuestInfo`] |
//! | `POST /v1/reset` | – | [`GuestInfo`] |
//! | `POST /v1/stop` | [`StopRequest`] | [`StopResult`], when the guest is gone |
//! | `POST /v1/save` | [`SaveRequest`] | [`SaveResult`] |
//! | `PUT /v1/throttle` | [`ThrottleRequest`] | [`GuestInfo`] |
//! | `GET /v1/wait-console?text=…&timeout_ms=…` | – | [`WaitResult`] |
//!
//! A failed request is answered with a status of 400 or above and an [`ErrorBody`]. Fields are
//! only ever added. Descriptors (the file of a save) travel over a second socket, `fd.sock`: the
//! client sends one byte-string token with one descriptor (`SCM_RIGHTS`) and names the token in
//! its request, because the confined guest process cannot open paths ([`fds`]). How a guest
//! process is started: [`launch`].
//!
//! A guest process writes [`GuestPaths::info`](crate::config::GuestPaths::info) (a [`GuestInfo`])
//! when its guest is ready. Before it removes its runtime directory it leaves an [`ExitRecord`]
//! and the last console log in [`Dirs::exits`](crate::config::Dirs::exits); if it was killed,
//! whoever next finds its lock free does that for it.

pub mod client;
pub mod cpu;
pub mod daemon_client;
mod error;
mod exit;
pub mod fds;
pub mod host;
pub mod launch;
pub mod moving;
pub mod resolve;

pub use error::{ErrorBody, ErrorCode, Failure};
pub use exit::{ExitHow, ExitRecord};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::GuestDefinition;

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Being built or loaded.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Stopped by its user; memory and devices are held.
    Paused,
    /// A save is being written.
    Saving,
    /// Asked to power off.
    Stopping,
    /// Handed to another host; its memory stands still here until that host has confirmed.
    Leaving,
    /// Its memory arrives from another host.
    Arriving,
    /// It crashed and stands still (`on_crash = keep`).
    Crashed,
    /// Its process is gone.
    Stopped,
}

/// How fast a guest writes to its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyRate {
    /// Version of this document.
    pub schema: u32,
    /// Bytes per second that become dirty, each page counted once in the time it was watched for.
    pub bytes_per_s: u64,
    /// How long it was watched.
    pub over_ms: u64,
    /// Memory that was looked at; the rest of a large guest is taken to be like it.
    pub looked_at_bytes: u64,
}

/// Everything there is to know of a guest that has a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestInfo {
    /// Version of this document.
    pub schema: u32,
    /// Name on this host.
    pub name: String,
    /// Identity, kept across moves and saves.
    pub uuid: Uuid,
    /// What it is doing.
    pub state: GuestState,
    /// The right under which it runs; grows with every start.
    pub term: u64,
    /// Process id of its guest process.
    pub pid: u32,
    /// Version of the binary that the guest process runs.
    pub version: String,
    /// When its process started (RFC 3339, UTC).
    pub started: jiff::Timestamp,
    /// RAM.
    pub memory_bytes: u64,
    /// RAM that is in use on the host.
    pub memory_used_bytes: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// CPU time of the guest process so far.
    pub cpu_ms: u64,
    /// Name of the CPU template.
    pub cpu_template: String,
    /// Share of time that vCPUs may run, 1 to 100; 100 is unthrottled.
    pub cpu_share_percent: u8,
    /// The definition it was started with.
    pub definition: GuestDefinition,
    /// Unix socket of its serial console.
    pub console: std::path::PathBuf,
    /// Times it was reset.
    pub resets: u64,
    /// Why it crashed, if it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub crash: Option<String>,
    /// What clock adjustment its last load made, if it was loaded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loaded_pause_ms: Option<u64>,
    /// How the changes of its disks are tracked, for those that it can write.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub disk_tracking: Vec<DiskTracking>,
}

/// How the changes of a disk are tracked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskTracking {
    /// The disk, as its guest knows it.
    pub serial: String,
    /// Identity of the disk; nothing if it is not tracked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disk: Option<Uuid>,
    /// Counts the times that everything counted as changed.
    pub generation: u64,
    /// The open epoch; each backup closes one.
    pub epoch: u32,
    /// Regions of 256 MiB that count as changed if the host loses its power now.
    pub hot_regions: u64,
    /// Why the generation began.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub began: Option<String>,
    /// Why it is not tracked (any more).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

impl DiskTracking {
    /// Of a disk that cannot be tracked.
    pub fn failed(serial: &str, error: &str) -> Self {
        Self {
            serial: serial.to_owned(),
            disk: None,
            generation: 0,
            epoch: 0,
            hot_regions: 0,
            began: None,
            error: Some(error.to_owned()),
        }
    }
}

/// How to end a guest.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StopRequest {
    /// Press the power button and wait this long for the guest to power off; then kill it.
    /// 0 kills at once.
    pub deadline_ms: u64,
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopHow {
    /// It powered itself off.
    PoweredOff,
    /// It did not answer the power button in time, or was not asked.
    Killed,
}

/// Answer to [`StopRequest`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StopResult {
    /// Version of this document.
    pub schema: u32,
    /// How it ended.
    pub how: StopHow,
}

/// Save the guest into a file that the client opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SaveRequest {
    /// Token under which the file's descriptor was sent over `fd.sock`.
    pub fd_token: String,
    /// Let the guest run on after the save. Refused if it has a writable disk.
    pub keep_running: bool,
}

/// Answer to [`SaveRequest`]. The file is complete and synced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SaveResult {
    /// Version of this document.
    pub schema: u32,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of guest memory that were not zero.
    pub memory_bytes: u64,
    /// Time for which the vCPUs stood still, up to the end of the save.
    pub stopped_ms: u64,
    /// Time to stop the vCPUs.
    pub pause_us: u64,
    /// Time to collect everything but memory.
    pub state_us: u64,
    /// Whether the guest runs on.
    pub running: bool,
}

/// Limit the share of time that vCPUs may run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ThrottleRequest {
    /// 1 to 100.
    pub cpu_share_percent: u8,
}

/// Answer to `wait-console`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct WaitResult {
    /// Version of this document.
    pub schema: u32,
    /// The text was seen.
    pub seen: bool,
}

/// What a new guest process reads from its standard input, as one JSON document (see [`launch`]).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// What to run.
    pub definition: GuestDefinition,
    /// Directories of this instance.
    pub dirs: crate::config::Dirs,
    /// Continue from a saved file instead of booting.
    pub load: Option<LoadSpec>,
    /// End, freeing everything, when the process with this id (the caller of `run --rm`) ends.
    pub die_with_parent: bool,
    /// Write the serial console's output to a passed descriptor as well (see [`launch`]).
    pub stdio_console: bool,
    /// Leave the guest paused after building it.
    pub start_paused: bool,
    /// Receive the guest from another host instead of booting it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<moving::ReceiveSpec>,
    /// Start it by an operator's word, although its journal alone would not allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<resolve::Claim>,
}

/// How to continue from a saved file, which is passed as a descriptor (see [`launch`]). The
/// definition beside it must agree with the file's in everything that the guest sees.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadSpec {
    /// The load makes a clone: new uuid, MACs and VM generation id.
    pub clone: bool,
    /// What the guest's clocks do about the time that passed.
    pub clock: ClockChoice,
}

/// What a loaded guest's clocks do about the time that passed since the save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockChoice {
    /// `account` for pauses up to an hour, else `freeze`.
    #[default]
    Auto,
    /// The clocks jump forward by the time that passed.
    Account,
    /// The clocks continue from the moment of the save.
    Freeze,
}

/// What a new guest process writes to its standard output, once: a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchReply {
    /// The guest is there; its API answers.
    Ready(Box<GuestInfo>),
    /// The process waits for the guest, at these addresses: control, then each lane.
    Receiving {
        /// Where.
        addresses: Vec<std::net::SocketAddr>,
    },
    /// Nothing was left behind.
    Failed(ErrorBody),
}
