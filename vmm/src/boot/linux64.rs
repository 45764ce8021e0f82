//! What a bzImage finds at its 64-bit entry point: zero page, page tables, GDT
//! (Linux `Documentation/arch/x86/boot.rst`, "64-bit boot protocol", and `zero-page.rst`).

#![expect(
    clippy::cast_possible_truncation,
    reason = "addresses of the layout below 4 GiB, and counts that the layout bounds"
)]

use super::bzimage::{Plan, SETUP_HEADER};
use super::{BootError, Initrd, memory_map, put};
use crate::memory::GuestRam;
use crate::memory::layout::{self, PAGE_SIZE};

/// Selectors that the protocol asks for.
pub(super) const CODE_SELECTOR: u16 = 0x10;
pub(super) const DATA_SELECTOR: u16 = 0x18;
pub(super) const TSS_SELECTOR: u16 = 0x20;
/// Flat descriptors: null, unused, 64-bit code, data, TSS (two words).
pub(super) const GDT: [u64; 6] =
    [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067, 0];

/// Offset of the GDT's last byte.
pub(super) const GDT_LIMIT: u16 = 8 * GDT.len() as u16 - 1;

const E820_TABLE: usize = 0x2D0;
const UNKNOWN_LOADER: u8 = 0xFF;

/// Writes everything but the command line.
pub(super) fn write(
    ram: &GuestRam,
    plan: &Plan,
    initrd: Option<Initrd>,
    acpi: bool,
) -> Result<(), BootError> {
    put(ram, layout::ZERO_PAGE, &zero_page(ram, plan, initrd, acpi))?;
    put(ram, layout::BOOT_PAGE_TABLES, &page_tables())?;
    let gdt: Vec<u8> = GDT.iter().flat_map(|d| d.to_le_bytes()).collect();
    put(ram, layout::BOOT_GDT, &gdt)
}

fn zero_page(ram: &GuestRam, plan: &Plan, initrd: Option<Initrd>, acpi: bool) -> [u8; 4096] {
    let mut page = [0; 4096];
    let mut set = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    set(SETUP_HEADER, plan.header());
    set(0x070, &if acpi { layout::ACPI_TABLES } else { 0 }.to_le_bytes());
    set(0x210, &[UNKNOWN_LOADER]);
    // Every address here is below 4 GiB: layout constants, and an initrd in low RAM.
    let low = |value: u64| (value as u32).to_le_bytes();
    let initrd = initrd.unwrap_or(Initrd { gpa: 0, size: 0 });
    set(0x218, &low(initrd.gpa));
    set(0x21C, &low(initrd.size));
    set(0x228, &low(layout::CMDLINE));
    let map = memory_map(ram.ranges());
    set(0x1E8, &[map.len() as u8]);
    for (i, entry) in map.iter().enumerate() {
        let at = E820_TABLE + 20 * i;
        set(at, &entry.start.to_le_bytes());
        set(at + 8, &entry.len.to_le_bytes());
        set(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    page
}

/// The first 4 GiB mapped to themselves in 2 MiB pages: a PML4, a PDPT, four PDs.
fn page_tables() -> Vec<u8> {
    const TABLE: u64 = 0b11; // present, writable
    const LARGE_PAGE: u64 = TABLE | 1 << 7;
    let pdpt = layout::BOOT_PAGE_TABLES + PAGE_SIZE;
    let directories = pdpt + PAGE_SIZE;
    let mut words = vec![0u64; 2 * 512];
    words[0] = pdpt | TABLE;
    for (i, word) in words.iter_mut().skip(512).take(4).enumerate() {
        *word = (directories + i as u64 * PAGE_SIZE) | TABLE;
    }
    words.extend((0..4 * 512).map(|i: u64| i << 21 | LARGE_PAGE));
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as a CPU would.
    #[test]
    fn page_tables_map_four_gib_to_themselves() {
        let bytes = page_tables();
        assert_eq!(bytes.len() as u64, 6 * PAGE_SIZE);
        const { assert!(layout::BOOT_PAGE_TABLES + 6 * PAGE_SIZE <= layout::CMDLINE) };
        let word = |gpa: u64| {
            let at = (gpa - layout::BOOT_PAGE_TABLES) as usize;
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
        };
        let address = |entry: u64| {
            assert_eq!(entry & 3, 3, "present and writable");
            entry & 0x000F_FFFF_FFFF_F000
        };
        for va in [0, 0x20_0000, 0x1234_5678, 0xBFFF_FFFF, 0xFFFF_FFFF_u64] {
            let pdpt = address(word(layout::BOOT_PAGE_TABLES + (va >> 39 & 511) * 8));
            let pd = address(word(pdpt + (va >> 30 & 511) * 8));
            let entry = word(pd + (va >> 21 & 511) * 8);
            assert_ne!(entry & 1 << 7, 0);
            assert_eq!((address(entry) & !0x1F_FFFF) | (va & 0x1F_FFFF), va);
        }
        assert_eq!(word(layout::BOOT_PAGE_TABLES + PAGE_SIZE + 4 * 8), 0);
    }
}
