//! The file of a saved guest.
//!
//! ```text
//! header (128 bytes) │ metadata (JSON) │ machine state │ zeros up to 4096 │ memory │ table
//! ```
//!
//! Memory holds the pages that are not all zero, each once, in the order of RAM; the table says
//! which: one entry for each MiB of RAM that has any, `{ block u32, crc32 u32, bitmap [u8; 32] }`.
//! Entry order is memory order, blocks ascend, and bit *p* of the bitmap (bit `p % 8` of byte
//! `p / 8`) says that page *p* of the block is there. The checksum covers the block's pages.
//!
//! Every byte of the file is covered by a checksum or has one allowed value. The header is
//! written last: a file whose writing was interrupted is not one.

mod header;
mod metadata;
mod read;
mod write;

pub use header::{HEADER_BYTES, Header, Section};
pub use metadata::Metadata;
pub use read::{SavedFile, load_memory, open};
pub use write::{Content, Written, write};

use crate::api::{ErrorCode, Failure};

/// Why a saved file cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum SaveFileError {
    /// The magic is missing.
    #[error("this is not a saved guest, or its saving was interrupted")]
    NotOurs,
    /// Written by a newer program.
    #[error("the file has version {found}; this program reads versions up to {}", header::VERSION)]
    TooNew {
        /// In the file.
        found: u32,
    },
    /// Written by a program whose files are no longer read.
    #[error("the file has version {found}; this program reads versions from {} on", header::OLDEST)]
    TooOld {
        /// In the file.
        found: u32,
    },
    /// Truncated or extended.
    #[error("the file should have {wanted} bytes and has {actual}: it was not copied whole")]
    Length {
        /// By its header.
        wanted: u64,
        /// In fact.
        actual: u64,
    },
    /// A part is not what was written.
    #[error("the file is damaged in its {section} at byte {offset}: {what}")]
    Damaged {
        /// Part of the file.
        section: &'static str,
        /// Where the damaged piece begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The file system refuses.
    #[error("the file cannot be {what}: {source}")]
    Io {
        /// `read` or `written`.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Guest memory refuses.
    #[error("the guest's memory cannot be {what}: {source}")]
    Memory {
        /// `read` or `filled`.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The save was given up, for example because the guest's caller died.
    #[error("the save was given up")]
    Cancelled,
}

impl SaveFileError {
    fn damaged(section: &'static str, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { section, offset, what: what.into() }
    }

    /// As the API reports it.
    pub fn failure(&self) -> Failure {
        let (code, remedy) = match self {
            Self::TooNew { .. } => (
                ErrorCode::StateVersion,
                "load it with the version of migrate that saved it, or a newer one",
            ),
            Self::TooOld { .. } => {
                (ErrorCode::StateVersion, "load it with an older migrate and save it again")
            }
            Self::NotOurs | Self::Length { .. } | Self::Damaged { .. } => (
                ErrorCode::BadStateFile,
                "copy the file again from where it was saved; a damaged file cannot be loaded",
            ),
            Self::Io { .. } => (ErrorCode::File, "check the file's disk: space, rights, health"),
            Self::Memory { .. } => (ErrorCode::NoMemory, "free memory on the host and try again"),
            Self::Cancelled => (ErrorCode::Interrupted, "save again"),
        };
        Failure::new(code, self.to_string(), remedy)
    }
}

#[cfg(test)]
mod tests;
