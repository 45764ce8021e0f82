//! How each type of field stands in a body.

use super::WireError;
use super::bounded::{Blob, List, Text};
use super::bytes::{Reader, limited};
use super::ids::{AttemptId, GuestId, MoveId};
use crate::codec::Digest;

/// A value with a place in a body. Takes at least one byte there, so that a list never has more
/// entries than bytes.
pub(super) trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError>;
}

macro_rules! numbers {
    ($($type:ident),*) => {$(
        impl Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
                from.array(what).map(Self::from_le_bytes)
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        match from.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(WireError::Unknown { what: "a yes or no", found: found.into() }),
        }
    }
}

impl<const N: usize> Field for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        from.array(what)
    }
}

macro_rules! ids {
    ($($type:ident),*) => {$(
        impl Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.0);
            }

            fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
                from.array(what).map(Self)
            }
        }
    )*};
}
ids!(GuestId, MoveId, AttemptId);

impl Field for Digest {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        from.array(what).map(|bytes| Self(u128::from_le_bytes(bytes)))
    }
}

/// Writes a length that its type bounds. The types below are no longer than their counts can say.
fn put_len<T: TryFrom<usize> + Field>(len: usize, max: T, out: &mut Vec<u8>) {
    T::try_from(len).unwrap_or(max).put(out);
}

impl<const MAX: usize> Field for Text<MAX> {
    fn put(&self, out: &mut Vec<u8>) {
        const { assert!(MAX <= u16::MAX as usize) };
        put_len(self.as_str().len(), u16::MAX, out);
        out.extend_from_slice(self.as_str().as_bytes());
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        let len = limited(what, from.u16(what)?.into(), MAX as u64)?;
        let text = str::from_utf8(from.bytes(len, what)?).ok();
        text.and_then(Self::checked).ok_or(WireError::Invalid("a text is not plain text"))
    }
}

impl<const MAX: usize> Field for Blob<MAX> {
    fn put(&self, out: &mut Vec<u8>) {
        const { assert!(MAX <= u32::MAX as usize) };
        put_len(self.as_slice().len(), u32::MAX, out);
        out.extend_from_slice(self.as_slice());
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        let len = limited(what, from.u32(what)?.into(), MAX as u64)?;
        let bytes = from.bytes(len, what)?.to_vec();
        Self::try_from(bytes).map_err(|_| WireError::Invalid("a blob is too long"))
    }
}

impl<T: Field, const MAX: usize> Field for List<T, MAX> {
    fn put(&self, out: &mut Vec<u8>) {
        const { assert!(MAX <= u16::MAX as usize) };
        put_len(self.as_slice().len(), u16::MAX, out);
        self.as_slice().iter().for_each(|entry| entry.put(out));
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        let count = limited(what, from.u16(what)?.into(), MAX as u64)?;
        let entries = (0..count).map(|_| T::take(from, what)).collect::<Result<Vec<_>, _>>()?;
        Self::try_from(entries).map_err(|_| WireError::Invalid("a list is too long"))
    }
}
