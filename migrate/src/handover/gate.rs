//! The one gate for every start: run, start, autostart, load and restore ask here. Moves and
//! resolve take the right by their own rules, and record it in the same journal.

use super::journal::{Ledger, Record};
use super::term::{Beside, HostId, Stamp, Term};

/// Why a guest may not start on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was given away.
    #[error("the guest was moved to host {to}; it starts there, or here after `resolve`")]
    Moved {
        /// Where it went.
        to: HostId,
    },
    /// Whose it is, is not known.
    #[error(
        "it is not settled whether the guest is here or on host {other}; it will be as soon \
             as that host answers (or see `resolve`)"
    )]
    InDoubt {
        /// The host that knows.
        other: HostId,
    },
    /// Only a part of a move ever was here.
    #[error("the guest was never run on this host: its move from host {from} did not succeed")]
    NeverHere {
        /// Where it stayed.
        from: HostId,
    },
    /// Another host ran it since.
    #[error("host {host} has run the guest since (term {term}): it starts there")]
    Superseded {
        /// That host.
        host: HostId,
        /// Its term.
        term: Term,
    },
}

/// The term of a start, above every known one. The caller holds the journal's lock and OWNER and
/// NEXT of every disk, and has read `beside` under them. It writes the term beside the disks,
/// records `Owner(term)` durably, and then runs. In this order, because a file that was saved on
/// another host may be loaded here: that host starts under no term that this one has recorded.
///
/// # Errors
/// [`Refused`] says whose the guest is.
pub fn start(ledger: &Ledger, beside: &Beside) -> Result<Term, Refused> {
    let mine = match ledger.now() {
        None => Stamp { term: Term::NONE, host: ledger.host() },
        Some(Record::Owner { term }) => Stamp { term: *term, host: ledger.host() },
        Some(Record::Withdrawn(s)) => s.withdrawn(),
        Some(Record::Ceded(s) | Record::Moved(s)) => return Err(Refused::Moved { to: s.to }),
        Some(Record::Offered(s)) => return Err(Refused::InDoubt { other: s.to }),
        Some(Record::Receiving(s)) => return Err(Refused::InDoubt { other: s.from }),
        Some(Record::Tombstone(s)) => return Err(Refused::NeverHere { from: s.from }),
    };
    let owner = beside.owner;
    if owner.term != Term::NONE && beside.supersedes(mine) {
        return Err(Refused::Superseded { host: owner.host, term: owner.term });
    }
    Ok(Term::above(&[ledger.highest(), beside.highest()]))
}

#[cfg(test)]
mod tests {
    use super::super::term::{BootId, Switch, SwitchId};
    use super::*;

    #[test]
    fn only_an_owner_starts() {
        let (a, b, boot) = (HostId(1), HostId(2), BootId(0));
        let switch = |from, to| Switch {
            id: SwitchId(2),
            before: Term::new(1),
            term: Term::new(2),
            from,
            to,
        };
        let (out, into) = (switch(a, b), switch(b, a));
        let own = Record::Owner { term: Term::new(1) };
        let table: &[(&str, &[Record], Result<u64, Refused>)] = &[
            ("new", &[], Ok(1)),
            ("stopped", &[own], Ok(2)),
            ("in doubt", &[own, Record::Offered(out)], Err(Refused::InDoubt { other: b })),
            ("withdrawn", &[own, Record::Offered(out), Record::Withdrawn(out)], Ok(3)),
            (
                "ceded",
                &[own, Record::Offered(out), Record::Ceded(out)],
                Err(Refused::Moved { to: b }),
            ),
            (
                "moved",
                &[own, Record::Offered(out), Record::Moved(out)],
                Err(Refused::Moved { to: b }),
            ),
            ("receiving", &[Record::Receiving(into)], Err(Refused::InDoubt { other: b })),
            (
                "buried",
                &[Record::Receiving(into), Record::Tombstone(into)],
                Err(Refused::NeverHere { from: b }),
            ),
            ("arrived", &[Record::Receiving(into), Record::Owner { term: Term::new(2) }], Ok(3)),
        ];
        for (what, records, wanted) in table {
            let ledger =
                records.iter().fold(Ledger::new(a, boot), |l, r| l.apply(*r, boot).unwrap());
            let got = start(&ledger, &Beside::NOTHING).map(Term::get);
            assert_eq!(got, *wanted, "{what}");
            let newer = Stamp { term: Term::new(9), host: b };
            let beside = Beside { owner: newer, offered: Term::NONE };
            assert!(start(&ledger, &beside).is_err(), "{what}, but the disks went elsewhere");
        }
    }
}
