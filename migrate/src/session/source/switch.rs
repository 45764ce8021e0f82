//! From the pause to the end: what threads and rounds bring back while the guest stands still.

use std::time::{Duration, Instant};

use super::super::Event;
use super::super::edge::Clock;
use super::super::line::PumpTalk;
use super::super::record::micros;
use super::super::report::{Audit, Reason, Step};
use super::super::wait::blocking;
use super::hold::Hold;
use super::session::{Copy, Done, Session};
use crate::failpoint;
use crate::handover::effect::Input;
use crate::handover::proof::Stopped;
use crate::handover::source::State;
use crate::port::{NotPaused, PausedGuest, Rights, RunningGuest};
use crate::precopy::{PrecopyError, RoundReport};

/// Units that an audit names.
const NAMED: usize = 32;

type PausedError<G> = <<G as RunningGuest>::Paused as PausedGuest>::Error;

impl<G: RunningGuest, D: Rights, C: Clock> Session<G, D, C> {
    /// Something that went on beside the machine is done.
    pub(super) async fn done(&mut self, done: Done<G>) {
        match done {
            Done::Logged(guest, log) => {
                self.hold = Hold::Running(guest);
                self.logged(log);
            }
            Done::Copied(copy, end) => {
                self.copy_is_back(copy);
                self.copied(end).await;
            }
            Done::TrialState(guest, trial) => {
                self.hold = Hold::Running(guest);
                self.trial_state(trial).await;
            }
            Done::Paused(paused) => self.paused(paused),
            Done::Saved(stopped, state) => self.saved(stopped, state),
            Done::LastRound(copy, round) => {
                self.copy_is_back(copy);
                self.last_round_done(round);
            }
            Done::Audited(differing, took) => self.audited(differing, took),
            Done::Claimed(took) => self.claimed(took),
            Done::Looked(advice, stands) => self.looked(advice, stands).await,
            Done::Answered(stands) => self.answered(stands),
            Done::Later(input) => self.inputs.push_back(input),
            Done::OpeningOver => self.opening_over(),
            Done::TimeUp => {
                let limit = self.plan.limits.timeout.as_secs();
                self.fail(
                    Reason::TimeUp,
                    format!("the move is not done after the {limit} s allowed"),
                );
            }
        }
    }

    fn copy_is_back(&mut self, copy: Box<(Copy<G>, PumpTalk)>) {
        self.copy = Some(copy);
        self.copy_away = false;
    }

    /// Stops the guest.
    pub(super) fn pause(&mut self) {
        let hold = self.hold.take();
        let Hold::Running(guest) = hold else {
            self.hold = hold;
            return self.fail(Reason::GuestFailed, "the guest is not here to be stopped");
        };
        let _ = failpoint::at(|| "source.pause.before".into());
        self.begin_blackout();
        self.jobs.start(async move { Done::Paused(blocking(move || guest.pause()).await) });
    }

    fn paused(&mut self, paused: Result<G::Paused, NotPaused<G, G::Error>>) {
        match (paused, self.proofs.offer.take()) {
            (Ok(paused), Some(offer)) => {
                let _ = failpoint::at(|| "source.pause.after".into());
                self.log.step(Step::Stopped);
                self.hold = Hold::Stopped(Stopped::new(paused, offer));
                self.inputs.push_back(Input::Paused);
            }
            // A pause is asked for only with an offer that is durable.
            (Ok(paused), None) => {
                let why = "it was stopped without an offer (a defect of this program)";
                self.hold = Hold::Stuck(paused, why.into());
                self.fail(Reason::GuestFailed, why);
            }
            (Err(NotPaused::Ended), _) => {
                self.hold = Hold::Ended;
                self.log.cause(Reason::GuestEnded, "the guest ended when it was to be stopped");
                self.inputs.push_back(Input::GuestEnded);
            }
            (Err(NotPaused::Failed(guest, why)), _) => {
                self.hold = Hold::Running(guest);
                self.fail(Reason::GuestFailed, format!("the guest cannot be stopped: {why}"));
            }
        }
    }

    /// Saves the state first: that can write guest memory. The round goes after it.
    pub(super) fn last_round(&mut self) {
        let hold = self.hold.take();
        let Hold::Stopped(mut stopped) = hold else {
            self.hold = hold;
            return self.fail(Reason::GuestFailed, "the guest is not stopped");
        };
        self.jobs.start(async move {
            let (stopped, state) = blocking(move || {
                let state = stopped.guest().save();
                (stopped, state)
            })
            .await;
            Done::Saved(stopped, state)
        });
    }

    fn saved(&mut self, stopped: Stopped<G::Paused>, state: Result<Vec<u8>, PausedError<G>>) {
        self.hold = Hold::Stopped(stopped);
        self.log.step(Step::Saved);
        let state = match state {
            Ok(state) if state.len() < self.line.limit() => state
                .try_into()
                .map_err(|e| format!("the guest's state does not fit a message: {e}")),
            Ok(state) => Err(format!("the guest's state of {} bytes is too long", state.len())),
            Err(why) => Err(format!("the guest's state cannot be saved: {why}")),
        };
        match state {
            Ok(state) => self.state = Some(state),
            Err(why) => return self.fail(Reason::GuestFailed, why),
        }
        if !matches!(self.machine.state(), State::Stopping { .. }) {
            return;
        }
        let Some(copy) = self.copy.take() else {
            return self.fail(Reason::CopyFailed, "the copy is gone (a defect of this program)");
        };
        self.copy_away = true;
        self.jobs.start(async move {
            let mut copy = copy;
            let (precopy, talk) = &mut *copy;
            let round = precopy.last_round(talk).await;
            Done::LastRound(copy, round)
        });
    }

    fn last_round_done(&mut self, round: Result<RoundReport, PrecopyError>) {
        match round {
            Ok(report) => {
                self.log.step(Step::LastRound);
                self.log.round(&report, None);
                self.log.report.digest_agreed = Some(true);
                self.inputs.push_back(Input::LastRoundDone);
            }
            Err(why) => {
                if matches!(why, PrecopyError::Differs(_)) {
                    self.log.report.digest_agreed = Some(false);
                }
                if why.is_cut() {
                    self.fail(Reason::LinkLost, why.to_string());
                } else {
                    self.copy_failed(&why);
                }
            }
        }
    }

    /// Compares the frozen memory with what was sent. The log goes off first.
    pub(super) fn audit(&mut self) {
        let _ = failpoint::at(|| "source.audit".into());
        let copy = self.copy.take();
        let wanted = self.plan.audit;
        self.jobs.start(async move {
            let (differing, took) = blocking(move || {
                let began = Instant::now();
                (audit_of::<G>(copy, wanted), began.elapsed())
            })
            .await;
            Done::Audited(differing, took)
        });
    }

    fn audited(&mut self, differing: Result<Vec<u64>, String>, took: Duration) {
        let same = differing.as_ref().is_ok_and(Vec::is_empty);
        let took_us = micros(took);
        if self.plan.audit {
            let (differing, failed) = match differing {
                Ok(differing) => {
                    self.event(Event::Audited { differing: differing.clone() });
                    (differing, None)
                }
                Err(why) => (Vec::new(), Some(why)),
            };
            self.log.report.audit = Some(Audit { differing, took_us, failed });
        }
        self.inputs.push_back(Input::Audited { same });
    }
}

fn audit_of<G: RunningGuest>(
    copy: Option<Box<(Copy<G>, PumpTalk)>>,
    wanted: bool,
) -> Result<Vec<u64>, String> {
    let (copy, _) = *copy.ok_or("the copy is gone")?;
    let sealed = copy.seal().map_err(|e| e.to_string())?;
    if !wanted {
        return Ok(Vec::new());
    }
    let differing = sealed.audit(NAMED).map_err(|e| e.to_string())?;
    Ok(differing.iter().map(|unit| unit.get()).collect())
}
