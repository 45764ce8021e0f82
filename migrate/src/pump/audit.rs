//! The audit of the frozen source: is what lies there still what was sent?
//!
//! The digests that are compared at the switch prove that what was sent arrived. That nothing was
//! missed shows only here.

use super::Cause;
use super::touched::Touched;
use crate::codec::{DigestKey, DigestTable, is_zero};
use crate::port::ReadUnits;
use crate::unit::UnitIndex;

/// Memory that was sent and does not change any more, with what was sent of it.
#[derive(Debug)]
pub struct Sealed<R> {
    ram: R,
    key: DigestKey,
    table: DigestTable,
}

impl<R: ReadUnits> Sealed<R> {
    pub(super) fn new(ram: R, key: DigestKey, table: DigestTable) -> Self {
        Self { ram, key, table }
    }

    /// Compares all of the memory with what was sent, and returns the units that differ, at most
    /// `max`: each is a write that the dirty log missed. Reads no untouched memory.
    ///
    /// # Errors
    /// Memory cannot be read.
    pub fn audit(&self, max: usize) -> Result<Vec<UnitIndex>, Cause> {
        let layout = *self.table.layout();
        let mut content = vec![0; layout.unit_len()];
        let mut differ = Vec::new();
        let (mut touched, mut pieces) = (Touched::default(), Vec::new());
        touched.divide(&self.ram, layout.whole(), &mut pieces)?;
        for (unit, hole) in pieces.iter().flat_map(|p| p.run.iter().map(|u| (u, p.hole))) {
            content.fill(0);
            if !hole {
                self.ram.read(unit, &mut content)?;
            }
            let same = match self.table.get(unit) {
                Some(sent) => self.key.digest(unit, &content) == sent,
                None => is_zero(&content),
            };
            if !same {
                differ.push(unit);
                if differ.len() >= max {
                    break;
                }
            }
        }
        Ok(differ)
    }
}
