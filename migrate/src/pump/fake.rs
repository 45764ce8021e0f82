//! A guest and a target made of atomics, and a log that behaves as KVM's, or wrongly on purpose.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::port::{DirtyLog, ReadUnits, WriteUnits};
use crate::unit::{Layout, Run, UnitIndex};

/// Bytes of a unit of a fake guest.
pub(crate) const UNIT: u32 = 512;
const WORDS: usize = UNIT as usize / 8;

/// Numbers from a seed (`SplitMix64`).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// The content of a unit: zero, noise, or something that compresses.
    pub(crate) fn content(&mut self) -> [u64; WORDS] {
        match self.below(4) {
            0 => [0; WORDS],
            1 => std::array::from_fn(|_| self.next()),
            2 => [self.next(); WORDS],
            _ => std::array::from_fn(|i| (i as u64 / 8) * 0x6f20_6c6c_6568),
        }
    }
}

/// How much was read and not written at the other end yet.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    pub(crate) read: AtomicU64,
    pub(crate) arrived: AtomicU64,
    pub(crate) most: AtomicU64,
}

type Script = HashMap<u64, Vec<u64>>;

/// Memory that can be written, read word by word and tracked at the same time.
#[derive(Debug)]
pub(crate) struct Memory {
    layout: Layout,
    words: Vec<AtomicU64>,
    touched: Vec<AtomicBool>,
    dirty: Vec<AtomicU64>,
    pub(crate) tracking: AtomicBool,
    /// Units that are written as soon as a unit was read.
    script: Mutex<Script>,
    /// Who holds it stops what arrives.
    pub(crate) gate: Mutex<()>,
    /// Something arrives, and may be stopped.
    pub(crate) arriving: AtomicBool,
    pub(crate) gauge: Option<Arc<Gauge>>,
}

pub(crate) type Ram = Arc<Memory>;

impl Memory {
    pub(crate) fn new(units: u64, gauge: Option<Arc<Gauge>>) -> Ram {
        let layout = Layout::new(UNIT, units).unwrap();
        let n = usize::try_from(units).unwrap();
        Arc::new(Self {
            layout,
            words: (0..n * WORDS).map(|_| AtomicU64::new(0)).collect(),
            touched: (0..n).map(|_| AtomicBool::new(false)).collect(),
            dirty: (0..n.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            tracking: AtomicBool::new(false),
            script: Mutex::default(),
            gate: Mutex::default(),
            arriving: AtomicBool::new(false),
            gauge,
        })
    }

    /// When `read` is read, `written` is written to.
    pub(crate) fn after_reading(&self, read: u64, written: u64) {
        self.script.lock().unwrap().entry(read).or_default().push(written);
    }

    fn unit(&self, unit: u64) -> &[AtomicU64] {
        let at = usize::try_from(unit).unwrap() * WORDS;
        &self.words[at..at + WORDS]
    }

    /// A store of the guest. The bit is set after the store, where a write fault would set it
    /// before and then hold the clearing back: either way a store that the clearing did not see
    /// shows afterwards.
    pub(crate) fn store(&self, unit: u64, content: &[u64; WORDS]) {
        self.touched[usize::try_from(unit).unwrap()].store(true, SeqCst);
        for (word, new) in self.unit(unit).iter().zip(content) {
            word.store(*new, SeqCst);
        }
        if self.tracking.load(SeqCst) {
            self.dirty[usize::try_from(unit / 64).unwrap()].fetch_or(1 << (unit % 64), SeqCst);
        }
    }

    pub(crate) fn load(&self, unit: u64) -> [u64; WORDS] {
        let words = self.unit(unit);
        std::array::from_fn(|i| words[i].load(SeqCst))
    }

    pub(crate) fn is_touched(&self, unit: u64) -> bool {
        self.touched[usize::try_from(unit).unwrap()].load(SeqCst)
    }

    /// The units in which two memories differ.
    pub(crate) fn differing(&self, other: &Self) -> Vec<u64> {
        (0..self.layout.units()).filter(|u| self.load(*u) != other.load(*u)).collect()
    }
}

impl ReadUnits for Ram {
    type Error = Infallible;

    fn layout(&self) -> Layout {
        self.layout
    }

    fn read(&self, unit: UnitIndex, out: &mut [u8]) -> Result<(), Infallible> {
        assert!(self.is_touched(unit.get()), "unit {unit} was read and never touched");
        if let Some(gauge) = &self.gauge {
            let read = gauge.read.fetch_add(1, SeqCst) + 1;
            let ahead = read.saturating_sub(gauge.arrived.load(SeqCst));
            gauge.most.fetch_max(ahead, SeqCst);
        }
        for (word, out) in self.unit(unit.get()).iter().zip(out.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.load(SeqCst).to_le_bytes());
        }
        let planned = self.script.lock().unwrap().remove(&unit.get()).unwrap_or_default();
        for unit in planned {
            let mut content = self.load(unit);
            content[0] = content[0].wrapping_add(1);
            self.store(unit, &content);
        }
        Ok(())
    }

    fn next_touched(&self, from: u64) -> Result<Option<Run>, Infallible> {
        let units = self.layout.units();
        let first = (from..units).find(|u| self.is_touched(*u));
        Ok(first.map(|first| {
            let end = (first..units).find(|u| !self.is_touched(*u)).unwrap_or(units);
            self.layout.run(first, end - first).unwrap()
        }))
    }
}

impl WriteUnits for Ram {
    type Error = Infallible;

    fn layout(&self) -> Layout {
        self.layout
    }

    fn write(&self, run: Run, content: &[u8]) -> Result<(), Infallible> {
        self.arriving.store(true, SeqCst);
        let _open = self.gate.lock().unwrap();
        for (unit, bytes) in run.iter().zip(content.chunks_exact(UNIT as usize)) {
            let words: [u64; WORDS] = std::array::from_fn(|i| {
                u64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().unwrap())
            });
            self.store(unit.get(), &words);
        }
        if let Some(gauge) = &self.gauge {
            gauge.arrived.fetch_add(run.count(), SeqCst);
        }
        Ok(())
    }

    fn zero(&self, run: Run) -> Result<(), Infallible> {
        for unit in run.iter().filter(|u| self.is_touched(u.get())) {
            self.store(unit.get(), &[0; WORDS]);
        }
        if let Some(gauge) = &self.gauge {
            gauge.arrived.fetch_add(run.count(), SeqCst);
        }
        Ok(())
    }
}

/// A log of a fake guest.
#[derive(Debug)]
pub(crate) struct Log {
    ram: Ram,
    found: Vec<u64>,
    initially_set: bool,
    /// The planted bug: what was harvested is cleared when the next look at the log is taken, so
    /// after it was read.
    pub(crate) clears_late: bool,
    late: Vec<u64>,
}

impl Log {
    pub(crate) fn start(ram: &Ram, initially_set: bool) -> Self {
        let words = ram.dirty.len();
        for (at, word) in ram.dirty.iter().enumerate() {
            let units = ram.layout.units() - at as u64 * 64;
            let full = if units >= 64 { u64::MAX } else { (1 << units) - 1 };
            word.store(if initially_set { full } else { 0 }, SeqCst);
        }
        ram.tracking.store(true, SeqCst);
        let (found, late) = (vec![0; words], vec![0; words]);
        Self { ram: Arc::clone(ram), found, initially_set, clears_late: false, late }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.ram.tracking.store(false, SeqCst);
    }
}

impl DirtyLog for Log {
    type Error = Infallible;

    fn initially_set(&self) -> bool {
        self.initially_set
    }

    fn sync(&mut self) -> Result<(), Infallible> {
        for ((found, late), dirty) in self.found.iter_mut().zip(&mut self.late).zip(&self.ram.dirty)
        {
            dirty.fetch_and(!std::mem::take(late), SeqCst);
            *found = dirty.load(SeqCst);
        }
        Ok(())
    }

    fn found(&self) -> u64 {
        self.found.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    fn harvest(
        &mut self,
        units: Range<u64>,
        visit: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Infallible> {
        for at in units.start / 64..units.end.div_ceil(64) {
            let n = usize::try_from(at).unwrap();
            let found = std::mem::take(&mut self.found[n]);
            if found == 0 {
                continue;
            }
            if self.clears_late {
                self.late[n] |= found;
            } else {
                self.ram.dirty[n].fetch_and(!found, SeqCst);
            }
            visit(at * 64, found);
        }
        Ok(())
    }

    fn stop(self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// A guest that writes while it is copied.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Writer {
    /// Writes to units that it chooses with `seed`, in bursts.
    pub(crate) fn start(ram: &Ram, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ram, told) = (Arc::clone(ram), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut random = Random(seed);
            let mut writes = 0;
            while !told.load(SeqCst) {
                let hot = random.below(ram.layout.units());
                for _ in 0..random.below(20) {
                    let unit = (hot + random.below(8)) % ram.layout.units();
                    ram.store(unit, &random.content());
                    writes += 1;
                }
                std::thread::yield_now();
            }
            writes
        });
        Self { stop, thread }
    }

    /// Stops it: the guest stands still.
    pub(crate) fn pause(self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}
