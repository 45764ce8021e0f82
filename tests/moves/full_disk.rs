//! A disk that is full under the state directory of a host: the journal cannot be written, so the
//! guest stays where it was, undisturbed, the message says which disk it is, and with room the same
//! move works.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::site::{Host, Site, last};
use crate::slow::{KIND, MEMORY, PAGES, SLOW};
use crate::support::{Ran, eventually, kvm, run};

/// Gives this thread, and what it starts, mounts of its own. Says so if it cannot.
fn alone() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root || unshare(CloneFlags::CLONE_NEWNS).is_err() {
        eprintln!("SKIPPED: no mount namespace can be made: run this test as root");
        return false;
    }
    does("mount", &["--make-rprivate", "/"]);
    true
}

#[track_caller]
fn does(program: &str, words: &[&str]) {
    let done = Command::new(program).args(words).status().expect("util-linux is installed");
    assert!(done.success(), "{program} {words:?}");
}

/// A small disk of its own for the state of a host that has no daemon yet.
struct SmallDisk(PathBuf);

impl SmallDisk {
    #[track_caller]
    fn under(host: &Host) -> Self {
        let at = host.home.dirs().state;
        std::fs::create_dir_all(&at).unwrap();
        does("mount", &["-t", "tmpfs", "-o", "size=1m,mode=700", "full", at.to_str().unwrap()]);
        Self(at)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves not one byte.
    #[track_caller]
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        let error = loop {
            if let Err(error) = file.write_all(&[0xAA; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    #[track_caller]
    fn make_room(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Else the directory of the test could not be removed.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Which side's disk is full.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// A guest at the first of two hosts, one of which has a small disk.
fn with_small_disk(full: Side) -> (Site, SmallDisk) {
    let (a, b) = (Host::new("alpha"), Host::new("beta"));
    let disk = SmallDisk::under(if full == Side::Source { &a } else { &b });
    let site = Site::of(a, b);
    site.a.scribbler("web1", KIND, &MEMORY);
    (site, disk)
}

/// A move in the foreground: its outcome can be told even where no report can be kept.
fn spawned(site: &Site) -> Child {
    site.a.home.spawn(&[&["move", "web1", "--to", "beta", "--json"], &SLOW[..]].concat())
}

fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The error names the disk by a path on it, says that it is full, and what to do.
#[track_caller]
fn assert_named(ran: &Ran, exit: i32, code: &str, disk: &SmallDisk, more: &[&str]) {
    let document: Value = last(ran);
    let error = &document["error"];
    assert_eq!((ran.code, error["code"].as_str()), (Some(exit), Some(code)), "{ran:?}");
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    let message = text("message");
    for part in [disk.0.to_str().unwrap(), "No space left"].iter().chain(more) {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
    assert!(format!("{message} {}", text("remedy")).contains("make room"), "{ran:?}");
    ran.assert_no_defect();
}

/// The guest is where it was, whole; with room it moves, to and fro.
#[track_caller]
fn stays_and_moves_with_room(site: &Site, disk: &SmallDisk) {
    site.b.assert_empty();
    site.a.assert_runs("web1").verify_clean(PAGES);
    disk.make_room();
    site.a.moves("web1", &site.b);
    site.a.assert_empty();
    site.b.assert_runs("web1").verify_clean(PAGES);
    site.b.moves("web1", &site.a);
    site.b.assert_empty();
    site.a.assert_runs("web1").verify_clean(PAGES);
    for host in [&site.a, &site.b] {
        host.home.assert_no_defect();
        host.kill_guests();
        host.assert_empty();
    }
}

fn full_before(full: Side) {
    if !kvm() || !alone() {
        return;
    }
    let (site, disk) = with_small_disk(full);
    disk.fill();
    let who = if full == Side::Source { "alpha" } else { "beta" };
    let ran = run(&mut site.a.home.command(&[
        "move",
        "web1",
        "--to",
        "beta",
        "--json",
        "--max-downtime",
        "5s",
    ]));
    assert_named(&ran, 4, "file", &disk, &[who, "not begun"]);
    stays_and_moves_with_room(&site, &disk);
}

fn full_while_copying(full: Side) {
    if !kvm() || !alone() {
        return;
    }
    let (site, disk) = with_small_disk(full);
    let mut console = site.a.assert_runs("web1");
    let moving = spawned(&site);
    eventually("the move copies", || {
        let shown = site.a.home.json(&["report", "web1"]);
        let report: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        (report["phase"] == "copying").then_some(())
    });
    disk.fill();
    let ran = ended(moving);
    let more: &[&str] = if full == Side::Source { &[] } else { &["at the destination"] };
    assert_named(&ran, 5, "move-failed", &disk, more);
    // It has not been stopped for longer than a pause, nor does it stand now.
    console.until_beats(100);
    assert!(console.listen(Duration::from_secs(5)), "it stands still");
    stays_and_moves_with_room(&site, &disk);
}

#[test]
fn the_source_has_no_room_for_a_record_of_the_move() {
    full_before(Side::Source);
}

#[test]
fn the_destination_has_no_room_for_a_record_of_the_move() {
    full_before(Side::Destination);
}

#[test]
fn the_disk_of_the_source_fills_up_while_the_guest_is_copied() {
    full_while_copying(Side::Source);
}

#[test]
fn the_disk_of_the_destination_fills_up_while_the_guest_is_copied() {
    full_while_copying(Side::Destination);
}
