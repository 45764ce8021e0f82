//! A host in memory that can lose its power: image, map and record, each with what is durable and
//! what may be. At every event of the run it tries what a power loss would leave there, and asks
//! a tracker that continues from it.
//!
//! Legal is: of each sector of the map, what it held at any time since the last sync began; of
//! each sector of a slot that is being written, the old bytes or the new; of each unit of the
//! image, what was flushed, any write submitted since, or a mixture.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::head::{Look, SLOTS, Shape, encode};
use super::super::judge::{Now, Verdict, judge};
use super::super::open::{Found, resume};
use super::super::store::{Live, Sidecar};
use super::super::tracker::{Base, Changed, Tracker};
use super::super::{Fresh, Head};
use super::mutants::Mutant;
use crate::unit::UnitIndex;

pub const UNITS: usize = 46;
pub const REGION: usize = REGION_UNITS as usize;
const REGION_UNITS: u32 = 4;
/// Stamps in a sector of the map, bytes in a sector of a slot: small, so that much can tear.
const MAP_SECTOR: usize = 2;
const HEAD_SECTOR: usize = 32;
/// Turns of cooling after which a region that was left alone is cold.
const COLD_AFTER: u64 = 2;

pub const LOOK: Look = Look { file: None, samples: 0 };
pub const SHAPE: Shape =
    Shape { bytes: (UNITS as u64) << 16, unit_size: 1 << 16, region_units: REGION_UNITS };

/// Numbers that depend on the seed alone.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

#[derive(Clone, Debug)]
pub struct Stamps(pub Arc<Vec<AtomicU32>>);

impl AsRef<[AtomicU32]> for Stamps {
    fn as_ref(&self) -> &[AtomicU32] {
        &self.0
    }
}

/// A consumer: the base it recorded, and what it has of each unit.
#[derive(Clone, Debug)]
pub struct Consumer {
    pub base: Option<Base>,
    pub saved: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    durable: Vec<u8>,
    writing: Option<Vec<u8>>,
}

/// What a crash left.
#[derive(Clone, Debug)]
pub struct Remains {
    pub stamps: Vec<u32>,
    pub written: u64,
    pub slots: [Vec<u8>; SLOTS],
    pub image: Vec<u32>,
}

pub struct World {
    pub dice: Dice,
    pub mutant: Option<Mutant>,
    stamps: Stamps,
    live: Arc<Live>,
    /// Stamps as last looked at, as durable, and each change since.
    seen: Vec<u32>,
    map: Vec<u32>,
    changes: Vec<(usize, u32)>,
    slots: [Slot; SLOTS],
    /// Content of the image as everybody reads it, and as it is durable.
    pub visible: Vec<u32>,
    flushed: Vec<u32>,
    /// What may have reached the disk since, by unit; landed or not.
    maybe: Vec<Vec<(u32, bool)>>,
    next_torn: u32,
    pub consumers: Vec<Consumer>,
    /// The stamps that announced writes must have left.
    pub announced: Vec<u32>,
    /// Turns of cooling that ended, those that began, and how many had begun when a region was
    /// last written to.
    pub turns: u64,
    pub turns_begun: u64,
    pub touched: Vec<u64>,
    pub boot: u128,
    /// Cuts that were tried; `None` while the outcome of one is.
    pub cuts: Option<u64>,
    pub violation: Option<String>,
    /// Something to do while storage is waited for.
    pub meanwhile: Option<Rc<dyn Fn(During)>>,
    /// A sync that a mutant puts off.
    put_off: bool,
}

/// What the tracker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    Record,
    Sync,
}

pub type Shared = Rc<RefCell<World>>;

#[derive(Clone)]
pub struct Store {
    pub world: Shared,
    stamps: Stamps,
    live: Arc<Live>,
}

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let head = Head::first(1, 1, Fresh::New, SHAPE, LOOK);
        let remains = Remains {
            stamps: vec![0; UNITS],
            written: 0,
            slots: [encode(&head), vec![0; 4096]],
            image: vec![0; UNITS],
        };
        Self::after(&remains, Dice(seed), mutant, Vec::new(), Some(0))
    }

    pub fn after(
        remains: &Remains,
        dice: Dice,
        mutant: Option<Mutant>,
        consumers: Vec<Consumer>,
        cuts: Option<u64>,
    ) -> Self {
        let live = Live::default();
        live.set_written(remains.written);
        let stamps = remains.stamps.iter().map(|s| AtomicU32::new(*s)).collect();
        Self {
            dice,
            mutant,
            stamps: Stamps(Arc::new(stamps)),
            live: Arc::new(live),
            seen: remains.stamps.clone(),
            map: remains.stamps.clone(),
            changes: Vec::new(),
            slots: remains.slots.clone().map(|durable| Slot { durable, writing: None }),
            visible: remains.image.clone(),
            flushed: remains.image.clone(),
            maybe: vec![Vec::new(); UNITS],
            next_torn: 1 << 31,
            consumers,
            announced: remains.stamps.clone(),
            turns: COLD_AFTER,
            turns_begun: COLD_AFTER,
            touched: vec![0; UNITS.div_ceil(REGION)],
            boot: 1,
            cuts,
            violation: None,
            meanwhile: None,
            put_off: false,
        }
    }

    /// This life's host goes on: what was not durable in `before` is not durable now.
    pub fn keep_undurable(&mut self, before: &Self) {
        self.map.clone_from(&before.map);
        self.changes.clone_from(&before.changes);
        self.seen.clone_from(&before.seen);
        self.look();
        self.slots.clone_from(&before.slots);
        self.flushed.clone_from(&before.flushed);
        self.maybe.clone_from(&before.maybe);
        self.put_off = before.put_off;
        // A write that never landed is over with its process.
        for maybe in &mut self.maybe {
            maybe.retain(|(_, landed)| *landed);
        }
    }

    pub fn stamps_now(&self) -> Vec<u32> {
        self.stamps.0.iter().map(|s| s.load(Ordering::Relaxed)).collect()
    }

    /// Notes what changed in the map since the last look.
    fn look(&mut self) {
        for (unit, stamp) in self.stamps_now().into_iter().enumerate() {
            if stamp != self.seen[unit] {
                self.changes.push((unit, stamp));
                self.seen[unit] = stamp;
            }
        }
    }

    pub fn submit(&mut self, units: std::ops::Range<usize>, version: u32) {
        for unit in units {
            self.maybe[unit].push((version, false));
        }
    }

    pub fn land(&mut self, units: std::ops::Range<usize>, version: u32) {
        for unit in units {
            self.visible[unit] = version;
            let write = self.maybe[unit].iter_mut().find(|(v, _)| *v == version);
            if let Some((_, landed)) = write {
                *landed = true;
            }
        }
    }

    pub fn flush(&mut self) {
        for unit in 0..UNITS {
            let landed = self.maybe[unit].iter().any(|(_, landed)| *landed);
            if landed {
                self.flushed[unit] = self.visible[unit];
            }
            self.maybe[unit].retain(|(_, landed)| !landed);
        }
    }

    /// What is there after the process was killed now.
    pub fn killed(&self) -> Remains {
        let slot = |s: &Slot| s.writing.clone().unwrap_or_else(|| s.durable.clone());
        Remains {
            stamps: self.stamps_now(),
            written: self.live.written(),
            slots: [slot(&self.slots[0]), slot(&self.slots[1])],
            image: self.visible.clone(),
        }
    }

    /// What may be there after the power was lost now.
    pub fn lost_power(&mut self) -> Remains {
        self.look();
        // Often all or nothing of one kind: the extremes find most.
        let chance = |dice: &mut Dice| [0, 50, 100][dice.below(3)];
        let (map, head, image) =
            (chance(&mut self.dice), chance(&mut self.dice), chance(&mut self.dice));
        let mut stamps = self.map.clone();
        for sector in 0..UNITS.div_ceil(MAP_SECTOR) {
            let of = |(unit, _): &&(usize, u32)| unit / MAP_SECTOR == sector;
            let mine: Vec<_> = self.changes.iter().filter(of).collect();
            let upto = match map {
                50 => self.dice.below(mine.len() + 1),
                all => mine.len() * all / 100,
            };
            mine.iter().take(upto).for_each(|(unit, stamp)| stamps[*unit] = *stamp);
        }
        let slots = self.slots.clone().map(|slot| {
            let mut bytes = slot.durable;
            if let Some(new) = slot.writing {
                bytes.resize(new.len(), 0);
                for (to, from) in bytes.chunks_mut(HEAD_SECTOR).zip(new.chunks(HEAD_SECTOR)) {
                    if self.dice.percent(head) {
                        to.copy_from_slice(from);
                    }
                }
            }
            bytes
        });
        let mut content = self.flushed.clone();
        for unit in 0..UNITS {
            let maybe = &self.maybe[unit];
            if maybe.is_empty() || !self.dice.percent(image) {
                continue;
            }
            let pick = self.dice.below(maybe.len() + 1);
            content[unit] = maybe.get(pick).map_or_else(
                || {
                    self.next_torn += 1;
                    self.next_torn
                },
                |(version, _)| *version,
            );
        }
        let written = if self.dice.percent(50) { self.live.written() } else { 0 };
        Remains { stamps, written, slots, image: content }
    }

    fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Whether a region may still be hot.
    fn may_be_hot(&self, unit: usize) -> bool {
        self.turns < self.touched[unit / REGION] + COLD_AFTER
    }

    /// Compares what a tracker says with what is. After a kill it must be exact.
    pub fn compare(&mut self, tracker: &Tracker<Store>, image: &[u32], exact: bool) {
        for consumer in self.consumers.clone() {
            let Some(base) = consumer.base else { continue };
            let Changed::Units(set) = tracker.changed_since(Some(&base)) else {
                self.fail("a base was lost".into());
                continue;
            };
            for unit in 0..UNITS {
                let index = tracker.layout().unit(unit as u64).unwrap();
                let reported = set.contains(index);
                if !reported && image[unit] != consumer.saved[unit] {
                    self.fail(format!("unit {unit} changed since {base:?}: not reported"));
                }
                let may = self.announced[unit] > base.epoch.get();
                if reported && !may && (exact || !self.may_be_hot(unit)) {
                    self.fail(format!("unit {unit} did not change since {base:?}: reported"));
                }
            }
        }
    }
}

pub fn now(boot: u128) -> Now {
    Now { boot, boot_began: u64::MAX, shape: SHAPE, look: LOOK }
}

/// Continues on what a crash left.
pub fn reopen(world: &Shared, mutant: Option<Mutant>) -> Result<Tracker<Store>, String> {
    let (found, boot, live, stamps) = {
        let w = world.borrow();
        let slots = [&w.slots[0].durable[..], &w.slots[1].durable[..]];
        let found = Found::read(slots).map_err(|e| e.to_string())?;
        (found, w.boot, w.live.clone(), w.stamps.clone())
    };
    let verdict = judge(&found.head, live.written(), live.void(), &now(boot));
    let power_loss = match verdict {
        Verdict::Exact => false,
        Verdict::PowerLoss => mutant != Some(Mutant::HotForgotten),
        other => return Err(format!("{other:?}")),
    };
    let store = Store { world: world.clone(), stamps, live };
    resume(store, found, power_loss, &now(boot)).map_err(|e| e.to_string())
}

/// A moment at which the power may fail: tries some of what it may leave.
pub fn event(world: &Shared) {
    let mut w = world.borrow_mut();
    w.look();
    let Some(cuts) = w.cuts.filter(|_| w.violation.is_none()) else { return };
    w.cuts = Some(cuts + 1);
    for _ in 0..2 {
        let (remains, mutant) = (w.lost_power(), w.mutant);
        let dice = Dice(w.dice.next());
        let mut after = World::after(&remains, dice, mutant, Vec::new(), None);
        after.boot = w.boot + 1;
        let after = Rc::new(RefCell::new(after));
        match reopen(&after, mutant) {
            Ok(tracker) => w.compare(&tracker, &remains.image, false),
            Err(error) => w.fail(format!("after a power loss: {error}")),
        }
    }
}

impl Store {
    fn meanwhile(&self, during: During) {
        let action = self.world.borrow_mut().meanwhile.take();
        if let Some(action) = action {
            action(during);
            self.world.borrow_mut().meanwhile = Some(action);
        }
    }

    fn sync_now(&self, upto: usize, map: Vec<u32>) {
        let mut w = self.world.borrow_mut();
        w.map = map;
        w.changes.drain(..upto);
    }
}

/// What a mutant's record says instead.
fn falsified(mutant: Option<Mutant>, old: &[Slot; SLOTS], new: &[u8]) -> Option<Vec<u8>> {
    let was = Found::read([&old[0].durable, &old[1].durable]).ok()?.head;
    let mut is = Found::read([new, &[]]).ok()?.head;
    match mutant? {
        Mutant::NoLog => is.hot.keep(&was.hot),
        Mutant::EpochNotDurable => is.epoch = was.epoch,
        _ => return None,
    }
    Some(encode(&is))
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
        let mutant = self.world.borrow().mutant;
        let slot = if mutant == Some(Mutant::OneSlot) { 0 } else { slot };
        let falsified = falsified(mutant, &self.world.borrow().slots, bytes);
        let bytes = falsified.unwrap_or_else(|| bytes.to_vec());
        self.world.borrow_mut().slots[slot].writing = Some(bytes.clone());
        event(&self.world);
        self.meanwhile(During::Record);
        self.world.borrow_mut().slots[slot] = Slot { durable: bytes, writing: None };
        if self.world.borrow_mut().put_off {
            self.world.borrow_mut().put_off = false;
            let (upto, map) = self.begin_sync();
            self.sync_now(upto, map);
        }
        event(&self.world);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mutant = self.world.borrow().mutant;
        if mutant == Some(Mutant::ColdBeforeSync) {
            self.world.borrow_mut().put_off = true;
            return Ok(());
        }
        let (upto, map) = self.begin_sync();
        event(&self.world);
        self.meanwhile(During::Sync);
        if mutant != Some(Mutant::NoSync) {
            self.sync_now(upto, map);
        }
        event(&self.world);
        Ok(())
    }

    fn abandon(&self) {}
}

impl Store {
    fn begin_sync(&self) -> (usize, Vec<u32>) {
        let mut w = self.world.borrow_mut();
        w.look();
        (w.changes.len(), w.seen.clone())
    }
}

/// The unit of that number, of a tracker here.
pub fn unit(tracker: &Tracker<Store>, unit: usize) -> UnitIndex {
    tracker.layout().unit(unit as u64).unwrap()
}
