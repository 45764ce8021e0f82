//! How long a move would take and how long its guest would stand still, from what is known before
//! it begins, and what these figures rest on. A pure function of its input.

use std::time::Duration;

use migrate_engine::converge::{Costs, Rate, foresee};

use crate::api::host::{BandwidthBasis, MovePlan};
use crate::show::units::{bytes, millis};

/// Bandwidth that is counted on where nothing is known, bytes per second.
const ASSUMED: u64 = 500 << 20;
/// Time to restore a guest's state where no rehearsal is known.
const RESTORE: Duration = Duration::from_millis(30);
/// Other costs of a switch that only a rehearsal would tell: of a small guest on a quiet host.
const OFFER: Duration = Duration::from_millis(20);
const STOP: Duration = Duration::from_millis(5);
/// Writing the term beside shared disks.
const STORAGE: Duration = Duration::from_millis(10);
/// Bytes of a saved state.
const STATE: u64 = 64 << 10;

/// How fast memory gets across.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Bytes per second.
    pub rate: u64,
    /// How that is known.
    pub basis: BandwidthBasis,
    /// The same, for people.
    pub words: String,
    /// Most that the user allows, bytes per second.
    pub limit: Option<u64>,
    /// Round trip.
    pub round_trip: Duration,
}

impl Link {
    /// A rate without a limit, and how it is known.
    pub fn new(rate: u64, basis: BandwidthBasis, words: String) -> Self {
        Self { rate, basis, words, limit: None, round_trip: Duration::ZERO }
    }

    /// Nothing is known, and why.
    pub fn assumed(why: &str) -> Self {
        Self::new(ASSUMED, BandwidthBasis::Assumed, format!("assumed, not measured: {why}"))
    }
}

/// How fast the guest writes to its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writes {
    /// As watched.
    Measured {
        /// Bytes per second.
        bytes_per_s: u64,
        /// Watched for so long.
        over: Duration,
    },
    /// It stands still.
    Paused,
    /// That is not known, and why.
    Unknown(String),
}

/// What is known before a move.
#[derive(Clone, Debug)]
pub struct Known {
    /// Memory in use, bytes.
    pub memory: u64,
    /// Longest blackout that is allowed.
    pub max_downtime: Duration,
    /// It has shared disks that it writes.
    pub shared_disks: bool,
    /// Time that an earlier rehearsal took to restore a state.
    pub restore: Option<Duration>,
    /// The link.
    pub link: Link,
    /// The guest.
    pub writes: Writes,
}

/// What is to be expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    rate: u64,
    basis: BandwidthBasis,
    dirty: Option<u64>,
    total: Option<Duration>,
    downtime: Option<Duration>,
    no_end: bool,
    rests_on: Vec<String>,
}

/// Foresees.
pub fn of(known: &Known) -> Forecast {
    let link = &known.link;
    let rate = link.limit.map_or(link.rate, |limit| limit.min(link.rate)).max(1);
    let mut rests_on = vec![format!("{}/s to the destination: {}", bytes(link.rate), link.words)];
    rests_on.extend(
        link.limit.filter(|l| *l < link.rate).map(|l| format!("--bandwidth allows {}/s", bytes(l))),
    );
    let (dirty, words) = match &known.writes {
        Writes::Measured { bytes_per_s, over } => (
            Some(*bytes_per_s),
            format!(
                "the guest writes to {}/s: watched for {} just now",
                bytes(*bytes_per_s),
                millis(over.as_secs_f64() * 1000.0)
            ),
        ),
        Writes::Paused => (Some(0), "the guest is paused and writes nothing".to_owned()),
        Writes::Unknown(why) => (
            None,
            format!(
                "how fast the guest writes is not known ({why}): counted as if it wrote nothing"
            ),
        ),
    };
    rests_on.push(words);
    let restore = known.restore.unwrap_or(RESTORE);
    let (time, how) = (millis(restore.as_secs_f64() * 1000.0), known.restore);
    let how = if how.is_some() { "an earlier rehearsal took that" } else { "assumed" };
    rests_on.push(format!("restoring its state {time}: {how}; other parts of the switch: assumed"));
    let costs = Costs {
        offer: OFFER,
        stop: STOP,
        save: STOP,
        restore,
        storage: if known.shared_disks { STORAGE } else { Duration::ZERO },
        arbiter: Duration::ZERO,
        round_trip: link.round_trip,
        state_bytes: STATE,
    };
    // One figure says nothing of how much it varies.
    let rates = Rate { low: rate - rate / 4, usual: rate };
    let foreseen = foresee(rates, dirty.unwrap_or(0), costs, known.memory, known.max_downtime);
    Forecast {
        rate,
        basis: link.basis,
        dirty,
        total: foreseen.map(|f| f.total),
        // A guest that is paused does not miss the time.
        downtime: foreseen.filter(|_| dirty.is_some()).map(|f| f.blackout),
        no_end: foreseen.is_none(),
        rests_on,
    }
}

impl Forecast {
    /// The plan with these figures.
    pub fn into_plan(self, plan: MovePlan) -> MovePlan {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        MovePlan {
            bandwidth_bytes_per_s: Some(self.rate),
            bandwidth_basis: Some(self.basis),
            dirty_bytes_per_s: self.dirty,
            predicted_total_ms: self.total.map(ms),
            predicted_downtime_ms: self.downtime.map(ms),
            no_end_in_sight: self.no_end,
            rests_on: self.rests_on,
            ..plan
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn known(writes: Writes) -> Known {
        let link = Link::new(100 * MIB, BandwidthBasis::Probe, "a sample".into());
        Known {
            memory: 1000 * MIB,
            max_downtime: Duration::from_millis(300),
            shared_disks: false,
            restore: None,
            link: Link { round_trip: Duration::from_millis(1), ..link },
            writes,
        }
    }

    fn measured(bytes_per_s: u64) -> Writes {
        Writes::Measured { bytes_per_s, over: Duration::from_millis(500) }
    }

    #[test]
    fn a_guest_that_writes_takes_longer_and_stands_still_longer() {
        let quiet = of(&known(measured(0)));
        let busy = of(&known(measured(40 * MIB)));
        assert!(quiet.total.unwrap() >= Duration::from_secs(10));
        assert!(quiet.total < busy.total && quiet.downtime < busy.downtime);
        assert!(busy.downtime.unwrap() <= Duration::from_millis(300));
        let never = of(&known(measured(200 * MIB)));
        assert!(never.no_end && never.total.is_none() && never.downtime.is_none());
    }

    #[test]
    fn every_figure_says_what_it_rests_on() {
        let mut all = known(measured(MIB));
        let said = |known: &Known| of(known).rests_on.join("\n");
        for part in ["100M/s", "a sample", "watched for 500.0 ms", "restoring its state", "assumed"]
        {
            assert!(said(&all).contains(part), "{part}: {}", said(&all));
        }
        all.restore = Some(Duration::from_millis(7));
        assert!(said(&all).contains("earlier rehearsal"), "{}", said(&all));
        all.link.limit = Some(10 * MIB);
        assert!(said(&all).contains("--bandwidth allows 10M/s"), "{}", said(&all));
        assert_eq!(of(&all).rate, 10 * MIB);
        // What is not known is not predicted as if it were.
        all.writes = Writes::Unknown("why".into());
        let unknown = of(&all);
        assert_eq!((unknown.dirty, unknown.downtime), (None, None));
        assert!(unknown.total.is_some() && said(&all).contains("not known (why)"));
        assert!(Link::assumed("x").words.contains("not measured: x"));
    }
}
