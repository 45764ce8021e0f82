//! The tracker of one disk: announces writes to the map, closes epochs, and answers consumers.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::commit::Records;
use super::head::Fresh;
use super::store::Sidecar;
use crate::track::{Epoch, EpochError, EpochMap, InFlight, UnitSet};
use crate::unit::{Layout, Run};

/// A region whose stamps are durable and must stay so: a write has to make it hot first.
pub(super) const COLD: u8 = 0;
/// The record says that its stamps may not be durable.
pub(super) const HOT: u8 = 1;
/// Hot, and written to since the last turn of cooling.
pub(super) const TOUCHED: u8 = 2;

/// What a consumer remembers: everything before and in this epoch is safe with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The disk.
    pub disk: u128,
    /// The map's generation.
    pub generation: u64,
    /// The closed epoch.
    pub epoch: Epoch,
}

/// Why everything counts as changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// The consumer has no base.
    NoBase,
    /// Its base is of another disk or of a map that is gone, and this is why this one began.
    Began(Fresh),
    /// Its base is later than the map: the sidecar was put back to an earlier state.
    Older,
    /// The record cannot be written.
    Broken,
}

impl Whole {
    /// What people are told.
    pub fn text(self) -> &'static str {
        match self {
            Self::NoBase => "there is nothing yet to compare with",
            Self::Began(fresh) => fresh.text(),
            Self::Older => "the record of changes was put back to an earlier state",
            Self::Broken => Fresh::Unwritable.text(),
        }
    }
}

/// What changed after a base.
#[derive(Debug, PartialEq, Eq)]
pub enum Changed {
    /// These units, and no others.
    Units(UnitSet),
    /// Nobody knows: read the whole disk and compare.
    Whole(Whole),
}

/// Why no epoch was closed, or none that a base may be.
#[derive(Debug, thiserror::Error)]
pub enum BumpError {
    /// No next one.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// The record cannot be written.
    #[error("the record of the disk's changes cannot be written: {0}")]
    Broken(String),
    /// What was written to the disk cannot be made durable.
    #[error("the disk cannot be flushed: {0}")]
    Flush(#[from] io::Error),
}

/// A write on its way. Give it back with [`Tracker::settle`] when it has landed or failed.
#[derive(Debug)]
#[must_use = "settle it when the write has landed, or no epoch can be closed any more"]
pub struct Write {
    pub(super) units: InFlight,
    pub(super) epoch: u32,
}

/// An epoch that is closed while writes of it may still be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing(pub(super) Epoch);

/// Tracks one disk. Shared by all threads that write to it.
#[derive(Debug)]
pub struct Tracker<S: Sidecar> {
    pub(super) map: EpochMap<S::Stamps>,
    pub(super) store: S,
    pub(super) region_units: u64,
    /// One state per region; what it means is said in the module above.
    pub(super) heat: Box<[AtomicU8]>,
    pub(super) records: Mutex<Records>,
    /// A record was written, or could not be.
    pub(super) recorded: Condvar,
    pub(super) broken: OnceLock<String>,
    /// Writes in flight of even and of odd epochs: two epochs at most have some.
    in_flight: [AtomicU64; 2],
    /// Who waits for the last write of an epoch.
    waiting: AtomicUsize,
    leaving: Mutex<()>,
    left: Condvar,
    /// Held while an epoch is closed.
    closing: Mutex<()>,
    /// Held for a turn of cooling.
    pub(super) cooling: Mutex<()>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn wait<'a, T>(on: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    on.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

impl<S: Sidecar> Tracker<S> {
    pub(super) fn assemble(store: S, map: EpochMap<S::Stamps>, records: Records) -> Self {
        let shape = records.head.shape;
        let state = |r| AtomicU8::new(if records.head.hot.contains(r) { HOT } else { COLD });
        Self {
            map,
            store,
            region_units: shape.region_units.into(),
            heat: (0..shape.regions()).map(state).collect(),
            records: Mutex::new(records),
            recorded: Condvar::new(),
            broken: OnceLock::new(),
            in_flight: Default::default(),
            waiting: AtomicUsize::new(0),
            leaving: Mutex::default(),
            left: Condvar::new(),
            closing: Mutex::default(),
            cooling: Mutex::default(),
        }
    }

    /// The units of the disk; the last may reach beyond its end.
    pub fn layout(&self) -> &Layout {
        self.map.layout()
    }

    /// The number of the open epoch.
    pub fn epoch(&self) -> u32 {
        self.map.current()
    }

    /// A write, discard or write-zeroes of these units is about to be submitted; `now` in ns since
    /// 1970. Submit it after this returns. Waits for storage if a region of it is cold.
    ///
    /// If the record cannot be written, the write goes on all the same, and everything counts as
    /// changed from then on: a guest does not fail for want of its backups.
    pub fn begin(&self, run: Run, now: u64) -> Write {
        let epoch = self.enter();
        self.store.live().set_written(now);
        let units = self.map.begin_write(run);
        self.keep_hot(run);
        Write { units, epoch }
    }

    /// The write has landed, or has failed and left who knows what. Acknowledge it after this.
    pub fn settle(&self, write: Write, now: u64) {
        self.store.live().set_written(now);
        let run = write.units.run();
        if self.map.settle(write.units) {
            self.keep_hot(run);
        }
        self.leave(write.epoch);
    }

    /// Counts a write in flight, and says in which epoch.
    pub(super) fn enter(&self) -> u32 {
        loop {
            let epoch = self.map.current();
            self.flying(epoch).fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // Closed meanwhile: whoever closed it may not have seen this one.
            if self.map.current() == epoch {
                return epoch;
            }
            self.leave(epoch);
        }
    }

    pub(super) fn leave(&self, epoch: u32) {
        let last = self.flying(epoch).fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.waiting.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.leaving));
            self.left.notify_all();
        }
    }

    fn flying(&self, epoch: u32) -> &AtomicU64 {
        let [even, odd] = &self.in_flight;
        if epoch.is_multiple_of(2) { even } else { odd }
    }

    pub(super) fn nothing_in_flight(&self) -> bool {
        self.in_flight.iter().all(|n| n.load(Ordering::SeqCst) == 0)
    }

    /// Makes sure that the record has every region of `run` as hot.
    pub(super) fn keep_hot(&self, run: Run) {
        let mut cold = Vec::new();
        for region in run.first().get() / self.region_units..run.end().div_ceil(self.region_units) {
            let Some(heat) = usize::try_from(region).ok().and_then(|r| self.heat.get(r)) else {
                continue;
            };
            // The stamps are stored and fenced off; see the module's order of cooling.
            let found = heat.load(Ordering::Relaxed);
            let touched = found == TOUCHED
                || found == HOT
                    && heat
                        .compare_exchange(HOT, TOUCHED, Ordering::SeqCst, Ordering::SeqCst)
                        .is_ok_and(|_| true);
            // Another writer may have touched it first; only cold is cold.
            if !touched && heat.load(Ordering::SeqCst) == COLD {
                cold.push(region);
            }
        }
        if !cold.is_empty() {
            self.heat_up(&cold);
        }
    }

    /// Closes the epoch. Writes that were begun in it may still be in flight, so it is no base
    /// yet: [`Tracker::is_settled`] says when they have landed. Waits for writes of the epoch
    /// before it.
    ///
    /// # Errors
    /// [`BumpError`]; nothing is closed then.
    pub fn close(&self) -> Result<Closing, BumpError> {
        let _one = lock(&self.closing);
        // The next epoch counts where the one before this did.
        let before = self.map.current().wrapping_sub(1);
        self.wait_until_left(before);
        self.reserve(self.map.current().checked_add(1).ok_or(EpochError::UsedUp)?)?;
        Ok(Closing(self.map.bump()?))
    }

    /// Whether all writes of a closed epoch have landed and were settled.
    pub fn is_settled(&self, closing: Closing) -> bool {
        self.map.current() > closing.0.get() + 1
            || self.flying(closing.0.get()).load(Ordering::SeqCst) == 0
    }

    /// Makes a base of a closed epoch: waits for its writes, then calls `flush`, which makes
    /// everything durable that was written to the image. Read what changed at any time after
    /// [`Tracker::close`]; record the base after this.
    ///
    /// # Errors
    /// [`BumpError::Flush`] if `flush` failed: a power loss could undo what was read.
    pub fn settled(
        &self,
        closing: Closing,
        flush: impl FnOnce() -> io::Result<()>,
    ) -> Result<Base, BumpError> {
        if !self.is_settled(closing) {
            self.wait_until_left(closing.0.get());
        }
        flush()?;
        let head = &lock(&self.records).head;
        Ok(Base { disk: head.disk, generation: head.generation, epoch: closing.0 })
    }

    /// Closes the epoch and makes a base of it: [`Tracker::close`], then [`Tracker::settled`].
    ///
    /// # Errors
    /// [`BumpError`].
    pub fn bump(&self, flush: impl FnOnce() -> io::Result<()>) -> Result<Base, BumpError> {
        self.settled(self.close()?, flush)
    }

    fn wait_until_left(&self, epoch: u32) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut guard = lock(&self.leaving);
        while self.flying(epoch).load(Ordering::SeqCst) > 0 {
            guard = wait(&self.left, guard);
        }
        drop(guard);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// What changed after `base`.
    pub fn changed_since(&self, base: Option<&Base>) -> Changed {
        let Some(base) = base else { return Changed::Whole(Whole::NoBase) };
        if self.broken.get().is_some() {
            return Changed::Whole(Whole::Broken);
        }
        let (disk, generation, fresh) = {
            let head = &lock(&self.records).head;
            (head.disk, head.generation, head.fresh)
        };
        if (base.disk, base.generation) != (disk, generation) {
            return Changed::Whole(Whole::Began(fresh));
        }
        if base.epoch.get() >= self.map.current() {
            return Changed::Whole(Whole::Older);
        }
        let set = self.map.changed_since(base.epoch);
        // A write that could not be recorded meanwhile was stamped all the same.
        Changed::Units(set)
    }
}
