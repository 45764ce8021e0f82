//! The contract between the command, scripts and the host daemon: HTTP/JSON on the daemon's Unix
//! socket (`daemon.sock` in the runtime directory; mode 0660 in the system instance, whose group
//! is as good as root; 0600 elsewhere).
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/host` | – | [`HostInfo`] |
//! | `GET /v1/guests` | – | `{"schema":1,"guests":[GuestInfo …]}` |
//! | `POST /v1/moves` | [`MoveRequest`] | [`MoveBegun`], when the move has an id; it goes on without its caller |
//! | `POST /v1/moves/plan` | [`MoveRequest`] | [`MovePlan`]: a dry run |
//! | `GET /v1/moves?guest=NAME&limit=N` | – | [`MoveList`]: latest first, those that go on included |
//! | `GET /v1/moves/{id}` | – | [`MoveReport`](super::moving::MoveReport) |
//! | `GET /v1/moves/{id}/events` | – | lines of JSON, a [`MoveEvent`](super::moving::MoveEvent) each, from its beginning to its result |
//! | `POST /v1/moves/{id}/cancel` | – | [`CancelAnswer`](super::moving::CancelAnswer) |
//! | `GET /v1/hosts` | – | [`HostList`] |
//! | `GET /v1/hosts/{name}/check` | – | [`HostCheck`] |
//! | `POST /v1/hosts/cpu` | [`CompareRequest`](super::cpu::CompareRequest) | [`CpuComparison`](super::cpu::CpuComparison) |
//! | `POST /v1/hosts/invite` | [`InviteRequest`] | [`Invited`] |
//! | `POST /v1/hosts/remove` | [`RemoveRequest`] | [`HostList`] |
//! | `GET /metrics` | – | Prometheus text |
//!
//! `host init` and `host join` write files and are done by the command itself, the daemon not
//! running or told to read them again (`POST /v1/reload`).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::moving::{HostRef, MoveOptions, MoveReport};
use super::{ErrorBody, GuestInfo};

/// A host, as its daemon describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostInfo {
    /// Version of this document.
    pub schema: u32,
    /// Identity and name; the name is that of its certificate, or its hostname before `host init`.
    pub host: HostRef,
    /// Version of the daemon's program.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// When it started.
    pub started: jiff::Timestamp,
    /// Control address, once the host has an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Last second of its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ends: Option<jiff::Timestamp>,
    /// Online CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_total_bytes: u64,
    /// Memory that could be had now.
    pub memory_available_bytes: u64,
    /// Memory promised to guests that arrive.
    pub memory_reserved_bytes: u64,
    /// Guests that have a process.
    pub guests: u32,
    /// Moves that go on, in both directions.
    pub moves_running: u32,
    /// What could be better about sockets, limits and certificates, each with its remedy.
    #[serde(default)]
    pub advice: Vec<String>,
    /// Why no guest can run there, if /dev/kvm cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm_problem: Option<String>,
    /// Wall clock when this was written.
    pub now: jiff::Timestamp,
}

/// Move a guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoveRequest {
    /// Name of the guest.
    pub guest: String,
    /// Name of the host to move to.
    pub to: String,
    /// How.
    #[serde(default)]
    pub options: MoveOptions,
    /// Wait until another operation on this guest is over, instead of refusing.
    #[serde(default)]
    pub wait: bool,
}

/// The move has an id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoveBegun {
    /// Version of this document.
    pub schema: u32,
    /// The move.
    pub move_id: Uuid,
}

/// What a move would be like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MovePlan {
    /// Version of this document.
    pub schema: u32,
    /// The guest.
    pub guest: String,
    /// Where to.
    pub to: HostRef,
    /// Nothing is in the way.
    pub possible: bool,
    /// It is there already: nothing is to be done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub already_there: bool,
    /// What is, each with its remedy.
    pub problems: Vec<ErrorBody>,
    /// Memory in use, which is about what must be sent.
    pub memory_bytes: u64,
    /// Memory that the destination has left for guests.
    pub room_bytes: u64,
    /// Round trip between the daemons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Bytes per second that get across to that host, or as many as the user allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// How that rate of the link is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_basis: Option<BandwidthBasis>,
    /// Bytes per second that the guest writes to, if that could be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty_bytes_per_s: Option<u64>,
    /// How long it would take, if an end is in sight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_total_ms: Option<f64>,
    /// How long the guest would stand still, if that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_downtime_ms: Option<f64>,
    /// As things are, rounds would not shrink far enough: `--on-stall` would decide.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_end_in_sight: bool,
    /// What the figures rest on, for people: a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rests_on: Vec<String>,
}

/// How the speed of a link is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BandwidthBasis {
    /// The last move to that host that was not held back.
    LastMove,
    /// A sample that was sent for this plan.
    Probe,
    /// Nothing is known.
    Assumed,
}

/// Moves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoveList {
    /// Version of this document.
    pub schema: u32,
    /// Latest first.
    pub moves: Vec<MoveReport>,
}

/// A host of the site, as this one knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownHost {
    /// Name.
    pub name: String,
    /// Identity, once they have met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Where its daemon listens.
    pub address: String,
    /// What it may do here: `send`, `receive`, `observe`, `control`.
    pub rights: Vec<String>,
    /// It is this host.
    pub this: bool,
    /// What it says of itself, if it was asked and answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<HostInfo>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// The hosts of the site.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostList {
    /// Version of this document.
    pub schema: u32,
    /// By name.
    pub hosts: Vec<KnownHost>,
    /// What became of a removal, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal: Option<RemovalOutcome>,
}

/// What became of the removal of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemovalOutcome {
    /// The host.
    pub host: String,
    /// The site's CA has removed it: no host trusts it that knows of it. Otherwise this host
    /// alone does not trust it any more.
    pub from_site: bool,
    /// Hosts that could not be told yet; they learn of it when they come back.
    pub not_told: Vec<String>,
    /// Why it is not removed from the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// One thing that was looked at between two hosts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckLine {
    /// What.
    pub what: String,
    /// It is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// The exact remedy, if something is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What `host check` found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostCheck {
    /// Version of this document.
    pub schema: u32,
    /// The other host.
    pub host: String,
    /// Everything is as it should be.
    pub ok: bool,
    /// One line each: both directions, ports, MTU, UDP buffers, clock, versions, CPU.
    pub lines: Vec<CheckLine>,
    /// Why the host could not be asked anything, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// Invite a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteRequest {
    /// Address under which the joining host reaches this one, `HOST:PORT`; the advertised one if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How long it is good for.
    pub valid_ms: u64,
}

/// An invitation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invited {
    /// Version of this document.
    pub schema: u32,
    /// The line to paste after `migrate host join`.
    pub invitation: String,
    /// Last second.
    pub expires: jiff::Timestamp,
}

/// Remove a host from the site.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveRequest {
    /// Its name.
    pub name: String,
}

/// All guests of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestList {
    /// Version of this document.
    pub schema: u32,
    /// By name.
    pub guests: Vec<GuestInfo>,
}
