//! Everything that starts a guest or takes it away on somebody's word: start (also by itself after
//! a reboot), save and load, pause and resume, power-off, resolve.

use migrate_engine::handover::effect::Input;
use migrate_engine::handover::gate;
use migrate_engine::handover::journal::{Ledger, Record};
use migrate_engine::handover::resolve::{Facts, Memory, Plan, Wish, resolve};
use migrate_engine::handover::source;
use migrate_engine::handover::target;
use migrate_engine::handover::term::{Beside, Stamp, Switch, Term};

use crate::bounds::{Bounds, Operator};
use crate::bugs::Bug;
use crate::step::Step;
use crate::world::{Guest, Host, Party, Process, Role, Saved, World, boot, id, index};

/// What an operator of a host that is in doubt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    RunHere,
    GiveUp,
}

/// The switch that keeps the guest from starting here.
fn open(ledger: &Ledger) -> Option<Switch> {
    match ledger.now()? {
        Record::Owner { .. } | Record::Withdrawn(_) => None,
        other => other.switch().copied(),
    }
}

/// The memory that the party of `host` could let run, if it has a place for an operator's word at
/// all: whoever is in the middle of a step is waited for.
fn at_rest(host: &Host) -> Option<Memory> {
    match &host.party {
        Party::Nobody => None,
        Party::Daemon(_, todo) => todo.is_empty().then_some(Memory::Gone),
        Party::Process(process) if !process.todo.is_empty() => None,
        Party::Process(_) => match (host.source(), host.target()) {
            (
                Some(
                    source::State::InDoubt(_)
                    | source::State::Ceded(_)
                    | source::State::Superseded(_),
                ),
                _,
            )
            | (_, Some(target::State::Prepared(_) | target::State::Superseded(_))) => {
                Some(Memory::Whole)
            }
            _ => None,
        },
    }
    .filter(|_| host.queue.is_empty())
}

/// A process that can be reached says that it has the guest, or is being given it.
fn claims(host: &Host) -> bool {
    host.process().is_some_and(|process| match host.target() {
        Some(state) => !matches!(
            state,
            target::State::Filling
                | target::State::NotTaken
                | target::State::Buried(_)
                | target::State::Superseded(_)
        ),
        None => process.guest != Guest::Empty,
    })
}

/// What a resolve would do. `reach`: the other hosts that answer.
pub fn plan(world: &World, bounds: &Bounds, host: usize, say: Say, reach: u8) -> Option<Plan> {
    let h = &world.hosts[host];
    let memory = at_rest(h)?;
    let other = index(open(&h.ledger).map(|s| if s.from == id(host) { s.to } else { s.from })?);
    let truthful = bounds.operator == Operator::Truthful;
    if say == Say::RunHere && truthful && !world.hosts[other].down {
        return None;
    }
    let (mut elsewhere, mut runs_at, mut silent, mut owned_by) = (Term::NONE, None, None, None);
    for at in (0..bounds.hosts).filter(|at| *at != host && !bounds.has(Bug::ResolveAlone)) {
        if reach & (1 << at) == 0 {
            silent = silent.or_else(|| (at != other).then_some(id(at)));
            continue;
        }
        let there = &world.hosts[at];
        elsewhere = elsewhere.max(there.ledger.highest());
        owned_by = owned_by.max(there.ledger.owned());
        runs_at = runs_at.or_else(|| claims(there).then_some(id(at)));
    }
    let mut beside = world.rest.beside;
    if bounds.has(Bug::ResolveOldMemory) {
        beside.owner = Stamp { term: Term::NONE, host: id(host) };
    }
    let beside = bounds.shared.then_some(beside);
    let facts = Facts { ledger: &h.ledger, beside, memory, elsewhere, runs_at, owned_by, silent };
    let wish = match say {
        Say::RunHere => Wish::RunHere { lose_later_work: !bounds.shared },
        Say::GiveUp => Wish::GiveUp,
    };
    let plan = resolve(wish, &facts).ok()?;
    let locks = [world.rest.owner, world.rest.next];
    let free = locks.iter().all(|l| l.is_none_or(|holder| holder == host));
    let locked = free || bounds.has(Bug::ResolveWithoutLocks);
    (locked || matches!(plan, Plan::GiveUp(_))).then_some(plan)
}

/// The term of a start, if the gate lets it happen.
pub fn may_start(world: &World, bounds: &Bounds, host: usize) -> Option<Term> {
    let h = &world.hosts[host];
    let free = world.rest.owner.is_none() && world.rest.next.is_none();
    let known = h.ledger.now().is_some() || bounds.shared;
    if !matches!(h.party, Party::Daemon(..)) || !h.queue.is_empty() || !free || !known {
        return None;
    }
    let ceded = matches!(h.ledger.now(), Some(Record::Ceded(_) | Record::Moved(_)));
    let ungated = bounds.has(Bug::NoGate) || (bounds.has(Bug::CededStarts) && ceded && h.boot > 0);
    let blind = bounds.has(Bug::DisksIgnored);
    let beside = if blind { Beside::NOTHING } else { world.rest.beside };
    let above = Term::above(&[h.ledger.highest(), beside.highest()]);
    let granted = gate::start(&h.ledger, &beside).ok().or(ungated.then_some(above))?;
    let arbiter = world.rest.arbiter.as_ref();
    (ungated || arbiter.is_none_or(|a| a.key.host == id(host))).then_some(granted)
}

/// The term of a start from the saved file: it is the last thing that happened to the guest, as
/// far as this host and the disks know.
pub fn may_load(world: &World, bounds: &Bounds, host: usize) -> Option<Term> {
    let (h, file) = (&world.hosts[host], world.rest.file?);
    let free = world.rest.owner.is_none() && world.rest.next.is_none();
    if !matches!(h.party, Party::Daemon(..)) || !h.queue.is_empty() || !free {
        return None;
    }
    if bounds.has(Bug::LoadInDoubt) {
        return Some(Term::above(&[h.ledger.highest(), world.rest.beside.highest()]));
    }
    let latest = h.saved || (bounds.shared && h.ledger.highest() < file.term);
    if !latest && !bounds.has(Bug::LoadOldFile) {
        return None;
    }
    let Beside { owner, offered } = world.rest.beside;
    let own = Beside { offered: offered.max(owner.term), ..Beside::NOTHING };
    let beside = if owner.term > file.term { world.rest.beside } else { own };
    let term = gate::start(&h.ledger, &beside).ok()?;
    let arbiter = world.rest.arbiter.as_ref();
    arbiter.is_none_or(|a| a.key.host == id(host)).then(|| term.max(Term::above(&[file.term])))
}

impl Step<'_> {
    /// Locks, journal, disks, run. Nobody else sees the steps, but a death may fall between them.
    fn begin(&mut self, host: usize, term: Term, process: Process) {
        let ungated = self.bounds.has(Bug::NoGate)
            || self.bounds.has(Bug::CededStarts)
            || self.bounds.has(Bug::LoadInDoubt);
        self.cut();
        if self.bounds.shared {
            let rest = self.world.rest();
            (rest.owner, rest.next) = (Some(host), Some(host));
        }
        if let Some(arbiter) = &mut self.world.rest().arbiter {
            arbiter.key = Stamp { term, host: id(host) };
        }
        self.cut();
        self.stamp(Stamp { term, host: id(host) });
        self.cut();
        let legal = self.world.hosts[host].ledger.apply(Record::Owner { term }, boot(0)).is_ok();
        if ungated && !legal {
            self.world.right(Stamp { term, host: id(host) }, self.bounds);
        } else {
            self.durable(host, Record::Owner { term });
        }
        self.enter(host, term, process);
    }

    fn enter(&mut self, host: usize, term: Term, process: Process) {
        self.cut();
        self.world.host(host).party = Party::Process(process);
        self.world.run(host, term, self.bounds);
        if self.world.rest.resolving {
            self.world.rest().resolving = false;
        }
        self.cut();
        if self.world.rest.next == Some(host) {
            self.world.rest().next = None;
        }
    }

    pub fn start(&mut self, host: usize) {
        let Some(term) = may_start(&self.world, self.bounds, host) else { return };
        self.world.rest().colds += 1;
        let guest = Guest::Frozen(self.world.rest.version);
        self.begin(host, term, Process::plain(guest));
    }

    pub fn load(&mut self, host: usize) {
        let Some(term) = may_load(&self.world, self.bounds, host) else { return };
        let Some(file) = self.world.rest.file else { return };
        self.begin(host, term, Process::plain(Guest::Frozen(file.memory)));
    }

    /// Its process ends; the guest is in a file.
    pub fn save(&mut self, host: usize) {
        let owned = self.world.hosts[host].ledger.owned();
        let (Guest::Running(memory) | Guest::Frozen(memory), Some(right)) =
            (self.process(host).guest, owned)
        else {
            return;
        };
        self.world.rest().file = Some(Saved { term: right.term, memory });
        self.exit(host);
        self.world.host(host).saved = true;
    }

    pub fn exit(&mut self, host: usize) {
        self.world.host(host).party = Party::Nobody;
        crate::arbiter::forget(&mut self.world, host);
        self.world.unlock(host);
        self.adopt(host);
    }

    pub fn pause(&mut self, host: usize) {
        let process = self.process(host);
        if let Guest::Running(memory) = process.guest {
            (process.guest, process.paused) = (Guest::Frozen(memory), true);
        }
    }

    pub fn resume_by_user(&mut self, host: usize) {
        self.process(host).paused = false;
        let h = &self.world.hosts[host];
        let term = h.ledger.owned().map_or(self.world.rest.ran, |right| right.term);
        self.world.run(host, term, self.bounds);
    }

    /// It powers itself off. A process without a move ends at once.
    pub fn guest_ends(&mut self, host: usize) {
        if self.process(host).is_calm() && self.world.hosts[host].queue.is_empty() {
            return self.exit(host);
        }
        self.process(host).guest = Guest::Empty;
        self.feed(host, Input::GuestEnded);
    }

    pub fn resolve(&mut self, host: usize, say: Say, reach: u8) {
        let Some(plan) = plan(&self.world, self.bounds, host, say, reach) else { return };
        match plan {
            Plan::Run { term, .. } => self.run_here(host, term),
            Plan::GiveUp(record) => {
                self.world.rest().given_up = true;
                self.cut();
                self.durable(host, record);
                self.cut();
                self.exit(host);
            }
        }
    }

    fn run_here(&mut self, host: usize, term: Term) {
        let rest = self.world.rest();
        (rest.resolved, rest.resolving) = (true, true);
        if !self.bounds.shared
            && let Some(switch) = open(&self.world.hosts[host].ledger)
        {
            // Nothing else would keep the fenced host from going on where it was.
            let other = if switch.from == id(host) { switch.to } else { switch.from };
            self.world.host(index(other)).gone = true;
        }
        if self.bounds.shared {
            let rest = self.world.rest();
            (rest.owner, rest.next) = (Some(host), Some(host));
        }
        self.cut();
        if !self.bounds.has(Bug::ResolveUnstamped) {
            self.stamp(Stamp { term, host: id(host) });
        }
        self.cut();
        if let Some(arbiter) = &mut self.world.rest().arbiter {
            arbiter.key = Stamp { term, host: id(host) };
        }
        self.durable(host, Record::Owner { term });
        let held = self.world.hosts[host].process().map(|p| (p.guest, paused(p)));
        let (guest, paused) = held.unwrap_or((Guest::Frozen(self.world.rest.version), false));
        if held.is_none() {
            self.world.rest().colds += 1;
        }
        let process = Process { paused, ..Process::plain(guest) };
        self.enter(host, term, process);
    }
}

/// A guest that its user paused arrives paused.
fn paused(process: &Process) -> bool {
    match &process.role {
        Role::Target(target) => {
            matches!(target.state(), target::State::Prepared(arrived) if arrived.paused)
        }
        _ => process.paused,
    }
}
