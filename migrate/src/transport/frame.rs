//! Frames on an ordered byte stream: four bytes of length (little-endian), then that many bytes.
//!
//! The length is compared with the limit of the stream before any memory is taken for it. Empty
//! frames do not exist: a peer cannot keep the reader busy without sending content.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bytes before the content of every frame.
pub const HEADER: usize = 4;

/// A frame that breaks the rules of its stream. The stream cannot be read on after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The announced or offered length is above the limit.
    #[error("a frame of {len} bytes where at most {limit} are allowed")]
    TooLong {
        /// Length of the content in bytes.
        len: usize,
        /// Most bytes of content on this stream.
        limit: usize,
    },
    /// A frame without content.
    #[error("an empty frame")]
    Empty,
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame: {missing} bytes are missing")]
    Truncated {
        /// Bytes that had still to come.
        missing: usize,
    },
}

/// Checks the length of a frame against its stream's limit.
pub fn check_len(len: usize, limit: usize) -> Result<(), FrameError> {
    match len {
        0 => Err(FrameError::Empty),
        _ if len > limit => Err(FrameError::TooLong { len, limit }),
        _ => Ok(()),
    }
}

/// The header of a frame with `len` bytes of content.
///
/// # Errors
/// `len` is zero, above `limit`, or does not fit 32 bits.
pub fn header(len: usize, limit: usize) -> Result<[u8; HEADER], FrameError> {
    check_len(len, limit)?;
    u32::try_from(len).map(u32::to_le_bytes).map_err(|_| FrameError::TooLong { len, limit })
}

/// Cuts a byte stream into frames, whatever pieces it arrives in.
#[derive(Debug)]
pub struct Framer {
    limit: usize,
    header: [u8; HEADER],
    header_len: usize,
    /// The content so far and its full length, once the header is complete.
    body: Option<(BytesMut, usize)>,
}

impl Framer {
    /// A framer at the start of a stream that allows `limit` bytes of content in a frame.
    pub fn new(limit: usize) -> Self {
        Self { limit, header: [0; HEADER], header_len: 0, body: None }
    }

    /// Takes bytes from `input` up to the end of the next frame, and returns the frame if it is
    /// complete. Call again while `input` has bytes left.
    ///
    /// # Errors
    /// The peer announced a frame that is empty or too long. The framer must not be used again.
    pub fn push(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, FrameError> {
        if self.body.is_none() {
            let take = input.len().min(HEADER - self.header_len);
            input.copy_to_slice(&mut self.header[self.header_len..self.header_len + take]);
            self.header_len += take;
            if self.header_len < HEADER {
                return Ok(None);
            }
            let len = usize::try_from(u32::from_le_bytes(self.header)).unwrap_or(usize::MAX);
            check_len(len, self.limit)?;
            self.body = Some((BytesMut::with_capacity(len), len));
        }
        let Some((body, len)) = &mut self.body else { return Ok(None) };
        let take = input.len().min(*len - body.len());
        body.extend_from_slice(&input[..take]);
        input.advance(take);
        if body.len() < *len {
            return Ok(None);
        }
        self.header_len = 0;
        Ok(self.body.take().map(|(body, _)| body.freeze()))
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// A frame has begun and is not complete.
    pub fn finish(&self) -> Result<(), FrameError> {
        let missing = match &self.body {
            Some((body, len)) => len - body.len(),
            None if self.header_len > 0 => HEADER - self.header_len,
            None => return Ok(()),
        };
        Err(FrameError::Truncated { missing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        frames
            .iter()
            .flat_map(|f| [&header(f.len(), 1 << 20).unwrap()[..], &f[..]].concat())
            .collect()
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_frames(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..20),
            cuts in prop::collection::vec(1usize..64, 1..50),
        ) {
            let bytes = Bytes::from(stream(&frames));
            let mut framer = Framer::new(200);
            let (mut got, mut at, mut cut) = (Vec::new(), 0, cuts.iter().cycle());
            while at < bytes.len() {
                let end = bytes.len().min(at + cut.next().unwrap());
                let mut piece = bytes.slice(at..end);
                while !piece.is_empty() {
                    if let Some(frame) = framer.push(&mut piece).unwrap() {
                        got.push(frame.to_vec());
                    }
                }
                at = end;
            }
            prop_assert_eq!(framer.finish(), Ok(()));
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn hostile_bytes_never_exceed_the_limit(
            input in prop::collection::vec(any::<u8>(), 0..400), limit in 1usize..100,
        ) {
            let mut framer = Framer::new(limit);
            let mut input = Bytes::from(input);
            while !input.is_empty() {
                match framer.push(&mut input) {
                    Ok(Some(frame)) => prop_assert!((1..=limit).contains(&frame.len())),
                    Ok(None) => prop_assert!(input.is_empty()),
                    Err(_) => break,
                }
                if let Some((body, _)) = &framer.body {
                    prop_assert!(body.capacity() <= limit.max(64));
                }
            }
        }
    }

    #[test]
    fn a_length_above_the_limit_takes_no_memory() {
        let mut framer = Framer::new(1024);
        let mut input = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert_eq!(
            framer.push(&mut input),
            Err(FrameError::TooLong { len: u32::MAX as usize, limit: 1024 })
        );
        assert!(framer.body.is_none());
    }

    #[test]
    fn an_end_inside_a_frame_is_not_an_end() {
        let mut framer = Framer::new(1024);
        framer.push(&mut Bytes::from_static(&[5, 0])).unwrap();
        assert_eq!(framer.finish(), Err(FrameError::Truncated { missing: 2 }));
        framer.push(&mut Bytes::from_static(&[0, 0, 1, 2])).unwrap();
        assert_eq!(framer.finish(), Err(FrameError::Truncated { missing: 3 }));
    }
}
