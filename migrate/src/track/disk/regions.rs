//! A set of regions of a disk, one bit each. Knows nothing of what a region is.

/// Regions, as the record of a sidecar holds them.
#[derive(Clone, PartialEq, Eq)]
pub struct Regions {
    bits: Vec<u8>,
    count: u64,
}

impl std::fmt::Debug for Regions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Where the bit of `region` is.
fn place(region: u64) -> (usize, u8) {
    (usize::try_from(region / 8).unwrap_or(usize::MAX), 1 << (region % 8))
}

impl Regions {
    /// None of `count`.
    pub fn empty(count: u64) -> Self {
        Self { bits: vec![0; usize::try_from(count.div_ceil(8)).unwrap_or(usize::MAX)], count }
    }

    /// From the bytes of a record; `None` if they are not as many as `count` regions take, or
    /// name one that is not there.
    pub fn from_bytes(bytes: &[u8], count: u64) -> Option<Self> {
        let mut found = Self::empty(count);
        if found.bits.len() != bytes.len() {
            return None;
        }
        found.bits.copy_from_slice(bytes);
        let beyond = (count..count.next_multiple_of(8)).any(|r| found.contains(r));
        (!beyond).then_some(found)
    }

    /// Their bytes: bit 0 of the first is region 0.
    pub fn bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Whether `region` is in the set.
    pub fn contains(&self, region: u64) -> bool {
        let (byte, bit) = place(region);
        self.bits.get(byte).is_some_and(|b| b & bit != 0)
    }

    /// Adds `region`; nothing if there is no such region.
    pub fn insert(&mut self, region: u64) {
        let (byte, bit) = place(region);
        if region < self.count
            && let Some(b) = self.bits.get_mut(byte)
        {
            *b |= bit;
        }
    }

    /// Removes `region`.
    pub fn remove(&mut self, region: u64) {
        let (byte, bit) = place(region);
        if let Some(b) = self.bits.get_mut(byte) {
            *b &= !bit;
        }
    }

    /// Adds what `other` holds.
    pub fn add(&mut self, other: &Self) {
        self.bits.iter_mut().zip(&other.bits).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Removes what `other` holds.
    pub fn subtract(&mut self, other: &Self) {
        self.bits.iter_mut().zip(&other.bits).for_each(|(mine, theirs)| *mine &= !theirs);
    }

    /// Keeps only what `other` holds, too.
    pub fn keep(&mut self, other: &Self) {
        self.bits.iter_mut().zip(&other.bits).for_each(|(mine, theirs)| *mine &= theirs);
    }

    /// Removes every region.
    pub fn clear(&mut self) {
        self.bits.fill(0);
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|b| *b == 0)
    }

    /// How many it holds.
    pub fn len(&self) -> u64 {
        self.bits.iter().map(|b| u64::from(b.count_ones())).sum()
    }

    /// Those it holds, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.count).filter(|r| self.contains(*r))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_regions() {
        let mut set = Regions::empty(11);
        for region in [0, 7, 8, 10, 11, 1000] {
            set.insert(region);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 7, 8, 10]);
        assert_eq!((set.len(), set.bytes()), (4, &[0x81, 0x05][..]));
        let copy = Regions::from_bytes(set.bytes(), 11).unwrap();
        assert_eq!(copy, set);
        let mut other = Regions::empty(11);
        other.insert(7);
        other.insert(9);
        set.keep(&other);
        assert_eq!(set.iter().collect::<Vec<_>>(), [7]);
        set.add(&other);
        set.subtract(&copy);
        assert_eq!(set.iter().collect::<Vec<_>>(), [9]);
        set.remove(9);
        assert!(set.is_empty());
    }

    #[test]
    fn bytes_of_another_size_are_none() {
        assert!(Regions::from_bytes(&[0], 9).is_none());
        assert!(Regions::from_bytes(&[0, 2], 9).is_none());
        assert!(Regions::from_bytes(&[0, 1], 9).is_some());
    }
}
