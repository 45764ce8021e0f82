//! A raw image, or a block device: byte `n` of the disk is byte `n` of the file.
//!
//! With direct I/O the kernel wants offsets, lengths and memory aligned. Offsets and lengths are
//! the guest's business (it was told the block size): others are refused, since a
//! read-modify-write would race with the neighbours' writes. Memory is not (a driver may place
//! buffers as it likes), so such requests go through an aligned buffer of bounded size.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::backend::{DiskBackend, GuestSlice};
use super::open::{DiskOpenError, disk_size};
use super::sys;

/// Size of the buffer for unaligned memory and of zeroes, a multiple of every block size.
const BOUNCE: usize = 256 << 10;
/// Alignment of that buffer: enough for every device.
const BOUNCE_ALIGN: usize = 4096;
/// Smallest unit of a disk.
const SECTOR: u32 = 512;
/// What direct I/O needs at most.
const MAX_BLOCK: u32 = 4096;

/// What direct I/O asks of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignment {
    /// Of buffers in memory.
    memory: usize,
    /// Of offsets and of lengths, also of each piece.
    block: u32,
}

/// A file or block device that is the disk.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
    block_device: bool,
    /// With direct I/O only.
    alignment: Option<Alignment>,
}

impl RawDisk {
    /// Takes a file that was opened with or without `O_DIRECT`, as `direct` says.
    pub fn new(file: File, direct: bool) -> Result<Self, DiskOpenError> {
        let size = disk_size(&file)?;
        let kind = file.metadata().map_err(DiskOpenError::Inspect)?.file_type();
        let alignment = if direct { Some(Alignment::of(&file)?) } else { None };
        if let Some(Alignment { block, .. }) = alignment
            && !size.is_multiple_of(block.into())
        {
            return Err(DiskOpenError::DirectSize { size, block });
        }
        Ok(Self { file, size, block_device: kind.is_block_device(), alignment })
    }

    /// Whether a request must be refused (error), can go straight (`true`) or must go through a
    /// buffer (`false`).
    fn straight(&self, bufs: &[GuestSlice<'_>], offset: u64) -> io::Result<bool> {
        let Some(Alignment { memory, block }) = self.alignment else { return Ok(true) };
        let total: usize = bufs.iter().map(GuestSlice::len).sum();
        let block_len = block as usize;
        if !offset.is_multiple_of(block.into()) || !total.is_multiple_of(block_len) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("request at byte {offset}, {total} bytes, is not aligned to {block}"),
            ));
        }
        Ok(bufs.iter().all(|b| {
            (b.ptr_guard().as_ptr() as usize).is_multiple_of(memory)
                && b.len().is_multiple_of(block_len)
        }))
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = Bounce::new();
        let mut done = 0;
        while done < len {
            let n = usize::try_from(len - done).map_or(BOUNCE, |n| n.min(BOUNCE));
            self.file.write_all_at(&zeroes.bytes()[..n], offset + done)?;
            done += n as u64;
        }
        Ok(())
    }

    fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        let (Ok(at), Ok(n)) = (offset.try_into(), len.try_into()) else {
            return Err(Errno::EFBIG);
        };
        fallocate(&self.file, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, at, n)
    }
}

impl DiskBackend for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.alignment.map_or(SECTOR, |a| a.block)
    }

    fn read_at(&self, bufs: &[GuestSlice<'_>], offset: u64) -> io::Result<()> {
        if self.straight(bufs, offset)? {
            return sys::read_guest(&self.file, bufs, offset);
        }
        let mut bounce = Bounce::new();
        for_each_chunk(bufs, |pieces, len, at| {
            let bytes = &mut bounce.bytes_mut()[..len];
            self.file.read_exact_at(bytes, offset + at)?;
            let mut from = 0;
            for piece in pieces {
                piece.copy_from(&bytes[from..from + piece.len()]);
                from += piece.len();
            }
            Ok(())
        })
    }

    fn write_at(&self, bufs: &[GuestSlice<'_>], offset: u64) -> io::Result<()> {
        if self.straight(bufs, offset)? {
            return sys::write_guest(&self.file, bufs, offset);
        }
        let mut bounce = Bounce::new();
        for_each_chunk(bufs, |pieces, len, at| {
            let bytes = &mut bounce.bytes_mut()[..len];
            let mut to = 0;
            for piece in pieces {
                piece.copy_to(&mut bytes[to..to + piece.len()]);
                to += piece.len();
            }
            self.file.write_all_at(bytes, offset + at)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let result = if self.block_device {
            sys::discard_blocks(&self.file, offset, len)
        } else {
            self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len).map_err(Into::into)
        };
        match result {
            // A hint: a disk that cannot is still a disk.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let zero = (FallocateFlags::FALLOC_FL_ZERO_RANGE, true);
        let punch = (FallocateFlags::FALLOC_FL_PUNCH_HOLE, may_unmap);
        for (mode, allowed) in if may_unmap { [punch, zero] } else { [zero, punch] } {
            if !allowed {
                continue;
            }
            match self.allocate(mode, offset, len) {
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                result => return result.map_err(Into::into),
            }
        }
        self.write_zero_bytes(offset, len)
    }
}

impl Alignment {
    /// Asks the kernel; where it does not know, tries.
    fn of(file: &File) -> Result<Self, DiskOpenError> {
        let (memory, block) = match sys::direct_alignment(file) {
            Some(known) => known,
            None => (MAX_BLOCK, Self::probe_block(file)?),
        };
        let block = block.max(SECTOR);
        let memory = memory as usize;
        if !block.is_power_of_two()
            || block > MAX_BLOCK
            || !memory.is_power_of_two()
            || memory > BOUNCE_ALIGN
        {
            return Err(DiskOpenError::Alignment { memory, block });
        }
        Ok(Self { memory, block })
    }

    /// 512 if a read of that length is accepted, else 4096.
    fn probe_block(file: &File) -> Result<u32, DiskOpenError> {
        let mut buffer = Bounce::new();
        match file.read_at(&mut buffer.bytes_mut()[..SECTOR as usize], 0) {
            Ok(_) => Ok(SECTOR),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(MAX_BLOCK),
            Err(e) => Err(DiskOpenError::Inspect(e)),
        }
    }
}

/// An aligned buffer of [`BOUNCE`] bytes.
struct Bounce {
    store: Vec<u8>,
    start: usize,
}

impl Bounce {
    fn new() -> Self {
        let store = vec![0; BOUNCE + BOUNCE_ALIGN];
        let start = (store.as_ptr() as usize).wrapping_neg() % BOUNCE_ALIGN;
        Self { store, start }
    }

    fn bytes(&self) -> &[u8] {
        &self.store[self.start..self.start + BOUNCE]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + BOUNCE]
    }
}

/// Cuts `bufs` into chunks of [`BOUNCE`] bytes (the last may be shorter) and hands each over as
/// its pieces, its length, and its distance from the start.
fn for_each_chunk(
    bufs: &[GuestSlice<'_>],
    mut handle: impl FnMut(&[GuestSlice<'_>], usize, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut pieces = Vec::new();
    let (mut len, mut at) = (0, 0);
    for buf in bufs {
        let mut rest = buf.clone();
        while !rest.is_empty() {
            let n = rest.len().min(BOUNCE - len);
            pieces.push(rest.subslice(0, n).map_err(io::Error::other)?);
            rest = rest.offset(n).map_err(io::Error::other)?;
            len += n;
            if len == BOUNCE {
                handle(&pieces, len, at)?;
                at += len as u64;
                len = 0;
                pieces.clear();
            }
        }
    }
    if len == 0 { Ok(()) } else { handle(&pieces, len, at) }
}
