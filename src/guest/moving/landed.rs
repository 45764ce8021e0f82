//! A guest that has just come from another host, before it has an owner in this process.

use std::sync::Arc;
use std::time::Duration;

use migrate_engine::port::{NotPaused, PausedGuest, Receiver, Rehearsal, RunningGuest, Trial};

use super::trial;
use crate::api::Failure;
use crate::guest::disks::DiskSet;
use crate::guest::machine::{MachineReceiver, PausedMachine, RunningMachine};
use crate::guest::save::SavedDisk;

/// A place for a guest to come to.
pub struct Landing<R: MachineReceiver> {
    /// The empty machine.
    pub receiver: R,
    /// The guest's disks on this host.
    pub disks: Arc<DiskSet>,
    /// The same, to be looked at.
    pub saved: Arc<[SavedDisk]>,
}

/// It is here and stands still.
#[derive(Debug)]
pub struct LandedPaused<P: PausedMachine>(pub P);

/// It is here and runs.
#[derive(Debug)]
pub struct LandedRunning<P: PausedMachine> {
    /// The machine.
    pub machine: P::Running,
    ram: P::Ram,
}

impl<R: MachineReceiver> Receiver for Landing<R> {
    type Ram = R::Ram;
    type Paused = LandedPaused<R::Paused>;
    type Error = Failure;

    fn ram(&self) -> R::Ram {
        self.receiver.ram()
    }

    fn rehearse(&mut self, state: &[u8]) -> Result<Rehearsal, Failure> {
        let Self { receiver, disks, saved } = self;
        Ok(trial::attempt(state, disks, saved, |state| receiver.rehearse(state)))
    }

    fn restore(self, state: &[u8]) -> Result<LandedPaused<R::Paused>, Failure> {
        self.receiver.restore(state).map(LandedPaused)
    }
}

impl<P: PausedMachine> PausedGuest for LandedPaused<P> {
    type Running = LandedRunning<P>;
    type Error = Failure;

    fn save(&mut self) -> Result<Vec<u8>, Failure> {
        self.0.save_state()
    }

    fn resume(self) -> Result<LandedRunning<P>, (Self, Failure)> {
        let ram = match self.0.units() {
            Ok(ram) => ram,
            Err(error) => {
                let failure = super::unexpected("its memory is out of reach", &error);
                return Err((self, failure));
            }
        };
        match self.0.resume() {
            Ok(machine) => {
                // At once: until the network hears of it, the guest is where it was.
                if let Err(error) = machine.controls().announce() {
                    tracing::warn!(%error, "the network was not told where the guest is");
                }
                Ok(LandedRunning { machine, ram })
            }
            Err((Some(paused), failure)) => Err((Self(paused), failure)),
            // Without its machine this process has nothing left to live for, and the daemon
            // decides by what is recorded.
            Err((None, failure)) => {
                tracing::error!(%failure, "the machine was lost when it was to run");
                std::process::abort()
            }
        }
    }

    fn stop_time(&self) -> Duration {
        self.0.stop_time()
    }

    fn retire(self) {}
}

impl<P: PausedMachine> RunningGuest for LandedRunning<P> {
    type Paused = LandedPaused<P>;
    type Ram = P::Ram;
    type Log = P::Log;
    type Error = Failure;

    fn ram(&self) -> P::Ram {
        self.ram.clone()
    }

    fn start_log(&self) -> Result<P::Log, Failure> {
        self.machine.start_log()
    }

    fn rehearsal_state(&mut self) -> Result<Trial, Failure> {
        Err(super::unexpected("a rehearsal", &"the guest has no owner yet"))
    }

    fn pause(self) -> Result<LandedPaused<P>, NotPaused<Self, Failure>> {
        Ok(LandedPaused(self.machine.pause()))
    }
}
