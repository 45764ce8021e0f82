//! The engine's report of a move in the form that scripts read. Copies and divides; decides
//! nothing and reads no clock.

use jiff::Timestamp;
use migrate_engine::session::report::{
    self as engine, Predicted, Reason, Report, Side, Step, Verdict,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::moving::{
    HostRef, MoveOptions, MoveOutcome, MovePhase, MoveReport, RoundLine, TimelineStep,
};
use crate::api::{ErrorBody, ErrorCode, GuestState};

/// Bytes of a unit of guest memory.
const PAGE: u64 = 4096;

/// What the engine's report does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The move.
    pub move_id: Uuid,
    /// The guest's name.
    pub guest: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Where it comes from.
    pub from: HostRef,
    /// Where it goes.
    pub to: HostRef,
    /// When this process was asked.
    pub started: Timestamp,
    /// How.
    pub options: MoveOptions,
    /// Guest memory.
    pub memory_bytes: u64,
}

impl About {
    /// A report of a move that has just begun.
    pub fn blank(&self, phase: MovePhase) -> MoveReport {
        MoveReport {
            schema: 1,
            move_id: self.move_id,
            guest: self.guest.clone(),
            uuid: self.uuid,
            from: self.from.clone(),
            to: self.to.clone(),
            started: self.started,
            ended: None,
            phase,
            outcome: None,
            error: None,
            options: self.options.clone(),
            total_ms: 0.0,
            phases: Vec::new(),
            rounds: Vec::new(),
            memory_bytes: self.memory_bytes,
            frame_bytes: 0,
            udp_bytes: 0,
            predicted_downtime_ms: None,
            predicted_parts_ms: Vec::new(),
            downtime_ms: None,
            rehearsal_restore_ms: None,
            limited_by: None,
            timeline: Vec::new(),
            digest_equal: None,
            audit_equal: None,
            rtt_ms: None,
            mtu_bytes: None,
            packets: (0, 0),
        }
    }

    /// The report of a move that is over, at `ended`.
    pub fn ended(&self, report: &Report, ended: Timestamp) -> MoveReport {
        let (outcome, error) = outcome(&report.verdict, report.side, &self.to.name);
        let link = &report.link;
        let other = match report.side {
            Side::Source => "target",
            Side::Target => "source",
        };
        let own = if other == "target" { "source" } else { "target" };
        let mut timeline = steps(own, &report.blackout);
        timeline.extend(steps(other, &report.peer_blackout));
        MoveReport {
            ended: Some(ended),
            outcome: Some(outcome),
            error,
            total_ms: ms(report.took_us),
            phases: phases(report),
            rounds: report.rounds.iter().map(round).collect(),
            frame_bytes: report.rounds.iter().map(|r| r.frame_bytes).sum(),
            udp_bytes: link.sent_bytes,
            predicted_downtime_ms: report.predicted.as_ref().map(|p| ms(p.total_us)),
            predicted_parts_ms: report.predicted.as_ref().map(parts).unwrap_or_default(),
            downtime_ms: report.downtime_us.map(ms),
            rehearsal_restore_ms: report.rehearsal.as_ref().map(|r| ms(r.restore_us)),
            limited_by: Some(report.limited_by.clone()).filter(|l| !l.is_empty()),
            timeline,
            digest_equal: report.digest_agreed,
            audit_equal: audit(report),
            rtt_ms: Some(ms(link.rtt_us)),
            mtu_bytes: Some(link.mtu),
            packets: (link.sent_packets, link.lost_packets),
            ..self.blank(MovePhase::Ended)
        }
    }
}

/// The parts of a prediction that are not nothing.
fn parts(predicted: &Predicted) -> Vec<(String, f64)> {
    let Predicted { stop_us, memory_us, state_us, restore_us, outside_us, network_us, .. } =
        *predicted;
    let all = [
        ("stop", stop_us),
        ("memory", memory_us),
        ("state", state_us),
        ("restore", restore_us),
        ("outside", outside_us),
        ("network", network_us),
    ];
    all.into_iter().filter(|(_, us)| *us > 0).map(|(name, us)| (name.to_owned(), ms(us))).collect()
}

fn audit(report: &Report) -> Option<bool> {
    let audit = report.audit.as_ref()?;
    audit.failed.is_none().then_some(audit.differing.is_empty())
}

#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
pub(super) fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// A rate per second.
pub(super) fn per_second(bytes: u64, us: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(us.max(1))).unwrap_or(u64::MAX)
}

/// A phase of the engine as users know it.
pub(super) fn phase(phase: engine::Phase) -> MovePhase {
    use engine::Phase as P;
    match phase {
        P::Opening => MovePhase::Connecting,
        P::Copying | P::Filling => MovePhase::Copying,
        P::Offering | P::Receiving => MovePhase::Offering,
        P::Stopping | P::Restoring => MovePhase::Stopped,
        P::InDoubt | P::Withdrawing | P::Returning | P::Prepared => MovePhase::InDoubt,
        P::Ceded | P::Starting | P::Running | P::Burying => MovePhase::Ceded,
        P::Auditing => MovePhase::Auditing,
        P::Done => MovePhase::Ended,
    }
}

fn phases(report: &Report) -> Vec<(MovePhase, f64)> {
    let ends = report.phases.iter().skip(1).map(|p| p.at_us).chain([report.took_us]);
    let mut all: Vec<(MovePhase, f64)> = Vec::new();
    for (began, end) in report.phases.iter().zip(ends) {
        let (name, took) = (phase(began.phase), ms(end.saturating_sub(began.at_us)));
        match all.last_mut() {
            Some((last, time)) if *last == name => *time += took,
            _ if name == MovePhase::Ended => {}
            _ => all.push((name, took)),
        }
    }
    all
}

fn round(round: &engine::Round) -> RoundLine {
    let done = (round.units + round.zeros + round.same) * PAGE;
    RoundLine {
        round: round.round,
        took_ms: ms(round.took_us),
        memory_bytes: done,
        frame_bytes: round.frame_bytes,
        pages: round.units,
        compressed_pages: round.compressed,
        zero_pages: round.zeros,
        same_pages: round.same,
        untouched_pages: round.untouched,
        dirty_bytes: round.dirty_after * PAGE,
        dirty_bytes_per_s: per_second(round.dirty_after * PAGE, round.took_us),
        bandwidth_bytes_per_s: per_second(done, round.took_us),
        predicted_downtime_ms: round.predicted_us.map(ms),
        stalled: false,
        advice: if round.last {
            "the last round, of the stopped guest".into()
        } else {
            String::new()
        },
    }
}

fn steps(side: &str, done: &[engine::StepDone]) -> Vec<TimelineStep> {
    let line = |d: &engine::StepDone| TimelineStep {
        side: side.to_owned(),
        step: step(d.step).to_owned(),
        at_us: d.at_us,
    };
    done.iter().map(line).collect()
}

fn step(step: Step) -> &'static str {
    match step {
        Step::Stopped => "guest stopped",
        Step::Saved => "state saved",
        Step::LastRound => "last round acknowledged",
        Step::LastPiece => "state sent",
        Step::PreparedHeard => "target is prepared",
        Step::Marked => "guest given away",
        Step::Committed => "commit sent",
        Step::RanHeard => "target runs it",
        Step::Restored => "state restored",
        Step::PreparedSaid => "said so",
        Step::CommitHeard => "commit heard",
        Step::Taken => "guest taken",
        Step::Ran => "guest runs",
    }
}

fn outcome(verdict: &Verdict, side: Side, to: &str) -> (MoveOutcome, Option<ErrorBody>) {
    match verdict {
        Verdict::Moved | Verdict::Arrived => (MoveOutcome::Moved, None),
        Verdict::Superseded => {
            let error = ErrorBody {
                code: ErrorCode::Superseded,
                message: "another host has a better right to the guest".into(),
                remedy: "see where it runs: migrate host ls".into(),
                retryable: false,
                guest_state: Some(GuestState::Leaving),
            };
            (MoveOutcome::InDoubt, Some(error))
        }
        Verdict::Kept { reason, text } | Verdict::NotTaken { reason, text } => {
            (MoveOutcome::Kept, Some(why(*reason, text, side, to)))
        }
    }
}

fn why(reason: Reason, text: &str, side: Side, to: &str) -> ErrorBody {
    let (code, remedy) = match reason {
        Reason::Cancelled => (ErrorCode::Cancelled, "start the move again when it suits"),
        Reason::GuestEnded => (ErrorCode::MoveFailed, "see how it ended: migrate ls -a"),
        Reason::NoCommonVersion => {
            (ErrorCode::NoCommonVersion, "use neighbouring releases of migrate on both hosts")
        }
        Reason::Incompatible => (ErrorCode::Incompatible, "mend what is named, then move it again"),
        Reason::DoesNotConverge => (
            ErrorCode::MoveFailed,
            "allow a longer downtime (--max-downtime), or switch all the same: --on-stall pause",
        ),
        Reason::TimeUp => (ErrorCode::Timeout, "give it longer (--timeout) or more bandwidth"),
        Reason::LinkLost | Reason::PeerGone => {
            (ErrorCode::MoveFailed, "check the network and the other host: migrate host check")
        }
        Reason::Refused | Reason::NotAnnounced | Reason::NeverRan => (
            ErrorCode::MoveFailed,
            "mend what the other host says; the log of the guest's process there says more",
        ),
        Reason::Deadline => {
            (ErrorCode::MoveFailed, "try again; a longer --max-downtime gives the target more time")
        }
        Reason::DigestDiffers => {
            (ErrorCode::MoveFailed, "report this: memory was not transferred right")
        }
        Reason::Journal => (
            ErrorCode::MoveFailed,
            "make room in the state directory of that host, and see that it can be written; then \
             move the guest again",
        ),
        Reason::Disks => (ErrorCode::MoveFailed, "check the disks' storage"),
        Reason::Protocol
        | Reason::CopyFailed
        | Reason::GuestFailed
        | Reason::Arbiter
        | Reason::Withdrawn => (ErrorCode::MoveFailed, "see the guest's log: migrate help files"),
    };
    let ended = reason == Reason::GuestEnded;
    let state = match side {
        Side::Source if !ended => Some(GuestState::Running),
        _ => None,
    };
    let message = format!("the guest was not moved to {to}: {text}");
    ErrorBody { code, message, remedy: remedy.into(), retryable: false, guest_state: state }
}
