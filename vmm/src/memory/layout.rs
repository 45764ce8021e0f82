//! The guest's physical address map. Every fixed address of the machine stands here and nowhere
//! else, because boot tables, devices and saved states must agree on them for ever.
//!
//! ```text
//! 0x0000_0000  low RAM (boot data below 1 MiB, kernel at 1 MiB, up to 3 GiB)
//! 0xC000_0000  hole: nothing below 0xD000_0000
//! 0xD000_0000  virtio-mmio windows, 4 KiB each
//! 0xFEC0_0000  IOAPIC      0xFEE0_0000  LAPIC
//! 0xFFFB_C000  KVM identity map page + TSS (4 pages)
//! 0x1_0000_0000 high RAM
//! ```

/// Bytes in a guest page.
pub const PAGE_SIZE: u64 = 4096;

/// End of low RAM and start of the hole for devices.
pub const HOLE_START: u64 = 0xC000_0000;
/// End of the hole; RAM that does not fit below it continues here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio window.
pub const VIRTIO_MMIO_BASE: u64 = 0xD000_0000;
/// Size of one virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Interrupt lines (IOAPIC pins) of the virtio devices, by slot.
pub const VIRTIO_GSIS: [u32; 16] = [5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
/// Most virtio devices a machine can have.
pub const VIRTIO_SLOTS: usize = VIRTIO_GSIS.len();

/// Where KVM puts its real-mode identity map (one page); the TSS follows it.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Where KVM puts its three-page TSS.
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;

/// IOAPIC registers (fixed by the architecture's custom and by KVM).
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// LAPIC registers.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;

/// COM1.
pub const SERIAL_PORT: u16 = 0x3F8;
/// Length of COM1's port range.
pub const SERIAL_PORTS: u16 = 8;
/// COM1's interrupt line.
pub const SERIAL_GSI: u32 = 4;
/// i8042: data port 0x60, command port 0x64.
pub const I8042_PORT: u16 = 0x60;
/// Length of the i8042 port range.
pub const I8042_PORTS: u16 = 5;
/// ACPI fixed hardware: `PM1a` event block, `PM1a` control block, GPE0 block, reset register.
pub const ACPI_PM_PORT: u16 = 0x600;
/// `PM1a` control block (2 bytes), after the event block (4).
pub const ACPI_PM1_CONTROL_PORT: u16 = ACPI_PM_PORT + 4;
/// GPE0 block: a status byte and an enable byte.
pub const ACPI_GPE0_PORT: u16 = ACPI_PM_PORT + 8;
/// Reset register (1 byte).
pub const ACPI_RESET_PORT: u16 = ACPI_PM_PORT + 15;
/// Value that resets the machine when written to the reset register.
pub const ACPI_RESET_VALUE: u8 = 1;
/// Sleep type of S5 (power off).
pub const ACPI_SLEEP_TYPE_OFF: u8 = 5;
/// Bit of GPE0 that says that the VM generation id changed.
pub const ACPI_GPE_GENERATION: u8 = 0;
/// Length of the ACPI port range.
pub const ACPI_PM_PORTS: u16 = 16;
/// The ACPI system control interrupt (level triggered).
pub const SCI_GSI: u32 = 9;

/// Boot GDT.
pub const BOOT_GDT: u64 = 0x500;
/// PVH start info; its module list and memory map follow in the same page.
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux zero page (bzImage boot).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8FF0;
/// Initial page tables (bzImage boot): PML4, PDPT, PDs.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest kernel command line, its final NUL included.
pub const CMDLINE_MAX: usize = 4096;
/// End of usable low RAM below 1 MiB; the MP table lies here (the EBDA).
pub const EBDA: u64 = 0x9_FC00;
/// The ACPI tables' area (reserved in the memory map), the RSDP first.
pub const ACPI_TABLES: u64 = 0xE_0000;
/// Size of the area for ACPI tables. Its last 4 KiB page holds the VM generation id, the one
/// before it the FACS.
pub const ACPI_TABLES_SIZE: u64 = 0x2_0000;
/// The 16 bytes of the VM generation id.
pub const VM_GENERATION_ID: u64 = ACPI_TABLES + ACPI_TABLES_SIZE - PAGE_SIZE;
/// The FACS, which the guest's operating system writes to: end of the tables proper.
pub const ACPI_FACS: u64 = VM_GENERATION_ID - PAGE_SIZE;
/// Where kernels are loaded, at the lowest.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Guest-physical window of the virtio-mmio device in `slot`.
pub const fn virtio_mmio_base(slot: usize) -> u64 {
    VIRTIO_MMIO_BASE + slot as u64 * VIRTIO_MMIO_SIZE
}

/// One contiguous piece of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Guest-physical start, page aligned.
    pub gpa: u64,
    /// Offset of its first byte in the RAM file, page aligned.
    pub offset: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
}

/// How `bytes` of RAM lie in the address map: all below the hole if they fit, the rest above it.
/// `bytes` must be a multiple of the page size; [`crate::config::MemoryConfig`] guarantees it.
pub fn ram_ranges(bytes: u64) -> Vec<RamRange> {
    let low = bytes.min(HOLE_START);
    let mut ranges = vec![RamRange { gpa: 0, offset: 0, len: low }];
    if bytes > low {
        ranges.push(RamRange { gpa: HOLE_END, offset: low, len: bytes - low });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ram_is_one_range() {
        assert_eq!(ram_ranges(16 << 20), [RamRange { gpa: 0, offset: 0, len: 16 << 20 }]);
    }

    #[test]
    fn large_ram_continues_above_the_hole() {
        assert_eq!(
            ram_ranges(5 << 30),
            [
                RamRange { gpa: 0, offset: 0, len: 3 << 30 },
                RamRange { gpa: 4 << 30, offset: 3 << 30, len: 2 << 30 },
            ]
        );
    }
}
