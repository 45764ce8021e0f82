//! A dense set of units: one bit each, 2 MiB for 64 GiB of pages.
//!
//! The set knows how many units it holds at all times, so asking whether it is empty costs
//! nothing. It hands out runs from a [`Cursor`] that goes round, so no unit waits for ever behind
//! others that become dirty again and again. It never knows why a unit is in it.

use std::ops::Range;

use crate::unit::{Layout, Run, UnitIndex};

/// Units in a word.
pub const WORD_UNITS: u64 = 64;

/// Why an operation on a set was refused. The set is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// A word that does not begin where words of a set begin.
    #[error("a word of 64 units cannot begin at unit {0}: only at multiples of 64")]
    Misaligned(u64),
    /// A word with units that are not there.
    #[error("the word at unit {first} has units beyond the {units} there are")]
    Outside {
        /// First unit of the word.
        first: u64,
        /// Units there are.
        units: u64,
    },
    /// Two sets for different layouts.
    #[error("a set for {0} units cannot be joined with one for {1}")]
    Size(u64, u64),
}

/// Where the next run is taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u64);

/// A set of units of one layout.
#[derive(Clone, PartialEq, Eq)]
pub struct UnitSet {
    units: u64,
    /// Bits at and above `units` are always 0.
    words: Vec<u64>,
    /// Bits that are 1.
    len: u64,
}

impl std::fmt::Debug for UnitSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UnitSet({} of {})", self.len, self.units)
    }
}

fn index(word: u64) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}

/// A word with the bits `from..to` set, for `from < to <= 64`.
fn bits(from: u64, to: u64) -> u64 {
    (u64::MAX << from) & (u64::MAX >> (WORD_UNITS - to))
}

impl UnitSet {
    /// No unit of `layout`.
    pub fn empty(layout: &Layout) -> Self {
        Self::of_units(layout.units())
    }

    /// Every unit of `layout`.
    pub fn full(layout: &Layout) -> Self {
        let mut set = Self::empty(layout);
        set.insert_run(layout.whole());
        set
    }

    pub(crate) fn of_units(units: u64) -> Self {
        Self { units, words: vec![0; index(units.div_ceil(WORD_UNITS))], len: 0 }
    }

    /// Units there are, in the set or not.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Units in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no unit is in the set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `unit` is in the set.
    pub fn contains(&self, unit: UnitIndex) -> bool {
        let word = self.words.get(index(unit.get() / WORD_UNITS)).copied().unwrap_or(0);
        word >> (unit.get() % WORD_UNITS) & 1 == 1
    }

    /// Adds the units of `run`. Units beyond the set's layout are left out.
    pub fn insert_run(&mut self, run: Run) {
        self.change(run, |word, mask| word | mask);
    }

    /// Removes the units of `run`.
    pub fn remove_run(&mut self, run: Run) {
        self.change(run, |word, mask| word & !mask);
    }

    /// Removes every unit.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.len = 0;
    }

    /// Applies `op` to each word of `run`, with the mask of the run's units in it.
    fn change(&mut self, run: Run, op: impl Fn(u64, u64) -> u64) {
        let end = run.end().min(self.units);
        let mut at = run.first().get();
        while at < end {
            let base = at / WORD_UNITS * WORD_UNITS;
            let upto = end.min(base + WORD_UNITS);
            let Some(word) = self.words.get_mut(index(base / WORD_UNITS)) else { return };
            let before = *word;
            *word = op(before, bits(at - base, upto - base));
            let (new, old) = (u64::from(word.count_ones()), u64::from(before.count_ones()));
            self.len = self.len + new - old;
            at = upto;
        }
    }

    /// Adds the units of a word of a dirty log: bit 0 stands for unit `first`.
    ///
    /// # Errors
    /// [`SetError::Misaligned`] or [`SetError::Outside`]; nothing is added then.
    pub fn insert_word(&mut self, first: u64, word: u64) -> Result<(), SetError> {
        if !first.is_multiple_of(WORD_UNITS) {
            return Err(SetError::Misaligned(first));
        }
        let units = self.units;
        let room = units.saturating_sub(first).min(WORD_UNITS);
        let fits = room > 0 && word & !bits(0, room) == 0;
        match self.words.get_mut(index(first / WORD_UNITS)) {
            Some(held) if fits => {
                self.len += u64::from((word & !*held).count_ones());
                *held |= word;
                Ok(())
            }
            _ if word == 0 => Ok(()),
            _ => Err(SetError::Outside { first, units }),
        }
    }

    /// Adds what `other` holds.
    ///
    /// # Errors
    /// [`SetError::Size`] if it is for another number of units.
    pub fn union(&mut self, other: &Self) -> Result<(), SetError> {
        self.combine(other, |mine, theirs| mine | theirs)
    }

    /// Removes what `other` holds.
    ///
    /// # Errors
    /// [`SetError::Size`] if it is for another number of units.
    pub fn subtract(&mut self, other: &Self) -> Result<(), SetError> {
        self.combine(other, |mine, theirs| mine & !theirs)
    }

    fn combine(&mut self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Result<(), SetError> {
        if self.units != other.units {
            return Err(SetError::Size(self.units, other.units));
        }
        let mut len = 0;
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine = op(*mine, *theirs);
            len += u64::from(mine.count_ones());
        }
        self.len = len;
        Ok(())
    }

    /// The first run of at most `max` units that begins at unit `from` or later. `max` of 0
    /// counts as 1.
    pub fn next_run(&self, from: u64, max: u64) -> Option<Run> {
        if self.is_empty() {
            return None;
        }
        let first = self.seek(from..self.units, |word| word)?;
        let limit = first.saturating_add(max.max(1)).min(self.units);
        let end = self.seek(first..limit, |word| !word).unwrap_or(limit);
        Run::within(first, end - first, self.units).ok()
    }

    /// The first unit of `among` whose bit is 1 after `view` of its word. Looks no further.
    fn seek(&self, among: Range<u64>, view: impl Fn(u64) -> u64) -> Option<u64> {
        if among.is_empty() {
            return None;
        }
        let words = among.start / WORD_UNITS..among.end.div_ceil(WORD_UNITS);
        let mut mask = bits(among.start % WORD_UNITS, WORD_UNITS);
        for (at, word) in words.clone().zip(self.words.get(index(words.start)..)?) {
            let seen = view(*word) & mask;
            if seen != 0 {
                let unit = at * WORD_UNITS + u64::from(seen.trailing_zeros());
                return (unit < among.end).then_some(unit);
            }
            mask = u64::MAX;
        }
        None
    }

    /// Takes a run of at most `max` units out of the set: the first at or after the cursor, going
    /// round at the end. The cursor moves behind it.
    pub fn take_run(&mut self, cursor: &mut Cursor, max: u64) -> Option<Run> {
        let run = self.next_run(cursor.0, max).or_else(|| self.next_run(0, max))?;
        self.remove_run(run);
        cursor.0 = run.end();
        Some(run)
    }

    /// Takes runs until they hold `max` units together, the set is empty, or the cursor has gone
    /// round; adds them to `runs` and says how many units they hold.
    pub fn take_runs(&mut self, cursor: &mut Cursor, max: u64, runs: &mut Vec<Run>) -> u64 {
        let mut taken = 0;
        while taken < max
            && let Some(run) = self.take_run(cursor, max - taken)
        {
            taken += run.count();
            runs.push(run);
        }
        taken
    }

    /// The runs of the set, each as long as it gets, in order.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(from, u64::MAX)?;
            from = run.end();
            Some(run)
        })
    }

    /// The words, bit 0 of the first being unit 0.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

#[cfg(test)]
mod tests;
