//! One run: a guest that writes, consumers that back up, turns of cooling, kills, power losses,
//! orderly ends, all in an order that the seed decides. What waits for storage is interrupted by
//! more of the same.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::super::tracker::{COLD, Changed, Closing, Tracker, Write};
use super::mutants::Mutant;
use super::sim::{
    Consumer, Dice, During, LOOK, REGION, Shared, Store, UNITS, World, event, reopen, unit,
};
use crate::track::Epoch;
use crate::unit::Run;

struct Flying {
    write: Write,
    units: Range<usize>,
    version: u32,
}

/// A backup under way.
struct Backup {
    consumer: usize,
    closing: Closing,
    copy: Vec<u32>,
    unread: Vec<usize>,
}

pub struct Guest {
    world: Shared,
    tracker: Tracker<Store>,
    flying: RefCell<Vec<Flying>>,
    backup: RefCell<Option<Backup>>,
    last: RefCell<Option<Closing>>,
    /// A record is being written, and whoever needs another would wait for ever.
    recording: Cell<bool>,
    mutant: Option<Mutant>,
}

/// Versions of content are unique across all lives.
fn version(world: &Shared) -> u32 {
    let w = &mut world.borrow_mut().dice;
    // Low half: torn content has the high bit.
    u32::try_from(w.next() >> 33).unwrap() | 1
}

impl Guest {
    fn start(world: &Shared, mutant: Option<Mutant>) -> Option<Rc<Self>> {
        match reopen(world, mutant) {
            Ok(tracker) => Some(Rc::new(Self {
                world: world.clone(),
                tracker,
                flying: RefCell::default(),
                backup: RefCell::default(),
                last: RefCell::default(),
                recording: Cell::new(false),
                mutant,
            })),
            Err(error) => {
                world.borrow_mut().violation.get_or_insert(format!("cannot go on: {error}"));
                None
            }
        }
    }

    fn dice<T>(&self, roll: impl FnOnce(&mut Dice) -> T) -> T {
        roll(&mut self.world.borrow_mut().dice)
    }

    /// Some units, mostly in few places.
    fn some_units(&self) -> Range<usize> {
        self.dice(|d| {
            let first = if d.percent(70) { d.below(3) * 13 + d.below(3) } else { d.below(UNITS) };
            first..(first + 1 + d.below(5)).min(UNITS)
        })
    }

    fn note(&self, units: &Range<usize>) {
        let epoch = self.tracker.epoch();
        let mut w = self.world.borrow_mut();
        let turns = w.turns_begun;
        for unit in units.clone() {
            w.announced[unit] = w.announced[unit].max(epoch);
            w.touched[unit / REGION] = turns;
        }
    }

    fn begin(&self, units: Range<usize>) {
        let run = self.run(&units);
        let version = version(&self.world);
        if self.mutant == Some(Mutant::StampAfterSubmit) {
            self.world.borrow_mut().submit(units.clone(), version);
            event(&self.world);
        }
        self.note(&units);
        let write = if self.mutant == Some(Mutant::LookBeforeStamp) {
            self.looked_before(run)
        } else {
            self.tracker.begin(run, 7)
        };
        self.note(&units);
        if self.mutant != Some(Mutant::StampAfterSubmit) {
            self.world.borrow_mut().submit(units.clone(), version);
        }
        event(&self.world);
        self.flying.borrow_mut().push(Flying { write, units, version });
    }

    /// A write that looks whether its region is hot before it stamps, with all the time between
    /// that a thread may take.
    fn looked_before(&self, run: Run) -> Write {
        let epoch = self.tracker.enter();
        self.tracker.keep_hot(run);
        self.cool_if_free();
        self.cool_if_free();
        Write { units: self.tracker.map.begin_write(run), epoch }
    }

    fn run(&self, units: &Range<usize>) -> Run {
        self.tracker.layout().run(units.start as u64, units.len() as u64).unwrap()
    }

    fn settle(&self) {
        let count = self.flying.borrow().len();
        if count == 0 {
            return;
        }
        let at = self.dice(|d| d.below(count));
        let Flying { write, units, version } = self.flying.borrow_mut().swap_remove(at);
        self.world.borrow_mut().land(units.clone(), version);
        event(&self.world);
        if write.epoch != self.tracker.epoch() {
            self.note(&units);
        }
        match self.mutant {
            Some(Mutant::NotStampedAgain) => self.tracker.leave(write.epoch),
            Some(Mutant::StampedAgainCold) => {
                self.tracker.map.settle(write.units);
                self.tracker.leave(write.epoch);
            }
            _ => self.tracker.settle(write, 8),
        }
        event(&self.world);
    }

    fn flush(&self) {
        event(&self.world);
        self.world.borrow_mut().flush();
        event(&self.world);
    }

    fn cool_if_free(&self) {
        // Not inside another turn.
        if !self.recording.get() && self.tracker.cooling.try_lock().is_ok() {
            self.world.borrow_mut().turns_begun += 1;
            self.tracker.cool().unwrap();
            let mut w = self.world.borrow_mut();
            w.turns = w.turns_begun;
        }
    }

    fn start_backup(&self) {
        let settled = self.last.borrow().is_none_or(|last| self.tracker.is_settled(last));
        if self.backup.borrow().is_some() || !settled {
            return;
        }
        let closing = self.tracker.close().unwrap();
        *self.last.borrow_mut() = Some(closing);
        let consumers = self.world.borrow().consumers.len();
        let consumer = self.dice(|d| d.below(consumers));
        let Consumer { base, saved } = self.world.borrow().consumers[consumer].clone();
        let unread = match self.tracker.changed_since(base.as_ref()) {
            Changed::Units(set) => {
                (0..UNITS).filter(|u| set.contains(unit(&self.tracker, *u))).collect()
            }
            Changed::Whole(_) => (0..UNITS).collect(),
        };
        *self.backup.borrow_mut() = Some(Backup { consumer, closing, copy: saved, unread });
    }

    fn go_on_with_backup(&self) {
        let mut backup = self.backup.borrow_mut();
        let Some(b) = backup.as_mut() else { return };
        for _ in 0..self.dice(|d| d.below(8)) {
            let Some(unit) = b.unread.pop() else { break };
            b.copy[unit] = self.world.borrow().visible[unit];
        }
        let early = self.mutant == Some(Mutant::BaseBeforeSettled);
        if !b.unread.is_empty() || !early && !self.tracker.is_settled(b.closing) {
            return;
        }
        let Some(b) = backup.take() else { return };
        drop(backup);
        if self.dice(|d| d.percent(20)) {
            return; // It failed, which costs nothing.
        }
        let mut base = super::super::Base { disk: 1, generation: 1, epoch: Epoch::BEFORE_ALL };
        if early {
            self.flush();
            base.epoch = b.closing.0;
        } else {
            let flush = || {
                if self.mutant != Some(Mutant::NoFlush) {
                    self.flush();
                }
                Ok(())
            };
            base = self.tracker.settled(b.closing, flush).unwrap();
        }
        let consumer = Consumer { base: Some(base), saved: b.copy };
        self.world.borrow_mut().consumers[b.consumer] = consumer;
        event(&self.world);
    }

    /// What may happen at any time.
    fn step(&self) {
        match self.dice(|d| d.below(100)) {
            0..35 => self.begin(self.some_units()),
            35..62 => self.settle(),
            62..68 => self.flush(),
            68..76 => self.cool_if_free(),
            76..84 => self.start_backup(),
            _ => self.go_on_with_backup(),
        }
    }

    /// What may happen while a record is written: whatever does not need another one.
    fn step_beside_record(&self) {
        let hot = |units: &Range<usize>| {
            let state = |u: usize| self.tracker.heat[u / REGION].load(Ordering::SeqCst);
            units.clone().all(|u| state(u) != COLD)
        };
        let units = self.some_units();
        if hot(&units) && self.dice(|d| d.percent(50)) {
            self.begin(units);
        } else if self.flying.borrow().iter().all(|f| hot(&f.units)) {
            self.settle();
        }
    }

    fn meanwhile(self: &Rc<Self>) {
        let guest = Rc::downgrade(self);
        self.world.borrow_mut().meanwhile = Some(Rc::new(move |during| {
            let Some(guest) = guest.upgrade() else { return };
            guest.recording.set(during == During::Record);
            for _ in 0..guest.dice(|d| d.below(3)) {
                match during {
                    During::Record => guest.step_beside_record(),
                    During::Sync => guest.step(),
                }
            }
            guest.recording.set(false);
        }));
    }

    /// An orderly end: what is in flight lands, the image is flushed, the map closed.
    fn finish(&self) {
        while !self.flying.borrow().is_empty() {
            self.settle();
        }
        self.flush();
        self.tracker.finish(LOOK).unwrap();
        event(&self.world);
    }
}

/// How a life of the guest's process ends.
enum End {
    Killed,
    PowerLost,
    Finished,
}

/// Ends a life and goes on with what it left.
fn next_life(guest: &Rc<Guest>, end: &End) -> Shared {
    guest.world.borrow_mut().meanwhile = None;
    let mut w = guest.world.borrow_mut();
    // Of the writes that were under way, some still land.
    let flying = guest.flying.take();
    for Flying { units, version, .. } in flying {
        if w.dice.percent(50) {
            w.land(units, version);
        }
    }
    let lost = matches!(end, End::PowerLost);
    let remains = if lost { w.lost_power() } else { w.killed() };
    let dice = Dice(w.dice.next());
    let mut after = World::after(&remains, dice, w.mutant, w.consumers.clone(), w.cuts);
    after.boot = w.boot + u128::from(lost);
    after.turns = w.turns;
    after.turns_begun = w.turns_begun;
    after.touched.clone_from(&w.touched);
    after.announced.clone_from(&w.announced);
    after.violation.clone_from(&w.violation);
    if !lost {
        // The host goes on: what was not durable still is not, and what may reach the disk may.
        after.keep_undurable(&w);
    }
    Rc::new(RefCell::new(after))
}

/// Plays `steps` steps and says how many cuts were tried, or what was wrong.
pub fn play(seed: u64, steps: usize, mutant: Option<Mutant>) -> Result<u64, String> {
    let mut first = World::new(seed, mutant);
    first.consumers = vec![Consumer { base: None, saved: vec![u32::MAX; UNITS] }; 3];
    let mut world = Rc::new(RefCell::new(first));
    let failed =
        |world: &Shared| world.borrow().violation.clone().map(|v| format!("seed {seed}: {v}"));
    let Some(mut guest) = Guest::start(&world, mutant) else {
        return Err(failed(&world).unwrap_or_default());
    };
    guest.meanwhile();
    for _ in 0..steps {
        let end = match guest.dice(|d| d.below(1000)) {
            0..12 => Some(End::Killed),
            12..24 => Some(End::PowerLost),
            24..32 => {
                guest.finish();
                Some(End::Finished)
            }
            _ => None,
        };
        let Some(end) = end else {
            guest.step();
            if let Some(failed) = failed(&world) {
                return Err(failed);
            }
            continue;
        };
        world = next_life(&guest, &end);
        let Some(next) = Guest::start(&world, mutant) else {
            return Err(failed(&world).unwrap_or_default());
        };
        {
            let mut w = world.borrow_mut();
            let image = w.visible.clone();
            w.compare(&next.tracker, &image, !matches!(end, End::PowerLost));
            // What hot regions cost is paid; from here on the map is the truth.
            w.announced = w.stamps_now();
        }
        guest = next;
        guest.meanwhile();
        if let Some(failed) = failed(&world) {
            return Err(failed);
        }
    }
    let cuts = world.borrow().cuts.unwrap_or_default();
    Ok(cuts)
}
