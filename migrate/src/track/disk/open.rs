//! Continues a map that was found, or lays out a new one.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::commit::Records;
use super::head::{Head, HeadError, Look, SLOTS, Shape, newest};
use super::judge::Now;
use super::store::Sidecar;
use super::tracker::{BumpError, Tracker};
use crate::track::{EpochError, EpochMap};

/// Why a map cannot be continued. A new one can be made in its place.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No record.
    #[error("the record of the disk's changes is not usable: {0}")]
    Head(#[from] HeadError),
    /// Stamps and record do not fit, or epochs are used up.
    #[error("the record of the disk's changes is not usable: {0}")]
    Map(#[from] EpochError),
    /// It has no layout.
    #[error("a disk of {0} bytes cannot be tracked")]
    Shape(u64),
    /// It cannot be written.
    #[error("the record of the disk's changes cannot be written: {0}")]
    Store(io::Error),
}

impl From<BumpError> for OpenError {
    fn from(error: BumpError) -> Self {
        match error {
            BumpError::Epoch(error) => Self::Map(error),
            BumpError::Broken(error) => Self::Store(io::Error::other(error)),
            BumpError::Flush(error) => Self::Store(error),
        }
    }
}

/// A record that was found, and where the next one goes.
#[derive(Clone, Debug)]
pub struct Found {
    /// The record.
    pub head: Head,
    slot: usize,
}

impl Found {
    /// The newest of two slots.
    ///
    /// # Errors
    /// [`HeadError`].
    pub fn read(slots: [&[u8]; SLOTS]) -> Result<Self, HeadError> {
        newest(slots).map(|(head, slot)| Self { head, slot })
    }
}

/// Continues a map whose verdict was `Exact` or, with `power_loss`, `PowerLoss`. Returns when the
/// record says that the map is in use; writes may begin then.
///
/// # Errors
/// [`OpenError`]; the map is as it was, or at worst in a later epoch.
pub fn resume<S: Sidecar>(
    store: S,
    found: Found,
    power_loss: bool,
    now: &Now,
) -> Result<Tracker<S>, OpenError> {
    let Found { head, slot } = found;
    let layout = head.shape.layout().ok_or(OpenError::Shape(head.shape.bytes))?;
    let map = EpochMap::open(store.stamps(), layout, head.epoch)?;
    let written = head.written;
    let tracker = Tracker::assemble(store, map, Records::new(head, slot));
    if power_loss {
        // Its own record first: no stamp may be later than the epoch of the record. And the boot
        // only after the stamps: whoever finds this boot in the record trusts the stamps.
        tracker.reserve(tracker.epoch().checked_add(1).ok_or(EpochError::UsedUp)?)?;
        tracker.map.bump()?;
        tracker.stamp_hot();
    }
    tracker.enter_use(now, written)?;
    Ok(tracker)
}

/// The record and the stamps of a map on a disk that has grown to `shape` since it was closed.
/// What is new counts as changed for everybody.
///
/// # Errors
/// [`EpochError::UsedUp`].
pub fn grown(
    head: &Head,
    stamps: &[AtomicU32],
    shape: Shape,
    look: Look,
) -> Result<(Head, Vec<u32>), OpenError> {
    let epoch = head.epoch.checked_add(1).ok_or(EpochError::UsedUp)?;
    let layout = shape.layout().ok_or(OpenError::Shape(shape.bytes))?;
    // A last unit that reached beyond the old end has something new in it.
    let whole = head.shape.bytes / u64::from(head.shape.unit_size.max(1));
    let keep = usize::try_from(whole).unwrap_or(usize::MAX);
    let mut new: Vec<u32> = stamps.iter().take(keep).map(|s| s.load(Ordering::Relaxed)).collect();
    new.resize(usize::try_from(layout.units()).unwrap_or(usize::MAX), epoch);
    let first = Head::first(head.disk, head.generation, head.fresh, shape, look);
    Ok((Head { epoch, written: head.written, ..first }, new))
}
