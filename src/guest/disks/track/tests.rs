//! Disks and sidecars in real files. Power losses are the engine's tests; here the files are.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime};

use migrate_engine::track::disk::judge::KILL_GRACE;
use migrate_engine::track::disk::{Base, Changed, Whole};

use super::*;

const UNIT: u64 = UNIT_SIZE as u64;
const REGION: u64 = UNIT * REGION_UNITS as u64;

struct Bed {
    _dir: tempfile::TempDir,
    image: PathBuf,
    within: TrackIn,
}

impl Bed {
    /// A sparse image. Its last unit is half a unit.
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let within = TrackIn { dir: dir.path().join("tracking"), boot: 1, boot_began: u64::MAX };
        Self { _dir: dir, image, within }
    }

    fn open(&self) -> DiskTrack {
        DiskTrack::open(&self.within, &self.image, "disk 0", false).unwrap()
    }

    fn sidecar(&self) -> PathBuf {
        self.within.dir.join("disk%200.track")
    }

    fn write(&self, track: &DiskTrack, offset: u64) {
        let file = OpenOptions::new().write(true).open(&self.image).unwrap();
        track.around_write(offset, 512, &mut || file.write_all_at(&[1; 512], offset)).unwrap();
    }

    /// Writes as somebody else does, later than the guest can have written.
    fn edit(&self, offset: u64) {
        std::thread::sleep(Duration::from_nanos(KILL_GRACE * 2));
        let file = OpenOptions::new().write(true).open(&self.image).unwrap();
        file.write_all_at(&[9; 512], offset).unwrap();
    }
}

fn base(track: &DiskTrack) -> Base {
    track.tracker().bump(|| Ok(())).unwrap()
}

/// Units changed since, or why nobody knows.
fn changed(track: &DiskTrack, base: &Base) -> Result<Vec<u64>, Whole> {
    match track.tracker().changed_since(Some(base)) {
        Changed::Units(set) => Ok(set.runs().flat_map(|r| r.range()).collect()),
        Changed::Whole(why) => Err(why),
    }
}

#[test]
fn a_kill_and_an_orderly_end_lose_nothing() {
    let bed = Bed::new(100 * UNIT + 512);
    let track = bed.open();
    bed.write(&track, 3 * UNIT);
    let first = base(&track);
    bed.write(&track, 5 * UNIT - 512);
    bed.write(&track, 100 * UNIT);
    assert_eq!(changed(&track, &first), Ok(vec![4, 100]));
    // As after a kill: nothing is closed.
    drop(track);
    let track = bed.open();
    assert_eq!(changed(&track, &first), Ok(vec![4, 100]));
    let second = base(&track);
    bed.write(&track, 7 * UNIT);
    track.finish();
    drop(track);
    let track = bed.open();
    assert_eq!(changed(&track, &second), Ok(vec![7]));
    assert_eq!(changed(&track, &first), Ok(vec![4, 7, 100]));
    // Renamed, it is still itself.
    track.finish();
    drop(track);
    let moved = bed.image.with_extension("moved");
    fs::rename(&bed.image, &moved).unwrap();
    let track = DiskTrack::open(&bed.within, &moved, "disk 0", false).unwrap();
    assert_eq!(changed(&track, &second), Ok(vec![7]));
}

#[test]
fn whatever_others_did_to_the_image_is_noticed() {
    type Deed = fn(&Bed);
    let deeds: [(Deed, Fresh); 6] = [
        (|bed| bed.edit(50 * UNIT + 512), Fresh::Edited),
        (
            |bed| {
                let file = OpenOptions::new().write(true).open(&bed.image).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(5)).unwrap();
            },
            Fresh::Reverted,
        ),
        (
            |bed| {
                let copy = bed.image.with_extension("copy");
                fs::copy(&bed.image, &copy).unwrap();
                fs::rename(&copy, &bed.image).unwrap();
            },
            Fresh::Replaced,
        ),
        (
            |bed| OpenOptions::new().write(true).open(&bed.image).unwrap().set_len(UNIT).unwrap(),
            Fresh::Shrunk,
        ),
        (|bed| fs::write(bed.sidecar(), vec![7; 1 << 20]).unwrap(), Fresh::Damaged),
        (|bed| fs::remove_file(bed.sidecar()).unwrap(), Fresh::New),
    ];
    for (deed, why) in deeds {
        for orderly in [true, false] {
            let bed = Bed::new(100 * UNIT);
            let track = bed.open();
            bed.write(&track, UNIT);
            let before = base(&track);
            if orderly {
                track.finish();
            }
            drop(track);
            deed(&bed);
            let track = bed.open();
            assert_eq!(changed(&track, &before), Err(Whole::Began(why)), "orderly: {orderly}");
            // And from here on it is exact again.
            let after = base(&track);
            bed.write(&track, 0);
            drop(track);
            assert_eq!(changed(&bed.open(), &after), Ok(vec![0]), "{why:?}");
        }
    }
}

#[test]
fn a_grown_disk_has_its_new_part_changed() {
    let bed = Bed::new(10 * UNIT + 512);
    let track = bed.open();
    bed.write(&track, 2 * UNIT);
    let before = base(&track);
    bed.write(&track, 4 * UNIT);
    track.finish();
    drop(track);
    OpenOptions::new().write(true).open(&bed.image).unwrap().set_len(14 * UNIT).unwrap();
    let track = bed.open();
    assert_eq!(changed(&track, &before), Ok(vec![4, 10, 11, 12, 13]));
    let after = base(&track);
    bed.write(&track, 13 * UNIT);
    drop(track);
    assert_eq!(changed(&bed.open(), &after), Ok(vec![13]));
}

#[test]
fn another_boot_costs_the_hot_regions() {
    let mut bed = Bed::new(4 * REGION);
    let track = bed.open();
    bed.write(&track, REGION);
    bed.write(&track, 3 * REGION);
    assert_eq!(track.tracker().cool().unwrap(), 2);
    bed.write(&track, 3 * REGION + UNIT);
    assert_eq!(track.tracker().cool().unwrap(), 1, "one was left alone");
    let before = base(&track);
    drop(track);
    bed.within.boot = 2;
    let track = bed.open();
    let region = 3 * u64::from(REGION_UNITS);
    let hot: Vec<u64> = (region..region + u64::from(REGION_UNITS)).collect();
    assert_eq!(changed(&track, &before), Ok(hot));
    // Closed, a boot costs nothing.
    let after = base(&track);
    track.finish();
    drop(track);
    bed.within.boot = 3;
    assert_eq!(changed(&bed.open(), &after), Ok(vec![]));
}

#[test]
fn a_guest_that_left_leaves_no_map_behind() {
    let bed = Bed::new(10 * UNIT);
    let track = bed.open();
    let before = base(&track);
    track.leave();
    track.finish();
    drop(track);
    let track = bed.open();
    assert_eq!(changed(&track, &before), Err(Whole::Began(Fresh::Elsewhere)));
    // One that did not go after all writes here again.
    let before = base(&track);
    track.leave();
    bed.write(&track, UNIT);
    track.finish();
    drop(track);
    assert_eq!(changed(&bed.open(), &before), Ok(vec![1]));
    // One that comes brings no map.
    let coming = DiskTrack::open(&bed.within, &bed.image, "disk 0", true).unwrap();
    assert_eq!(changed(&coming, &before), Err(Whole::Began(Fresh::Elsewhere)));
}

#[test]
fn names_stay_in_the_directory() {
    assert_eq!(file_name("../a b"), "%2e%2e%2fa%20b.track");
    assert_eq!(file_name("disk-0"), "disk-0.track");
}

/// What the tracking of a write costs. Any use of it needs an optimised build.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_write() {
    let bed = Bed::new(20 << 30);
    let track = bed.open();
    let writes = 1_000_000u64;
    for (what, spread, bumps) in
        [("one unit", 1, 0), ("20 GiB at random", (20 << 30) / 4096, 0), ("and bumps", 1 << 20, 50)]
    {
        // Warm: every region hot, every page there.
        for offset in (0..20u64 << 30).step_by(1 << 20) {
            track.around_write(offset, 4096, &mut || Ok(())).unwrap();
        }
        let (mut at, start) = (1u64, Instant::now());
        for n in 0..writes {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let offset = (at >> 33) % spread * 4096;
            track.around_write(offset, 4096, &mut || Ok(())).unwrap();
            if bumps > 0 && n % (writes / bumps) == 0 {
                base(&track);
            }
        }
        println!("{what}: {} ns a write", start.elapsed().as_nanos() / u128::from(writes));
    }
    let start = Instant::now();
    let bumps = 100u32;
    (0..bumps).for_each(|_| assert_eq!(base(&track).generation, 1));
    println!("a bump: {:?}", start.elapsed() / bumps);
    let start = Instant::now();
    track.tracker().cool().unwrap();
    track.tracker().cool().unwrap();
    println!("cooling 80 regions: {:?}", start.elapsed());
    let (start, regions) = (Instant::now(), 80u64);
    for region in 0..regions {
        track.around_write(region * REGION, 4096, &mut || Ok(())).unwrap();
    }
    println!("heating a region: {:?}", start.elapsed() / 80);
}
