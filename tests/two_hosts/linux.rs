//! A Linux guest that computes, copies on a shared disk and talks to a peer outside goes to and fro
//! between two hosts, each with a page cache of its own, and nothing of it notices.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::rig::{NET, Rig, Station, learned_port};
use crate::shell::Shell;
use crate::storage::Storage;
use crate::support::lab;

/// Moves in the test. `scripts/soak/linux` asks for more.
const MOVES: usize = 3;
const MOVES_VARIABLE: &str = "MIGRATE_TEST_MOVES";
/// Between the clocks of host and guest, and of saving and restoring.
const SLACK: Duration = Duration::from_millis(500);
/// Longest time that anything in the guest takes to go on.
const PATIENCE: Duration = Duration::from_mins(4);

/// The directory that `scripts/guest/build` made, or a loud skip.
fn images() -> Option<PathBuf> {
    let dir = std::env::var_os("MIGRATE_TEST_GUEST");
    if dir.is_none() {
        eprintln!("SKIPPED: MIGRATE_TEST_GUEST is not set: run scripts/test");
    }
    dir.map(PathBuf::from)
}

/// The words that run it, with its disk.
fn words(images: &Path, disk: &Path) -> Vec<String> {
    let hardware = !Path::new("/sys/module/kvm_pvm").exists();
    let name = if hardware { "cmdline-generic" } else { "cmdline" };
    let line = std::fs::read_to_string(images.join(name)).unwrap();
    let extra = "guest.shell=plain guest.disk=ext4 guest.ip=10.78.0.10/24";
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    vec![
        "--memory".into(),
        "128M".into(),
        "--kernel".into(),
        text(images.join("vmlinux")),
        "--initrd".into(),
        text(images.join("initramfs.cpio")),
        "--cmdline".into(),
        format!("{} {extra}", line.trim()),
        "--disk".into(),
        format!("{},shared", disk.display()),
        "--net".into(),
        NET.into(),
    ]
}

/// A station outside to which the guest has one connection: what it says must come back.
struct Peer {
    port: u16,
    end: Arc<AtomicBool>,
    /// Pieces that came back, and the longest that one took, in milliseconds.
    pieces: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Peer {
    fn new(lab: &lab::Lab) -> Self {
        let listener = lab.on(lab::Host::Outside, || TcpListener::bind("10.78.0.254:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        let (end, pieces, longest) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let shared = (Arc::clone(&end), Arc::clone(&pieces), Arc::clone(&longest));
        let thread = thread::spawn(move || {
            let stream = listener.accept().unwrap().0;
            talk(&stream, &shared.0, &shared.1, &shared.2);
        });
        Self { port, end, pieces, longest, thread }
    }

    /// Another piece comes back over the same connection.
    #[track_caller]
    fn until_heard(&self) {
        let (before, end) = (self.pieces.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.pieces.load(Ordering::Relaxed) <= before + 1 {
            assert!(!self.thread.is_finished(), "the connection is broken");
            assert!(Instant::now() < end, "not within {PATIENCE:?}: the connection goes on");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The longest round trip since this was asked last, milliseconds.
    fn longest_ms(&self) -> u64 {
        self.longest.swap(0, Ordering::Relaxed)
    }

    #[track_caller]
    fn finish(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("the connection lasts, and carries what was sent");
        self.pieces.load(Ordering::Relaxed)
    }
}

fn talk(mut stream: &TcpStream, end: &AtomicBool, pieces: &AtomicU64, longest: &AtomicU64) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for number in 0_u64.. {
        if end.load(Ordering::Relaxed) {
            return;
        }
        let piece: Vec<u8> = (0..64).flat_map(|i| (number * 64 + i).to_be_bytes()).collect();
        let begin = Instant::now();
        stream.write_all(&piece).unwrap();
        let mut echo = vec![0; piece.len()];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, piece, "piece {number} came back otherwise");
        let took = u64::try_from(begin.elapsed().as_millis()).unwrap();
        longest.fetch_max(took, Ordering::Relaxed);
        pieces.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(200));
    }
}

/// The guest's clock, with the moments outside before and after it was read.
struct Reading(Instant, Duration, Instant);

impl Reading {
    fn take(shell: &mut Shell) -> Self {
        let before = Instant::now();
        let line = shell.run("tick 0 1");
        let after = Instant::now();
        let digits = line.split_once("mono=").unwrap().1.split_whitespace().next().unwrap();
        Self(before, Duration::from_nanos(digits.parse().unwrap()), after)
    }

    /// What passed for the guest lies between what can have passed outside.
    #[track_caller]
    fn assert_goes_on_since(&self, first: &Self) {
        let passed = self.1.checked_sub(first.1).expect("time went back");
        let (least, most) = (self.0 - first.2, self.2 - first.0);
        let right = least <= passed + SLACK && passed <= most + SLACK;
        assert!(right, "{passed:?} passed in the guest, not {least:?} to {most:?}");
    }
}

/// Sums and copies so far. Nothing of it went wrong.
#[track_caller]
fn look(shell: &mut Shell) -> [u64; 2] {
    // One command: each takes its time where the guest's kernel is emulated.
    let said = shell.run(
        "grep -c '^MEM-OK' /tmp/sums; grep -c '^copied' /tmp/copies; \
         grep -E 'BAD|ended|BACKWARDS' /tmp/sums /tmp/copies /tmp/ticks /tmp/copy || true",
    );
    let numbers: Vec<u64> = said.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let wrong = said.split_whitespace().nth(2);
    assert!(wrong.is_none(), "{said}");
    numbers.try_into().unwrap_or_else(|_| panic!("{said}"))
}

/// What the guest does all the while.
fn set_to_work(shell: &mut Shell, peer: &Peer) {
    // A guest whose kernel is emulated has time for no more than this.
    shell.run(&format!(
        "(memcheck 4 1 0 500 > /tmp/sums 2>&1; echo ended >> /tmp/sums) & \
         (tick 500 1000000 > /tmp/ticks 2>&1) & \
         (i=1; while copycheck - /mnt/copy $i 1 > /tmp/copy; do echo copied $i >> /tmp/copies; \
         i=$((i+1)); sleep 2; done; echo ended >> /tmp/copies) > /dev/null 2>&1 & \
         (nc 10.78.0.254 {} -e /bin/cat > /dev/null 2>&1) & true",
        peer.port
    ));
    peer.until_heard();
}

/// Both go on.
#[track_caller]
fn assert_goes_on(shell: &mut Shell, seen: &mut [u64; 2]) {
    let (before, end) = (*seen, Instant::now() + PATIENCE);
    while seen[0] <= before[0] || seen[1] <= before[1] {
        assert!(Instant::now() < end, "it does not go on from {before:?}: {seen:?}");
        thread::sleep(Duration::from_millis(500));
        *seen = look(shell);
    }
}

#[test]
fn a_linux_guest_goes_to_and_fro_in_the_middle_of_its_work() {
    let Some(images) = images() else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("shared");
    std::fs::create_dir(&at).unwrap();
    let storage = Storage::default();
    let Some(rig) = Rig::sharing(&[], [&storage, &storage], &at) else { return };
    let made = dir.path().join("disk.img");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/guest/disk");
    assert!(Command::new(script).arg(&made).arg("16M").status().unwrap().success());
    std::fs::copy(&made, rig.seen_by_a().join("disk.img")).unwrap();

    let Rig { site, lab, .. } = &rig;
    let words = words(&images, &at.join("disk.img"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    site.a.home.done(&[&["run", "lin"], &words[..]].concat());
    let mut shell = Shell::booted(&site.a, "lin");
    let peer = Peer::new(lab);
    set_to_work(&mut shell, &peer);
    let mut seen = [0; 2];
    assert_goes_on(&mut shell, &mut seen);
    let moves = std::env::var(MOVES_VARIABLE).map_or(MOVES, |n| n.parse().unwrap());
    let (mut here, mut there) = ((&site.a, "port-a"), (&site.b, "port-b"));
    for number in 1..=moves {
        shell.run(&format!("echo written before {number} > /mnt/word && sync"));
        let first = Reading::take(&mut shell);
        peer.longest_ms();
        let station = Station::at(lab, there.1);
        let report = here.0.moves("lin", there.0);
        assert_eq!(
            (&report["digest_equal"], &report["audit_equal"]),
            (&json!(true), &json!(true)),
            "{report}"
        );
        station.until_announced();
        shell.moved(there.0, "lin");
        peer.until_heard();
        assert_eq!(learned_port(lab).as_deref(), Some(there.1));
        Reading::take(&mut shell).assert_goes_on_since(&first);
        // Not from what it remembers: from the disk, through the other mount.
        let read = shell.run("echo 3 > /proc/sys/vm/drop_caches && cat /mnt/word");
        assert_eq!(read.trim(), format!("written before {number}"));
        assert_goes_on(&mut shell, &mut seen);
        here.0.assert_empty();
        println!(
            "move {number}: {} ms, stood still for {} ms, longest echo {} ms, {} sums, {} copies",
            report["total_ms"],
            report["downtime_ms"],
            peer.longest_ms(),
            seen[0],
            seen[1]
        );
        (here, there) = (there, here);
    }
    println!("{moves} moves, 0 failures, {} pieces over one connection", peer.finish());
    site.a.kill_guests();
    site.b.kill_guests();
}
