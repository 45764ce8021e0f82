//! When to switch. Measured numbers in, a decision with its reason out.
//!
//! `--max-downtime` is a ceiling, not a target: below it the switch happens at the best moment
//! that can be foreseen, that is when another round would not shorten the blackout any more.
//! Above it the copy goes on, and as soon as rounds stop shrinking the answer says so; what is
//! done about it is somebody else's policy. The same numbers always give the same answer.
//!
//! # The prediction
//!
//! ```text
//! blackout = stop + save
//!          + (left + dirtied while the offer is made + state) / rate
//!          + restore + storage + arbiter + 5/2 round trips
//! ```
//!
//! `left` is what was not acknowledged yet. The round trips are: last data and its
//! acknowledgement (2/2), state and answer (2/2), commit (1/2). The promise is made with a rate
//! that nine of ten samples reached; the same with the median tells how far off it may be.

mod explain;
mod window;

use std::time::Duration;

pub use explain::Why;
pub use window::{Rate, Window};

/// A round that shrinks what is left, or the blackout, by less than one part in this many counts
/// as flat.
const LEAST_GAIN: u64 = 10;
/// A gain below this is not worth another round.
const LEAST_GAIN_TIME: Duration = Duration::from_millis(1);
/// Rounds in a row that must fail to shrink before a move counts as stalled, if the guest does
/// not write faster than the link carries.
const STALL_ROUNDS: usize = 2;
/// Half round trips within the blackout.
const HALF_ROUND_TRIPS: u32 = 5;
/// Rounds that the prediction of the total looks ahead.
const HORIZON: u32 = 200;

/// What the parts of a switch cost beside the data. Measured, most of it by the rehearsal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// From the decision until the guest is asked to stop: offer, records, locks. The guest runs.
    pub offer: Duration,
    /// Until no CPU runs and all devices are drained.
    pub stop: Duration,
    /// Saving the state and the last harvest.
    pub save: Duration,
    /// Restoring the state and comparing digests.
    pub restore: Duration,
    /// Writing the term beside shared disks; flushes that cannot be avoided.
    pub storage: Duration,
    /// Answers of the arbiter.
    pub arbiter: Duration,
    /// Round trip of the control stream.
    pub round_trip: Duration,
    /// Bytes of the saved state.
    pub state_bytes: u64,
}

/// A round that is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Bytes that had to be sent in it.
    pub sent: u64,
    /// Bytes that were found dirty at its end.
    pub left: u64,
    /// How long it took.
    pub took: Duration,
}

/// What the user set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest blackout.
    pub max_downtime: Duration,
    /// Longest time for everything.
    pub timeout: Duration,
}

/// Everything the decision depends on. Bytes are bytes of guest memory, rates those of the whole
/// pipeline, compression included.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// How fast guest memory gets across; `None` until there are samples.
    pub rate: Option<Rate>,
    /// Bytes that are not across yet.
    pub left: u64,
    /// Bytes that become dirty, per second.
    pub dirty_rate: u64,
    /// What a switch costs; `None` before the rehearsal.
    pub costs: Option<Costs>,
    /// The next round would show what an exchange with the target costs, and none has yet: the
    /// round trip among the costs is that of a link that carried much.
    pub untried: bool,
    /// Finished rounds, oldest first. The first one is the pass over all memory.
    pub rounds: &'a [Round],
    /// Since the move began.
    pub elapsed: Duration,
    /// What the user set.
    pub limits: Limits,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another round, or the rest of this one.
    KeepCopying,
    /// Hand the guest over now.
    Switch,
    /// A switch now would take too long, and as things are more rounds do not help: ask the
    /// policy.
    Stalled,
    /// It cannot fit, however fast the link is and however little the guest writes: give up,
    /// unless the policy is to switch all the same.
    CannotFit {
        /// Another round would hardly shorten the blackout: if at all, switch now.
        settled: bool,
    },
    /// The time is up: give up.
    GiveUp,
}

/// The parts of a predicted blackout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Stopping the guest and saving its state.
    pub stop: Duration,
    /// Sending memory.
    pub memory: Duration,
    /// Sending the state.
    pub state: Duration,
    /// Restoring it.
    pub restore: Duration,
    /// Storage and arbiter.
    pub outside: Duration,
    /// Round trips.
    pub network: Duration,
}

impl Parts {
    /// All of it.
    pub fn total(&self) -> Duration {
        [self.stop, self.memory, self.state, self.restore, self.outside, self.network]
            .into_iter()
            .fold(Duration::ZERO, Duration::saturating_add)
    }

    /// The largest part and its name.
    pub fn largest(&self) -> (&'static str, Duration) {
        let named = [
            ("stopping the guest and saving its state", self.stop),
            ("sending memory", self.memory),
            ("sending the state", self.state),
            ("restoring the state", self.restore),
            ("storage and arbiter", self.outside),
            ("round trips", self.network),
        ];
        named.into_iter().max_by_key(|(_, time)| *time).unwrap_or(named[0])
    }
}

/// What a switch now would be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The blackout, with the pessimistic rate.
    pub blackout: Parts,
    /// The blackout with the usual rate. The difference is how far off the first may be.
    pub usual: Duration,
    /// From the beginning of the move to its end. `None`: no end in sight.
    pub total: Option<Duration>,
}

/// How a move would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// From now to its end.
    pub total: Duration,
    /// The blackout in it, with the pessimistic rate.
    pub blackout: Duration,
}

/// How a move would go of a guest of which `left` bytes are to be sent, with a switch no longer
/// than `max_downtime`. `None`: no end in sight.
pub fn foresee(
    rate: Rate,
    dirty_rate: u64,
    costs: Costs,
    left: u64,
    max_downtime: Duration,
) -> Option<Foreseen> {
    Model { rate, costs, dirty_rate }.remaining(left, max_downtime)
}

/// A decision, why, and the prediction if there were numbers for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What to do.
    pub decision: Decision,
    /// Why.
    pub why: Why,
    /// What a switch now would be like.
    pub prediction: Option<Prediction>,
}

/// The time that `bytes` take at `rate` bytes per second. For ever, if it is 0.
fn time_for(bytes: u64, rate: u64) -> Duration {
    if bytes == 0 {
        return Duration::ZERO;
    }
    let Some(nanos) = (u128::from(bytes) * 1_000_000_000).checked_div(rate.into()) else {
        return Duration::MAX;
    };
    u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
}

/// The bytes that come in `time` at `rate` bytes per second.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    let bytes = time.as_nanos().saturating_mul(rate.into()) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// The numbers that a prediction needs.
#[derive(Clone, Copy)]
struct Model {
    rate: Rate,
    costs: Costs,
    dirty_rate: u64,
}

impl Model {
    fn blackout(&self, left: u64, rate: u64) -> Parts {
        let c = &self.costs;
        let while_offering = bytes_in(c.offer, self.dirty_rate);
        Parts {
            stop: c.stop.saturating_add(c.save),
            memory: time_for(left.saturating_add(while_offering), rate),
            state: time_for(c.state_bytes, rate),
            restore: c.restore,
            outside: c.storage.saturating_add(c.arbiter),
            network: c.round_trip.saturating_mul(HALF_ROUND_TRIPS) / 2,
        }
    }

    /// The blackout that is promised.
    fn promised(&self, left: u64) -> Duration {
        self.blackout(left, self.rate.low).total()
    }

    /// How long a round takes that sends `left`, and what it leaves.
    fn round(&self, left: u64) -> (Duration, u64) {
        let took = time_for(left, self.rate.usual).saturating_add(self.costs.round_trip);
        (took, bytes_in(took, self.dirty_rate).min(left))
    }

    /// Whether another round would hardly shorten the blackout; and what it would be after it.
    fn is_flat(&self, left: u64) -> (bool, Duration) {
        let now = self.promised(left);
        let next = self.promised(self.round(left).1);
        let gain = now.saturating_sub(next);
        let flat = gain < LEAST_GAIN_TIME || gain < now / u32::try_from(LEAST_GAIN).unwrap_or(1);
        (flat, next)
    }

    /// The time until the end and the blackout then, if an end can be foreseen.
    fn remaining(&self, mut left: u64, max_downtime: Duration) -> Option<Foreseen> {
        let mut time = Duration::ZERO;
        for _ in 0..HORIZON {
            let blackout = self.promised(left);
            let (flat, _) = self.is_flat(left);
            if blackout <= max_downtime && flat {
                let total = time.checked_add(self.costs.offer)?.checked_add(blackout)?;
                return Some(Foreseen { total, blackout });
            }
            let (took, next) = self.round(left);
            if flat && next >= left - left / LEAST_GAIN {
                return None;
            }
            time = time.checked_add(took)?;
            left = next;
        }
        None
    }
}

/// Rounds in a row, up to the last, that hardly shrank what was left.
fn flat_rounds(rounds: &[Round]) -> usize {
    let shrank = |pair: &&[Round]| pair[1].left <= pair[0].left - pair[0].left / LEAST_GAIN;
    let flat = |pair: &&[Round]| pair[1].left > 0 && !shrank(pair);
    rounds.windows(2).rev().take_while(flat).count()
}

/// Decides.
pub fn decide(inputs: &Inputs<'_>) -> Advice {
    let limits = inputs.limits;
    let advice = |decision, why, prediction| Advice { decision, why, prediction };
    if inputs.elapsed >= limits.timeout {
        let why = Why::OutOfTime { timeout: limits.timeout };
        return advice(Decision::GiveUp, why, None);
    }
    let Some(rate) = inputs.rate else {
        return advice(Decision::KeepCopying, Why::NotMeasured, None);
    };
    let Some(costs) = inputs.costs else {
        return advice(Decision::KeepCopying, Why::NotRehearsed, None);
    };
    let model = Model { rate, costs, dirty_rate: inputs.dirty_rate };
    let remaining = model.remaining(inputs.left, limits.max_downtime);
    let prediction = Prediction {
        blackout: model.blackout(inputs.left, rate.low),
        usual: model.blackout(inputs.left, rate.usual).total(),
        total: remaining.and_then(|r| r.total.checked_add(inputs.elapsed)),
    };
    let (decision, why) = judge(inputs, &model);
    advice(decision, why, Some(prediction))
}

fn judge(inputs: &Inputs<'_>, model: &Model) -> (Decision, Why) {
    let Limits { max_downtime: limit, timeout } = inputs.limits;
    let (rate, dirty_rate) = (model.rate, inputs.dirty_rate);
    let floor = Model { dirty_rate: 0, ..*model }.blackout(0, rate.low);
    let too_slow = |floor: Parts| {
        let (part, time) = floor.largest();
        Why::CannotFit { floor: floor.total(), limit, part, time }
    };
    // What depends on the link can get better, and a move survives a link that is down.
    let fixed = Parts { memory: Duration::ZERO, state: Duration::ZERO, ..floor };
    if fixed.total() > limit {
        let settled = !inputs.rounds.is_empty()
            && (model.is_flat(inputs.left).0 || flat_rounds(inputs.rounds) > 0);
        return (Decision::CannotFit { settled }, too_slow(fixed));
    }
    if inputs.rounds.is_empty() {
        return (Decision::KeepCopying, Why::FirstPass { left: inputs.left });
    }
    let now = model.promised(inputs.left);
    let (flat, next) = model.is_flat(inputs.left);
    let round = model.round(inputs.left).0;
    let end = [inputs.elapsed, round, model.costs.offer, next];
    let in_time = end.into_iter().fold(Duration::ZERO, Duration::saturating_add) < timeout;
    if inputs.untried && in_time {
        return (Decision::KeepCopying, Why::Untried { now });
    }
    if floor.total() > limit {
        return (Decision::Stalled, too_slow(floor));
    }
    let flat_rounds = flat_rounds(inputs.rounds);
    if now > limit {
        let hopeless = flat_rounds >= 1 && dirty_rate >= rate.low;
        if hopeless || flat_rounds >= STALL_ROUNDS {
            let left = inputs.left;
            let why = Why::NotShrinking { left, dirty_rate, rate: rate.low, now, limit };
            return (Decision::Stalled, why);
        }
        return (Decision::KeepCopying, Why::TooLong { now, limit });
    }
    if flat || flat_rounds > 0 {
        return (Decision::Switch, Why::Flat { now, next, limit });
    }
    if !in_time {
        return (Decision::Switch, Why::TimeRunsOut { now, timeout });
    }
    (Decision::KeepCopying, Why::StillFalling { now, next })
}

#[cfg(test)]
mod tests;
