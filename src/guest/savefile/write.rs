//! Writes a saved file straight from the guest's RAM file, one MiB at a time.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::header::{BLOCK, HEADER_BYTES, Header, METADATA_MAX, PAGE, STATE_MAX, Section};
use super::{Metadata, SaveFileError};

/// What goes into a file.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// About the guest.
    pub metadata: &'a Metadata,
    /// The machine's own saved state.
    pub state: &'a [u8],
    /// The guest's RAM; nobody may write it meanwhile.
    pub ram: &'a File,
    /// Its length.
    pub ram_bytes: u64,
}

/// How large it became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of RAM in it.
    pub memory_bytes: u64,
}

/// Writes `content` into `file`, which must be a regular file open for writing; what it held is
/// lost. Returns when the file is complete and on its disk; its directory is the caller's.
/// Gives up soon after `cancel` becomes true.
///
/// # Errors
/// [`SaveFileError`]; the file is then not a saved file.
pub fn write(
    file: &File,
    content: &Content<'_>,
    cancel: &AtomicBool,
) -> Result<Written, SaveFileError> {
    let io_error = |source| SaveFileError::Io { what: "written", source };
    file.set_len(0).map_err(io_error)?;
    let json = serde_json::to_vec(content.metadata).map_err(|e| io_error(e.into()))?;
    if json.len() as u64 > METADATA_MAX || content.state.len() as u64 > STATE_MAX {
        let source = io::Error::other("metadata or machine state is longer than a file may hold");
        return Err(io_error(source));
    }
    let metadata = section(HEADER_BYTES as u64, &json);
    let state = section(metadata.offset + metadata.length, content.state);
    file.write_all_at(&json, metadata.offset).map_err(io_error)?;
    file.write_all_at(content.state, state.offset).map_err(io_error)?;

    let memory_offset = (state.offset + state.length).next_multiple_of(PAGE);
    let (memory_length, table) = write_memory(file, memory_offset, content, cancel)?;
    let table_offset = memory_offset + memory_length;
    file.write_all_at(&table, table_offset).map_err(io_error)?;

    let header = Header {
        file_bytes: table_offset + table.len() as u64,
        save: content.metadata.save,
        metadata,
        state,
        memory_offset,
        memory_length,
        table: section(table_offset, &table),
        ram_bytes: content.ram_bytes,
    };
    // Without memory nothing was written behind the padding.
    file.set_len(header.file_bytes).map_err(io_error)?;
    file.write_all_at(&header.encode(), 0).map_err(io_error)?;
    file.sync_all().map_err(io_error)?;
    Ok(Written { file_bytes: header.file_bytes, memory_bytes: memory_length })
}

fn section(offset: u64, bytes: &[u8]) -> Section {
    Section { offset, length: bytes.len() as u64, crc: crc32fast::hash(bytes) }
}

/// Writes the pages from `memory_offset` on; their length and the table.
fn write_memory(
    file: &File,
    memory_offset: u64,
    content: &Content<'_>,
    cancel: &AtomicBool,
) -> Result<(u64, Vec<u8>), SaveFileError> {
    let mut block = Block::new();
    let mut extents = Extents { ram: content.ram, known: 0..0 };
    let mut table = Vec::new();
    let mut written = 0;
    let mut at = 0;
    while at < content.ram_bytes {
        if cancel.load(Ordering::Relaxed) {
            return Err(SaveFileError::Cancelled);
        }
        let memory = |source| SaveFileError::Memory { what: "read", source };
        let Some(data) = extents.from(at).map_err(memory)? else { break };
        at = data.start.max(at) / BLOCK * BLOCK;
        let length = (content.ram_bytes - at).min(BLOCK);
        let packed = block.read(&mut extents, at, length).map_err(memory)?;
        if !packed.is_empty() {
            file.write_all_at(packed, memory_offset + written)
                .map_err(|source| SaveFileError::Io { what: "written", source })?;
            written += packed.len() as u64;
            let crc = crc32fast::hash(packed);
            table.extend_from_slice(&index(at)?.to_le_bytes());
            table.extend_from_slice(&crc.to_le_bytes());
            table.extend_from_slice(&block.bitmap);
        }
        at += length;
    }
    Ok((written, table))
}

/// Number of the block at `offset` of RAM.
fn index(offset: u64) -> Result<u32, SaveFileError> {
    u32::try_from(offset / BLOCK).map_err(|_| SaveFileError::Memory {
        what: "read",
        source: io::ErrorKind::FileTooLarge.into(),
    })
}

/// The parts of the RAM file that are not holes. The kernel finds the end of one by walking its
/// pages, so each is asked for once and kept while blocks inside it are read.
struct Extents<'a> {
    ram: &'a File,
    known: Range<u64>,
}

impl Extents<'_> {
    /// The data that contains `from`, or else the first behind it; `None` if only a hole follows.
    /// `from` must not go back.
    fn from(&mut self, from: u64) -> io::Result<Option<Range<u64>>> {
        if !self.known.contains(&from) {
            let Some(start) = next_data(self.ram, from)? else { return Ok(None) };
            self.known = start..next_hole(self.ram, start)?;
        }
        Ok(Some(self.known.clone()))
    }
}

/// Where data begins at or after `from`; `None` if only holes follow.
fn next_data(ram: &File, from: u64) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    match lseek(ram, from, Whence::SeekData) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Where the next hole begins at or after `from`.
fn next_hole(ram: &File, from: u64) -> io::Result<u64> {
    let from = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    let at = lseek(ram, from, Whence::SeekHole)?;
    u64::try_from(at).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// One block of RAM in the making.
struct Block {
    buffer: Vec<u8>,
    bitmap: [u8; 32],
}

impl Block {
    fn new() -> Self {
        Self { buffer: vec![0; usize::try_from(BLOCK).unwrap_or_default()], bitmap: [0; 32] }
    }

    /// The non-zero pages among the `length` bytes of `ram` at `start`, packed; the bitmap says
    /// which they are. Holes are not read.
    fn read(&mut self, extents: &mut Extents<'_>, start: u64, length: u64) -> io::Result<&[u8]> {
        self.bitmap = [0; 32];
        let mut packed = 0;
        let end = start + length;
        let mut at = start;
        while at < end {
            let Some(data) = extents.from(at)?.filter(|d| d.start < end) else { break };
            // Pages are what the kernel allocates; rounding only guards against other kernels.
            let from = data.start.max(at) / PAGE * PAGE;
            at = data.end.next_multiple_of(PAGE).clamp(from + PAGE, end);
            packed = self.pack(extents.ram, start, from..at, packed)?;
        }
        Ok(self.buffer.get(..packed).unwrap_or_default())
    }

    /// Reads RAM `range` behind the pages packed so far and packs its non-zero pages.
    fn pack(
        &mut self,
        ram: &File,
        start: u64,
        range: Range<u64>,
        mut packed: usize,
    ) -> io::Result<usize> {
        let page = usize::try_from(PAGE).unwrap_or_default();
        let outside = || io::Error::from(io::ErrorKind::InvalidData);
        let length = usize::try_from(range.end - range.start).map_err(|_| outside())?;
        let first = usize::try_from((range.start - start) / PAGE).map_err(|_| outside())?;
        // What was packed so far is never longer than what was read so far.
        let read_to = packed..packed + length;
        ram.read_exact_at(self.buffer.get_mut(read_to.clone()).ok_or_else(outside)?, range.start)?;
        for (i, from) in read_to.step_by(page).enumerate() {
            if is_zero(self.buffer.get(from..from + page).ok_or_else(outside)?) {
                continue;
            }
            if from != packed {
                self.buffer.copy_within(from..from + page, packed);
            }
            packed += page;
            let number = first + i;
            *self.bitmap.get_mut(number / 8).ok_or_else(outside)? |= 1 << (number % 8);
        }
        Ok(packed)
    }
}

/// Whether all bytes are zero. Whole cache lines at a time, which compilers turn into vectors.
fn is_zero(page: &[u8]) -> bool {
    page.chunks(256).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}
