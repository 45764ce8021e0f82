//! Whole loads of synthetic kernels, good and bad.

#![expect(clippy::cast_possible_truncation, reason = "patterns, and sizes that fit")]

use super::*;
use crate::config::MemoryConfig;
use proptest::prelude::*;
use std::io::Write;

const MIB: u64 = 1 << 20;

fn ram(mib: u64) -> GuestRam {
    GuestRam::new(&MemoryConfig::new(mib * MIB, false).unwrap()).unwrap()
}

fn boot(
    ram: &GuestRam,
    kernel: &[u8],
    change: impl FnOnce(&mut BootSource),
) -> Result<Entry, BootError> {
    let mut source = BootSource {
        kernel: KernelImage::Bytes(kernel.to_vec()),
        initrd: None,
        cmdline: "console=ttyS0".into(),
        acpi: true,
    };
    change(&mut source);
    load(&Platform { vcpus: 2, virtio_slots: 2, ram }, &mut source)
}

fn peek<const N: usize>(ram: &GuestRam, gpa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.mem().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

fn peek32(ram: &GuestRam, gpa: u64) -> u32 {
    u32::from_le_bytes(peek(ram, gpa))
}

fn peek64(ram: &GuestRam, gpa: u64) -> u64 {
    u64::from_le_bytes(peek(ram, gpa))
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Where the parts of [`elf_image`] lie in the file.
const PHDRS: usize = 64;
const NOTES: usize = PHDRS + 3 * 56;
const TEXT: usize = NOTES + 20 + 20;
const TEXT_LEN: usize = 300;
const SECTIONS: usize = TEXT + TEXT_LEN;

/// A PVH ELF: text at 1 MiB with 8 KiB of zeroes behind it, entry at 0x100010.
fn elf_image() -> Vec<u8> {
    fn u16s(v: &mut Vec<u8>, xs: &[u16]) {
        v.extend(xs.iter().flat_map(|x| x.to_le_bytes()));
    }
    fn u64s(v: &mut Vec<u8>, xs: &[u64]) {
        v.extend(xs.iter().flat_map(|x| x.to_le_bytes()));
    }
    let mut v = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    u16s(&mut v, &[2, 62, 1, 0]); // executable, x86-64, version
    u64s(&mut v, &[0x10_0000, PHDRS as u64, SECTIONS as u64]);
    v.extend([0; 4]);
    u16s(&mut v, &[64, 56, 3, 64, 1, 0]);
    let mut phdr = |kind: u32, fields: [u64; 6]| {
        v.extend(kind.to_le_bytes());
        v.extend([5, 0, 0, 0]);
        u64s(&mut v, &fields);
    };
    // A note segment without the note comes after the one with it: both must be looked at.
    phdr(4, [NOTES as u64 + 20, 0, 0, 20, 20, 4]);
    phdr(4, [NOTES as u64, 0, 0, 20, 20, 4]);
    phdr(1, [TEXT as u64, 0, 0x10_0000, TEXT_LEN as u64, 0x2000, 16]);
    v.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    v.extend(b"Xen\0\x10\x00\x10\x00");
    v.extend([4, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0]);
    v.extend(b"GNU\0\0\0\0\0");
    v.extend((0..TEXT_LEN).map(|i| i as u8 | 1));
    v.extend([0; 64]);
    v
}

const SETUP: usize = 2 * 512;

/// A bzImage: one setup sector, `payload` bytes, preferred address 2 MiB, 1 MiB to run in.
fn bzimage_image(payload: usize) -> Vec<u8> {
    let mut v = vec![0; SETUP + payload];
    let mut set = |at: usize, bytes: &[u8]| v[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1F1, &[1]);
    set(0x1F4, &(payload as u32 / 16).to_le_bytes());
    set(0x1FE, &[0x55, 0xAA, 0xEB, 0x66]);
    set(0x202, b"HdrS\x0F\x02");
    set(0x211, &[1]);
    set(0x214, &0x10_0000u32.to_le_bytes());
    set(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    set(0x236, &[3, 0]);
    set(0x238, &2047u32.to_le_bytes());
    set(0x258, &(2 * MIB).to_le_bytes());
    set(0x260, &(MIB as u32).to_le_bytes());
    for (i, b) in v[SETUP..].iter_mut().enumerate() {
        *b = i as u8 | 1;
    }
    v
}

#[test]
fn pvh_elf_is_loaded_with_everything_it_is_told_of() {
    let ram = ram(32);
    // What a guest before the reset left there.
    put(&ram, 0x10_0000, &[0xEE; 0x3000]).unwrap();
    let initrd = vec![0x5A; 5000];
    let entry = boot(&ram, &elf_image(), |s| s.initrd = Some(file(&initrd))).unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Pvh, rip: 0x10_0010, arg: 0x6000 });
    let text: [u8; TEXT_LEN] = peek(&ram, 0x10_0000);
    assert_eq!(text[..], elf_image()[TEXT..SECTIONS]);
    assert_eq!(peek(&ram, 0x10_0000 + TEXT_LEN as u64), [0; 0x2000 - TEXT_LEN]);
    assert_eq!(peek(&ram, 0x10_2000), [0xEE; 16], "behind the kernel nothing is touched");

    assert_eq!(peek32(&ram, 0x6000), 0x336E_C578);
    assert_eq!(peek32(&ram, 0x6004), 1);
    assert_eq!(peek32(&ram, 0x600C), 1, "one module");
    let module = peek64(&ram, 0x6010);
    let (gpa, size) = (peek64(&ram, module), peek64(&ram, module + 8));
    assert_eq!((gpa, size), (32 * MIB - 8192, 5000));
    assert_eq!(peek::<5000>(&ram, gpa)[..], initrd);
    assert_eq!(peek(&ram, peek64(&ram, 0x6018)), *b"console=ttyS0\0");
    assert_eq!(peek(&ram, peek64(&ram, 0x6020)), *b"RSD PTR ");
    let map = memory_map(ram.ranges());
    assert_eq!(peek32(&ram, 0x6030) as usize, map.len());
    for (i, e) in map.iter().enumerate() {
        let at = peek64(&ram, 0x6028) + 24 * i as u64;
        let row = (peek64(&ram, at), peek64(&ram, at + 8), peek32(&ram, at + 16));
        assert_eq!(row, (e.start, e.len, e.kind as u32));
    }
    assert_eq!(peek(&ram, 0x9_FC00), *b"_MP_");
}

#[test]
fn bzimage_is_loaded_with_everything_it_is_told_of() {
    let ram = ram(32);
    let image = bzimage_image(4096);
    let entry = boot(&ram, &image, |s| s.initrd = Some(file(&[7; 4096]))).unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Linux64, rip: 2 * MIB + 0x200, arg: 0x7000 });
    assert_eq!(peek::<4096>(&ram, 2 * MIB)[..], image[SETUP..]);
    let zero_page: [u8; 4096] = peek(&ram, 0x7000);
    assert_eq!(zero_page[0x1FE..0x210], image[0x1FE..0x210]);
    assert_eq!(zero_page[0x210], 0xFF);
    assert_eq!(zero_page[0x22C..0x268], image[0x22C..0x268]);
    assert_eq!(peek64(&ram, 0x7070), 0xE_0000);
    assert_eq!((peek32(&ram, 0x7218), peek32(&ram, 0x721C)), (0x1FF_F000, 4096));
    assert_eq!(peek32(&ram, 0x7228), 0x2_0000);
    let map = memory_map(ram.ranges());
    assert_eq!(usize::from(zero_page[0x1E8]), map.len());
    for (i, e) in map.iter().enumerate() {
        let at = 0x72D0 + 20 * i as u64;
        let row = (peek64(&ram, at), peek64(&ram, at + 8), peek32(&ram, at + 16));
        assert_eq!(row, (e.start, e.len, e.kind as u32));
    }
    assert_eq!(peek64(&ram, 0x500 + 0x10), 0x00AF_9B00_0000_FFFF);
}

#[test]
fn without_acpi_the_command_line_names_the_devices() {
    let ram = ram(16);
    boot(&ram, &elf_image(), |_| ()).unwrap();
    assert_eq!(peek(&ram, 0xE_0000), *b"RSD PTR ");
    boot(&ram, &elf_image(), |s| s.acpi = false).unwrap();
    assert_eq!(peek64(&ram, 0x6020), 0);
    assert_eq!(peek(&ram, 0xE_0000), [0; 36], "no RSDP of an earlier boot is found");
    let line = peek(&ram, 0x2_0000);
    assert_eq!(
        line,
        *b"console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6\0"
    );
}

/// A load that the dirty set does not know of would be lost in a migration.
#[test]
fn every_write_is_tracked() {
    for image in [elf_image(), bzimage_image(4096)] {
        let ram = ram(16);
        boot(&ram, &image, |s| s.initrd = Some(file(&[7; 9000]))).unwrap();
        for page in 0..16 * 256 {
            let bytes: [u8; 4096] = peek(&ram, page * 4096);
            let marked = ram.own_writes()[0].peek(page as usize / 64) & 1 << (page % 64) != 0;
            assert!(marked || bytes == [0; 4096], "page {page:#x}");
        }
    }
}

#[test]
fn an_image_in_a_file_loads_again_and_again() {
    let ram = ram(16);
    let mut source = BootSource {
        kernel: KernelImage::File(file(&elf_image())),
        initrd: Some(file(b"initrd")),
        cmdline: String::new(),
        acpi: true,
    };
    let platform = Platform { vcpus: 1, virtio_slots: 0, ram: &ram };
    let first = load(&platform, &mut source).unwrap();
    assert_eq!(load(&platform, &mut source).unwrap(), first);
    assert_eq!(peek(&ram, 16 * MIB - 4096), *b"initrd");
}

/// Every way to be wrong, with the error that names it.
#[test]
fn bad_input_is_named() {
    let ram = ram(16);
    let (elf, bz) = (elf_image(), bzimage_image(4096));
    let patched = |image: &[u8], at: usize, bytes: &[u8]| {
        let mut image = image.to_vec();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let fail = |image: &[u8]| boot(&ram, image, |_| ()).unwrap_err();
    assert!(matches!(fail(b""), BootError::NotAKernel { .. }));
    assert!(matches!(fail(&[0x1F, 0x8B, 8, 0]), BootError::NotAKernel { .. }));
    assert!(matches!(fail(&patched(&elf, 4, &[1])), BootError::WrongMachine("32 bits")));
    assert!(matches!(fail(&patched(&elf, 5, &[2])), BootError::WrongMachine("big-endian")));
    assert!(matches!(fail(&patched(&elf, 18, &[183])), BootError::WrongMachine("not x86")));
    assert!(matches!(fail(&patched(&elf, NOTES + 12, b"Yen")), BootError::NoPvhNote));
    assert!(matches!(fail(&patched(&bz, 0x236, &[0])), BootError::No64BitEntry { version: 0x20F }));
    assert!(matches!(fail(&patched(&bz, 0x206, &[4])), BootError::No64BitEntry { version: 0x204 }));
    // Segments: address at 24, memory size at 40 of the third program header.
    let (paddr, memsz) = (PHDRS + 2 * 56 + 24, PHDRS + 2 * 56 + 40);
    let at = |gpa: u64| fail(&patched(&elf, paddr, &gpa.to_le_bytes()));
    assert!(matches!(at(0x8000), BootError::Misplaced { start: 0x8000, .. }));
    assert!(matches!(at(0xBFFF_F000), BootError::Misplaced { .. }));
    assert!(matches!(at(0x1_0000_0000), BootError::Misplaced { .. }));
    assert!(matches!(at(u64::MAX - 0x1000), BootError::Damaged { .. }));
    assert!(matches!(
        at(0x100_0000),
        BootError::KernelTooLarge { end: 0x100_2000, ram_end: 0x100_0000 }
    ));
    assert!(matches!(at(0x20_0000), BootError::Damaged { .. }), "entry outside");
    assert!(matches!(fail(&patched(&elf, memsz, &[0; 8])), BootError::Damaged { .. }));
    let at = |gpa: u64| fail(&patched(&bz, 0x258, &gpa.to_le_bytes()));
    assert!(matches!(at(0x1000), BootError::Misplaced { .. }));
    assert!(matches!(at(0xF0_1000), BootError::KernelTooLarge { .. }));
    assert!(matches!(at(0xBFF1_0000), BootError::Misplaced { .. }));
    assert!(matches!(at(u64::MAX - 0xFFF), BootError::Damaged { .. }));
    assert!(matches!(at(2 * MIB + 1), BootError::Damaged { .. }));

    let with = |image: &[u8], f: &dyn Fn(&mut BootSource)| boot(&ram, image, |s| f(s)).unwrap_err();
    assert!(matches!(with(&elf, &|s| s.initrd = Some(file(b""))), BootError::EmptyInitrd));
    let big = tempfile::tempfile().unwrap();
    big.set_len(16 * MIB).unwrap();
    assert!(matches!(
        with(&elf, &|s| s.initrd = Some(big.try_clone().unwrap())),
        BootError::InitrdTooLarge { size, room } if size == 16 * MIB && room == 0xEF_E000
    ));
    // No room below the limit that the kernel sets.
    let limited = patched(&bz, 0x22C, &0x30_0FFFu32.to_le_bytes());
    assert!(matches!(
        with(&limited, &|s| s.initrd = Some(file(&[1; 4097]))),
        BootError::InitrdTooLarge { size: 4097, room: 4096 }
    ));
    boot(&ram, &limited, |s| s.initrd = Some(file(&[1; 4096]))).unwrap();
    assert_eq!(peek32(&ram, 0x7218), 0x30_0000);
    assert!(matches!(
        with(&bz, &|s| s.cmdline = "x".repeat(2048)),
        BootError::CmdlineTooLong { length: 2048, added: 0, max: 2047 }
    ));
    assert!(matches!(with(&elf, &|s| s.cmdline = "a\0".into()), BootError::CmdlineByte { .. }));
    let directory = || KernelImage::File(File::open("/").unwrap());
    assert!(matches!(
        with(&elf, &|s| s.kernel = directory()),
        BootError::ReadKernel(_) | BootError::NotAKernel { .. }
    ));

    let mut source = BootSource {
        kernel: KernelImage::Bytes(elf),
        initrd: None,
        cmdline: String::new(),
        acpi: true,
    };
    let mut on =
        |vcpus, virtio_slots| load(&Platform { vcpus, virtio_slots, ram: &ram }, &mut source);
    assert!(matches!(on(0, 0), Err(BootError::Vcpus(0))));
    assert!(matches!(on(33, 0), Err(BootError::Vcpus(33))));
    assert!(matches!(on(1, 17), Err(BootError::VirtioSlots(17))));
}

/// Refusing an image leaves memory as it was: checks come before writes.
#[test]
fn every_prefix_is_refused_before_memory_is_touched() {
    let ram = ram(16);
    for image in [elf_image(), bzimage_image(2048)] {
        for len in 0..image.len() {
            let error = boot(&ram, &image[..len], |_| ()).expect_err("a prefix is no kernel");
            let expected =
                matches!(error, BootError::NotAKernel { .. } | BootError::Truncated { .. });
            assert!(expected, "{len} bytes: {error}");
        }
        assert!((0..64).all(|w| ram.own_writes()[0].peek(w) == 0));
    }
    boot(&ram, &elf_image(), |_| ()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Mutated images load or are refused; what is loaded lies where kernels may lie.
    #[test]
    fn mutated_images_never_panic(
        which: bool,
        patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        mib in prop::sample::select(vec![16u64, 24, 32]),
        acpi: bool,
    ) {
        let mut image = if which { elf_image() } else { bzimage_image(2048) };
        for (at, value, header) in patches {
            // Most of it in the headers, where it matters.
            let (from, to) = match (which, header) {
                (true, true) => (0, TEXT),
                (false, true) => (0x1F1, 0x268),
                (_, false) => (0, image.len()),
            };
            image[from + at.index(to - from)] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len() + 1));
        }
        let ram = ram(mib);
        if let Ok(entry) = boot(&ram, &image, |s| { s.acpi = acpi; s.initrd = Some(file(b"x")); }) {
            prop_assert!((0x10_0000..mib * MIB).contains(&entry.rip));
        }
    }

    /// Bytes that are nothing at all, behind the two magic numbers.
    #[test]
    fn noise_never_panics(mut noise in prop::collection::vec(any::<u8>(), 0..3000), which: bool) {
        let (at, magic): (usize, &[u8]) = if which { (0, b"\x7fELF\x02\x01") } else { (0x1FE, &[0x55, 0xAA, 0, 0, 0x48, 0x64, 0x72, 0x53]) };
        if let Some(place) = noise.get_mut(at..at + magic.len()) {
            place.copy_from_slice(magic);
        }
        let _ = boot(&ram(16), &noise, |_| ());
    }
}
