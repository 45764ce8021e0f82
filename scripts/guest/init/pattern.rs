//! Content that is cheap to make, different everywhere, and reproducible.

/// The words of block `index`: cheap, different everywhere, and reproducible.
pub fn fill(seed: u64, index: u64, words: &mut [u64]) {
    let mut z = seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    for w in words {
        z = z.wrapping_add(0xd134_2543_de82_ef95);
        *w = z ^ (z >> 29);
    }
}

/// First word of block `index` that differs; a block has at most 512 words.
pub fn differs(seed: u64, index: u64, words: &[u64]) -> Option<usize> {
    const STEP: usize = 512;
    let mut expected = [0; STEP];
    let expected = &mut expected[..words.len()];
    fill(seed, index, expected);
    if expected == words {
        return None;
    }
    expected.iter().zip(words).position(|(a, b)| a != b)
}
