//! What the machine asks for, done in order.

use super::super::Event;
use super::super::edge::Clock;
use super::super::report::{Reason, Side, Step};
use super::super::wait::blocking;
use super::super::words::to_wire;
use super::arbiter::Question;
use super::hold::{Back, Hold};
use super::session::Session;
use crate::failpoint;
use crate::handover::effect::{Effect, Input, Notice, Step as Durably};
use crate::handover::journal::{Mark, Record};
use crate::handover::message::{Body, Message, TargetSays, ToSource, ToTarget};
use crate::handover::proof::{NeverRanProof, OfferProof, WithdrawnProof};
use crate::handover::term::{Switch, Term};
use crate::port::{Lock, PausedGuest, Rights, RunningGuest};
use crate::wire::Message as Wire;
use crate::wire::control::Note;

/// After so many words without an answer they go around the link, too.
const PATIENCE: u32 = 5;

impl<G: RunningGuest, D: Rights, C: Clock> Session<G, D, C> {
    pub(super) async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send(message) => self.send(message).await,
            Effect::Commit(_) => self.commit().await,
            Effect::EndAttempt => {
                let text = Note::clipped(self.log.cause_text());
                self.line.say(&Wire::Cancel { text }).await;
            }
            Effect::Record(record) => self.record(record).await,
            Effect::Mark(Mark::Ceded(_)) => self.cede().await,
            Effect::StampOffer(term) => self.stamp_offer(term).await,
            Effect::Stamp(term) => self.stamp(term).await,
            Effect::TakeOwner => self.take_owner().await,
            Effect::DropOwner => {
                if !self.owner_dropped {
                    self.with_rights(Rights::drop_owner).await;
                }
            }
            Effect::Pause => self.pause(),
            Effect::Resume => self.resume().await,
            Effect::LastRound => self.last_round(),
            Effect::Audit => self.audit(),
            Effect::Discard => self.discard().await,
            Effect::SetTimer(timer, at) => self.timers.set(timer, at),
            Effect::Report(notice) => self.report(notice),
            Effect::CompareAndSet { expect, want } => self.ask(Question::Swap { expect, want }),
            Effect::ReadArbiter => self.ask(Question::Read),
            // A target's.
            Effect::Mark(Mark::Ran(_))
            | Effect::TakeNext
            | Effect::DropNext
            | Effect::Restore
            | Effect::Run { .. } => {}
        }
    }

    /// Uses the rights on a thread that may block.
    pub(super) async fn with_rights<T: Send + 'static>(
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

    async fn send(&mut self, message: Message) {
        if let Body::ToTarget(ToTarget::LastPiece { paused }) = message.body {
            return self.last_piece(paused).await;
        }
        self.say(&message).await;
    }

    /// The point of doubt: from here on the guest is held as one in doubt.
    async fn last_piece(&mut self, paused: bool) {
        let hold = self.hold.take();
        let Hold::Stopped(stopped) = hold else {
            self.hold = hold;
            return;
        };
        let (doubt, piece) = stopped.doubt(paused);
        self.hold = Hold::InDoubt(doubt);
        // Sent once: without a link it goes nowhere, and the deadline ends the doubt.
        let message = to_wire(&piece.message(), "", self.state.take());
        self.line.say(&message).await;
        self.log.step(Step::LastPiece);
    }

    /// Says it on the link; around it if that is gone or silent.
    async fn say(&mut self, message: &Message) {
        if self.line.is_up() {
            self.line.say(&to_wire(message, "", None)).await;
        }
        if !self.line.is_up() || self.peer.around || self.repeats >= PATIENCE {
            // The machines say again what matters.
            if !failpoint::around(Side::Source, "send-around", message).is_lost() {
                let _ = self.outside.messages.try_send(*message);
            }
        }
    }

    async fn commit(&mut self) {
        let Hold::Frozen(frozen) = &self.hold else { return };
        let message = frozen.commit().message();
        self.say(&message).await;
        self.log.step(Step::Committed);
        self.repeats = self.repeats.saturating_add(1);
    }

    async fn record(&mut self, record: Record) {
        let done = match record {
            Record::Offered(switch) => {
                let proof = self.with_rights(move |d| OfferProof::record(d, switch)).await;
                proof.map(|proof| self.proofs.offer = Some(proof))
            }
            Record::Withdrawn(_) if matches!(self.hold, Hold::InDoubt(_)) => self.withdraw().await,
            Record::Owner { term } if matches!(self.hold, Hold::Frozen(_)) => {
                self.take_back(term).await
            }
            _ => self.with_rights(move |d| d.record(record)).await,
        };
        match (done, record) {
            (Ok(()), _) => self.inputs.push_back(Input::Recorded(record)),
            (Err(why), Record::Offered(_)) => {
                self.log.cause(Reason::Journal, format!("the journal cannot be written: {why}"));
                self.inputs.push_back(Input::RecordFailed(record));
            }
            (Err(why), _) => {
                if matches!(record, Record::Withdrawn(_)) {
                    self.unsaid = self.unsaid.saturating_add(1);
                }
                self.in_trouble(Durably::Journal, why.to_string());
                self.later(Input::RecordFailed(record));
            }
        }
    }

    pub(super) fn in_trouble(&mut self, step: Durably, why: String) {
        self.trouble = why;
        self.retrying(step);
    }

    /// Tells of it once, however often it is tried again.
    fn retrying(&mut self, step: Durably) {
        let told = (step, self.trouble.clone());
        if self.told.as_ref() != Some(&told) {
            self.told = Some(told);
            self.event(Event::Retrying { step, why: self.trouble.clone() });
        }
    }

    /// Keeps a guest in doubt: the journal first.
    async fn withdraw(&mut self) -> Result<(), D::Error> {
        let hold = self.hold.take();
        let Hold::InDoubt(doubt) = hold else {
            self.hold = hold;
            return Ok(());
        };
        let (doubt, proof) = self
            .with_rights(move |d| {
                let proof = WithdrawnProof::record(d, &doubt);
                (doubt, proof)
            })
            .await;
        self.hold = Hold::InDoubt(doubt);
        self.proofs.back = Back::Withdrawing(proof?);
        Ok(())
    }

    /// Takes a guest back that never ran at the target: the journal first.
    async fn take_back(&mut self, term: Term) -> Result<(), D::Error> {
        let hold = self.hold.take();
        let (Hold::Frozen(frozen), Some(switch)) = (hold, self.machine.switch().copied()) else {
            return Ok(());
        };
        // The machine asks for this only when it has heard it.
        let never = ToSource::Says(TargetSays::NeverRan, None);
        let heard = Message::to_source(switch, never);
        let (frozen, proof) = self
            .with_rights(move |d| {
                let proof = NeverRanProof::record(d, &frozen, &heard, term);
                (frozen, proof)
            })
            .await;
        self.hold = Hold::Frozen(frozen);
        match proof {
            Ok(proof) => self.proofs.back = Back::Returning(proof),
            Err(crate::handover::proof::NotBack::Failed(why)) => return Err(why),
            Err(other) => self.log.note(format!("the guest was not taken back: {other}")),
        }
        Ok(())
    }

    /// Sets the mark with which the guest is given away, and lets OWNER go: the target may ask
    /// for it as soon as it hears the commit.
    async fn cede(&mut self) {
        let hold = self.hold.take();
        let Hold::InDoubt(doubt) = hold else {
            self.hold = hold;
            return;
        };
        let ceded = self
            .with_rights(move |d| {
                let frozen = doubt.cede(d)?;
                d.drop_owner();
                Ok(frozen)
            })
            .await;
        let Some(Switch { id, .. }) = self.machine.switch().copied() else { return };
        match ceded {
            Ok(frozen) => {
                self.owner_dropped = true;
                self.hold = Hold::Frozen(frozen);
                self.log.step(Step::Marked);
                self.inputs.push_back(Input::Marked(Mark::Ceded(id)));
            }
            Err((doubt, why)) => {
                let why: D::Error = why;
                self.hold = Hold::InDoubt(doubt);
                self.in_trouble(Durably::Mark, why.to_string());
                self.inputs.push_back(Input::MarkFailed(Mark::Ceded(id)));
            }
        }
    }

    async fn stamp_offer(&mut self, term: Term) {
        let done = self.with_rights(move |d| d.stamp_offer(term)).await;
        self.inputs.push_back(match done {
            Ok(()) => Input::OfferStamped,
            Err(why) => {
                let why = format!("the term cannot be written beside the disks: {why}");
                self.log.cause(Reason::Disks, why);
                Input::StampFailed
            }
        });
    }

    /// The disks, after the journal.
    async fn stamp(&mut self, term: Term) {
        let (back, failed) = match std::mem::take(&mut self.proofs.back) {
            Back::Withdrawing(proof) => match self.with_rights(move |d| proof.stamp(d)).await {
                Ok(proof) => (Back::Withdrawn(proof), None),
                Err((proof, why)) => (Back::Withdrawing(proof), Some(why)),
            },
            Back::Returning(proof) => match self.with_rights(move |d| proof.stamp(d)).await {
                Ok(proof) => (Back::Returned(proof), None),
                Err((proof, why)) => (Back::Returning(proof), Some(why)),
            },
            other => (other, None),
        };
        self.proofs.back = back;
        let input = match failed {
            None => Input::Stamped(term),
            Some(why) => {
                self.in_trouble(Durably::Stamp, why.to_string());
                Input::StampFailed
            }
        };
        self.inputs.push_back(input);
    }

    async fn take_owner(&mut self) {
        let taken = self.with_rights(Rights::take_owner).await;
        let input = match taken {
            Ok(Lock::Taken(beside)) => {
                self.owner_dropped = false;
                Input::OwnerTaken(beside)
            }
            Ok(Lock::Busy) => {
                self.in_trouble(Durably::Lock, "another host holds a disk of the guest".into());
                Input::OwnerBusy
            }
            Err(why) => {
                self.in_trouble(Durably::Lock, why.to_string());
                Input::OwnerBusy
            }
        };
        self.inputs.push_back(input);
    }

    async fn discard(&mut self) {
        let hold = self.hold.take();
        let Hold::Frozen(frozen) = hold else {
            self.hold = hold;
            return;
        };
        let _ = failpoint::at(|| "source.discard".into());
        blocking(move || frozen.retire().end()).await;
        self.hold = Hold::Gone;
    }

    /// Lets the guest run on, wherever it is. A pause or a last round that is under way ends
    /// first: at once, or when the thread that has the guest gives it back.
    async fn resume(&mut self) {
        self.cancel.cancel();
        while matches!(self.hold, Hold::Away) {
            let done = self.jobs.next().await;
            self.done(done).await;
        }
        let paused = match self.hold.take() {
            Hold::Stopped(stopped) => stopped.abort(),
            Hold::InDoubt(doubt) => match std::mem::take(&mut self.proofs.back) {
                Back::Withdrawn(proof) => match doubt.keep(proof) {
                    Ok(paused) => paused,
                    Err(doubt) => return self.hold = Hold::InDoubt(doubt),
                },
                _ => return self.hold = Hold::InDoubt(doubt),
            },
            Hold::Frozen(frozen) => match std::mem::take(&mut self.proofs.back) {
                Back::Returned(proof) => match frozen.come_back(proof) {
                    Ok(paused) => paused,
                    Err(frozen) => return self.hold = Hold::Frozen(frozen),
                },
                Back::Claimed(proof) => match frozen.claimed(proof) {
                    Ok(paused) => paused,
                    Err(frozen) => return self.hold = Hold::Frozen(frozen),
                },
                _ => return self.hold = Hold::Frozen(frozen),
            },
            other => return self.hold = other,
        };
        let _ = failpoint::at(|| "source.resume.before".into());
        self.hold = match blocking(move || paused.resume()).await {
            Ok(guest) => Hold::Running(guest),
            Err((paused, why)) => Hold::Stuck(paused, why.to_string()),
        };
        let _ = failpoint::at(|| "source.resume.after".into());
        self.log.report.downtime_us = self.log.since_black();
    }

    fn report(&mut self, notice: Notice) {
        match notice {
            Notice::TooLateToCancel => self.event(Event::TooLateToCancel),
            Notice::Retrying(step) => self.retrying(step),
            Notice::Kept(why) => self.kept_because(why),
            Notice::Moved { audited: false } if self.plan.audit => {
                self.log.note("the frozen memory is not what was sent, or could not be compared");
            }
            // The outcome tells.
            Notice::Moved { .. } | Notice::Superseded | Notice::Arrived | Notice::NotTaken(_) => {}
        }
    }
}
