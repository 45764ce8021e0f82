//! What must hold in every world, and what counts as an end.

use std::rc::Rc;

use migrate_engine::handover::daemon::Acting;
use migrate_engine::handover::journal::{Ended, Mark, Record};
use migrate_engine::handover::term::{Stamp, Switch, Term};
use migrate_engine::handover::{source, target};

use crate::bounds::{Bounds, Operator};
use crate::operator::{Say, plan};
use crate::world::{Guest, Host, PLACES, Party, Process, Role, World, id, index};

impl World {
    pub fn fail(&mut self, what: &'static str) {
        if self.rest.broken.is_none() {
            self.rest().broken = Some(what);
        }
    }

    /// Somebody owns or runs the guest under this right: nobody else ever may.
    pub fn right(&mut self, right: Stamp, bounds: &Bounds) {
        let taken = |r: &Stamp| r.term == right.term && r.host != right.host;
        if self.rest.rights.iter().any(taken) && !self.went_back(bounds) {
            self.fail("one term, two owners");
        }
        if let Err(at) = self.rest.rights.binary_search(&right) {
            self.rest().rights.insert(at, right);
        }
    }

    /// Without shared disks an operator goes back to the moment of the switch, and says so: what
    /// the other host did since is given up.
    fn went_back(&self, bounds: &Bounds) -> bool {
        !bounds.shared && self.rest.resolved
    }

    /// `host` enters `KVM_RUN` under `term`, with the memory it holds. A guest that its user
    /// paused does not, but may at any time.
    pub fn run(&mut self, host: usize, term: Term, bounds: &Bounds) {
        let (version, back) = (self.rest.version, self.went_back(bounds));
        let Party::Process(process) = &mut self.host(host).party else { return };
        match process.guest {
            Guest::Frozen(memory) if memory == version || back => {
                if !process.paused {
                    process.guest = Guest::Running(version + 1);
                    self.rest().version += 1;
                }
            }
            Guest::Frozen(_) => self.fail("old memory on a newer disk"),
            Guest::Empty => self.fail("a guest without memory runs"),
            Guest::Running(_) => {}
        }
        if bounds.shared && self.rest.owner != Some(host) {
            self.fail("a guest runs without OWNER");
        }
        if self.hosts.iter().filter(|h| h.runs()).count() > 1 {
            self.fail("the guest runs twice");
        }
        self.check_arbiter();
        if term < self.rest.ran && !back {
            self.fail("it runs under an older term than before");
        } else if term > self.rest.ran {
            self.rest().ran = term;
        }
    }

    /// Whoever runs has the arbiter's word, and keeps it as long as it runs.
    pub fn check_arbiter(&mut self) {
        let Some(arbiter) = &self.rest.arbiter else { return };
        let other = |(at, h): (usize, &Rc<Host>)| h.runs() && arbiter.key.host != id(at);
        if self.hosts.iter().enumerate().any(other) {
            self.fail("a guest runs that the arbiter gave to another host");
        }
    }

    /// Two hosts own the guest for sure, and no disk tells which of them is wrong.
    pub fn two_owners(&self, bounds: &Bounds) -> bool {
        let owns = |h: &Host| {
            let right = h.ledger.owned().filter(|_| !h.gone);
            right.is_some_and(|r| !self.rest.beside.supersedes(r))
        };
        !self.went_back(bounds) && self.hosts.iter().filter(|h| owns(h)).count() > 1
    }

    /// A live process holds all of the current memory.
    pub fn memory_lives(&self) -> bool {
        self.hosts.iter().any(|host| {
            let Some(process) = host.process() else { return false };
            let whole = match &process.role {
                Role::Target(target) => matches!(
                    target.state(),
                    target::State::Prepared(_)
                        | target::State::Starting(..)
                        | target::State::Running { .. }
                ),
                _ => true,
            };
            match process.guest {
                Guest::Running(_) => true,
                Guest::Frozen(memory) => whole && memory == self.rest.version,
                Guest::Empty => false,
            }
        })
    }

    /// It runs, or would if its user let it.
    pub fn runs(&self) -> bool {
        self.hosts.iter().any(|h| h.process().is_some_and(Process::has_guest))
    }

    /// The outcome is known everywhere: the guest is on one host, and nobody is in the middle of
    /// anything. An operator may have ended it.
    pub fn ended(&self, bounds: &Bounds) -> bool {
        let lying = Bounds { operator: Operator::Lying, ..*bounds };
        // A resolve that was cut off is said again: somewhere it must be possible.
        let again = || (0..PLACES).any(|at| plan(self, &lying, at, Say::RunHere, 0).is_some());
        self.rest.given_up
            || (self.runs() && self.hosts.iter().all(|h| self.is_done(h)))
            || (self.rest.resolving && (self.went_down() || again()))
    }

    /// An operator lets the guest run elsewhere. Whoever heard *never ran* before that waits for
    /// the disks, and will find there that it owns nothing.
    fn resolved_elsewhere(&self) -> bool {
        let holds = |at: usize| self.hosts[at].process().is_some_and(Process::has_guest);
        self.rest.resolved && self.rest.owner.is_some_and(holds)
    }

    /// An operator let the guest run on the target's host, but not because of this switch, of
    /// which that never heard: it cannot tell that from one that it forgot, and says nothing. The
    /// source's host waits for `give-up`.
    fn outdated(&self, host: &Host, switch: &Switch) -> bool {
        let there = &self.peer(index(host.ledger.host()), switch).ledger;
        self.rest.resolved && there.highest() >= switch.term && !there.knows(switch.id)
    }

    /// It was on a host that is gone for good, and nothing else of it is left.
    fn went_down(&self) -> bool {
        self.hosts.iter().any(|h| h.gone && h.ledger.owned().is_some())
    }

    fn is_done(&self, host: &Host) -> bool {
        let open = |s: &Switch| {
            let other = if s.from == host.ledger.host() { s.to } else { s.from };
            !self.hosts[index(other)].gone
        };
        match &host.party {
            Party::Nobody => host.gone || !host.down,
            Party::Process(p) => {
                use source::{Return::Locking, State};
                let waits = match (host.source(), host.target()) {
                    (Some(State::Superseded(_)), _) | (_, Some(target::State::Superseded(_))) => {
                        true
                    }
                    (Some(State::Returning { step: Locking, .. }), _) => self.resolved_elsewhere(),
                    _ => false,
                };
                host.queue.is_empty() && (waits || (p.is_calm() && p.has_guest()))
            }
            Party::Daemon(keeper, _) => match keeper.acting() {
                Acting::Settled | Acting::Superseded(_) => {
                    let now = host.ledger.now();
                    !matches!(now, Some(Record::Offered(_) | Record::Receiving(_)))
                        || matches!(keeper.acting(), Acting::Superseded(_))
                }
                Acting::AskingFate(s) | Acting::AskingSource(s) => !open(s),
                Acting::AskingTarget { switch, .. } => !open(switch) || self.outdated(host, switch),
                Acting::TakingBack { term: None, .. } => self.resolved_elsewhere(),
                _ => false,
            },
        }
    }

    /// The losses that no rule can avoid (the model's V7, rows 3 to 5): a process holds the
    /// current memory, but nobody can prove that it may run. And those that an operator wanted.
    pub fn inherent_loss(&self) -> bool {
        self.rest.resolved
            || self.rest.given_up
            || self.hosts.iter().enumerate().any(|(at, host)| self.is_lost(at, host))
    }

    fn is_lost(&self, at: usize, host: &Host) -> bool {
        let Some(process) = host.process() else { return false };
        let Some(switch) = process.switch() else { return false };
        let other = self.peer(at, switch);
        match &process.role {
            // The source had durably decided to keep it, and died before it ran on.
            Role::Target(_) => {
                let in_arbiter = self.rest.arbiter.as_ref().is_some_and(|arbiter| {
                    let keeps = Stamp { term: switch.term, host: switch.from };
                    arbiter.key == keeps
                });
                let ended = other.ledger.ended(switch.id);
                let withdrawn = in_arbiter || ended == Some(Ended::Withdrawn);
                let by_daemon = self.rest.daemon_withdrew == Some(switch.id);
                withdrawn && !by_daemon && other.process().is_none()
            }
            // It ceded, and the target is dead that ran, or was about to, or whose host
            // rebooted: nothing there proves the contrary.
            _ => {
                let ran = other.marks.contains(&Mark::Ran(switch.id));
                let owns = other.ledger.owned().is_some();
                let rebooted = other.boot > 0;
                other.process().is_none() && (ran || owns || rebooted)
            }
        }
    }
}
