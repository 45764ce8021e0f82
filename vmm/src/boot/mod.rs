//! Boot: puts a kernel, its initrd, command line and platform tables into guest memory, and says
//! in which state the boot CPU starts.
//!
//! Two protocols, told apart by the content of the image: a PVH ELF (Xen's
//! `XEN_ELFNOTE_PHYS32_ENTRY`; 32-bit entry) and a Linux bzImage (64-bit entry). The image is
//! checked completely before the first byte of guest memory is written. Everything goes through
//! [`GuestRam::mem`], so a loader's writes are part of the dirty set.
//!
//! It never runs anything, never opens a file, and adds nothing to the command line but, without
//! ACPI, the parameters by which Linux finds the virtio devices.

mod acpi;
mod bzimage;
mod cmdline;
mod elf;
mod entry;
mod error;
mod linux64;
mod map;
mod mptable;
mod pvh;

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, ReadVolatile};

pub use entry::{Entry, Protocol};
pub use error::BootError;
pub use map::{MapEntry, MapKind, memory_map};

use crate::config::MAX_VCPUS;
use crate::memory::{GuestRam, layout};

/// What to boot. Reading starts at the beginning of each file, so a source serves every reset.
#[derive(Debug)]
pub struct BootSource {
    /// The kernel image.
    pub kernel: KernelImage,
    /// The initial RAM file system, handed to the kernel as it is.
    pub initrd: Option<File>,
    /// The kernel command line: ASCII, no NUL.
    pub cmdline: String,
    /// Describe the platform with ACPI tables. Otherwise only the MP table does, and Linux finds
    /// the virtio devices by parameters that are added to the command line.
    pub acpi: bool,
}

/// A kernel image.
#[derive(Debug)]
pub enum KernelImage {
    /// In a file that can seek.
    File(File),
    /// In memory.
    Bytes(Vec<u8>),
}

/// The machine that boots.
#[derive(Debug)]
pub struct Platform<'a> {
    /// vCPUs, 1 to [`MAX_VCPUS`]. Their APIC ids are their indices.
    pub vcpus: u32,
    /// Virtio devices present, in slots `0..virtio_slots`; at most [`layout::VIRTIO_SLOTS`].
    pub virtio_slots: usize,
    /// Guest memory.
    pub ram: &'a GuestRam,
}

/// Where the kernel lies once it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kernel {
    /// Entry point, guest-physical.
    entry: u64,
    /// First byte behind everything that the kernel occupies before it manages memory itself.
    end: u64,
}

/// A source of kernel bytes: what `linux-loader` asks for.
trait Image: Read + ReadVolatile + Seek {}
impl<T: Read + ReadVolatile + Seek> Image for T {}

/// Loads `source` into the platform's memory and returns how the boot CPU starts.
///
/// # Errors
/// See [`BootError`]. Command line and image are refused before guest memory is touched; after
/// another error guest memory holds parts of a kernel and must not be run.
pub fn load(platform: &Platform, source: &mut BootSource) -> Result<Entry, BootError> {
    check(platform)?;
    let slots = if source.acpi { 0 } else { platform.virtio_slots };
    let cmdline = cmdline::build(&source.cmdline, slots)?;
    match &mut source.kernel {
        KernelImage::File(file) => {
            load_image(platform, file, &mut source.initrd, &cmdline, source.acpi)
        }
        KernelImage::Bytes(bytes) => {
            let mut image = Cursor::new(bytes.as_slice());
            load_image(platform, &mut image, &mut source.initrd, &cmdline, source.acpi)
        }
    }
}

fn check(platform: &Platform) -> Result<(), BootError> {
    if !(1..=MAX_VCPUS).contains(&platform.vcpus) {
        return Err(BootError::Vcpus(platform.vcpus));
    }
    if platform.virtio_slots > layout::VIRTIO_SLOTS {
        return Err(BootError::VirtioSlots(platform.virtio_slots));
    }
    Ok(())
}

fn load_image<F: Image>(
    platform: &Platform,
    image: &mut F,
    initrd: &mut Option<File>,
    cmdline: &cmdline::Cmdline,
    acpi: bool,
) -> Result<Entry, BootError> {
    let ram = platform.ram;
    let low_end = low_ram_end(ram);
    let len = image.seek(SeekFrom::End(0)).map_err(BootError::ReadKernel)?;
    let head = read_at(image, 0, len.min(bzimage::HEAD as u64))?;
    let entry = if elf::is_elf(&head) {
        let plan = elf::plan(image, len, low_end)?;
        let kernel = elf::load(ram, image, &plan)?;
        let initrd = load_initrd(ram, initrd, kernel.end, low_end)?;
        pvh::write(ram, initrd, acpi)?;
        Entry { protocol: Protocol::Pvh, rip: kernel.entry, arg: layout::PVH_START_INFO }
    } else if bzimage::is_bzimage(&head) {
        let plan = bzimage::plan(&head, len, low_end)?;
        cmdline.check_length(plan.cmdline_max())?;
        let kernel = bzimage::load(ram, image, &plan)?;
        let top = low_end.min(plan.initrd_end());
        let initrd = load_initrd(ram, initrd, kernel.end, top)?;
        linux64::write(ram, &plan, initrd, acpi)?;
        Entry { protocol: Protocol::Linux64, rip: kernel.entry, arg: layout::ZERO_PAGE }
    } else {
        return Err(error::not_a_kernel(&head));
    };
    put(ram, layout::CMDLINE, cmdline.bytes())?;
    put(ram, layout::EBDA, &mptable::build(platform.vcpus))?;
    acpi::write(platform, acpi)?;
    Ok(entry)
}

/// Where an initrd lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Initrd {
    gpa: u64,
    size: u64,
}

/// Loads the initrd as high as it goes below `top`, above the kernel.
fn load_initrd(
    ram: &GuestRam,
    file: &mut Option<File>,
    kernel_end: u64,
    top: u64,
) -> Result<Option<Initrd>, BootError> {
    let Some(file) = file else { return Ok(None) };
    let size = file.seek(SeekFrom::End(0)).map_err(BootError::ReadInitrd)?;
    if size == 0 {
        return Err(BootError::EmptyInitrd);
    }
    let gpa = map::place_initrd(size, kernel_end, top)
        .ok_or(BootError::InitrdTooLarge { size, room: map::initrd_room(kernel_end, top) })?;
    file.rewind().map_err(BootError::ReadInitrd)?;
    let count = usize::try_from(size)
        .map_err(|_| BootError::InitrdTooLarge { size, room: map::initrd_room(kernel_end, top) })?;
    ram.mem()
        .read_exact_volatile_from(GuestAddress(gpa), file, count)
        .map_err(|e| BootError::ReadInitrd(std::io::Error::other(e)))?;
    Ok(Some(Initrd { gpa, size }))
}

/// End of the RAM below the hole.
fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.ranges().first().map_or(0, |r| r.gpa + r.len)
}

/// Reads `len` bytes at `offset` of the image. The caller has checked that they exist.
fn read_at<F: Image>(image: &mut F, offset: u64, len: u64) -> Result<Vec<u8>, BootError> {
    let len = usize::try_from(len).map_err(|e| BootError::ReadKernel(std::io::Error::other(e)))?;
    let mut bytes = vec![0; len];
    image.seek(SeekFrom::Start(offset)).map_err(BootError::ReadKernel)?;
    image.read_exact(&mut bytes).map_err(BootError::ReadKernel)?;
    Ok(bytes)
}

/// Writes to guest memory through the tracked accessor.
fn put(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.mem().write_slice(bytes, GuestAddress(gpa)).map_err(|e| BootError::Memory {
        gpa,
        bytes: bytes.len(),
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests;
