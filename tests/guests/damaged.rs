//! Loads of real saved files that were changed: each is refused with a message that names the
//! place, and leaves nothing; or, if its checksums were mended, at least breaks nothing but its
//! own guest.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::json;

use crate::support::{Home, Ran, kvm, names_in};

/// Where the header has offset, length and checksum of the sections (table in `savefile/header`).
const METADATA: u64 = 40;
const STATE: u64 = 60;
const MEMORY: u64 = 80;
const TABLE: u64 = 96;
const HEADER_BYTES: u64 = 128;
/// The checksum of the header, over everything before it.
const HEADER_CRC: u64 = 124;

/// A saved guest, and the bytes of its file.
struct Saved {
    home: Home,
    path: String,
    file: File,
    bytes: Vec<u8>,
}

impl Saved {
    fn new() -> Self {
        let home = Home::new();
        home.done(&["run", "a", "--guest", "scribbler:ws=1M", "--memory", "16M", "--cpus", "2"]);
        home.console("a").until_text("SCRIBBLER-READY");
        let path = home.file_text("a.save");
        home.done(&["save", "a", "--to", &path]);
        let bytes = fs::read(&path).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Self { home, path, file, bytes }
    }

    fn u64_at(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// First byte and length of the section whose entry is at `entry`.
    fn section(&self, entry: u64) -> (u64, u64) {
        (self.u64_at(entry), self.u64_at(entry + 8))
    }

    fn load(&self) -> Ran {
        self.home.json(&["load", &self.path])
    }

    fn restore(&self) {
        self.file.set_len(self.bytes.len() as u64).unwrap();
        self.file.write_all_at(&self.bytes, 0).unwrap();
    }

    /// The load of the file as it is now is refused.
    #[track_caller]
    fn refused(&self, code: &str, wanted: &[&str]) {
        self.load().refused(code, wanted);
        assert_eq!(names_in(&self.home.dirs().guests()), [""; 0]);
    }

    /// Changes a byte, tries, and puts it back.
    #[track_caller]
    fn refused_with(&self, at: u64, change: u8, wanted: &[&str]) {
        let byte = self.bytes[usize::try_from(at).unwrap()];
        self.file.write_all_at(&[byte ^ change], at).unwrap();
        let ran = self.load();
        assert_eq!(ran.code, Some(4), "byte {at} ^ {change:#x}: {ran:?}");
        let code = ran.json()["error"]["code"].as_str().unwrap().to_owned();
        // The version is looked at before any checksum: it says what the rest is.
        let version = (8..12).contains(&at);
        assert_eq!(code == "state-version", version, "byte {at} ^ {change:#x}: {ran:?}");
        ran.refused(&code, if version { &["version"] } else { wanted });
        assert_eq!(names_in(&self.home.dirs().guests()), [""; 0], "byte {at}");
        self.file.write_all_at(&[byte], at).unwrap();
    }

    /// The file still is what it was, and so is the right to continue from it.
    fn loads(&self) {
        self.restore();
        self.load().done();
        self.home.console("a").verify_clean(256);
        self.home.done(&["stop", "a"]);
        self.home.assert_no_guest();
    }
}

/// `count` places spread over a section, its first and last byte among them.
fn places((first, length): (u64, u64), count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| first + (length - 1) * i / (count - 1))
}

#[test]
fn every_flipped_byte_is_noticed() {
    if !kvm() {
        return;
    }
    let saved = Saved::new();
    for at in 0..HEADER_BYTES {
        let part = if at < 8 { "not a saved guest" } else { "header" };
        let change = 1 << (at % 8);
        saved.refused_with(at, change, &[&saved.path, part]);
    }
    let memory = (saved.u64_at(MEMORY), saved.u64_at(MEMORY + 8));
    let table = saved.section(TABLE);
    for (section, name, count) in [
        (saved.section(METADATA), "metadata", 40),
        (saved.section(STATE), "machine state", 60),
        (memory, "memory", 60),
        (table, "memory table", 40),
    ] {
        assert!(section.1 > 1, "{name}");
        for (i, at) in places(section, count).enumerate() {
            saved.refused_with(at, 1 << (i % 8), &[name]);
        }
    }
    let (state, length) = saved.section(STATE);
    saved.refused_with(state + length, 0xff, &["padding"]);
    saved.home.assert_no_guest();
    saved.home.assert_no_defect();
    saved.loads();
}

#[test]
fn truncated_and_extended_files_are_noticed() {
    if !kvm() {
        return;
    }
    let saved = Saved::new();
    let whole = saved.bytes.len() as u64;
    for length in [0, 1, 8, 127, 128, 129, 4096, saved.u64_at(MEMORY), whole / 2, whole - 1] {
        saved.file.set_len(length).unwrap();
        let wanted = if length < HEADER_BYTES { "not a saved guest" } else { "not copied whole" };
        saved.refused("bad-state-file", &[&saved.path, wanted]);
        saved.restore();
    }
    saved.file.set_len(whole + 1).unwrap();
    saved.refused("bad-state-file", &["not copied whole"]);
    let other = saved.home.file_text("other");
    for content in [&b"hello"[..], &[0; 8192], b"#!/bin/sh\n"] {
        fs::write(&other, content).unwrap();
        let ran = saved.home.json(&["load", &other]);
        ran.refused("bad-state-file", &[&other, "not a saved guest"]);
    }
    saved.home.json(&["load", "/"]).refused("file", &["directory"]);
    saved.home.json(&["load", &saved.home.file_text("missing")]).refused("file", &["missing"]);
    saved.loads();
}

#[test]
fn newer_and_older_files_are_told_apart() {
    if !kvm() {
        return;
    }
    let saved = Saved::new();
    let header = |version: u32| {
        let mut header = saved.bytes[..usize::try_from(HEADER_BYTES).unwrap()].to_vec();
        header[8..12].copy_from_slice(&version.to_le_bytes());
        mend_header(&mut header);
        saved.file.write_all_at(&header, 0).unwrap();
    };
    for (version, wanted) in [(2, "up to 1"), (u32::MAX, "up to 1"), (0, "from 1 on")] {
        header(version);
        saved.refused("state-version", &[&saved.path, &format!("version {version}"), wanted]);
    }
    // The same for the machine state in it.
    let at = usize::try_from(saved.section(STATE).0).unwrap() + 8;
    for (version, wanted) in [(2_u32, "up to 1"), (0, "from 1 on")] {
        let mut lie = saved.bytes.clone();
        lie[at..at + 4].copy_from_slice(&version.to_le_bytes());
        mend(&mut lie, STATE);
        saved.file.write_all_at(&lie, 0).unwrap();
        saved.refused("state-version", &[&format!("version {version}"), wanted]);
    }
    saved.loads();
}

fn mend_header(header: &mut [u8]) {
    let at = usize::try_from(HEADER_CRC).unwrap();
    let crc = crc32fast::hash(&header[..at]);
    header[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A hostile file: its checksums are right. Whatever it says, the command ends with an error and
/// nothing left, or with a guest that can be ended.
#[test]
fn lies_with_right_checksums_break_nothing() {
    if !kvm() {
        return;
    }
    let saved = Saved::new();
    let (mut loaded, mut refused) = (0, 0);
    for (entry, count) in [(METADATA, 40), (STATE, 160), (TABLE, 30)] {
        let (first, length) = saved.section(entry);
        for (i, at) in places((first, length), count).enumerate() {
            let mut lie = saved.bytes.clone();
            lie[usize::try_from(at).unwrap()] ^= [0xff, 0x80, 0x01, 0x7f][i % 4];
            mend(&mut lie, entry);
            saved.file.write_all_at(&lie, 0).unwrap();
            // As a clone, so that no journal is in the way.
            let ran = saved.home.json(&["load", &saved.path, "--as", "lie"]);
            ran.assert_no_defect();
            if ran.code == Some(0) {
                loaded += 1;
                let stopped = saved.home.json(&["stop", "lie", "--kill"]).done();
                assert!(stopped["how"] == "killed" || stopped["how"] == "died", "{stopped}");
            } else {
                refused += 1;
                let code = ran.json()["error"]["code"].clone();
                assert_eq!(ran.code, Some(4), "byte {at}: {ran:?}");
                assert_ne!(code, json!("unexpected"), "byte {at}: {ran:?}");
            }
            assert_eq!(names_in(&saved.home.dirs().guests()), [""; 0], "byte {at}");
        }
    }
    eprintln!("{loaded} lies were loaded, {refused} refused");
    assert!(loaded > 0, "no lie got past the checks: are the checksums mended?");
    saved.home.assert_no_guest();
    saved.home.assert_no_defect();
    saved.loads();
}

/// In the machine state: its own header, payload checksum, header checksum.
const OWN_HEADER: usize = 32;
const OWN_PAYLOAD_CRC: usize = 24;
const OWN_HEADER_CRC: usize = 28;

/// Makes the checksums of the section at `entry`, in it, and of the header right.
fn mend(file: &mut [u8], entry: u64) {
    let entry = usize::try_from(entry).unwrap();
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let first = usize::try_from(number(entry)).unwrap();
    let length = usize::try_from(number(entry + 8)).unwrap();
    if entry == usize::try_from(STATE).unwrap() {
        let state = &mut file[first..first + length];
        let crc = crc32fast::hash(&state[OWN_HEADER..]);
        state[OWN_PAYLOAD_CRC..OWN_HEADER_CRC].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32fast::hash(&state[..OWN_HEADER_CRC]);
        state[OWN_HEADER_CRC..OWN_HEADER].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&file[first..first + length]);
    file[entry + 16..entry + 20].copy_from_slice(&crc.to_le_bytes());
    mend_header(&mut file[..usize::try_from(HEADER_BYTES).unwrap()]);
}
