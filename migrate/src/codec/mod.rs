//! What becomes of a unit on its way: nothing (zero, or unchanged), or bytes in a batch, raw or
//! compressed.
//!
//! Everything here sees private copies of units, never guest memory itself, so what is tested,
//! digested and encoded is one and the same content. Decoding takes the size it must end up with
//! from the caller; a peer's bytes never decide how much memory is used.

pub mod batch;
pub mod block;
pub mod digest;
pub mod policy;
pub mod zero;

pub use batch::{Batch, BatchFull, MAX_BATCH_UNITS};
pub use block::{Codec, CodecError};
pub use digest::{Digest, DigestKey, DigestTable};
pub use policy::{Choice, Limits, Policy, Speeds};
pub use zero::is_zero;

/// What a unit turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// All bytes are 0.
    Zero,
    /// The peer has this content already.
    Same,
    /// Content that must be sent.
    Data,
}

/// Classifies the content of `unit`. `known` is the digest of what the peer is known to hold;
/// [`Class::Same`] only comes out if there is one. The digest is that of the content.
pub fn classify(
    key: &DigestKey,
    unit: crate::unit::UnitIndex,
    content: &[u8],
    known: Option<Digest>,
) -> (Class, Digest) {
    let zero = is_zero(content);
    let digest =
        if zero { key.digest_of_zeros(unit, content.len()) } else { key.digest(unit, content) };
    let class = match known {
        Some(known) if known == digest => Class::Same,
        _ if zero => Class::Zero,
        _ => Class::Data,
    };
    (class, digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::Layout;

    #[test]
    fn classes() {
        let key = DigestKey::new([7; 32]);
        let unit = Layout::new(4096, 10).unwrap().unit(3).unwrap();
        let (zeros, ones) = ([0u8; 4096], [1u8; 4096]);
        let (class, zero_digest) = classify(&key, unit, &zeros, None);
        assert_eq!((class, zero_digest), (Class::Zero, key.digest(unit, &zeros)));
        let (class, digest) = classify(&key, unit, &ones, Some(zero_digest));
        assert_eq!(class, Class::Data);
        assert_eq!(classify(&key, unit, &ones, Some(digest)), (Class::Same, digest));
        assert_eq!(classify(&key, unit, &zeros, Some(zero_digest)), (Class::Same, zero_digest));
        assert_eq!(classify(&key, unit, &zeros, Some(digest)).0, Class::Zero);
    }
}
