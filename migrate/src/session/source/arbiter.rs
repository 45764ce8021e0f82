//! The arbiter, as the source asks it: the right claimed while the guest is copied, looked at just
//! before the offer, and every question of the machine, one after the other.
//!
//! One question at a time: the answer to an older one never comes after that to a newer one. A
//! question that is given up may still be carried out; the machine reads again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::edge::Clock;
use super::super::report::Reason;
use super::session::{Done, Session};
use crate::converge::Advice;
use crate::handover::claim;
use crate::handover::effect::{Input, Step as Durably};
use crate::handover::source::State;
use crate::handover::term::Stamp;
use crate::port::{Arbiter, Rights, RunningGuest, Stands, Unanswered};
use crate::wire::GuestId;

/// A question is given up after this time, in milliseconds.
const PATIENCE_MS: u64 = 1000;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Read,
    Swap { expect: Stamp, want: Stamp },
}

/// The session's way to the arbiter.
#[derive(Debug)]
pub(super) struct Desk {
    arbiter: Option<Arc<dyn Arbiter>>,
    guest: GuestId,
    /// A question of the machine is out.
    asking: bool,
    /// To be asked after it.
    next: Option<Question>,
    /// What its answers cost within a blackout; `None` until that is known.
    cost: Option<Duration>,
}

impl Desk {
    pub(super) fn new(arbiter: Option<Arc<dyn Arbiter>>, guest: GuestId) -> Self {
        // Without one nothing is to be measured.
        let cost = arbiter.is_none().then_some(Duration::ZERO);
        Self { arbiter, guest, asking: false, next: None, cost }
    }

    /// There is an arbiter.
    pub(super) fn is_there(&self) -> bool {
        self.arbiter.is_some()
    }

    /// What its answers cost within a blackout, if that is known.
    pub(super) fn cost(&self) -> Option<Duration> {
        self.cost
    }
}

/// Asks; silence ends after a while.
async fn ask<C: Clock>(
    arbiter: &dyn Arbiter,
    guest: GuestId,
    question: Question,
    clock: &C,
) -> Stands {
    let answer = match question {
        Question::Read => arbiter.read(guest),
        Question::Swap { expect, want } => arbiter.swap(guest, Some(expect), want),
    };
    patient(answer, clock).await
}

async fn patient<C: Clock>(answer: impl Future<Output = Stands>, clock: &C) -> Stands {
    let late = clock.now().after(PATIENCE_MS);
    tokio::select! {
        stands = answer => stands,
        () = clock.sleep_until(late) => {
            Err(Unanswered(format!("nothing came within {PATIENCE_MS} ms")))
        }
    }
}

/// Brings the right that stands in the arbiter up to the owner's term. Answers how long a read
/// and a change took together: the two that a blackout waits for.
async fn claim<C: Clock>(
    arbiter: &dyn Arbiter,
    guest: GuestId,
    held: Stamp,
    clock: &C,
) -> Result<Duration, String> {
    let began = Instant::now();
    let stands = patient(arbiter.read(guest), clock).await.map_err(|e| e.to_string())?;
    claim::moving(stands, held).map_err(|e| e.to_string())?;
    let after = patient(arbiter.swap(guest, stands, held), clock).await;
    match after.map_err(|e| e.to_string())? {
        Some(now) if now == held => Ok(began.elapsed()),
        _ => Err("somebody else claims the guest at the arbiter at the same time".into()),
    }
}

impl<G: RunningGuest, D: Rights, C: Clock> Session<G, D, C> {
    fn held(&self) -> Stamp {
        Stamp { term: self.plan.owned, host: self.plan.host }
    }

    /// Claims the guest at the arbiter, beside the first pass.
    pub(super) fn begin_claim(&mut self) {
        let Some(arbiter) = self.desk.arbiter.clone() else { return };
        let (guest, held, clock) = (self.desk.guest, self.held(), Arc::clone(&self.clock));
        self.jobs.start(async move {
            Done::Claimed(claim(arbiter.as_ref(), guest, held, clock.as_ref()).await)
        });
    }

    pub(super) fn claimed(&mut self, took: Result<Duration, String>) {
        match took {
            Ok(took) => {
                self.desk.cost = Some(took);
                self.tell_costs();
            }
            Err(why) => self.fail(Reason::Arbiter, why),
        }
    }

    /// Looks at the arbiter before anything is offered: a guest need not be stopped to find out
    /// that it does not answer.
    pub(super) fn look_before_offer(&mut self, advice: Box<Advice>) {
        let Some(arbiter) = self.desk.arbiter.clone() else { return };
        let (guest, clock) = (self.desk.guest, Arc::clone(&self.clock));
        self.jobs.start(async move {
            let stands = patient(arbiter.read(guest), clock.as_ref()).await;
            Done::Looked(advice, stands)
        });
    }

    pub(super) async fn looked(&mut self, advice: Box<Advice>, stands: Stands) {
        match stands {
            Ok(Some(stands)) if stands == self.held() => self.offer_switch(&advice).await,
            Ok(stands) => {
                let why = claim::moving(stands, self.held()).err();
                let why = why.map_or_else(|| "its claim has changed".into(), |e| e.to_string());
                self.fail(Reason::Arbiter, format!("the arbiter is in the way: {why}"));
            }
            Err(why) => self.fail(Reason::Arbiter, why.to_string()),
        }
    }

    /// A question of the machine. One that is out is answered first; a read waits for no other.
    pub(super) fn ask(&mut self, question: Question) {
        let Some(arbiter) = self.desk.arbiter.clone() else {
            return self.later(Input::ArbiterSilent);
        };
        if self.desk.asking {
            if question != Question::Read {
                self.desk.next = Some(question);
            }
            return;
        }
        self.desk.asking = true;
        let (guest, clock) = (self.desk.guest, Arc::clone(&self.clock));
        self.jobs.start(async move {
            Done::Answered(ask(arbiter.as_ref(), guest, question, clock.as_ref()).await)
        });
    }

    /// An answer, or the lack of one. A right that is gone is no answer: who can have it is not
    /// known, and nothing is decided before it stands there again.
    pub(super) fn answered(&mut self, stands: Stands) {
        self.desk.asking = false;
        if let Some(next) = self.desk.next.take() {
            return self.ask(next);
        }
        let why = match stands {
            Ok(Some(stamp)) => {
                if let (true, Err(why)) = (self.is_free(), claim::moving(Some(stamp), self.held()))
                {
                    self.log.cause(Reason::Arbiter, why.to_string());
                }
                return self.inputs.push_back(Input::Arbiter(stamp));
            }
            Ok(None) => "the arbiter knows nothing of the guest (any more)".to_owned(),
            Err(why) => why.to_string(),
        };
        if self.is_free() {
            self.log.cause(Reason::Arbiter, why);
            return self.inputs.push_back(Input::ArbiterSilent);
        }
        if matches!(self.machine.state(), State::Deciding { .. } | State::Returning { .. }) {
            self.in_trouble(Durably::Arbiter, why);
        }
        self.later(Input::ArbiterSilent);
    }
}
