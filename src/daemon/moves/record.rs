//! The report of a move while it goes on, made from its events. Pure: times are arguments.

use jiff::Timestamp;
use uuid::Uuid;

use crate::api::moving::{HostRef, MoveEvent, MoveOptions, MoveOutcome, MovePhase, MoveReport};
use crate::api::{Failure, GuestInfo};

/// Most rounds that a report is kept with; of a longer move the first and the last are.
const ROUNDS_MAX: usize = 2000;

/// What is known of a move so far.
#[derive(Clone, Debug)]
pub struct Record {
    report: MoveReport,
    /// When the phase began.
    entered: Timestamp,
}

/// A report of a move that begins.
pub fn blank(
    move_id: Uuid,
    guest: (&str, Uuid, u64),
    from: HostRef,
    to: HostRef,
    options: MoveOptions,
    started: Timestamp,
) -> MoveReport {
    let (name, uuid, memory_bytes) = guest;
    let about = crate::guest::moving::report::About {
        move_id,
        guest: name.to_owned(),
        uuid,
        from,
        to,
        started,
        options,
        memory_bytes,
    };
    about.blank(MovePhase::Preparing)
}

/// [`blank`] for a guest of this host.
pub fn outbound(
    move_id: Uuid,
    info: &GuestInfo,
    from: HostRef,
    to: HostRef,
    options: MoveOptions,
    started: Timestamp,
) -> MoveReport {
    blank(move_id, (&info.name, info.uuid, info.memory_bytes), from, to, options, started)
}

/// Milliseconds from `earlier` to `later`, or zero.
#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
fn ms(earlier: Timestamp, later: Timestamp) -> f64 {
    (later.as_microsecond().saturating_sub(earlier.as_microsecond()).max(0)) as f64 / 1000.0
}

impl Record {
    /// The record of a move whose report so far is `report`.
    pub fn new(report: MoveReport, now: Timestamp) -> Self {
        Self { report, entered: now }
    }

    /// Something happened at `now`.
    pub fn apply(&mut self, event: &MoveEvent, now: Timestamp) {
        match event {
            MoveEvent::Phase { phase, .. } => self.enter(*phase, now),
            MoveEvent::Round(round) => {
                self.report.frame_bytes += round.frame_bytes;
                self.report.rounds.push((**round).clone());
                bound(&mut self.report);
            }
            MoveEvent::Progress { .. } | MoveEvent::Notice { .. } | MoveEvent::Words(_) => {}
            MoveEvent::Rehearsed { restore_ms } => {
                self.report.rehearsal_restore_ms = Some(*restore_ms);
            }
            MoveEvent::Result(result) => self.end(result, now),
        }
    }

    fn enter(&mut self, phase: MovePhase, now: Timestamp) {
        if phase == self.report.phase {
            return;
        }
        self.report.phases.push((self.report.phase, ms(self.entered, now)));
        (self.report.phase, self.entered) = (phase, now);
    }

    /// The process that made the move has said how it ended.
    fn end(&mut self, result: &MoveReport, now: Timestamp) {
        let preparing =
            self.report.phases.iter().find(|(phase, _)| *phase == MovePhase::Preparing).copied();
        let mut phases: Vec<_> = preparing.into_iter().collect();
        phases.extend(result.phases.iter().filter(|(phase, _)| *phase != MovePhase::Preparing));
        self.report = MoveReport {
            schema: 1,
            move_id: self.report.move_id,
            guest: self.report.guest.clone(),
            uuid: self.report.uuid,
            from: self.report.from.clone(),
            to: self.report.to.clone(),
            started: self.report.started,
            options: self.report.options.clone(),
            phase: MovePhase::Ended,
            ended: Some(result.ended.unwrap_or(now)),
            outcome: Some(result.outcome.unwrap_or(MoveOutcome::InDoubt)),
            total_ms: ms(self.report.started, result.ended.unwrap_or(now)),
            phases,
            ..result.clone()
        };
        bound(&mut self.report);
    }

    /// The move ends without a word of the process that made it.
    pub fn conclude(&mut self, outcome: MoveOutcome, why: Option<&Failure>, now: Timestamp) {
        self.enter(MovePhase::Ended, now);
        self.report.outcome = Some(outcome);
        self.report.error = why.map(|failure| (*failure.0).clone());
        self.report.ended = Some(now);
        self.report.total_ms = ms(self.report.started, now);
    }

    /// The report, as of `now`.
    pub fn report(&self, now: Timestamp) -> MoveReport {
        let mut report = self.report.clone();
        if report.ended.is_none() {
            report.phases.push((report.phase, ms(self.entered, now)));
            report.total_ms = ms(report.started, now);
        }
        report
    }

    /// The destination has said who it is.
    pub fn met(&mut self, host: HostRef) {
        self.report.to = host;
    }

    /// Where it stands.
    pub fn phase(&self) -> MovePhase {
        self.report.phase
    }
}

/// Keeps a report within bounds.
pub fn bound(report: &mut MoveReport) {
    let over = report.rounds.len().saturating_sub(ROUNDS_MAX);
    if over > 0 {
        let from = ROUNDS_MAX / 2;
        report.rounds.drain(from..from + over);
    }
}

/// Whether a peer's report may be kept as that of a move in which it and this host took part.
///
/// # Errors
/// What is wrong with it.
pub fn acceptable(report: &MoveReport, peer: &str, here: &HostRef) -> Result<(), &'static str> {
    let ours = |host: &HostRef| host.id == here.id && host.name == here.name;
    let one = ours(&report.to) && report.from.name == peer;
    let other = ours(&report.from) && report.to.name == peer;
    if !one && !other {
        return Err("it is not about a move between the two hosts");
    }
    if report.ended.is_none() || report.outcome.is_none() {
        return Err("the move has not ended");
    }
    if report.rounds.len() > ROUNDS_MAX || report.phases.len() > 1000 {
        return Err("it is too long");
    }
    if report.timeline.len() > 1000 || crate::config::check_name(&report.guest).is_err() {
        return Err("it is malformed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ErrorCode;
    use crate::api::moving::RoundLine;

    fn host(n: u128) -> HostRef {
        HostRef { id: Uuid::from_u128(n), name: format!("h{n}") }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
    }

    fn record() -> Record {
        let options = MoveOptions::default();
        let guest = ("g", Uuid::from_u128(9), 1 << 20);
        Record::new(blank(Uuid::from_u128(1), guest, host(1), host(2), options, at(0)), at(0))
    }

    fn phase(phase: MovePhase) -> MoveEvent {
        MoveEvent::Phase { move_id: Uuid::from_u128(1), guest: "g".into(), phase }
    }

    #[test]
    fn events_make_a_report() {
        let mut record = record();
        record.apply(&phase(MovePhase::Connecting), at(5));
        record.apply(&phase(MovePhase::Copying), at(7));
        record.apply(&phase(MovePhase::Copying), at(8));
        let round = RoundLine { frame_bytes: 10, ..RoundLine::default() };
        record.apply(&MoveEvent::Round(Box::new(round.clone())), at(9));
        let live = record.report(at(10));
        let phases =
            [(MovePhase::Preparing, 5.0), (MovePhase::Connecting, 2.0), (MovePhase::Copying, 3.0)];
        assert_eq!(live.phases, phases);
        assert_eq!((live.total_ms, live.frame_bytes, live.ended), (10.0, 10, None));

        let mut result = live.clone();
        result.guest = "another".into();
        result.started = at(5);
        result.phases = vec![(MovePhase::Copying, 4.0)];
        (result.ended, result.outcome) = (Some(at(20)), Some(MoveOutcome::Moved));
        record.apply(&MoveEvent::Result(Box::new(result)), at(21));
        let report = record.report(at(99));
        assert_eq!(report.phases, [(MovePhase::Preparing, 5.0), (MovePhase::Copying, 4.0)]);
        assert_eq!((report.total_ms, report.started, report.guest.as_str()), (20.0, at(0), "g"));
        assert_eq!(acceptable(&report, "h1", &host(2)), Ok(()));
        assert_eq!(acceptable(&report, "h2", &host(1)), Ok(()));
        assert!(acceptable(&report, "h3", &host(2)).is_err());
        assert!(acceptable(&report, "h1", &host(3)).is_err());
        assert!(acceptable(&live, "h1", &host(2)).is_err());
    }

    #[test]
    fn a_failure_ends_it_and_rounds_are_bounded() {
        let mut record = record();
        for n in 0..3000 {
            let round = RoundLine { round: n, ..RoundLine::default() };
            record.apply(&MoveEvent::Round(Box::new(round)), at(1));
        }
        let failure = Failure::new(ErrorCode::NoRoom, "m", "r");
        record.conclude(MoveOutcome::Kept, Some(&failure), at(3));
        let report = record.report(at(50));
        assert_eq!((report.outcome, report.total_ms), (Some(MoveOutcome::Kept), 3.0));
        assert_eq!(report.rounds.len(), ROUNDS_MAX);
        assert_eq!((report.rounds[0].round, report.rounds[ROUNDS_MAX - 1].round), (0, 2999));
    }
}
