//! Keyed 128-bit digests of units, and a table of them whose sum is always at hand.
//!
//! At the switch both sides compare one number; it must be the same exactly if every unit that was
//! sent lies there as it was sent. The digests guard against mistakes of ours: a lost batch, an
//! old copy over a new one, a wrong address, a bit that flipped. They do not guard against the
//! peer, which is authenticated and could say anything. But the *content* is chosen by the guest,
//! so no guest may be able to choose two contents (or two units) that look the same. Hence a key,
//! drawn at random for each move and told to nobody but the peer.
//!
//! # Construction
//!
//! The way of UMAC (Black, Halevi, Krawczyk, Krovetz, Rogaway, CRYPTO '99; RFC 4418), with words of
//! 64 bits:
//!
//! 1. **NH**, for speed. A chunk of 4 KiB is words `m[0..512]`, little-endian, the key words
//!    `k[0..514]`:
//!
//!    ```text
//!    A = Σ (m[2i] + k[2i]   mod 2^64) · (m[2i+1] + k[2i+1] mod 2^64)   mod 2^128
//!    B = the same with k[2..514] for k[0..512]
//!    ```
//!
//!    Proved there: two different chunks of one length agree in A with probability at most 2^-64
//!    over the choice of `k`, and in A and B with at most 2^-128, *whatever* the chunks are, as
//!    long as they were chosen without knowing `k`.
//! 2. **A pseudo-random function**, to tie it to the place and to make sums safe: the digest is
//!    `SipHash-2-4-128(A, B of each chunk, unit, length)`. NH alone is linear enough that swapped
//!    units could leave a sum as it was; a sum of pseudo-random values shows every difference but
//!    with probability about 2^-128.
//!
//! `k` is expanded from the key of the move with SipHash-2-4-128 in counter mode. Nothing that
//! depends on the key is ever shown to the guest.
//!
//! Against the alternatives: keyed BLAKE3 does not reach the speed of memory on pages of 4 KiB;
//! XXH3 is as fast as this, but no bound is known for contents that somebody chose, and for some
//! differences a collision has a chance of only about 2^-32.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::unit::{Layout, Run, UnitIndex};

/// Bytes that are hashed with one pass over the key.
const CHUNK: usize = 4096;
/// Words of the key: one for each word of a chunk, and a pair more for the second sum.
const KEY_WORDS: usize = CHUNK / 8 + 2;

/// Digest of the content of one unit, or the sum of such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(pub u128);

/// Both sums of NH.
type Nh = [u128; 2];

/// The key of one move, expanded: 4 KiB.
#[derive(Clone)]
pub struct DigestKey {
    nh: Box<[u64; KEY_WORDS]>,
    prf: [u8; 16],
    /// NH of a whole chunk of zeros.
    zeros: Nh,
}

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey(…)")
    }
}

impl DigestKey {
    /// Expands `key`, which must come from the system's random source, new for every move.
    pub fn new(key: [u8; 32]) -> Self {
        let (mut expand, mut prf) = ([0; 16], [0; 16]);
        expand.copy_from_slice(&key[..16]);
        prf.copy_from_slice(&key[16..]);
        let expand = SipHasher24::new_with_key(&expand);
        let mut nh = Box::new([0; KEY_WORDS]);
        for (counter, pair) in (0u64..).zip(nh.chunks_exact_mut(2)) {
            let mut hasher = expand;
            hasher.write(&counter.to_le_bytes());
            let words = hasher.finish128();
            pair.copy_from_slice(&[words.h1, words.h2]);
        }
        let zeros = nh_of(&nh, &[0; CHUNK]);
        Self { nh, prf, zeros }
    }

    /// The digest of `content` as that of `unit`.
    pub fn digest(&self, unit: UnitIndex, content: &[u8]) -> Digest {
        let sums = content.chunks(CHUNK).map(|chunk| nh_of(&self.nh, chunk));
        self.finish(unit, content.len(), sums)
    }

    /// The same as [`digest`](Self::digest) of `len` zeros, without looking at them.
    pub fn digest_of_zeros(&self, unit: UnitIndex, len: usize) -> Digest {
        let rest = &[0; CHUNK][..len % CHUNK];
        let rest = (!rest.is_empty()).then(|| nh_of(&self.nh, rest));
        let whole = std::iter::repeat_n(self.zeros, len / CHUNK);
        self.finish(unit, len, whole.chain(rest))
    }

    fn finish(&self, unit: UnitIndex, len: usize, sums: impl Iterator<Item = Nh>) -> Digest {
        let mut hasher = SipHasher24::new_with_key(&self.prf);
        for [a, b] in sums {
            let mut bytes = [0; 32];
            bytes[..16].copy_from_slice(&a.to_le_bytes());
            bytes[16..].copy_from_slice(&b.to_le_bytes());
            hasher.write(&bytes);
        }
        let mut place = [0; 16];
        place[..8].copy_from_slice(&unit.get().to_le_bytes());
        place[8..].copy_from_slice(&(len as u64).to_le_bytes());
        hasher.write(&place);
        Digest(hasher.finish128().as_u128())
    }
}

/// NH of at most a chunk. A last part of less than 16 bytes is filled up with zeros, which the
/// length in the digest tells from real ones.
fn nh_of(key: &[u64; KEY_WORDS], chunk: &[u8]) -> Nh {
    let (pairs, rest) = chunk.as_chunks::<16>();
    let (keys, _) = key.as_chunks::<2>();
    let mut sums = [0; 2];
    for ((pair, first), second) in pairs.iter().zip(keys).zip(&keys[1..]) {
        add_pair(&mut sums, pair, first, second);
    }
    if !rest.is_empty() {
        let mut pair = [0; 16];
        pair[..rest.len()].copy_from_slice(rest);
        add_pair(&mut sums, &pair, &keys[pairs.len()], &keys[pairs.len() + 1]);
    }
    sums
}

#[inline]
fn add_pair(sums: &mut Nh, pair: &[u8; 16], first: &[u64; 2], second: &[u64; 2]) {
    let words = u128::from_le_bytes(*pair);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    let (low, high) = (words as u64, (words >> 64) as u64);
    for (sum, key) in sums.iter_mut().zip([first, second]) {
        let product = u128::from(low.wrapping_add(key[0])) * u128::from(high.wrapping_add(key[1]));
        *sum = sum.wrapping_add(product);
    }
}

/// The digests of the units of a layout, those that have one, and their sum: 16 bytes a unit.
///
/// The sum does not depend on the order in which units were set, and setting one is a subtraction
/// and an addition.
#[derive(Clone)]
pub struct DigestTable {
    layout: Layout,
    /// 0 stands for none.
    digests: Vec<u128>,
    sum: u128,
}

impl std::fmt::Debug for DigestTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DigestTable")
            .field("layout", &self.layout)
            .field("sum", &self.sum)
            .finish_non_exhaustive()
    }
}

impl DigestTable {
    /// No unit has a digest.
    pub fn new(layout: Layout) -> Self {
        let units = usize::try_from(layout.units()).unwrap_or(usize::MAX);
        Self { layout, digests: vec![0; units], sum: 0 }
    }

    /// Sets the digest of `unit`. A unit beyond the layout is left out.
    pub fn set(&mut self, unit: UnitIndex, digest: Digest) {
        let Ok(at) = usize::try_from(unit.get()) else { return };
        if let Some(entry) = self.digests.get_mut(at) {
            self.sum = self.sum.wrapping_sub(*entry).wrapping_add(digest.0);
            *entry = digest.0;
        }
    }

    /// The digest of `unit`, if it was set.
    pub fn get(&self, unit: UnitIndex) -> Option<Digest> {
        let entry = self.digests.get(usize::try_from(unit.get()).ok()?).copied()?;
        (entry != 0).then_some(Digest(entry))
    }

    /// The sum of all digests.
    pub fn sum(&self) -> Digest {
        Digest(self.sum)
    }

    /// The sum of the digests of `run`, to find where two tables differ.
    pub fn sum_of(&self, run: Run) -> Digest {
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(self.digests.len());
        let part = self.digests.get(at(run.first().get())..at(run.end())).unwrap_or_default();
        Digest(part.iter().fold(0, |sum, d| sum.wrapping_add(*d)))
    }

    /// The units it is for.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> DigestKey {
        DigestKey::new(std::array::from_fn(|i| u8::try_from(i).unwrap()))
    }

    fn unit(n: u64) -> UnitIndex {
        Layout::new(512, 1 << 20).unwrap().unit(n).unwrap()
    }

    /// The definition, word by word.
    fn slow_nh(key: &[u64], chunk: &[u8]) -> Nh {
        let mut padded = chunk.to_vec();
        padded.resize(chunk.len().next_multiple_of(16), 0);
        let m: Vec<u64> =
            padded.chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect();
        [0, 2].map(|shift| {
            (0..m.len()).step_by(2).fold(0u128, |sum, i| {
                let a = m[i].wrapping_add(key[i + shift]);
                let b = m[i + 1].wrapping_add(key[i + 1 + shift]);
                sum.wrapping_add(u128::from(a).wrapping_mul(u128::from(b)))
            })
        })
    }

    #[test]
    fn key_words_are_siphash_in_counter_mode() {
        // SipHash-2-4-128 of 8 bytes under key 00..0f, from the reference's test vectors.
        let expand = SipHasher24::new_with_key(&std::array::from_fn(|i| u8::try_from(i).unwrap()));
        let bytes = expand.hash(&[0, 1, 2, 3, 4, 5, 6, 7]).as_bytes();
        let vector = "3b62a9ba6258f5610f83e264f31497b4";
        assert_eq!(bytes.map(|b| format!("{b:02x}")).concat(), vector);
        let third = expand.hash(&2u64.to_le_bytes());
        assert_eq!(key().nh[4..6], [third.h1, third.h2]);
    }

    /// Both ends of a move may run different builds: the numbers must not change.
    #[test]
    fn golden_digests() {
        let content: Vec<u8> = (0..4096u32).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
        let found = [
            key().digest(unit(0), &content),
            key().digest(unit(1), &content),
            key().digest(unit(0), &content[..512]),
            key().digest_of_zeros(unit(0), 4096),
        ];
        let golden = GOLDEN.map(Digest);
        assert_eq!(found, golden);
    }

    /// From an independent program that follows the module's documentation.
    const GOLDEN: [u128; 4] = [
        0x0643_cd7e_24c7_e2f1_fbc7_f49e_cd31_0192,
        0x4331_c779_a758_0f43_130f_b1d2_c790_f12b,
        0xdce4_7d1c_de35_f048_c566_20aa_ed58_baff,
        0xb53f_bb97_8f38_9d92_bb45_2fa8_6bcc_1d59,
    ];

    proptest! {
        #[test]
        fn is_the_definition(content in prop::collection::vec(any::<u8>(), 0..=4096)) {
            prop_assert_eq!(nh_of(&key().nh, &content), slow_nh(&key().nh[..], &content));
        }

        #[test]
        fn a_flipped_bit_or_another_place_shows(
            seed: u64, bit in 0..(8 * 8192u32), a in 0..1000u64, b in 0..1000u64,
        ) {
            let key = key();
            let mut content: Vec<u8> =
                (0..8192u64).map(|i| seed.rotate_left((i % 64) as u32).to_le_bytes()[0]).collect();
            let before = key.digest(unit(a), &content);
            prop_assert_eq!(before == key.digest(unit(b), &content), a == b);
            content[bit as usize / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(before, key.digest(unit(a), &content));
        }

        #[test]
        fn zeros_need_no_look(n in 0..1000u64, len in 0..20_000usize) {
            let key = key();
            prop_assert_eq!(key.digest_of_zeros(unit(n), len), key.digest(unit(n), &vec![0; len]));
        }

        #[test]
        fn the_sum_is_that_of_the_last_digests(sets in prop::collection::vec((0..50u64, any::<u128>()), 0..100)) {
            let layout = Layout::new(512, 50).unwrap();
            let mut table = DigestTable::new(layout);
            let mut model = [0u128; 50];
            for (n, digest) in sets {
                table.set(unit(n), Digest(digest));
                model[usize::try_from(n).unwrap()] = digest;
            }
            let sum = |part: &[u128]| Digest(part.iter().fold(0, |s, d| s.wrapping_add(*d)));
            prop_assert_eq!(table.sum(), sum(&model));
            prop_assert_eq!(table.sum_of(layout.run(10, 15).unwrap()), sum(&model[10..25]));
        }
    }

    #[test]
    fn swapped_units_and_other_keys_show() {
        let contents = [[1u8; 4096], [2; 4096]];
        let sum = |key: &DigestKey, a: usize, b: usize| {
            let mut table = DigestTable::new(Layout::new(4096, 2).unwrap());
            table.set(unit(0), key.digest(unit(0), &contents[a]));
            table.set(unit(1), key.digest(unit(1), &contents[b]));
            table.sum()
        };
        assert_ne!(sum(&key(), 0, 1), sum(&key(), 1, 0));
        for byte in [0, 31] {
            let mut other: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
            other[byte] ^= 1;
            assert_ne!(sum(&key(), 0, 1), sum(&DigestKey::new(other), 0, 1));
        }
    }
}
