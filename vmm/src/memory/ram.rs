//! Guest RAM: one memfd, mapped in one or two ranges, reached through one tracked accessor.
//!
//! All host-side writes go through [`GuestRam::mem`], whose regions carry an [`OwnWrites`]
//! bitmap, so the VMM's own writes are always part of the dirty set. Nothing here touches a page
//! that was not asked for: RAM that the guest never used stays a hole of the file.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::layout::{self, RamRange};
use super::own_writes::OwnWrites;
use crate::config::MemoryConfig;

/// The memory type that queues, loaders and devices work on.
pub type Mem = GuestMemoryMmap<OwnWrites>;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The kernel refused the memory file.
    #[error("cannot create the guest's memory file of {bytes} bytes: {source}{}", hint(*huge))]
    Create {
        /// Asked for.
        bytes: u64,
        /// With huge pages.
        huge: bool,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused the mapping.
    #[error("cannot map {bytes} bytes of guest memory at {gpa:#x}: {reason}{}", hint(*huge))]
    Map {
        /// Guest-physical start.
        gpa: u64,
        /// Length.
        bytes: u64,
        /// With huge pages.
        huge: bool,
        /// What went wrong.
        reason: String,
    },
}

fn hint(huge: bool) -> &'static str {
    if huge {
        "; free huge pages are needed: raise /proc/sys/vm/nr_hugepages or run without huge pages"
    } else {
        "; give the guest less memory or free some on the host"
    }
}

/// Guest RAM. Cloning shares it.
#[derive(Clone, Debug)]
pub struct GuestRam {
    mem: Mem,
    file: Arc<File>,
    ranges: Arc<[RamRange]>,
    maps: Arc<[OwnWrites]>,
}

impl GuestRam {
    /// Makes RAM of the configured size; every page reads as zero and none is allocated.
    pub fn new(config: &MemoryConfig) -> Result<Self, RamError> {
        let (bytes, huge) = (config.bytes(), config.huge_pages());
        let create = |source: io::Error| RamError::Create { bytes, huge, source };
        let flags = MFdFlags::MFD_CLOEXEC
            | if huge { MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB } else { MFdFlags::empty() };
        let fd = memfd_create(c"guest-ram", flags).map_err(|e| create(e.into()))?;
        let file = File::from(fd);
        file.set_len(bytes).map_err(create)?;
        Self::from_file(file, bytes, huge)
    }

    /// Maps an existing RAM file of exactly `bytes`.
    fn from_file(file: File, bytes: u64, huge: bool) -> Result<Self, RamError> {
        // Huge pages are reserved here and now: running out of them later is a SIGBUS.
        let flags = libc::MAP_SHARED | if huge { 0 } else { libc::MAP_NORESERVE };
        let file = Arc::new(file);
        let ranges: Arc<[RamRange]> = layout::ram_ranges(bytes).into();
        let mut regions = Vec::new();
        let mut maps = Vec::new();
        for r in ranges.iter() {
            let map_err = |reason: String| RamError::Map { gpa: r.gpa, bytes: r.len, huge, reason };
            let len = usize::try_from(r.len).map_err(|e| map_err(e.to_string()))?;
            let bitmap = <OwnWrites as vm_memory::bitmap::NewBitmap>::with_len(len);
            let region = MmapRegionBuilder::new_with_bitmap(len, bitmap.clone())
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(flags)
                .with_file_offset(FileOffset::from_arc(file.clone(), r.offset))
                .with_hugetlbfs(huge)
                .build()
                .map_err(|e| map_err(e.to_string()))?;
            let region = GuestRegionMmap::new(region, GuestAddress(r.gpa))
                .ok_or_else(|| map_err("the range leaves the address space".into()))?;
            regions.push(region);
            maps.push(bitmap);
        }
        let mem = Mem::from_regions(regions).map_err(|e| RamError::Map {
            gpa: 0,
            bytes,
            huge,
            reason: e.to_string(),
        })?;
        Ok(Self { mem, file, ranges, maps: maps.into() })
    }

    /// The accessor for queues, loaders and devices. Writes through it are tracked.
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    /// The file behind the RAM, laid out as [`GuestRam::ranges`] says.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the RAM lies, lowest first.
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// The VMM's own writes, one bitmap for each range.
    pub fn own_writes(&self) -> &[OwnWrites] {
        &self.maps
    }

    /// Writes `bytes` at `offset` of the RAM file, over the end of a range if need be.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (gpa, room) = self.locate(offset)?;
        let (here, rest) = bytes.split_at(bytes.len().min(room));
        self.mem.write_slice(here, GuestAddress(gpa)).map_err(io::Error::other)?;
        if rest.is_empty() { Ok(()) } else { self.write_at(offset + here.len() as u64, rest) }
    }

    /// Reads `bytes` from `offset` of the RAM file, over the end of a range if need be. What a vCPU
    /// or a device writes meanwhile comes out as any mixture of old and new.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let (gpa, room) = self.locate(offset)?;
        let here = bytes.len().min(room);
        let (now, rest) = bytes.split_at_mut(here);
        self.mem.read_slice(now, GuestAddress(gpa)).map_err(io::Error::other)?;
        if rest.is_empty() { Ok(()) } else { self.read_at(offset + here as u64, rest) }
    }

    /// Guest-physical address of `offset` of the RAM file, and bytes from there to the end of
    /// the range.
    fn locate(&self, offset: u64) -> io::Result<(u64, usize)> {
        let range = self.ranges.iter().find(|r| (r.offset..r.offset + r.len).contains(&offset));
        let range = range.ok_or_else(|| {
            io::Error::other(format!("offset {offset:#x} is outside the guest's memory"))
        })?;
        let room = range.offset + range.len - offset;
        Ok((range.gpa + (offset - range.offset), usize::try_from(room).unwrap_or(usize::MAX)))
    }

    /// Bytes of RAM.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::GuestMemoryBackend;

    use super::*;
    use crate::memory::layout::{HOLE_END, HOLE_START};

    fn ram(bytes: u64) -> GuestRam {
        GuestRam::new(&MemoryConfig::new(bytes, false).unwrap()).unwrap()
    }

    #[test]
    fn memory_that_nobody_touched_is_not_allocated() {
        let ram = ram(8 << 30);
        assert_eq!(ram.file().metadata().unwrap().blocks(), 0);
        ram.write_at(5 << 30, &[1]).unwrap();
        assert_eq!(ram.file().metadata().unwrap().blocks() * 512, 4096);
    }

    #[test]
    fn the_hole_is_no_memory_and_offsets_go_around_it() {
        let ram = ram(4 << 30);
        let there = |gpa| ram.mem().address_in_range(GuestAddress(gpa));
        assert!(there(0) && there(HOLE_START - 1) && there(HOLE_END));
        assert!(!there(HOLE_START) && !there(HOLE_END - 1) && !there(HOLE_END + (1 << 30)));
        // Across the end of low RAM.
        ram.write_at(HOLE_START - 2, &[1, 2, 3, 4]).unwrap();
        let byte = |gpa| ram.mem().read_obj::<u8>(GuestAddress(gpa)).unwrap();
        assert_eq!([byte(HOLE_START - 2), byte(HOLE_START - 1)], [1, 2]);
        assert_eq!([byte(HOLE_END), byte(HOLE_END + 1)], [3, 4]);
        assert_ne!(ram.own_writes()[1].peek(0), 0, "the write is tracked in its range");
        let mut back = [0; 6];
        ram.read_at(HOLE_START - 3, &mut back).unwrap();
        assert_eq!(back, [0, 1, 2, 3, 4, 0]);
        assert!(ram.read_at((4 << 30) - 1, &mut [0; 2]).is_err());
        assert!(ram.write_at(4 << 30, &[1]).is_err());
        assert!(ram.write_at((4 << 30) - 1, &[1, 2]).is_err());
    }

    #[test]
    fn huge_pages_that_are_not_there_are_refused_at_once() {
        let config = MemoryConfig::new(1 << 40, true).unwrap();
        let error = GuestRam::new(&config).unwrap_err().to_string();
        assert!(error.contains("nr_hugepages"), "{error}");
    }
}
