//! One event being applied: whoever acts on a host gets an input, and its effects are performed
//! in order. Before each effect but the first the world is kept, for a death just there.

use migrate_engine::handover::daemon::Keeper;
use migrate_engine::handover::effect::{Effect, Input};
use migrate_engine::handover::journal::{Mark, Record};
use migrate_engine::handover::message::{
    Body, Message, SourceSays, TargetSays, ToSource, ToTarget, from_ledger,
};
use migrate_engine::handover::target;
use migrate_engine::handover::term::{Beside, QuestionId, Stamp, SwitchId};

use crate::bounds::Bounds;
use crate::bugs::Bug;
use crate::world::{Guest, NOW, Packet, Party, Process, Role, World, boot, id};

pub struct Step<'a> {
    pub world: World,
    pub bounds: &'a Bounds,
    /// As it was before each effect but the first.
    pub cuts: Vec<World>,
    /// Nobody asks for them.
    whole: bool,
    done: usize,
}

impl<'a> Step<'a> {
    pub fn new(world: &World, bounds: &'a Bounds, whole: bool) -> Self {
        Self { world: world.clone(), bounds, cuts: vec![], whole, done: 0 }
    }

    /// Here somebody could die.
    pub fn cut(&mut self) {
        if self.done > 0 && !self.whole {
            self.cuts.push(self.world.clone());
        }
        self.done += 1;
    }

    pub fn process(&mut self, host: usize) -> &mut Process {
        match &mut self.world.host(host).party {
            Party::Process(process) => process,
            other => panic!("no process on host {host}: {other:?}"),
        }
    }

    pub fn todo(&mut self, host: usize) -> &mut Vec<Effect> {
        match &mut self.world.host(host).party {
            Party::Process(process) => &mut process.todo,
            Party::Daemon(_, todo) => todo,
            Party::Nobody => panic!("nobody on host {host}"),
        }
    }

    /// A record reaches the platter.
    pub fn durable(&mut self, host: usize, record: Record) {
        let h = &self.world.hosts[host];
        let withdrew = match (h.ledger.now(), &h.party, record) {
            (Some(Record::Offered(s)), Party::Daemon(..), Record::Owner { .. }) => Some(s.id),
            _ => None,
        };
        let applied = match h.ledger.apply(record, boot(h.boot)) {
            Err(_) if self.bounds.has(Bug::TermReused) => Ok(crate::bugs::forced(h, record)),
            applied => applied,
        };
        let Ok(ledger) = applied else { return self.world.fail("a record does not follow") };
        let h = self.world.host(host);
        (h.ledger, h.saved) = (ledger, false);
        if withdrew.is_some() {
            self.world.rest().daemon_withdrew = withdrew;
        }
        if let Some(right) = self.world.hosts[host].ledger.owned() {
            self.world.right(right, self.bounds);
        }
        if self.world.two_owners(self.bounds) {
            self.world.fail("two journals own the guest");
        }
    }

    pub fn deliver(&mut self, host: usize, mut packet: Packet) {
        self.lies(host, &mut packet);
        let before = self.world.hosts[host].target().copied();
        self.feed(host, Input::Heard(packet.message));
        let now = self.world.hosts[host].target().copied();
        if let (Some(target::State::Receiving { .. }), Some(target::State::Restoring(_))) =
            (before, now)
        {
            self.process(host).guest = Guest::Frozen(packet.memory);
        }
    }

    /// Somebody acts for whoever was here before.
    pub fn adopt(&mut self, host: usize) {
        let h = self.world.host(host);
        h.asked += 1;
        let outlive = self.bounds.has(Bug::MarksOutliveBoot);
        let now = if outlive { h.ledger.boot() } else { boot(h.boot) };
        let question = QuestionId(h.asked.into());
        let (ledger, marks) = (h.ledger.clone(), h.marks.clone());
        let (keeper, effects) =
            Keeper::adopt(ledger, now, marks, question, self.bounds.arbiter, NOW);
        h.party = Party::Daemon(keeper, vec![]);
        self.perform(host, effects);
    }

    /// The bug: a daemon acts, up to its first record and its word, for a process that sleeps.
    pub fn overrule(&mut self, host: usize) {
        let asleep = self.world.hosts[host].party.clone();
        self.adopt(host);
        if !self.world.hosts[host].queue.is_empty() {
            self.recorded(host);
        }
        self.world.host(host).party = asleep;
    }

    /// The first queued record becomes durable.
    pub fn recorded(&mut self, host: usize) {
        let record = self.world.host(host).queue.remove(0);
        self.durable(host, record);
        self.feed(host, Input::Recorded(record));
        if self.bounds.has(Bug::DaemonKeepsOfferedTerm)
            && matches!(
                (&self.world.hosts[host].party, record),
                (Party::Daemon(..), Record::Withdrawn(_))
            )
        {
            self.exit(host);
        }
    }

    /// Gives an input to whoever acts on `host`.
    pub fn feed(&mut self, host: usize, input: Input) {
        let h = self.world.host(host);
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
            && let Some(reply) = from_ledger(&h.ledger, &message)
        {
            return self.perform(host, vec![Effect::Send(reply)]);
        }
        self.perform(host, effects);
    }

    /// Does what can be done at once, in order; the rest waits.
    fn perform(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::DropOwner if self.world.rest.owner != Some(host) => continue,
                Effect::DropNext if self.world.rest.next != Some(host) => continue,
                Effect::EndAttempt | Effect::SetTimer(..) | Effect::Report(_) => continue,
                _ => self.cut(),
            }
            match effect {
                Effect::Send(message) => self.send(host, message),
                Effect::Commit(switch) => {
                    let says = ToTarget::Says(SourceSays::Ceded);
                    self.send(host, Message::to_target(switch, says));
                }
                Effect::Record(record) => self.record(host, record),
                Effect::DropOwner => self.world.rest().owner = None,
                Effect::DropNext => self.world.rest().next = None,
                Effect::Resume | Effect::Run { .. } => self.resume(host, effect),
                Effect::Discard => {
                    let process = self.process(host);
                    process.todo.retain(|e| !matches!(e, Effect::Restore));
                    process.guest = Guest::Empty;
                }
                Effect::CompareAndSet { .. } | Effect::ReadArbiter => self.ask(host, effect),
                _ => self.later(host, effect),
            }
        }
    }

    fn resume(&mut self, host: usize, effect: Effect) {
        let late = self.bounds.has(Bug::LateStamp);
        let process = self.process(host);
        process.todo.retain(|e| !matches!(e, Effect::Pause | Effect::LastRound));
        if let Effect::Run { paused } = effect {
            process.paused = paused;
        }
        // What it runs under: the record may still be on its way.
        let (before, term) = match (&process.role, process.switch().copied()) {
            (Role::Target(_), Some(switch)) => {
                self.world.right(switch.moved(), self.bounds);
                (true, switch.term)
            }
            _ => (
                false,
                self.world.hosts[host].ledger.owned().map_or(self.world.rest.ran, |s| s.term),
            ),
        };
        self.world.run(host, term, self.bounds);
        if late && before {
            self.cut();
            self.stamp(Stamp { term, host: id(host) });
        }
    }

    pub fn stamp(&mut self, stamp: Stamp) {
        if self.bounds.shared {
            self.world.rest().beside.owner = stamp;
        }
    }

    fn later(&mut self, host: usize, effect: Effect) {
        let quick = self.bounds.coarse && effect != Effect::Restore;
        if self.bounds.has(Bug::CommitBeforeMark)
            && let Effect::Mark(Mark::Ceded(_)) = effect
            && let Some(switch) = self.process(host).switch().copied()
        {
            let says = ToTarget::Says(SourceSays::Ceded);
            self.send(host, Message::to_target(switch, says));
            self.cut();
        }
        let todo = self.todo(host);
        if todo.contains(&effect) {
            return;
        }
        todo.insert(if quick { 0 } else { todo.len() }, effect);
        if quick {
            self.answer(host);
        }
    }

    pub fn send(&mut self, host: usize, message: Message) {
        if !self.bounds.drops && !self.bounds.has_use_for(&message) && says_nothing(&message) {
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
        let record = self.misrecorded(host, record);
        if !self.world.hosts[host].queue.contains(&record) {
            self.world.host(host).queue.push(record);
        }
        if self.is_early(record) {
            self.feed(host, Input::Recorded(record));
        }
    }

    /// Takes a lock if that can be had. Without shared disks there is none.
    fn take(&mut self, host: usize, next: bool) -> bool {
        if !self.bounds.shared {
            return true;
        }
        let held = if next { self.world.rest.next } else { self.world.rest.owner };
        if held.is_none() {
            let rest = self.world.rest();
            *(if next { &mut rest.next } else { &mut rest.owner }) = Some(host);
        }
        held.is_none_or(|holder| holder == host)
    }

    /// Does the first pending effect.
    pub fn answer(&mut self, host: usize) {
        let effect = self.todo(host).remove(0);
        let input = self.outcome(host, effect);
        self.feed(host, input);
    }

    fn outcome(&mut self, host: usize, effect: Effect) -> Input {
        let beside = self.world.rest.beside;
        match effect {
            Effect::TakeOwner if self.take(host, false) => {
                let blind = self.bounds.has(Bug::DisksIgnored);
                Input::OwnerTaken(if blind { Beside::NOTHING } else { beside })
            }
            Effect::TakeOwner => Input::OwnerBusy,
            Effect::TakeNext if self.take(host, true) => Input::NextTaken(beside),
            Effect::TakeNext => Input::NextBusy,
            Effect::StampOffer(term) => {
                if self.bounds.shared && beside.offered < term {
                    self.world.rest().beside.offered = term;
                }
                Input::OfferStamped
            }
            Effect::Stamp(term) => {
                let target = self.world.hosts[host].target().is_some();
                let late = self.bounds.has(Bug::LateStamp) && target;
                let never = self.bounds.has(Bug::WithdrawnUnstamped) && !target;
                if !late && !never {
                    self.stamp(Stamp { term, host: id(host) });
                }
                Input::Stamped(term)
            }
            Effect::Mark(mark) => {
                let skip = match mark {
                    Mark::Ceded(_) => Bug::NoCededMark,
                    Mark::Ran(_) => Bug::NoRanMark,
                };
                if !self.bounds.has(skip) && !self.world.hosts[host].marks.contains(&mark) {
                    let marks = &mut self.world.host(host).marks;
                    marks.push(mark);
                    marks.sort();
                }
                Input::Marked(mark)
            }
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
        }
    }

    /// The first pending effect fails; it may be done all the same.
    pub fn fails(&mut self, host: usize, there: bool) {
        let effect = self.todo(host).remove(0);
        if there {
            self.outcome(host, effect);
        }
        let input = match effect {
            Effect::Restore => Input::RestoreFailed,
            Effect::Mark(mark) => Input::MarkFailed(mark),
            Effect::LastRound => Input::CopyFailed,
            _ => Input::StampFailed,
        };
        self.feed(host, input);
    }

    /// The first queued record fails; it may be there all the same.
    pub fn record_fails(&mut self, host: usize, there: bool) {
        let record = self.world.host(host).queue.remove(0);
        if there {
            self.durable(host, record);
        }
        self.feed(host, Input::RecordFailed(record));
    }
}

fn is_about(ours: Option<SwitchId>, input: Input) -> bool {
    match input {
        Input::Heard(message) => ours == Some(message.switch.id),
        _ => true,
    }
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
