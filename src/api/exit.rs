//! What remains of a guest after its end.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitHow {
    /// It powered itself off, asked or not.
    PoweredOff,
    /// It was killed by a stop, or ended with its caller (`run --rm`).
    Killed,
    /// It was saved to a file.
    Saved,
    /// It was moved to another host.
    Moved,
    /// It crashed and was not kept (`on_crash = stop`).
    Crashed,
    /// Its process failed or was killed from outside.
    Died,
}

/// The end of a guest, kept 14 days as `UUID-TERM.json` beside its last console log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Version of this document.
    pub schema: u32,
    /// Name on this host.
    pub name: String,
    /// Identity.
    pub uuid: Uuid,
    /// The right under which it ran.
    pub term: u64,
    /// When its process started.
    pub started: jiff::Timestamp,
    /// When it ended, or was found ended.
    pub ended: jiff::Timestamp,
    /// How it ended.
    pub how: ExitHow,
    /// More, for people: the cause of a crash, the file of a save.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// Version of the binary that ran it.
    pub version: String,
    /// RAM.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub cpus: u32,
}
