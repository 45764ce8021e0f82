//! What may happen next in a world: every event, with every way in which a party may die in the
//! middle of it.

use migrate_engine::handover::daemon::{Acting, Keeper};
use migrate_engine::handover::effect::{Effect, Input, Timer};
use migrate_engine::handover::gate;
use migrate_engine::handover::journal::{Mark, Record};
use migrate_engine::handover::message::{
    Body, Message, SourceSays, TargetSays, ToSource, ToTarget, from_ledger,
};
use migrate_engine::handover::source::{self, Source};
use migrate_engine::handover::target::{self, Target};
use migrate_engine::handover::term::{Beside, QuestionId, Stamp, SwitchId, Term};

use crate::bugs::Bug;
use crate::world::{Bounds, Guest, NOW, Packet, Party, Process, Role, World, boot, id, index};

/// One event. Faults are events too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Deliver(Packet),
    Timer(usize, Timer),
    Cancel(usize),
    /// A source and a receiver start an attempt.
    Attempt(usize),
    Switch(usize),
    /// The first pending effect is done, and answered.
    Answer(usize),
    /// The first pending effect fails.
    Fails(usize),
    /// The first queued record becomes durable.
    Durable(usize),
    StreamsEnd(usize),
    /// A process that has nothing to do any more ends.
    Exit(usize),
    /// A daemon acts for a process that only sleeps.
    Overrule(usize),
    /// A stopped guest is started from its disks.
    Start(usize),
    Drop,
    Kill(usize),
}

/// How a party dies in the middle of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// After so many effects of the event.
    pub after: usize,
    /// With its host.
    pub reboot: bool,
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
    pub fn is_fault(&self) -> bool {
        self.death.is_some() || matches!(self.event, Event::Fails(_) | Event::Drop)
    }
}

/// All worlds that may follow.
pub fn next(world: &World, bounds: &Bounds) -> Vec<(Cause, World)> {
    let mut found = Vec::new();
    for event in events(world, bounds) {
        let mut whole = Step::new(world, bounds, usize::MAX);
        whole.apply(event);
        let done = whole.done;
        if let (Some(host), true) = (actor(event), world.faults > 0) {
            for after in 1..done {
                let mut cut = Step::new(world, bounds, after);
                cut.apply(event);
                deaths(&cut.world, bounds, event, host, after, &mut found);
            }
        }
        found.push((Cause { event, death: None }, whole.world));
    }
    if world.faults > 0 {
        for host in 0..2 {
            let event = Event::Kill(host);
            deaths(world, bounds, event, host, 0, &mut found);
        }
    }
    found
}

/// The host at which an event happens.
fn actor(event: Event) -> Option<usize> {
    match event {
        Event::Deliver(packet) => Some(receiver(&packet.message)),
        Event::Timer(host, _)
        | Event::Answer(host)
        | Event::Durable(host)
        | Event::Switch(host)
        | Event::Cancel(host) => Some(host),
        _ => None,
    }
}

fn receiver(message: &Message) -> usize {
    index(match message.body {
        Body::ToTarget(_) => message.switch.to,
        Body::ToSource(_) => message.switch.from,
    })
}

fn deaths(
    world: &World,
    bounds: &Bounds,
    event: Event,
    host: usize,
    after: usize,
    found: &mut Vec<(Cause, World)>,
) {
    for reboot in [false, true] {
        if !reboot && world.hosts[host].party == Party::Nobody {
            continue;
        }
        for kept in 0..=world.hosts[host].queue.len() {
            let mut dead = world.clone();
            dead.faults -= 1;
            dead = die(dead, bounds, host, reboot, kept);
            found.push((Cause { event, death: Some(Death { after, reboot, kept }) }, dead));
        }
    }
}

/// The party dies, alone or with its host, and a daemon takes its place. That nobody does for a
/// while looks the same to everybody else.
fn die(mut world: World, bounds: &Bounds, host: usize, reboot: bool, kept: usize) -> World {
    for record in std::mem::take(&mut world.hosts[host].queue).into_iter().take(kept) {
        durable(&mut world, host, record);
    }
    let h = &mut world.hosts[host];
    h.party = Party::Nobody;
    if reboot {
        h.marks.clear();
        h.boot += 1;
    }
    unlock(&mut world, host);
    let mut step = Step::new(&world, bounds, usize::MAX);
    step.adopt(host);
    step.world
}

/// Where every exploration begins.
pub fn first(bounds: &Bounds) -> World {
    let mut step = Step::new(&World::start(bounds), bounds, usize::MAX);
    step.adopt(1);
    step.world
}

fn unlock(world: &mut World, host: usize) {
    for lock in [&mut world.disk.owner, &mut world.disk.next] {
        if *lock == Some(host) {
            *lock = None;
        }
    }
}

/// A record reaches the platter.
fn durable(world: &mut World, host: usize, record: Record) {
    let h = &mut world.hosts[host];
    let open = matches!(h.ledger.now(), Some(Record::Offered(_)));
    let by_daemon = matches!(h.party, Party::Daemon(..));
    world.daemon_withdrew |= open && by_daemon && matches!(record, Record::Owner { .. });
    match h.ledger.apply(record, boot(h.boot)) {
        Ok(ledger) => h.ledger = ledger,
        Err(_) => return world.fail("a record does not follow"),
    }
    if let Some(right) = h.ledger.owned() {
        world.right(right);
    }
    if world.two_owners() {
        world.fail("two journals own the guest");
    }
}

/// Everything that may happen, without the faults.
fn events(world: &World, bounds: &Bounds) -> Vec<Event> {
    let mut events: Vec<Event> = world.net.iter().map(|p| Event::Deliver(*p)).collect();
    if bounds.drops && !world.net.is_empty() {
        events.push(Event::Drop);
    }
    for host in 0..2 {
        let h = &world.hosts[host];
        if !h.queue.is_empty() {
            events.push(Event::Durable(host));
        }
        match &h.party {
            Party::Nobody => {}
            Party::Daemon(keeper, todo) => {
                events.push(Event::Timer(host, Timer::Again));
                if !todo.is_empty() {
                    events.push(Event::Answer(host));
                }
                let free = world.disk.owner.is_none() && world.disk.next.is_none();
                let settled = *keeper.acting() == Acting::Settled;
                let may = h.ledger.owned().is_some() || bounds.has(Bug::NoGate);
                if settled && may && (free || !bounds.shared) {
                    events.push(Event::Start(host));
                }
            }
            Party::Process(process) => process_events(world, host, process, bounds, &mut events),
        }
        if bounds.has(Bug::NoJournalLock) && h.process().is_some_and(|p| !p.todo.is_empty()) {
            events.push(Event::Overrule(host));
        }
    }
    events
}

fn process_events(
    world: &World,
    host: usize,
    process: &Process,
    bounds: &Bounds,
    events: &mut Vec<Event>,
) {
    let h = &world.hosts[host];
    if let Some(first) = process.todo.first() {
        events.push(Event::Answer(host));
        if world.faults > 0
            && matches!(first, Effect::Restore | Effect::CompareAndSet { .. } | Effect::ReadArbiter)
        {
            events.push(Event::Fails(host));
        }
    }
    let other = &world.hosts[1 - host];
    let receives = other.ledger.owned().is_none()
        && matches!(&other.party, Party::Daemon(k, _) if *k.acting() == Acting::Settled);
    let may_offer = world.offers > 0
        && receives
        && h.runs()
        && h.queue.is_empty()
        && world.source_setup(host, bounds).is_some();
    match &process.role {
        Role::Plain if may_offer => events.push(Event::Attempt(host)),
        Role::Plain => {}
        Role::Source(source) => {
            events.push(Event::Timer(host, Timer::Again));
            match source.state() {
                source::State::Copying if world.offers > 0 => events.push(Event::Switch(host)),
                source::State::Offered(_) => events.push(Event::Cancel(host)),
                source::State::Stopping { .. }
                | source::State::InDoubt(_)
                | source::State::Deciding { .. } => {
                    events.push(Event::Timer(host, Timer::Deadline));
                }
                source::State::Kept { .. } if may_offer => events.push(Event::Attempt(host)),
                source::State::Moved if h.queue.is_empty() => events.push(Event::Exit(host)),
                _ => {}
            }
        }
        Role::Target(target) => {
            events.push(Event::Timer(host, Timer::Again));
            match target.state() {
                target::State::Receiving { switch, ended: false } => {
                    let from = &world.hosts[index(switch.from)];
                    let alive = from.process().is_some_and(
                        |p| matches!(&p.role, Role::Source(s) if s.switch() == Some(switch)),
                    );
                    if !alive {
                        events.push(Event::StreamsEnd(host));
                    }
                }
                target::State::Running { durable: true, .. } if may_offer => {
                    events.push(Event::Attempt(host));
                }
                target::State::Buried(_) | target::State::NotTaken => {
                    events.push(Event::Exit(host));
                }
                _ => {}
            }
        }
    }
}

/// One event being applied; it stops dead after so many effects.
struct Step<'a> {
    world: World,
    bounds: &'a Bounds,
    done: usize,
    limit: usize,
}

impl<'a> Step<'a> {
    fn new(world: &World, bounds: &'a Bounds, limit: usize) -> Self {
        Self { world: world.clone(), bounds, done: 0, limit }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Deliver(packet) => self.deliver(packet),
            Event::Timer(host, timer) => self.timer(host, timer),
            Event::Cancel(host) => self.feed(host, Input::Cancel),
            Event::Attempt(host) => {
                if let Some(setup) = self.world.source_setup(host, self.bounds) {
                    self.process(host).role = Role::Source(Source::new(setup));
                    self.receiver(1 - host);
                }
            }
            Event::Switch(host) => {
                self.world.offers -= 1;
                let switch = SwitchId(self.world.offers.into());
                let beside = self.world.disk.beside;
                self.feed(host, Input::Switch { id: switch, beside, pause_ms: 1 });
            }
            Event::Answer(host) => self.answer(host),
            Event::Fails(host) => {
                self.world.faults -= 1;
                let input = match self.todo(host).remove(0) {
                    Effect::Restore => Input::RestoreFailed,
                    _ => Input::ArbiterSilent,
                };
                self.feed(host, input);
            }
            Event::Durable(host) => {
                let record = self.world.hosts[host].queue.remove(0);
                durable(&mut self.world, host, record);
                self.feed(host, Input::Recorded(record));
            }
            Event::StreamsEnd(host) => {
                let lost = |p: &Packet| {
                    receiver(&p.message) == host
                        && matches!(p.message.body, Body::ToTarget(ToTarget::LastPiece { .. }))
                };
                self.world.net.retain(|p| !lost(p));
                self.feed(host, Input::StreamsEnded);
            }
            Event::Exit(host) => {
                self.world.hosts[host].party = Party::Nobody;
                unlock(&mut self.world, host);
                self.adopt(host);
            }
            Event::Overrule(host) => self.adopt(host),
            Event::Start(host) => self.start(host),
            Event::Drop => self.world.net.clear(),
            Event::Kill(_) => {}
        }
    }

    fn receiver(&mut self, host: usize) {
        // It has connections of its own: data of earlier attempts does not come through them.
        let old = |p: &Packet| {
            let what = p.message.body;
            receiver(&p.message) == host
                && matches!(what, Body::ToTarget(ToTarget::Offer | ToTarget::LastPiece { .. }))
        };
        self.world.net.retain(|p| !old(p));
        let highest = self.world.hosts[host].ledger.highest();
        let target = Target::new(target::Setup { host: id(host), highest });
        self.world.hosts[host].party = Party::Process(Process {
            role: Role::Target(target),
            todo: vec![],
            guest: Guest::Empty,
        });
    }

    fn process(&mut self, host: usize) -> &mut Process {
        match &mut self.world.hosts[host].party {
            Party::Process(process) => process,
            other => panic!("no process on host {host}: {other:?}"),
        }
    }

    fn todo(&mut self, host: usize) -> &mut Vec<Effect> {
        match &mut self.world.hosts[host].party {
            Party::Process(process) => &mut process.todo,
            Party::Daemon(_, todo) => todo,
            Party::Nobody => panic!("nobody on host {host}"),
        }
    }

    fn deliver(&mut self, mut packet: Packet) {
        let host = receiver(&packet.message);
        if self.bounds.has(Bug::TombstoneOnUndecided)
            && packet.message.body == Body::ToTarget(ToTarget::Says(SourceSays::Undecided))
        {
            packet.message.body = Body::ToTarget(ToTarget::Says(SourceSays::Withdrawn));
        }
        self.lies(&mut packet);
        let before = self.world.hosts[host].target().copied();
        self.feed(host, Input::Heard(packet.message));
        let now = self.world.hosts[host].target().copied();
        if let (Some(target::State::Receiving { .. }), Some(target::State::Restoring(_))) =
            (before, now)
        {
            self.process(host).guest = Guest::Frozen(packet.memory);
        }
    }

    /// Planted bugs in what the source's side makes of the target's words.
    fn lies(&self, packet: &mut Packet) {
        let Body::ToSource(ToSource::Says(says, question)) = packet.message.body else { return };
        let mut heard = (says, question);
        let lost = says == TargetSays::LostMemory;
        if self.bounds.has(Bug::DecideOnLostMemory) && lost {
            heard.0 = TargetSays::NotPrepared;
        }
        if self.bounds.has(Bug::ReturnOnLostMemory) && lost {
            heard = (TargetSays::NeverRan, None);
        }
        if self.bounds.has(Bug::NotPreparedTooEarly) && says == TargetSays::NotYet {
            heard.0 = TargetSays::NotPrepared;
        }
        packet.message.body = Body::ToSource(ToSource::Says(heard.0, heard.1));
    }

    fn timer(&mut self, host: usize, timer: Timer) {
        let in_doubt = match self.world.hosts[host].source() {
            Some(source::State::InDoubt(switch)) => Some(*switch),
            _ => None,
        };
        self.feed(host, Input::Timer(timer));
        // The bug answers for the journal and the disks.
        if let (Some(switch), Timer::Deadline) = (in_doubt, timer)
            && self.bounds.has(Bug::ResumeOnTimeout)
        {
            self.world.hosts[host].queue.clear();
            self.feed(host, Input::Recorded(Record::Withdrawn(switch)));
            self.todo(host).clear();
            self.feed(host, Input::Stamped(switch.term));
        }
    }

    fn adopt(&mut self, host: usize) {
        let h = &mut self.world.hosts[host];
        h.asked += 1;
        let mut now = boot(h.boot);
        if self.bounds.has(Bug::MarksOutliveBoot) {
            now = h.ledger.boot();
        }
        let question = QuestionId(h.asked.into());
        let (keeper, effects) = Keeper::adopt(
            h.ledger.clone(),
            now,
            h.marks.clone(),
            question,
            self.bounds.arbiter,
            NOW,
        );
        if let Party::Process(process) = &h.party {
            // The bug: the process sleeps. It is not dead, and wakes up some day.
            let asleep = process.clone();
            return self.beside(host, keeper, effects, asleep);
        }
        h.party = Party::Daemon(keeper, vec![]);
        self.perform(host, effects);
    }

    /// The daemon acts to its first record and its word, while the process lives.
    fn beside(&mut self, host: usize, keeper: Keeper, effects: Vec<Effect>, asleep: Process) {
        self.world.hosts[host].party = Party::Daemon(keeper, vec![]);
        self.perform(host, effects);
        if !self.world.hosts[host].queue.is_empty() {
            self.apply(Event::Durable(host));
        }
        self.world.hosts[host].party = Party::Process(asleep);
    }

    /// Atomically: locks, gate, record, stamp, run.
    fn start(&mut self, host: usize) {
        let (h, beside) = (&self.world.hosts[host], self.world.disk.beside);
        let known = Term::above(&[h.ledger.highest(), beside.highest()]);
        let term = match gate::start(&h.ledger, &beside) {
            Ok(term) => term,
            Err(_) if self.bounds.has(Bug::NoGate) => known,
            Err(_) => return,
        };
        if self.bounds.has(Bug::NoGate) {
            self.world.right(Stamp { term, host: id(host) });
        } else {
            durable(&mut self.world, host, Record::Owner { term });
        }
        if self.bounds.shared {
            self.world.disk.owner = Some(host);
            self.world.disk.beside.owner = Stamp { term, host: id(host) };
        }
        if let Some(key) = &mut self.world.key {
            *key = Stamp { term, host: id(host) };
        }
        self.world.colds += 1;
        self.world.hosts[host].party = Party::Process(Process {
            role: Role::Plain,
            todo: vec![],
            guest: Guest::Frozen(self.world.version),
        });
        self.world.run(host, self.bounds);
    }

    /// Gives an input to whoever acts on `host`.
    fn feed(&mut self, host: usize, input: Input) {
        let h = &mut self.world.hosts[host];
        let ledger = h.ledger.clone();
        let (ours, effects) = match &mut h.party {
            Party::Nobody => return,
            Party::Daemon(keeper, _) => {
                let Ok((next, effects)) = keeper.clone().step(input, NOW) else {
                    return self.world.fail("a daemon's record does not follow");
                };
                *keeper = next;
                (true, effects)
            }
            Party::Process(process) => match &mut process.role {
                Role::Plain => (false, vec![]),
                Role::Source(source) => {
                    let (next, effects) = source.step(input, NOW);
                    *source = next;
                    (is_about(source.switch().map(|s| s.id), input), effects)
                }
                Role::Target(target) => {
                    let (next, effects) = target.step(input, NOW);
                    *target = next;
                    (is_about(target.switch().map(|s| s.id), input), effects)
                }
            },
        };
        if let (false, true, Input::Heard(message)) = (ours, effects.is_empty(), input)
            && let Some(reply) = from_ledger(&ledger, &message)
        {
            return self.perform(host, vec![Effect::Send(reply)]);
        }
        self.perform(host, effects);
    }

    /// Does what can be done at once, in order; the rest waits.
    fn perform(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            if self.done == self.limit {
                return;
            }
            self.done += 1;
            match effect {
                Effect::Send(message) => self.send(host, message),
                Effect::Commit(switch) => {
                    let says = ToTarget::Says(SourceSays::Ceded);
                    self.send(host, Message::to_target(switch, says));
                }
                Effect::Record(record) => self.record(host, record),
                Effect::Mark(mark) => {
                    let skip = match mark {
                        Mark::Ceded(_) => Bug::NoCededMark,
                        Mark::Ran(_) => Bug::NoRanMark,
                    };
                    let marks = &mut self.world.hosts[host].marks;
                    if !self.bounds.has(skip) && !marks.contains(&mark) {
                        marks.push(mark);
                        marks.sort();
                    }
                    self.feed(host, Input::Marked(mark));
                }
                Effect::DropOwner if self.world.disk.owner == Some(host) => {
                    self.world.disk.owner = None;
                }
                Effect::DropNext if self.world.disk.next == Some(host) => {
                    self.world.disk.next = None;
                }
                Effect::Resume | Effect::Run { .. } => {
                    self.todo(host).retain(|e| !matches!(e, Effect::Pause | Effect::LastRound));
                    self.world.run(host, self.bounds);
                    if let Some(target::State::Running { switch, .. }) =
                        self.world.hosts[host].target().copied()
                    {
                        self.world.right(switch.moved());
                    }
                }
                Effect::Discard => {
                    self.todo(host).retain(|e| !matches!(e, Effect::Restore));
                    self.process(host).guest = Guest::Empty;
                }
                Effect::StampOffer(_)
                | Effect::Stamp(_)
                | Effect::TakeOwner
                | Effect::TakeNext
                | Effect::CompareAndSet { .. }
                | Effect::ReadArbiter
                | Effect::Pause
                | Effect::LastRound
                | Effect::Restore
                | Effect::Audit => {
                    let quick = self.bounds.coarse && is_quick(&effect);
                    let todo = self.todo(host);
                    if todo.contains(&effect) {
                        continue;
                    }
                    todo.insert(if quick { 0 } else { todo.len() }, effect);
                    if quick {
                        self.answer(host);
                    }
                }
                Effect::DropOwner
                | Effect::DropNext
                | Effect::EndAttempt
                | Effect::SetTimer(..)
                | Effect::Report(_) => self.done -= 1,
            }
        }
    }

    fn send(&mut self, host: usize, message: Message) {
        if !self.bounds.drops && self.bounds.bug.is_none() && says_nothing(&message) {
            return;
        }
        let memory = match (message.body, self.world.hosts[host].process()) {
            (
                Body::ToTarget(ToTarget::LastPiece { .. }),
                Some(Process { guest: Guest::Frozen(memory), .. }),
            ) => *memory,
            _ => 0,
        };
        self.world.send(Packet { message, memory });
    }

    fn record(&mut self, host: usize, record: Record) {
        let queue = &mut self.world.hosts[host].queue;
        if !queue.contains(&record) {
            queue.push(record);
        }
        let early = match record {
            Record::Offered(_) => Bug::EarlyOffered,
            Record::Receiving(_) => Bug::EarlyReceiving,
            Record::Withdrawn(_) => Bug::EarlyWithdrawn,
            Record::Tombstone(_) => Bug::EarlyTombstone,
            _ => return,
        };
        if self.bounds.has(early) {
            self.feed(host, Input::Recorded(record));
        }
    }

    /// Does the first pending effect.
    fn answer(&mut self, host: usize) {
        let shared = self.bounds.shared;
        let effect = self.todo(host).remove(0);
        let disk = &mut self.world.disk;
        let beside = disk.beside;
        let take = |lock: &mut Option<usize>| {
            let free = !shared || lock.is_none() || *lock == Some(host);
            if free && shared {
                *lock = Some(host);
            }
            free
        };
        let input = match effect {
            Effect::TakeOwner if take(&mut disk.owner) => Input::OwnerTaken(beside),
            Effect::TakeOwner => Input::OwnerBusy,
            Effect::TakeNext if take(&mut disk.next) => Input::NextTaken(beside),
            Effect::TakeNext => Input::NextBusy,
            Effect::StampOffer(term) => {
                if shared {
                    disk.beside.offered = disk.beside.offered.max(term);
                }
                Input::OfferStamped
            }
            Effect::Stamp(term) => {
                if shared {
                    disk.beside.owner = Stamp { term, host: id(host) };
                }
                Input::Stamped(term)
            }
            Effect::CompareAndSet { expect, want } => {
                if self.world.key == Some(expect) {
                    self.world.key = Some(want);
                }
                Input::Arbiter(self.world.key.unwrap_or(Beside::NOTHING.owner))
            }
            Effect::ReadArbiter => Input::Arbiter(self.world.key.unwrap_or(Beside::NOTHING.owner)),
            Effect::Pause => {
                let process = self.process(host);
                if let Guest::Running(memory) = process.guest {
                    process.guest = Guest::Frozen(memory);
                }
                Input::Paused
            }
            Effect::LastRound => Input::LastRoundDone,
            Effect::Restore => Input::Restored,
            Effect::Audit => Input::Audited { same: true },
            other => panic!("{other:?} has no answer"),
        };
        self.feed(host, input);
    }
}

fn is_about(ours: Option<SwitchId>, input: Input) -> bool {
    match input {
        Input::Heard(message) => ours == Some(message.switch.id),
        _ => true,
    }
}

fn is_quick(effect: &Effect) -> bool {
    !matches!(effect, Effect::Restore | Effect::CompareAndSet { .. } | Effect::ReadArbiter)
}

/// Where nothing in flight is ever lost, these change nothing at any receiver: what they would
/// make it say is under way already.
fn says_nothing(message: &Message) -> bool {
    matches!(
        message.body,
        Body::ToTarget(ToTarget::Says(SourceSays::Undecided))
            | Body::ToSource(ToSource::Says(TargetSays::NotYet, _))
    )
}
