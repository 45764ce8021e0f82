//! What a network does to one frame: when it arrives, twice perhaps, or never. A function of the
//! conditions, of a seed and of what went before; it has no clock and sends nothing.
//!
//! The order of things is that of a real path: a queue before a link of some rate, then the
//! wire, which loses, delays, duplicates and reorders.

use std::time::Duration;

/// Parts of a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    const WHOLE: u32 = 1_000_000;

    /// `parts` of a million, at most all.
    pub fn of_million(parts: u32) -> Self {
        Self(parts.min(Self::WHOLE))
    }

    /// Parts of a million.
    pub fn parts(self) -> u32 {
        self.0
    }

    fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::WHOLE)
    }
}

/// The conditions of one direction. The default changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    /// Time on the wire.
    pub delay: Duration,
    /// Up to so much is added to the delay. Order is kept.
    pub jitter: Duration,
    /// Bits per second, Ethernet headers included; `None` is no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for a link with a rate; what finds no room is dropped.
    pub queue: u64,
    /// Frames lost on the wire.
    pub loss: Share,
    /// Mean number of frames lost in a row. 1 makes losses independent of each other.
    pub burst: u32,
    /// Frames that arrive twice.
    pub duplicate: Share,
    /// Frames that are held back by `hold` and so overtaken.
    pub reorder: Share,
    /// How long a reordered frame is held back.
    pub hold: Duration,
    /// Nothing gets through.
    pub cut: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            rate: None,
            queue: 1 << 20,
            loss: Share::default(),
            burst: 1,
            duplicate: Share::default(),
            reorder: Share::default(),
            hold: Duration::from_millis(2),
            cut: false,
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Arrives at this time.
    Arrives(Duration),
    /// Arrives twice.
    ArrivesTwice(Duration, Duration),
    /// The queue was full.
    Dropped,
    /// Lost on the wire.
    Lost,
    /// The path is cut.
    Cut,
}

/// Frames by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Came in.
    pub frames: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Found the queue full.
    pub dropped: u64,
    /// Lost on the wire.
    pub lost: u64,
    /// Came while the path was cut.
    pub cut: u64,
    /// Arrive twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
}

/// One direction of a path.
#[derive(Clone, Debug)]
pub struct Path {
    conditions: Conditions,
    random: Random,
    counters: Counters,
    /// When the link has sent all that waits for it.
    free_at: Duration,
    /// Arrival of the latest frame that was not held back.
    last_arrival: Duration,
    losing: bool,
}

impl Path {
    /// A path with these conditions; its chances follow from `seed`.
    pub fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            random: Random(seed),
            counters: Counters::default(),
            free_at: Duration::ZERO,
            last_arrival: Duration::ZERO,
            losing: false,
        }
    }

    /// The conditions.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Changes the conditions. What is on its way arrives as before.
    pub fn set(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What becomes of a frame of `bytes` that comes in at `now`. Times never run backwards.
    pub fn admit(&mut self, now: Duration, bytes: usize) -> Fate {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.counters.frames += 1;
        self.counters.bytes = self.counters.bytes.saturating_add(bytes);
        if self.conditions.cut {
            self.counters.cut += 1;
            return Fate::Cut;
        }
        let Some(sent) = self.send(now, bytes) else {
            self.counters.dropped += 1;
            return Fate::Dropped;
        };
        if self.is_lost() {
            self.counters.lost += 1;
            return Fate::Lost;
        }
        let jitter = self.conditions.jitter.mul_f64(self.random.unit());
        let turn = (sent + self.conditions.delay + jitter).max(self.last_arrival);
        let at = if self.random.hits(self.conditions.reorder) {
            self.counters.reordered += 1;
            turn + self.conditions.hold
        } else {
            self.last_arrival = turn;
            turn
        };
        if self.random.hits(self.conditions.duplicate) {
            self.counters.duplicated += 1;
            return Fate::ArrivesTwice(at, at);
        }
        Fate::Arrives(at)
    }

    /// When the link has sent a frame; `None` if it finds no room before it.
    fn send(&mut self, now: Duration, bytes: u64) -> Option<Duration> {
        let Some(rate) = self.conditions.rate else { return Some(now) };
        let begins = self.free_at.max(now);
        let waiting = bytes_in(begins.saturating_sub(now), rate);
        if waiting > 0 && waiting.saturating_add(bytes) > self.conditions.queue {
            return None;
        }
        self.free_at = begins + time_for(bytes, rate);
        Some(self.free_at)
    }

    /// Gilbert's model: in the bad state all is lost, in the good state nothing.
    fn is_lost(&mut self) -> bool {
        let loss = self.conditions.loss.fraction();
        if self.conditions.burst <= 1 || loss <= 0.0 || loss >= 1.0 {
            self.losing = false;
            return self.random.unit() < loss;
        }
        let leave = 1.0 / f64::from(self.conditions.burst);
        let enter = (leave * loss / (1.0 - loss)).min(1.0);
        let chance = self.random.unit();
        self.losing = if self.losing { chance >= leave } else { chance < enter };
        self.losing
    }
}

/// Bytes that a link of `rate` bits per second sends in `time`.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(rate) / 8_000_000_000).unwrap_or(u64::MAX)
}

/// Time in which a link of `rate` bits per second sends `bytes`.
fn time_for(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 8_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// `SplitMix64`: small, and the same everywhere.
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to, but not including, 1.
    fn unit(&mut self) -> f64 {
        let parts = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        f64::from(parts) / (f64::from(u32::MAX) + 1.0)
    }

    fn hits(&mut self, share: Share) -> bool {
        // Drawn in any case: the other chances do not depend on whether this one is asked for.
        self.unit() < share.fraction()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Time from `a` to the later `b`.
    fn from(a: Duration, b: Duration) -> Duration {
        b.checked_sub(a).expect("times do not run backwards")
    }

    const MS: Duration = Duration::from_millis(1);

    /// The fates of `count` frames of 1500 bytes, one every `gap`.
    fn run(conditions: Conditions, seed: u64, count: u32, gap: Duration) -> (Vec<Fate>, Counters) {
        let mut path = Path::new(conditions, seed);
        let fates = (0..count).map(|i| path.admit(gap * i, 1500)).collect();
        (fates, path.counters())
    }

    fn arrivals(fates: &[Fate]) -> Vec<Duration> {
        let times = |fate: &Fate| match *fate {
            Fate::Arrives(at) => vec![at],
            Fate::ArrivesTwice(one, two) => vec![one, two],
            Fate::Dropped | Fate::Lost | Fate::Cut => Vec::new(),
        };
        fates.iter().flat_map(times).collect()
    }

    proptest! {
        /// A path without faults only delays, by exactly as much as it should.
        #[test]
        fn a_faultless_path_delays(seed: u64, delay in 0_u64..200, gaps in prop::collection::vec(0_u64..50, 1..50)) {
            let delay = MS * u32::try_from(delay).unwrap();
            let mut path = Path::new(Conditions { delay, ..Conditions::default() }, seed);
            let mut now = Duration::ZERO;
            for gap in gaps {
                now += Duration::from_micros(gap);
                prop_assert_eq!(path.admit(now, 60), Fate::Arrives(now + delay));
            }
        }

        /// Against a queue that is played byte by byte: whatever arrives when, the link never
        /// sends more than its rate, and nothing waits longer than a full queue takes.
        #[test]
        fn rate_and_queue_are_bounds(
            seed: u64,
            rate in 1_000_000_u64..1_000_000_000,
            queue in 3_000_u64..1_000_000,
            frames in prop::collection::vec((0_u64..5_000, 60_usize..1500), 1..400),
        ) {
            let conditions = Conditions { rate: Some(rate), queue, ..Conditions::default() };
            let mut path = Path::new(conditions, seed);
            let (mut now, mut sent) = (Duration::ZERO, Vec::new());
            let longest = time_for(queue, rate) + Duration::from_nanos(1);
            for (gap, bytes) in frames {
                now += Duration::from_micros(gap);
                match path.admit(now, bytes) {
                    Fate::Arrives(at) => {
                        prop_assert!(at > now && from(now, at) <= longest.max(time_for(1500, rate)));
                        sent.push((at, bytes));
                    }
                    Fate::Dropped => {
                        let waits = bytes_in(from(now, path.free_at), rate);
                        prop_assert!(waits + bytes as u64 + 1 > queue, "dropped without need");
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            for first in 0..sent.len() {
                let bytes: u64 = sent[first + 1..].iter().map(|s| s.1 as u64).sum();
                let span = sent.last().map_or(Duration::ZERO, |s| from(sent[first].0, s.0));
                let slack = sent.len() as u64;
                prop_assert!(bytes <= bytes_in(span, rate) + slack, "{bytes} in {span:?}");
            }
        }

        /// Jitter alone never reorders, and never adds more than it may.
        #[test]
        fn jitter_keeps_the_order(seed: u64, jitter in 0_u32..30) {
            let (delay, jitter, gap) = (MS * 10, MS * jitter, Duration::from_micros(100));
            let conditions = Conditions { delay, jitter, ..Conditions::default() };
            let (fates, _) = run(conditions, seed, 500, gap);
            let at = arrivals(&fates);
            prop_assert_eq!(at.len(), 500);
            prop_assert!(at.is_sorted());
            let late = |(i, at): (u32, &Duration)| from(gap * i, *at);
            prop_assert!((0..).zip(&at).map(late).all(|l| l >= delay && l <= delay + jitter));
        }

        /// The same seed makes the same network.
        #[test]
        fn a_seed_decides_everything(seed: u64) {
            let conditions = Conditions {
                jitter: MS,
                loss: Share::of_million(100_000),
                burst: 3,
                duplicate: Share::of_million(50_000),
                reorder: Share::of_million(50_000),
                ..Conditions::default()
            };
            prop_assert_eq!(
                run(conditions.clone(), seed, 200, MS),
                run(conditions, seed, 200, MS)
            );
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Shares are what was asked for, in bursts as well as alone. Five standard deviations,
        /// and the bursts' longer ones.
        #[test]
        fn shares_are_kept(seed: u64, percent in 1_u32..30, burst in 1_u32..8) {
            const COUNT: u32 = 50_000;
            let share = Share::of_million(percent * 10_000);
            let conditions =
                Conditions { loss: share, burst, duplicate: share, reorder: share, ..Conditions::default() };
            let (fates, counters) = run(conditions, seed, COUNT, MS);
            let p = share.fraction();
            let lost = f64::from(u32::try_from(counters.lost).unwrap());
            let spread = 5.0 * (f64::from(COUNT) * p * f64::from(2 * burst)).sqrt();
            prop_assert!((lost - f64::from(COUNT) * p).abs() <= spread, "lost {lost} at {p}");
            let survivors = f64::from(COUNT) - lost;
            for got in [counters.duplicated, counters.reordered] {
                let got = f64::from(u32::try_from(got).unwrap());
                prop_assert!((got - survivors * p).abs() <= 5.0 * (survivors * p).sqrt(), "{got}");
            }
            let lost_runs = fates.chunk_by(|a, b| a == b).filter(|c| c[0] == Fate::Lost).count();
            let mean = lost / f64::from(u32::try_from(lost_runs).unwrap());
            let wanted = if burst == 1 { 1.0 / (1.0 - p) } else { f64::from(burst) };
            prop_assert!((mean / wanted - 1.0).abs() < 0.4, "bursts of {mean}, wanted {wanted}");
        }
    }

    #[test]
    fn held_frames_are_overtaken() {
        let reorder = Share::of_million(100_000);
        let hold = MS * 5;
        let (fates, counters) =
            run(Conditions { reorder, hold, ..Conditions::default() }, 1, 1000, MS);
        let at = arrivals(&fates);
        let overtaken = at.windows(2).filter(|w| w[0] > w[1]).count();
        assert!(counters.reordered > 50 && overtaken > 40, "{counters:?}, {overtaken}");
    }

    #[test]
    fn nothing_passes_a_cut_and_all_passes_after_it() {
        let mut path = Path::new(Conditions::default(), 1);
        path.set(Conditions { cut: true, ..Conditions::default() });
        assert_eq!(path.admit(MS, 60), Fate::Cut);
        path.set(Conditions::default());
        assert_eq!(path.admit(MS * 2, 60), Fate::Arrives(MS * 2));
    }
}
