//! What can be wrong with what is to be booted.

use crate::config::MAX_VCPUS;
use crate::memory::layout;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image is of no known kind.
    #[error(
        "the kernel image starts with {found}, which is neither an ELF file nor a Linux bzImage: \
         give an uncompressed vmlinux with a PVH entry, or a bzImage"
    )]
    NotAKernel {
        /// Its first bytes, or what it is known to be.
        found: String,
    },
    /// An ELF for another machine.
    #[error(
        "the kernel image is an ELF file for another machine ({0}): give a 64-bit little-endian \
         x86 one"
    )]
    WrongMachine(&'static str),
    /// An ELF without a PVH entry point.
    #[error(
        "the kernel image is an ELF file without a PVH entry point (note XEN_ELFNOTE_PHYS32_ENTRY): \
         build Linux with CONFIG_PVH=y, or give its bzImage"
    )]
    NoPvhNote,
    /// A bzImage without a 64-bit entry point.
    #[error(
        "the kernel image is a bzImage without a 64-bit entry point (boot protocol {}.{:02}): \
         give a 64-bit kernel, Linux 3.8 or later", version >> 8, version & 0xFF
    )]
    No64BitEntry {
        /// Boot protocol version of the image.
        version: u16,
    },
    /// The image ends before it should.
    #[error(
        "the kernel image is truncated: its {what} should end at byte {need}, but the image has \
         only {have} bytes; copy it again"
    )]
    Truncated {
        /// Which part is incomplete.
        what: &'static str,
        /// Where that part should end.
        need: u64,
        /// Bytes that there are.
        have: u64,
    },
    /// The image contradicts itself.
    #[error("the kernel image is damaged: {what}; build or copy it again")]
    Damaged {
        /// What is wrong, in a few words.
        what: String,
    },
    /// The kernel does not fit in memory.
    #[error(
        "the kernel occupies memory up to {end:#x}, but the guest's low memory ends at \
         {ram_end:#x}: give the guest at least {} MiB", end.div_ceil(1 << 20)
    )]
    KernelTooLarge {
        /// End of the kernel.
        end: u64,
        /// End of low RAM.
        ram_end: u64,
    },
    /// The kernel wants memory that is ours.
    #[error(
        "the kernel wants to lie at {start:#x}..{end:#x}, which overlaps {area}: link it to load \
         between {:#x} and {:#x}",
        layout::HIGH_RAM_START,
        layout::HOLE_START
    )]
    Misplaced {
        /// Start of the segment.
        start: u64,
        /// End of the segment.
        end: u64,
        /// What is there already.
        area: &'static str,
    },
    /// The initrd has no bytes.
    #[error("the initrd is empty: give a complete one, or none")]
    EmptyInitrd,
    /// The initrd does not fit between the kernel and the end of memory.
    #[error(
        "the initrd of {size} bytes does not fit: the kernel leaves {room} bytes for it; give the \
         guest more memory or a smaller initrd"
    )]
    InitrdTooLarge {
        /// Bytes of the initrd.
        size: u64,
        /// Bytes that there are for it.
        room: u64,
    },
    /// The command line is too long.
    #[error(
        "the kernel command line is too long: {length} bytes, of which {added} name the virtio \
         devices, but at most {max} fit; shorten it{}", if *added > 0 { " or use ACPI" } else { "" }
    )]
    CmdlineTooLong {
        /// Bytes without the final NUL.
        length: usize,
        /// Bytes of it that were added here.
        added: usize,
        /// Most bytes without the final NUL.
        max: usize,
    },
    /// The command line holds a byte that no kernel takes.
    #[error(
        "the kernel command line has byte {byte:#04x} at position {position}: use ASCII without NUL"
    )]
    CmdlineByte {
        /// The byte.
        byte: u8,
        /// Its position.
        position: usize,
    },
    /// The kernel image cannot be read.
    #[error("cannot read the kernel image: {0}; check the file")]
    ReadKernel(#[source] std::io::Error),
    /// The initrd cannot be read.
    #[error("cannot read the initrd: {0}; check the file")]
    ReadInitrd(#[source] std::io::Error),
    /// Guest memory cannot be written.
    #[error("cannot write {bytes} bytes of guest memory at {gpa:#x}: {reason}; this is a bug")]
    Memory {
        /// Guest-physical address.
        gpa: u64,
        /// Length.
        bytes: usize,
        /// What the memory said.
        reason: String,
    },
    /// Number of vCPUs out of range.
    #[error("{0} vCPUs are out of range: give between 1 and {MAX_VCPUS}")]
    Vcpus(u32),
    /// Too many virtio devices.
    #[error("{0} virtio devices are too many: give at most {max}", max = layout::VIRTIO_SLOTS)]
    VirtioSlots(usize),
}

/// [`BootError::NotAKernel`], naming well-known mistakes.
pub(super) fn not_a_kernel(head: &[u8]) -> BootError {
    let found = match head {
        [] => "nothing (it is empty)".to_owned(),
        [0x1F, 0x8B, ..] => "a gzip header".to_owned(),
        [0xFD, b'7', b'z', ..] => "an xz header".to_owned(),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => "a zstd header".to_owned(),
        [b'Q', b'F', b'I', ..] => "a qcow2 header (a disk image)".to_owned(),
        [b'0', b'7', b'0', b'7', ..] => "a cpio header (an initrd)".to_owned(),
        _ => format!("bytes {:02x?}", head.get(..4).unwrap_or(head)),
    };
    BootError::NotAKernel { found }
}
