//! Linux bzImage (Linux `Documentation/arch/x86/boot.rst`): checked here, copied by
//! `linux-loader`. Only the 64-bit entry point is used; the real-mode part never runs.

use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::GuestAddress;

use super::{BootError, Image, Kernel};
use crate::memory::GuestRam;
use crate::memory::layout::{HIGH_RAM_START, HOLE_START, PAGE_SIZE};

/// Bytes at the start of an image that hold the longest setup header.
pub(super) const HEAD: usize = 0x290;
/// Where the setup header starts, in the image as in the zero page.
pub(super) const SETUP_HEADER: usize = 0x1F1;
/// Bytes of header that must exist: up to and with `init_size`.
const LEAST: usize = 0x264;
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// Boot protocol 2.12 brought `xloadflags`.
const LEAST_VERSION: u16 = 0x020C;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;

/// A checked image: it is complete and fits in memory.
#[derive(Debug)]
pub(super) struct Plan {
    header: Vec<u8>,
    load: u64,
    end: u64,
    initrd_end: u64,
    cmdline_max: usize,
}

impl Plan {
    /// The setup header as the image has it, from [`SETUP_HEADER`] on.
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    /// First address behind the highest that an initrd may touch.
    pub(super) fn initrd_end(&self) -> u64 {
        self.initrd_end
    }

    /// Longest command line that this kernel takes, without NUL.
    pub(super) fn cmdline_max(&self) -> usize {
        self.cmdline_max
    }
}

/// Whether an image that starts with `head` claims to be a bzImage: boot sector signature, or as
/// much of it as there is, and header magic.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    // An image cut within the header is still recognised by its boot sector.
    head.get(0x1FE..0x200) == Some(&[0x55, 0xAA])
        && head.get(0x202..0x206).is_none_or(|magic| magic == b"HdrS")
}

fn u16_at(head: &[u8], at: usize) -> u16 {
    head.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(head: &[u8], at: usize) -> u32 {
    u32::from(u16_at(head, at)) | u32::from(u16_at(head, at + 2)) << 16
}

fn u64_at(head: &[u8], at: usize) -> u64 {
    u64::from(u32_at(head, at)) | u64::from(u32_at(head, at + 4)) << 32
}

/// Checks an image of `len` bytes that starts with `head`.
pub(super) fn plan(head: &[u8], len: u64, low_end: u64) -> Result<Plan, BootError> {
    if head.len() < LEAST {
        let (need, have) = (LEAST as u64, len);
        return Err(BootError::Truncated { what: "setup header", need, have });
    }
    let version = u16_at(head, 0x206);
    let loaded_high = head[0x211] & LOADED_HIGH != 0;
    if version < LEAST_VERSION || !loaded_high || u16_at(head, 0x236) & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry { version });
    }
    let setup_sectors = match head[SETUP_HEADER] {
        0 => 4, // as the protocol says, for very old kernels
        n => u64::from(n),
    };
    let setup = (setup_sectors + 1) * SECTOR;
    let size = u64::from(u32_at(head, 0x1F4)) * 16;
    let what = "compressed kernel";
    if size <= ENTRY_64 {
        return Err(BootError::Damaged { what: format!("its {what} is {size} bytes long") });
    }
    if setup + size > len {
        return Err(BootError::Truncated { what, need: setup + size, have: len });
    }
    let header_end = (0x202 + usize::from(head[0x201])).min(HEAD);
    let header = head.get(SETUP_HEADER..header_end).unwrap_or_default().to_vec();
    if header.len() < LEAST - SETUP_HEADER {
        return Err(BootError::Damaged { what: "its setup header is too short".into() });
    }
    let load = u64_at(head, 0x258);
    // All of the file is copied, also what a signing tool appended.
    let room = u64::from(u32_at(head, 0x260)).max(len - setup);
    let end = place(load, room, low_end)?;
    Ok(Plan {
        header,
        load,
        end,
        initrd_end: u64::from(u32_at(head, 0x22C)) + 1,
        cmdline_max: usize::try_from(u32_at(head, 0x238)).unwrap_or(usize::MAX),
    })
}

/// Checks the preferred load address, and returns the end of the `room` bytes there.
fn place(load: u64, room: u64, low_end: u64) -> Result<u64, BootError> {
    let Some(end) = load.checked_add(room).filter(|_| load.is_multiple_of(PAGE_SIZE)) else {
        return Err(BootError::Damaged {
            what: format!("its preferred load address is {load:#x}"),
        });
    };
    if load < HIGH_RAM_START {
        let area = "the boot data and tables below 1 MiB";
        return Err(BootError::Misplaced { start: load, end, area });
    }
    if end > HOLE_START {
        let area = "the hole for devices below 4 GiB";
        return Err(BootError::Misplaced { start: load, end, area });
    }
    if end > low_end {
        return Err(BootError::KernelTooLarge { end, ram_end: low_end });
    }
    Ok(end)
}

/// Copies the kernel to its preferred address.
pub(super) fn load<F: Image>(
    ram: &GuestRam,
    image: &mut F,
    plan: &Plan,
) -> Result<Kernel, BootError> {
    BzImage::load(ram.mem(), Some(GuestAddress(plan.load)), image, None)
        .map_err(|e| BootError::ReadKernel(std::io::Error::other(e)))?;
    Ok(Kernel { entry: plan.load + ENTRY_64, end: plan.end })
}
