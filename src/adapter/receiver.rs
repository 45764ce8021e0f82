//! An empty machine of `vmm`, into which a guest comes from another host.

use std::io;
use std::time::{Duration, Instant};

use migrate_engine::port::Rehearsal;
use vmm::kvm::Kvm;
use vmm::machine::{Builder, ClockMode, Parts};

use super::failure;
use super::machine::VmmPaused;
use super::units::Ram;
use crate::api::Failure;
use crate::guest::machine::MachineReceiver;

/// A machine with memory and without content.
pub struct VmmReceiver {
    builder: Builder,
    ram: Ram,
    kvm: Kvm,
    /// For trials; put back together after each.
    trial: Option<Trial>,
}

/// What a trial machine is made of. It is made ahead, so that only the restore is measured, and
/// has memory of its own, of which nothing is touched but what KVM writes on a restore.
type Trial = Parts;

impl VmmReceiver {
    /// Makes memory and KVM side of the machine out of `parts`; `trial` is for a rehearsal.
    pub fn new(kvm: &Kvm, parts: Parts, trial: Parts) -> Result<Self, Failure> {
        let builder = Builder::new(kvm, parts).map_err(|e| failure::trial(&e))?;
        let ram =
            Ram::new(builder.ram().clone()).map_err(|e| failure::unexpected("guest memory", &e))?;
        Ok(Self { builder, ram, kvm: kvm.clone(), trial: Some(trial) })
    }

    fn try_out(&mut self, state: &[u8]) -> Result<Duration, Failure> {
        let Some(parts) = self.trial.take() else {
            let why = "a state is tried once for each attempt";
            return Err(failure::unexpected("the rehearsal", &why));
        };
        let builder = Builder::new(&self.kvm, parts).map_err(|e| failure::trial(&e))?;
        let began = Instant::now();
        let state = vmm::state::decode(state).map_err(|e| failure::trial(&e.into()))?;
        let restored = builder.restore(&state, ClockMode::Account, &mut |_| Ok(()));
        // Before the machine goes, which takes longer than to make it.
        let took = began.elapsed();
        restored.map_err(|e| failure::trial(&e))?;
        Ok(took)
    }
}

impl MachineReceiver for VmmReceiver {
    type Paused = VmmPaused;
    type Ram = Ram;

    fn ram(&self) -> Ram {
        self.ram.clone()
    }

    fn rehearse(&mut self, state: &[u8]) -> Rehearsal {
        match self.try_out(state) {
            Ok(took) => Rehearsal { took, problems: Vec::new() },
            Err(failure) => {
                let problem = format!("{}; {}", failure.0.message, failure.0.remedy);
                Rehearsal { took: Duration::ZERO, problems: vec![problem] }
            }
        }
    }

    fn restore(self, state: &[u8]) -> Result<VmmPaused, Failure> {
        let state = vmm::state::decode(state).map_err(|e| failure::state(&e))?;
        // Its memory is there already.
        let filled = &mut |_: &vmm::memory::GuestRam| Ok::<(), io::Error>(());
        let restored = self.builder.restore(&state, ClockMode::Account, filled);
        let (paused, report) = restored.map_err(|e| failure::restore(&e))?;
        if report.implausible {
            tracing::warn!("the hosts' clocks differ: guest time was not put forward");
        }
        Ok(VmmPaused(paused))
    }
}
