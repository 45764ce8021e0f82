//! A disk that other hosts reach too: what stands beside it, and which locks a guest holds.

use std::fs::{self, File};
use std::path::Path;

use serde_json::json;
use vmm::devices::virtio::block::{DiskLock, open_disk};

use crate::support::{Home, kvm, pid_of, wait_gone};

const GUEST: [&str; 4] = ["--guest", "scribbler:ws=4M", "--memory", "32M"];

/// The owner's term in the newest record beside `image`, by the documented layout.
fn owner_term(image: &str) -> u64 {
    let bytes = fs::read(format!("{image}.migrate")).unwrap();
    assert_eq!(bytes.len(), 8192);
    let number = |slot: &[u8], at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().unwrap());
    let slots = bytes.chunks(4096);
    let newest = slots.max_by_key(|slot| number(slot, 16)).unwrap();
    assert_eq!(&newest[..8], b"MIGRTERM");
    number(newest, 24)
}

fn lock(image: &str) -> DiskLock {
    let disk = open_disk(Path::new(image), false, false).unwrap();
    DiskLock::new(&disk, Path::new(image), false).unwrap()
}

#[test]
fn a_saved_guest_continues_on_another_host_that_has_its_disk() {
    if !kvm() {
        return;
    }
    let (first, second) = (Home::new(), Home::new());
    let (image, file) = (first.file_text("disk.img"), first.file_text("state"));
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let disk = format!("{image},shared");
    let words = ["run", "a", "--wait-for", "console:SCRIBBLER-READY,60s", "--disk", &disk];
    first.done(&[&words[..], &GUEST].concat());
    first.done(&["save", "a", "--to", &file]);
    second.done(&["load", &file]);
    assert!(owner_term(&image) > 1);
    let mut console = second.console("a");
    console.until_beats(20);
    console.verify_clean(1024);
    // It lives on there: the file's right is used, whatever the first host knows.
    second.done(&["stop", "a"]);
    first.json(&["load", &file]).refused("superseded", &["has run"]);
    let guests = ["run", "a", "--disk", &disk];
    assert_eq!(first.json(&[&guests[..], &GUEST].concat()).code, Some(0), "another guest may");
    first.done(&["stop", "a", "--kill"]);
}

#[test]
fn a_guest_owns_its_shared_disk_and_says_so_beside_it() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let image = home.file_text("disk.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let disk = format!("{image},shared");
    let run = |name| home.json(&[&["run", name], &GUEST[..], &["--disk", &disk]].concat());

    let first = run("a").done();
    assert_eq!(first["definition"]["disks"][0]["shared"], true);
    assert_eq!(owner_term(&image), 1);
    // It holds OWNER for its life, and NEXT only until it runs: a move may take that.
    let other = lock(&image);
    assert!(other.take_owner().is_err());
    other.take_next().unwrap();
    other.drop_next().unwrap();
    run("b").refused("disk-locked", &[&image]);
    home.done(&["reset", "a"]);
    assert!(other.take_owner().is_err(), "also after a reset");
    home.done(&["stop", "a"]);
    wait_gone(pid_of(&first));
    other.take_owner().unwrap();
    run("b").refused("disk-locked", &[&image]);
    other.drop_owner().unwrap();

    // A start while another host is about to take the disk is refused, and leaves no lock.
    other.take_next().unwrap();
    run("b").refused("disk-locked", &[&image]);
    other.drop_next().unwrap();
    other.take_owner().unwrap();
    other.drop_owner().unwrap();

    // Another guest may have it next, in terms above the first one's.
    let second = run("b").done();
    assert_ne!(second["uuid"], first["uuid"]);
    assert_eq!((owner_term(&image), &second["term"]), (2, &json!(2)));
    home.done(&["stop", "b"]);

    // A damaged record is no reason to guess.
    fs::write(format!("{image}.migrate"), [7; 8192]).unwrap();
    run("c").refused("bad-disk", &["disk.img.migrate", "no whole record"]);
    home.assert_no_guest();
}
