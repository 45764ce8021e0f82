//! What is said between an agent and those who ask it: a line of JSON for each question, and one
//! for each answer, in any order, told apart by a number. Bounded; nothing is decided.

use std::io;

use bytes::{Buf, BytesMut};
use migrate_engine::handover::term::{HostId, Stamp, Term};
use migrate_engine::port::{Stands, Unanswered};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use uuid::Uuid;

/// Longest line, in bytes.
pub const LINE_MAX: usize = 4096;

/// A right, as it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Right {
    /// Since which term.
    pub term: u64,
    /// Whose.
    pub host: Uuid,
}

impl From<Stamp> for Right {
    fn from(stamp: Stamp) -> Self {
        Self { term: stamp.term.get(), host: Uuid::from_u128(stamp.host.0) }
    }
}

impl From<Right> for Stamp {
    fn from(right: Right) -> Self {
        Self { term: Term::new(right.term), host: HostId(right.host.as_u128()) }
    }
}

/// What is asked of the one guest that an agent is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// What stands there?
    Read,
    /// Replace one right by another.
    Swap {
        /// The right before.
        expect: Option<Right>,
        /// The right after.
        want: Right,
    },
}

impl What {
    /// The question to replace `expect` by `want`.
    pub fn swap(expect: Option<Stamp>, want: Stamp) -> Self {
        Self::Swap { expect: expect.map(Into::into), want: want.into() }
    }
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Its number.
    pub id: u64,
    /// What.
    pub what: What,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Number of the question.
    pub id: u64,
    /// What stands there then; or why that is not known.
    pub stands: Result<Option<Right>, String>,
}

impl Told {
    /// The answer `stands` to question `id`.
    pub fn new(id: u64, stands: Stands) -> Self {
        Self { id, stands: stands.map(|s| s.map(Into::into)).map_err(|why| why.0) }
    }

    /// What it says.
    pub fn stands(self) -> Stands {
        self.stands.map(|s| s.map(Into::into)).map_err(Unanswered)
    }
}

/// A line that says `what`.
///
/// # Errors
/// It is too long.
pub fn line(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    if line.len() > LINE_MAX { Err(io::ErrorKind::InvalidData.into()) } else { Ok(line) }
}

/// Lines out of a stream. A wait for one that is given up loses nothing.
#[derive(Debug, Default)]
pub struct Lines(BytesMut);

impl Lines {
    /// The next line; `None` at the end of the stream.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` if it is too long or not what was expected.
    pub async fn next<T: serde::de::DeserializeOwned>(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
                let line = self.0.split_to(end);
                self.0.advance(1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.0.len() >= LINE_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if stream.read_buf(&mut self.0).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn lines_come_one_by_one_and_long_ones_not_at_all() {
        let right = Right { term: 7, host: Uuid::from_u128(5) };
        let asked = Asked { id: 3, what: What::Swap { expect: None, want: right } };
        let told = Told { id: 3, stands: Err("x".into()) };
        let bytes = [line(&asked).unwrap(), line(&asked).unwrap()].concat();
        let (mut lines, mut stream) = (Lines::default(), bytes.as_slice());
        for _ in 0..2 {
            assert_eq!(lines.next::<Asked>(&mut stream).await.unwrap(), Some(asked));
        }
        assert_eq!(lines.next::<Asked>(&mut stream).await.unwrap(), None);
        assert_eq!(told.stands(), Err(Unanswered("x".into())));
        let long = vec![b'x'; LINE_MAX + 1];
        assert!(Lines::default().next::<Asked>(&mut long.as_slice()).await.is_err());
        assert!(Lines::default().next::<Asked>(&mut b"{}\n".as_slice()).await.is_err());
        assert!(line(&"x".repeat(LINE_MAX)).is_err());
    }
}
