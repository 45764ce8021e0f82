//! Where the guest keeps what an outside test may read, and how to read it. The same numbers
//! stand in `guest/defs.s`; a test compares them.
//!
//! ```text
//! 0x0000_8000  AP trampoline (64 bytes; only with more than one CPU)
//! 0x0010_0000  code, GDT, IDT; page tables of the first GiB from 0x0010_4000
//! 0x0011_0000  control page: header                              } read by tests:
//! 0x0011_1000  control pages: 32 blocks of 512 bytes, one a CPU  } `Control::parse`
//! 0x0011_5000  serial line      0x0011_6000  TSS of CPU 0 with its I/O bitmap
//! 0x0012_0000  one page per CPU: TSS, kvmclock (+0x80), stacks
//! 0x0020_0000  page directories of GiB 1 and up, one page each
//! 0x0040_0000  log rings (with `log=1`: 512 KiB a CPU), then the pages: working set, data;
//!              they skip 3 to 4 GiB
//! ```

use super::model::{PageModel, Permutation};

/// Load address of the image.
pub const LOAD: u64 = 0x10_0000;
/// PVH entry point (32-bit).
pub const ENTRY: u64 = LOAD;
/// End of the image and its zeroed memory.
pub const BSS_END: u64 = 0x14_0000;
/// The control area: header page, then the CPU blocks.
pub const CONTROL: u64 = 0x11_0000;
/// Bytes of the control area.
pub const CONTROL_LEN: usize = 0x5000;
/// Where log rings and pages start.
pub const PAGES: u64 = 0x40_0000;
/// Where the pages below 4 GiB end at the latest.
pub const LOW_END: u64 = 0xC000_0000;
/// Where the pages above the hole start.
pub const HIGH_START: u64 = 0x1_0000_0000;
/// Entries of one CPU's log ring, each a page number (u64).
pub const LOG_ENTRIES: u64 = 65536;
/// Most CPUs.
pub const MAX_CPUS: u32 = 32;
/// `"SCRIBBLR"` as the header's first word: written last, once the rest is valid.
pub const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"SCRIBBLR");
/// Version of this layout.
pub const LAYOUT_VERSION: u64 = 1;

const CPU_BLOCKS: usize = 0x1000;
const CPU_BLOCK_LEN: usize = 0x200;
const REGION_LEN: usize = 0x60;

/// Offsets in the header.
mod header {
    pub const MAGIC: usize = 0x00;
    pub const LAYOUT: usize = 0x08;
    pub const CPUS: usize = 0x10;
    pub const SEED: usize = 0x18;
    pub const NRAND: usize = 0x20;
    pub const WS_PAGES: usize = 0x28;
    pub const DATA_PAGES: usize = 0x30;
    pub const BASE_PFN: usize = 0x38;
    pub const LOW_PAGES: usize = 0x40;
    pub const GO: usize = 0xC8;
    pub const REPORTED: usize = 0xD8;
    pub const BEATS: usize = 0x110;
}

/// Offsets in a region and in a CPU's block.
mod cpu {
    pub const R_BASE: usize = 0x00;
    pub const R_N: usize = 0x08;
    pub const R_A: usize = 0x18;
    pub const R_STEPS: usize = 0x48;
    pub const PHASE: usize = 0x120;
    pub const PAGES: usize = 0x128;
    pub const ERRORS: usize = 0x130;
    pub const BACK: usize = 0x138;
    pub const LOG_COUNT: usize = 0x190;
    pub const LOG_BASE: usize = 0x1C8;
}

/// Why a control area cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControlError {
    /// Fewer bytes than [`CONTROL_LEN`].
    #[error("the control area is {CONTROL_LEN} bytes, got {0}")]
    Short(usize),
    /// No scribbler there, or not ready yet.
    #[error("no scribbler at this address, or it has not read its parameters yet")]
    NotReady,
    /// Another layout version, or counts that cannot be.
    #[error("the control area makes no sense: {0}")]
    Invalid(&'static str),
}

/// What a CPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not started.
    Off,
    /// Writing version 0 everywhere.
    Fill,
    /// Waiting for the others.
    Filled,
    /// Rewriting, or idle between rewrites.
    Run,
    /// Checking all pages.
    Verify,
}

/// A contiguous run of logical pages visited in one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First logical page.
    pub first: u64,
    /// The order.
    pub order: Permutation,
    /// Rewrites finished since the start. The page of the next step may be partly written.
    pub steps: u64,
}

/// One CPU's live state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// What it is doing.
    pub phase: Phase,
    /// All or hot pages, cold pages, pages never rewritten. Unused ones are empty.
    pub regions: [Region; 3],
    /// Rewrites finished.
    pub pages: u64,
    /// Pages found wrong.
    pub errors: u64,
    /// Times its clock went back.
    pub clock_back: u64,
    /// Rewrites started since the start: with `log=1`, entries ever logged.
    pub log_count: u64,
    /// Address of its log ring.
    pub log_base: u64,
}

/// The control area at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// What pages hold.
    pub model: PageModel,
    /// Pages rewritten.
    pub ws_pages: u64,
    /// Pages written once.
    pub data_pages: u64,
    /// All pages are filled and CPUs run.
    pub running: bool,
    /// Sweeps reported.
    pub sweeps: u64,
    /// Heartbeats sent.
    pub beats: u64,
    /// The CPUs.
    pub cpus: Vec<Cpu>,
    base_gfn: u64,
    low_pages: u64,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Control {
    /// Reads the area: `bytes` is guest memory from [`CONTROL`], [`CONTROL_LEN`] long. The guest
    /// may run meanwhile: each counter is one word. Counters of different CPUs are then not of
    /// the same instant.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        if bytes.len() < CONTROL_LEN {
            return Err(ControlError::Short(bytes.len()));
        }
        if word(bytes, header::MAGIC) != HEADER_MAGIC {
            return Err(ControlError::NotReady);
        }
        if word(bytes, header::LAYOUT) != LAYOUT_VERSION {
            return Err(ControlError::Invalid("layout version"));
        }
        let count = usize::try_from(word(bytes, header::CPUS)).unwrap_or(0);
        if count == 0 || count > MAX_CPUS as usize {
            return Err(ControlError::Invalid("number of CPUs"));
        }
        let seed = word(bytes, header::SEED);
        let stream_words = usize::try_from(word(bytes, header::NRAND)).unwrap_or(usize::MAX);
        if stream_words > 508 {
            return Err(ControlError::Invalid("words of a page"));
        }
        let cpus = (0..count)
            .map(|i| Cpu::parse(&bytes[CPU_BLOCKS + i * CPU_BLOCK_LEN..], seed))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            model: PageModel { seed, stream_words },
            ws_pages: word(bytes, header::WS_PAGES),
            data_pages: word(bytes, header::DATA_PAGES),
            running: word(bytes, header::GO) != 0,
            sweeps: word(bytes, header::REPORTED),
            beats: word(bytes, header::BEATS),
            cpus,
            base_gfn: word(bytes, header::BASE_PFN),
            low_pages: word(bytes, header::LOW_PAGES),
        })
    }

    /// Guest page number of a logical page.
    pub fn gfn(&self, logical: u64) -> u64 {
        match logical.checked_sub(self.low_pages) {
            None => self.base_gfn + logical,
            Some(above) => HIGH_START / 4096 + above,
        }
    }

    /// Guest page numbers rewritten between `earlier` and `self`, in each CPU's order. The pages
    /// being written at the two instants are included: they may be partly written.
    pub fn rewritten_since(&self, earlier: &Self) -> Vec<u64> {
        let mut pages = Vec::new();
        for (now, then) in self.cpus.iter().zip(&earlier.cpus) {
            for (region, before) in now.regions.iter().take(2).zip(&then.regions) {
                // A step may have been under way at the end of the interval.
                let steps = region.order.steps(before.steps, region.steps + 1);
                pages.extend(steps.map(|offset| self.gfn(region.first + offset)));
            }
        }
        pages
    }

    /// Every page with the version due: guest page number, version. Exact while the guest is
    /// paused, but for the page that each CPU was just writing ([`Self::in_progress`]).
    pub fn expected(&self) -> Vec<(u64, u64)> {
        let regions = self.cpus.iter().flat_map(|cpu| &cpu.regions);
        let pages =
            regions.flat_map(|region| (region.first..).zip(region.order.versions(region.steps)));
        pages.map(|(logical, version)| (self.gfn(logical), version)).collect()
    }

    /// The next page of each region: the only ones that may be between two versions.
    pub fn in_progress(&self) -> Vec<u64> {
        let regions = self.cpus.iter().flat_map(|cpu| &cpu.regions[..2]);
        let next = regions.flat_map(|region| {
            let next = region.order.steps(region.steps, region.steps + 1);
            next.map(|offset| self.gfn(region.first + offset)).collect::<Vec<_>>()
        });
        next.collect()
    }
}

impl Cpu {
    fn parse(block: &[u8], seed: u64) -> Result<Self, ControlError> {
        let phase = match word(block, cpu::PHASE) {
            0 => Phase::Off,
            1 => Phase::Fill,
            2 => Phase::Filled,
            3 => Phase::Run,
            4 => Phase::Verify,
            _ => return Err(ControlError::Invalid("phase")),
        };
        let region = |i: usize| {
            let at = &block[i * REGION_LEN..];
            let pages = word(at, cpu::R_N);
            if pages > 1 << 40 {
                return Err(ControlError::Invalid("pages of a region"));
            }
            let order = match word(at, cpu::R_A) {
                1 => Permutation::sequential(pages),
                _ => Permutation::random(pages, seed),
            };
            Ok(Region { first: word(at, cpu::R_BASE), order, steps: word(at, cpu::R_STEPS) })
        };
        Ok(Self {
            phase,
            regions: [region(0)?, region(1)?, region(2)?],
            pages: word(block, cpu::PAGES),
            errors: word(block, cpu::ERRORS),
            clock_back: word(block, cpu::BACK),
            log_count: word(block, cpu::LOG_COUNT),
            log_base: word(block, cpu::LOG_BASE),
        })
    }

    /// Guest addresses of the log entries of rewrites `from..to` (values of `log_count`), oldest
    /// first. `None` if the ring has overwritten some.
    pub fn log_entries(&self, from: u64, to: u64) -> Option<impl Iterator<Item = u64> + use<>> {
        let base = self.log_base;
        let kept = self.log_count.saturating_sub(from) <= LOG_ENTRIES && to <= self.log_count;
        kept.then(|| (from..to).map(move |i| base + i % LOG_ENTRIES * 8))
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
