//! Several disks at once, two hosts as two sets over the same files.

use std::fs;
use std::path::Path;

use migrate_engine::handover::term::HostId;
use proptest::prelude::*;
use vmm::devices::virtio::block::open_disk;

use super::*;
use crate::config::Cache;

fn definition(path: &Path, shared: bool) -> DiskDefinition {
    DiskDefinition {
        path: path.to_owned(),
        read_only: false,
        shared,
        cache: Cache::Writeback,
        serial: "d".into(),
    }
}

/// Some images, and what their user says of them.
struct Bed {
    _dir: tempfile::TempDir,
    definitions: Vec<DiskDefinition>,
    guest: Uuid,
}

type Make = fn(Uuid, &[Part<'_>]) -> Result<DiskSet, DiskSetError>;

impl Bed {
    fn new(disks: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = |n| {
            let path = dir.path().join(format!("{n}.img"));
            fs::write(&path, vec![0; 8192]).unwrap();
            definition(&path, true)
        };
        let definitions = (0..disks).map(image).collect();
        Self { _dir: dir, definitions, guest: Uuid::from_u128(7) }
    }

    fn set(&self, make: Make) -> Result<DiskSet, DiskSetError> {
        let open = |d: &DiskDefinition| open_disk(&d.path, d.read_only, false).unwrap();
        let files: Vec<File> = self.definitions.iter().map(open).collect();
        let parts = self.definitions.iter().zip(&files);
        let parts: Vec<_> = parts.map(|(definition, file)| Part { definition, file }).collect();
        make(self.guest, &parts)
    }

    fn start(&self) -> Result<DiskSet, DiskSetError> {
        self.set(DiskSet::start)
    }

    fn receive(&self) -> DiskSet {
        self.set(DiskSet::receive).unwrap()
    }
}

fn stamp(term: u64, host: u128) -> Stamp {
    Stamp { term: Term::new(term), host: HostId(host) }
}

#[track_caller]
fn locked<T: std::fmt::Debug>(result: Result<T, DiskSetError>) {
    let failure = result.unwrap_err().failure().0;
    assert_eq!(failure.code, ErrorCode::DiskLocked);
}

#[test]
fn a_whole_hand_over() {
    let bed = Bed::new(3);
    let source = bed.start().unwrap();
    assert_eq!(source.read_for_start().unwrap(), Beside::NOTHING);
    source.stamp_owner(stamp(1, 1)).unwrap();
    source.drop_next().unwrap();
    source.write_nonces(&[5, 6, 7]).unwrap();

    let target = bed.receive();
    target.check_nonces(&[5, 6, 7]).unwrap();
    source.stamp_offer(Term::new(2)).unwrap();
    target.take_next().unwrap();
    let beside = target.read_beside().unwrap();
    assert_eq!(beside, Beside { owner: stamp(1, 1), offered: Term::new(2) });
    locked(target.take_owner().map_err(Into::into));
    locked(bed.start());

    source.drop_owner().unwrap();
    locked(bed.start());
    target.take_owner().unwrap();
    target.stamp_owner(stamp(2, 2)).unwrap();
    target.drop_next().unwrap();
    locked(bed.start());
    drop(source);
    locked(bed.start());
    drop(target);

    // Another guest may use the disks, with terms of its own.
    let stranger = Bed { guest: Uuid::from_u128(8), ..Bed::new(0) };
    let stranger = Bed { definitions: bed.definitions.clone(), ..stranger };
    let beside = stranger.start().unwrap().read_for_start().unwrap();
    assert_eq!(beside, Beside { offered: Term::new(2), ..Beside::NOTHING });
    assert!(stranger.receive().read_beside().unwrap().supersedes(stamp(2, 3)));

    // Somebody who comes late sees it, and cannot write over it.
    let late = bed.start().unwrap();
    let beside = late.read_beside().unwrap();
    assert!(beside.supersedes(stamp(1, 1)) && beside.owner == stamp(2, 2));
    let stale = DiskSetError::from(late.stamp_owner(stamp(2, 1)).unwrap_err());
    assert_eq!(stale.failure().0.code, ErrorCode::Superseded);
    // Stamps leave the nonce alone.
    late.check_nonces(&[5, 6, 7]).unwrap();
}

#[test]
fn locks_are_taken_on_all_or_none() {
    let bed = Bed::new(3);
    drop(bed.start().unwrap());
    let last = open_disk(&bed.definitions[2].path, false, false).unwrap();
    let last = DiskLock::new(&last, &bed.definitions[2].path, false).unwrap();
    let set = bed.receive();
    for next in [false, true] {
        if next { last.take_next() } else { last.take_owner() }.unwrap();
        locked(bed.start());
        let refused = if next { set.take_next() } else { set.take_owner() };
        assert!(refused.unwrap_err().to_string().contains("2.img"));
        if next { last.drop_next() } else { last.drop_owner() }.unwrap();
        // Nothing of the tries is left: neither here nor in the start that failed.
        drop(bed.start().unwrap());
    }
}

#[test]
fn other_storage_is_seen() {
    let (bed, other) = (Bed::new(2), Bed::new(2));
    let source = bed.start().unwrap();
    drop(other.start().unwrap());
    source.stamp_owner(stamp(1, 1)).unwrap();
    source.write_nonces(&[8, 9]).unwrap();
    bed.receive().check_nonces(&[8, 9]).unwrap();
    let refused = |set: DiskSet, nonces: &[u128]| set.check_nonces(nonces).unwrap_err().failure().0;
    assert!(refused(other.receive(), &[8, 9]).message.contains("0.img"));
    assert!(refused(bed.receive(), &[9, 8]).message.contains("not the same image"), "swapped");
    assert!(refused(bed.receive(), &[8]).message.contains("2 shared disks and 1"));
    assert!(refused(other.receive(), &[0, 0]).message.contains("0.img"), "no nonce at all");
    // No record at all.
    fs::remove_file(other.definitions[1].path.with_extension("img.migrate")).unwrap();
    let missing = other.set(DiskSet::receive).unwrap_err().failure().0;
    assert!(missing.message.contains("1.img.migrate") && missing.remedy.contains("same storage"));
}

#[test]
fn records_stand_only_beside_writable_shared_disks() {
    let mut bed = Bed::new(3);
    bed.definitions[1].shared = false;
    bed.definitions[2].read_only = true;
    let set = bed.start().unwrap();
    assert_eq!(set.shared(), 1);
    let record = |n: usize| bed.definitions[n].path.with_extension("img.migrate").exists();
    assert_eq!([record(0), record(1), record(2)], [true, false, false]);
    // Read-only disks: many starts, compared by content.
    let look = || [fingerprint::take_at(&bed.definitions[2].path).unwrap()];
    let prints = look();
    set.check_read_only(&prints, &prints).unwrap();
    fs::write(&bed.definitions[2].path, vec![1; 8192]).unwrap();
    let there = look();
    let error = set.check_read_only(&prints, &there).unwrap_err();
    assert!(error.to_string().contains("2.img"), "{error}");
    assert!(set.check_read_only(&prints, &[]).is_err());
}

#[test]
fn a_guest_without_shared_disks_has_nothing_beside_it_and_does_not_move() {
    let mut bed = Bed::new(1);
    bed.definitions[0].shared = false;
    let set = bed.start().unwrap();
    assert_eq!(set.read_beside().unwrap(), Beside::NOTHING);
    set.stamp_owner(stamp(1, 1)).unwrap();
    set.stamp_offer(Term::new(2)).unwrap();
    let failure = set.check_movable().unwrap_err().0;
    assert!(failure.message.contains("on this host only"));
    assert!(Bed::new(0).start().unwrap().check_movable().is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Two hosts do anything in any order; never do both own a disk, and the stamps only grow.
    #[test]
    fn never_two_owners(steps in proptest::collection::vec((0..2usize, 0..6u8), 1..40)) {
        let bed = Bed::new(2);
        drop(bed.start().unwrap());
        let sets = [bed.receive(), bed.receive()];
        let mut owns = [false; 2];
        let mut term = 0;
        for (host, step) in steps {
            let set = &sets[host];
            match step {
                0 => owns[host] = set.take_owner().is_ok(),
                1 => { set.drop_owner().unwrap(); owns[host] = false; }
                2 => { let _ = set.take_next(); }
                3 => set.drop_next().unwrap(),
                4 if owns[host] && term > 0 => set.stamp_offer(Term::new(term + 1)).unwrap(),
                5 if owns[host] => {
                    term += 1;
                    set.stamp_owner(stamp(term, host as u128)).unwrap();
                }
                _ => {}
            }
            prop_assert!(owns != [true, true]);
            prop_assert_eq!(sets[1 - host].read_beside().unwrap().owner.term, Term::new(term));
        }
    }
}
