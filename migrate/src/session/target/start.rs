//! From the commit to the running guest, without leaving the thread: each hop between threads
//! would be time in which the guest runs nowhere.

use std::collections::VecDeque;
use std::time::Instant;

use crate::failpoint;
use crate::handover::effect::{Effect, Input};
use crate::handover::journal::Mark;
use crate::handover::target::Target;
use crate::handover::term::Millis;
use crate::port::{Lock, PausedGuest, Rights};

/// What the thread has, and gives back.
pub(super) struct Start<P: PausedGuest, D> {
    pub(super) machine: Target,
    pub(super) now: Millis,
    pub(super) effects: VecDeque<Effect>,
    pub(super) rights: D,
    pub(super) guest: Guest<P>,
    /// Why a step did not succeed, for people.
    pub(super) trouble: String,
    /// When the mark was set, and when the guest ran.
    pub(super) taken: Option<Instant>,
    pub(super) ran: Option<Instant>,
}

/// The guest on its way.
pub(super) enum Guest<P: PausedGuest> {
    Here(P),
    Runs(P::Running),
    Stuck(P, String),
}

impl<P: PausedGuest, D: Rights> Start<P, D> {
    /// Does what the machine asks for as long as it can be done here.
    pub(super) fn run(mut self) -> Self {
        while let Some(effect) = self.effects.pop_front() {
            let input = match effect {
                Effect::TakeOwner => self.take_owner(),
                Effect::Stamp(term) => match self.rights.stamp(term) {
                    Ok(()) => Input::Stamped(term),
                    Err(why) => self.failed(&why, Input::StampFailed),
                },
                Effect::Mark(mark @ Mark::Ran(_)) => match self.rights.mark(mark) {
                    Ok(()) => {
                        self.taken = Some(Instant::now());
                        Input::Marked(mark)
                    }
                    Err(why) => self.failed(&why, Input::MarkFailed(mark)),
                },
                Effect::Run { paused } => {
                    self = self.let_run(paused);
                    continue;
                }
                other => {
                    self.effects.push_front(other);
                    return self;
                }
            };
            let (machine, effects) = self.machine.step(input, self.now);
            self.machine = machine;
            self.effects.extend(effects);
        }
        self
    }

    fn failed(&mut self, why: &D::Error, input: Input) -> Input {
        self.trouble = why.to_string();
        input
    }

    fn take_owner(&mut self) -> Input {
        match self.rights.take_owner() {
            Ok(Lock::Taken(beside)) => Input::OwnerTaken(beside),
            Ok(Lock::Busy) => {
                self.trouble = "the source's host still holds a disk of the guest".into();
                Input::OwnerBusy
            }
            Err(why) => self.failed(&why, Input::OwnerBusy),
        }
    }

    fn let_run(mut self, paused: bool) -> Self {
        if let Guest::Here(guest) = self.guest {
            let _ = failpoint::at(|| "target.run.before".into());
            self.guest = match (paused, guest) {
                (true, guest) => Guest::Here(guest),
                (false, guest) => match guest.resume() {
                    Ok(guest) => Guest::Runs(guest),
                    Err((guest, why)) => Guest::Stuck(guest, why.to_string()),
                },
            };
            self.ran = Some(Instant::now());
            let _ = failpoint::at(|| "target.run.after".into());
        }
        self
    }
}
