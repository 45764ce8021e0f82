//! Writing the record: many writers, one write at a time, and each takes along what others wait
//! for. And the slow ways of the tracker that need it: heating, cooling, opening an epoch, closing
//! the map.

use std::io;
use std::sync::MutexGuard;
use std::sync::atomic::{Ordering, fence};

use super::head::{Fresh, Head, Look, SLOTS, encode};
use super::judge::Now;
use super::regions::Regions;
use super::store::Sidecar;
use super::tracker::{BumpError, COLD, HOT, TOUCHED, Tracker, lock, wait};

/// What is known of the record. Not locked while it is written.
#[derive(Debug)]
pub(super) struct Records {
    /// What is durable for sure. While a record is written that leaves out regions, they are left
    /// out here already.
    pub(super) head: Head,
    /// Where the next one goes: never over the newest.
    slot: usize,
    /// One is being written.
    writing: bool,
    /// Regions that writers wait for.
    wanted: Regions,
    /// Regions that a turn of cooling has taken and nobody wanted back so far.
    cooling: Regions,
}

impl Records {
    pub(super) fn new(head: Head, slot: usize) -> Self {
        let none = Regions::empty(head.shape.regions());
        Self { head, slot, writing: false, wanted: none.clone(), cooling: none }
    }
}

type Guard<'a> = MutexGuard<'a, Records>;

impl<S: Sidecar> Tracker<S> {
    /// Waits until nobody writes the record.
    fn quiet<'a>(&'a self, mut records: Guard<'a>) -> Guard<'a> {
        while records.writing {
            records = wait(&self.recorded, records);
        }
        records
    }

    /// Writes the record that `change` makes of the last one, with all that is wanted. Nobody
    /// else is writing it.
    fn commit<'a>(&'a self, mut records: Guard<'a>, change: impl FnOnce(&mut Head)) -> Guard<'a> {
        let mut next = records.head.clone();
        next.sequence = next.sequence.wrapping_add(1);
        next.written = self.store.live().written();
        change(&mut next);
        next.clean &= records.wanted.is_empty();
        next.hot.add(&records.wanted);
        records.wanted.clear();
        // From here on the file may say either, so what both say is all there is.
        records.head.hot.keep(&next.hot);
        records.writing = true;
        let slot = records.slot;
        drop(records);
        let result = self.store.write_head(slot, &encode(&next));
        let mut records = lock(&self.records);
        records.writing = false;
        match result {
            Ok(()) => {
                records.head = next;
                records.slot = (slot + 1) % SLOTS;
            }
            Err(error) => self.break_down(&error),
        }
        self.recorded.notify_all();
        records
    }

    fn break_down(&self, error: &io::Error) {
        if self.broken.set(error.to_string()).is_ok() {
            self.store.live().set_void(Some(Fresh::Unwritable));
            self.store.abandon();
        }
    }

    /// Why the record cannot be written, if so. Everything counts as changed then.
    pub fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// Returns when the record has these regions as hot, or cannot be written.
    pub(super) fn heat_up(&self, cold: &[u64]) {
        let mut records = lock(&self.records);
        while self.broken.get().is_none() {
            if cold.iter().all(|r| records.head.hot.contains(*r)) {
                for region in cold {
                    records.cooling.remove(*region);
                    self.set_heat(*region, TOUCHED);
                }
                return;
            }
            for region in cold {
                records.wanted.insert(*region);
            }
            records = if records.writing {
                wait(&self.recorded, records)
            } else {
                self.commit(records, |next| next.clean = false)
            };
        }
    }

    fn set_heat(&self, region: u64, state: u8) {
        if let Some(heat) = usize::try_from(region).ok().and_then(|r| self.heat.get(r)) {
            heat.store(state, Ordering::SeqCst);
        }
    }

    /// Changes the state of a region if it is `from`.
    fn swap_heat(&self, region: u64, from: u8, to: u8) -> bool {
        let heat = usize::try_from(region).ok().and_then(|r| self.heat.get(r));
        heat.is_some_and(|h| {
            h.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        })
    }

    /// Makes epoch `next` durable, so that stamps may have it.
    pub(super) fn reserve(&self, next: u32) -> Result<(), BumpError> {
        let mut records = self.quiet(lock(&self.records));
        if self.broken.get().is_none() && records.head.epoch < next {
            records = self.commit(records, |head| head.epoch = next);
        }
        drop(records);
        match self.broken.get() {
            Some(error) => Err(BumpError::Broken(error.clone())),
            None => Ok(()),
        }
    }

    /// Stamps all hot regions with the current epoch.
    pub(super) fn stamp_hot(&self) {
        let (layout, size) = (self.map.layout(), self.region_units);
        for region in lock(&self.records).head.hot.iter() {
            let first = region * size;
            let count = size.min(layout.units().saturating_sub(first));
            if let Ok(run) = layout.run(first, count) {
                self.map.stamp(run);
            }
        }
    }

    /// Makes it durable that the map is in use in this boot; `written` is a time of a last own
    /// write that the live words may not have.
    pub(super) fn enter_use(&self, now: &Now, written: u64) -> Result<(), BumpError> {
        let records = self.quiet(lock(&self.records));
        drop(self.commit(records, |head| {
            (head.boot, head.clean, head.look) = (now.boot, false, now.look);
            head.written = head.written.max(written);
        }));
        self.broken.get().map_or(Ok(()), |e| Err(BumpError::Broken(e.clone())))
    }

    /// One turn of cooling: regions that were hot and not written to since the last turn become
    /// cold. Says how many are hot after it. To be called every few seconds: the regions written
    /// to during two turns are what a power loss costs.
    ///
    /// # Errors
    /// The map cannot be synced; all regions are as hot as before. What fails in writing the
    /// record is [`Tracker::broken`].
    pub fn cool(&self) -> io::Result<u64> {
        let _one = lock(&self.cooling);
        let chosen = self.choose(false);
        if !chosen.is_empty() {
            self.cool_down(&chosen, |_, _| ())?;
        }
        Ok(lock(&self.records).head.hot.len())
    }

    /// Takes the regions that were not touched, or `all`, from writers; ages the others.
    fn choose(&self, all: bool) -> Regions {
        let mut records = lock(&self.records);
        let mut chosen = records.head.hot.clone();
        for region in records.head.hot.iter() {
            let taken = self.swap_heat(region, HOT, COLD)
                || all && self.swap_heat(region, TOUCHED, COLD)
                // Left over from a turn that failed.
                || self.is_cold(region);
            if !taken {
                self.swap_heat(region, TOUCHED, HOT);
                chosen.remove(region);
            }
        }
        records.cooling = chosen.clone();
        chosen
    }

    fn is_cold(&self, region: u64) -> bool {
        let heat = usize::try_from(region).ok().and_then(|r| self.heat.get(r));
        heat.is_some_and(|h| h.load(Ordering::SeqCst) == COLD)
    }

    /// Syncs the map, then writes a record without the chosen regions, unless writers have wanted
    /// them back. `change` is told whether all of them are out and none is wanted.
    fn cool_down(&self, chosen: &Regions, change: impl FnOnce(&mut Head, bool)) -> io::Result<()> {
        fence(Ordering::SeqCst);
        self.store.sync()?;
        let mut records = self.quiet(lock(&self.records));
        if self.broken.get().is_some() {
            return Ok(());
        }
        let out = records.cooling.clone();
        records.cooling.clear();
        let all = out == *chosen && records.wanted.is_empty();
        drop(self.commit(records, |next| {
            next.hot.subtract(&out);
            change(next, all);
        }));
        Ok(())
    }

    /// Makes map and live words durable, whatever is hot.
    ///
    /// # Errors
    /// As of the storage.
    pub fn sync(&self) -> io::Result<()> {
        self.store.sync()
    }

    /// Closes the map: it will be exact whatever happens to the host, and any difference between
    /// the image and `look` will be noticed. The guest stands still, and everything written to
    /// the image is durable. Says whether that is recorded; if not, the map is as after a kill.
    ///
    /// # Errors
    /// The map cannot be synced.
    pub fn finish(&self, look: Look) -> io::Result<bool> {
        let _one = lock(&self.cooling);
        if !self.nothing_in_flight() {
            return Ok(false);
        }
        let chosen = self.choose(true);
        let mut closed = false;
        self.cool_down(&chosen, |next, all| {
            closed = all && next.hot.is_empty() && self.nothing_in_flight();
            if closed {
                (next.clean, next.look) = (true, look);
            }
        })?;
        Ok(closed && self.broken.get().is_none())
    }

    /// The guest leaves this host, or comes back before it has run elsewhere: while it is away,
    /// nobody knows what is written to the disk. Costs nothing. After this process the map is
    /// worth nothing if the guest was away last.
    pub fn set_away(&self, away: bool) {
        if self.broken.get().is_none() {
            self.store.live().set_void(away.then_some(Fresh::Elsewhere));
        }
    }

    /// The record, as far as it is durable.
    pub fn head(&self) -> Head {
        lock(&self.records).head.clone()
    }
}
