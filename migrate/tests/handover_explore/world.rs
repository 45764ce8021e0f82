//! Hosts, their journals, marks, processes and daemons, one shared disk, a network and an
//! arbiter, as one value. Ghost fields know what no party knows: how often the guest ran.
//!
//! A world is put together from shared parts, so that a step copies only what it changes.

use std::fmt;
use std::rc::Rc;

use migrate_engine::handover::daemon::Keeper;
use migrate_engine::handover::effect::Effect;
use migrate_engine::handover::journal::{Ledger, Mark, Record};
use migrate_engine::handover::message::{Body, Message};
use migrate_engine::handover::source::{self, Source};
use migrate_engine::handover::target::{self, Target};
use migrate_engine::handover::term::{
    Beside, BootId, HostId, Millis, Stamp, Switch, SwitchId, Term,
};

use crate::bounds::{Bounds, History};

pub const NOW: Millis = Millis(0);
/// Places for hosts; with two hosts the last stays empty.
pub const PLACES: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    pub hosts: [Rc<Host>; PLACES],
    /// Everything that was ever sent and not lost, sorted. Delivery does not remove it, so it is
    /// also delivered twice, late, in any order, or never.
    pub net: Rc<Vec<Packet>>,
    pub rest: Rc<Rest>,
}

/// What belongs to no host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rest {
    pub beside: Beside,
    pub owner: Option<usize>,
    pub next: Option<usize>,
    pub arbiter: Option<Arbiter>,
    /// The last saved file.
    pub file: Option<Saved>,
    pub faults: u8,
    pub offers: u8,
    pub commands: u8,
    /// Ghost: how often the guest entered `KVM_RUN`. Memory is current if it has this number.
    pub version: u8,
    /// Ghost: how often it was started without its memory.
    pub colds: u8,
    /// Ghost: rights that were owned or run under.
    pub rights: Vec<Stamp>,
    /// Ghost: the highest term that the guest ran under.
    pub ran: Term,
    /// Ghost: a daemon, not the source itself, kept the guest for good in this switch.
    pub daemon_withdrew: Option<SwitchId>,
    /// Ghost: an operator let a host run it.
    pub resolved: bool,
    /// Ghost: in the middle of that.
    pub resolving: bool,
    /// Ghost: an operator made a host forget it.
    pub given_up: bool,
    /// Ghost: what went wrong.
    pub broken: Option<&'static str>,
}

/// The compare-and-set store. Requests and answers take their time; a request outlives its asker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arbiter {
    pub key: Stamp,
    /// Sorted.
    pub asked: Vec<(usize, Effect)>,
    /// Sorted. Lost with the asker.
    pub told: Vec<(usize, Stamp)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Saved {
    pub term: Term,
    pub memory: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    pub message: Message,
    /// Of a last piece: the version of the memory that it completes.
    pub memory: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// Durable.
    pub ledger: Ledger,
    /// Written, in this order, but not durable.
    pub queue: Vec<Record>,
    /// The last thing that happened to the guest here was that it was saved.
    pub saved: bool,
    pub boot: u8,
    pub marks: Vec<Mark>,
    /// Question ids used.
    pub asked: u8,
    /// Switched off.
    pub down: bool,
    /// For good.
    pub gone: bool,
    pub party: Party,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// Only while somebody else takes over, and on a host that is switched off.
    Nobody,
    Process(Process),
    Daemon(Keeper, Vec<Effect>),
}

/// A guest process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub role: Role,
    /// Effects whose answer is to come.
    pub todo: Vec<Effect>,
    pub guest: Guest,
    /// By its user.
    pub paused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// No attempt.
    Plain,
    Source(Source),
    Target(Target),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guest {
    Empty,
    Running(u8),
    Frozen(u8),
}

pub const fn id(host: usize) -> HostId {
    HostId(host as u128 + 1)
}

pub fn index(host: HostId) -> usize {
    usize::try_from(host.0 - 1).unwrap()
}

pub fn boot(n: u8) -> BootId {
    BootId(n.into())
}

/// To which host a message goes.
pub fn receiver(message: &Message) -> usize {
    index(match message.body {
        Body::ToTarget(_) => message.switch.to,
        Body::ToSource(_) => message.switch.from,
    })
}

/// From which host it comes.
pub fn sender(message: &Message) -> usize {
    index(match message.body {
        Body::ToTarget(_) => message.switch.from,
        Body::ToSource(_) => message.switch.to,
    })
}

impl Process {
    pub fn plain(guest: Guest) -> Self {
        Self { role: Role::Plain, todo: vec![], guest, paused: false }
    }

    /// The switch that it is about.
    pub fn switch(&self) -> Option<&Switch> {
        match &self.role {
            Role::Plain => None,
            Role::Source(source) => source.switch(),
            Role::Target(target) => target.switch(),
        }
    }

    /// It runs, or would if its user let it.
    pub fn has_guest(&self) -> bool {
        match self.guest {
            Guest::Running(_) => true,
            Guest::Frozen(_) => self.paused && self.is_calm(),
            Guest::Empty => false,
        }
    }

    /// No move is under way here, or one that has ended.
    pub fn is_calm(&self) -> bool {
        match &self.role {
            Role::Plain => true,
            Role::Source(source) => matches!(source.state(), source::State::Kept { .. }),
            Role::Target(t) => matches!(t.state(), target::State::Running { durable: true, .. }),
        }
    }
}

impl Host {
    fn new(host: usize, records: &[Record]) -> Self {
        let ledger = records
            .iter()
            .fold(Ledger::new(id(host), boot(0)), |l, r| l.apply(*r, boot(0)).unwrap());
        Self {
            ledger,
            queue: vec![],
            saved: false,
            boot: 0,
            marks: vec![],
            asked: 0,
            down: false,
            gone: false,
            party: Party::Nobody,
        }
    }

    pub fn process(&self) -> Option<&Process> {
        match &self.party {
            Party::Process(process) => Some(process),
            _ => None,
        }
    }

    /// The state of a live source or target.
    pub fn source(&self) -> Option<&source::State> {
        match &self.process()?.role {
            Role::Source(source) => Some(source.state()),
            _ => None,
        }
    }

    pub fn target(&self) -> Option<&target::State> {
        match &self.process()?.role {
            Role::Target(target) => Some(target.state()),
            _ => None,
        }
    }

    pub fn runs(&self) -> bool {
        self.process().is_some_and(|p| matches!(p.guest, Guest::Running(_)))
    }
}

/// The records of the last host and of host 0, before the exploration begins.
fn past(history: History, last: usize) -> (Vec<Record>, Vec<Record>) {
    let first = Record::Owner { term: Term::FIRST };
    let switch = |from, to| Switch {
        id: SwitchId(100),
        before: Term::FIRST,
        term: Term::new(2),
        from: id(from),
        to: id(to),
    };
    let (here, there) = (switch(last, 0), switch(0, last));
    let arrived = vec![Record::Receiving(here), Record::Owner { term: here.term }];
    let kept = vec![first, Record::Offered(there), Record::Withdrawn(there)];
    match history {
        History::Fresh => (vec![], vec![first]),
        History::GivenAway => (vec![first, Record::Offered(here), Record::Ceded(here)], arrived),
        History::Offered => (vec![first, Record::Offered(here)], arrived),
        History::Receiving => (vec![Record::Receiving(there)], kept),
        History::Buried => (vec![Record::Receiving(there), Record::Tombstone(there)], kept),
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, h) in self.hosts.iter().enumerate() {
            writeln!(f, "host {at}: {:?}, past {:?}", h.ledger.now(), h.ledger.past())?;
            writeln!(f, "  queue {:?}, marks {:?}, boot {}", h.queue, h.marks, h.boot)?;
            match &h.party {
                Party::Nobody => writeln!(f, "  nobody, down {}, gone {}", h.down, h.gone)?,
                Party::Process(p) => writeln!(f, "  {p:?}")?,
                Party::Daemon(keeper, todo) => writeln!(f, "  {:?}, {todo:?}", keeper.acting())?,
            }
        }
        for packet in self.net.iter() {
            writeln!(f, "in flight: {packet:?}")?;
        }
        write!(f, "{:?}", self.rest)
    }
}

impl World {
    /// The guest runs on host 0. Nobody acts on the others yet.
    pub fn start(bounds: &Bounds) -> Self {
        let last = bounds.hosts - 1;
        let (there, here) = past(bounds.history, last);
        let mut hosts = [Host::new(0, &here), Host::new(1, &[]), Host::new(2, &[])];
        hosts[last] = Host::new(last, &there);
        if bounds.history != History::Fresh {
            hosts[last].boot = 1;
        }
        hosts[0].party = Party::Process(Process::plain(Guest::Running(1)));
        let right = hosts[0].ledger.owned().unwrap();
        let beside = Beside { owner: right, offered: right.term };
        let key = Arbiter { key: right, asked: vec![], told: vec![] };
        let rest = Rest {
            beside: if bounds.shared { beside } else { Beside::NOTHING },
            owner: bounds.shared.then_some(0),
            next: None,
            arbiter: bounds.arbiter.then_some(key),
            file: None,
            faults: bounds.faults,
            offers: bounds.offers,
            commands: bounds.commands,
            version: 1,
            colds: 0,
            rights: vec![right],
            ran: right.term,
            daemon_withdrew: None,
            resolved: false,
            resolving: false,
            given_up: false,
            broken: None,
        };
        Self { hosts: hosts.map(Rc::new), net: Rc::default(), rest: Rc::new(rest) }
    }

    pub fn host(&mut self, host: usize) -> &mut Host {
        Rc::make_mut(&mut self.hosts[host])
    }

    pub fn rest(&mut self) -> &mut Rest {
        Rc::make_mut(&mut self.rest)
    }

    pub fn net(&mut self) -> &mut Vec<Packet> {
        Rc::make_mut(&mut self.net)
    }

    /// What the other host of a switch is called by its number here.
    pub fn peer(&self, host: usize, switch: &Switch) -> &Host {
        let other = if index(switch.from) == host { switch.to } else { switch.from };
        &self.hosts[index(other)]
    }

    pub fn source_setup(&self, host: usize, to: usize, bounds: &Bounds) -> Option<source::Setup> {
        let ledger = &self.hosts[host].ledger;
        Some(source::Setup {
            host: id(host),
            to: id(to),
            owned: ledger.owned()?.term,
            highest: ledger.highest(),
            arbiter: bounds.arbiter,
            paused: self.hosts[host].process().is_some_and(|p| p.paused),
        })
    }

    pub fn send(&mut self, packet: Packet) {
        if let Err(at) = self.net.binary_search(&packet) {
            self.net().insert(at, packet);
        }
    }

    pub fn unlock(&mut self, host: usize) {
        if self.rest.owner == Some(host) {
            self.rest().owner = None;
        }
        if self.rest.next == Some(host) {
            self.rest().next = None;
        }
    }
}
