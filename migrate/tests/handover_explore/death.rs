//! How parties die: at any moment, and between any two effects of what they are doing.

use crate::arbiter;
use crate::bounds::{Bounds, Operator};
use crate::events::{Event, events};
use crate::step::Step;
use crate::world::{Party, World};

/// What dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The process, or the daemon.
    Killed,
    /// The host, which comes back at once.
    Rebooted,
    /// The host, which comes back some day.
    SwitchedOff,
}

/// How a party dies in the middle of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// After so many effects of the event.
    pub after: usize,
    pub how: How,
    /// So many queued records survive.
    pub kept: usize,
}

/// What led to a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    pub event: Event,
    pub death: Option<Death>,
}

impl Cause {
    /// It happens by itself.
    pub fn is_free(&self) -> bool {
        self.death.is_none() && self.event.is_free()
    }
}

/// Where every exploration begins.
pub fn first(bounds: &Bounds) -> World {
    let mut step = Step::new(&World::start(bounds), bounds, true);
    for host in 1..bounds.hosts {
        step.adopt(host);
    }
    step.world
}

/// All worlds that may follow.
pub fn next(world: &World, bounds: &Bounds, found: &mut Vec<(Cause, World)>) {
    for event in events(world, bounds) {
        happen(world, bounds, event, found);
    }
    if world.rest.faults > 0 {
        for host in 0..bounds.hosts {
            let after = |how, kept| Cause {
                event: Event::Kill(host),
                death: Some(Death { after: 0, how, kept }),
            };
            deaths(world, bounds, host, &after, found);
        }
    }
}

/// One event, and every death in the middle of it.
pub fn happen(world: &World, bounds: &Bounds, event: Event, found: &mut Vec<(Cause, World)>) {
    let mut step = Step::new(world, bounds, world.rest.faults == 0);
    step.apply(event);
    let Step { world: whole, cuts, .. } = step;
    found.push((Cause { event, death: None }, whole));
    for (before, cut) in cuts.into_iter().enumerate() {
        if cut.rest.faults == 0 || matches!(event, Event::Decide(_) | Event::Told(_)) {
            continue;
        }
        let after =
            |how, kept| Cause { event, death: Some(Death { after: before + 1, how, kept }) };
        deaths(&cut, bounds, event.host(), &after, found);
    }
}

fn deaths(
    world: &World,
    bounds: &Bounds,
    host: usize,
    after: &dyn Fn(How, usize) -> Cause,
    found: &mut Vec<(Cause, World)>,
) {
    let h = &world.hosts[host];
    for how in [How::Killed, How::Rebooted, How::SwitchedOff] {
        let skip = match how {
            How::Killed => h.party == Party::Nobody,
            How::Rebooted => h.down,
            // Otherwise nobody can tell it from a reboot.
            How::SwitchedOff => h.down || bounds.operator == Operator::Absent,
        };
        if skip {
            continue;
        }
        for kept in 0..=h.queue.len() {
            found.push((after(how, kept), die(world, bounds, host, how, kept)));
        }
    }
}

/// The party dies, alone or with its host, and a daemon takes its place. That nobody does for a
/// while looks the same to everybody else.
fn die(world: &World, bounds: &Bounds, host: usize, how: How, kept: usize) -> World {
    let mut step = Step::new(world, bounds, true);
    step.world.rest().faults -= 1;
    for record in std::mem::take(&mut step.world.host(host).queue).into_iter().take(kept) {
        step.durable(host, record);
    }
    let h = step.world.host(host);
    h.party = Party::Nobody;
    if how != How::Killed {
        h.marks.clear();
        h.boot += 1;
        h.down = how == How::SwitchedOff;
        step.rebooted(host);
    }
    arbiter::forget(&mut step.world, host);
    step.world.unlock(host);
    if how != How::SwitchedOff {
        step.adopt(host);
    }
    step.world.forget_words();
    step.world
}
