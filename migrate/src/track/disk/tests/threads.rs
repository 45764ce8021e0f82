//! Many threads at once, and the power fails in the middle: only what is durable for sure is
//! left, the whole image apart.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::super::head::encode;
use super::super::open::{Found, resume};
use super::super::store::{Live, Sidecar};
use super::super::tracker::{Base, Changed, Tracker};
use super::super::{Fresh, Head, Shape};
use super::sim::{Dice, LOOK, Stamps};
use crate::track::disk::judge::Now;

const UNITS: usize = 240;
const SHAPE: Shape = Shape { bytes: (UNITS as u64) << 16, unit_size: 1 << 16, region_units: 8 };

#[derive(Default)]
struct Durable {
    slots: [Vec<u8>; 2],
    stamps: Vec<u32>,
}

struct Store {
    stamps: Stamps,
    live: Live,
    durable: Arc<Mutex<Durable>>,
}

impl Sidecar for Store {
    type Stamps = Stamps;

    fn stamps(&self) -> Stamps {
        self.stamps.clone()
    }

    fn live(&self) -> &Live {
        &self.live
    }

    fn write_head(&self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        thread::yield_now();
        self.durable.lock().unwrap().slots[slot] = bytes.to_vec();
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let now: Vec<u32> = self.stamps.0.iter().map(|s| s.load(Ordering::Relaxed)).collect();
        thread::yield_now();
        let mut durable = self.durable.lock().unwrap();
        // A sync that began earlier may end later; what is durable stays so.
        for (to, from) in durable.stamps.iter_mut().zip(now) {
            *to = (*to).max(from);
        }
        Ok(())
    }

    fn abandon(&self) {}
}

fn open(durable: &Arc<Mutex<Durable>>, boot: u128) -> Tracker<Store> {
    let (found, stamps) = {
        let d = durable.lock().unwrap();
        let stamps = d.stamps.iter().map(|s| AtomicU32::new(*s)).collect();
        (Found::read([&d.slots[0], &d.slots[1]]).unwrap(), Stamps(Arc::new(stamps)))
    };
    let store = Store { stamps, live: Live::default(), durable: durable.clone() };
    let power_loss = !found.head.clean;
    let now = Now { boot, boot_began: 0, shape: SHAPE, look: LOOK };
    resume(store, found, power_loss, &now).unwrap()
}

/// The image: which write was submitted last to each unit, and which has landed.
struct Image {
    submitted: Vec<AtomicU64>,
    landed: Vec<AtomicU64>,
}

/// A consumer's base and what it read.
type Saved = (Base, Vec<u64>);

/// Writer `n` of four has units of its own: of two writes to one unit nobody could say which
/// landed last. Their regions are everybody's.
fn write(tracker: &Tracker<Store>, image: &Image, n: usize, mut dice: Dice, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let unit = dice.below(UNITS / 4) * 4 + n;
        let run = tracker.layout().run(unit as u64, 1).unwrap();
        let write = tracker.begin(run, 1);
        let version = dice.next() | 1;
        image.submitted[unit].store(version, Ordering::SeqCst);
        if dice.percent(20) {
            thread::yield_now();
        }
        image.landed[unit].store(version, Ordering::SeqCst);
        tracker.settle(write, 2);
        if dice.percent(3) {
            thread::yield_now();
        }
    }
}

fn back_up(tracker: &Tracker<Store>, image: &Image, saved: &Mutex<Option<Saved>>) {
    let closing = tracker.close().unwrap();
    let last = saved.lock().unwrap().clone();
    let mut copy = last.as_ref().map_or_else(|| vec![0; UNITS], |(_, copy)| copy.clone());
    let wanted: Vec<usize> = match tracker.changed_since(last.as_ref().map(|(base, _)| base)) {
        Changed::Units(set) => {
            set.runs().flat_map(|r| r.range()).map(|u| usize::try_from(u).unwrap()).collect()
        }
        Changed::Whole(_) => (0..UNITS).collect(),
    };
    for unit in wanted {
        copy[unit] = image.landed[unit].load(Ordering::SeqCst);
    }
    let base = tracker.settled(closing, || Ok(())).unwrap();
    *saved.lock().unwrap() = Some((base, copy));
}

/// What was durable at one moment, and what the image may have held then.
struct Cut {
    durable: Durable,
    image: Vec<u64>,
    saved: Option<Saved>,
}

fn life(seed: u64) -> Cut {
    let head = Head::first(1, 1, Fresh::New, SHAPE, LOOK);
    let slots = [encode(&head), Vec::new()];
    let durable = Arc::new(Mutex::new(Durable { slots, stamps: vec![0; UNITS] }));
    let tracker = open(&durable, 1);
    let none = || (0..UNITS).map(|_| AtomicU64::new(0)).collect();
    let image = Image { submitted: none(), landed: none() };
    let (stop, saved) = (AtomicBool::new(false), Mutex::new(None));
    let (tracker, image, stop, saved) = (&tracker, &image, &stop, &saved);
    thread::scope(|scope| {
        for n in 0..4 {
            let dice = Dice(seed * 8 + n as u64);
            scope.spawn(move || write(tracker, image, n, dice, stop));
        }
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                tracker.cool().unwrap();
                thread::yield_now();
            }
        });
        let mut dice = Dice(seed);
        for _ in 0..=dice.below(6) {
            back_up(tracker, image, saved);
        }
        for _ in 0..dice.below(200) {
            thread::yield_now();
        }
        // The image first: what was submitted before this was announced before it. The base is
        // of before, as well, and nothing takes a new one.
        let content = image.submitted.iter().map(|v| v.load(Ordering::SeqCst)).collect();
        let left = {
            let d = durable.lock().unwrap();
            Durable { slots: d.slots.clone(), stamps: d.stamps.clone() }
        };
        stop.store(true, Ordering::Relaxed);
        Cut { durable: left, image: content, saved: saved.lock().unwrap().clone() }
    })
}

#[test]
fn threads_and_a_power_loss_leave_nothing_out() {
    for seed in 0..60 {
        let cut = life(seed);
        let Some((base, copy)) = cut.saved else { continue };
        let tracker = open(&Arc::new(Mutex::new(cut.durable)), 2);
        let Changed::Units(set) = tracker.changed_since(Some(&base)) else {
            panic!("seed {seed}: a base was lost");
        };
        for unit in 0..UNITS {
            let reported = set.contains(tracker.layout().unit(unit as u64).unwrap());
            assert!(reported || cut.image[unit] == copy[unit], "seed {seed}, unit {unit}");
        }
    }
}

#[test]
fn a_bump_waits_for_what_is_in_flight() {
    let head = Head::first(1, 1, Fresh::New, SHAPE, LOOK);
    let slots = [encode(&head), Vec::new()];
    let durable = Arc::new(Mutex::new(Durable { slots, stamps: vec![0; UNITS] }));
    let tracker = open(&durable, 1);
    let run = tracker.layout().run(3, 1).unwrap();
    let write = tracker.begin(run, 1);
    let landed = AtomicBool::new(false);
    let closing = tracker.close().unwrap();
    assert!(!tracker.is_settled(closing));
    // Writes of the next epoch are not waited for.
    let later = tracker.begin(run, 2);
    thread::scope(|scope| {
        let (tracker, landed) = (&tracker, &landed);
        scope.spawn(move || {
            thread::yield_now();
            landed.store(true, Ordering::SeqCst);
            tracker.settle(write, 3);
        });
        let base = tracker.settled(closing, || Ok(())).unwrap();
        assert!(landed.load(Ordering::SeqCst));
        let Changed::Units(set) = tracker.changed_since(Some(&base)) else { panic!() };
        assert_eq!(set.len(), 1, "it landed after the epoch was closed");
    });
    tracker.settle(later, 4);
}
