//! The memory map that the guest is told, and the place of the initrd in it. Pure.

use crate::memory::layout::{self, PAGE_SIZE, RamRange};

/// What a piece of the address space is, by the numbers that e820 and PVH share
/// (ACPI 6.5, table 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// Usable.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
    /// Memory that firmware and the operating system share.
    AcpiNvs = 4,
}

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Guest-physical start.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: MapKind,
}

/// The memory map of a machine whose RAM lies in `ranges`: sorted, without overlaps.
pub fn memory_map(ranges: &[RamRange]) -> Vec<MapEntry> {
    let entry =
        |start: u64, end: u64, kind| MapEntry { start, len: end.saturating_sub(start), kind };
    let end = |r: &RamRange| r.gpa.saturating_add(r.len);
    let (low, high) = ranges.split_at(ranges.len().min(1));
    let low_end = low.first().map_or(0, end);
    let mut map = vec![
        entry(0, layout::EBDA, MapKind::Ram),
        entry(layout::EBDA, 0xA_0000, MapKind::Reserved),
        entry(layout::ACPI_TABLES, layout::ACPI_FACS, MapKind::Acpi),
        entry(layout::ACPI_FACS, layout::VM_GENERATION_ID, MapKind::AcpiNvs),
        // The VM generation id must lie in memory that is neither usable nor reclaimable.
        entry(layout::VM_GENERATION_ID, layout::HIGH_RAM_START, MapKind::Reserved),
        entry(layout::HIGH_RAM_START, low_end, MapKind::Ram),
        entry(layout::KVM_IDENTITY_MAP, layout::KVM_TSS + 3 * PAGE_SIZE, MapKind::Reserved),
    ];
    map.extend(high.iter().map(|r| entry(r.gpa, end(r), MapKind::Ram)));
    map
}

/// Bytes for an initrd between `kernel_end` and `top`, in whole pages.
pub(super) fn initrd_room(kernel_end: u64, top: u64) -> u64 {
    let from = kernel_end.div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE);
    (top / PAGE_SIZE * PAGE_SIZE).saturating_sub(from)
}

/// The highest page-aligned place for `size` bytes that ends at or below `top` and starts at or
/// above `kernel_end`.
pub(super) fn place_initrd(size: u64, kernel_end: u64, top: u64) -> Option<u64> {
    if size > initrd_room(kernel_end, top) {
        return None;
    }
    Some((top / PAGE_SIZE * PAGE_SIZE).checked_sub(size)? / PAGE_SIZE * PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KVM_PAGES: MapEntry =
        MapEntry { start: 0xFFFB_C000, len: 0x4000, kind: MapKind::Reserved };

    fn row(start: u64, len: u64, kind: MapKind) -> MapEntry {
        MapEntry { start, len, kind }
    }

    #[test]
    fn maps_of_known_machines() {
        let low = [
            row(0, 0x9_FC00, MapKind::Ram),
            row(0x9_FC00, 0x400, MapKind::Reserved),
            row(0xE_0000, 0x1_E000, MapKind::Acpi),
            row(0xF_E000, 0x1000, MapKind::AcpiNvs),
            row(0xF_F000, 0x1000, MapKind::Reserved),
        ];
        let small = memory_map(&layout::ram_ranges(16 << 20));
        assert_eq!(small[..5], low);
        assert_eq!(small[5..], [row(0x10_0000, 0xF0_0000, MapKind::Ram), KVM_PAGES]);
        let full = memory_map(&layout::ram_ranges(3 << 30));
        assert_eq!(full[5..], [row(0x10_0000, 0xBFF0_0000, MapKind::Ram), KVM_PAGES]);
        let large = memory_map(&layout::ram_ranges(5 << 30));
        assert_eq!(large[..5], low);
        assert_eq!(
            large[5..],
            [
                row(0x10_0000, 0xBFF0_0000, MapKind::Ram),
                KVM_PAGES,
                row(1 << 32, 2 << 30, MapKind::Ram),
            ]
        );
    }

    proptest! {
        #[test]
        fn maps_are_sorted_and_name_only_ram_that_exists(pages in (16u64 << 8)..(1 << 28)) {
            let ranges = layout::ram_ranges(pages * PAGE_SIZE);
            let map = memory_map(&ranges);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
            for e in &map {
                prop_assert!(e.len > 0);
                if e.kind == MapKind::Ram {
                    prop_assert!(ranges.iter().any(|r| r.gpa <= e.start && e.start + e.len <= r.gpa + r.len));
                }
            }
            let ram: u64 = map.iter().filter(|e| e.kind == MapKind::Ram).map(|e| e.len).sum();
            prop_assert_eq!(ram, pages * PAGE_SIZE - (0x10_0000 - 0x9_FC00));
        }

        #[test]
        fn initrds_lie_between_kernel_and_top(
            size in 1u64..1 << 33, kernel_end in 0u64..1 << 32, top in 0u64..1 << 33
        ) {
            match place_initrd(size, kernel_end, top) {
                Some(gpa) => {
                    prop_assert_eq!(gpa % PAGE_SIZE, 0);
                    prop_assert!(gpa >= kernel_end && gpa + size <= top);
                    prop_assert!(gpa + size + 2 * PAGE_SIZE > top, "as high as it goes");
                }
                None => prop_assert!(kernel_end + size + 2 * PAGE_SIZE > top),
            }
        }
    }
}
