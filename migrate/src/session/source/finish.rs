//! The end: everything comes back from its threads, the log goes off, and the outcome is told.

use super::super::Event;
use super::super::edge::Clock;
use super::super::report::{Phase, Reason, Step, Verdict};
use super::super::wait::blocking;
use super::hear::reason_of_refusal;
use super::hold::Hold;
use super::session::Session;
use super::{Held, Kept, Outcome};
use crate::handover::effect::Why;
use crate::handover::source::State;
use crate::port::{Rights, RunningGuest};
use crate::transport::link::CloseCode;

/// After so many tries a free withdrawal is left unrecorded: the guest runs all the same.
const TRIES: u32 = 5;

impl<G: RunningGuest, D: Rights, C: Clock> Session<G, D, C> {
    pub(super) fn is_over(&self) -> bool {
        match self.machine.state() {
            State::Moved | State::Superseded(_) => true,
            State::Kept { switch, said } => *said || switch.is_none() || self.unsaid >= TRIES,
            _ => false,
        }
    }

    /// The machine has said why the guest stays. A cause that is known in more detail is told, if
    /// it is of that kind.
    pub(super) fn kept_because(&mut self, why: Why) {
        let (reason, text) = match why {
            Why::Cancelled => (Reason::Cancelled, "the move was cancelled"),
            Why::LinkLost => (Reason::LinkLost, "the link to the target was gone too long"),
            Why::Refused(why) => (reason_of_refusal(why), "the target does not take part"),
            Why::CopyFailed => (Reason::CopyFailed, "copying failed"),
            Why::Deadline => {
                (Reason::Deadline, "the pause was not answered in time: the switch was withdrawn")
            }
            Why::NeverRan => (Reason::NeverRan, "the target could not run the guest"),
            Why::GuestEnded => (Reason::GuestEnded, "the guest ended"),
            Why::Journal => (Reason::Journal, "the journal cannot be written"),
            Why::Stamp => (Reason::Disks, "the term cannot be written beside the disks"),
            Why::Arbiter => (Reason::Arbiter, "the arbiter did not answer"),
            Why::Withdrawn => (Reason::Withdrawn, "the switch was withdrawn"),
        };
        let text = match why {
            Why::Refused(refusal) => format!("{text}: {refusal:?}"),
            _ => text.to_owned(),
        };
        self.log.settle_cause(reason, text, why == Why::CopyFailed);
    }

    /// Waits for what is still under way, and tells how it ended.
    pub(super) async fn finish(mut self) -> (Outcome<G>, D) {
        self.cancel.cancel();
        if self.unsaid >= TRIES {
            self.log.note(format!("the withdrawal is not in the journal: {}", self.trouble));
        }
        while self.copy_away || matches!(self.hold, Hold::Away) {
            let done = self.jobs.next().await;
            self.done(done).await;
        }
        if let Some(copy) = self.copy.take() {
            let off = blocking(move || copy.0.abandon()).await;
            if let Err(why) = off {
                self.log.note(format!("the dirty log could not be switched off in order: {why}"));
            }
        }
        let Some(rights) = self.rights.take() else {
            return std::future::pending().await;
        };
        self.event(Event::Phase(Phase::Done));
        let stats = self.line.stats();
        let outcome = match *self.machine.state() {
            State::Moved => {
                self.downtime(stats.control.rtt);
                self.line.drop_link(CloseCode::Done, "the guest is yours");
                Outcome::Moved { report: self.log.finish(Verdict::Moved, &stats) }
            }
            State::Superseded(_) => {
                self.line.farewell_aside();
                let report = self.log.finish(Verdict::Superseded, &stats);
                match self.hold {
                    Hold::InDoubt(doubt) => {
                        Outcome::Superseded { guest: Held::InDoubt(doubt), report }
                    }
                    Hold::Frozen(frozen) => {
                        Outcome::Superseded { guest: Held::Frozen(frozen), report }
                    }
                    // Only those two can be superseded.
                    other => kept(other, Reason::Withdrawn, String::new(), report),
                }
            }
            _ => {
                // Whoever has heard the last word closes.
                if self.peer.ended {
                    self.line.drop_link(CloseCode::Cancelled, self.log.cause_text());
                } else {
                    self.line.farewell_aside();
                }
                let (reason, text) = self.log.cause_or(Reason::CopyFailed, "the move ended");
                let verdict = Verdict::Kept { reason, text: text.clone() };
                let report = self.log.finish(verdict, &stats);
                kept(self.hold, reason, text, report)
            }
        };
        (outcome, rights)
    }

    /// Both sides' times and half a round trip for the commit.
    fn downtime(&mut self, round_trip: std::time::Duration) {
        let told = |steps: &[super::super::report::StepDone], step| {
            steps.iter().find(|done| done.step == step).map(|done| done.at_us)
        };
        let report = &self.log.report;
        let committed = told(&report.blackout, Step::Committed);
        let heard = told(&report.peer_blackout, Step::CommitHeard);
        let ran = told(&report.peer_blackout, Step::Ran);
        if let (Some(committed), Some(heard), Some(ran)) = (committed, heard, ran) {
            let half = super::super::record::micros(round_trip / 2);
            let there = ran.saturating_sub(heard);
            self.log.report.downtime_us =
                Some(committed.saturating_add(half).saturating_add(there));
        }
    }
}

fn kept<G: RunningGuest>(
    hold: Hold<G>,
    reason: Reason,
    text: String,
    report: Box<super::Report>,
) -> Outcome<G> {
    let guest = match hold {
        Hold::Running(guest) => Kept::Running(guest),
        Hold::Stopped(stopped) => Kept::Paused { guest: stopped.abort(), why: String::new() },
        Hold::Stuck(guest, why) => Kept::Paused { guest, why },
        _ => Kept::Ended,
    };
    Outcome::Kept { guest, reason, text, report }
}
