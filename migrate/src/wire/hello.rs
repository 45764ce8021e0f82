//! The opening of a connection: which versions both sides speak. Its layout never changes, so
//! that any two releases can at least tell each other that they do not fit.

use super::bounded::{List, Text};
use super::bytes::{Reader, limited};
use super::field::Field;
use super::{Version, WireError};

/// The first bytes of both sides.
pub const MAGIC: [u8; 8] = *b"MIGRATE\n";
/// Bytes before the body.
pub const OPENING_HEADER: usize = 14;
/// Most bytes of a body.
pub const MAX_OPENING: u16 = 512;
/// Most versions in a list.
pub const MAX_VERSIONS: usize = 64;
/// Most bytes of a text.
pub const MAX_HELLO_TEXT: usize = 255;

const HELLO: u8 = 1;
const CHOSEN: u8 = 2;
const REFUSED: u8 = 3;

/// Versions somebody speaks, as numbers: a peer may speak some that we do not know.
pub type Versions = List<u16, MAX_VERSIONS>;
/// A name or a reason.
pub type HelloText = Text<MAX_HELLO_TEXT>;

/// What the dialling side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Versions it speaks.
    pub versions: Versions,
    /// Program and release, for logs and messages.
    pub program: HelloText,
}

/// What the other side answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// All that follows is in this version.
    Chosen {
        /// Its number, one of those offered.
        version: u16,
        /// Program and release.
        program: HelloText,
    },
    /// Nothing follows.
    Refused {
        /// Versions it speaks.
        versions: Versions,
        /// Why, for people.
        text: HelloText,
    },
}

/// The two sides have no version in common.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no common protocol version: this host speaks {}, the other {}; upgrade the older one",
    list(.ours),
    list(.theirs)
)]
pub struct NoCommonVersion {
    /// Ours.
    pub ours: Vec<u16>,
    /// The peer's.
    pub theirs: Vec<u16>,
}

fn list(versions: &[u16]) -> String {
    if versions.is_empty() {
        return "none".to_owned();
    }
    versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Hello {
    /// Offers every version this program speaks.
    pub fn of_all_versions(program: &str) -> Self {
        Self { versions: ours(), program: HelloText::clipped(program) }
    }

    /// The best version both speak.
    ///
    /// # Errors
    /// [`NoCommonVersion`] says who speaks what.
    pub fn choose(&self) -> Result<Version, NoCommonVersion> {
        let theirs = self.versions.as_slice();
        let common = Version::ALL.iter().copied().filter(|v| theirs.contains(&v.number()));
        common
            .max()
            .ok_or_else(|| NoCommonVersion { ours: ours().into_vec(), theirs: theirs.to_vec() })
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![HELLO];
        self.versions.put(&mut body);
        self.program.put(&mut body);
        frame(&body)
    }

    /// Reads the body behind `header`.
    ///
    /// # Errors
    /// [`WireError`] if it is anything but a hello.
    pub fn decode(header: &OpeningHeader, body: &[u8]) -> Result<Self, WireError> {
        let mut from = header.open(body)?;
        match from.u8("the opening's kind")? {
            HELLO => {}
            found => return Err(unknown(found)),
        }
        let versions = Field::take(&mut from, "the list of versions")?;
        let program = Field::take(&mut from, "the program's name")?;
        from.end()?;
        Ok(Self { versions, program })
    }
}

impl Reply {
    /// The answer to `hello`, and the version if there is one.
    pub fn to(hello: &Hello, program: &str) -> (Self, Option<Version>) {
        match hello.choose() {
            Ok(version) => {
                let program = HelloText::clipped(program);
                (Self::Chosen { version: version.number(), program }, Some(version))
            }
            // Told from the other side's point of view.
            Err(e) => {
                let seen = NoCommonVersion { ours: e.theirs, theirs: e.ours };
                let text = HelloText::clipped(&seen.to_string());
                (Self::Refused { versions: ours(), text }, None)
            }
        }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::Chosen { version, program } => {
                body.push(CHOSEN);
                version.put(&mut body);
                program.put(&mut body);
            }
            Self::Refused { versions, text } => {
                body.push(REFUSED);
                versions.put(&mut body);
                text.put(&mut body);
            }
        }
        frame(&body)
    }

    /// Reads the body behind `header`.
    ///
    /// # Errors
    /// [`WireError`] if it is anything but a reply.
    pub fn decode(header: &OpeningHeader, body: &[u8]) -> Result<Self, WireError> {
        let mut from = header.open(body)?;
        let reply = match from.u8("the opening's kind")? {
            CHOSEN => Self::Chosen {
                version: Field::take(&mut from, "the version")?,
                program: Field::take(&mut from, "the program's name")?,
            },
            REFUSED => Self::Refused {
                versions: Field::take(&mut from, "the list of versions")?,
                text: Field::take(&mut from, "the reason")?,
            },
            found => return Err(unknown(found)),
        };
        from.end()?;
        Ok(reply)
    }
}

/// What stands before the body of an opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpeningHeader {
    len: u16,
    crc: u32,
}

impl OpeningHeader {
    /// Reads it.
    ///
    /// # Errors
    /// [`WireError::Magic`] if the peer speaks something else, [`WireError::Limit`] if the body is
    /// too long.
    pub fn decode(bytes: &[u8; OPENING_HEADER]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        if from.array("the magic number")? != MAGIC {
            return Err(WireError::Magic);
        }
        let len = from.u16("the opening's length")?;
        limited("an opening", len.into(), MAX_OPENING.into())?;
        Ok(Self { len, crc: from.u32("the opening's checksum")? })
    }

    /// Bytes of the body that follows.
    pub fn body_len(&self) -> usize {
        self.len.into()
    }

    fn open(self, body: &[u8]) -> Result<Reader<'_>, WireError> {
        if body.len() != self.body_len() {
            return Err(WireError::Short("the opening"));
        }
        if crc32fast::hash(body) != self.crc {
            return Err(WireError::Checksum);
        }
        Ok(Reader::new(body))
    }
}

fn ours() -> Versions {
    let versions: Vec<u16> = Version::ALL.iter().map(|v| v.number()).collect();
    versions.try_into().unwrap_or_default()
}

fn unknown(found: u8) -> WireError {
    WireError::Unknown { what: "the opening", found: found.into() }
}

fn frame(body: &[u8]) -> Vec<u8> {
    // The longest body: kind, 64 versions and a text, each with its count.
    const { assert!(1 + 2 + 2 * MAX_VERSIONS + 2 + MAX_HELLO_TEXT <= MAX_OPENING as usize) };
    let mut out = MAGIC.to_vec();
    u16::try_from(body.len()).unwrap_or(u16::MAX).put(&mut out);
    crc32fast::hash(body).put(&mut out);
    out.extend_from_slice(body);
    out
}
