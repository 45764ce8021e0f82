//! The end: what was said last goes out, and the outcome is told.

use std::time::Duration;

use super::super::Event;
use super::super::edge::Clock;
use super::super::report::{Phase, Reason, Verdict};
use super::session::{Hold, Session};
use super::{Arrived, Outcome};
use crate::handover::effect::Why;
use crate::handover::target::State;
use crate::port::{Receiver, Rights};
use crate::transport::link::CloseCode;

/// How long a process that took nothing waits for the source to hear of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// After so many tries a tombstone is left to the daemon.
const TRIES: u32 = 5;

impl<R: Receiver, D: Rights, C: Clock> Session<R, D, C> {
    /// A tombstone that cannot be written is left to the host's daemon: this process ends, and
    /// the daemon decides by what stands in the journal.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.machine.state(), State::Burying(..)) && self.unburied >= TRIES
            || matches!(
                self.machine.state(),
                State::Buried(_)
                    | State::NotTaken
                    | State::Superseded(_)
                    | State::Running { durable: true, .. }
            )
    }

    /// The machine has said why the guest is not taken. A cause that is known in more detail is
    /// told.
    pub(super) fn not_taken_because(&mut self, why: Why) {
        let (reason, text) = match why {
            Why::LinkLost => (Reason::LinkLost, "the link to the source was gone too long".into()),
            Why::Refused(refusal) => (Reason::Refused, format!("refused: {refusal:?}")),
            Why::Journal => (Reason::Journal, "the journal cannot be written".into()),
            Why::NeverRan => (Reason::NeverRan, "the guest cannot be restored".into()),
            Why::Withdrawn => (Reason::Withdrawn, "the source withdrew the switch".into()),
            _ => (Reason::Cancelled, "the source ended the attempt".to_owned()),
        };
        // Withdrawn is withdrawn, whatever went wrong here before.
        self.log.settle_cause(reason, text, why != Why::Withdrawn);
    }

    pub(super) async fn finish(mut self) -> (Outcome<R::Paused>, D) {
        while matches!(self.hold, Hold::Away) {
            let done = self.jobs.next().await;
            self.done(done).await;
        }
        let Some(rights) = self.rights.take() else {
            return std::future::pending().await;
        };
        self.event(Event::Phase(Phase::Done));
        let stats = self.line.stats();
        let outcome = match (*self.machine.state(), std::mem::replace(&mut self.hold, Hold::Gone)) {
            (State::Running { .. }, hold) => {
                self.line.farewell_aside();
                let guest = match hold {
                    Hold::Runs(guest) => Some(Arrived::Running(guest)),
                    Hold::Here(guest) => Some(Arrived::Paused(guest)),
                    Hold::Stuck(guest, why) => Some(Arrived::Stuck { guest, why }),
                    _ => None,
                };
                self.log.report.downtime_us = None;
                match guest {
                    Some(guest) => {
                        let report = self.log.finish(Verdict::Arrived, &stats);
                        Outcome::Arrived { guest, report }
                    }
                    // It runs only if it is here.
                    None => return std::future::pending().await,
                }
            }
            (State::Superseded(_), Hold::Here(guest)) => {
                self.line.farewell_aside();
                let report = self.log.finish(Verdict::Superseded, &stats);
                Outcome::Superseded { guest, report }
            }
            _ => {
                // Whoever has heard the last word closes.
                if self.unburied >= TRIES {
                    // There is no word that this host could stand by, but there is a cause.
                    let why = format!("at the destination, {}", self.log.cause_text());
                    self.line.drop_link(CloseCode::Refused, &why);
                } else if self.peer.ended {
                    self.line.drop_link(CloseCode::Done, "nothing is left of the attempt");
                } else {
                    self.line.farewell(FAREWELL).await;
                }
                // The link has ended, and with it the conversation and the lanes.
                while self.pump_away {
                    let done = self.jobs.next().await;
                    self.done(done).await;
                }
                if let Some(mut pumping) = self.pump.take() {
                    pumping.0.detach().await;
                }
                let (reason, text) = self.log.cause_or(Reason::Cancelled, "the attempt ended");
                let verdict = Verdict::NotTaken { reason, text: text.clone() };
                let report = self.log.finish(verdict, &stats);
                Outcome::NotTaken { reason, text, report }
            }
        };
        (outcome, rights)
    }
}
