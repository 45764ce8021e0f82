//! Texts, blobs and lists that cannot be longer than the wire allows, so that a message that
//! exists can be sent.

/// It is longer than the wire allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} are more than the {max} that a message can carry")]
pub struct TooLong {
    /// Bytes or entries.
    pub len: usize,
    /// The most there can be.
    pub max: usize,
}

fn within(len: usize, max: usize) -> Result<(), TooLong> {
    if len <= max { Ok(()) } else { Err(TooLong { len, max }) }
}

/// Text for people: UTF-8 of at most `MAX` bytes on one line, without control characters, since
/// it comes from a peer and ends up on terminals and in logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// As much of `text` as fits; control characters become spaces.
    pub fn clipped(text: &str) -> Self {
        let mut clean = String::new();
        for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if clean.len() + c.len_utf8() > MAX {
                break;
            }
            clean.push(c);
        }
        Self(clean)
    }

    /// `text` as it is, if a peer may say it.
    pub(super) fn checked(text: &str) -> Option<Self> {
        let fine = text.len() <= MAX && !text.chars().any(char::is_control);
        fine.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> std::fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// At most `MAX` bytes that mean nothing to this protocol.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blob<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> Blob<MAX> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to keep.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const MAX: usize> TryFrom<Vec<u8>> for Blob<MAX> {
    type Error = TooLong;

    fn try_from(bytes: Vec<u8>) -> Result<Self, TooLong> {
        within(bytes.len(), MAX).map(|()| Self(bytes))
    }
}

impl<const MAX: usize> std::fmt::Debug for Blob<MAX> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

/// At most `MAX` entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// The entries.
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }

    /// The entries, to keep.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> TryFrom<Vec<T>> for List<T, MAX> {
    type Error = TooLong;

    fn try_from(entries: Vec<T>) -> Result<Self, TooLong> {
        within(entries.len(), MAX).map(|()| Self(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_clipped_between_characters() {
        assert_eq!(Text::<5>::clipped("äöü").as_str(), "äö");
        assert_eq!(Text::<9>::clipped("a\x1b[31m\nb").as_str(), "a [31m b");
        assert_eq!(Text::<3>::checked("a\x1b"), None);
        assert_eq!(Text::<3>::checked("abcd"), None);
    }

    #[test]
    fn what_is_too_long_does_not_exist() {
        assert_eq!(Blob::<3>::try_from(vec![0; 4]), Err(TooLong { len: 4, max: 3 }));
        assert!(List::<u8, 3>::try_from(vec![0; 3]).is_ok());
        assert_eq!(List::<u8, 3>::try_from(vec![0; 4]), Err(TooLong { len: 4, max: 3 }));
    }
}
