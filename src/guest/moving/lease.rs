//! The guest of a move, as the engine holds it: a lease of the owner's machine.
//!
//! While memory is copied the machine stays with the owner; the engine has its RAM and asks for
//! the rest. For the switch the machine itself changes hands: whoever holds [`LentPaused`] has
//! it, and gives it back or ends it. Nothing here decides.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use migrate_engine::port::{NotPaused, PausedGuest, RunningGuest, Trial};

use crate::api::{ErrorCode, Failure};
use crate::guest::inbox::Inbox;
use crate::guest::machine::PausedMachine;

/// What the engine asks the owner for.
pub enum Lease<P: PausedMachine> {
    /// Switch the dirty log on.
    StartLog(Sender<Result<P::Log, Failure>>),
    /// The state as it is now, for a rehearsal.
    RehearsalState(Sender<Result<Trial, Failure>>),
    /// The machine, standing still.
    Pause(Sender<Option<Lent<P>>>),
    /// The machine is given back, to go on as before.
    GiveBack(Lent<P>, Sender<Result<(), (Lent<P>, Failure)>>),
}

/// A machine that is with the engine.
pub struct Lent<P> {
    /// The machine.
    pub machine: P,
    /// It ran; else its user had paused it.
    pub ran: bool,
}

/// The machine is with its owner.
pub struct LentRunning<P: PausedMachine> {
    inbox: Inbox<P>,
    ram: P::Ram,
}

/// The machine is here.
pub struct LentPaused<P: PausedMachine> {
    lent: Lent<P>,
    inbox: Inbox<P>,
    ram: P::Ram,
}

impl<P: PausedMachine> LentRunning<P> {
    /// A lease of the machine with this RAM, from the owner behind `inbox`.
    pub fn new(inbox: Inbox<P>, ram: P::Ram) -> Self {
        Self { inbox, ram }
    }

    fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Lease<P>) -> Receiver<T> {
        let (sender, receiver) = channel();
        self.inbox.lease(question(sender));
        receiver
    }
}

impl<P: PausedMachine> LentPaused<P> {
    /// The machine.
    pub fn into_machine(self) -> P {
        self.lent.machine
    }
}

fn gone<E>(_: E) -> Failure {
    Failure::new(ErrorCode::NotFound, "the guest has ended", "see: migrate ls -a")
}

impl<P: PausedMachine> RunningGuest for LentRunning<P> {
    type Paused = LentPaused<P>;
    type Ram = P::Ram;
    type Log = P::Log;
    type Error = Failure;

    fn ram(&self) -> P::Ram {
        self.ram.clone()
    }

    fn start_log(&self) -> Result<P::Log, Failure> {
        self.ask(Lease::StartLog).recv().map_err(gone)?
    }

    fn rehearsal_state(&mut self) -> Result<Trial, Failure> {
        self.ask(Lease::RehearsalState).recv().map_err(gone)?
    }

    fn pause(self) -> Result<LentPaused<P>, NotPaused<Self, Failure>> {
        match self.ask(Lease::Pause).recv() {
            Ok(Some(lent)) => Ok(LentPaused { lent, inbox: self.inbox, ram: self.ram }),
            Ok(None) | Err(_) => Err(NotPaused::Ended),
        }
    }
}

impl<P: PausedMachine> PausedGuest for LentPaused<P> {
    type Running = LentRunning<P>;
    type Error = Failure;

    fn save(&mut self) -> Result<Vec<u8>, Failure> {
        self.lent.machine.save_state()
    }

    fn resume(self) -> Result<LentRunning<P>, (Self, Failure)> {
        let Self { lent, inbox, ram } = self;
        let running = LentRunning::new(inbox, ram);
        let (sender, receiver) = channel();
        running.inbox.lease(Lease::GiveBack(lent, sender));
        match receiver.recv() {
            // An owner that is gone took the machine with it.
            Ok(Ok(())) | Err(_) => Ok(running),
            Ok(Err((lent, failure))) => {
                let LentRunning { inbox, ram } = running;
                Err((Self { lent, inbox, ram }, failure))
            }
        }
    }

    fn stop_time(&self) -> Duration {
        self.lent.machine.stop_time()
    }

    fn retire(self) {}
}
