//! From a descriptor chain to a checked request (virtio 1.2, 5.2.6). Reads guest memory, touches
//! no disk. Buffers may be split at any byte: the header is the first 16 bytes that the device
//! may read, the status the last byte that it may write, wherever descriptors begin and end.

use virtio_bindings::virtio_blk as blk;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::backend::GuestSlice;
use crate::memory::Mem;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Status: done (`VIRTIO_BLK_S_*`).
pub const OK: u8 = 0;
/// Status: it failed or must not be done.
pub const IOERR: u8 = 1;
/// Status: the device does not know it.
pub const UNSUPP: u8 = 2;
/// Bytes of the identity string.
pub const ID_BYTES: usize = blk::VIRTIO_BLK_ID_BYTES as usize;

/// Most descriptors in one chain: those of the largest queue, which the specification allows
/// (2.7.5.3.1), also for an indirect table.
pub const MAX_DESCRIPTORS: usize = 256;
/// Most bytes in one request: what the advertised segments can hold, rounded up.
pub const MAX_DATA: u64 = 128 << 20;
/// Most ranges in one discard or write-zeroes.
pub const MAX_RANGES: u32 = 16;
/// Most sectors in one range of a discard: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most sectors in one range of a write-zeroes: 16 MiB, since it may have to be written out.
pub const MAX_ZERO_SECTORS: u32 = 1 << 15;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// A stretch of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    gpa: u64,
    len: u32,
}

/// A range of the disk to be discarded or zeroed, in bytes, inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The space may be given back.
    pub may_unmap: bool,
}

/// What is to be done. Offsets are in bytes; every range is inside the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read into `data`.
    Read { offset: u64 },
    /// Write from `data`.
    Write { offset: u64 },
    /// Make completed writes durable.
    Flush,
    /// Tell the identity string.
    GetId,
    /// Forget ranges.
    Discard(Vec<Range>),
    /// Zero ranges.
    WriteZeroes(Vec<Range>),
    /// Nothing: report this status.
    Refuse(u8),
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub action: Action,
    /// Data: readable for a write, writable for a read or an identity.
    pub data: Vec<Segment>,
    /// Bytes of `data`.
    pub len: u64,
    /// Bytes that the device may write before the status.
    pub writable: u64,
    /// Where the status byte goes; the driver may have forgotten it.
    pub status: Option<u64>,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the disk.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Discard and write-zeroes were offered.
    pub discard: bool,
}

/// Parses a chain.
pub fn parse(mem: &Mem, chain: DescriptorChain<&Mem>, limits: Limits) -> Request {
    let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
    let mut too_long = false;
    for (i, desc) in chain.enumerate() {
        if i == MAX_DESCRIPTORS {
            too_long = true;
            break;
        }
        let side = if desc.is_write_only() { &mut writable } else { &mut readable };
        side.push(desc.addr().0, desc.len());
    }
    let status = writable.pop_last_byte();
    let refuse = |code| Request {
        action: Action::Refuse(code),
        data: Vec::new(),
        len: 0,
        writable: writable.len,
        status,
    };
    let header = readable.take_front::<HEADER_BYTES>(mem);
    let Some(header) = header.filter(|_| status.is_some() && !too_long) else {
        return refuse(IOERR);
    };
    let [t0, t1, t2, t3, _, _, _, _, s @ ..] = header;
    let sector = u64::from_le_bytes(s);
    let action = match u32::from_le_bytes([t0, t1, t2, t3]) {
        blk::VIRTIO_BLK_T_IN => {
            limits.transfer(sector, writable.len).map(|offset| Action::Read { offset })
        }
        blk::VIRTIO_BLK_T_OUT if limits.read_only => Err(IOERR),
        blk::VIRTIO_BLK_T_OUT => {
            limits.transfer(sector, readable.len).map(|offset| Action::Write { offset })
        }
        blk::VIRTIO_BLK_T_FLUSH => Ok(Action::Flush),
        blk::VIRTIO_BLK_T_GET_ID => Ok(Action::GetId),
        kind @ (blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES) => {
            limits.ranges(mem, &mut readable, kind == blk::VIRTIO_BLK_T_WRITE_ZEROES)
        }
        _ => Err(UNSUPP),
    };
    match action {
        Err(code) => refuse(code),
        Ok(action) => {
            let writable_len = writable.len;
            let side = match action {
                Action::Write { .. } => readable,
                Action::Read { .. } | Action::GetId => writable,
                _ => Buffers::default(),
            };
            let (data, len) = (side.segments, side.len);
            Request { action, data, len, writable: writable_len, status }
        }
    }
}

impl Limits {
    /// Byte offset of a transfer of `len` bytes at `sector`, if it is one.
    fn transfer(self, sector: u64, len: u64) -> Result<u64, u8> {
        if !len.is_multiple_of(SECTOR) || len > MAX_DATA {
            return Err(IOERR);
        }
        self.inside(sector, len)
    }

    fn inside(self, sector: u64, len: u64) -> Result<u64, u8> {
        let offset = sector.checked_mul(SECTOR).ok_or(IOERR)?;
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(offset),
            _ => Err(IOERR),
        }
    }

    /// The ranges of a discard or write-zeroes (5.2.6.2).
    fn ranges(self, mem: &Mem, readable: &mut Buffers, zero: bool) -> Result<Action, u8> {
        if !self.discard {
            return Err(UNSUPP);
        }
        if self.read_only
            || readable.len == 0
            || !readable.len.is_multiple_of(RANGE_BYTES as u64)
            || readable.len > u64::from(MAX_RANGES) * RANGE_BYTES as u64
        {
            return Err(IOERR);
        }
        let max = if zero { MAX_ZERO_SECTORS } else { MAX_DISCARD_SECTORS };
        let allowed = if zero { blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
        let mut ranges = Vec::new();
        while readable.len > 0 {
            let raw = readable.take_front::<RANGE_BYTES>(mem).ok_or(IOERR)?;
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f @ ..] = raw;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes(f);
            if flags & !allowed != 0 {
                return Err(UNSUPP);
            }
            if sectors > max {
                return Err(IOERR);
            }
            let len = u64::from(sectors) * SECTOR;
            ranges.push(Range { offset: self.inside(sector, len)?, len, may_unmap: flags != 0 });
        }
        Ok(if zero { Action::WriteZeroes(ranges) } else { Action::Discard(ranges) })
    }
}

impl Request {
    /// The data as memory of this process; an error if it is not all guest memory.
    pub fn slices<'a>(&self, mem: &'a Mem) -> std::io::Result<Vec<GuestSlice<'a>>> {
        let access = match self.action {
            Action::Write { .. } => Permissions::Read,
            _ => Permissions::Write,
        };
        let mut out = Vec::with_capacity(self.data.len());
        for s in &self.data {
            let pieces = mem
                .get_slices(GuestAddress(s.gpa), s.len as usize, access)
                .map_err(std::io::Error::other)?;
            for piece in pieces {
                out.push(piece.map_err(std::io::Error::other)?);
            }
        }
        Ok(out)
    }
}

/// Buffers of one direction, in order.
#[derive(Debug, Default)]
struct Buffers {
    segments: Vec<Segment>,
    len: u64,
}

impl Buffers {
    fn push(&mut self, gpa: u64, len: u32) {
        if len > 0 {
            self.segments.push(Segment { gpa, len });
            self.len += u64::from(len);
        }
    }

    /// Takes the last byte off and tells where it is.
    fn pop_last_byte(&mut self) -> Option<u64> {
        let last = self.segments.last_mut()?;
        last.len -= 1;
        self.len -= 1;
        let at = last.gpa.checked_add(u64::from(last.len))?;
        if last.len == 0 {
            self.segments.pop();
        }
        Some(at)
    }

    /// Reads `N` bytes and takes them off the front; `None` if there are fewer, or if they are
    /// not in guest memory.
    fn take_front<const N: usize>(&mut self, mem: &Mem) -> Option<[u8; N]> {
        if self.len < N as u64 {
            return None;
        }
        let mut out = [0; N];
        let (mut got, mut used_up) = (0, 0);
        for s in &mut self.segments {
            let n = u32::try_from(N - got).ok()?.min(s.len);
            let end = got + n as usize;
            mem.read_slice(&mut out[got..end], GuestAddress(s.gpa)).ok()?;
            got = end;
            s.gpa = s.gpa.checked_add(n.into())?;
            s.len -= n;
            if s.len > 0 {
                break;
            }
            used_up += 1;
            if got == N {
                break;
            }
        }
        self.segments.drain(..used_up);
        self.len -= N as u64;
        Some(out)
    }
}
