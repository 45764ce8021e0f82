//! The dirty log against a guest that writes down every page it rewrites.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Shape, boot, kvm, resume};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vm_memory::{Bytes, GuestAddress};
use vmm::config::DirtyTracking;
use vmm::memory::GuestRam;
use vmm::memory::dirty::DirtyLog;
use vmm::scribbler::layout::{CONTROL, CONTROL_LEN, Control};

/// Random cases; each boots a guest.
const CASES: u32 = 12;

#[derive(Clone, Debug)]
struct Case {
    tracking: DirtyTracking,
    cpus: u32,
    pattern: &'static str,
    /// Pages per second.
    rate: u32,
    /// While the guest runs: wait so many milliseconds, then harvest in steps of so many words.
    harvests: Vec<(u64, u64)>,
}

fn case() -> impl Strategy<Value = Case> {
    let tracking = prop_oneof![
        Just(DirtyTracking::Log),
        Just(DirtyTracking::Ring),
        Just(DirtyTracking::PlainLog)
    ];
    let pattern = prop_oneof![Just("seq"), Just("random"), Just("hot")];
    let harvests = prop::collection::vec((0u64..15, 1u64..300), 0..6);
    (tracking, 1u32..4, pattern, 50u32..60_000, harvests).prop_map(
        |(tracking, cpus, pattern, rate, harvests)| Case {
            tracking,
            cpus,
            pattern,
            rate,
            harvests,
        },
    )
}

fn control(ram: &GuestRam) -> Control {
    let mut bytes = vec![0; CONTROL_LEN];
    ram.mem().read_slice(&mut bytes, GuestAddress(CONTROL)).unwrap();
    Control::parse(&bytes).unwrap()
}

/// What the guest says it rewrote between two instants at which it stood still.
fn written(ram: &GuestRam, from: &Control, to: &Control) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for (before, after) in from.cpus.iter().zip(&to.cpus) {
        let entries = after.log_entries(before.log_count, after.log_count).expect("ring overrun");
        pages.extend(entries.map(|a| ram.mem().read_obj::<u64>(GuestAddress(a)).unwrap()));
    }
    pages
}

fn harvest(log: &mut DirtyLog, step: u64, into: &mut BTreeSet<u64>) {
    log.sync().unwrap();
    let step = step * 64;
    for start in (0..log.pages()).step_by(usize::try_from(step).unwrap()) {
        log.harvest(start..start + step, |first, word| {
            into.extend((0..64).filter(|b| word & (1 << b) != 0).map(|b| first + b));
        })
        .unwrap();
    }
}

fn check(kvm: &vmm::kvm::Kvm, case: &Case) -> Result<(), TestCaseError> {
    let shape = Shape { tracking: case.tracking, ..Shape::new(32, case.cpus) };
    let spec = format!("ws=12M,log=1,rate={},pattern={}", case.rate, case.pattern);
    let (paused, mut host) = boot(kvm, shape, &spec, vec![]);
    let running = resume(paused);
    host.wait("SCRIBBLER-READY");
    let paused = running.pause();
    let mut log = paused.dirty_log().unwrap();
    harvest(&mut log, 300, &mut BTreeSet::new());
    let before = control(paused.ram());
    let running = resume(paused);

    let mut reported = BTreeSet::new();
    for (wait, step) in &case.harvests {
        std::thread::sleep(Duration::from_millis(*wait));
        harvest(&mut log, *step, &mut reported);
    }
    std::thread::sleep(Duration::from_millis(5));
    let paused = running.pause();
    harvest(&mut log, 7, &mut reported);
    let after = control(paused.ram());

    let written = written(paused.ram(), &before, &after);
    let missed: Vec<_> = written.difference(&reported).collect();
    prop_assert!(missed.is_empty(), "written and not reported: {missed:?}");
    // Below 4 GiB pages of the RAM file and of the guest have the same numbers.
    let working_set: BTreeSet<_> = after.expected().into_iter().map(|(page, _)| page).collect();
    let mut allowed = written;
    allowed.extend(before.in_progress().into_iter().chain(after.in_progress()));
    let extra: Vec<_> =
        reported.intersection(&working_set).filter(|p| !allowed.contains(p)).collect();
    prop_assert!(extra.is_empty(), "reported and not written: {extra:?}");
    Ok(())
}

#[test]
fn reports_exactly_what_the_guest_wrote() {
    let Some(kvm) = kvm() else { return };
    // A failure prints its case; the seed is kept beside this file by proptest.
    let mut runner =
        TestRunner::new(Config { cases: CASES, max_shrink_iters: 8, ..Config::default() });
    runner.run(&case(), |case| check(&kvm, &case)).unwrap();
}

#[test]
fn our_own_writes_are_reported_too() {
    let Some(kvm) = kvm() else { return };
    for tracking in [DirtyTracking::Log, DirtyTracking::Ring, DirtyTracking::PlainLog] {
        let shape = Shape { tracking, ..Shape::new(16, 1) };
        let (paused, _host) = boot(&kvm, shape, "ws=4M,rate=0", vec![]);
        let mut log = paused.dirty_log().unwrap();
        harvest(&mut log, 300, &mut BTreeSet::new());
        let mem = paused.ram().mem();
        mem.write_slice(&[1; 4097], GuestAddress(0x20_0FFF)).unwrap();
        let mut reported = BTreeSet::new();
        harvest(&mut log, 3, &mut reported);
        assert_eq!(reported.into_iter().collect::<Vec<_>>(), [0x200, 0x201], "{tracking:?}");
    }
}
