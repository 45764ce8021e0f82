//! Two hosts, their journals, marks, processes and daemons, one shared disk, a network and an
//! arbiter, as one value. Ghost fields know what no party knows: how often the guest ran.

use std::fmt;

use migrate_engine::handover::daemon::Keeper;
use migrate_engine::handover::effect::Effect;
use migrate_engine::handover::journal::{Ledger, Mark, Record};
use migrate_engine::handover::message::Message;
use migrate_engine::handover::source::{self, Source};
use migrate_engine::handover::target::{self, Target};
use migrate_engine::handover::term::{Beside, BootId, HostId, Millis, Stamp, Switch, Term};

use crate::bugs::Bug;

pub const NOW: Millis = Millis(0);

/// The bounds of one exploration.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Kills and reboots.
    pub faults: u8,
    /// Switches.
    pub offers: u8,
    /// At any time everything in flight may be lost.
    pub drops: bool,
    /// Quick steps that no other party can see (locking, writing beside the disks, pausing)
    /// happen at once. A death in the middle of them is explored all the same.
    pub coarse: bool,
    /// Disks are shared: locks and terms.
    pub shared: bool,
    /// There is an arbiter.
    pub arbiter: bool,
    /// A planted bug.
    pub bug: Option<Bug>,
    /// Give up when there are more states.
    pub states: usize,
}

impl Bounds {
    pub const fn new(faults: u8, offers: u8) -> Self {
        Self {
            faults,
            offers,
            drops: false,
            coarse: true,
            shared: true,
            arbiter: false,
            bug: None,
            states: 3_000_000,
        }
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} faults, {} offers", self.faults, self.offers)?;
        let notes = [
            (self.drops, ", messages lost"),
            (!self.coarse, ", every step apart"),
            (self.arbiter, ", arbiter"),
            (!self.shared, ", no shared disks"),
        ];
        notes.iter().filter(|(on, _)| *on).try_for_each(|(_, note)| f.write_str(note))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub hosts: [Host; 2],
    /// Everything that was ever sent and not lost, sorted. Delivery does not remove it, so it is
    /// also delivered twice, late, in any order, or never.
    pub net: Vec<Packet>,
    pub disk: Disk,
    pub key: Option<Stamp>,
    pub faults: u8,
    pub offers: u8,
    /// Ghost: how often the guest entered `KVM_RUN`. Memory is current if it has this number.
    pub version: u8,
    /// Ghost: how often it was started without its memory.
    pub colds: u8,
    /// Ghost: rights that were owned or run under.
    pub rights: Vec<Stamp>,
    /// Ghost: a daemon, not the source itself, kept the guest for good.
    pub daemon_withdrew: bool,
    /// Ghost: what went wrong.
    pub broken: Option<&'static str>,
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
    pub boot: u8,
    pub marks: Vec<Mark>,
    /// Question ids used.
    pub asked: u8,
    pub party: Party,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// Only while somebody else takes over.
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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub beside: Beside,
    pub owner: Option<usize>,
    pub next: Option<usize>,
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

impl Process {
    /// The switch that it is about.
    pub fn switch(&self) -> Option<&Switch> {
        match &self.role {
            Role::Plain => None,
            Role::Source(source) => source.switch(),
            Role::Target(target) => target.switch(),
        }
    }
}

impl Host {
    fn new(host: usize, records: &[Record]) -> Self {
        let ledger = records
            .iter()
            .fold(Ledger::new(id(host), boot(0)), |l, r| l.apply(*r, boot(0)).unwrap());
        Self { ledger, queue: vec![], boot: 0, marks: vec![], asked: 0, party: Party::Nobody }
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

impl World {
    /// The guest runs on host 0. Host 1 has never heard of it, and nobody acts there yet.
    pub fn start(bounds: &Bounds) -> Self {
        let first = Stamp { term: Term::FIRST, host: id(0) };
        let mut hosts = [Host::new(0, &[Record::Owner { term: Term::FIRST }]), Host::new(1, &[])];
        hosts[0].party =
            Party::Process(Process { role: Role::Plain, todo: vec![], guest: Guest::Running(1) });
        let beside = if bounds.shared {
            Beside { owner: first, offered: Term::NONE }
        } else {
            Beside::NOTHING
        };
        Self {
            hosts,
            net: vec![],
            disk: Disk { beside, owner: Some(0), next: None },
            key: bounds.arbiter.then_some(first),
            faults: bounds.faults,
            offers: bounds.offers,
            version: 1,
            colds: 0,
            rights: vec![first],
            daemon_withdrew: false,
            broken: None,
        }
    }

    pub fn source_setup(&self, host: usize, bounds: &Bounds) -> Option<source::Setup> {
        let ledger = &self.hosts[host].ledger;
        Some(source::Setup {
            host: id(host),
            to: id(1 - host),
            owned: ledger.owned()?.term,
            highest: ledger.highest(),
            arbiter: bounds.arbiter,
            paused: false,
        })
    }

    pub fn fail(&mut self, what: &'static str) {
        self.broken.get_or_insert(what);
    }

    pub fn send(&mut self, packet: Packet) {
        if let Err(at) = self.net.binary_search(&packet) {
            self.net.insert(at, packet);
        }
    }

    /// Somebody owns or runs the guest under this right: nobody else ever may.
    pub fn right(&mut self, right: Stamp) {
        if self.rights.iter().any(|r| r.term == right.term && r.host != right.host) {
            self.fail("one term, two owners");
        }
        if let Err(at) = self.rights.binary_search(&right) {
            self.rights.insert(at, right);
        }
    }

    /// `host` enters `KVM_RUN` with the memory it holds.
    pub fn run(&mut self, host: usize, bounds: &Bounds) {
        let version = self.version;
        let Party::Process(process) = &mut self.hosts[host].party else { return };
        match process.guest {
            Guest::Frozen(memory) if memory == version => {
                process.guest = Guest::Running(version + 1);
                self.version += 1;
            }
            Guest::Frozen(_) => self.fail("old memory on a newer disk"),
            Guest::Empty => self.fail("a guest without memory runs"),
            Guest::Running(_) => {}
        }
        if bounds.shared && self.disk.owner != Some(host) {
            self.fail("a guest runs without OWNER");
        }
        if self.hosts.iter().all(Host::runs) {
            self.fail("the guest runs twice");
        }
    }

    /// A live process holds all of the current memory.
    pub fn memory_lives(&self) -> bool {
        self.hosts.iter().any(|host| {
            let Some(process) = host.process() else { return false };
            let whole = match &process.role {
                Role::Target(_) => matches!(
                    host.target(),
                    Some(target::State::Prepared(_) | target::State::Starting(..))
                ),
                _ => true,
            };
            match process.guest {
                Guest::Running(_) => true,
                Guest::Frozen(memory) => whole && memory == self.version,
                Guest::Empty => false,
            }
        })
    }

    /// Two hosts own the guest for sure, and no disk tells which of them is wrong.
    pub fn two_owners(&self) -> bool {
        let owns = |h: &Host| h.ledger.owned().is_some_and(|r| !self.disk.beside.supersedes(r));
        self.hosts.iter().all(owns)
    }
}
