//! What an operator may do for a guest whose other host is gone: `run-here` or `give-up`.
//!
//! The operator's word is that the other host is fenced. Everything that can be checked in spite
//! of it, is. The edge performs a [`Plan`] in order and under the journal's lock; for `run-here`
//! it also holds OWNER and NEXT of every shared disk, taken before [`Facts::beside`] was read.

use super::journal::{Ended, Ledger, Record};
use super::term::{Beside, HostId, Stamp, Switch, Term};

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The guest shall run on this host.
    RunHere {
        /// Go back to the moment of the switch, although the other host may have run the guest
        /// since.
        lose_later_work: bool,
    },
    /// This host shall forget its claim.
    GiveUp,
}

/// The memory that a local process still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// None: the guest would start from its disks.
    Gone,
    /// All of it, frozen at the switch that is open here.
    Whole,
}

/// What is known.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// This host's journal.
    pub ledger: &'a Ledger,
    /// What stands beside the shared disks. `None`: the guest has none.
    pub beside: Option<Beside>,
    /// What a local process still holds.
    pub memory: Memory,
    /// The highest term that any joined host which can be reached knows.
    pub elsewhere: Term,
    /// A host that can be reached says that the guest runs there, or is being moved there.
    pub runs_at: Option<HostId>,
    /// The highest right under which a host that can be reached owns the guest, by its journal. It
    /// may be stopped there.
    pub owned_by: Option<Stamp>,
    /// A joined host that cannot be reached, and is not the one that is fenced.
    pub silent: Option<HostId>,
}

/// What the edge does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The term beside the disks, then the journal, then run.
    Run {
        /// The new term.
        term: Term,
        /// With the memory that is held, or from the disks.
        memory: Memory,
    },
    /// The journal, then the memory is let go.
    GiveUp(Record),
}

/// Why an operator's wish is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nothing is open here.
    #[error("nothing is in doubt here: the guest can be started as usual")]
    Settled,
    /// Nothing can be given up.
    #[error("this host has no open claim to the guest")]
    NoClaim,
    /// It is alive, and has the guest, running or stopped.
    #[error("host {0} answers, and says that it has the guest")]
    RunsAt(HostId),
    /// Nothing proves that it did not run here.
    #[error(
        "the guest may have run here before this host rebooted, so its source must not go on \
         from the memory it holds: wait for host {0}, or let the guest run here from its disks"
    )]
    MayHaveRun(HostId),
    /// Somebody else is ahead.
    #[error("a host that can be reached knows term {there} of the guest, this one only {here}")]
    HigherTerm {
        /// There.
        there: Term,
        /// Here.
        here: Term,
    },
    /// The memory is older than the disks.
    #[error(
        "the guest has run since (term {}, host {}): the memory held here is older than its \
         disks. Give it up, then start the guest from its disks",
        .0.term, .0.host
    )]
    OldMemory(Stamp),
    /// Nothing proves that the memory is current.
    #[error(
        "without shared disks nothing shows whether host {0} ran the guest on after the switch: \
         to go back to the moment of the switch, say --lose-later-work"
    )]
    MayLoseWork(HostId),
    /// Only it could tell.
    #[error(
        "host {0} does not answer, and without shared disks nothing else shows whether it was \
         let run the guest since: start that host's daemon, or remove the host"
    )]
    Silent(HostId),
    /// It is known not to be ours.
    #[error(
        "the switch to host {0} was confirmed: the guest ran there. Restore a backup, or \
             repair that host"
    )]
    Confirmed(HostId),
}

/// Decides on the operator's wish.
///
/// # Errors
/// [`Refused`] says what is known that speaks against it.
pub fn resolve(wish: Wish, facts: &Facts<'_>) -> Result<Plan, Refused> {
    match wish {
        Wish::GiveUp => give_up(facts),
        Wish::RunHere { lose_later_work } => run_here(lose_later_work, facts),
    }
}

/// Only ever takes away from what this host may do. But a tombstone is also the word that the guest
/// never ran here, on which the source lets its frozen memory run: it needs the process that has
/// not run it. (One that died in this boot without its mark is buried without an operator.)
fn give_up(facts: &Facts<'_>) -> Result<Plan, Refused> {
    match (facts.ledger.now(), facts.memory) {
        (Some(Record::Offered(s)), _) => Ok(Plan::GiveUp(Record::Ceded(*s))),
        (Some(Record::Receiving(s)), Memory::Whole) => Ok(Plan::GiveUp(Record::Tombstone(*s))),
        (Some(Record::Receiving(s)), Memory::Gone) => Err(Refused::MayHaveRun(s.from)),
        (Some(Record::Ceded(s)), _) => Ok(Plan::GiveUp(Record::Moved(*s))),
        _ => Err(Refused::NoClaim),
    }
}

fn run_here(lose_later_work: bool, facts: &Facts<'_>) -> Result<Plan, Refused> {
    let ledger = facts.ledger;
    let Some((switch, other)) = open(ledger) else { return Err(Refused::Settled) };
    if let Some(host) = facts.runs_at {
        return Err(Refused::RunsAt(host));
    }
    let beside = facts.beside.unwrap_or(Beside::NOTHING);
    if let Some(right) = facts.owned_by.filter(|right| !beside.supersedes(*right)) {
        return Err(Refused::RunsAt(right.host));
    }
    if facts.elsewhere > ledger.highest() {
        return Err(Refused::HigherTerm { there: facts.elsewhere, here: ledger.highest() });
    }
    match (facts.beside, facts.memory) {
        // Whoever ran after the switch wrote its term there before it ran.
        (Some(beside), Memory::Whole) if beside.owner.term > switch.before => {
            return Err(Refused::OldMemory(beside.owner));
        }
        (Some(_), _) => {}
        (None, _) => alone(facts, other, lose_later_work)?,
    }
    let term = Term::above(&[ledger.highest(), beside.highest(), facts.elsewhere]);
    Ok(Plan::Run { term, memory: facts.memory })
}

/// No disk can tell. A tombstone does not say either whether the source took the guest back, or
/// whether only the process here died: refusing it would lose a guest whose source is gone.
fn alone(facts: &Facts<'_>, other: HostId, lose_later_work: bool) -> Result<(), Refused> {
    if let Some(host) = facts.silent {
        return Err(Refused::Silent(host));
    }
    match facts.ledger.now() {
        Some(Record::Moved(_)) => Err(Refused::Confirmed(other)),
        _ if lose_later_work => Ok(()),
        _ => Err(Refused::MayLoseWork(other)),
    }
}

/// The switch that keeps the guest from starting here, and the host at its other end.
fn open(ledger: &Ledger) -> Option<(Switch, HostId)> {
    match ledger.now()? {
        Record::Owner { .. } | Record::Withdrawn(_) => None,
        Record::Offered(s) | Record::Ceded(s) | Record::Moved(s) => Some((*s, s.to)),
        Record::Receiving(s) | Record::Tombstone(s) => Some((*s, s.from)),
    }
}

/// What a host answers about an old switch after an operator let the guest run there.
pub fn answers_ran(ledger: &Ledger, switch: &Switch) -> bool {
    ledger.ended(switch.id) == Some(Ended::Ran)
}

#[cfg(test)]
mod tests {
    use super::super::term::{BootId, SwitchId};
    use super::*;

    const A: HostId = HostId(1);
    const B: HostId = HostId(2);
    const BOOT: BootId = BootId(0);
    const RUN: Wish = Wish::RunHere { lose_later_work: false };
    const LOSE: Wish = Wish::RunHere { lose_later_work: true };

    fn switch() -> Switch {
        let (before, term) = (Term::new(1), Term::new(2));
        Switch { id: SwitchId(7), before, term, from: A, to: B }
    }

    fn ledger(host: HostId, records: &[Record]) -> Ledger {
        records.iter().fold(Ledger::new(host, BOOT), |l, r| l.apply(*r, BOOT).unwrap())
    }

    fn source(last: &[Record]) -> Ledger {
        let first = [Record::Owner { term: Term::new(1) }, Record::Offered(switch())];
        ledger(A, &[&first, last].concat())
    }

    fn beside(term: u64, host: HostId) -> Beside {
        let owner = Stamp { term: Term::new(term), host };
        Beside { owner, offered: Term::new(2) }
    }

    fn facts(ledger: &Ledger, beside: Option<Beside>, memory: Memory) -> Facts<'_> {
        Facts {
            ledger,
            beside,
            memory,
            elsewhere: Term::NONE,
            runs_at: None,
            owned_by: None,
            silent: None,
        }
    }

    fn run(term: u64, memory: Memory) -> Plan {
        Plan::Run { term: Term::new(term), memory }
    }

    #[test]
    fn old_memory_never_meets_a_newer_disk() {
        let receiving = ledger(B, &[Record::Receiving(switch())]);
        let ceded = source(&[Record::Ceded(switch())]);
        for l in [&receiving, &ceded] {
            let hot = resolve(RUN, &facts(l, Some(beside(1, A)), Memory::Whole));
            assert_eq!(hot, Ok(run(3, Memory::Whole)));
            for stamp in [beside(2, A), beside(2, B)] {
                let hot = resolve(RUN, &facts(l, Some(stamp), Memory::Whole));
                assert!(matches!(hot, Err(Refused::OldMemory(_))), "{hot:?}");
                let cold = resolve(RUN, &facts(l, Some(stamp), Memory::Gone));
                assert_eq!(cold, Ok(run(3, Memory::Gone)), "there is always a way out");
            }
        }
    }

    #[test]
    fn without_shared_disks_the_operator_says_what_may_be_lost() {
        let ceded = source(&[Record::Ceded(switch())]);
        let f = facts(&ceded, None, Memory::Whole);
        assert_eq!(resolve(RUN, &f), Err(Refused::MayLoseWork(B)));
        assert_eq!(resolve(LOSE, &f), Ok(run(3, Memory::Whole)));
        let third = HostId(3);
        let f = Facts { silent: Some(third), ..f };
        assert_eq!(resolve(LOSE, &f), Err(Refused::Silent(third)));
        let moved = source(&[Record::Moved(switch())]);
        let f = facts(&moved, None, Memory::Whole);
        assert_eq!(resolve(LOSE, &f), Err(Refused::Confirmed(B)));
        let buried = ledger(B, &[Record::Receiving(switch()), Record::Tombstone(switch())]);
        let f = facts(&buried, None, Memory::Gone);
        assert_eq!(resolve(RUN, &f), Err(Refused::MayLoseWork(A)));
        assert_eq!(resolve(LOSE, &f), Ok(run(3, Memory::Gone)));
    }

    #[test]
    fn what_other_hosts_know_counts() {
        let offered = source(&[]);
        let f = facts(&offered, Some(beside(1, A)), Memory::Gone);
        let there = Facts { elsewhere: Term::new(3), ..f };
        assert!(matches!(resolve(RUN, &there), Err(Refused::HigherTerm { .. })));
        let alive = Facts { runs_at: Some(B), ..f };
        assert_eq!(resolve(RUN, &alive), Err(Refused::RunsAt(B)));
        let stopped = Stamp { term: Term::new(2), host: B };
        let owned = Facts { owned_by: Some(stopped), ..f };
        assert_eq!(resolve(RUN, &owned), Err(Refused::RunsAt(B)));
        let superseded = Facts { owned_by: Some(stopped), beside: Some(beside(2, A)), ..f };
        assert!(resolve(RUN, &superseded).is_ok(), "the disks know better");
        let withdrawn = source(&[Record::Withdrawn(switch())]);
        let f = facts(&withdrawn, Some(beside(1, A)), Memory::Gone);
        assert_eq!(resolve(RUN, &f), Err(Refused::Settled));
    }

    #[test]
    fn giving_up_leaves_no_claim_and_running_here_answers_ran() {
        let s = switch();
        let receiving = ledger(B, &[Record::Receiving(s)]);
        for (l, record) in [
            (source(&[]), Record::Ceded(s)),
            (source(&[Record::Ceded(s)]), Record::Moved(s)),
            (receiving.clone(), Record::Tombstone(s)),
        ] {
            let f = facts(&l, Some(beside(1, A)), Memory::Whole);
            assert_eq!(resolve(Wish::GiveUp, &f), Ok(Plan::GiveUp(record)));
            assert_eq!(l.apply(record, BOOT).unwrap().owned(), None);
        }
        let rebooted = facts(&receiving, Some(beside(1, A)), Memory::Gone);
        assert_eq!(resolve(Wish::GiveUp, &rebooted), Err(Refused::MayHaveRun(A)));
        let here = receiving.apply(Record::Owner { term: Term::new(3) }, BOOT).unwrap();
        assert!(answers_ran(&here, &s));
    }
}
