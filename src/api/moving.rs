//! Moves, as they are asked for, watched and reported: the same documents in the API of guest
//! processes, in that of the daemon, and on the command's standard output with `--json`.
//!
//! A guest process that is to give its guest away serves
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `POST /v1/move` | [`MoveStart`] | `{"schema":1}`, when the move has begun |
//! | `POST /v1/move/cancel` | – | [`CancelAnswer`]: accepted, or too late |
//! | `GET /v1/move/events` | – | lines of JSON, a [`MoveEvent`] each, from the move's beginning |
//! | `PUT /v1/move/bandwidth` | [`Bandwidth`] | `{"schema":1}`: this move's share of the budget |
//! | `POST /v1/move/heard` | [`Words`] | `{"schema":1}`: words of the other side, over the daemons |
//! | `POST /v1/move/peer-gone` | [`PeerGone`] | `{"schema":1}`: the other process is dead |
//!
//! and a guest process that was launched to receive one serves all but the first and the budget. The events end with
//! [`MoveEvent::Result`]. Nobody who watches is needed: the move goes on without. Words that the
//! process wants to have said over the daemons come as [`MoveEvent::Words`].

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ErrorBody, ErrorCode};

/// A host, as moves name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRef {
    /// For life.
    pub id: Uuid,
    /// As it is called in the site.
    pub name: String,
}

/// What to do when rounds do not shrink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStall {
    /// Go on until they do, or the time is up.
    #[default]
    Wait,
    /// Switch all the same, whatever the downtime.
    Pause,
    /// Give up.
    Cancel,
}

/// How to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveOptions {
    /// Ceiling of the predicted downtime.
    pub max_downtime_ms: u64,
    /// When rounds do not shrink.
    pub on_stall: OnStall,
    /// The copy gives up after this long.
    pub timeout_ms: u64,
    /// UDP payload per second that all moves of this host share; unlimited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Data lanes; chosen by the number of CPUs if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<u8>,
}

impl Default for MoveOptions {
    fn default() -> Self {
        Self {
            max_downtime_ms: 300,
            on_stall: OnStall::Wait,
            timeout_ms: 30 * 60 * 1000,
            bandwidth_bytes_per_s: None,
            lanes: None,
        }
    }
}

/// One end of a data link, for one attempt. The key was made for it and is forgotten after it.
#[derive(Clone, Serialize, Deserialize)]
pub struct DataEnd {
    /// Our certificate, DER, hexadecimal.
    pub certificate: String,
    /// Its private key, PKCS#8 DER, hexadecimal.
    pub key: String,
    /// SHA-256 of the other side's certificate, hexadecimal.
    pub peer: String,
    /// Largest UDP payload that the path may carry, bytes.
    pub payload: u16,
}

impl std::fmt::Debug for DataEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataEnd").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The daemon to the process of a guest: move it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MoveStart {
    /// The move.
    pub move_id: Uuid,
    /// This attempt of it.
    pub attempt: Uuid,
    /// This host.
    pub from: HostRef,
    /// Where to.
    pub to: HostRef,
    /// Where the receiver listens: control, then each lane.
    pub addresses: Vec<SocketAddr>,
    /// Address to dial from, if it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    /// Our end of the link.
    pub end: DataEnd,
    /// How.
    pub options: MoveOptions,
}

/// In a launch document: receive a guest instead of booting one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReceiveSpec {
    /// The move.
    pub move_id: Uuid,
    /// This attempt of it.
    pub attempt: Uuid,
    /// Where it comes from.
    pub from: HostRef,
    /// This host.
    pub to: HostRef,
    /// Addresses to listen on: control, then each lane. Port 0: any.
    pub listen: Vec<SocketAddr>,
    /// Our end of the link.
    pub end: DataEnd,
    /// How long to wait for the source.
    pub patience_ms: u64,
}

/// A word of the hand-over for the other side, as the wire writes it: a control frame of protocol
/// version 1, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// The frame.
    pub frame: String,
}

/// Where a move stands, in the order of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MovePhase {
    /// The daemons talk; room is reserved and the receiver started.
    Preparing,
    /// The processes connect and agree.
    Connecting,
    /// Memory goes over while the guest runs.
    Copying,
    /// The offer is made durable on both sides.
    Offering,
    /// The guest stands still.
    Stopped,
    /// Everything is sent; the target's word decides.
    InDoubt,
    /// The guest is the target's; its confirmation is awaited.
    Ceded,
    /// The guest runs at the target; what was sent is compared once more.
    Auditing,
    /// Over.
    Ended,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveOutcome {
    /// The guest is at the target.
    Moved,
    /// The guest is at the source, as before.
    Kept,
    /// Whose the guest is, is not known yet.
    InDoubt,
}

/// A round, for progress and reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundLine {
    /// Its number, from 0.
    pub round: u32,
    /// Time it took, its acknowledgement included.
    pub took_ms: f64,
    /// Bytes of guest memory that the target now has by it, however they got there.
    pub memory_bytes: u64,
    /// Bytes of frames on the lanes.
    pub frame_bytes: u64,
    /// Pages sent with content.
    pub pages: u64,
    /// Of these compressed.
    pub compressed_pages: u64,
    /// Pages sent as zeros.
    pub zero_pages: u64,
    /// Pages left out, since the target has their content.
    pub same_pages: u64,
    /// Pages never touched.
    pub untouched_pages: u64,
    /// Bytes of guest memory written meanwhile, to be sent again.
    pub dirty_bytes: u64,
    /// Bytes per second that the guest dirties.
    pub dirty_bytes_per_s: u64,
    /// Bytes of guest memory per second that get across.
    pub bandwidth_bytes_per_s: u64,
    /// What a switch now would cost, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_downtime_ms: Option<f64>,
    /// Rounds do not shrink any more. Only said in events, when it is so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stalled: bool,
    /// What is thought of it, in a sentence.
    pub advice: String,
}

/// A step of the switch, for the timeline of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStep {
    /// `source` or `target`.
    pub side: String,
    /// What was done.
    pub step: String,
    /// When it was done: µs after the guest was asked to stop (source), or after the last piece
    /// had come (target).
    pub at_us: u64,
}

/// All that is known of a move. Kept on both hosts for 90 days.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveReport {
    /// Version of this document.
    pub schema: u32,
    /// The move.
    pub move_id: Uuid,
    /// The guest's name.
    pub guest: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Where it came from.
    pub from: HostRef,
    /// Where it was to go.
    pub to: HostRef,
    /// When it was asked for.
    pub started: jiff::Timestamp,
    /// When its outcome was known; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<jiff::Timestamp>,
    /// Where it stands.
    pub phase: MovePhase,
    /// How it ended; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<MoveOutcome>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// How it was asked for.
    pub options: MoveOptions,
    /// Time from the request to the outcome.
    pub total_ms: f64,
    /// Time in each phase, in the order in which they came.
    pub phases: Vec<(MovePhase, f64)>,
    /// Its rounds; the last one is that of the stopped guest.
    pub rounds: Vec<RoundLine>,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Bytes of frames sent, over all rounds.
    pub frame_bytes: u64,
    /// UDP payload sent, everything included.
    pub udp_bytes: u64,
    /// What a switch was predicted to cost when it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_downtime_ms: Option<f64>,
    /// The parts of that prediction, in milliseconds: stop (and save), memory, state, restore,
    /// outside (storage and arbiter) and network (round trips).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub predicted_parts_ms: Vec<(String, f64)>,
    /// From the order to stop the guest until the source heard that it runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<f64>,
    /// Time that the rehearsal took to restore the guest's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal_restore_ms: Option<f64>,
    /// What limited it: the link, the guest's dirty rate, the CPU, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<String>,
    /// Steps of the switch.
    pub timeline: Vec<TimelineStep>,
    /// The digests of all memory agreed at the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_equal: Option<bool>,
    /// The frozen source agreed with what was sent. False is a defect of dirty tracking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_equal: Option<bool>,
    /// Smoothed round trip of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// UDP payload of a full datagram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u16>,
    /// Packets sent, and of these given up for lost.
    pub packets: (u64, u64),
}

impl MoveReport {
    /// The exit code that a command about this move ends with: 0 moved, 6 in doubt or not known
    /// yet. A guest that stayed: 5, or the error's own code if the move was refused before
    /// anything was sent.
    pub fn exit_code(&self) -> u8 {
        match (self.outcome, &self.error) {
            (Some(MoveOutcome::Moved), _) => 0,
            (Some(MoveOutcome::InDoubt) | None, _) => ErrorCode::InDoubt.exit_code(),
            (Some(MoveOutcome::Kept), Some(error)) if !self.began() => match error.code.exit_code()
            {
                refused @ (4 | 7 | 8) => refused,
                _ => ErrorCode::MoveFailed.exit_code(),
            },
            (Some(MoveOutcome::Kept), _) => ErrorCode::MoveFailed.exit_code(),
        }
    }

    /// The processes of the guest had begun to talk.
    fn began(&self) -> bool {
        let begun = |phase| phase != MovePhase::Preparing && phase != MovePhase::Ended;
        self.phases.iter().any(|(phase, _)| begun(*phase))
    }
}

/// Something happened to a move. Kinds and fields are only added.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum MoveEvent {
    /// A phase began.
    Phase {
        /// The move.
        move_id: Uuid,
        /// The guest.
        guest: String,
        /// Which.
        phase: MovePhase,
    },
    /// How far the copy is; several times a second at most.
    Progress {
        /// The round that goes on.
        round: u32,
        /// Bytes of guest memory done in it.
        done_bytes: u64,
        /// Bytes of guest memory it had to do at its start.
        round_bytes: u64,
        /// Bytes of frames sent in the move so far.
        frame_bytes: u64,
        /// Bytes of guest memory per second, lately.
        bandwidth_bytes_per_s: u64,
    },
    /// A round ended.
    Round(Box<RoundLine>),
    /// The rehearsal is done and found nothing in the way.
    Rehearsed {
        /// Time that restoring took.
        restore_ms: f64,
    },
    /// Something that people should hear: a link that is lost, a step that is tried again.
    Notice {
        /// In a sentence.
        text: String,
    },
    /// The daemon is asked to carry this to the other side. Not shown to people.
    Words(Words),
    /// The end: the last event. An error is in the report.
    Result(Box<MoveReport>),
}

/// A move's share of the budget of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// UDP payload per second; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
}

/// The other side's process is dead: its daemon has proved it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerGone {
    /// In a sentence, for people; at most [`PeerGone::WHY_MAX`] bytes of it are looked at.
    pub why: String,
}

impl PeerGone {
    /// Longest text that is passed on, in bytes.
    pub const WHY_MAX: usize = 512;
}

/// Answer to a request to cancel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelAnswer {
    /// Version of this document.
    pub schema: u32,
    /// It is being cancelled. Otherwise the point of doubt was passed, and the outcome tells.
    pub accepted: bool,
}
