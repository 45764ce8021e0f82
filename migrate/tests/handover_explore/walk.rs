//! Random walks far beyond the bounds of the exhaustive search. Every step is checked; at the end
//! faults and commands stop, and what is left must come to an end by itself.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::bounds::{Bounds, History, Operator};
use crate::death::{Cause, first, happen, next};
use crate::events::{Event, events};
use crate::world::World;

/// Steps of one walk, before it is let run out.
const STEPS: usize = 400;
/// Steps within which it must come to an end then.
const PATIENCE: usize = 20_000;

/// Small, seeded, good enough.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())])
    }
}

/// Bounds of one walk.
fn bounds(dice: &mut Dice) -> Bounds {
    use History::{Buried, Fresh, GivenAway, Offered, Receiving};
    let histories = [Fresh, GivenAway, Offered, Receiving, Buried];
    let number = |dice: &mut Dice, from: u8, to: u8| {
        from + u8::try_from(dice.below(usize::from(to - from) + 1)).unwrap()
    };
    let arbiter = dice.one_in(4);
    let shared = !dice.one_in(4);
    // An arbiter is asked by no resolve yet, and without shared disks a lie has no limits.
    let operators: &[Operator] = match (arbiter, shared) {
        (true, _) => &[Operator::Absent],
        (false, true) => &[Operator::Absent, Operator::Truthful, Operator::Lying],
        (false, false) => &[Operator::Absent, Operator::Truthful],
    };
    let operator = dice.pick(operators).unwrap();
    Bounds {
        hosts: if dice.one_in(4) { 2 } else { 3 },
        faults: number(dice, 0, 8),
        offers: number(dice, 1, 8),
        commands: number(dice, 0, 6),
        operator,
        chores: dice.one_in(2),
        history: dice.pick(&histories).unwrap(),
        drops: dice.one_in(2),
        coarse: dice.one_in(2),
        shared,
        arbiter,
        ..Bounds::new(0, 0)
    }
}

/// What happens next: mostly what moves things on, seldom what breaks or repeats them.
fn choose(world: &World, bounds: &Bounds, dice: &mut Dice) -> Option<(Cause, World)> {
    let all = events(world, bounds);
    let kind = match dice.below(20) {
        0..10 => |e: &Event| matches!(e, Event::Deliver(_)),
        10..14 => |e: &Event| {
            e.is_free() && !matches!(e, Event::Deliver(_) | Event::Timer(..) | Event::Cancel(_))
        },
        14 => |e: &Event| matches!(e, Event::Timer(..)),
        15 => |e: &Event| matches!(e, Event::Attempt(..) | Event::Cancel(_)),
        16 => |e: &Event| !e.is_free() && !matches!(e, Event::Attempt(..)),
        _ => |_: &Event| true,
    };
    let wanted: Vec<Event> = all.iter().copied().filter(kind).collect();
    let mut found = Vec::new();
    if world.rest.faults > 0 && dice.one_in(40) {
        next(world, bounds, &mut found);
        found.retain(|(cause, _)| cause.death.is_some());
    } else {
        let event = dice.pick(&wanted).or_else(|| dice.pick(&all))?;
        happen(world, bounds, event, &mut found);
        found.truncate(1);
    }
    if found.is_empty() {
        return None;
    }
    let at = dice.below(found.len());
    Some(found.swap_remove(at))
}

/// Only what happens by itself, and no new move.
fn settle(world: &mut World, bounds: &Bounds, dice: &mut Dice, trace: &mut Vec<Cause>) -> bool {
    let calm = Bounds { drops: false, ..*bounds };
    let rest = world.rest();
    (rest.faults, rest.commands, rest.offers) = (0, 0, 0);
    for _ in 0..PATIENCE {
        if world.ended(bounds) || world.rest.broken.is_some() {
            return true;
        }
        let free: Vec<Event> = events(world, &calm).into_iter().filter(Event::is_free).collect();
        let Some(event) = dice.pick(&free) else { return false };
        let mut found = Vec::new();
        happen(world, &calm, event, &mut found);
        let (cause, after) = found.swap_remove(0);
        if after != *world {
            trace.push(cause);
        }
        *world = after;
    }
    false
}

fn walk(seed: u64) -> usize {
    let mut dice = Dice::new(seed);
    let bounds = bounds(&mut dice);
    let mut world = first(&bounds);
    let mut trace = Vec::new();
    for _ in 0..STEPS {
        let Some((cause, after)) = choose(&world, &bounds, &mut dice) else { break };
        if after != world {
            trace.push(cause);
        }
        world = after;
        if world.rest.broken.is_some() {
            break;
        }
    }
    let ends = world.rest.broken.is_some() || settle(&mut world, &bounds, &mut dice, &mut trace);
    let wrong = world.rest.broken.or((!ends).then_some("no end is reached"));
    if let Some(what) = wrong {
        let steps: Vec<String> = trace.iter().map(|cause| format!("{cause:?}")).collect();
        let last = steps.len().saturating_sub(400);
        panic!("seed {seed} ({bounds}): {what}\n{}\n{world}", steps[last..].join("\n"));
    }
    trace.len()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `HANDOVER_SEED` repeats a walk that failed, `HANDOVER_WALKS` makes more of them.
#[test]
fn random_walks() {
    let began = Instant::now();
    if let Some(seed) = number("HANDOVER_SEED") {
        println!("seed {seed}: {} steps", walk(seed));
        return;
    }
    let walks = number("HANDOVER_WALKS").unwrap_or(1_000);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = now.as_secs() << 20;
    let steps: usize = (0..walks).map(|n| walk(seed + n)).sum();
    let seconds = began.elapsed().as_secs_f64();
    println!("random walks from seed {seed}: {walks} walks, {steps} steps, {seconds:.1} s");
}
