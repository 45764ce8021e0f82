//! One block of bytes, raw or as an LZ4 block (the block format of the LZ4 project, without frame
//! and without a size in front).

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// How bytes are encoded. The numbers are those on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// An LZ4 block.
    Lz4 = 1,
}

/// Bytes saved below which a compressed block is not worth decompressing: one part in this many.
const LEAST_GAIN: usize = 16;

/// Why bytes cannot be encoded or decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The output buffer of an encoder.
    #[error("the buffer has {have} bytes, encoding may need {need}")]
    Buffer {
        /// What it has.
        have: usize,
        /// What is needed at worst.
        need: usize,
    },
    /// Decoded bytes are fewer or more than announced.
    #[error("the block decodes to {got} bytes, announced were {announced}")]
    Length {
        /// Announced.
        announced: usize,
        /// Found; for compressed blocks, found before it was given up.
        got: usize,
    },
    /// Not an LZ4 block, or one of more bytes than announced.
    #[error("the block is not LZ4 of {announced} bytes")]
    Lz4 {
        /// Announced.
        announced: usize,
    },
}

impl TryFrom<u8> for Codec {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        match number {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Lz4),
            unknown => Err(unknown),
        }
    }
}

/// Bytes of buffer with which [`encode`] works for `raw_len` bytes.
pub fn encoded_bound(raw_len: usize) -> usize {
    get_maximum_output_size(raw_len).max(raw_len)
}

/// Encodes `raw` to the beginning of `out`, and says how it did and how many bytes it wrote: never
/// more than `raw` has. `wanted` is LZ4 only where that makes it smaller by a sixteenth.
///
/// # Errors
/// [`CodecError::Buffer`] if `out` is shorter than [`encoded_bound`].
pub fn encode(wanted: Codec, raw: &[u8], out: &mut [u8]) -> Result<(Codec, usize), CodecError> {
    let need = match wanted {
        Codec::Raw => raw.len(),
        Codec::Lz4 => encoded_bound(raw.len()),
    };
    let have = out.len();
    let buffer = out.get_mut(..need).ok_or(CodecError::Buffer { have, need })?;
    if wanted == Codec::Lz4
        && let Ok(len) = compress_into(raw, buffer)
        && len <= raw.len() - raw.len().div_ceil(LEAST_GAIN)
    {
        return Ok((Codec::Lz4, len));
    }
    let (plain, _) = buffer.split_at_mut(raw.len());
    plain.copy_from_slice(raw);
    Ok((Codec::Raw, raw.len()))
}

/// Decodes `encoded` into exactly `out`, whose length is the announced one.
///
/// # Errors
/// [`CodecError::Length`] or [`CodecError::Lz4`] if it decodes to anything else; `out` holds
/// something arbitrary then.
pub fn decode(codec: Codec, encoded: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    let announced = out.len();
    let got = match codec {
        Codec::Raw if encoded.len() == announced => {
            out.copy_from_slice(encoded);
            announced
        }
        Codec::Raw => encoded.len(),
        Codec::Lz4 => decompress_into(encoded, out).map_err(|_| CodecError::Lz4 { announced })?,
    };
    if got == announced { Ok(()) } else { Err(CodecError::Length { announced, got }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes from noise to monotony.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let noise = prop::collection::vec(any::<u8>(), 0..9000);
        let pattern = (prop::collection::vec(any::<u8>(), 1..40), 0..9000usize)
            .prop_map(|(p, len)| p.iter().copied().cycle().take(len).collect());
        prop_oneof![noise, pattern]
    }

    fn encoded(wanted: Codec, raw: &[u8]) -> (Codec, Vec<u8>) {
        let mut out = vec![0xAA; encoded_bound(raw.len())];
        let (codec, len) = encode(wanted, raw, &mut out).unwrap();
        out.truncate(len);
        (codec, out)
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(raw in content(), lz4: bool) {
            let wanted = if lz4 { Codec::Lz4 } else { Codec::Raw };
            let (codec, bytes) = encoded(wanted, &raw);
            prop_assert!(bytes.len() <= raw.len());
            let mut back = vec![0x55; raw.len()];
            decode(codec, &bytes, &mut back).unwrap();
            prop_assert_eq!(back, raw);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>, lz4: bool, len in 0..9000usize) {
            let codec = if lz4 { Codec::Lz4 } else { Codec::Raw };
            let mut out = vec![0; len];
            let _ = decode(codec, &bytes, &mut out);
        }

        #[test]
        fn damaged_blocks_decode_to_the_announced_size_or_fail(
            raw in content(), at: prop::sample::Index, flip in 1..=255u8, wrong in 0..9000usize,
        ) {
            let (codec, mut bytes) = encoded(Codec::Lz4, &raw);
            let mut out = vec![0; wrong];
            prop_assert_eq!(decode(codec, &bytes, &mut out).is_ok(), wrong == raw.len());
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                let mut out = vec![0; raw.len()];
                let _ = decode(codec, &bytes, &mut out);
            }
        }
    }

    #[test]
    fn compression_happens_where_it_pays() {
        assert_eq!(encoded(Codec::Lz4, &[7; 4096]).0, Codec::Lz4);
        let mut noise = vec![0u8; 4096];
        let mut x = 1u64;
        for byte in &mut noise {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = x.to_be_bytes()[0];
        }
        assert_eq!(encoded(Codec::Lz4, &noise), (Codec::Raw, noise.clone()));
        assert_eq!(encoded(Codec::Lz4, &[]), (Codec::Raw, vec![]));
    }

    #[test]
    fn a_short_buffer_is_refused() {
        let mut out = [0; 4096];
        let need = encoded_bound(4096);
        let refused = Err(CodecError::Buffer { have: 4096, need });
        assert_eq!(encode(Codec::Lz4, &[0; 4096], &mut out), refused);
        assert_eq!(encode(Codec::Raw, &[0; 4096], &mut out), Ok((Codec::Raw, 4096)));
    }

    /// A block from the format's description: literals "abcd", then a match of 8 from 4 back,
    /// then the last literals.
    #[test]
    fn reads_blocks_of_the_standard() {
        let block = [0x44, b'a', b'b', b'c', b'd', 4, 0, 0x50, b'v', b'w', b'x', b'y', b'z'];
        let mut out = [0; 17];
        decode(Codec::Lz4, &block, &mut out).unwrap();
        assert_eq!(&out, b"abcdabcdabcdvwxyz");
    }
}
