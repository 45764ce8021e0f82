//! The dirty set of guest RAM: KVM's log joined with the VMM's own writes.
//!
//! A consumer calls [`DirtyLog::sync`] to see what changed, then [`DirtyLog::harvest`] for a
//! small range just ahead of reading it: the range is re-armed *before* its pages are handed
//! over, so a write that comes after the hand-over shows in a later harvest. Over-reporting is
//! allowed, under-reporting never. One log exists for a machine at a time; nothing else clears.
//!
//! Pages are numbered by their offset in the RAM file (offset / 4096), so the hole below 4 GiB
//! has no numbers.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layout::PAGE_SIZE;
use super::own_writes::WORD_PAGES;
use super::ring::RingSet;
use crate::kvm::{KvmError, LogMode, Vm, ioctls};

/// Pages that are re-armed with one call at the most: 16 MiB. Larger chunks hold KVM's locks for
/// longer, smaller ones cost more calls.
pub const CHUNK_PAGES: u64 = 4096;

/// Why the log cannot be kept. The guest is unharmed, but a consumer must start over.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// Switching it on or off.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Reading or re-arming it.
    #[error("KVM's dirty log failed ({call}): {source}")]
    Log {
        /// The ioctl.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another consumer has the log.
    #[error("the dirty log is in use by another operation on this guest")]
    InUse,
}

/// One memory slot's part of the set.
#[derive(Debug)]
struct Slot {
    /// First page of the slot, in RAM-file pages; a multiple of 64.
    first_page: u64,
    pages: u64,
    /// Found by the last syncs and not yet harvested.
    found: Vec<u64>,
    /// Where KVM's log is read into.
    scratch: Vec<u64>,
}

/// The log, switched on. Dropping it switches it off.
#[derive(Debug)]
pub struct DirtyLog {
    vm: Vm,
    slots: Vec<Slot>,
    rings: Option<Arc<RingSet>>,
    in_use: Arc<AtomicBool>,
}

impl DirtyLog {
    /// Switches logging on. Every page counts as written at first where KVM offers that (see
    /// [`LogMode::Manual`]); elsewhere the caller must take all of RAM for written. `in_use` is
    /// the machine's mark that a log exists.
    pub(crate) fn start(
        vm: &Vm,
        rings: Option<Arc<RingSet>>,
        in_use: Arc<AtomicBool>,
    ) -> Result<Self, DirtyError> {
        if in_use.swap(true, Ordering::AcqRel) {
            return Err(DirtyError::InUse);
        }
        let slots = vm.ram().ranges().iter().map(|r| {
            let pages = r.len / PAGE_SIZE;
            let words = usize::try_from(pages.div_ceil(WORD_PAGES)).unwrap_or(usize::MAX);
            Slot {
                first_page: r.offset / PAGE_SIZE,
                pages,
                found: vec![0; words],
                scratch: vec![0; words],
            }
        });
        let log = Self { vm: vm.clone(), slots: slots.collect(), rings, in_use };
        // From here on dropping `log` undoes what was done.
        if let Some(rings) = &log.rings {
            rings.collect(vm, &mut |_, _| {})?;
        }
        vm.set_logging(true)?;
        Ok(log)
    }

    /// Whether the log, by itself, reports every page once after the start.
    pub fn initially_set(&self) -> bool {
        matches!(self.vm.log_mode(), LogMode::Manual { initially_set: true })
    }

    /// Pages of RAM, and so the end of page numbers.
    pub fn pages(&self) -> u64 {
        self.slots.iter().map(|s| s.pages).sum()
    }

    /// Looks at what changed since the last harvest of each page.
    pub fn sync(&mut self) -> Result<(), DirtyError> {
        self.sync_kvm()?;
        for (slot, own) in self.slots.iter_mut().zip(self.vm.ram().own_writes()) {
            for (i, word) in slot.found.iter_mut().enumerate() {
                *word |= own.take(i);
            }
        }
        Ok(())
    }

    fn sync_kvm(&mut self) -> Result<(), DirtyError> {
        if let Some(rings) = &self.rings {
            let slots = &mut self.slots;
            return rings.collect(&self.vm, &mut |slot, page| {
                let Some(slot) = slots.get_mut(slot) else { return };
                let word = usize::try_from(page / WORD_PAGES).unwrap_or(usize::MAX);
                if let Some(word) = slot.found.get_mut(word) {
                    *word |= 1 << (page % WORD_PAGES);
                }
            });
        }
        for (number, slot) in (0u32..).zip(&mut self.slots) {
            ioctls::get_dirty_log(self.vm.fd(), number, slot.pages, &mut slot.scratch)
                .map_err(|source| DirtyError::Log { call: "KVM_GET_DIRTY_LOG", source })?;
            for (found, new) in slot.found.iter_mut().zip(&slot.scratch) {
                *found |= new;
            }
        }
        Ok(())
    }

    /// Number of pages found and not yet harvested.
    pub fn found(&self) -> u64 {
        self.slots.iter().flat_map(|s| &s.found).map(|w| u64::from(w.count_ones())).sum()
    }

    /// Takes what was found in `pages` (whole words: the start is rounded down and the end up to
    /// multiples of 64), re-arming each chunk before its words go to `visit` with the number of
    /// their first page. Words without a page are not visited.
    pub fn harvest(
        &mut self,
        pages: Range<u64>,
        mut visit: impl FnMut(u64, u64),
    ) -> Result<(), DirtyError> {
        let manual = matches!(self.vm.log_mode(), LogMode::Manual { .. });
        let chunk_words = CHUNK_PAGES / WORD_PAGES;
        for (number, slot) in (0u32..).zip(&mut self.slots) {
            let from = pages.start.max(slot.first_page) - slot.first_page;
            let to = pages.end.min(slot.first_page + slot.pages).saturating_sub(slot.first_page);
            let (mut word, end) = (from / WORD_PAGES, to.div_ceil(WORD_PAGES));
            while word < end {
                let upto = end.min(word + chunk_words);
                slot.take(&self.vm, number, manual, word..upto, &mut visit)?;
                word = upto;
            }
        }
        Ok(())
    }

    /// Switches logging off.
    pub fn stop(self) -> Result<(), DirtyError> {
        self.vm.set_logging(false)?;
        Ok(())
    }
}

impl Slot {
    fn take(
        &mut self,
        vm: &Vm,
        number: u32,
        manual: bool,
        words: Range<u64>,
        visit: &mut impl FnMut(u64, u64),
    ) -> Result<(), DirtyError> {
        let index = |w: u64| usize::try_from(w).unwrap_or(usize::MAX);
        let Some(found) = self.found.get_mut(index(words.start)..index(words.end)) else {
            return Ok(());
        };
        if found.iter().all(|w| *w == 0) {
            return Ok(());
        }
        if manual {
            let first = words.start * WORD_PAGES;
            let pages = (words.end * WORD_PAGES).min(self.pages) - first;
            let pages = u32::try_from(pages).unwrap_or(u32::MAX);
            ioctls::clear_dirty_log(vm.fd(), number, first, pages, found)
                .map_err(|source| DirtyError::Log { call: "KVM_CLEAR_DIRTY_LOG", source })?;
        }
        for (word, found) in words.zip(found) {
            if *found != 0 {
                visit(self.first_page + word * WORD_PAGES, std::mem::take(found));
            }
        }
        Ok(())
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // A failure leaves the guest slower, not wrong; the next start switches it on anyway.
        if let Err(error) = self.vm.set_logging(false) {
            tracing::warn!(%error, "cannot switch the dirty log off");
        }
        self.in_use.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DirtyTracking, MemoryConfig};
    use crate::kvm::Kvm;
    use crate::memory::GuestRam;

    /// KVM gives out the log only of a slot whose pages it watches.
    fn is_watched(vm: &Vm) -> bool {
        let pages = vm.ram().ranges()[0].len / PAGE_SIZE;
        let mut words = vec![0; usize::try_from(pages.div_ceil(WORD_PAGES)).unwrap()];
        match ioctls::get_dirty_log(vm.fd(), 0, pages, &mut words) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
                false
            }
        }
    }

    #[test]
    fn a_log_that_is_let_go_leaves_no_page_watched() {
        let Ok(kvm) = Kvm::open() else {
            eprintln!("SKIPPED: /dev/kvm is missing or may not be opened");
            return;
        };
        for tracking in [DirtyTracking::Log, DirtyTracking::PlainLog] {
            let ram = GuestRam::new(&MemoryConfig::new(16 << 20, false).unwrap()).unwrap();
            let vm = Vm::new(&kvm, ram, tracking).unwrap();
            let in_use = Arc::new(AtomicBool::new(false));
            assert!(!is_watched(&vm));
            for stop in [true, false] {
                let log = DirtyLog::start(&vm, None, Arc::clone(&in_use)).unwrap();
                assert!(is_watched(&vm));
                let second = DirtyLog::start(&vm, None, Arc::clone(&in_use));
                assert!(matches!(second, Err(DirtyError::InUse)));
                if stop {
                    log.stop().unwrap();
                } else {
                    drop(log);
                }
                assert!(!is_watched(&vm), "{tracking:?}, stop {stop}");
                assert!(!in_use.load(Ordering::Acquire));
            }
        }
    }
}
