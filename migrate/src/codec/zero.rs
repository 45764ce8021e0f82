//! Is it all zeros? At the speed of memory, without `unsafe` and without CPU features.

/// Bytes that are joined before the first look at the result. Long enough for the compiler to
/// use vectors, short enough to stop early.
const STEP: usize = 256;

/// Whether every byte is 0. True for no bytes.
pub fn is_zero(bytes: &[u8]) -> bool {
    let steps = bytes.chunks_exact(STEP);
    let rest = steps.remainder();
    let joined = |step: &[u8]| step.iter().fold(0, |all, byte| all | byte);
    steps.into_iter().all(|step| joined(step) == 0) && joined(rest) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_seen() {
        for len in [0, 1, 255, 256, 257, 512, 4096, 4099] {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
