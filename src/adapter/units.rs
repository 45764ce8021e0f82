//! Guest RAM and its dirty log as the engine sees them: units of a page, numbered by their offset
//! in the RAM file.

use std::io;
use std::ops::Range;

use migrate_engine::port;
use migrate_engine::unit::{Layout, Run, UnitIndex};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use vmm::memory::GuestRam;
use vmm::memory::dirty::{DirtyError, DirtyLog};
use vmm::memory::layout::PAGE_SIZE;

/// Bytes of a unit.
#[expect(clippy::cast_possible_truncation, reason = "a page is small")]
const UNIT: u32 = PAGE_SIZE as u32;

/// Guest RAM. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Ram {
    ram: GuestRam,
    layout: Layout,
}

impl Ram {
    /// The RAM of a machine.
    ///
    /// # Errors
    /// It is larger than the engine can number.
    pub fn new(ram: GuestRam) -> io::Result<Self> {
        let layout = Layout::of_bytes(UNIT, ram.bytes()).map_err(io::Error::other)?;
        Ok(Self { ram, layout })
    }

    /// The first byte at or after `from` that is data, or that is a hole.
    fn seek(&self, from: u64, what: Whence) -> io::Result<Option<u64>> {
        let offset = i64::try_from(from).map_err(io::Error::other)?;
        match lseek(self.ram.file(), offset, what) {
            Ok(at) => u64::try_from(at).map(Some).map_err(io::Error::other),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The first run at or after unit `from` for which memory is allocated.
    fn allocated(&self, from: u64) -> io::Result<Option<Run>> {
        if from >= self.layout.units() {
            return Ok(None);
        }
        let Some(data) = self.seek(from * PAGE_SIZE, Whence::SeekData)? else { return Ok(None) };
        let hole = self.seek(data, Whence::SeekHole)?.unwrap_or(self.ram.bytes());
        // Huge pages: an extent may begin before what was asked for.
        Ok(self.layout.covering(data.max(from * PAGE_SIZE)..hole))
    }
}

impl port::ReadUnits for Ram {
    type Error = io::Error;

    fn layout(&self) -> Layout {
        self.layout
    }

    fn read(&self, unit: UnitIndex, out: &mut [u8]) -> io::Result<()> {
        self.ram.read_at(self.layout.offset(unit), out)
    }

    fn next_touched(&self, from: u64) -> io::Result<Option<Run>> {
        self.allocated(from)
    }
}

impl port::WriteUnits for Ram {
    type Error = io::Error;

    fn layout(&self) -> Layout {
        self.layout
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        self.ram.write_at(self.layout.offset(run.first()), content)
    }

    /// Gives the memory back, so that it reads as zero. What was never touched stays so.
    fn zero(&self, run: Run) -> io::Result<()> {
        let bytes = self.layout.byte_range(run);
        if self.seek(bytes.start, Whence::SeekData)?.is_none_or(|data| data >= bytes.end) {
            return Ok(());
        }
        let part = |n: u64| i64::try_from(n).map_err(io::Error::other);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, len) = (part(bytes.start)?, part(bytes.end - bytes.start)?);
        Ok(fallocate(self.ram.file(), flags, start, len)?)
    }
}

/// The dirty log of a machine.
#[derive(Debug)]
pub struct Log(DirtyLog);

impl From<DirtyLog> for Log {
    fn from(log: DirtyLog) -> Self {
        Self(log)
    }
}

impl port::DirtyLog for Log {
    type Error = DirtyError;

    fn initially_set(&self) -> bool {
        self.0.initially_set()
    }

    fn sync(&mut self) -> Result<(), DirtyError> {
        self.0.sync()
    }

    fn found(&self) -> u64 {
        self.0.found()
    }

    fn harvest(
        &mut self,
        units: Range<u64>,
        visit: &mut dyn FnMut(u64, u64),
    ) -> Result<(), DirtyError> {
        self.0.harvest(units, visit)
    }

    fn stop(self) -> Result<(), DirtyError> {
        self.0.stop()
    }
}

#[cfg(test)]
mod tests {
    use migrate_engine::port::{ReadUnits, WriteUnits};
    use vmm::config::MemoryConfig;

    use super::*;

    fn ram(bytes: u64) -> Ram {
        Ram::new(GuestRam::new(&MemoryConfig::new(bytes, false).unwrap()).unwrap()).unwrap()
    }

    fn touched(ram: &Ram) -> Vec<Range<u64>> {
        let mut all: Vec<Range<u64>> = Vec::new();
        while let Some(run) = ram.next_touched(all.last().map_or(0, |r| r.end)).unwrap() {
            all.push(run.range());
        }
        all
    }

    #[test]
    fn only_what_was_touched_is_found_and_zeroing_gives_it_back() {
        let ram = ram(16 << 20);
        let layout = ReadUnits::layout(&ram);
        assert_eq!(touched(&ram), []);
        ram.zero(layout.whole()).unwrap();
        assert_eq!(touched(&ram), [], "zeroing what was never touched touches nothing");
        ram.write(layout.run(3, 2).unwrap(), &[7; 8192]).unwrap();
        ram.write(layout.run(4095, 1).unwrap(), &[8; 4096]).unwrap();
        assert_eq!(touched(&ram), [3..5, 4095..4096]);
        let mut page = [0; 4096];
        ram.read(layout.unit(4).unwrap(), &mut page).unwrap();
        assert_eq!(page, [7; 4096]);
        ram.zero(layout.run(0, 4).unwrap()).unwrap();
        assert_eq!(touched(&ram), [4..5, 4095..4096]);
        ram.read(layout.unit(3).unwrap(), &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
    }

    #[test]
    fn units_go_around_the_hole_below_4_gib() {
        let ram = ram(4 << 30);
        let layout = ReadUnits::layout(&ram);
        let across = layout.run((3 << 30) / 4096 - 1, 2).unwrap();
        ram.write(across, &[9; 8192]).unwrap();
        assert_eq!(touched(&ram), [across.range()]);
        assert_eq!(layout.bytes(), 4 << 30);
    }
}
