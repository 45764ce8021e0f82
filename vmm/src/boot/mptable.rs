//! Intel MP table (Intel MP specification 1.4, chapter 4): how a guest without
//! ACPI finds its CPUs and interrupt lines. It lies where such guests look for it, in the last
//! KiB of conventional memory.

#![expect(
    clippy::cast_possible_truncation,
    reason = "addresses of the layout below 4 GiB, and counts that the layout bounds"
)]

use crate::memory::layout::{EBDA, IOAPIC_BASE, LAPIC_BASE};

/// Bytes that there are for the table.
const ROOM: usize = 0x400;
const SPEC_1_4: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const IOAPIC_PINS: u8 = 24;
const ISA_BUS: u8 = 0;
/// CPUID signature and features are informative; the guest asks its CPUs.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201; // FPU, APIC

/// Floating pointer structure and table for `vcpus` CPUs, to be written at [`EBDA`].
pub(super) fn build(vcpus: u32) -> Vec<u8> {
    let floating = 16;
    let mut body = Vec::with_capacity(ROOM);
    let mut entries = 0u16;
    // APIC ids are vCPU indices, at most 31; the IOAPIC takes the next.
    let ioapic_id = vcpus.min(0xFE) as u8;
    for id in 0..ioapic_id {
        let boot = u8::from(id == 0) << 1;
        body.extend([0, id, APIC_VERSION, 1 | boot]);
        body.extend(CPU_SIGNATURE.to_le_bytes());
        body.extend(CPU_FEATURES.to_le_bytes());
        body.extend([0; 8]);
        entries += 1;
    }
    body.extend([1, ISA_BUS]);
    body.extend(b"ISA   ");
    body.extend([2, ioapic_id, IOAPIC_VERSION, 1]);
    body.extend((IOAPIC_BASE as u32).to_le_bytes());
    entries += 2;
    for pin in 0..IOAPIC_PINS {
        // Type INT, polarity and trigger as the bus has them: active high, edge.
        body.extend([3, 0, 0, 0, ISA_BUS, pin, ioapic_id, pin]);
        entries += 1;
    }
    body.extend([4, 3, 0, 0, ISA_BUS, 0, 0, 0]); // ExtINT at LINT0 of the boot CPU
    body.extend([4, 1, 0, 0, ISA_BUS, 0, 0xFF, 1]); // NMI at LINT1 of every CPU
    entries += 2;

    let mut table = Vec::with_capacity(ROOM);
    table.extend(b"PCMP");
    table.extend((44 + body.len() as u16).to_le_bytes());
    table.extend([SPEC_1_4, 0]);
    table.extend(b"MIGRATE MACHINE     ");
    table.extend([0; 6]); // no OEM table
    table.extend(entries.to_le_bytes());
    table.extend((LAPIC_BASE as u32).to_le_bytes());
    table.extend([0; 4]);
    table.extend(body);
    table[7] = checksum(&table);

    let mut all = Vec::with_capacity(ROOM);
    all.extend(b"_MP_");
    all.extend((EBDA as u32 + floating).to_le_bytes());
    all.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    all[10] = checksum(&all);
    all.extend(table);
    all
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_VCPUS;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |s, b| s.wrapping_add(*b))
    }

    /// Walks the table as an operating system does.
    #[test]
    fn tables_are_well_formed() {
        for vcpus in [1, 2, MAX_VCPUS] {
            let all = build(vcpus);
            assert!(all.len() <= ROOM, "{} bytes", all.len());
            assert_eq!(&all[..4], b"_MP_");
            assert_eq!(sum(&all[..16]), 0);
            let address = u32::from_le_bytes(all[4..8].try_into().unwrap());
            let table = &all[(u64::from(address) - EBDA) as usize..];
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(sum(table), 0);
            let mut counts = [0u32; 5];
            let mut rest = &table[44..];
            let mut pins = 0u32;
            while let Some(kind) = rest.first() {
                counts[usize::from(*kind)] += 1;
                if *kind == 3 {
                    assert_eq!(rest[5], rest[7], "pins are interrupt numbers");
                    pins |= 1 << rest[7];
                }
                rest = &rest[if *kind == 0 { 20 } else { 8 }..];
            }
            assert_eq!(counts, [vcpus, 1, 1, 24, 2]);
            assert_eq!(pins, 0xFF_FFFF);
            let entries = u32::from(u16::from_le_bytes([table[34], table[35]]));
            assert_eq!(entries, counts.iter().sum::<u32>());
        }
    }
}
