use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::guest::testing::definition;

const RAM: u64 = 3 << 20;
static GO: AtomicBool = AtomicBool::new(false);

fn metadata(ram_bytes: u64) -> Metadata {
    let mut definition = definition("one");
    definition.memory_bytes = ram_bytes;
    Metadata {
        definition,
        term: 3,
        save: Uuid::from_u128(77),
        created: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
        program: "0.1.0".into(),
        host: "h1".into(),
        disks: vec![],
        kept_running: false,
    }
}

fn ram_file(bytes: u64) -> File {
    let ram = nix::sys::memfd::memfd_create(c"t", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    let ram = File::from(ram);
    ram.set_len(bytes).unwrap();
    ram
}

fn save(ram: &File, bytes: u64) -> (File, Written) {
    let file = tempfile::tempfile().unwrap();
    let metadata = metadata(bytes);
    let content = Content { metadata: &metadata, state: b"the state", ram, ram_bytes: bytes };
    let written = write(&file, &content, &GO).unwrap();
    (file, written)
}

/// Everything, into plain memory.
fn load(file: &File) -> Result<(SavedFile, Vec<u8>), SaveFileError> {
    let saved = open(file)?;
    let mut ram = vec![0; usize::try_from(saved.header.ram_bytes).unwrap()];
    load_memory(file, &saved.header, &mut |at, bytes| {
        let at = usize::try_from(at).unwrap();
        ram[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    })?;
    Ok((saved, ram))
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn file_of(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Against a plain copy of the memory; zero pages, written or not, take no room.
    #[test]
    fn what_was_saved_is_loaded(
        pages in prop::collection::btree_map(0..(RAM / 4096 + 100), any::<u8>(), 0..200),
        tail in 1..200u64,
    ) {
        let bytes = RAM + tail * 4096;
        let ram = ram_file(bytes);
        let mut model = vec![0; usize::try_from(bytes).unwrap()];
        let mut not_zero = 0;
        for (page, fill) in pages.range(..bytes / 4096) {
            let at = page * 4096 + 4095;
            ram.write_all_at(&[*fill], at).unwrap();
            model[usize::try_from(at).unwrap()] = *fill;
            not_zero += u64::from(*fill != 0) * 4096;
        }
        let (file, written) = save(&ram, bytes);
        prop_assert_eq!(written.memory_bytes, not_zero);
        prop_assert_eq!(written.file_bytes, file.metadata().unwrap().len());
        let (saved, loaded) = load(&file).unwrap();
        prop_assert_eq!(saved.metadata, metadata(bytes));
        prop_assert_eq!(saved.state, b"the state");
        prop_assert!(loaded == model);
    }

    /// Any bytes: an error or a file, never a panic.
    #[test]
    fn hostile_bytes_with_a_true_magic(mut bytes in prop::collection::vec(any::<u8>(), 12..9000)) {
        bytes[..12].copy_from_slice(b"\x89MIGSAV\n\x01\0\0\0");
        prop_assert!(load(&file_of(&bytes)).is_err());
    }
}

/// Which section is changed, with its checksum made right again.
fn resealed(section: u8, changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = small();
    let header: [u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
    let mut header = Header::decode(&header, bytes.len() as u64).unwrap();
    let change = |bytes: &mut [u8]| {
        for (at, value) in changes {
            bytes[at.index(bytes.len())] = *value;
        }
        crc32fast::hash(bytes)
    };
    let range = |section: &Section| {
        let start = usize::try_from(section.offset).unwrap();
        start..start + usize::try_from(section.length).unwrap()
    };
    let mut head = match section {
        0 => {
            let mut head = header.encode();
            change(&mut head[8..124]);
            let crc = crc32fast::hash(&head[..124]).to_le_bytes();
            head[124..].copy_from_slice(&crc);
            head
        }
        1 => {
            header.metadata.crc = change(&mut bytes[range(&header.metadata)]);
            header.encode()
        }
        _ => {
            header.table.crc = change(&mut bytes[range(&header.table)]);
            header.encode()
        }
    };
    bytes[..HEADER_BYTES].swap_with_slice(&mut head);
    bytes
}

proptest! {
    /// A writer that computes checksums over anything it likes: an error, or memory inside of the
    /// guest's. The loader below panics at anything else.
    #[test]
    fn hostile_sections_with_true_checksums(
        section in 0..3u8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let file = file_of(&resealed(section, &changes));
        // As the process does it, which asks for RAM only after this.
        let Ok(saved) = open(&file) else { return Ok(()) };
        prop_assert!(saved.header.ram_bytes <= vmm::config::MAX_MEMORY);
        let ram_bytes = saved.header.ram_bytes;
        let _ = load_memory(&file, &saved.header, &mut |at, bytes| {
            assert!(at + bytes.len() as u64 <= ram_bytes, "{at}");
            Ok(())
        });
    }
}

fn small() -> Vec<u8> {
    let ram = ram_file(1 << 20);
    ram.write_all_at(&[7; 100], 8192).unwrap();
    ram.write_all_at(&[9; 5000], 40960).unwrap();
    contents(&save(&ram, 1 << 20).0)
}

#[test]
fn every_changed_byte_is_noticed() {
    let good = small();
    let file = file_of(&good);
    load(&file).unwrap();
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            file.write_all_at(&[good[at] ^ change], at as u64).unwrap();
            let error = load(&file).err();
            assert!(error.is_some(), "byte {at} xor {change:#x} went unnoticed");
        }
        file.write_all_at(&good[at..=at], at as u64).unwrap();
    }
    load(&file).unwrap();
}

#[test]
fn every_truncation_and_extension_is_noticed() {
    let good = small();
    let file = file_of(&good);
    file.set_len(good.len() as u64 + 1).unwrap();
    assert!(matches!(load(&file), Err(SaveFileError::Length { .. })));
    for length in (0..good.len() as u64).rev() {
        file.set_len(length).unwrap();
        let error = load(&file).unwrap_err();
        let fits = matches!(error, SaveFileError::Length { .. } | SaveFileError::NotOurs);
        assert!(fits, "cut to {length}: {error}");
    }
}

#[test]
fn an_interrupted_or_cancelled_save_is_not_a_file() {
    let ram = ram_file(1 << 20);
    ram.write_all_at(&[1], 0).unwrap();
    let file = file_of(&small());
    let metadata = metadata(1 << 20);
    let content = Content { metadata: &metadata, state: b"", ram: &ram, ram_bytes: 1 << 20 };
    let stop = AtomicBool::new(true);
    assert!(matches!(write(&file, &content, &stop), Err(SaveFileError::Cancelled)));
    assert!(matches!(open(&file), Err(SaveFileError::NotOurs)));
}

/// Rightly checksummed tables that lie: the writer of the file is not trusted either.
#[test]
fn tables_that_lie_are_refused() {
    let good = small();
    let header: [u8; HEADER_BYTES] = good[..HEADER_BYTES].try_into().unwrap();
    let header = Header::decode(&header, good.len() as u64).unwrap();
    let table = usize::try_from(header.table.offset).unwrap();
    let lies: [(usize, u8, &str); 4] = [
        (0, 1, "outside"),
        (3, 0xff, "outside"),
        (8, 0, "not describe"),
        (39, 0x80, "not describe"),
    ];
    for (at, value, wanted) in lies {
        let mut bytes = good.clone();
        bytes[table + at] = value;
        let mut header = header;
        header.table.crc = crc32fast::hash(&bytes[table..]);
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        let error = load(&file_of(&bytes)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
