//! What a disk image must be able to do. A raw file is one ([`super::raw::RawDisk`]); other
//! formats can follow without the device noticing.

use std::io;

use vm_memory::VolatileSlice;

use crate::memory::own_writes::OwnWritesSlice;

/// A piece of guest memory. Writes into it must be marked in its bitmap.
pub type GuestSlice<'a> = VolatileSlice<'a, OwnWritesSlice>;

/// A disk. Offsets and lengths are in bytes and, as the device guarantees, inside the disk.
/// Called from several threads at once; overlapping requests have no order among themselves.
pub trait DiskBackend: Send + Sync {
    /// Bytes of the disk: a multiple of 512 that never changes.
    fn size(&self) -> u64;
    /// Smallest unit of reads and writes in bytes: a power of two, 512 to 4096.
    /// A request with another offset or length fails with `InvalidInput`.
    fn block_size(&self) -> u32;
    /// Fills all of `bufs`, in order, from `offset`.
    fn read_at(&self, bufs: &[GuestSlice<'_>], offset: u64) -> io::Result<()>;
    /// Writes all of `bufs`, in order, at `offset`.
    fn write_at(&self, bufs: &[GuestSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes every write that has completed durable.
    fn flush(&self) -> io::Result<()>;
    /// The range may lose its content. A disk that cannot give space back does nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The range reads as zero afterwards; its space may be given back if `may_unmap`.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;
}

/// Stands around every change of the disk. Called from several threads.
pub trait WriteObserver: Send + Sync {
    /// The `len` bytes from `offset` are to change, `len` at least 1: calls `change` once and
    /// returns what it returned. Before the call the disk has heard nothing of the change, after
    /// it the change has been made or has failed.
    fn around_write(
        &self,
        offset: u64,
        len: u64,
        change: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()>;
}
