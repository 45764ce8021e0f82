//! Whose a shared disk is while its guest goes to and fro: locks and terms, as the storage has
//! them, and disks that keep their guest where it is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vmm::devices::virtio::block::{DiskLock, open_disk};

use crate::links::SLOW;
use crate::rig::Rig;
use crate::site::last;
use crate::storage::Storage;
use crate::support::eventually;

const GUEST: [&str; 2] = ["--memory", "32M"];
const KIND: &str = "ws=4M,data=16M,rate=200,hb=5ms,poll=5ms";
const PAGES: u64 = 20 * 256;

/// A directory in which both hosts see storage at the same path.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("shared");
    fs::create_dir(&at).unwrap();
    (dir, at)
}

fn make_disk(mount: &Path) {
    File::create(mount.join("disk.img")).unwrap().set_len(1 << 20).unwrap();
}

/// Term and host of the owner and the highest term offered, from the newest record beside the
/// disk, by the documented layout.
fn beside(mount: &Path) -> (u64, u128, u64) {
    // Past what the test's own look at the file may have left in a cache.
    let bytes = direct_read(&mount.join("disk.img.migrate"));
    let number = |slot: &[u8], at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().unwrap());
    let newest = bytes.chunks(4096).max_by_key(|slot| number(slot, 16)).unwrap();
    assert_eq!(&newest[..8], b"MIGRTERM");
    let host = u128::from_le_bytes(newest[32..48].try_into().unwrap());
    (number(newest, 24), host, number(newest, 48))
}

/// The two slots of a record.
fn direct_read(path: &Path) -> Vec<u8> {
    let from = format!("if={}", path.display());
    let words = [&from, "iflag=direct", "bs=8192", "count=1", "status=none"];
    let output = std::process::Command::new("dd").args(words).output().unwrap();
    assert!(output.status.success() && output.stdout.len() == 8192, "{output:?}");
    output.stdout
}

#[test]
fn locks_and_terms_go_with_the_guest() {
    let (_dir, at) = place();
    let storage = Storage::default();
    let Some(rig) = Rig::sharing(&["--relay"], [&storage, &storage], &at) else { return };
    make_disk(rig.seen_by_a());
    let site = &rig.site;
    let disk = format!("{},shared", at.join("disk.img").display());
    let words = [&GUEST[..], &["--disk", &disk]].concat();
    site.a.scribbler("web1", KIND, &words);
    let image = rig.seen_by_a().join("disk.img");
    let other = DiskLock::new(&open_disk(&image, false, false).unwrap(), &image, false).unwrap();
    let mut last_term = 0;
    let (mut here, mut there) = (&site.a, &site.b);
    for turn in 0..4 {
        let (term, host, _) = beside(rig.seen_by_a());
        assert!(term > last_term, "turn {turn}: term {term} after {last_term}");
        last_term = term;
        // Neither another host nor another guest of any host gets it, whoever has it now.
        assert!(other.take_owner().is_err(), "turn {turn}: nobody owns it");
        for host in [here, there] {
            let words = [&["run", "thief", "--guest", "scribbler"], &words[..]].concat();
            host.home.json(&words).refused("disk-locked", &["disk.img"]);
        }
        // It could be moved: NEXT is free.
        other.take_next().unwrap();
        other.drop_next().unwrap();
        // Somebody who is about to take the disk keeps the move from happening, not the guest
        // from running.
        if turn == 1 {
            other.take_next().unwrap();
            let ran = here.tries("web1", &there.name, &["--timeout", "20s"]);
            assert_eq!(ran.code, Some(5), "{ran:?}");
            assert_eq!(last(&ran)["outcome"], "kept", "{ran:?}");
            other.drop_next().unwrap();
            here.assert_runs("web1");
            there.assert_empty();
        }
        here.moves("web1", there);
        there.assert_runs("web1").verify_clean(PAGES);
        here.assert_empty();
        assert_ne!(beside(rig.seen_by_a()).1, host, "the other host owns it now");
        (here, there) = (there, here);
    }
    here.home.done(&["stop", "web1"]);
    here.assert_empty();
    // FUSE tells its server of a closed file a little later.
    eventually("the disk is free", || {
        other.take_next().ok()?;
        other.take_owner().ok()
    });
}

#[test]
fn a_failed_move_leaves_locks_and_terms_with_the_source() {
    let (_dir, at) = place();
    let storage = Storage::default();
    let Some(rig) = Rig::sharing(&[], [&storage, &storage], &at) else { return };
    make_disk(rig.seen_by_a());
    let site = &rig.site;
    let disk = format!("{},shared", at.join("disk.img").display());
    site.a.scribbler("web1", KIND, &[&GUEST[..], &["--disk", &disk]].concat());
    let (term, host, _) = beside(rig.seen_by_a());
    let id = site.a.begin("web1", &site.b, &SLOW);
    site.a.until_copying(&id);
    assert_eq!(site.a.home.json(&["cancel", "web1"]).code, Some(0));
    assert_eq!(site.a.until_ended(&id)["outcome"], "kept");
    site.b.assert_empty();
    assert_eq!(beside(rig.seen_by_a()).1, host);
    assert!(beside(rig.seen_by_a()).0 >= term);
    let image = rig.seen_by_a().join("disk.img");
    let other = DiskLock::new(&open_disk(&image, false, false).unwrap(), &image, false).unwrap();
    assert!(other.take_owner().is_err());
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1").verify_clean(PAGES);
}

#[test]
fn disks_that_keep_their_guest_where_it_is() {
    let (dir, at) = place();
    let [one, two] = [Storage::default(), Storage::default()];
    // The same path, and an image there: but it is not the same storage.
    let Some(rig) = Rig::sharing(&[], [&one, &two], &at) else { return };
    let site = &rig.site;
    for mount in [rig.seen_by_a(), rig.seen_by_b()] {
        make_disk(mount);
    }
    let disk = format!("{},shared", at.join("disk.img").display());
    site.a.scribbler("web1", KIND, &[&GUEST[..], &["--disk", &disk]].concat());
    // A record of its own, as a guest that ran there left it.
    site.b.home.done(&[
        "run",
        "old",
        "--guest",
        "scribbler:ws=1M",
        "--memory",
        "32M",
        "--disk",
        &disk,
    ]);
    site.b.home.done(&["stop", "old"]);
    site.b.assert_empty();
    let ran = site.a.tries("web1", "beta", &[]);
    assert!(matches!(ran.code, Some(4 | 5)), "{ran:?}");
    let said = last(&ran)["error"].clone();
    assert!(said["message"].as_str().unwrap().contains("disk.img"), "{said}");
    site.b.assert_empty();
    site.a.assert_runs("web1").verify_clean(PAGES);

    // A disk that only this host has.
    let local = dir.path().join("local.img");
    File::create(&local).unwrap().set_len(1 << 20).unwrap();
    let local = local.to_str().unwrap();
    site.a.scribbler("web2", KIND, &[&GUEST[..], &["--disk", local]].concat());
    let ran = site.a.tries("web2", "beta", &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let said = last(&ran)["error"].clone();
    assert_eq!(said["code"], "local-disk", "{said}");
    let message = said["message"].as_str().unwrap();
    assert!(message.contains(local) && message.contains("this host only"), "{said}");
    assert!(said["remedy"].as_str().unwrap().contains(",shared"), "{said}");
    site.b.assert_empty();
    site.a.assert_runs("web2").verify_clean(PAGES);
}
