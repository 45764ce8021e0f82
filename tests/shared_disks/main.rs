//! What a guest wrote on one host is what it reads on the next: two mounts of one storage, each
//! with a page cache of its own, in the order of a change of hands.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

mod storage;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use migrate::config::{Cache, DiskDefinition};
use migrate::guest::disks::{DiskSet, Part};
use migrate_engine::handover::term::{Beside, HostId, Stamp, Term};
use uuid::Uuid;
use vmm::devices::virtio::block::open_disk;

use storage::Storage;

const BLOCK: usize = 4096;
const BLOCKS: usize = 64;
const GUEST: Uuid = Uuid::from_u128(7);

/// Memory that direct I/O takes.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// One host: the guest's handle on the disk, its set, and what this host's cache says.
struct Host {
    disk: File,
    set: DiskSet,
    cached: File,
}

impl Host {
    fn new(dir: &Path, start: bool) -> Self {
        let path = dir.join("disk.img");
        let definition = DiskDefinition {
            path: path.clone(),
            read_only: false,
            shared: true,
            cache: Cache::None,
            serial: "d".into(),
        };
        let disk = open_disk(&path, false, true).unwrap();
        let parts = [Part { definition: &definition, file: &disk }];
        let set =
            if start { DiskSet::start(GUEST, &parts) } else { DiskSet::receive(GUEST, &parts) };
        Self { disk, set: set.unwrap(), cached: File::open(path).unwrap() }
    }

    /// As the guest writes: past the cache.
    fn write(&self, block: usize, value: u8) {
        self.disk.write_all_at(&Aligned([value; BLOCK]).0, (block * BLOCK) as u64).unwrap();
    }

    /// As the guest reads.
    fn read(&self, block: usize) -> u8 {
        let mut page = Aligned([0; BLOCK]);
        self.disk.read_exact_at(&mut page.0, (block * BLOCK) as u64).unwrap();
        assert!(page.0.iter().all(|b| *b == page.0[0]), "a torn block");
        page.0[0]
    }

    /// As something reads that uses the page cache.
    fn read_cached(&self, block: usize) -> u8 {
        let mut page = [0; BLOCK];
        self.cached.read_exact_at(&mut page, (block * BLOCK) as u64).unwrap();
        page[0]
    }
}

fn stamp(term: u64, host: u128) -> Stamp {
    Stamp { term: Term::new(term), host: HostId(host) }
}

#[test]
fn a_guest_reads_on_the_next_host_what_it_wrote_on_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::default();
    let Some(a) = storage.mount(dir.path().join("a")) else { return };
    let Some(b) = storage.mount(dir.path().join("b")) else { return };
    fs::write(a.path().join("disk.img"), vec![0; BLOCK * BLOCKS]).unwrap();

    let source = Host::new(a.path(), true);
    source.set.stamp_owner(stamp(1, 1)).unwrap();
    source.set.drop_next().unwrap();
    source.set.check_movable().unwrap();
    source.set.write_nonces(&[42]).unwrap();
    let target = Host::new(b.path(), false);
    target.set.check_nonces(&[42]).unwrap();
    let mut sides = [source, target];
    // There and back, so that each host has something old in its cache.
    for turn in 1..=4_u8 {
        let [from, to] = &sides;
        let (old, new) = (turn - 1, turn);
        let term = u64::from(turn) + 1;
        // The next host has read the disk before, as a rehearsal or an administrator may.
        let stale: Vec<u8> = (0..BLOCKS).map(|block| to.read_cached(block)).collect();
        for block in 0..BLOCKS {
            assert_eq!(from.read(block), old, "turn {turn}, block {block}");
            from.write(block, new);
        }
        from.set.stamp_offer(Term::new(term)).unwrap();
        to.set.take_next().unwrap();
        assert!(to.set.take_owner().is_err(), "the source still owns it");
        from.set.drop_owner().unwrap();
        to.set.take_owner().unwrap();
        let owner = stamp(term - 1, u128::from(2 - turn % 2));
        let beside = Beside { owner, offered: Term::new(term) };
        assert_eq!(to.set.read_beside().unwrap(), beside, "turn {turn}");
        to.set.stamp_owner(stamp(term, u128::from(1 + turn % 2))).unwrap();
        to.set.drop_next().unwrap();
        for block in 0..BLOCKS {
            assert_eq!(to.read(block), new, "turn {turn}, block {block}");
        }
        // It is direct I/O that makes it so: the cache still has what was there before. Looked at
        // last, on a handle of its own, since it is what would be read without.
        if turn == 1 {
            let cached: Vec<u8> = (0..BLOCKS).map(|block| to.read_cached(block)).collect();
            assert_eq!(cached, stale, "this test could not fail: the caches are coherent");
        }
        sides.swap(0, 1);
    }
}

#[test]
fn starts_on_two_hosts_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::default();
    let Some(a) = storage.mount(dir.path().join("a")) else { return };
    let Some(b) = storage.mount(dir.path().join("b")) else { return };
    fs::write(a.path().join("disk.img"), vec![0; BLOCK * BLOCKS]).unwrap();
    let first = Host::new(a.path(), true);
    let second = Host::new(b.path(), false);
    assert!(second.set.take_owner().is_err() && second.set.take_next().is_err());
    drop(first);
    // FUSE tells its server of a closed file a little later.
    let end = Instant::now() + Duration::from_mins(1);
    while second.set.take_next().and_then(|()| second.set.take_owner()).is_err() {
        assert!(Instant::now() < end, "a closed disk stays locked");
        std::thread::sleep(Duration::from_millis(5));
    }
}
