use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use proptest::prelude::*;

use super::*;

fn layout(units: u64) -> Layout {
    Layout::new(4096, units).unwrap()
}

fn units(set: &UnitSet) -> Vec<u64> {
    set.runs().flat_map(|r| r.range()).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Stamp(u64, u64),
    Bump,
    Reopen,
}

fn step(units: u64) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..units, 1..20u64).prop_map(|(f, c)| Step::Stamp(f, c)),
        1 => (0..units, 1..units).prop_map(|(f, c)| Step::Stamp(f, c)),
        3 => Just(Step::Bump),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn answers_like_a_list_of_stamps(
        // 512 × 512 and more units have three levels.
        count in prop_oneof![1..1200u64, Just(512), Just(513), 262_144..263_000u64],
        seed in prop::collection::vec(step(1 << 18), 1..30),
    ) {
        let layout = layout(count);
        let mut map = EpochMap::in_memory(layout);
        let mut model = vec![0u32; usize::try_from(count).unwrap()];
        let mut now = 1;
        for step in seed {
            match step {
                Step::Stamp(first, n) => {
                    let Ok(run) = layout.run(first % count, n) else { continue };
                    map.stamp(run);
                    run.iter().for_each(|u| model[usize::try_from(u.get()).unwrap()] = now);
                }
                Step::Bump => {
                    prop_assert_eq!(map.bump(), Ok(Epoch(now)));
                    now += 1;
                }
                Step::Reopen => map = EpochMap::open(map.stamps, layout, now).unwrap(),
            }
        }
        for base in [0, 1, now / 2, now.saturating_sub(2), now - 1, now, u32::MAX] {
            let changed: Vec<u64> =
                (0..).zip(&model).filter(|(_, s)| **s > base).map(|(u, _)| u).collect();
            prop_assert_eq!(map.is_unchanged_since(Epoch(base)), changed.is_empty());
            prop_assert_eq!(units(&map.changed_since(Epoch(base))), changed);
        }
    }
}

#[test]
fn lent_stamps_must_fit() {
    let stamps: Vec<AtomicU32> = [0, 3, 7].map(AtomicU32::new).into();
    let wrong = EpochMap::open(&stamps, layout(4), 9).unwrap_err();
    assert_eq!(wrong, EpochError::Size { stamps: 3, units: 4 });
    let wrong = EpochMap::open(&stamps, layout(3), 6).unwrap_err();
    assert_eq!(wrong, EpochError::Future { unit: 2, stamp: 7, current: 6 });
    let map = EpochMap::open(&stamps, layout(3), 7).unwrap();
    assert_eq!(units(&map.changed_since(Epoch(2))), [1, 2]);
    map.stamp(layout(3).run(0, 1).unwrap());
    assert_eq!(stamps[0].load(Ordering::Relaxed), 7);
}

#[test]
fn epochs_end_without_wrapping() {
    let map = EpochMap::open(vec![AtomicU32::new(0)], layout(1), u32::MAX - 1).unwrap();
    let last = map.bump().unwrap();
    assert_eq!(map.bump(), Err(EpochError::UsedUp));
    // Still tracked, and still seen by the consumer of the last epoch that was closed.
    map.stamp(layout(1).whole());
    assert_eq!(map.changed_since(last).len(), 1);
}

#[test]
fn a_write_that_lands_in_a_later_epoch_is_seen_there() {
    let map = EpochMap::in_memory(layout(100));
    let write = map.begin_write(layout(100).run(7, 2).unwrap());
    let closed = map.bump().unwrap();
    assert_eq!(units(&map.changed_since(Epoch::BEFORE_ALL)), [7, 8]);
    assert!(map.changed_since(closed).is_empty(), "it has not landed");
    map.settle(write);
    assert_eq!(units(&map.changed_since(closed)), [7, 8]);
}

/// The content of the units, and the map, used by writers and consumers at once.
struct World {
    map: EpochMap<Box<[AtomicU32]>>,
    content: Vec<AtomicU64>,
    stop: AtomicBool,
}

impl World {
    /// Writes to random runs, half of them stamped before and settled after, half of them written
    /// first and stamped then. Gives way in between, so that epochs close at every point.
    fn write(&self, mut random: u64, writes: u32) {
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..writes {
            // Long runs take a while to stamp, short ones are not written again by chance.
            let longest = if next(8) == 0 { 2000 } else { 3 };
            let (first, count) = (next(self.content.len() as u64), 1 + next(longest));
            let Ok(run) = self.map.layout().run(first, count) else { continue };
            let write = (next(2) == 0).then(|| self.map.begin_write(run));
            thread::yield_now();
            for unit in run.iter() {
                self.content[usize::try_from(unit.get()).unwrap()].fetch_add(1, Ordering::Relaxed);
            }
            thread::yield_now();
            match write {
                Some(write) => drop(self.map.settle(write)),
                None => self.map.stamp(run),
            }
        }
    }

    /// Copies what changed, round by round, and once more when all writers have ended.
    fn copy(&self) -> Vec<u64> {
        let mut copy = vec![0; self.content.len()];
        let mut base = Epoch::BEFORE_ALL;
        loop {
            let last = self.stop.load(Ordering::Acquire);
            let closed = self.map.bump().unwrap();
            for unit in self.map.changed_since(base).runs().flat_map(|r| r.range()) {
                let unit = usize::try_from(unit).unwrap();
                copy[unit] = self.content[unit].load(Ordering::Relaxed);
            }
            base = closed;
            if last {
                return copy;
            }
            thread::yield_now();
        }
    }
}

/// The copies of two consumers beside four writers, and the content in the end.
fn race(seed: u64) -> ([Vec<u64>; 2], Vec<u64>) {
    // More than one node, so that branches are skipped.
    let count = 3000 + seed * 37;
    let world = World {
        map: EpochMap::in_memory(layout(count)),
        content: (0..count).map(|_| AtomicU64::new(0)).collect(),
        stop: AtomicBool::new(false),
    };
    let world = &world;
    let copies = thread::scope(|scope| {
        let consumers = [(); 2].map(|()| scope.spawn(|| world.copy()));
        let writer = |n| scope.spawn(move || world.write(seed * 4 + n, 100));
        for writer in (0..4).map(writer).collect::<Vec<_>>() {
            writer.join().unwrap();
        }
        world.stop.store(true, Ordering::Release);
        consumers.map(|c| c.join().unwrap())
    });
    (copies, world.content.iter().map(|c| c.load(Ordering::Relaxed)).collect())
}

#[test]
fn consumers_beside_many_writers_miss_nothing() {
    for seed in 0..60 {
        let (copies, truth) = race(seed);
        for copy in copies {
            let missed = copy.iter().zip(&truth).filter(|(c, t)| c != t).count();
            assert_eq!(missed, 0, "units missed with seed {seed}");
        }
    }
}
