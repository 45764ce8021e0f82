//! While the guest runs: rounds, the rehearsal beside them, and what they end with.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::super::Event;
use super::super::edge::Clock;
use super::super::record::micros;
use super::super::report::{Reason, Rehearsal};
use super::super::wait::blocking;
use super::hold::Hold;
use super::session::{Done, Session, Trial};
use crate::codec::DigestKey;
use crate::converge::{Advice, Costs, Limits, Why};
use crate::handover::effect::Input;
use crate::handover::source::pause_limit;
use crate::port::{self, Rights, RunningGuest};
use crate::precopy::{End, Precopy, PrecopyError, RoundReport};
use crate::pump::{Source as Pump, TalkError};
use crate::wire::Message as Wire;
use crate::wire::control::Note;

/// What is assumed of the time between the decision and the pause, beside round trips: two
/// records on two hosts.
const OFFER: Duration = Duration::from_millis(10);

/// A peer's text with what it is about.
pub(super) fn text_of(what: &str, text: &Note) -> String {
    if text.as_str().is_empty() { what.to_owned() } else { format!("{what}: {text}") }
}

/// How long the pause that `advice` leads to may last. Nobody accepts one beyond the time that is
/// allowed for everything.
fn pause_ms(limits: Limits, advice: &Advice) -> u64 {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let accepted = advice.prediction.map_or(0, |p| millis(p.blackout.total()));
    pause_limit(millis(limits.max_downtime), accepted.min(millis(limits.timeout)))
}

impl<G: RunningGuest, D: Rights, C: Clock> Session<G, D, C> {
    /// The dirty log is on: copying begins.
    pub(super) fn logged(&mut self, log: Result<G::Log, G::Error>) {
        let log = match log {
            Ok(log) => log,
            Err(why) => {
                let why = format!("the dirty log cannot be switched on: {why}");
                return self.fail(Reason::CopyFailed, why);
            }
        };
        let (Some(ram), Some(lanes)) = (self.ram.take(), self.lanes.take()) else {
            return self.fail(Reason::CopyFailed, "nothing to copy (a defect of this program)");
        };
        let key = DigestKey::new(self.plan.digest_key);
        let source = Pump::new(self.line.version(), 0, ram, log, key);
        self.event(Event::Copying(source.live()));
        let mut copy = Precopy::new(source, lanes, self.cancel.clone());
        let mut talk = self.line.pump_talk();
        let (limits, on_stall) = (self.plan.limits, self.plan.on_stall);
        let (costs, handle) = (Arc::clone(&self.costs), self.line.handle().clone());
        let rounds = self.rounds.0.clone();
        self.copy_away = true;
        // Beside the first pass, so that nobody waits for it.
        self.begin_trial();
        self.begin_claim();
        self.jobs.start(async move {
            let costs = move |exchange: Option<Duration>| {
                let costs = *costs.lock().unwrap_or_else(PoisonError::into_inner);
                let round_trip = exchange.unwrap_or_else(|| handle.stats().control.rtt);
                costs.map(|c| Costs { round_trip, offer: OFFER + 2 * round_trip, ..c })
            };
            // The session outlives this future.
            let seen = move |report: &RoundReport, advice: &Advice| {
                let _ = rounds.send((*report, *advice));
            };
            let end = copy.run(&mut talk, limits, on_stall, costs, seen).await;
            Done::Copied(Box::new((copy, talk)), end)
        });
    }

    /// A round is done.
    pub(super) fn round(&mut self, report: Box<RoundReport>, advice: Box<Advice>) {
        self.log.round(&report, Some(&advice));
        self.event(Event::Round(report, advice));
    }

    /// Takes a state of the running guest, for the other side to try.
    fn begin_trial(&mut self) {
        let Hold::Running(mut guest) = self.hold.take() else { return };
        self.trial = Trial::Begun;
        self.jobs.start(async move {
            let (guest, trial) = blocking(move || {
                let trial = guest.rehearsal_state();
                (guest, trial)
            })
            .await;
            Done::TrialState(guest, trial)
        });
    }

    pub(super) async fn trial_state(&mut self, trial: Result<port::Trial, G::Error>) {
        let port::Trial { state, save, storage } = match trial {
            Ok(trial) => trial,
            Err(why) => {
                let why = format!("the guest's state cannot be saved: {why}");
                return self.fail(Reason::GuestFailed, why);
            }
        };
        let bytes = state.len();
        if bytes >= self.line.limit() {
            let limit = self.line.limit();
            let why =
                format!("the guest's state of {bytes} bytes is more than the {limit} of a message");
            return self.fail(Reason::GuestFailed, why);
        }
        let trial = Rehearsal {
            state_bytes: bytes as u64,
            save_us: micros(save),
            storage_us: micros(storage),
            restore_us: 0,
            problems: Vec::new(),
        };
        self.log.report.rehearsal = Some(trial);
        match state.try_into() {
            Ok(state) => self.line.say(&Wire::Rehearse { state }).await,
            Err(why) => self.fail(Reason::GuestFailed, format!("the guest's state: {why}")),
        }
    }

    /// The other side has tried it.
    pub(super) fn rehearsed(&mut self, restore_us: u64, problems: &[Note]) {
        if self.trial != Trial::Begun {
            return;
        }
        let Some(trial) = &mut self.log.report.rehearsal else { return };
        self.trial = Trial::Done;
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        trial.restore_us = restore_us;
        trial.problems.clone_from(&problems);
        self.event(Event::Rehearsed { restore_us, problems: problems.clone() });
        if problems.is_empty() {
            self.tell_costs();
        } else {
            self.peer.ended = true;
            self.fail(Reason::Incompatible, problems.join("; "));
        }
    }

    /// What a switch costs, as soon as both the other side and the arbiter were tried.
    pub(super) fn tell_costs(&self) {
        let (Trial::Done, Some(trial)) = (self.trial, &self.log.report.rehearsal) else { return };
        let Some(arbiter) = self.desk.cost() else { return };
        let costs = Costs {
            save: Duration::from_micros(trial.save_us),
            restore: Duration::from_micros(trial.restore_us),
            storage: Duration::from_micros(trial.storage_us),
            arbiter,
            state_bytes: trial.state_bytes,
            ..Costs::default()
        };
        *self.costs.lock().unwrap_or_else(PoisonError::into_inner) = Some(costs);
    }

    /// Copying has ended.
    pub(super) async fn copied(&mut self, end: Result<End, PrecopyError>) {
        match end {
            Ok(End::Switch(advice)) => {
                self.log.predicted(&advice);
                if self.desk.is_there() {
                    self.look_before_offer(Box::new(advice));
                } else {
                    self.offer_switch(&advice).await;
                }
            }
            Ok(End::GiveUp(advice)) => {
                let reason = match advice.why {
                    Why::OutOfTime { .. } => Reason::TimeUp,
                    _ => Reason::DoesNotConverge,
                };
                self.fail(reason, advice.why.to_string());
            }
            Err(why) => self.copy_failed(&why),
        }
    }

    pub(super) fn copy_failed(&mut self, why: &PrecopyError) {
        let reason = match why {
            // Whoever cancelled it has said why; a link that is gone has its own limit.
            PrecopyError::Cancelled => return,
            _ if why.is_cut() => return,
            PrecopyError::TimeUp(_) => Reason::TimeUp,
            PrecopyError::Differs(_) => Reason::DigestDiffers,
            PrecopyError::Refused(_) => Reason::Refused,
            PrecopyError::Unexpected(_)
            | PrecopyError::Count { .. }
            | PrecopyError::Talk(TalkError::Wire(_)) => Reason::Protocol,
            PrecopyError::Talk(_) => Reason::PeerGone,
            PrecopyError::Send(_) | PrecopyError::Abandoned => Reason::CopyFailed,
        };
        self.fail(reason, why.to_string());
    }

    /// The time to switch has come.
    pub(super) async fn offer_switch(&mut self, advice: &Advice) {
        let id = self.plan.switch;
        let pause_ms = pause_ms(self.plan.limits, advice);
        match self.with_rights(Rights::beside).await {
            Ok(beside) => self.inputs.push_back(Input::Switch { id, beside, pause_ms }),
            Err(why) => {
                let why = format!("what stands beside the disks cannot be read: {why}");
                self.fail(Reason::Disks, why);
            }
        }
    }
}
