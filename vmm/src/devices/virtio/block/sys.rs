//! System calls that take guest memory or have no safe wrapper. The only unsafe file of the
//! block device.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;

use super::backend::GuestSlice;

/// Most buffers in one call (`IOV_MAX`).
const MAX_IOVECS: usize = 1024;
/// Most bytes in one call: a bound on how long one call can take. A multiple of every block size.
const MAX_BYTES: usize = 4 << 20;

/// Reads exactly `bufs` from `offset`, straight into guest memory, which is marked as written.
pub fn read_guest(file: &File, bufs: &[GuestSlice<'_>], offset: u64) -> io::Result<()> {
    let result = transfer(bufs, offset, |iovecs, count, at| {
        // SAFETY: see `transfer`; the file is open for the call's length.
        unsafe { libc::preadv(file.as_raw_fd(), iovecs, count, at) }
    });
    // Also after a failure: a part may have been read.
    for buf in bufs {
        buf.bitmap().mark_dirty(0, buf.len());
    }
    result
}

/// Writes exactly `bufs` at `offset`, straight from guest memory.
pub fn write_guest(file: &File, bufs: &[GuestSlice<'_>], offset: u64) -> io::Result<()> {
    transfer(bufs, offset, |iovecs, count, at| {
        // SAFETY: see `transfer`; the file is open for the call's length.
        unsafe { libc::pwritev(file.as_raw_fd(), iovecs, count, at) }
    })
}

/// Calls `io` until all bytes of `bufs` are moved. The vector it gets is valid for the call: it
/// points into guest memory that is mapped for as long as the slices' lifetime, never beyond
/// their lengths, and no Rust reference to that memory exists; the guest may change it meanwhile,
/// which harms nobody but the guest.
fn transfer(
    bufs: &[GuestSlice<'_>],
    mut offset: u64,
    io: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<()> {
    let mut rest = bufs.iter().filter(|b| !b.is_empty());
    let mut current = rest.next().cloned();
    while current.is_some() {
        let batch = next_batch(&mut current, &mut rest)?;
        let guards: Vec<_> = batch.iter().map(|b| (b.ptr_guard_mut(), b.len())).collect();
        let mut iovecs: Vec<_> = guards
            .iter()
            .map(|(p, len)| libc::iovec { iov_base: p.as_ptr().cast(), iov_len: *len })
            .collect();
        offset = transfer_batch(&mut iovecs, offset, &io)?;
    }
    Ok(())
}

/// The next pieces of `current` and `rest`, bounded in number and in bytes. What is left of a
/// piece that was cut becomes `current`.
fn next_batch<'m, 'b>(
    current: &mut Option<GuestSlice<'m>>,
    rest: &mut impl Iterator<Item = &'b GuestSlice<'m>>,
) -> io::Result<Vec<GuestSlice<'m>>>
where
    'm: 'b,
{
    let mut room = MAX_BYTES;
    let mut batch = Vec::new();
    while room > 0
        && batch.len() < MAX_IOVECS
        && let Some(buf) = current.take()
    {
        let len = buf.len().min(room);
        room -= len;
        if len < buf.len() {
            *current = Some(buf.offset(len).map_err(io::Error::other)?);
            batch.push(buf.subslice(0, len).map_err(io::Error::other)?);
        } else {
            *current = rest.next().cloned();
            batch.push(buf);
        }
    }
    Ok(batch)
}

/// Moves one batch, going on after short transfers; returns the offset behind it.
fn transfer_batch(
    mut iovecs: &mut [libc::iovec],
    mut offset: u64,
    io: &impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<u64> {
    let beyond = |_| io::Error::from(io::ErrorKind::InvalidInput);
    while !iovecs.is_empty() {
        let count = libc::c_int::try_from(iovecs.len()).map_err(beyond)?;
        let at = libc::off_t::try_from(offset).map_err(beyond)?;
        let moved = match usize::try_from(io(iovecs.as_ptr(), count, at)) {
            // The disk is shorter than it was when it was opened.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => continue,
                e => return Err(e),
            },
        };
        offset += moved as u64;
        let mut rest = moved;
        let done = iovecs.iter().take_while(|v| {
            let whole = v.iov_len <= rest;
            rest -= if whole { v.iov_len } else { 0 };
            whole
        });
        let done = done.count();
        iovecs = &mut iovecs[done..];
        if let Some(first) = iovecs.first_mut() {
            // SAFETY: `rest` is less than the piece's length, so the pointer stays inside it.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(rest) }.cast();
            first.iov_len -= rest;
        }
    }
    Ok(offset)
}

/// Alignment that direct I/O on `file` needs: of memory and of offsets, in bytes. `None` if the
/// kernel or file system does not say.
pub fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    // From linux/stat.h; the C library of some hosts does not have these fields yet.
    const STATX_DIOALIGN: u32 = 0x2000;
    const MEM_ALIGN_WORD: usize = 0x98 / 4;
    const OFFSET_ALIGN_WORD: usize = 0x9C / 4;
    // `struct statx` has 256 bytes; an array of words has its alignment for what is read here.
    let mut words = [0u64; 32];
    // SAFETY: the buffer is as large and as aligned as `struct statx`, the path is an empty C
    // string, and the kernel writes nothing but the buffer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            words.as_mut_ptr(),
        )
    };
    let word = |i: usize| {
        let bytes = words[i / 2].to_ne_bytes();
        let half = if i.is_multiple_of(2) { &bytes[..4] } else { &bytes[4..] };
        half.try_into().map_or(0, u32::from_ne_bytes)
    };
    let (memory, offset) = (word(MEM_ALIGN_WORD), word(OFFSET_ALIGN_WORD));
    (result == 0 && word(0) & STATX_DIOALIGN != 0 && memory != 0 && offset != 0)
        .then_some((memory, offset))
}

/// Discards a range of a block device (`BLKDISCARD`).
pub fn discard_blocks(device: &File, offset: u64, len: u64) -> io::Result<()> {
    /// `_IO(0x12, 119)`
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let range = [offset, len];
    // SAFETY: the ioctl reads two 64-bit numbers from the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
