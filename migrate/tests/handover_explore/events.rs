//! What may happen in a world.

use migrate_engine::handover::daemon::Acting;
use migrate_engine::handover::effect::{Effect, Input, Timer};
use migrate_engine::handover::message::{Body, ToTarget};
use migrate_engine::handover::source::{self, Source};
use migrate_engine::handover::target::{self, Target};
use migrate_engine::handover::term::SwitchId;

use crate::arbiter::waits;
use crate::bounds::{Bounds, Operator};
use crate::bugs::Bug;
use crate::operator::{Say, may_load, may_start, plan};
use crate::step::Step;
use crate::world::{Guest, Host, Packet, Party, Process, Role, World, id, index, receiver, sender};

/// One event. Faults are events too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Deliver(Packet),
    Timer(usize, Timer),
    /// Also: the link is gone for too long.
    Cancel(usize),
    /// A source and a receiver start an attempt.
    Attempt(usize, usize),
    Switch(usize),
    /// The first pending effect is done, and answered.
    Answer(usize),
    /// The first pending effect fails; it may be done all the same.
    Fails(usize, bool),
    /// The first queued record becomes durable.
    Durable(usize),
    /// It fails; it may be there all the same.
    RecordFails(usize, bool),
    /// The arbiter carries out a request.
    Decide(usize),
    /// An answer of the arbiter arrives.
    Told(usize),
    /// None does.
    Silent(usize),
    /// Nothing more comes through the connections of a receiver, whose source may live.
    StreamsEnd(usize, bool),
    /// The link to a source in doubt is back, and it says the last piece again.
    LinkBack(usize),
    /// A process that has nothing to do any more ends.
    Exit(usize),
    /// A daemon acts for a process that only sleeps.
    Overrule(usize),
    /// A stopped guest is started from its disks.
    Start(usize),
    Save(usize),
    Load(usize),
    Pause(usize),
    Resume(usize),
    GuestEnds(usize),
    /// On the word of an operator; the other hosts that answer, as bits.
    Resolve(usize, Say, u8),
    /// Everything in flight to a host is lost.
    Drop(usize),
    PowerOn(usize),
    Kill(usize),
}

impl Event {
    /// It happens by itself, sooner or later: nobody has to wish it, nothing has to break.
    pub fn is_free(&self) -> bool {
        matches!(
            self,
            Self::Deliver(_)
                | Self::Timer(..)
                | Self::Cancel(_)
                | Self::Switch(_)
                | Self::Answer(_)
                | Self::Durable(_)
                | Self::Decide(_)
                | Self::Told(_)
                | Self::StreamsEnd(_, false)
                | Self::LinkBack(_)
                | Self::Exit(_)
                | Self::Start(_)
                | Self::PowerOn(_)
        )
    }

    /// It costs a command.
    fn is_command(&self) -> bool {
        matches!(
            self,
            Self::Save(_)
                | Self::Load(_)
                | Self::Pause(_)
                | Self::Resume(_)
                | Self::GuestEnds(_)
                | Self::Resolve(..)
        )
    }

    /// It costs a fault.
    fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Fails(..) | Self::RecordFails(..) | Self::Silent(_) | Self::StreamsEnd(_, true)
        )
    }

    /// The host at which it happens.
    pub fn host(&self) -> usize {
        match *self {
            Self::Deliver(packet) => receiver(&packet.message),
            Self::Decide(_) | Self::Told(_) => 0,
            Self::Timer(host, _)
            | Self::Cancel(host)
            | Self::Attempt(host, _)
            | Self::Switch(host)
            | Self::Answer(host)
            | Self::Fails(host, _)
            | Self::Durable(host)
            | Self::RecordFails(host, _)
            | Self::Silent(host)
            | Self::StreamsEnd(host, _)
            | Self::LinkBack(host)
            | Self::Exit(host)
            | Self::Overrule(host)
            | Self::Start(host)
            | Self::Save(host)
            | Self::Load(host)
            | Self::Pause(host)
            | Self::Resume(host)
            | Self::GuestEnds(host)
            | Self::Resolve(host, ..)
            | Self::Drop(host)
            | Self::PowerOn(host)
            | Self::Kill(host) => host,
        }
    }
}

/// Everything that may happen, without the deaths.
pub fn events(world: &World, bounds: &Bounds) -> Vec<Event> {
    let arrives = |p: &&Packet| bounds.cut != Some((sender(&p.message), receiver(&p.message)));
    let mut events: Vec<Event> =
        world.net.iter().filter(arrives).map(|p| Event::Deliver(*p)).collect();
    if let Some(arbiter) = &world.rest.arbiter {
        events.extend((0..arbiter.asked.len()).map(Event::Decide));
        events.extend((0..arbiter.told.len()).map(Event::Told));
    }
    for host in 0..bounds.hosts {
        if bounds.drops && world.net.iter().any(|p| receiver(&p.message) == host) {
            events.push(Event::Drop(host));
        }
        host_events(world, host, bounds, &mut events);
        if world.rest.commands > 0 {
            commands(world, host, bounds, &mut events);
        }
    }
    events
}

fn host_events(world: &World, host: usize, bounds: &Bounds, events: &mut Vec<Event>) {
    let h = &world.hosts[host];
    let faults = world.rest.faults > 0;
    if !h.queue.is_empty() {
        events.push(Event::Durable(host));
        if faults {
            events.extend([false, true].map(|there| Event::RecordFails(host, there)));
        }
    }
    if faults && waits(world, host) {
        events.push(Event::Silent(host));
    }
    match &h.party {
        Party::Nobody if h.down && !h.gone => events.push(Event::PowerOn(host)),
        Party::Nobody => {}
        Party::Daemon(keeper, todo) => {
            if !todo.is_empty() {
                events.push(Event::Answer(host));
            }
            if *keeper.acting() == Acting::Settled || bounds.has(Bug::NoGate) {
                if may_start(world, bounds, host).is_some() {
                    events.push(Event::Start(host));
                }
            } else {
                events.push(Event::Timer(host, Timer::Again));
            }
        }
        Party::Process(process) => process_events(world, host, process, bounds, events),
    }
    if bounds.has(Bug::NoJournalLock) && h.process().is_some_and(|p| !p.todo.is_empty()) {
        events.push(Event::Overrule(host));
    }
}

/// Effects that may be seen to fail.
fn may_fail(effect: &Effect) -> &'static [bool] {
    match effect {
        Effect::Restore | Effect::LastRound => &[false],
        Effect::Stamp(_) | Effect::StampOffer(_) | Effect::Mark(_) => &[false, true],
        _ => &[],
    }
}

/// A guest that is not on its way may be moved to a host that is free for it.
fn attempts(world: &World, host: usize, bounds: &Bounds, events: &mut Vec<Event>) {
    let h = &world.hosts[host];
    let movable = h.process().is_some_and(|p| p.is_calm() && p.has_guest());
    if world.rest.offers == 0 || !movable || !h.queue.is_empty() || h.ledger.owned().is_none() {
        return;
    }
    for to in (0..bounds.hosts).filter(|to| *to != host) {
        let there = &world.hosts[to];
        let free = there.ledger.owned().is_none()
            && there.queue.is_empty()
            && matches!(&there.party, Party::Daemon(k, todo) if todo.is_empty()
                && matches!(k.acting(), Acting::Settled | Acting::AskingFate(_)));
        if free {
            events.push(Event::Attempt(host, to));
        }
    }
}

fn process_events(
    world: &World,
    host: usize,
    process: &Process,
    bounds: &Bounds,
    events: &mut Vec<Event>,
) {
    attempts(world, host, bounds, events);
    if let Some(first) = process.todo.first() {
        events.push(Event::Answer(host));
        if world.rest.faults > 0 {
            events.extend(may_fail(first).iter().map(|there| Event::Fails(host, *there)));
        }
    }
    let done = world.hosts[host].queue.is_empty();
    match &process.role {
        Role::Plain => {}
        Role::Source(source) => source_events(source, host, process, done, events),
        Role::Target(target) => target_events(world, target, host, done, events),
    }
}

fn source_events(
    source: &Source,
    host: usize,
    process: &Process,
    done: bool,
    events: &mut Vec<Event>,
) {
    use source::State;
    match source.state() {
        State::Copying => events.extend([Event::Switch(host), Event::Cancel(host)]),
        State::Offering { .. } | State::Offered(_) => {
            events.extend([Event::Timer(host, Timer::Again), Event::Cancel(host)]);
        }
        State::Stopping { .. } => {
            events.extend([Event::Timer(host, Timer::Deadline), Event::Cancel(host)]);
        }
        State::InDoubt(_) => events.push(Event::Timer(host, Timer::Deadline)),
        State::Deciding { .. } => {
            events.extend([Timer::Again, Timer::Deadline].map(|t| Event::Timer(host, t)));
        }
        State::Kept { .. } if process.guest == Guest::Empty && done => {
            events.push(Event::Exit(host));
        }
        State::Moved if done => events.push(Event::Exit(host)),
        State::Kept { .. } | State::Moved | State::Superseded(_) | State::Auditing(_) => {}
        _ => events.push(Event::Timer(host, Timer::Again)),
    }
}

fn target_events(world: &World, target: &Target, host: usize, done: bool, events: &mut Vec<Event>) {
    use target::State;
    let about = target.switch().map(|s| &world.hosts[index(s.from)]);
    let source = about.and_then(|from| match &from.process()?.role {
        Role::Source(source) => (source.switch() == target.switch()).then(|| source.state()),
        _ => None,
    });
    match target.state() {
        // Its source, or the link, is gone.
        State::Filling => events.push(Event::Timer(host, Timer::Link)),
        State::Receiving { ended: false, .. } => {
            events.push(Event::Timer(host, Timer::Again));
            if source.is_none() || world.rest.faults > 0 {
                events.push(Event::StreamsEnd(host, source.is_some()));
            }
        }
        State::Receiving { ended: true, .. } => {
            events.push(Event::Timer(host, Timer::Again));
            if matches!(source, Some(source::State::InDoubt(_))) {
                events.push(Event::LinkBack(host));
            }
        }
        State::Buried(_) | State::NotTaken if done => events.push(Event::Exit(host)),
        State::Buried(_) | State::NotTaken | State::Superseded(_) | State::Running { .. } => {}
        _ => events.push(Event::Timer(host, Timer::Again)),
    }
}

fn commands(world: &World, host: usize, bounds: &Bounds, events: &mut Vec<Event>) {
    let h: &Host = &world.hosts[host];
    if bounds.chores {
        if let Some(process) = h.process() {
            let here = process.guest != Guest::Empty && h.queue.is_empty();
            let calm = process.is_calm() && here && h.ledger.owned().is_some();
            if calm {
                events.extend([Event::Save(host), Event::GuestEnds(host)]);
                events.push(if process.paused { Event::Resume(host) } else { Event::Pause(host) });
            } else if h.runs() && matches!(process.role, Role::Source(_)) {
                events.push(Event::GuestEnds(host));
            } else if Step::new(world, bounds, true).obeys(host) {
                events.push(Event::Resume(host));
            }
        } else if may_load(world, bounds, host).is_some() {
            events.push(Event::Load(host));
        }
    }
    if bounds.operator != Operator::Absent {
        // Others answer or do not; one that is switched off does not.
        let others: u8 = (0..bounds.hosts)
            .filter(|at| *at != host && !world.hosts[*at].down)
            .map(|at| 1 << at)
            .sum();
        for reach in (0..1 << bounds.hosts).filter(|reach| reach & !others == 0) {
            for say in [Say::RunHere, Say::GiveUp] {
                let once = say == Say::RunHere || reach == 0;
                if once && plan(world, bounds, host, say, reach).is_some() {
                    events.push(Event::Resolve(host, say, reach));
                }
            }
        }
    }
}

impl Step<'_> {
    pub fn apply(&mut self, event: Event) {
        if event.is_fault() {
            self.world.rest().faults -= 1;
        }
        if event.is_command() {
            self.world.rest().commands -= 1;
        }
        match event {
            Event::Deliver(packet) => self.deliver(event.host(), packet),
            Event::Timer(host, timer) if self.bounds.has(Bug::ResumeOnTimeout) => {
                self.resume_on_timeout(host, timer);
                self.feed(host, Input::Timer(timer));
            }
            Event::Timer(host, timer) => self.feed(host, Input::Timer(timer)),
            Event::Cancel(host) => self.feed(host, Input::Cancel),
            Event::Attempt(host, to) => self.attempt(host, to),
            Event::Switch(host) => {
                let id = SwitchId(self.world.rest.offers.into());
                let beside = self.world.rest.beside;
                self.feed(host, Input::Switch { id, beside, pause_ms: 1 });
            }
            Event::Answer(host) => self.answer(host),
            Event::Fails(host, there) => self.fails(host, there),
            Event::Durable(host) => self.recorded(host),
            Event::RecordFails(host, there) => self.record_fails(host, there),
            Event::Decide(at) => self.decide(at),
            Event::Told(at) => self.told(at),
            Event::Silent(host) => self.silent(host),
            Event::StreamsEnd(host, _) => {
                self.world.net().retain(|p| receiver(&p.message) != host || !in_stream(p));
                self.feed(host, Input::StreamsEnded);
            }
            Event::LinkBack(host) => self.link_back(host),
            Event::Exit(host) => self.exit(host),
            Event::Overrule(host) => self.overrule(host),
            Event::Start(host) => self.start(host),
            Event::Save(host) => self.save(host),
            Event::Load(host) => self.load(host),
            Event::Pause(host) => self.pause(host),
            Event::Resume(host) => self.resume_by_user(host),
            Event::GuestEnds(host) => self.guest_ends(host),
            Event::Resolve(host, say, reach) => self.resolve(host, say, reach),
            Event::Drop(host) => self.world.net().retain(|p| receiver(&p.message) != host),
            Event::PowerOn(host) => {
                self.world.host(host).down = false;
                self.adopt(host);
            }
            Event::Kill(_) => {}
        }
        self.world.forget_words();
    }

    fn attempt(&mut self, host: usize, to: usize) {
        let Some(setup) = self.world.source_setup(host, to, self.bounds) else { return };
        let setup = self.bounds.misnumbered(setup, &self.world.hosts[host]);
        self.world.rest().offers -= 1;
        self.process(host).role = Role::Source(Source::new(setup));
        // It has connections of its own: data of earlier attempts does not come through them.
        if self.world.net.iter().any(|p| receiver(&p.message) == to && in_stream(p)) {
            self.world.net().retain(|p| receiver(&p.message) != to || !in_stream(p));
        }
        let highest = self.world.hosts[to].ledger.highest();
        let target = Target::new(target::Setup { host: id(to), highest });
        let process = Process { role: Role::Target(target), ..Process::plain(Guest::Empty) };
        self.world.host(to).party = Party::Process(process);
    }

    fn link_back(&mut self, host: usize) {
        self.feed(host, Input::LinkBack);
        let switch = self.process(host).switch().copied();
        if let Some(switch) = switch {
            let from = index(switch.from);
            let paused = self.world.hosts[from].process().is_some_and(|p| p.paused);
            let piece = migrate_engine::handover::message::Message::to_target(
                switch,
                ToTarget::LastPiece { paused },
            );
            self.send(from, piece);
        }
    }
}

/// It comes through the connections of an attempt, never around them.
fn in_stream(packet: &Packet) -> bool {
    matches!(packet.message.body, Body::ToTarget(ToTarget::Offer | ToTarget::LastPiece { .. }))
}
