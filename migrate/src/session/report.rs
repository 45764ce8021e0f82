//! What a move was like: plain data, kept on both hosts after success and failure.
//!
//! Times are microseconds since the session began, or durations in microseconds; sizes are bytes
//! unless a name says units (pages).

use serde::{Deserialize, Serialize};

/// Which side wrote a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The host that had the guest.
    Source,
    /// The host that was to receive it.
    Target,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Versions, guest and layout are agreed on.
    Opening,
    /// Source: memory is copied while the guest runs.
    Copying,
    /// Source: the offer is made durable and answered.
    Offering,
    /// Source: the guest is stopped, the rest is sent.
    Stopping,
    /// Source: the target may be, or become, prepared.
    InDoubt,
    /// Source: keeping the guest is made durable.
    Withdrawing,
    /// Source: the guest is the target's; its confirmation is awaited.
    Ceded,
    /// Source: the target never ran it, it is taken back.
    Returning,
    /// Source: the frozen memory is compared with what was sent.
    Auditing,
    /// Target: memory arrives.
    Filling,
    /// Target: takes part in an offer, durably.
    Receiving,
    /// Target: the state is restored.
    Restoring,
    /// Target: could run the guest; waits for the word.
    Prepared,
    /// Target: takes the guest over.
    Starting,
    /// Target: the guest runs; its ownership is made durable.
    Running,
    /// Target: will never run this switch; that is made durable.
    Burying,
    /// The end.
    Done,
}

/// Why a guest did not move, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The user cancelled it.
    Cancelled,
    /// The guest ended.
    GuestEnded,
    /// The two sides speak no common version.
    NoCommonVersion,
    /// The other side refused.
    Refused,
    /// What was offered is not what was announced.
    NotAnnounced,
    /// The rehearsal found the guest incompatible.
    Incompatible,
    /// Rounds do not shrink, or no switch can fit the ceiling.
    DoesNotConverge,
    /// The time for the move was up.
    TimeUp,
    /// The link was lost.
    LinkLost,
    /// The other process is gone.
    PeerGone,
    /// The other side broke the protocol.
    Protocol,
    /// Copying failed: memory, dirty log, threads.
    CopyFailed,
    /// Memory at the target is not what was sent.
    DigestDiffers,
    /// The guest could not be stopped or saved.
    GuestFailed,
    /// The pause was not answered in time, and was withdrawn.
    Deadline,
    /// The target could not restore the guest, or died before it ran.
    NeverRan,
    /// The journal could not be written.
    Journal,
    /// The shared disks' locks or terms.
    Disks,
    /// The arbiter did not answer.
    Arbiter,
    /// The source withdrew the offer.
    Withdrawn,
    /// An operator said whose the guest is.
    Operator,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Verdict {
    /// Source: the guest is the target's, and it has confirmed.
    Moved,
    /// Target: the guest is here.
    Arrived,
    /// Source: the guest is still here.
    Kept {
        /// For programs.
        reason: Reason,
        /// For people.
        text: String,
    },
    /// Target: nothing is left of the attempt.
    NotTaken {
        /// For programs.
        reason: Reason,
        /// For people.
        text: String,
    },
    /// Another host has a better right: an operator must decide.
    Superseded,
}

/// When a phase began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseBegan {
    /// The phase.
    pub phase: Phase,
    /// Since the session began.
    pub at_us: u64,
}

/// A round of copying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Its number, from 0.
    pub round: u32,
    /// It was the last one, of a guest that stood still.
    pub last: bool,
    /// From its start to its acknowledgement.
    pub took_us: u64,
    /// Units sent with content.
    pub units: u64,
    /// Of these compressed.
    pub compressed: u64,
    /// Of these as they are.
    pub raw: u64,
    /// Units sent as zeros.
    pub zeros: u64,
    /// Units read and left out: the target has their content.
    pub same: u64,
    /// Units that were never touched: neither read nor sent.
    pub untouched: u64,
    /// Units that the guest wrote meanwhile.
    pub dirty_after: u64,
    /// Bytes of frames on the lanes.
    pub frame_bytes: u64,
    /// Encoded content in them.
    pub payload_bytes: u64,
    /// Time that looking at the dirty log took.
    pub sync_us: u64,
    /// Time for which senders waited for the link, summed over lanes.
    pub waiting_us: u64,
    /// The blackout that a switch after this round would have, as predicted then.
    pub predicted_us: Option<u64>,
}

/// The trial restore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// Bytes of the state.
    pub state_bytes: u64,
    /// Time that the running guest stood still for it.
    pub save_us: u64,
    /// Time that a record beside the shared disks took to write; 0 without any.
    pub storage_us: u64,
    /// Time that restoring it took at the target.
    pub restore_us: u64,
    /// What would have failed.
    pub problems: Vec<String>,
}

/// The blackout as it was predicted when the switch was decided, with the pessimistic rate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicted {
    /// All of it.
    pub total_us: u64,
    /// All of it with the usual rate.
    pub usual_us: u64,
    /// Stopping and saving.
    pub stop_us: u64,
    /// Sending memory.
    pub memory_us: u64,
    /// Sending the state.
    pub state_us: u64,
    /// Restoring.
    pub restore_us: u64,
    /// Storage and arbiter.
    pub outside_us: u64,
    /// Round trips.
    pub network_us: u64,
    /// Why it was decided, for people.
    pub why: String,
}

/// A step of the blackout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Source: no CPU runs, devices are drained.
    Stopped,
    /// Source: the state is saved.
    Saved,
    /// Source: the rest of memory is acknowledged, digests agree.
    LastRound,
    /// Source: the last piece is sent.
    LastPiece,
    /// Source: the target's word that it is prepared is there.
    PreparedHeard,
    /// Source: the `ceded` mark is set, OWNER let go.
    Marked,
    /// Source: the commit is sent.
    Committed,
    /// Source: the guest runs at the target, as the source heard it.
    RanHeard,
    /// Target: the state is restored, the digest agrees.
    Restored,
    /// Target: its word that it is prepared is sent.
    PreparedSaid,
    /// Target: the commit is there.
    CommitHeard,
    /// Target: OWNER is taken, its term beside the disks, the `ran` mark set.
    Taken,
    /// Target: the guest runs.
    Ran,
}

impl Step {
    /// Those of the target, in the order in which it tells the source of them.
    pub const TARGET: [Self; 5] =
        [Self::Restored, Self::PreparedSaid, Self::CommitHeard, Self::Taken, Self::Ran];
}

/// When a step of the blackout was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDone {
    /// The step.
    pub step: Step,
    /// Source: since the guest was asked to stop. Target: since the last piece was there.
    pub at_us: u64,
}

/// The audit of the frozen source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Units that differ from what was sent, at most 32. Empty: nothing was missed.
    pub differing: Vec<u64>,
    /// Time it took.
    pub took_us: u64,
    /// Why it could not be made.
    pub failed: Option<String>,
}

/// Counters of the link at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Data lanes.
    pub lanes: u64,
    /// Smoothed round trip of the control stream.
    pub rtt_us: u64,
    /// UDP payload of a full datagram on the data lanes.
    pub mtu: u16,
    /// UDP payload sent, on all connections.
    pub sent_bytes: u64,
    /// UDP payload received.
    pub received_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets given up for lost.
    pub lost_packets: u64,
}

/// What a move was like, as one side saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout.
    pub format: u32,
    /// Whose report it is.
    pub side: Side,
    /// The move, as its user knows it.
    pub move_id: String,
    /// The attempt.
    pub attempt: String,
    /// The guest.
    pub guest: String,
    /// Its name.
    pub name: String,
    /// Program of the other side.
    pub peer: String,
    /// When it began, in milliseconds since 1970, as the caller said.
    pub began_unix_ms: u64,
    /// From beginning to end.
    pub took_us: u64,
    /// How it ended.
    pub verdict: Verdict,
    /// When each phase began.
    pub phases: Vec<PhaseBegan>,
    /// The rounds; the target keeps none.
    pub rounds: Vec<Round>,
    /// The trial restore.
    pub rehearsal: Option<Rehearsal>,
    /// The blackout as it was predicted.
    pub predicted: Option<Predicted>,
    /// The blackout as it was, step by step, on this side.
    pub blackout: Vec<StepDone>,
    /// The same on the other side, if it told.
    pub peer_blackout: Vec<StepDone>,
    /// From asking the guest to stop until it ran at the target: both sides' times and half a
    /// round trip for the commit. If the guest was kept after it had been stopped: until it ran
    /// here again.
    pub downtime_us: Option<u64>,
    /// Whether the digests of both sides agreed at the switch. `None`: not compared.
    pub digest_agreed: Option<bool>,
    /// The audit of the frozen source.
    pub audit: Option<Audit>,
    /// The link at its end.
    pub link: Link,
    /// What took longest, for people.
    pub limited_by: String,
    /// Things worth knowing, for people.
    pub notes: Vec<String>,
}

impl Report {
    /// The version of the layout that this program writes.
    pub const FORMAT: u32 = 1;
}
