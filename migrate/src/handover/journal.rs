//! What one host durably knows of its right to run one guest, and what it may say about it.
//!
//! A [`Ledger`] is the whole journal of a guest on a host. It changes only by [`Ledger::apply`],
//! which refuses every [`Record`] that does not follow: terms grow, a switch that is settled
//! stays settled. The edge makes the new ledger durable before it reports the record as done.
//!
//! [`Marks`] are the other half of the memory: they survive a kill but not a reboot, and cost no
//! flush. A mark that is missing means something only in the boot in which it would have been set.
//!
//! This module decides and formats; it opens no file.

use super::term::{BootId, HostId, Stamp, Switch, SwitchId, Term};

/// How many settled switches a ledger remembers. Nobody asks about older ones: each of them was
/// settled on both sides before the next could begin.
pub const PAST: usize = 32;

/// One durable step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Record {
    /// This host owns the guest, running or stopped.
    Owner {
        /// Under this term.
        term: Term,
    },
    /// The source offers. Until it is settled, only this host's side may decide.
    Offered(Switch),
    /// The target takes part.
    Receiving(Switch),
    /// The source keeps the guest, under the offered term. Irrevocable.
    Withdrawn(Switch),
    /// The source gave the guest away. Only the proof that it never ran brings it back.
    Ceded(Switch),
    /// Ceded, and the new owner has confirmed.
    Moved(Switch),
    /// This host will never run what it received in this switch. Irrevocable.
    Tombstone(Switch),
}

impl Record {
    /// The switch that it is about.
    pub const fn switch(&self) -> Option<&Switch> {
        match self {
            Self::Owner { .. } => None,
            Self::Offered(s)
            | Self::Receiving(s)
            | Self::Withdrawn(s)
            | Self::Ceded(s)
            | Self::Moved(s)
            | Self::Tombstone(s) => Some(s),
        }
    }

    /// The highest term in it.
    pub const fn term(&self) -> Term {
        match (self, self.switch()) {
            (Self::Owner { term }, _) => *term,
            (_, Some(switch)) => switch.term,
            (_, None) => Term::NONE,
        }
    }
}

/// How a switch ended, as this host may tell others for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ended {
    /// We were the source and kept the guest.
    Withdrawn,
    /// We were the source and gave it away.
    Ceded,
    /// We were the target and own what came of it.
    Ran,
    /// We were the target and never ran it.
    NeverRan,
}

/// A record that does not follow from what stands in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal says {now:?} (terms up to {highest}); {record:?} cannot follow")]
pub struct Illegal {
    /// What stands there.
    pub now: Option<Box<Record>>,
    /// The highest term it knows.
    pub highest: Term,
    /// What was to be recorded.
    pub record: Record,
}

/// The journal of one guest on one host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ledger {
    /// Whose it is.
    host: HostId,
    /// Boot in which the last record was written: marks of another boot are gone.
    boot: BootId,
    /// The highest term that this host ever recorded.
    highest: Term,
    /// What is true now.
    now: Option<Record>,
    /// Settled switches, the oldest first, at most [`PAST`].
    past: Vec<(SwitchId, Ended)>,
}

impl Ledger {
    /// The ledger of a host that knows nothing of the guest.
    pub const fn new(host: HostId, boot: BootId) -> Self {
        Self { host, boot, highest: Term::NONE, now: None, past: Vec::new() }
    }

    pub(super) fn from_parts(
        (host, boot): (HostId, BootId),
        highest: Term,
        now: Option<Record>,
        past: Vec<(SwitchId, Ended)>,
    ) -> Self {
        Self { host, boot, highest, now, past }
    }

    /// Whose it is.
    pub const fn host(&self) -> HostId {
        self.host
    }

    /// Boot of the last record.
    pub const fn boot(&self) -> BootId {
        self.boot
    }

    /// The highest term that this host ever recorded.
    pub const fn highest(&self) -> Term {
        self.highest
    }

    /// What is true now.
    pub const fn now(&self) -> Option<&Record> {
        self.now.as_ref()
    }

    /// Settled switches, the oldest first.
    pub fn past(&self) -> &[(SwitchId, Ended)] {
        &self.past
    }

    /// How `switch` ended, if this host knows.
    pub fn ended(&self, switch: SwitchId) -> Option<Ended> {
        self.past.iter().rev().find(|(id, _)| *id == switch).map(|(_, how)| *how)
    }

    /// Whether this host ever recorded `switch`.
    pub fn knows(&self, switch: SwitchId) -> bool {
        self.ended(switch).is_some()
            || self.now.and_then(|r| r.switch().copied()).is_some_and(|s| s.id == switch)
    }

    /// The right under which this host owns the guest. A host that offered and has not settled
    /// it owns nothing for sure.
    pub fn owned(&self) -> Option<Stamp> {
        match self.now? {
            Record::Owner { term } => Some(Stamp { term, host: self.host }),
            Record::Withdrawn(switch) => Some(switch.withdrawn()),
            _ => None,
        }
    }

    /// The ledger after `record`, written in `boot`. Recording again what stands there already
    /// changes nothing, so a record may be repeated when its fate is not known.
    ///
    /// # Errors
    /// [`Illegal`] if it cannot follow.
    pub fn apply(&self, record: Record, boot: BootId) -> Result<Self, Illegal> {
        let mut next = self.clone();
        next.boot = boot;
        if self.now == Some(record) {
            return Ok(next);
        }
        let settled = self.follows(&record).ok_or(Illegal {
            now: self.now.map(Box::new),
            highest: self.highest,
            record,
        })?;
        if let Some((switch, how)) = settled {
            next.past.retain(|(id, _)| *id != switch);
            next.past.push((switch, how));
            let surplus = next.past.len().saturating_sub(PAST);
            next.past.drain(..surplus);
        }
        next.highest = self.highest.max(record.term());
        next.now = Some(record);
        Ok(next)
    }

    /// `None` if `record` cannot follow; else what it settles.
    #[expect(clippy::option_option, reason = "whether it may, and what it settles")]
    fn follows(&self, record: &Record) -> Option<Option<(SwitchId, Ended)>> {
        use Record::{Ceded, Moved, Offered, Owner, Receiving, Tombstone, Withdrawn};
        let fresh = record.term() > self.highest;
        let settles = |s: &Switch, how| Some(Some((s.id, how)));
        match (self.now.as_ref(), record) {
            // A start, or a stopped guest that is started again.
            (None | Some(Owner { .. } | Withdrawn(_)), Owner { .. }) if fresh => Some(None),
            (Some(Owner { .. } | Withdrawn(_)), Offered(s)) if fresh && s.from == self.host => {
                Some(None)
            }
            (Some(Offered(a)), Withdrawn(b)) if a == b => settles(b, Ended::Withdrawn),
            // Nobody knows whether a record that failed is there; what undoes it must follow
            // either way.
            (Some(Owner { .. } | Withdrawn(_)), Withdrawn(s))
                if fresh && self.owned() == Some(s.held()) =>
            {
                settles(s, Ended::Withdrawn)
            }
            (None | Some(Moved(_) | Ceded(_) | Tombstone(_)), Tombstone(s))
                if fresh && s.to == self.host =>
            {
                settles(s, Ended::NeverRan)
            }
            (Some(Offered(a)), Ceded(b) | Moved(b)) if a == b => settles(b, Ended::Ceded),
            (Some(Ceded(a)), Moved(b)) if a == b => Some(None),
            // It never ran there, or an operator says so: the term is above the offered one.
            (Some(Offered(s) | Ceded(s) | Moved(s)), Owner { .. }) if fresh => {
                settles(s, Ended::Withdrawn)
            }
            (None | Some(Moved(_) | Ceded(_) | Tombstone(_)), Receiving(s))
                if fresh && s.to == self.host =>
            {
                Some(None)
            }
            (Some(Receiving(a)), Tombstone(b)) if a == b => settles(b, Ended::NeverRan),
            (Some(Receiving(s)), Owner { term }) if *term == s.term => settles(s, Ended::Ran),
            // An operator says so: whoever asks for this switch hears that it ran.
            (Some(Receiving(s) | Tombstone(s)), Owner { .. }) if fresh => settles(s, Ended::Ran),
            _ => None,
        }
    }
}

/// Something a guest process did that must survive its death, but not that of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// Set before the first `Commit`, and before OWNER is let go.
    Ceded(SwitchId),
    /// Set before the guest runs at the target.
    Ran(SwitchId),
}

/// The marks of a guest as its daemon finds them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Marks {
    /// Written in this boot: a mark that is missing was never set.
    Intact(Vec<Mark>),
    /// The host has booted since: a missing mark says nothing.
    Lost,
}

impl Marks {
    /// Judges the marks `found` in the runtime directory of boot `now` for a ledger.
    pub fn judge(ledger: &Ledger, now: BootId, found: Vec<Mark>) -> Self {
        if ledger.boot == now { Self::Intact(found) } else { Self::Lost }
    }

    /// Whether `mark` is known to be set. `None`: it may have been.
    pub fn has(&self, mark: Mark) -> Option<bool> {
        match self {
            Self::Intact(marks) => Some(marks.contains(&mark)),
            Self::Lost => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HostId = HostId(1);
    const B: HostId = HostId(2);
    const BOOT: BootId = BootId(9);

    fn switch(term: u64) -> Switch {
        let before = Term::new(term - 1);
        Switch { id: SwitchId(term.into()), before, term: Term::new(term), from: A, to: B }
    }

    fn ledger(host: HostId, records: &[Record]) -> Ledger {
        let start = Ledger::new(host, BOOT);
        records.iter().fold(start, |l, r| l.apply(*r, BOOT).unwrap())
    }

    fn owner(term: u64) -> Record {
        Record::Owner { term: Term::new(term) }
    }

    #[test]
    fn a_source_remembers_how_each_switch_ended() {
        let s = |n| switch(n);
        let l = ledger(A, &[owner(1), Record::Offered(s(2)), Record::Withdrawn(s(2))]);
        assert_eq!(l.owned(), Some(Stamp { term: Term::new(2), host: A }));
        let l = l.apply(Record::Offered(s(3)), BOOT).unwrap();
        assert_eq!(l.owned(), None, "in doubt after a reboot");
        assert_eq!((l.ended(SwitchId(2)), l.ended(SwitchId(3))), (Some(Ended::Withdrawn), None));
        let l = l.apply(Record::Ceded(s(3)), BOOT).unwrap();
        let l = l.apply(Record::Moved(s(3)), BOOT).unwrap();
        assert_eq!(l.ended(SwitchId(3)), Some(Ended::Ceded));
        assert_eq!(l.owned(), None);
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let s = switch(2);
        let offered = [owner(1), Record::Offered(s)];
        let table: &[(&str, HostId, &[Record], Record)] = &[
            ("an old term", A, &[owner(3)], Record::Offered(s)),
            ("the same term again", A, &[owner(2)], Record::Offered(s)),
            ("an offer of nothing", A, &[], Record::Offered(s)),
            ("another host's offer", B, &[owner(1)], Record::Offered(s)),
            ("withdrawing what one does not own", A, &[], Record::Withdrawn(s)),
            ("withdrawing from another right", A, &[owner(1)], Record::Withdrawn(switch(3))),
            ("ceding without an offer", A, &[owner(1)], Record::Ceded(s)),
            ("receiving for another host", A, &[], Record::Receiving(s)),
            ("receiving what one owns", B, &[owner(1)], Record::Receiving(s)),
            ("a tombstone at the wrong host", A, &[], Record::Tombstone(s)),
            ("a tombstone of what one owns", B, &[owner(1)], Record::Tombstone(s)),
            (
                "ceding what was withdrawn",
                A,
                &[offered[0], offered[1], Record::Withdrawn(s)],
                Record::Ceded(s),
            ),
            (
                "withdrawing what was ceded",
                A,
                &[offered[0], offered[1], Record::Ceded(s)],
                Record::Withdrawn(s),
            ),
            ("running a buried switch", B, &[Record::Receiving(s), Record::Tombstone(s)], owner(2)),
            (
                "receiving a buried switch again",
                B,
                &[Record::Receiving(s), Record::Tombstone(s)],
                Record::Receiving(s),
            ),
            (
                "returning under the offered term",
                A,
                &[offered[0], offered[1], Record::Ceded(s)],
                owner(2),
            ),
        ];
        for (what, host, before, record) in table {
            assert!(ledger(*host, before).apply(*record, BOOT).is_err(), "{what}");
        }
    }

    #[test]
    fn what_undoes_a_record_follows_whether_that_is_there_or_not() {
        let s = switch(2);
        for before in [&[owner(1)][..], &[owner(1), Record::Offered(s)]] {
            let l = ledger(A, before).apply(Record::Withdrawn(s), BOOT).unwrap();
            assert_eq!(l.owned(), Some(s.withdrawn()));
            assert_eq!(l.ended(s.id), Some(Ended::Withdrawn));
        }
        for before in [&[][..], &[Record::Receiving(s)]] {
            let l = ledger(B, before).apply(Record::Tombstone(s), BOOT).unwrap();
            assert_eq!((l.owned(), l.ended(s.id)), (None, Some(Ended::NeverRan)));
        }
    }

    #[test]
    fn the_past_is_bounded() {
        let mut l = ledger(A, &[owner(1)]);
        for n in 2..100 {
            for record in [Record::Offered(switch(n)), Record::Withdrawn(switch(n))] {
                l = l.apply(record, BOOT).unwrap();
            }
        }
        assert_eq!(l.past().len(), PAST);
        assert_eq!(l.ended(SwitchId(99)), Some(Ended::Withdrawn));
        assert_eq!(l.ended(SwitchId(2)), None);
    }

    #[test]
    fn a_missing_mark_proves_nothing_after_a_reboot() {
        let l = ledger(B, &[Record::Receiving(switch(2))]);
        let ran = Mark::Ran(SwitchId(2));
        assert_eq!(Marks::judge(&l, BOOT, vec![]).has(ran), Some(false));
        assert_eq!(Marks::judge(&l, BOOT, vec![ran]).has(ran), Some(true));
        assert_eq!(Marks::judge(&l, BOOT, vec![Mark::Ran(SwitchId(1))]).has(ran), Some(false));
        assert_eq!(Marks::judge(&l, BootId(8), vec![]).has(ran), None);
    }
}
