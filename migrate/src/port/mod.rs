//! What the engine needs of a guest, its memory, its rights and an arbiter. Traits only; they are
//! implemented next to the machine, and by the simulation.
//!
//! No method has a default body: whoever implements one has thought about it. Methods that wait
//! for a disk or a network are asynchronous; the others may take as long as their work takes and
//! are called on threads that may block. What only a proof of the hand-over allows (resuming
//! after the point of doubt, running at the target) is not here but in types of the hand-over
//! that hold the guest.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use crate::handover::journal::Ledger;
use crate::handover::proof::Durable;
use crate::handover::term::{Beside, HostId, Term};
use crate::unit::{Layout, Run, UnitIndex};
use crate::wire::GuestId;

/// Memory of a guest, read while the guest may be writing to it.
///
/// Every unit is copied once, into private memory; a unit that is written meanwhile comes out as
/// any mixture of old and new, and is dirty afterwards.
pub trait ReadUnits: Send + Sync {
    /// Why it failed. The guest is unharmed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// How it divides.
    fn layout(&self) -> Layout;

    /// Copies `unit` to `out`, which is as long as a unit.
    fn read(&self, unit: UnitIndex, out: &mut [u8]) -> Result<(), Self::Error>;

    /// The first run at or after unit `from` that was ever written to, without touching it. Units
    /// between runs are zero and must not be read, since reading would allocate them.
    fn next_touched(&self, from: u64) -> Result<Option<Run>, Self::Error>;
}

/// Memory of a guest that does not run, filled by the engine.
pub trait WriteUnits: Send + Sync {
    /// Why it failed. The attempt is lost.
    type Error: std::error::Error + Send + Sync + 'static;

    /// How it divides.
    fn layout(&self) -> Layout;

    /// Writes units with their content, which is as long as they are.
    fn write(&self, run: Run, content: &[u8]) -> Result<(), Self::Error>;

    /// Makes units zero, and gives back their memory where that is possible. Units that were
    /// never touched must stay untouched.
    fn zero(&self, run: Run) -> Result<(), Self::Error>;
}

/// The log of what a guest and its devices write. One exists for a guest at a time, held by the
/// tracker: nobody else clears.
pub trait DirtyLog: Send {
    /// Why it failed. What was written since is not known: start over.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Whether every unit shows as written once after the log was switched on. Otherwise all of
    /// memory must be taken for written.
    fn initially_set(&self) -> bool;

    /// Looks at what was written since the last harvest of each unit.
    fn sync(&mut self) -> Result<(), Self::Error>;

    /// Units found and not harvested yet.
    fn found(&self) -> u64;

    /// Takes what was found in `units` (widened to multiples of 64). Each part is re-armed
    /// *before* `visit` gets it, as number of the first unit and a word with a bit per unit; so a
    /// write after `visit` shows in a later harvest.
    fn harvest(
        &mut self,
        units: Range<u64>,
        visit: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Self::Error>;

    /// Switches logging off: the guest runs at full speed again. Dropping it does the same, but
    /// says nothing of errors.
    fn stop(self) -> Result<(), Self::Error>;
}

/// Why a guest could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum NotPaused<G, E> {
    /// It ended by itself just before: there is nothing to give back.
    #[error("the guest has ended")]
    Ended,
    /// It runs on, and is given back.
    #[error("the guest could not be stopped: {1}")]
    Failed(G, E),
}

/// A guest that runs. Whoever holds it, and nobody else, can stop it.
///
/// A guest that its user paused counts as one that runs: [`pause`](Self::pause) keeps it as it
/// is, and [`resume`](PausedGuest::resume) gives it back as it was.
pub trait RunningGuest: Sized + Send + 'static {
    /// The same guest, standing still.
    type Paused: PausedGuest<Running = Self>;
    /// Its memory.
    type Ram: ReadUnits + Clone + 'static;
    /// Its dirty log.
    type Log: DirtyLog + 'static;
    /// Why something failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Its memory.
    fn ram(&self) -> Self::Ram;

    /// Switches its dirty log on.
    fn start_log(&self) -> Result<Self::Log, Self::Error>;

    /// Its state at this moment, good for a rehearsal only. The guest may stand still for a
    /// moment, no longer than the state takes to be read.
    fn rehearsal_state(&mut self) -> Result<Trial, Self::Error>;

    /// Stops its CPUs and drains its devices. Blocks until that is done.
    fn pause(self) -> Result<Self::Paused, NotPaused<Self, Self::Error>>;
}

/// A guest that stands still and belongs to this process.
pub trait PausedGuest: Sized + Send + 'static {
    /// The same guest, running.
    type Running: RunningGuest<Paused = Self>;
    /// Why something failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Saves its state. This can write guest memory: harvest after it.
    fn save(&mut self) -> Result<Vec<u8>, Self::Error>;

    /// Runs it, or leaves it as its user had paused it. If that fails it still stands, and is
    /// given back. Returns when its CPUs run.
    fn resume(self) -> Result<Self::Running, (Self, Self::Error)>;

    /// How long stopping it took.
    fn stop_time(&self) -> Duration;

    /// Ends it here, without anything that outsiders could see.
    fn retire(self);
}

/// A state to rehearse with, and what it took to get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// The state.
    pub state: Vec<u8>,
    /// How long the guest stood still for it: to stop it and to save.
    pub save: Duration,
    /// How long a record beside its shared disks took to write; zero without any.
    pub storage: Duration,
}

/// What a rehearsal found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// How long restoring took.
    pub took: Duration,
    /// What would fail, each with its remedy. Empty: nothing.
    pub problems: Vec<String>,
}

/// A place where a guest can come into being: memory to fill, and a state to restore in the end.
pub trait Receiver: Sized + Send + 'static {
    /// Its memory.
    type Ram: WriteUnits + ReadUnits + Clone + 'static;
    /// The guest that comes out.
    type Paused: PausedGuest;
    /// Why something failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The memory.
    fn ram(&self) -> Self::Ram;

    /// Tries `state` without leaving a trace in memory, devices or outside.
    fn rehearse(&mut self, state: &[u8]) -> Result<Rehearsal, Self::Error>;

    /// Restores `state`. The guest stands still then. If that fails there is none.
    fn restore(self, state: &[u8]) -> Result<Self::Paused, Self::Error>;
}

/// What became of taking a lock of every disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// It is held on every disk, and beside them stands this; [`Beside::NOTHING`] without shared
    /// disks.
    Taken(Beside),
    /// Somebody else holds it on at least one; none is kept.
    Busy,
}

/// Everything through which a guest process holds its right to a guest: journal and marks (see
/// [`Durable`]), and the locks and terms of its shared disks. Every method blocks; a guest without
/// shared disks has nothing to do in those of this trait.
pub trait Rights: Durable<Error: std::error::Error + Send + Sync> + Send + 'static {
    /// Reads what stands beside the disks. The source asks, which holds OWNER.
    fn beside(&mut self) -> Result<Beside, Self::Error>;

    /// Writes the offered term beside every disk.
    fn stamp_offer(&mut self, term: Term) -> Result<(), Self::Error>;

    /// Takes OWNER of every disk, or of none. Taking what is held succeeds.
    fn take_owner(&mut self) -> Result<Lock, Self::Error>;

    /// Lets OWNER go. What is not held stays so.
    fn drop_owner(&mut self);

    /// Takes NEXT of every disk, or of none. Taking what is held succeeds.
    fn take_next(&mut self) -> Result<Lock, Self::Error>;

    /// Lets NEXT go. What is not held stays so.
    fn drop_next(&mut self);

    /// The journal as it durably stands, and whether terms stand beside any disk. `None`: an
    /// operator cannot say whose the guest is.
    fn known(&self) -> Option<(Ledger, bool)> {
        None
    }
}

/// Who owns a guest, as the arbiter knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Since which term.
    pub term: Term,
    /// The host.
    pub owner: HostId,
}

/// What an arbiter did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The new claim stands.
    Done,
    /// Another claim stood there, or none; it still does.
    Other(Option<Claim>),
}

/// It is not known whether the arbiter did it: read again, decide nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the arbiter did not answer: {0}")]
pub struct Unanswered(pub String);

/// A third party that keeps one claim per guest, and changes it only if it is what the caller
/// believes.
pub trait Arbiter: Send + Sync {
    /// Reads the claim; `None` if there is none.
    fn read(
        &self,
        guest: GuestId,
    ) -> impl Future<Output = Result<Option<Claim>, Unanswered>> + Send;

    /// Replaces `old` by `new` if `old` is what stands there.
    fn swap(
        &self,
        guest: GuestId,
        old: Option<Claim>,
        new: Claim,
    ) -> impl Future<Output = Result<Swap, Unanswered>> + Send;
}
