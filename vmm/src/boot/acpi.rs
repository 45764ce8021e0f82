//! ACPI tables (ACPI 6.5): RSDP, XSDT, FADT, FACS, DSDT, MADT.
//!
//! Fixed hardware, not hardware-reduced: the power button, S5 and the reset register are those of
//! [`crate::devices::acpi_pm`]. The machine is in ACPI mode from the start.

#![expect(
    clippy::cast_possible_truncation,
    reason = "addresses of the layout below 4 GiB, and counts that the layout bounds"
)]

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::{BootError, Platform, put};
use crate::memory::layout::{self, VIRTIO_GSIS};

const OEM: [u8; 6] = *b"MIGRAT";
const OEM_TABLE: [u8; 8] = *b"MACHINE ";
const OEM_REVISION: u32 = 1;
/// Bytes of a table header.
const HEADER: u32 = 36;
/// Tables start on this boundary; the FACS alone demands 64.
const ALIGN: u64 = 64;

/// IA-PC boot architecture flags (ACPI 6.5, table 5.11). The 8042 is not announced: all it can do
/// is reset, and a driver that looks for a keyboard would wait half a second for none.
const IAPC_LEGACY_DEVICES: u16 = 1;
const IAPC_VGA_NOT_PRESENT: u16 = 1 << 2;
const IAPC_CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Tables with the addresses they go to.
type Placed = Vec<(u64, Vec<u8>)>;

/// Writes the tables, or with `present` false makes sure that none is found.
pub(super) fn write(platform: &Platform, present: bool) -> Result<(), BootError> {
    if !present {
        // After a reset an RSDP of the boot before could still stand there.
        return put(platform.ram, layout::ACPI_TABLES, &[0; 36]);
    }
    for (gpa, table) in tables(platform.vcpus, platform.virtio_slots) {
        put(platform.ram, gpa, &table)?;
    }
    Ok(())
}

/// All tables, the RSDP first. With the most vCPUs and devices they take a few KiB of the
/// 120 KiB that there are; a test holds them to it.
fn tables(vcpus: u32, virtio_slots: usize) -> Placed {
    let mut placed = Placed::new();
    let mut next = layout::ACPI_TABLES + ALIGN;
    let mut place = |placed: &mut Placed, table: Vec<u8>| {
        let gpa = next;
        next = (next + table.len() as u64).next_multiple_of(ALIGN);
        placed.push((gpa, table));
        gpa
    };
    let dsdt = place(&mut placed, dsdt(virtio_slots));
    let fadt = place(&mut placed, fadt(dsdt));
    let madt = place(&mut placed, madt(vcpus));
    let mut root = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    let root = place(&mut placed, bytes(&root));
    placed.push((layout::ACPI_FACS, bytes(&FACS::new())));
    placed.insert(0, (layout::ACPI_TABLES, bytes(&Rsdp::new(OEM, root))));
    placed
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u16| u32::from(port).into();
    // Every address of a table is below 1 MiB.
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(layout::ACPI_FACS as u32)
        .gpe_info(layout::ACPI_GPE0_PORT.into(), 0, 2, 0, 0)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton) // no fixed sleep button; the power button is a fixed one
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (layout::SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = port(layout::ACPI_PM_PORT);
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = port(layout::ACPI_PM1_CONTROL_PORT);
    fadt.pm1_cnt_len = 2;
    // Latencies above these limits say that C2 and C3 do not exist.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.iapc_boot_arch =
        (IAPC_LEGACY_DEVICES | IAPC_VGA_NOT_PRESENT | IAPC_CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        layout::ACPI_RESET_PORT.into(),
    );
    fadt.reset_value = layout::ACPI_RESET_VALUE;
    bytes(&fadt.finalize())
}

fn madt(vcpus: u32) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1; // there are 8259s too
    const ENABLED: u32 = 1;
    const LEVEL_ACTIVE_HIGH: u16 = 0b1101;
    let mut madt = Sdt::new(*b"APIC", HEADER, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.append_slice(&(layout::LAPIC_BASE as u32).to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    // At most 32 vCPUs, whose APIC ids are their indices.
    for id in 0..vcpus.min(0xFE) as u8 {
        madt.append_slice(&[0, 8, id, id]);
        madt.append_slice(&ENABLED.to_le_bytes());
    }
    madt.append_slice(&[1, 12, vcpus.min(0xFE) as u8, 0]);
    madt.append_slice(&(layout::IOAPIC_BASE as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    // The SCI is the one line that is not as the ISA bus has it.
    madt.append_slice(&[2, 10, 0, layout::SCI_GSI as u8]);
    madt.append_slice(&layout::SCI_GSI.to_le_bytes());
    madt.append_slice(&LEVEL_ACTIVE_HIGH.to_le_bytes());
    // NMI at LINT1 of every CPU.
    madt.append_slice(&[4, 6, 0xFF, 0, 0, 1]);
    madt.as_slice().to_vec()
}

fn dsdt(virtio_slots: usize) -> Vec<u8> {
    let (off, zero) = (layout::ACPI_SLEEP_TYPE_OFF, 0u8);
    let s5 = Name::new("_S5_".into(), &Package::new(vec![&off, &off, &zero, &zero]));
    let mut devices = serial();
    devices.extend(generation_id());
    for (slot, gsi) in VIRTIO_GSIS.iter().enumerate().take(virtio_slots) {
        devices.extend(virtio(slot, *gsi));
    }
    // _Exx: edge, so that the guest clears the status bit before it looks at the id.
    let event = format!("_E{:02X}", layout::ACPI_GPE_GENERATION);
    let device = Path::new("\\_SB_.VGEN");
    let changed = Notify::new(&device, &0x80u8);
    let method = Method::new(event.as_str().into(), 0, false, vec![&changed]);
    let events = Scope::new("\\_GPE".into(), vec![&method]);

    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&bytes(&s5));
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), devices));
    dsdt.append_slice(&bytes(&events));
    dsdt.as_slice().to_vec()
}

/// An interrupt as the ISA bus has it: edge triggered, active high, not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial() -> Vec<u8> {
    let port = layout::SERIAL_PORT;
    bytes(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(port, port, 1, layout::SERIAL_PORTS as u8),
                    &edge(layout::SERIAL_GSI),
                ]),
            ),
        ],
    ))
}

/// Microsoft, "Virtual Machine Generation ID": found by its compatible id, `ADDR` is the address
/// of the id, low half first.
fn generation_id() -> Vec<u8> {
    let (low, high) = (layout::VM_GENERATION_ID as u32, (layout::VM_GENERATION_ID >> 32) as u32);
    bytes(&Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"MIGR0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    ))
}

/// A virtio-mmio transport. The id is the one that Linux's driver knows.
fn virtio(slot: usize, gsi: u32) -> Vec<u8> {
    let base = layout::virtio_mmio_base(slot) as u32;
    let name = format!("VR{slot:02X}");
    let uid = slot as u32;
    bytes(&Device::new(
        name.as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &uid),
            // virtio-mmio transports are cache coherent.
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, layout::VIRTIO_MMIO_SIZE as u32),
                    &edge(gsi),
                ]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_VCPUS;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |s, b| s.wrapping_add(*b))
    }

    fn u32_at(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
    }

    fn u64_at(b: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
    }

    fn find(placed: &Placed, gpa: u64) -> &[u8] {
        &placed.iter().find(|(at, _)| *at == gpa).expect("a pointer leads to a table").1
    }

    /// Walks from the RSDP to every table, as an operating system does.
    #[test]
    fn pointers_and_checksums_are_right() {
        for (vcpus, slots) in [(1, 0), (2, 3), (MAX_VCPUS, layout::VIRTIO_SLOTS)] {
            let placed = tables(vcpus, slots);
            let rsdp = find(&placed, layout::ACPI_TABLES);
            assert_eq!(&rsdp[..8], b"RSD PTR ");
            assert_eq!((sum(&rsdp[..20]), sum(rsdp), rsdp.len()), (0, 0, 36));
            let root = find(&placed, u64_at(rsdp, 24));
            assert_eq!(&root[..4], b"XSDT");
            let named: Vec<_> = root[36..].chunks(8).map(|e| find(&placed, u64_at(e, 0))).collect();
            assert_eq!(named.iter().map(|t| &t[..4]).collect::<Vec<_>>(), [b"FACP", b"APIC"]);
            let fadt = named[0];
            let dsdt = find(&placed, u64_at(fadt, 140));
            assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
            assert_eq!(&dsdt[..4], b"DSDT");
            let facs = find(&placed, u64::from(u32_at(fadt, 36)));
            assert_eq!((&facs[..4], facs.len()), (&b"FACS"[..], 64));
            for table in [root, fadt, named[1], dsdt] {
                assert_eq!(u32_at(table, 4) as usize, table.len());
                assert_eq!(sum(table), 0, "{:?}", &table[..4]);
            }
        }
    }

    #[test]
    fn tables_stay_in_their_area_and_apart() {
        let mut placed = tables(MAX_VCPUS, layout::VIRTIO_SLOTS);
        placed.sort();
        for pair in placed.windows(2) {
            assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
        }
        let (facs, before) = placed.split_last().unwrap();
        assert_eq!(facs.0, layout::ACPI_FACS);
        assert!(before.iter().all(|(gpa, t)| gpa + t.len() as u64 <= layout::ACPI_FACS));
    }

    /// The offsets are those of ACPI 6.5, table 5.9.
    #[test]
    fn fadt_describes_the_ports_of_the_device() {
        let fadt = fadt(0xE_0040);
        assert_eq!(fadt.len(), 276);
        assert_eq!((fadt[8], u16::from_le_bytes([fadt[46], fadt[47]])), (6, 9));
        assert_eq!((u32_at(&fadt, 48), fadt[52], fadt[53]), (0, 0, 0), "no SMI command port");
        assert_eq!((u32_at(&fadt, 56), fadt[88]), (0x600, 4));
        assert_eq!((u32_at(&fadt, 64), fadt[89]), (0x604, 2));
        assert_eq!((u32_at(&fadt, 76), fadt[91]), (0, 0), "no PM timer");
        assert_eq!((u32_at(&fadt, 80), fadt[92]), (0x608, 2));
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b10_0101);
        assert_eq!(u32_at(&fadt, 112), 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10);
        assert_eq!(fadt[116..128], [1, 8, 0, 1, 0x0F, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[128], 1);
    }

    #[test]
    fn madt_names_cpus_ioapic_and_the_sci() {
        let madt = madt(3);
        assert_eq!((u32_at(&madt, 36), u32_at(&madt, 40)), (0xFEE0_0000, 1));
        let mut expected = vec![];
        for id in 0..3 {
            expected.extend([0, 8, id, id, 1, 0, 0, 0]);
        }
        expected.extend([1, 12, 3, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]);
        expected.extend([2, 10, 0, 9, 9, 0, 0, 0, 0x0D, 0]);
        expected.extend([4, 6, 0xFF, 0, 0, 1]);
        assert_eq!(madt[44..], expected);
    }
}
