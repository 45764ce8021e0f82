//! Reads saved files. Nothing in them is trusted: lengths are checked against the file and the
//! format's limits before anything is allocated, checksums before anything is interpreted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{BLOCK, ENTRY_BYTES, HEADER_BYTES, Header, PAGE, Section};
use super::{Metadata, SaveFileError};

const PAGES: u64 = BLOCK / PAGE;

/// Everything of a saved file but the memory.
#[derive(Clone, Debug)]
pub struct SavedFile {
    /// Where everything lies.
    pub header: Header,
    /// About the guest.
    pub metadata: Metadata,
    /// The machine's own saved state, to be decoded by `vmm`.
    pub state: Vec<u8>,
}

/// Reads everything but the memory.
///
/// # Errors
/// [`SaveFileError`] says what is wrong and where.
pub fn open(file: &File) -> Result<SavedFile, SaveFileError> {
    let io_error = |source| SaveFileError::Io { what: "read", source };
    let actual = file.metadata().map_err(io_error)?.len();
    let mut bytes = [0; HEADER_BYTES];
    if actual < HEADER_BYTES as u64 {
        return Err(SaveFileError::NotOurs);
    }
    file.read_exact_at(&mut bytes, 0).map_err(io_error)?;
    let header = Header::decode(&bytes, actual)?;
    let json = read_section(file, "metadata", &header.metadata)?;
    let metadata: Metadata = serde_json::from_slice(&json)
        .map_err(|e| SaveFileError::damaged("metadata", header.metadata.offset, e.to_string()))?;
    if metadata.save != header.save {
        let what = "it belongs to another save than the header";
        return Err(SaveFileError::damaged("metadata", header.metadata.offset, what));
    }
    if metadata.definition.memory_bytes != header.ram_bytes {
        let what = "it tells another size of memory than the header";
        return Err(SaveFileError::damaged("metadata", header.metadata.offset, what));
    }
    let state = read_section(file, "machine state", &header.state)?;
    check_padding(file, &header)?;
    Ok(SavedFile { header, metadata, state })
}

/// Reads a section whose length the header's check has bounded.
fn read_section(
    file: &File,
    name: &'static str,
    section: &Section,
) -> Result<Vec<u8>, SaveFileError> {
    let length = usize::try_from(section.length)
        .map_err(|_| SaveFileError::damaged(name, section.offset, "it is too long"))?;
    let mut bytes = vec![0; length];
    read_at(file, name, &mut bytes, section.offset)?;
    if crc32fast::hash(&bytes) == section.crc {
        Ok(bytes)
    } else {
        Err(SaveFileError::damaged(name, section.offset, "its checksum does not match"))
    }
}

fn read_at(
    file: &File,
    name: &'static str,
    bytes: &mut [u8],
    offset: u64,
) -> Result<(), SaveFileError> {
    file.read_exact_at(bytes, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => {
            SaveFileError::damaged(name, offset, "the file was truncated while it was read")
        }
        _ => SaveFileError::Io { what: "read", source },
    })
}

fn check_padding(file: &File, header: &Header) -> Result<(), SaveFileError> {
    let offset = header.state.offset + header.state.length;
    let length = usize::try_from(header.memory_offset - offset).unwrap_or_default();
    let mut padding = vec![0; length];
    read_at(file, "padding", &mut padding, offset)?;
    match padding.iter().position(|b| *b != 0) {
        None => Ok(()),
        Some(at) => {
            let what = "it is not zero";
            Err(SaveFileError::damaged("padding", offset + at as u64, what))
        }
    }
}

/// One entry of the table.
struct Entry {
    /// Where the block lies in RAM.
    ram_offset: u64,
    crc: u32,
    bitmap: [u8; 32],
}

impl Entry {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let block = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
        let crc = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        let bitmap = bytes.get(8..40)?.try_into().ok()?;
        Some(Self { ram_offset: u64::from(block) * BLOCK, crc, bitmap })
    }

    fn has(&self, page: u64) -> bool {
        let byte = usize::try_from(page / 8).ok().and_then(|i| self.bitmap.get(i));
        byte.is_some_and(|b| b & (1 << (page % 8)) != 0)
    }

    fn pages(&self) -> u64 {
        self.bitmap.iter().map(|b| u64::from(b.count_ones())).sum()
    }

    /// The pages as runs `(first page, pages)` inside the block.
    fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut page = 0;
        std::iter::from_fn(move || {
            while page < PAGES && !self.has(page) {
                page += 1;
            }
            let first = page;
            while page < PAGES && self.has(page) {
                page += 1;
            }
            (page > first).then_some((first, page - first))
        })
    }
}

/// Reads all memory, calling `place(offset in RAM, bytes)` for each run of pages, once each, and
/// only with bytes whose checksum is right. Pages that are not mentioned are zero.
///
/// # Errors
/// [`SaveFileError`]; what was filled before must be thrown away.
pub fn load_memory(
    file: &File,
    header: &Header,
    place: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<(), SaveFileError> {
    let entries = read_table(file, header)?;
    let mut buffer = vec![0; usize::try_from(BLOCK).unwrap_or_default()];
    let mut offset = header.memory_offset;
    for entry in &entries {
        let length = entry.pages() * PAGE;
        let outside = || SaveFileError::damaged("memory", offset, "a block is too long");
        let slice = usize::try_from(length).ok().and_then(|l| buffer.get_mut(..l));
        let packed = slice.ok_or_else(outside)?;
        read_at(file, "memory", packed, offset)?;
        if crc32fast::hash(packed) != entry.crc {
            let what = format!(
                "the checksum of {length} bytes (guest memory from {:#x} on) does not match",
                entry.ram_offset
            );
            return Err(SaveFileError::damaged("memory", offset, what));
        }
        let mut rest = &*packed;
        for (first, pages) in entry.runs() {
            let length = usize::try_from(pages * PAGE).map_err(|_| outside())?;
            let (run, after) = rest.split_at_checked(length).ok_or_else(outside)?;
            place(entry.ram_offset + first * PAGE, run)
                .map_err(|source| SaveFileError::Memory { what: "filled", source })?;
            rest = after;
        }
        offset += length;
    }
    Ok(())
}

/// Reads the table and checks that it describes exactly the memory section.
fn read_table(file: &File, header: &Header) -> Result<Vec<Entry>, SaveFileError> {
    let bytes = read_section(file, "memory table", &header.table)?;
    let step = usize::try_from(ENTRY_BYTES).unwrap_or(1);
    let bad = |i: usize, what: &str| {
        SaveFileError::damaged("memory table", header.table.offset + i as u64 * ENTRY_BYTES, what)
    };
    let mut entries = Vec::with_capacity(bytes.len() / step);
    let mut free_from = 0;
    let mut pages = 0;
    for (i, chunk) in bytes.chunks_exact(step).enumerate() {
        let entry = Entry::decode(chunk).ok_or_else(|| bad(i, "an entry is cut off"))?;
        if entry.ram_offset < free_from {
            return Err(bad(i, "blocks are not in ascending order"));
        }
        let last = entry.runs().last().ok_or_else(|| bad(i, "a block has no pages"))?;
        if entry.ram_offset + (last.0 + last.1) * PAGE > header.ram_bytes {
            return Err(bad(i, "a block lies outside of the guest's memory"));
        }
        free_from = entry.ram_offset + BLOCK;
        pages += entry.pages();
        entries.push(entry);
    }
    if pages * PAGE != header.memory_length {
        return Err(bad(0, "it does not describe all of the memory in the file"));
    }
    Ok(entries)
}
