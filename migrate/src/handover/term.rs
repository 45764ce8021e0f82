//! Names and numbers of a hand-over. Plain data; whoever needs a fresh id gets it from the edge.

use std::fmt;

/// Counts the rights to run one guest. Grows with every start, every durable offer and every
/// return; no two hosts ever run or own a guest under the same term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(u64);

impl Term {
    /// No owner was ever there: older than every term.
    pub const NONE: Self = Self(0);
    /// The first term of a guest.
    pub const FIRST: Self = Self(1);
    /// A peer that offers a term from here on is broken or hostile: following it would leave no
    /// room to grow.
    pub const LIMIT: Self = Self(1 << 62);

    /// Term number `n`.
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The first term above all of `known`. Terms from outside stay below [`Term::LIMIT`], so
    /// this never reaches the end of the numbers.
    pub fn above(known: &[Self]) -> Self {
        Self(known.iter().map(|t| t.0).max().unwrap_or(0).saturating_add(1))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
    };
}

id! {
    /// One try to hand a guest over: a new one for every offer.
    SwitchId
}
id! {
    /// A host, for life.
    HostId
}
id! {
    /// A host from one boot to the next (`/proc/sys/kernel/random/boot_id`).
    BootId
}
id! {
    /// One question of a daemon. Some answers count only if they were asked for after a death
    /// was proved, so every such question has a new id.
    QuestionId
}

/// Who owns a guest, and since which term. Stands beside every shared disk, and in the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The owner's term.
    pub term: Term,
    /// The owner.
    pub host: HostId,
}

/// Everything that both sides know about one switch. It never changes while the switch lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Switch {
    /// Its name.
    pub id: SwitchId,
    /// The source's term before it.
    pub before: Term,
    /// The offered term. It is the target's if the switch succeeds, the source's if it is
    /// withdrawn.
    pub term: Term,
    /// Host of the source.
    pub from: HostId,
    /// Host of the target.
    pub to: HostId,
}

impl Switch {
    /// The right that the source had before.
    pub const fn held(&self) -> Stamp {
        Stamp { term: self.before, host: self.from }
    }

    /// Whether `stamp`, found in the arbiter, is still the source's right. It may be an older one:
    /// a free abort gives the source a new term without asking the arbiter.
    pub fn is_held(&self, stamp: Stamp) -> bool {
        stamp.host == self.from && stamp.term <= self.before
    }

    /// The target's right once the switch succeeds.
    pub const fn moved(&self) -> Stamp {
        Stamp { term: self.term, host: self.to }
    }

    /// The source's right once the switch is withdrawn.
    pub const fn withdrawn(&self) -> Stamp {
        Stamp { term: self.term, host: self.from }
    }
}

/// What stands beside the shared disks of a guest: the highest values of all of them. A guest
/// without shared disks has [`Beside::NOTHING`], which is older than everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Beside {
    /// The owner that last ran after a change of hands, or started.
    pub owner: Stamp,
    /// The highest term that was ever offered.
    pub offered: Term,
}

impl Beside {
    /// No shared disk.
    pub const NOTHING: Self =
        Self { owner: Stamp { term: Term::NONE, host: HostId(0) }, offered: Term::NONE };

    /// The highest term that is known here.
    pub fn highest(&self) -> Term {
        self.owner.term.max(self.offered)
    }

    /// Another host runs, or ran, with a better right than `mine`: whoever finds this owns
    /// nothing, whatever its journal says.
    pub fn supersedes(&self, mine: Stamp) -> bool {
        self.owner.host != mine.host && self.owner.term >= mine.term
    }
}

/// A moment on the edge's monotonic clock, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The moment `ms` milliseconds later.
    #[must_use]
    pub const fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_term_is_above_all_known_ones() {
        assert_eq!(Term::above(&[]), Term::FIRST);
        assert_eq!(Term::above(&[Term::new(3), Term::new(7), Term::FIRST]), Term::new(8));
    }

    #[test]
    fn only_another_host_supersedes() {
        let stamp = |term, host| Stamp { term: Term::new(term), host: HostId(host) };
        let beside = |owner| Beside { owner, offered: Term::NONE };
        assert!(beside(stamp(3, 2)).supersedes(stamp(2, 1)));
        assert!(beside(stamp(2, 2)).supersedes(stamp(2, 1)), "one term, two hosts");
        assert!(!beside(stamp(1, 2)).supersedes(stamp(2, 1)));
        assert!(!beside(stamp(3, 1)).supersedes(stamp(2, 1)), "its own later stamp");
        assert!(!Beside::NOTHING.supersedes(stamp(1, 1)));
    }
}
