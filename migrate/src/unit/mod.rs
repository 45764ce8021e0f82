//! Units: the pieces in which memory and disks are tracked and sent.
//!
//! A [`Layout`] says how large a unit is and how many there are. A [`UnitIndex`] or [`Run`] can
//! only be had from a layout (or from a set made for one), so it lies inside it. Numbers that
//! come from elsewhere go through [`Layout::unit`] or [`Layout::run`]. This module knows nothing
//! of what the units contain.

use std::ops::Range;

/// Smallest unit, in bytes.
pub const MIN_UNIT_SIZE: u32 = 512;
/// Largest unit, in bytes.
pub const MAX_UNIT_SIZE: u32 = 1 << 20;
/// Most units of a layout: 16 TiB of RAM in pages of 4 KiB, 256 TiB of disk in 64 KiB.
pub const MAX_UNITS: u64 = 1 << 32;

/// Why numbers are not a layout, or do not lie in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The size of a unit.
    #[error(
        "a unit of {0} bytes is not possible: \
         it must be a power of two from {MIN_UNIT_SIZE} to {MAX_UNIT_SIZE}"
    )]
    Size(u32),
    /// The number of units.
    #[error("{0} units are not possible: a layout has 1 to {MAX_UNITS}")]
    Count(u64),
    /// Bytes that are no whole number of units.
    #[error("{bytes} bytes are not a multiple of the unit of {unit_size} bytes")]
    Ragged {
        /// What was to be divided.
        bytes: u64,
        /// Bytes of a unit.
        unit_size: u32,
    },
    /// A range that does not lie in the layout, or is empty.
    #[error("units {first}+{count} do not lie among the {units} units there are")]
    Outside {
        /// First unit of the range.
        first: u64,
        /// Units in the range.
        count: u64,
        /// Units of the layout.
        units: u64,
    },
}

/// Number of a unit, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitIndex(u64);

impl UnitIndex {
    /// The number, below [`MAX_UNITS`].
    pub fn get(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for UnitIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Units in a row, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    first: u64,
    count: u64,
}

impl Run {
    /// Checks a range against the number of units there are.
    pub(crate) fn within(first: u64, count: u64, units: u64) -> Result<Self, UnitError> {
        match first.checked_add(count) {
            Some(end) if count > 0 && end <= units => Ok(Self { first, count }),
            _ => Err(UnitError::Outside { first, count, units }),
        }
    }

    /// First unit.
    pub fn first(&self) -> UnitIndex {
        UnitIndex(self.first)
    }

    /// Number of units, at least 1.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number after the last unit.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// The numbers of the units.
    pub fn range(&self) -> Range<u64> {
        self.first..self.end()
    }

    /// The units, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = UnitIndex> + DoubleEndedIterator + use<> {
        // `usize` because only its ranges know their exact length; 64 bits on every target.
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        (at(self.first)..at(self.end())).map(|n| UnitIndex(n as u64))
    }

    /// The first `max` units, and the rest if there is one.
    ///
    /// `max` of 0 counts as 1: a run is never empty.
    pub fn split(self, max: u64) -> (Self, Option<Self>) {
        let head = self.count.min(max.max(1));
        let rest = Self { first: self.first + head, count: self.count - head };
        (Self { count: head, ..self }, (rest.count > 0).then_some(rest))
    }

    /// Parts of at most `max` units, in order.
    pub fn parts(self, max: u64) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let (head, tail) = rest.take()?.split(max);
            rest = tail;
            Some(head)
        })
    }
}

/// How a memory or a disk divides into units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    unit_size: u32,
    units: u64,
}

impl Layout {
    /// A layout of `units` units of `unit_size` bytes.
    ///
    /// # Errors
    /// [`UnitError::Size`] and [`UnitError::Count`] if one is out of its limits.
    pub fn new(unit_size: u32, units: u64) -> Result<Self, UnitError> {
        let fits = (MIN_UNIT_SIZE..=MAX_UNIT_SIZE).contains(&unit_size);
        if !fits || !unit_size.is_power_of_two() {
            return Err(UnitError::Size(unit_size));
        }
        if units == 0 || units > MAX_UNITS {
            return Err(UnitError::Count(units));
        }
        Ok(Self { unit_size, units })
    }

    /// The layout of exactly `bytes` bytes.
    ///
    /// # Errors
    /// As [`Layout::new`], and [`UnitError::Ragged`] if the last unit would not be whole.
    pub fn of_bytes(unit_size: u32, bytes: u64) -> Result<Self, UnitError> {
        let layout = Self::new(unit_size, bytes / u64::from(unit_size.max(1)))?;
        if layout.bytes() != bytes {
            return Err(UnitError::Ragged { bytes, unit_size });
        }
        Ok(layout)
    }

    /// Bytes of a unit.
    pub fn unit_size(&self) -> u32 {
        self.unit_size
    }

    /// Bytes of a unit, as the length of a buffer.
    pub fn unit_len(&self) -> usize {
        self.unit_size as usize
    }

    /// Number of units, at least 1.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Bytes of all units: at most 2^52, so sums of a few never overflow.
    pub fn bytes(&self) -> u64 {
        self.units * u64::from(self.unit_size)
    }

    /// Every unit.
    pub fn whole(&self) -> Run {
        Run { first: 0, count: self.units }
    }

    /// The unit of that number.
    ///
    /// # Errors
    /// [`UnitError::Outside`] if there is none.
    pub fn unit(&self, index: u64) -> Result<UnitIndex, UnitError> {
        self.run(index, 1).map(|run| run.first())
    }

    /// The units from `first` on.
    ///
    /// # Errors
    /// [`UnitError::Outside`] if one of them is not there, or `count` is 0.
    pub fn run(&self, first: u64, count: u64) -> Result<Run, UnitError> {
        Run::within(first, count, self.units)
    }

    /// The units that `bytes` touches, if only in part. `None` if that is none: it is empty, or
    /// reaches past the end.
    pub fn covering(&self, bytes: Range<u64>) -> Option<Run> {
        if bytes.is_empty() || bytes.end > self.bytes() {
            return None;
        }
        let size = u64::from(self.unit_size);
        let first = bytes.start / size;
        self.run(first, bytes.end.div_ceil(size) - first).ok()
    }

    /// Where the unit begins, in bytes.
    pub fn offset(&self, unit: UnitIndex) -> u64 {
        unit.0 * u64::from(self.unit_size)
    }

    /// Where the units lie, in bytes.
    pub fn byte_range(&self, run: Run) -> Range<u64> {
        let size = u64::from(self.unit_size);
        run.first * size..run.end() * size
    }

    /// How many bytes that many units are.
    pub fn bytes_of(&self, units: u64) -> u64 {
        units.saturating_mul(u64::from(self.unit_size))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_sensible_layouts_exist() {
        for size in [0, 1, 511, 4095, 4097, MAX_UNIT_SIZE * 2, u32::MAX] {
            assert_eq!(Layout::new(size, 1), Err(UnitError::Size(size)));
        }
        for units in [0, MAX_UNITS + 1, u64::MAX] {
            assert_eq!(Layout::new(4096, units), Err(UnitError::Count(units)));
        }
        assert_eq!(Layout::new(MAX_UNIT_SIZE, MAX_UNITS).unwrap().bytes(), 1 << 52);
        assert_eq!(
            Layout::of_bytes(4096, 8193),
            Err(UnitError::Ragged { bytes: 8193, unit_size: 4096 })
        );
        assert_eq!(Layout::of_bytes(0, 8193), Err(UnitError::Size(0)));
        assert_eq!(Layout::of_bytes(4096, 8192).unwrap().units(), 2);
    }

    #[test]
    fn bytes_are_covered_by_whole_units() {
        let layout = Layout::new(4096, 10).unwrap();
        let covering = |range| layout.covering(range).map(|r| r.range());
        assert_eq!(covering(0..1), Some(0..1));
        assert_eq!(covering(4095..4097), Some(0..2));
        assert_eq!(covering(4096..8192), Some(1..2));
        assert_eq!(covering(36864..40960), Some(9..10));
        assert_eq!(covering(36864..40961), None);
        assert_eq!(covering(5..5), None);
        assert_eq!(covering(0..u64::MAX), None);
    }

    proptest! {
        #[test]
        fn a_run_lies_in_its_layout(units in 1..1000u64, first: u64, count: u64) {
            let layout = Layout::new(4096, units).unwrap();
            for (first, count) in [(first, count), (first % 1200, count % 1200)] {
                let inside = count > 0
                    && u128::from(first) + u128::from(count) <= u128::from(units);
                let run = layout.run(first, count);
                prop_assert_eq!(run.is_ok(), inside);
                if let Ok(run) = run {
                    let units: Vec<u64> = run.iter().map(UnitIndex::get).collect();
                    prop_assert_eq!(units, run.range().collect::<Vec<_>>());
                }
            }
        }

        #[test]
        fn parts_are_the_run(first in 0..100u64, count in 1..100u64, max in 0..40u64) {
            let run = Run::within(first, count, 200).unwrap();
            let parts: Vec<Run> = run.parts(max).collect();
            prop_assert!(parts.iter().all(|p| (1..=max.max(1)).contains(&p.count())));
            let units: Vec<u64> = parts.iter().flat_map(Run::range).collect();
            prop_assert_eq!(units, run.range().collect::<Vec<_>>());
        }
    }
}
