//! Bitmap of the pages that the VMM itself wrote.
//!
//! KVM's dirty log sees only what vCPUs write. Everything that devices and loaders write goes
//! through `vm-memory`'s accessors, which mark this bitmap. It never loses a mark: a page is
//! marked after it was written, so a mark that comes after a harvest shows in the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use super::layout::PAGE_SIZE;

/// Pages in one word of a bitmap.
pub const WORD_PAGES: u64 = 64;

/// One bit per page of a region, set by writers, taken away in 64-bit words by the harvest.
#[derive(Clone, Debug, Default)]
pub struct OwnWrites {
    words: Arc<[AtomicU64]>,
}

impl OwnWrites {
    /// Takes the bits of word `index`, leaving none. A word beyond the end is empty.
    pub fn take(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |w| {
            // A plain load first: most words are empty and stay shared in the caches.
            if w.load(Ordering::Relaxed) == 0 { 0 } else { w.swap(0, Ordering::AcqRel) }
        })
    }

    /// Reads word `index` without taking it. A word beyond the end is empty.
    pub fn peek(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |w| w.load(Ordering::Acquire))
    }

    fn mark(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let first = offset as u64 / PAGE_SIZE;
        let last = (offset as u64).saturating_add(len as u64 - 1) / PAGE_SIZE;
        for page in first..=last {
            let Ok(index) = usize::try_from(page / WORD_PAGES) else { return };
            let Some(word) = self.words.get(index) else { return };
            word.fetch_or(1 << (page % WORD_PAGES), Ordering::AcqRel);
        }
    }
}

impl NewBitmap for OwnWrites {
    fn with_len(len: usize) -> Self {
        let pages = (len as u64).div_ceil(PAGE_SIZE);
        let words = pages.div_ceil(WORD_PAGES);
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl WithBitmapSlice<'_> for OwnWrites {
    type S = OwnWritesSlice;
}

impl Bitmap for OwnWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.mark(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset as u64 / PAGE_SIZE;
        let word = usize::try_from(page / WORD_PAGES).map_or(0, |i| self.peek(i));
        word & (1 << (page % WORD_PAGES)) != 0
    }

    fn slice_at(&self, offset: usize) -> OwnWritesSlice {
        OwnWritesSlice { map: self.clone(), base: offset }
    }
}

/// A view of an [`OwnWrites`] whose offsets start at some byte of the region.
#[derive(Clone, Debug)]
pub struct OwnWritesSlice {
    map: OwnWrites,
    base: usize,
}

impl WithBitmapSlice<'_> for OwnWritesSlice {
    type S = Self;
}

impl BitmapSlice for OwnWritesSlice {}

impl Bitmap for OwnWritesSlice {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.map.mark(self.base.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.map.dirty_at(self.base.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { map: self.map.clone(), base: self.base.saturating_add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: usize = 300;
    const PAGE: usize = 4096;

    proptest! {
        /// Against a plain set of page numbers.
        #[test]
        fn marks_are_exact(writes in prop::collection::vec((0..PAGES * PAGE, 0..3 * PAGE), 0..40)) {
            let map = OwnWrites::with_len(PAGES * PAGE);
            let mut model = std::collections::BTreeSet::new();
            for (offset, len) in writes {
                map.slice_at(offset / 2).mark_dirty(offset - offset / 2, len);
                model.extend((offset..offset + len).map(|b| b / PAGE).filter(|p| *p < map.words.len() * 64));
            }
            let mut seen = std::collections::BTreeSet::new();
            for w in 0..=map.words.len() {
                let word = map.take(w);
                seen.extend((0..64).filter(|b| word & (1 << b) != 0).map(|b| w * 64 + b));
                prop_assert_eq!(map.peek(w), 0);
            }
            prop_assert_eq!(seen, model);
        }
    }
}
