//! What the owner needs of a machine. One adapter joins it to `vmm`; tests use a fake.

use std::fs::File;
use std::io;
use std::time::Duration;

use migrate_engine::port::{DirtyLog, ReadUnits, Rehearsal, WriteUnits};
use vmm::cpu::Shown;

use super::savefile::SaveFileError;
use crate::api::Failure;

/// Puts bytes at an offset of guest RAM.
pub type Place<'a> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'a;
/// Fills guest RAM through the [`Place`] that it is given.
pub type Fill<'a> = dyn FnMut(&mut Place<'_>) -> Result<(), SaveFileError> + 'a;

/// How a saved machine comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Its clocks jump forward by the time that passed; else they continue where they were.
    pub account_for_pause: bool,
    /// Interfaces get the MACs of the definition, not those of the saved state.
    pub new_macs: bool,
    /// It must be told that it is a clone or went back in time: a new VM generation id.
    pub new_generation: bool,
}

/// Guest RAM as a file.
#[derive(Debug)]
pub struct RamFile {
    /// Its own handle on the RAM; the RAM lives at least as long.
    pub file: File,
    /// Length.
    pub bytes: u64,
}

impl RamFile {
    /// Bytes that the host has allocated for it.
    pub fn used_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().map_or(0, |m| m.blocks().saturating_mul(512))
    }
}

/// Makes machines of one identity, again and again: at the start and at each reset. Everything
/// that must be opened by name was opened before; making one works in a confined process.
pub trait MakeMachine: Send + 'static {
    /// What it makes.
    type Paused: PausedMachine;
    /// An empty machine, to be filled from elsewhere.
    type Receiver: MachineReceiver<Paused = Self::Paused>;

    /// A machine without content, into which a guest can come from another host.
    fn receiver(&mut self) -> Result<Self::Receiver, Failure>;

    /// A machine at its first instruction.
    fn boot(&mut self) -> Result<Self::Paused, Failure>;

    /// A machine as it was saved, and how far its clocks were put forward.
    fn restore(
        &mut self,
        state: &[u8],
        how: Restore,
        fill: &mut Fill<'_>,
    ) -> Result<(Self::Paused, Duration), Failure>;
}

/// A machine whose memory comes from elsewhere, and in the end its state.
pub trait MachineReceiver: Send + Sized + 'static {
    /// What comes out.
    type Paused: PausedMachine;
    /// Its RAM in units.
    type Ram: ReadUnits + WriteUnits + Clone + 'static;

    /// Its RAM.
    fn ram(&self) -> Self::Ram;

    /// Tries `state` on a machine that is thrown away, with memory of its own.
    fn rehearse(&mut self, state: &[u8]) -> Rehearsal;

    /// The machine, standing still. Its clocks account for the time since the state was saved.
    fn restore(self, state: &[u8]) -> Result<Self::Paused, Failure>;
}

/// A machine that stands still.
pub trait PausedMachine: Send + Sized + 'static {
    /// The same machine, running.
    type Running: RunningMachine<Paused = Self>;
    /// Its RAM in units.
    type Ram: ReadUnits + Clone + 'static;
    /// The log of what is written to its RAM.
    type Log: DirtyLog + 'static;

    /// Its RAM in units.
    fn units(&self) -> io::Result<Self::Ram>;

    /// Switches its dirty log on. One exists at a time.
    fn start_log(&self) -> Result<Self::Log, Failure>;

    /// How long its last stop took.
    fn stop_time(&self) -> Duration;

    /// Lets it run. On failure it may come back as it was.
    fn resume(self) -> Result<Self::Running, (Option<Self>, Failure)>;

    /// Everything but RAM, as bytes that [`MakeMachine::restore`] reads.
    fn save_state(&mut self) -> Result<Vec<u8>, Failure>;

    /// Its RAM.
    fn ram(&self) -> io::Result<RamFile>;

    /// Its controls.
    fn controls(&self) -> Box<dyn Controls>;
}

/// A machine that runs.
pub trait RunningMachine: Send + Sized + 'static {
    /// The same machine, standing still.
    type Paused: PausedMachine<Running = Self>;

    /// Switches its dirty log on. One exists at a time.
    fn start_log(&self) -> Result<<Self::Paused as PausedMachine>::Log, Failure>;

    /// Its RAM in units.
    fn units(&self) -> io::Result<<Self::Paused as PausedMachine>::Ram>;

    /// Its RAM.
    fn ram(&self) -> io::Result<RamFile>;

    /// Its controls.
    fn controls(&self) -> Box<dyn Controls>;

    /// Stops it: vCPUs first, then devices.
    fn pause(self) -> Self::Paused;
}

/// What can be done to a machine in any state.
pub trait Controls: Send {
    /// The CPU that the guest is shown.
    fn cpu(&self) -> Shown;
    /// Share of time that vCPUs may run, 1 to 100.
    fn cpu_share(&self) -> u8;
    /// Sets that share.
    fn set_cpu_share(&self, percent: u8) -> io::Result<()>;
    /// Presses the power button.
    fn press_power_button(&self);
    /// Tells the network where the guest is now. After the resume in a new place.
    fn announce(&self) -> io::Result<()>;
}
