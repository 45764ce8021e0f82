//! A batch under construction: up to 16 units that are encoded together, in one buffer.
//!
//! Each unit is copied out of the guest once, into the [`slot`](Batch::slot) that the batch lends,
//! and looked at there. Those that need not be sent leave no trace; the slot is lent again.

use crate::unit::{Layout, UnitIndex};

/// Units in a batch at the most. 16 pages take nearly all that compressing pages together gains;
/// with 64 LZ4 is slower.
pub const MAX_BATCH_UNITS: usize = 16;

/// Bytes in a batch at the most, which limits batches of large units.
pub const MAX_BATCH_BYTES: usize = 1 << 20;

/// The batch has no slot left: send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the batch is full")]
pub struct BatchFull;

/// Units on their way into one data frame.
#[derive(Clone, Debug)]
pub struct Batch {
    unit_len: usize,
    buffer: Box<[u8]>,
    units: Vec<UnitIndex>,
}

impl Batch {
    /// An empty batch for units of `layout`: 64 KiB for pages, at most 1 MiB.
    pub fn new(layout: &Layout) -> Self {
        let unit_len = layout.unit_len();
        let slots = (MAX_BATCH_BYTES / unit_len).clamp(1, MAX_BATCH_UNITS);
        Self {
            unit_len,
            buffer: vec![0; slots * unit_len].into_boxed_slice(),
            units: Vec::with_capacity(slots),
        }
    }

    /// Units that fit.
    pub fn capacity(&self) -> usize {
        self.buffer.len() / self.unit_len
    }

    /// Whether there is no slot left.
    pub fn is_full(&self) -> bool {
        self.units.len() >= self.capacity()
    }

    /// Whether no unit was kept.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The next slot, of a unit's length, with arbitrary content.
    ///
    /// # Errors
    /// [`BatchFull`] if there is none.
    pub fn slot(&mut self) -> Result<&mut [u8], BatchFull> {
        let at = self.units.len() * self.unit_len;
        self.buffer.get_mut(at..at + self.unit_len).ok_or(BatchFull)
    }

    /// Keeps what lies in the slot, as the content of `unit`.
    ///
    /// # Errors
    /// [`BatchFull`] if there was no slot.
    pub fn keep(&mut self, unit: UnitIndex) -> Result<(), BatchFull> {
        if self.is_full() {
            return Err(BatchFull);
        }
        self.units.push(unit);
        Ok(())
    }

    /// The units kept, in the order of their content.
    pub fn units(&self) -> &[UnitIndex] {
        &self.units
    }

    /// Their content.
    pub fn raw(&self) -> &[u8] {
        self.buffer.get(..self.units.len() * self.unit_len).unwrap_or_default()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.units.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_kept() {
        let layout = Layout::new(512, 100).unwrap();
        let mut batch = Batch::new(&layout);
        assert_eq!(batch.capacity(), MAX_BATCH_UNITS);
        for (n, unit) in (0u8..).zip(layout.run(3, 32).unwrap().iter()) {
            batch.slot().unwrap().fill(n);
            if n % 2 == 1 {
                batch.keep(unit).unwrap();
            }
            assert_eq!(batch.raw().len(), batch.units().len() * 512);
        }
        assert!(batch.is_full());
        assert_eq!(batch.slot(), Err(BatchFull));
        assert_eq!(batch.keep(layout.unit(0).unwrap()), Err(BatchFull));
        let pairs = batch.units().iter().zip(batch.raw().chunks(512));
        for (at, (unit, content)) in (0u8..).zip(pairs) {
            assert_eq!(unit.get(), 4 + 2 * u64::from(at));
            assert!(content.iter().all(|b| *b == 1 + 2 * at));
        }
        batch.clear();
        assert!(batch.is_empty() && batch.raw().is_empty());
    }

    #[test]
    fn large_units_are_fewer() {
        let capacity = |size| Batch::new(&Layout::new(size, 1).unwrap()).capacity();
        assert_eq!((capacity(4096), capacity(1 << 16), capacity(1 << 17)), (16, 16, 8));
        assert_eq!(capacity(1 << 20), 1);
    }
}
