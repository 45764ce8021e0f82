//! The mapped part of a sidecar: live words and stamps, shared with the file. The only unsafe file
//! of the tracking of disks.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use migrate_engine::track::disk::Live;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes before the stamps: a page, in which the live words stand first.
pub const LIVE_BYTES: u64 = LIVE_LEN as u64;
const LIVE_LEN: usize = 4096;

/// A mapping that lives as long as this.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<libc::c_void>,
    bytes: usize,
    stamps: usize,
}

// SAFETY: the memory belongs to the mapping alone and is only ever accessed through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the live words at `offset`, a multiple of the page size, and the `stamps` stamps
    /// behind them. The file must not become shorter while the mapping lives, or whoever touches
    /// what is gone gets SIGBUS: it lies in a directory that only its owner may write to, and
    /// nothing shortens it there.
    ///
    /// # Errors
    /// The file is shorter, or the kernel refuses.
    pub fn new(file: &File, offset: u64, stamps: u64) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let bytes = stamps.checked_mul(4).and_then(|b| b.checked_add(LIVE_BYTES));
        let bytes = bytes.ok_or_else(invalid)?;
        let end = offset.checked_add(bytes).ok_or_else(invalid)?;
        if file.metadata()?.len() < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new).ok_or_else(invalid)?;
        let at = offset.try_into().map_err(|_| invalid())?;
        let stamps = usize::try_from(stamps).map_err(|_| invalid())?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, file, at)? };
        Ok(Self { base, bytes: length.get(), stamps })
    }

    /// The live words.
    pub fn live(&self) -> &Live {
        // SAFETY: the mapping begins with a page, is aligned to one and outlives the reference;
        // `Live` is two atomic words in C layout, for which any bytes are valid.
        unsafe { self.base.cast::<Live>().as_ref() }
    }
}

impl AsRef<[AtomicU32]> for Mapping {
    fn as_ref(&self) -> &[AtomicU32] {
        // SAFETY: `new` mapped `LIVE_BYTES` and 4 bytes for each stamp; the address is aligned to
        // a page, the reference does not outlive the mapping, and any bytes are valid atomics.
        unsafe {
            let first = self.base.cast::<u8>().add(LIVE_LEN).cast::<AtomicU32>();
            std::slice::from_raw_parts(first.as_ptr(), self.stamps)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and nobody has a reference any more.
        let unmapped = unsafe { munmap(self.base, self.bytes) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "a map of changes stays mapped");
        }
    }
}
