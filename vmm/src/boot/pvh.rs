//! PVH start info (Xen `public/arch-x86/hvm/start_info.h`, version 1).

use super::{BootError, Initrd, memory_map, put};
use crate::memory::{GuestRam, layout};

const MAGIC: u32 = 0x336E_C578;
const VERSION: u32 = 1;
/// Offsets within the page of the start info.
const MODULE_LIST: u64 = 0x40;
const MEMORY_MAP: u64 = 0x80;

/// Writes start info, module list and memory map.
pub(super) fn write(ram: &GuestRam, initrd: Option<Initrd>, acpi: bool) -> Result<(), BootError> {
    let base = layout::PVH_START_INFO;
    let map = memory_map(ram.ranges());
    let mut info = Vec::with_capacity(56);
    info.extend(MAGIC.to_le_bytes());
    info.extend(VERSION.to_le_bytes());
    info.extend(0u32.to_le_bytes()); // flags
    info.extend(u32::from(initrd.is_some()).to_le_bytes());
    info.extend(initrd.map_or(0, |_| base + MODULE_LIST).to_le_bytes());
    info.extend(layout::CMDLINE.to_le_bytes());
    info.extend(if acpi { layout::ACPI_TABLES } else { 0 }.to_le_bytes());
    info.extend((base + MEMORY_MAP).to_le_bytes());
    info.extend(u32::try_from(map.len()).unwrap_or(0).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    put(ram, base, &info)?;

    let mut modules = Vec::with_capacity(32);
    if let Some(initrd) = initrd {
        for field in [initrd.gpa, initrd.size, 0, 0] {
            modules.extend(field.to_le_bytes());
        }
        put(ram, base + MODULE_LIST, &modules)?;
    }

    let mut table = Vec::with_capacity(24 * map.len());
    for entry in map {
        table.extend(entry.start.to_le_bytes());
        table.extend(entry.len.to_le_bytes());
        table.extend((entry.kind as u32).to_le_bytes());
        table.extend(0u32.to_le_bytes());
    }
    put(ram, base + MEMORY_MAP, &table)
}
