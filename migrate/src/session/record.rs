//! Takes down what a report tells.

use std::time::{Duration, Instant};

use super::report::{
    Link, Phase, PhaseBegan, Predicted, Reason, Report, Round, Side, Step, StepDone, Verdict,
};
use crate::converge::Advice;
use crate::precopy::RoundReport;
use crate::transport::link::LinkStats;

/// A report that is being written.
#[derive(Debug)]
pub(super) struct Recorder {
    began: Instant,
    /// When the blackout began.
    black: Option<Instant>,
    /// The report so far.
    pub(super) report: Report,
    /// Why the attempt ended, if it did not end with the guest elsewhere.
    cause: Option<(Reason, String)>,
}

/// A duration in microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Recorder {
    pub(super) fn new(side: Side, names: [String; 4], began_unix_ms: u64) -> Self {
        let [move_id, attempt, guest, name] = names;
        let report = Report {
            format: Report::FORMAT,
            side,
            move_id,
            attempt,
            guest,
            name,
            peer: String::new(),
            began_unix_ms,
            took_us: 0,
            verdict: Verdict::Superseded,
            phases: Vec::new(),
            rounds: Vec::new(),
            rehearsal: None,
            predicted: None,
            blackout: Vec::new(),
            peer_blackout: Vec::new(),
            downtime_us: None,
            digest_agreed: None,
            audit: None,
            link: Link::default(),
            limited_by: String::new(),
            notes: Vec::new(),
        };
        Self { began: Instant::now(), black: None, report, cause: None }
    }

    /// A phase begins. Says whether it is another one.
    pub(super) fn phase(&mut self, phase: Phase) -> bool {
        let new = self.report.phases.last().is_none_or(|last| last.phase != phase);
        if new {
            let at_us = micros(self.began.elapsed());
            self.report.phases.push(PhaseBegan { phase, at_us });
        }
        new
    }

    /// The blackout begins.
    pub(super) fn black(&mut self, at: Instant) {
        self.black = Some(at);
    }

    /// A step of the blackout is done now; counted once.
    pub(super) fn step(&mut self, step: Step) {
        self.step_at(step, Instant::now());
    }

    /// A step of the blackout was done then.
    pub(super) fn step_at(&mut self, step: Step, at: Instant) {
        let Some(black) = self.black else { return };
        if self.done(step).is_none() {
            let at_us = micros(at.saturating_duration_since(black));
            self.report.blackout.push(StepDone { step, at_us });
        }
    }

    /// When it was done.
    pub(super) fn done(&self, step: Step) -> Option<u64> {
        self.report.blackout.iter().find(|done| done.step == step).map(|done| done.at_us)
    }

    /// Since the blackout began.
    pub(super) fn since_black(&self) -> Option<u64> {
        self.black.map(|black| micros(black.elapsed()))
    }

    /// Why it ends. The first cause stands.
    pub(super) fn cause(&mut self, reason: Reason, text: impl Into<String>) {
        if self.cause.is_none() {
            self.cause = Some((reason, text.into()));
        }
    }

    /// The cause so far.
    pub(super) fn cause_text(&self) -> &str {
        self.cause.as_ref().map_or("", |(_, text)| text)
    }

    /// The cause, or this one if there is none.
    pub(super) fn cause_or(&mut self, reason: Reason, text: &str) -> (Reason, String) {
        self.cause.take().unwrap_or_else(|| (reason, text.to_owned()))
    }

    /// The machine's word on why it ends: it stands, unless the cause is known in more detail.
    pub(super) fn settle_cause(&mut self, reason: Reason, text: String, any: bool) {
        let known =
            self.cause.as_ref().is_some_and(|(r, t)| (any || *r == reason) && !t.is_empty());
        if !known {
            self.cause = Some((reason, text));
        }
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.report.notes.push(text.into());
    }

    pub(super) fn round(&mut self, report: &RoundReport, advice: Option<&Advice>) {
        let tally = &report.tally;
        let prediction = advice.and_then(|a| a.prediction);
        self.report.rounds.push(Round {
            round: report.round,
            last: advice.is_none(),
            took_us: micros(report.took),
            units: tally.units,
            compressed: tally.compressed,
            raw: tally.raw,
            zeros: tally.zeros,
            same: tally.same,
            untouched: tally.untouched,
            dirty_after: report.dirty_after,
            frame_bytes: tally.frame_bytes,
            payload_bytes: tally.payload_bytes,
            sync_us: micros(report.sync),
            waiting_us: micros(tally.waiting),
            predicted_us: prediction.map(|p| micros(p.blackout.total())),
        });
    }

    pub(super) fn predicted(&mut self, advice: &Advice) {
        let why = advice.why.to_string();
        let Some(prediction) = advice.prediction else { return };
        let parts = prediction.blackout;
        self.report.predicted = Some(Predicted {
            total_us: micros(parts.total()),
            usual_us: micros(prediction.usual),
            stop_us: micros(parts.stop),
            memory_us: micros(parts.memory),
            state_us: micros(parts.state),
            restore_us: micros(parts.restore),
            outside_us: micros(parts.outside),
            network_us: micros(parts.network),
            why,
        });
    }

    /// The finished report.
    pub(super) fn finish(mut self, verdict: Verdict, stats: &LinkStats) -> Box<Report> {
        self.phase(Phase::Done);
        let report = &mut self.report;
        report.took_us = micros(self.began.elapsed());
        report.verdict = verdict;
        report.link = link(stats);
        report.limited_by = limited_by(report);
        Box::new(self.report)
    }
}

fn link(stats: &LinkStats) -> Link {
    let all = || stats.lanes.iter().chain([&stats.control]);
    Link {
        lanes: stats.lanes.len() as u64,
        rtt_us: micros(stats.control.rtt),
        mtu: stats.lanes.iter().map(|l| l.mtu).max().unwrap_or(stats.control.mtu),
        sent_bytes: stats.sent_bytes(),
        received_bytes: all().fold(0, |sum, l| sum.saturating_add(l.received_bytes)),
        sent_packets: all().fold(0, |sum, l| sum.saturating_add(l.sent_packets)),
        lost_packets: all().fold(0, |sum, l| sum.saturating_add(l.lost_packets)),
    }
}

/// Where most of the copying went: waiting for the link, or reading and encoding.
fn limited_by(report: &Report) -> String {
    let sum = |f: fn(&Round) -> u64| report.rounds.iter().map(f).fold(0, u64::saturating_add);
    let lanes = report.link.lanes.max(1);
    let (took, waiting) = (sum(|r| r.took_us), sum(|r| r.waiting_us) / lanes);
    if report.rounds.is_empty() || took == 0 {
        return String::new();
    }
    let share = waiting.saturating_mul(100) / took;
    if share >= 50 {
        format!("the link: senders waited for it for {share} % of the time")
    } else {
        format!("reading and encoding memory: the link was waited for only {share} % of the time")
    }
}
