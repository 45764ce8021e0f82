//! A log of bounded size in two files: the current one, and the last full one.
//!
//! Both are open from the start and are never renamed, so that a confined process can rotate.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use super::LOG_SIZE;

/// The files of a console's log, open for reading and writing.
#[derive(Debug)]
pub struct LogFiles {
    /// Output is appended here.
    pub current: File,
    /// Gets the content of `current` when that is full.
    pub previous: File,
}

pub(super) struct Log {
    files: LogFiles,
    size: u64,
    /// Position in the stream of the next byte to log.
    pub(super) cursor: u64,
}

impl Log {
    /// Continues where the file ends.
    pub(super) fn new(mut files: LogFiles) -> io::Result<Self> {
        let size = files.current.seek(SeekFrom::End(0))?;
        Ok(Self { files, size, cursor: 0 })
    }

    /// Appends `bytes`, starting a new file whenever this one is full.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.size >= LOG_SIZE {
                self.rotate()?;
            }
            let room = usize::try_from(LOG_SIZE - self.size).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.files.current.write_all(now)?;
            self.size += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let LogFiles { current, previous } = &mut self.files;
        previous.set_len(0)?;
        previous.rewind()?;
        current.rewind()?;
        io::copy(current, previous)?;
        current.set_len(0)?;
        current.rewind()?;
        self.size = 0;
        Ok(())
    }
}
