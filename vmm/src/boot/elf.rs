//! PVH ELF images (Xen's x86/HVM direct boot ABI): checked here, copied by `linux-loader`.

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Image, Kernel, read_at};
use crate::memory::GuestRam;
use crate::memory::layout::{HIGH_RAM_START, HOLE_START};

const EHDR: u64 = 64;
const PHDR: u16 = 56;
/// More program headers than any kernel has; a bound on what is read.
const MAX_PHDRS: u16 = 256;
/// More bytes of notes than any kernel has; a bound on what is read.
const MAX_NOTES: u64 = 1 << 20;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const MACHINE_X86_64: u16 = 62;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// A checked image: every segment is complete in the file and fits in memory.
#[derive(Debug)]
pub(super) struct Plan {
    entry: u64,
    segments: Vec<Segment>,
}

/// A part of the image that is loaded.
#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u64,
    file_end: u64,
    end: u64,
}

/// Little-endian fields of a byte slice. Reads beyond the end are zero; callers size the slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        if let Some(b) = at.checked_add(N).and_then(|end| self.0.get(at..end)) {
            out.copy_from_slice(b);
        }
        out
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

/// Whether an image that starts with `head` claims to be an ELF.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// Reads and checks the headers of an image of `len` bytes.
pub(super) fn plan<F: Image>(image: &mut F, len: u64, low_end: u64) -> Result<Plan, BootError> {
    complete("ELF header", 0, EHDR, len)?;
    let head = read_at(image, 0, EHDR)?;
    let head = Fields(&head);
    machine(&head)?;
    let (offset, count) = (head.u64(32), head.u16(56));
    if head.u16(54) != PHDR || !(1..=MAX_PHDRS).contains(&count) || offset < EHDR {
        return Err(damaged(format!("{count} program headers at {offset:#x}")));
    }
    let size = u64::from(count) * u64::from(PHDR);
    complete("program headers", offset, size, len)?;
    // Section headers come last in the file: without them it was cut, even if it could be loaded.
    let sections = u64::from(head.u16(58)) * u64::from(head.u16(60));
    if sections > 0 {
        complete("section headers", head.u64(40), sections, len)?;
    }
    let headers = read_at(image, offset, size)?;
    let mut segments = Vec::new();
    let mut entry = None;
    for header in headers.chunks_exact(PHDR.into()).map(Fields) {
        match header.u32(0) {
            PT_LOAD => segments.push(segment(&header, len, low_end)?),
            PT_NOTE if entry.is_none() => entry = note_entry(image, &header, len)?,
            _ => {}
        }
    }
    segments.retain(|s| s.end > s.start);
    let entry = entry.ok_or(BootError::NoPvhNote)?;
    if !segments.iter().any(|s| (s.start..s.file_end).contains(&entry)) {
        return Err(damaged(format!("the PVH entry point {entry:#x} lies in no loaded segment")));
    }
    Ok(Plan { entry, segments })
}

/// Copies the segments, and clears what an image leaves to be zero.
pub(super) fn load<F: Image>(
    ram: &GuestRam,
    image: &mut F,
    plan: &Plan,
) -> Result<Kernel, BootError> {
    Elf::load(ram.mem(), None, image, None)
        .map_err(|e| BootError::ReadKernel(std::io::Error::other(e)))?;
    for segment in &plan.segments {
        clear(ram, segment.file_end, segment.end)?;
    }
    let end = plan.segments.iter().map(|s| s.end).max().unwrap_or(HIGH_RAM_START);
    Ok(Kernel { entry: plan.entry, end })
}

fn machine(head: &Fields) -> Result<(), BootError> {
    match (head.bytes(4), head.u16(18)) {
        ([2, 1], MACHINE_X86_64) => Ok(()),
        ([1, _], _) => Err(BootError::WrongMachine("32 bits")),
        ([2, 1], _) => Err(BootError::WrongMachine("not x86")),
        ([2, 2], _) => Err(BootError::WrongMachine("big-endian")),
        _ => Err(damaged("its ELF class or byte order is unknown".into())),
    }
}

fn damaged(what: String) -> BootError {
    BootError::Damaged { what }
}

/// Checks that `size` bytes at `offset` lie within an image of `len` bytes.
fn complete(what: &'static str, offset: u64, size: u64, len: u64) -> Result<(), BootError> {
    let need = offset
        .checked_add(size)
        .ok_or_else(|| damaged(format!("its {what} lie at {offset:#x}, length {size:#x}")))?;
    if need > len {
        return Err(BootError::Truncated { what, need, have: len });
    }
    Ok(())
}

/// Checks a `PT_LOAD` header.
fn segment(header: &Fields, len: u64, low_end: u64) -> Result<Segment, BootError> {
    let (offset, start) = (header.u64(8), header.u64(24));
    let (in_file, in_memory) = (header.u64(32), header.u64(40));
    if in_memory == 0 && in_file == 0 {
        return Ok(Segment { start, file_end: start, end: start });
    }
    let (Some(end), true) = (start.checked_add(in_memory), in_file <= in_memory) else {
        return Err(damaged(format!(
            "a segment at {start:#x} has {in_file:#x} bytes in the file and {in_memory:#x} in memory"
        )));
    };
    complete("segments", offset, in_file, len)?;
    if start < HIGH_RAM_START {
        let area = "the boot data and tables below 1 MiB";
        return Err(BootError::Misplaced { start, end, area });
    }
    if end > HOLE_START {
        return Err(BootError::Misplaced { start, end, area: "the hole for devices below 4 GiB" });
    }
    if end > low_end {
        return Err(BootError::KernelTooLarge { end, ram_end: low_end });
    }
    // No overflow: in_file <= in_memory.
    Ok(Segment { start, file_end: start + in_file, end })
}

/// The PVH entry point, if the notes of a `PT_NOTE` header name one.
fn note_entry<F: Image>(
    image: &mut F,
    header: &Fields,
    len: u64,
) -> Result<Option<u64>, BootError> {
    let (offset, size) = (header.u64(8), header.u64(32));
    complete("notes", offset, size, len)?;
    if size > MAX_NOTES {
        return Err(damaged(format!("its notes are {size} bytes long")));
    }
    let notes = read_at(image, offset, size)?;
    let align = if header.u64(48) == 8 { 8 } else { 4 };
    Ok(find_entry(&notes, align))
}

/// Walks notes whose descriptors are padded to `align`.
fn find_entry(mut notes: &[u8], align: usize) -> Option<u64> {
    const HEADER: usize = 12;
    while notes.len() >= HEADER {
        let fields = Fields(notes);
        let name_len = usize::try_from(fields.u32(0)).ok()?;
        let desc_len = usize::try_from(fields.u32(4)).ok()?;
        let name = notes.get(HEADER..HEADER.checked_add(name_len)?)?;
        let desc_at = HEADER.checked_add(name_len)?.checked_next_multiple_of(align)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if fields.u32(8) == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            // The entry is 32 bits wide, in a descriptor of 4 or 8 bytes.
            let entry: [u8; 4] = desc.get(..4)?.try_into().ok()?;
            return Some(u32::from_le_bytes(entry).into());
        }
        let next = desc_at.checked_add(desc_len)?.checked_next_multiple_of(align)?;
        notes = notes.get(next..)?;
    }
    None
}

/// Writes zeroes: after a reset, memory holds what the last kernel left there.
fn clear(ram: &GuestRam, mut from: u64, to: u64) -> Result<(), BootError> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    while from < to {
        let left = usize::try_from(to - from).unwrap_or(usize::MAX);
        let chunk = &ZEROES[..left.min(ZEROES.len())];
        ram.mem().write_slice(chunk, GuestAddress(from)).map_err(|e| BootError::Memory {
            gpa: from,
            bytes: chunk.len(),
            reason: e.to_string(),
        })?;
        from += chunk.len() as u64;
    }
    Ok(())
}
