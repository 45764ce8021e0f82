//! The page function and the permutations, as the guest computes them (`guest/work.s`): with it a
//! test on the host can tell from outside what a page must hold, and which page is next.

/// Bytes in a page.
pub const PAGE_LEN: usize = 4096;
/// 64-bit words in a page.
pub const PAGE_WORDS: usize = PAGE_LEN / 8;
/// Words before the stream: magic, page number, version, key.
pub const HEADER_WORDS: usize = 4;

const MAGIC: u64 = 0x5C12_BB1E_5C12_BB1E;
const PAGE: u64 = 0x9E37_79B9_7F4A_7C15;
const VERSION: u64 = 0xD134_2543_DE82_EF95;
const STEP: u64 = 0xA076_1D64_78BD_642F;
const MUL: u64 = 0xE703_7ED1_A0B4_28DB;
const LCG_A: u64 = 0x5851_F42D_4C95_7F2D;
const LCG_C: u64 = 0x1405_7B7E_F767_814F;

const fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// What pages hold, given the guest's `seed` and the number of its incompressible words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageModel {
    /// Parameter `seed`.
    pub seed: u64,
    /// Words of the stream; the words behind it repeat the key.
    pub stream_words: usize,
}

impl PageModel {
    /// For the parameters `seed` and `compress` (percent).
    pub const fn new(seed: u64, compress: u8) -> Self {
        let words = (PAGE_WORDS - HEADER_WORDS) * (100 - compress as usize) / 100;
        Self { seed, stream_words: words & !3 }
    }

    /// Word `index` of page number `gfn` at `version`.
    pub fn word(&self, gfn: u64, version: u64, index: usize) -> u64 {
        let key = self.key(gfn, version);
        match index {
            0 => MAGIC ^ self.seed,
            1 => gfn,
            2 => version,
            _ if index >= HEADER_WORDS && index < HEADER_WORDS + self.stream_words => {
                let mut x = key.wrapping_add(STEP.wrapping_mul(index as u64));
                x ^= x >> 32;
                x = x.wrapping_mul(MUL);
                x ^ (x >> 29)
            }
            _ => key,
        }
    }

    /// The whole page.
    pub fn page(&self, gfn: u64, version: u64) -> Vec<u8> {
        (0..PAGE_WORDS).flat_map(|i| self.word(gfn, version, i).to_le_bytes()).collect()
    }

    /// The first wrong word of `page`, if any.
    pub fn check(&self, gfn: u64, version: u64, page: &[u8]) -> Option<usize> {
        let (words, rest) = page.as_chunks::<8>();
        if words.len() != PAGE_WORDS || !rest.is_empty() {
            return Some(words.len().min(PAGE_WORDS));
        }
        (0..PAGE_WORDS).find(|&i| u64::from_le_bytes(words[i]) != self.word(gfn, version, i))
    }

    fn key(&self, gfn: u64, version: u64) -> u64 {
        let page = mix(PAGE.wrapping_mul(gfn).wrapping_add(self.seed));
        mix(VERSION.wrapping_mul(version).wrapping_add(page))
    }
}

/// The order in which a region's pages are visited, all of them once a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permutation {
    pages: u64,
    mask: u64,
    /// Zero for ascending order.
    shift: u32,
    seed: u64,
}

impl Permutation {
    /// Ascending.
    pub const fn sequential(pages: u64) -> Self {
        Self { pages, mask: mask(pages), shift: 0, seed: 0 }
    }

    /// Scattered; `seed` is the guest's.
    pub const fn random(pages: u64, seed: u64) -> Self {
        let shift = mask(pages).count_ones().div_ceil(2);
        Self { pages, mask: mask(pages), shift: if shift == 0 { 1 } else { shift }, seed }
    }

    /// Pages of the region.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The pages of `round` in their order, as offsets into the region.
    pub fn round(&self, round: u64) -> Round {
        let state = if self.shift == 0 {
            0
        } else {
            mix(PAGE.wrapping_mul(round).wrapping_add(self.seed)) & self.mask
        };
        Round { order: *self, state, left: self.pages }
    }

    /// The offsets rewritten as the region's step counter went from `from` to `to`.
    pub fn steps(&self, from: u64, to: u64) -> impl Iterator<Item = u64> + '_ {
        let pages = self.pages.max(1);
        let rounds =
            if self.pages == 0 || to <= from { 0..0 } else { from / pages..to / pages + 1 };
        rounds.flat_map(move |round| {
            let first = round * pages;
            let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
            let end = usize::try_from((to - first).min(pages)).unwrap_or(usize::MAX);
            self.round(round).take(end).skip(skip)
        })
    }

    /// The version due of every page, by offset, after `steps` rewrites.
    pub fn versions(&self, steps: u64) -> Vec<u64> {
        let round = steps.checked_div(self.pages).unwrap_or(0);
        let visited = steps.checked_rem(self.pages).unwrap_or(0);
        let mut versions = vec![round; usize::try_from(self.pages).unwrap_or(0)];
        for (page, _) in self.round(round).zip(0..visited) {
            if let Some(version) = usize::try_from(page).ok().and_then(|i| versions.get_mut(i)) {
                *version += 1;
            }
        }
        versions
    }
}

const fn mask(pages: u64) -> u64 {
    if pages == 0 { 0 } else { pages.next_power_of_two() - 1 }
}

/// Iterator over one round.
#[derive(Clone, Debug)]
pub struct Round {
    order: Permutation,
    state: u64,
    left: u64,
}

impl Iterator for Round {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        loop {
            let x = self.state;
            let page = if self.order.shift == 0 {
                self.state = x + 1;
                x
            } else {
                self.state = x.wrapping_mul(LCG_A).wrapping_add(LCG_C) & self.order.mask;
                x ^ (x >> self.order.shift)
            };
            if page < self.order.pages {
                return Some(page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_round_visits_every_page_once() {
        for pages in (0..70).chain([127, 128, 129, 1000, 4097]) {
            for order in [Permutation::sequential(pages), Permutation::random(pages, 7)] {
                for round in 0..3 {
                    let seen: BTreeSet<u64> = order.round(round).collect();
                    assert_eq!(order.round(round).count() as u64, pages);
                    assert!(seen.iter().copied().eq(0..pages), "{pages} pages, round {round}");
                }
            }
        }
    }

    #[test]
    fn versions_follow_from_the_steps() {
        for pages in [1, 2, 5, 64, 100] {
            let order = Permutation::random(pages, 3);
            let mut versions = vec![0; usize::try_from(pages).unwrap()];
            for step in 0..=3 * pages {
                assert_eq!(order.versions(step), versions);
                for page in order.steps(step, step + 1) {
                    versions[usize::try_from(page).unwrap()] += 1;
                }
            }
            assert_eq!(order.steps(0, 3 * pages + 1).count() as u64, 3 * pages + 1);
            assert_eq!(order.steps(pages, pages).count(), 0);
        }
    }

    #[test]
    fn check_finds_any_flipped_word() {
        for compress in [0, 37, 100] {
            let model = PageModel::new(9, compress);
            let page = model.page(0x1234, 5);
            assert_eq!(model.check(0x1234, 5, &page), None);
            assert_eq!(model.check(0x1234, 6, &page), Some(2));
            assert_eq!(model.check(0x1235, 5, &page), Some(1));
            for word in 0..PAGE_WORDS {
                let mut bad = page.clone();
                bad[word * 8 + 3] ^= 0x10;
                assert_eq!(model.check(0x1234, 5, &bad), Some(word));
            }
            assert!(model.check(0x1234, 5, &page[..4088]).is_some());
        }
    }

    #[test]
    fn compressibility_is_the_share_asked_for() {
        assert_eq!(PageModel::new(1, 0).stream_words, 508);
        assert_eq!(PageModel::new(1, 50).stream_words, 252);
        assert_eq!(PageModel::new(1, 100).stream_words, 0);
    }

    /// Values a running guest was seen to hold (`expected=` of its mismatch line): they tie the
    /// model to the assembly.
    #[test]
    fn golden_words() {
        assert_eq!(PageModel::new(1, 0).word(1357, 0, 256), 0xD2EB_AB7F_BCDB_56F6);
    }

    /// As long as these hold, a recorded state of a guest can still be checked.
    #[test]
    fn golden_orders_and_pages() {
        let order = |round| Permutation::random(10, 1).round(round).collect::<Vec<_>>();
        assert_eq!(order(0), [4, 0, 2, 5, 3, 7, 6, 8, 1, 9]);
        assert_eq!(order(1), [1, 9, 4, 0, 2, 5, 3, 7, 6, 8]);
        let model = PageModel::new(1, 50);
        for (word, value) in [
            (0, 0x5C12_BB1E_5C12_BB1F),
            (3, 0x9932_1D6E_A25E_6E95),
            (4, 0x2EAF_60F8_4D1B_5682),
            (255, 0xE66A_E9FD_D128_BDDB),
            (256, 0x9932_1D6E_A25E_6E95),
            (511, 0x9932_1D6E_A25E_6E95),
        ] {
            assert_eq!(model.word(0x400, 2, word), value, "word {word}");
        }
    }
}
