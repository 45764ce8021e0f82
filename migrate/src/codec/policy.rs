//! Is it worth compressing the next batch? Decided from what was measured on the way.
//!
//! Two questions, both pure arithmetic on numbers that the caller measured:
//!
//! * **Does LZ4 pay at these speeds?** Compressing runs beside sending, so a byte takes as long as
//!   the slower of the two: `max(1 / compress, ratio / wire)` against `1 / wire`. Batches that
//!   shrink by less than a sixteenth go raw (see [`encode`](super::block::encode)), so what is
//!   left to ask is whether the processors compress faster than the link takes raw bytes.
//! * **Does this part of memory compress?** Each region remembers how its last batches did. After
//!   a few that did not shrink it is left alone for a while, which doubles each time the probe
//!   afterwards fails, so that noise is not compressed again in every round.
//!
//! The first question is asked anew now and then even while the answer is no, since speeds change.

use crate::unit::{Layout, UnitIndex};

/// Numbers that tune the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Units of a region that share their memory of success. At least 1.
    pub region_units: u64,
    /// Failures in a row after which a region is left alone.
    pub failures: u8,
    /// Batches for which it is left alone first.
    pub first_rest: u32,
    /// How often that doubles.
    pub doublings: u8,
    /// Batches between two looks at LZ4 when it does not pay.
    pub probe_every: u32,
    /// How much faster it must be to count as paying, in thousandths.
    pub margin: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            region_units: 4096,
            failures: 4,
            first_rest: 32,
            doublings: 5,
            probe_every: 256,
            margin: 50,
        }
    }
}

/// What the pipeline was measured to do, in bytes per second. `None`: not measured yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speeds {
    /// Encoded bytes that leave over all lanes while there is always something to send.
    pub wire: Option<u64>,
    /// Raw bytes that all workers together can compress.
    pub compress: Option<u64>,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Send it raw.
    Raw,
    /// Try LZ4, and tell [`Policy::observe`] what came of it.
    Try,
}

/// How a region's batches did.
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    failures: u8,
    doublings: u8,
    /// Batches that still go raw without a try.
    rest: u32,
}

/// The memory of what compresses.
#[derive(Clone, Debug)]
pub struct Policy {
    limits: Limits,
    speeds: Speeds,
    regions: Vec<Region>,
    since_probe: u32,
}

impl Policy {
    /// Nothing tried, nothing measured: the first batches are tried.
    pub fn new(layout: &Layout, limits: Limits) -> Self {
        let regions = layout.units().div_ceil(limits.region_units.max(1));
        let regions = usize::try_from(regions).unwrap_or(usize::MAX);
        Self {
            limits,
            speeds: Speeds::default(),
            regions: vec![Region::default(); regions],
            since_probe: 0,
        }
    }

    /// Takes note of new measurements.
    pub fn set_speeds(&mut self, speeds: Speeds) {
        self.speeds = speeds;
    }

    /// What to do with a batch that begins with `unit`.
    pub fn choose(&mut self, unit: UnitIndex) -> Choice {
        let (speeds, limits) = (self.speeds, self.limits);
        let Some(region) = self.region(unit) else { return Choice::Raw };
        if region.rest > 0 {
            region.rest -= 1;
            return Choice::Raw;
        }
        if pays(speeds, limits.margin) {
            return Choice::Try;
        }
        self.since_probe += 1;
        if self.since_probe < self.limits.probe_every {
            return Choice::Raw;
        }
        self.since_probe = 0;
        Choice::Try
    }

    /// Takes note of a batch that was tried: `raw` bytes became `encoded`, the same number if it
    /// did not shrink.
    pub fn observe(&mut self, unit: UnitIndex, raw: usize, encoded: usize) {
        let limits = self.limits;
        let Some(region) = self.region(unit) else { return };
        if encoded < raw {
            region.failures = 0;
            region.doublings = 0;
            return;
        }
        region.failures = region.failures.saturating_add(1);
        if region.failures >= limits.failures {
            region.rest = limits.first_rest << region.doublings.min(16);
            region.doublings = limits.doublings.min(region.doublings + 1);
            // One more failure after the rest is enough.
            region.failures = limits.failures.saturating_sub(1);
        }
    }

    fn region(&mut self, unit: UnitIndex) -> Option<&mut Region> {
        let at = unit.get() / self.limits.region_units.max(1);
        self.regions.get_mut(usize::try_from(at).ok()?)
    }
}

/// Whether compressing is faster than sending raw, by `margin` thousandths.
fn pays(speeds: Speeds, margin: u32) -> bool {
    let (Some(wire), Some(compress)) = (speeds.wire, speeds.compress) else { return true };
    u128::from(compress) * 1000 >= u128::from(wire) * (1000 + u128::from(margin))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GBIT: u64 = 125_000_000;

    fn setup() -> (Policy, UnitIndex, UnitIndex) {
        let layout = Layout::new(4096, 3 * 4096).unwrap();
        let unit = |n| layout.unit(n).unwrap();
        (Policy::new(&layout, Limits::default()), unit(0), unit(5000))
    }

    fn speeds(wire: u64, compress: u64) -> Speeds {
        Speeds { wire: Some(wire), compress: Some(compress) }
    }

    #[test]
    fn noise_is_given_up_and_looked_at_less_and_less() {
        let (mut policy, noise, text) = setup();
        policy.set_speeds(speeds(GBIT, 10 * GBIT));
        let mut tries = Vec::new();
        for batch in 0..4000u32 {
            if policy.choose(noise) == Choice::Try {
                tries.push(batch);
                policy.observe(noise, 65536, 65536);
            }
            // Another region is not held back by it.
            assert_eq!(policy.choose(text), Choice::Try);
            policy.observe(text, 65536, 30000);
        }
        assert_eq!(tries[..5], [0, 1, 2, 3, 36]);
        let rests: Vec<u32> = tries.windows(2).skip(3).map(|w| w[1] - w[0] - 1).collect();
        assert_eq!(rests[..7], [32, 64, 128, 256, 512, 1024, 1024]);
    }

    #[test]
    fn one_success_brings_a_region_back() {
        let (mut policy, unit, _) = setup();
        (0..4).for_each(|_| policy.observe(unit, 65536, 65536));
        assert_eq!((0..32).filter(|_| policy.choose(unit) == Choice::Try).count(), 0);
        assert_eq!(policy.choose(unit), Choice::Try);
        policy.observe(unit, 65536, 20000);
        for _ in 0..3 {
            policy.observe(unit, 65536, 65536);
            assert_eq!(policy.choose(unit), Choice::Try);
        }
    }

    #[test]
    fn pays_on_slow_links_only() {
        for (wire, compress, expected) in [
            (GBIT, 10 * GBIT, true),
            (10 * GBIT, 8 * GBIT, false),
            (10 * GBIT, 10 * GBIT, false),
            (10 * GBIT, 11 * GBIT, true),
            (0, 0, true),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(pays(speeds(wire, compress), 50), expected, "{wire} {compress}");
        }
        assert!(pays(Speeds::default(), 50), "unknown speeds are found out");
    }

    #[test]
    fn what_does_not_pay_is_looked_at_again() {
        let (mut policy, unit, _) = setup();
        policy.set_speeds(speeds(10 * GBIT, 8 * GBIT));
        let tries = (0..1024).filter(|_| policy.choose(unit) == Choice::Try).count();
        assert_eq!(tries, 4);
        policy.set_speeds(speeds(GBIT, 8 * GBIT));
        assert_eq!(policy.choose(unit), Choice::Try);
    }
}
