//! The arbiter as its users see it: a request is carried out at some time, also after its asker
//! gave up or died; the answer says what stood there then, and arrives later or never.

use migrate_engine::handover::effect::{Effect, Input};

use crate::bugs::Bug;
use crate::step::Step;
use crate::world::{Arbiter, World};

impl Step<'_> {
    fn arbiter(&mut self) -> &mut Arbiter {
        self.world.rest().arbiter.as_mut().unwrap()
    }

    /// A request is on its way.
    pub fn ask(&mut self, host: usize, effect: Effect) {
        if let Effect::CompareAndSet { want, .. } = effect {
            let gives = crate::world::index(want.host) != host;
            let skipped = if gives { Bug::CommitWithoutArbiter } else { Bug::AbortWithoutArbiter };
            if self.bounds.has(skipped) {
                return self.feed(host, Input::Arbiter(want));
            }
        }
        let asked = (host, effect);
        if let Err(at) = self.arbiter().asked.binary_search(&asked) {
            self.arbiter().asked.insert(at, asked);
        }
    }

    /// The arbiter carries out a request.
    pub fn decide(&mut self, at: usize) {
        let blind = self.bounds.has(Bug::ArbiterOverwrites);
        let arbiter = self.arbiter();
        let (host, effect) = arbiter.asked.remove(at);
        if let Effect::CompareAndSet { expect, want } = effect
            && (arbiter.key == expect || blind)
        {
            arbiter.key = want;
        }
        let answer = (host, arbiter.key);
        if let Err(at) = arbiter.told.binary_search(&answer) {
            arbiter.told.insert(at, answer);
        }
        self.world.check_arbiter();
    }

    /// Its answer arrives.
    pub fn told(&mut self, at: usize) {
        let (host, stamp) = self.arbiter().told.remove(at);
        self.feed(host, Input::Arbiter(stamp));
    }

    /// It does not: the asker gives up waiting. What it asked for may still be done.
    pub fn silent(&mut self, host: usize) {
        self.arbiter().told.retain(|(asker, _)| *asker != host);
        if self.bounds.has(Bug::SilenceIsNo)
            && let Some(migrate_engine::handover::source::State::Deciding { switch, cede: true }) =
                self.world.hosts[host].source().copied()
        {
            return self.feed(host, Input::Arbiter(switch.withdrawn()));
        }
        self.feed(host, Input::ArbiterSilent);
    }
}

/// Whether `host` waits for an answer.
pub fn waits(world: &World, host: usize) -> bool {
    world.rest.arbiter.as_ref().is_some_and(|a| {
        a.asked.iter().any(|(asker, _)| *asker == host)
            || a.told.iter().any(|(asker, _)| *asker == host)
    })
}

/// The asker is dead: its answers and questions are lost, but not its wishes.
pub fn forget(world: &mut World, host: usize) {
    if waits(world, host)
        && let Some(arbiter) = &mut world.rest().arbiter
    {
        arbiter.told.retain(|(asker, _)| *asker != host);
        arbiter.asked.retain(|(asker, e)| *asker != host || *e != Effect::ReadArbiter);
    }
}
