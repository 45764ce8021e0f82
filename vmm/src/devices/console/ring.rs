//! The last bytes of an endless stream, addressed by their position in it.

use super::SCROLLBACK;

/// Holds the bytes `start()..end()` of the stream.
pub(super) struct Ring {
    bytes: Box<[u8]>,
    end: u64,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; SCROLLBACK].into_boxed_slice(), end: 0 }
    }

    /// Position behind the newest byte.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Position of the oldest byte.
    pub(super) fn start(&self) -> u64 {
        self.end.saturating_sub(self.bytes.len() as u64)
    }

    fn index(&self, position: u64) -> usize {
        // The remainder is below a length, which is a usize.
        usize::try_from(position % self.bytes.len() as u64).unwrap_or(0)
    }

    pub(super) fn push(&mut self, mut new: &[u8]) {
        while !new.is_empty() {
            let at = self.index(self.end);
            let room = &mut self.bytes[at..];
            let n = room.len().min(new.len());
            room[..n].copy_from_slice(&new[..n]);
            self.end += n as u64;
            new = &new[n..];
        }
    }

    /// The bytes from `position` on, as many as lie in one piece. `None` if `position` is gone
    /// already; empty at the end.
    pub(super) fn from(&self, position: u64) -> Option<&[u8]> {
        if position < self.start() {
            return None;
        }
        let left = usize::try_from(self.end.saturating_sub(position)).unwrap_or(usize::MAX);
        let piece = &self.bytes[self.index(position)..];
        Some(&piece[..piece.len().min(left)])
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::cast_possible_truncation, reason = "patterns, and sizes that fit")]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a vector of everything ever pushed.
        #[test]
        fn holds_the_last_bytes(lens in prop::collection::vec(0usize..100_000, 1..12), probe: u64) {
            let mut ring = Ring::new();
            let mut all = Vec::new();
            for len in lens {
                let new: Vec<u8> = (all.len()..all.len() + len).map(|i| ((i * 31) >> 3) as u8).collect();
                ring.push(&new);
                all.extend(new);
                prop_assert_eq!(ring.end(), all.len() as u64);
                let mut at = probe % (all.len() as u64 + 2);
                if ring.from(at).is_none() {
                    prop_assert!((at as usize) + SCROLLBACK < all.len());
                    continue;
                }
                let first = at as usize;
                let mut got = Vec::new();
                while let Some(piece) = ring.from(at) && !piece.is_empty() {
                    got.extend_from_slice(piece);
                    at += piece.len() as u64;
                }
                prop_assert_eq!(&got[..], all.get(first..).unwrap_or_default());
            }
        }
    }
}
