//! When did each unit last change? One stamp per unit, in memory that somebody else owns.
//!
//! Time is counted in epochs. [`EpochMap::stamp`] writes the current epoch to units that are about
//! to change; [`EpochMap::bump`] closes it. A consumer (a move, a replica, a chain of backups) is
//! nothing but the last epoch it has seen closed:
//!
//! ```text
//! closed = map.bump()               // 1: later changes get a later stamp
//! set    = map.changed_since(base)  // 2: what changed after `base`, up to now
//! read the units of `set`           // 3: now, not earlier
//! base   = closed                   // 4: once what was read is safe elsewhere
//! ```
//!
//! A consumer that fails simply keeps its base. Nothing is merged and nothing is given back. The
//! map knows neither the content of units nor its consumers.
//!
//! # What is promised
//!
//! **A unit may be reported although it did not change; a change is never left out.** Precisely:
//!
//! 1. A `stamp` that returned before `changed_since` was called is seen by it.
//! 2. A `stamp` that runs at the same time as a `bump` either lies in the closed epoch and is seen
//!    by every `changed_since` after that `bump`, or lies in the new epoch. There is no third case
//!    in which it gets the old epoch but appears too late to be seen.
//! 3. A write that is *in flight* while an epoch closes is stamped again when it lands
//!    ([`EpochMap::begin_write`], [`EpochMap::settle`]), since the consumer may have read the old
//!    content.
//!
//! # Memory ordering
//!
//! Stamps and nodes only ever grow (`fetch_max`), all of them with relaxed operations. Guarantee 1
//! then follows from coherence: what happens before a read cannot be unseen by it, in the nodes as
//! in the stamps. Guarantee 2 needs that *storing stamps, then reading the epoch* and *advancing
//! the epoch, then reading stamps* do not both miss each other. Each side has a sequentially
//! consistent fence in the middle. Of the two fences one comes first. If it is that of `stamp`,
//! every read after the fence of `bump` sees the leaf and all nodes above it. If it is that of
//! `bump`, the second look of `stamp` at the epoch sees the new one, and it stamps again. The same
//! holds where a store was left out because the value read was high enough already. And it holds
//! for content in memory that was written before `stamp`: whoever sees the stamp after a `bump` as
//! one of the closed epoch sees the content, too.
//!
//! # The tree above
//!
//! Above the stamps stands a tree of maxima, 512 children to a node, in memory of our own. A
//! branch whose maximum is not after the base is skipped, so an empty answer costs one load.
//!
//! # When epochs run out
//!
//! They never wrap. An epoch is a `u32`: one per second lasts 136 years, one per millisecond 49
//! days. After the last one [`EpochMap::bump`] fails, stamping goes on in the last epoch (which
//! over-reports), and whoever owns the map starts a new one, in which everything counts as changed
//! for every old consumer.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use crate::track::UnitSet;
use crate::unit::{Layout, Run};

/// Children of a node of the tree of maxima.
const FANOUT: usize = 512;

/// A closed epoch, or the time before all epochs. It means something only to the map it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u32);

impl Epoch {
    /// Before the first epoch: everything that was ever stamped changed since.
    pub const BEFORE_ALL: Self = Self(0);

    /// An epoch that was written down with [`Epoch::get`].
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Why there is no map, or no further epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// The memory that was lent has another size.
    #[error("there are {stamps} stamps for {units} units: one each is needed")]
    Size {
        /// Stamps lent.
        stamps: u64,
        /// Units of the layout.
        units: u64,
    },
    /// A stamp is from the future: the memory belongs to another map, or is damaged.
    #[error("unit {unit} has the stamp {stamp}, later than the current epoch {current}")]
    Future {
        /// The unit.
        unit: u64,
        /// Its stamp.
        stamp: u32,
        /// The epoch the map was to be in.
        current: u32,
    },
    /// All epochs were used.
    #[error(
        "the last epoch, {}, is reached: start a new map, in which all units count as changed",
        u32::MAX
    )]
    UsedUp,
}

/// A write on its way: which units, and the epoch of their stamps. Give it back with
/// [`EpochMap::settle`] when the write has landed or failed, not before.
#[derive(Debug)]
#[must_use = "settle it when the write has landed, or a consumer can miss the write"]
pub struct InFlight {
    run: Run,
    epoch: u32,
}

impl InFlight {
    /// The units.
    pub fn run(&self) -> Run {
        self.run
    }
}

/// The epochs in which the units of a layout last changed. `S` lends the stamps: a vector, a
/// slice, or the mapping of a file.
#[derive(Debug)]
pub struct EpochMap<S> {
    stamps: S,
    layout: Layout,
    /// The epoch that stamps get. At least 1.
    current: AtomicU32,
    /// Maxima of 512 stamps each, then maxima of 512 of those, and so on up to a single one.
    levels: Vec<Box<[AtomicU32]>>,
}

impl EpochMap<Box<[AtomicU32]>> {
    /// A map in memory of its own: no unit ever changed.
    pub fn in_memory(layout: Layout) -> Self {
        let stamps = zeros(usize::try_from(layout.units()).unwrap_or(usize::MAX));
        let levels = empty_levels(stamps.len());
        Self { stamps, layout, current: AtomicU32::new(1), levels }
    }
}

fn zeros(count: usize) -> Box<[AtomicU32]> {
    std::iter::repeat_with(|| AtomicU32::new(0)).take(count).collect()
}

fn empty_levels(stamps: usize) -> Vec<Box<[AtomicU32]>> {
    let mut levels = vec![zeros(stamps.div_ceil(FANOUT))];
    while let Some(top) = levels.last().filter(|top| top.len() > 1) {
        levels.push(zeros(top.len().div_ceil(FANOUT)));
    }
    levels
}

/// Raises `cell` to at least `epoch`.
fn raise(cell: &AtomicU32, epoch: u32) {
    // The load spares the locked instruction where many writes hit the same node.
    if cell.load(Ordering::Relaxed) < epoch {
        cell.fetch_max(epoch, Ordering::Relaxed);
    }
}

impl<S: AsRef<[AtomicU32]>> EpochMap<S> {
    /// A map on stamps that exist already, which continues in epoch `current` (0 counts as 1).
    /// Nobody else may write to the stamps as long as the map lives.
    ///
    /// # Errors
    /// [`EpochError::Size`] or [`EpochError::Future`] if the stamps do not fit.
    pub fn open(stamps: S, layout: Layout, current: u32) -> Result<Self, EpochError> {
        let leaves = stamps.as_ref();
        if leaves.len() as u64 != layout.units() {
            let (stamps, units) = (leaves.len() as u64, layout.units());
            return Err(EpochError::Size { stamps, units });
        }
        let current = current.max(1);
        for (unit, leaf) in (0..).zip(leaves) {
            let stamp = leaf.load(Ordering::Relaxed);
            if stamp > current {
                return Err(EpochError::Future { unit, stamp, current });
            }
        }
        let levels = empty_levels(leaves.len());
        let mut below = leaves;
        for level in &levels {
            for (node, children) in level.iter().zip(below.chunks(FANOUT)) {
                let max = children.iter().map(|c| c.load(Ordering::Relaxed)).max();
                node.store(max.unwrap_or(0), Ordering::Relaxed);
            }
            below = level;
        }
        Ok(Self { stamps, layout, current: AtomicU32::new(current), levels })
    }

    /// The units that are tracked.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The number of the epoch that is open.
    pub fn current(&self) -> u32 {
        self.current.load(Ordering::Acquire)
    }

    /// Closes the current epoch and says which one it was.
    ///
    /// # Errors
    /// [`EpochError::UsedUp`] if there is no next one; nothing is closed then.
    pub fn bump(&self) -> Result<Epoch, EpochError> {
        let next = |e: u32| e.checked_add(1);
        let closed = self.current.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
        fence(Ordering::SeqCst);
        closed.map(Epoch).map_err(|_| EpochError::UsedUp)
    }

    /// Notes that the units of `run` change: stamps them with the current epoch, and returns when
    /// the stamps are sure to be seen (see the module's promise). Call it *before* the change is
    /// made, or together with taking note of one that was made.
    ///
    /// Units beyond the layout of the map are left out.
    pub fn stamp(&self, run: Run) {
        self.stamp_settled(run);
    }

    fn stamp_settled(&self, run: Run) -> u32 {
        let mut epoch = self.current.load(Ordering::Relaxed);
        loop {
            self.mark(run, epoch);
            fence(Ordering::SeqCst);
            let now = self.current.load(Ordering::Relaxed);
            if now == epoch {
                return epoch;
            }
            epoch = now;
        }
    }

    /// Stamps `run` for a write that will take some time. Submit the write after this.
    pub fn begin_write(&self, run: Run) -> InFlight {
        InFlight { run, epoch: self.stamp_settled(run) }
    }

    /// The write has landed, or has failed and left who knows what: stamps it again if an epoch
    /// was closed in the meantime, and says whether it did. Acknowledge the write after this.
    #[expect(clippy::needless_pass_by_value, reason = "it can be settled only once")]
    pub fn settle(&self, write: InFlight) -> bool {
        fence(Ordering::SeqCst);
        let again = self.current.load(Ordering::Relaxed) != write.epoch;
        if again {
            self.stamp(write.run);
        }
        again
    }

    /// Raises the leaves of `run` and every node above them to `epoch`.
    fn mark(&self, run: Run, epoch: u32) {
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let (mut first, mut end) = (number(run.first().get()), number(run.end()));
        let leaves = self.stamps.as_ref();
        let below = std::iter::once(leaves).chain(self.levels.iter().map(AsRef::as_ref));
        for level in below {
            end = end.min(level.len());
            for cell in level.get(first..end).unwrap_or_default() {
                raise(cell, epoch);
            }
            first /= FANOUT;
            end = end.div_ceil(FANOUT);
        }
    }

    /// Whether nothing changed after `base`.
    pub fn is_unchanged_since(&self, base: Epoch) -> bool {
        let root = self.levels.last().and_then(|top| top.first());
        root.is_none_or(|root| root.load(Ordering::Relaxed) <= base.0)
    }

    /// The units that changed after `base`. With [`Epoch::BEFORE_ALL`]: that ever changed.
    pub fn changed_since(&self, base: Epoch) -> UnitSet {
        let mut set = UnitSet::empty(&self.layout);
        if !self.is_unchanged_since(base) {
            self.collect(self.levels.len(), 0, base.0, &mut set);
        }
        set
    }

    /// Adds what changed below node `node` of the level that `height` counts from the stamps,
    /// which are level 0. At least 1.
    fn collect(&self, height: usize, node: usize, base: u32, set: &mut UnitSet) {
        let below = height - 1;
        let cells = match below.checked_sub(1) {
            None => self.stamps.as_ref(),
            Some(level) => self.levels.get(level).map(AsRef::as_ref).unwrap_or_default(),
        };
        let first = node * FANOUT;
        let end = (first + FANOUT).min(cells.len());
        for (child, cell) in (first..end).zip(cells.get(first..end).unwrap_or_default()) {
            if cell.load(Ordering::Relaxed) <= base {
                continue;
            }
            if below > 0 {
                self.collect(below, child, base, set);
            } else if let Ok(run) = self.layout.run(child as u64, 1) {
                set.insert_run(run);
            }
        }
    }
}

#[cfg(test)]
mod tests;
