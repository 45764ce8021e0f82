//! What the machine asks for, done in order.

use std::time::{Duration, Instant};

use super::super::Event;
use super::super::edge::Clock;
use super::super::record::micros;
use super::super::report::{Reason, Side, Step};
use super::super::wait::blocking;
use super::super::words::to_wire;
use super::session::{Done, Hold, Session};
use super::start::{Guest, Start};
use crate::failpoint;
use crate::handover::effect::{Effect, Input, Notice, Step as Durably};
use crate::handover::journal::Record;
use crate::handover::message::{Body, Message, TargetSays, ToSource};
use crate::port::{Lock, PausedGuest, Receiver, Rights};
use crate::wire::Message as Wire;

/// After so many questions without an answer they go around the link, too.
const PATIENCE: u32 = 5;

impl<R: Receiver, D: Rights, C: Clock> Session<R, D, C> {
    pub(super) async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send(message) => self.say(&message).await,
            Effect::Record(record) => self.record(record).await,
            Effect::TakeNext => self.take_next().await,
            Effect::DropNext => self.with_rights(Rights::drop_next).await,
            Effect::DropOwner => self.with_rights(Rights::drop_owner).await,
            Effect::TakeOwner | Effect::Stamp(_) | Effect::Mark(_) | Effect::Run { .. } => {
                self.effects.push_front(effect);
                self.start().await;
            }
            Effect::Restore => self.restore(),
            Effect::Discard => self.discard().await,
            Effect::SetTimer(timer, at) => self.timers.set(timer, at),
            Effect::Report(notice) => self.report(notice),
            // A source's.
            Effect::Commit(_)
            | Effect::EndAttempt
            | Effect::StampOffer(_)
            | Effect::CompareAndSet { .. }
            | Effect::ReadArbiter
            | Effect::Pause
            | Effect::Resume
            | Effect::LastRound
            | Effect::Audit => {}
        }
    }

    /// Uses the rights on a thread that may block.
    async fn with_rights<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut D) -> T + Send + 'static,
    ) -> T {
        let Some(mut rights) = self.rights.take() else {
            // Only a session that is dropped in the middle has none.
            return std::future::pending().await;
        };
        let (rights, done) = blocking(move || {
            let done = work(&mut rights);
            (rights, done)
        })
        .await;
        self.rights = Some(rights);
        done
    }

    /// Says it on the link; around it if that is gone or silent.
    async fn say(&mut self, message: &Message) {
        let says = match message.body {
            Body::ToSource(ToSource::Says(says, _)) => Some(says),
            _ => None,
        };
        if says == Some(TargetSays::Prepared) {
            self.log.step(Step::PreparedSaid);
        }
        if message.body == Body::ToSource(ToSource::Ask) {
            self.repeats = self.repeats.saturating_add(1);
        }
        let text = match says {
            Some(TargetSays::NeverRan | TargetSays::Refuses(_)) => self.log.cause_text().to_owned(),
            _ => String::new(),
        };
        if self.line.is_up() {
            self.line.say(&to_wire(message, &text, None)).await;
        }
        if !self.line.is_up() || self.peer.around || self.repeats >= PATIENCE {
            // The machine says again what matters.
            if !failpoint::around(Side::Target, "send-around", message).is_lost() {
                let _ = self.outside.messages.try_send(*message);
            }
        }
    }

    async fn record(&mut self, record: Record) {
        match self.with_rights(move |d| d.record(record)).await {
            Ok(()) => self.inputs.push_back(Input::Recorded(record)),
            Err(why) if matches!(record, Record::Receiving(_)) => {
                self.log.cause(Reason::Journal, format!("the journal cannot be written: {why}"));
                self.inputs.push_back(Input::RecordFailed(record));
            }
            Err(why) => {
                if matches!(record, Record::Tombstone(_)) {
                    self.unburied = self.unburied.saturating_add(1);
                    self.log
                        .cause(Reason::Journal, format!("the journal cannot be written: {why}"));
                }
                self.event(Event::Retrying { step: Durably::Journal, why: why.to_string() });
                self.later(Input::RecordFailed(record));
            }
        }
    }

    async fn take_next(&mut self) {
        let input = match self.with_rights(Rights::take_next).await {
            Ok(Lock::Taken(beside)) => Input::NextTaken(beside),
            Ok(Lock::Busy) => Input::NextBusy,
            Err(why) => {
                self.log.cause(Reason::Disks, format!("the disks cannot be locked: {why}"));
                Input::NextBusy
            }
        };
        self.inputs.push_back(input);
    }

    /// Takes the guest over: as much as can be done on one thread.
    async fn start(&mut self) {
        let hold = self.hold.take();
        let Hold::Here(guest) = hold else {
            self.hold = hold;
            self.effects.pop_front();
            return;
        };
        let Some(rights) = self.rights.take() else {
            return std::future::pending().await;
        };
        let start = Start {
            machine: self.machine,
            now: self.clock.now(),
            effects: std::mem::take(&mut self.effects),
            rights,
            guest: Guest::Here(guest),
            trouble: String::new(),
            taken: None,
            ran: None,
        };
        let start = blocking(move || start.run()).await;
        self.machine = start.machine;
        self.effects = start.effects;
        self.rights = Some(start.rights);
        self.hold = match start.guest {
            Guest::Here(guest) => Hold::Here(guest),
            Guest::Runs(guest) => Hold::Runs(guest),
            Guest::Stuck(guest, why) => Hold::Stuck(guest, why),
        };
        if !start.trouble.is_empty() {
            self.trouble = start.trouble;
        }
        if let Some(at) = start.taken {
            self.log.step_at(Step::Taken, at);
        }
        if let Some(at) = start.ran {
            self.log.step_at(Step::Ran, at);
            self.event(Event::Ran);
            self.tell_steps().await;
        }
        self.tell_phase();
    }

    /// Our side of the blackout, for the source's report.
    async fn tell_steps(&mut self) {
        let steps: Option<Vec<u64>> = Step::TARGET.iter().map(|s| self.log.done(*s)).collect();
        if let (Some(steps), Some(switch)) = (steps, self.machine.switch().copied())
            && let Ok(steps) = steps.try_into()
        {
            self.line.say(&Wire::Started { switch: switch.id, steps }).await;
        }
    }

    /// Restores what came, if it is what was sent.
    fn restore(&mut self) {
        if !self.verified {
            let why = "the memory that arrived is not what the source says that it sent";
            return self.not_restored(Reason::DigestDiffers, why.into());
        }
        let Some(state) = self.state.take() else {
            return self.not_restored(Reason::Protocol, "there is no state".into());
        };
        let hold = self.hold.take();
        let Hold::Empty(receiver) = hold else {
            self.hold = hold;
            let why = "the source switched in the middle of a rehearsal";
            return self.not_restored(Reason::Protocol, why.into());
        };
        self.jobs.start(async move {
            let (restored, took) = blocking(move || {
                let began = Instant::now();
                let restored = receiver.restore(state.as_slice());
                (restored, began.elapsed())
            })
            .await;
            Done::Restored(restored, took)
        });
    }

    fn not_restored(&mut self, reason: Reason, why: String) {
        self.log.cause(reason, why);
        self.inputs.push_back(Input::RestoreFailed);
    }

    pub(super) async fn restored(&mut self, restored: Result<R::Paused, R::Error>, took: Duration) {
        match restored {
            Ok(guest) => {
                self.hold = Hold::Here(guest);
                self.log.step(Step::Restored);
                if let (Some(switch), Some(pumping)) = (self.machine.switch(), &self.pump) {
                    let sums = vec![pumping.0.sum()].try_into().unwrap_or_default();
                    let (switch, restore_us) = (switch.id, micros(took));
                    self.line.say(&Wire::Restored { switch, restore_us, sums }).await;
                }
                self.inputs.push_back(Input::Restored);
            }
            Err(why) => {
                self.hold = Hold::Gone;
                self.not_restored(Reason::NeverRan, format!("the guest cannot be restored: {why}"));
            }
        }
    }

    /// Lets everything go that arrived. A trial or a restore that is under way ends first.
    async fn discard(&mut self) {
        while matches!(self.hold, Hold::Away) {
            let done = self.jobs.next().await;
            // What it says is not waited for any more.
            Box::pin(self.done(done)).await;
        }
        match std::mem::replace(&mut self.hold, Hold::Gone) {
            Hold::Empty(receiver) => blocking(move || drop(receiver)).await,
            Hold::Here(guest) => blocking(move || guest.retire()).await,
            other => self.hold = other,
        }
    }

    fn report(&mut self, notice: Notice) {
        match notice {
            Notice::Retrying(step) => {
                let why = self.trouble.clone();
                self.event(Event::Retrying { step, why });
            }
            Notice::NotTaken(why) => self.not_taken_because(why),
            // The outcome tells.
            Notice::Arrived
            | Notice::Superseded
            | Notice::Kept(_)
            | Notice::Moved { .. }
            | Notice::TooLateToCancel => {}
        }
    }
}
