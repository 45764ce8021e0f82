//! The bounds of an exploration: what may happen in it, and how often.

use std::fmt;

use crate::bugs::Bug;

/// What operators do, besides what their commands check by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Never say `resolve`.
    Absent,
    /// Say that a host is fenced only if it is switched off.
    Truthful,
    /// Say so at any time, of any host.
    Lying,
}

/// What happened before the exploration begins. The guest runs on host 0 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// It started there.
    Fresh,
    /// The last host gave it to host 0 and was never told that it arrived.
    GivenAway,
    /// The last host gave it to host 0, and rebooted: all it knows is that it offered.
    Offered,
    /// The last host was to receive it, and never heard that host 0 kept it.
    Receiving,
    /// The last host was to receive it, and never did.
    Buried,
}

/// What may happen, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Hosts: two or three.
    pub hosts: usize,
    /// Kills, reboots, hosts switched off, steps that fail, links cut under a living source.
    pub faults: u8,
    /// Attempts to move the guest.
    pub offers: u8,
    /// Commands besides `move`, `start` and `cancel`, which are always free.
    pub commands: u8,
    /// Whether `resolve` is among them.
    pub operator: Operator,
    /// Whether `save`, `load`, `pause`, `resume` and a power-off of the guest are among them.
    pub chores: bool,
    /// What happened before.
    pub history: History,
    /// At any time everything in flight to a host may be lost.
    pub drops: bool,
    /// Nothing that this host sends to that one ever arrives.
    pub cut: Option<(usize, usize)>,
    /// Quick steps that no other party can see (locking, writing beside the disks, pausing,
    /// marks) happen at once. A death in the middle of them is explored all the same.
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
            hosts: 2,
            faults,
            offers,
            commands: 0,
            operator: Operator::Absent,
            chores: false,
            history: History::Fresh,
            drops: false,
            cut: None,
            coarse: true,
            shared: true,
            arbiter: false,
            bug: None,
            states: 20_000_000,
        }
    }

    pub const fn hosts(self, hosts: usize) -> Self {
        Self { hosts, ..self }
    }

    pub const fn commands(self, commands: u8, operator: Operator, chores: bool) -> Self {
        Self { commands, operator, chores, ..self }
    }

    pub const fn history(self, history: History) -> Self {
        Self { hosts: 3, history, ..self }
    }

    pub const fn no_shared_disks(self) -> Self {
        Self { shared: false, ..self }
    }

    pub const fn arbiter(self) -> Self {
        Self { arbiter: true, ..self }
    }

    pub const fn drops(self) -> Self {
        Self { drops: true, ..self }
    }

    pub const fn fine(self) -> Self {
        Self { coarse: false, ..self }
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hosts, {} faults, {} offers", self.hosts, self.faults, self.offers)?;
        if self.commands > 0 {
            write!(f, ", {} commands", self.commands)?;
        }
        match self.operator {
            Operator::Absent => {}
            Operator::Truthful => f.write_str(" (truthful resolve)")?,
            Operator::Lying => f.write_str(" (lying resolve)")?,
        }
        if self.history != History::Fresh {
            write!(f, ", old journal: {:?}", self.history)?;
        }
        if let Some((from, to)) = self.cut {
            write!(f, ", nothing arrives from host {from} at host {to}")?;
        }
        let notes = [
            (self.chores, ", save/load/pause/resume/power-off"),
            (self.drops, ", messages lost"),
            (!self.coarse, ", every step apart"),
            (self.arbiter, ", arbiter"),
            (!self.shared, ", no shared disks"),
        ];
        notes.iter().filter(|(on, _)| *on).try_for_each(|(_, note)| f.write_str(note))
    }
}
