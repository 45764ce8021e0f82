//! What the arbiter's word means for a host that wants to start a guest, or to move one.
//!
//! The right that stands in the arbiter may be of an older term than the owner's own: a free abort
//! gives the source a new term without asking. So terms of two hosts are not compared here: a
//! right of another host is in the way, whatever its term, unless the guest comes from a file that
//! this very owner wrote.

use super::term::{HostId, Stamp, Term};

/// Why the arbiter's word is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is another host's.
    #[error("the arbiter says that host {} has the guest, since term {}", .0.host, .0.term)]
    Elsewhere(Stamp),
    /// Its source has taken it back.
    #[error(
        "the arbiter says that host {} took the guest back in term {}: the memory here is older. \
         Give it up, then let the guest run here from its disks",
        .0.host, .0.term
    )]
    TakenBack(Stamp),
    /// It is known in a term of which its journal knows nothing.
    #[error(
        "the arbiter knows the guest in term {there}, of which the journal of this host knows \
         nothing (it says {here})"
    )]
    Newer {
        /// In the arbiter.
        there: Term,
        /// In the journal.
        here: Term,
    },
}

/// The right to ask the arbiter for, in place of what `stands` there, before `host` starts a
/// guest. `lowest` is the first term that the journal and the disks allow. `saved` is the term of
/// the file that the guest continues from: whoever has the file has the right of the owner that
/// wrote it. `fenced`: an operator states that this host is off, and its right may be taken.
///
/// # Errors
/// [`Refused::Elsewhere`].
pub fn start(
    stands: Option<Stamp>,
    host: HostId,
    saved: Option<Term>,
    fenced: Option<HostId>,
    lowest: Term,
) -> Result<Stamp, Refused> {
    let Some(found) = stands else { return Ok(Stamp { term: lowest, host }) };
    let from_file = saved.is_some_and(|saved| found.term <= saved);
    if found.host != host && fenced != Some(found.host) && !from_file {
        return Err(Refused::Elsewhere(found));
    }
    Ok(Stamp { term: lowest.max(Term::above(&[found.term])), host })
}

/// The right to ask for in place of what `stands` there, before a process on `host` runs on with
/// the memory of an open switch, as an operator states that `fenced`, the other host of the switch,
/// is off. `highest` is the highest term that the journal knows. `receiving`: the memory came from
/// `fenced`, which may have taken the guest back and run it on: then that stands in the arbiter.
///
/// # Errors
/// [`Refused`].
pub fn run_memory(
    stands: Option<Stamp>,
    (host, fenced): (HostId, HostId),
    highest: Term,
    receiving: bool,
) -> Result<Stamp, Refused> {
    if let Some(found) = stands {
        if found.host != host && found.host != fenced {
            return Err(Refused::Elsewhere(found));
        }
        if receiving && found.host == fenced && found.term >= highest {
            return Err(Refused::TakenBack(found));
        }
        if found.term > highest {
            return Err(Refused::Newer { there: found.term, here: highest });
        }
    }
    Ok(Stamp { term: Term::above(&[highest]), host })
}

/// Whether the owner `held` may begin to move its guest, and so bring what `stands` in the arbiter
/// up to its own term. A guest that was started before there was an arbiter has no right there
/// yet.
///
/// # Errors
/// [`Refused`].
pub fn moving(stands: Option<Stamp>, held: Stamp) -> Result<(), Refused> {
    match stands {
        Some(found) if found.host != held.host => Err(Refused::Elsewhere(found)),
        Some(found) if found.term > held.term => {
            Err(Refused::Newer { there: found.term, here: held.term })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: HostId = HostId(1);
    const THERE: HostId = HostId(2);

    fn stamp(term: u64, host: HostId) -> Stamp {
        Stamp { term: Term::new(term), host }
    }

    #[test]
    fn a_start_needs_the_right() {
        #[rustfmt::skip]
        let table = [
            // stands there            file     lowest  wanted
            (None,                     None,    3, Ok(3)),
            (Some(stamp(2, HERE)),     None,    3, Ok(3)),
            (Some(stamp(7, HERE)),     None,    3, Ok(8)),
            (Some(stamp(2, THERE)),    None,    3, Err(2)),
            (Some(stamp(9, THERE)),    None,    3, Err(9)),
            // Written by that owner, or by one after it; and by one before it.
            (Some(stamp(2, THERE)),    Some(2), 3, Ok(3)),
            (Some(stamp(2, THERE)),    Some(4), 5, Ok(5)),
            (Some(stamp(3, THERE)),    Some(2), 9, Err(3)),
        ];
        for (stands, saved, lowest, wanted) in table {
            let got = start(stands, HERE, saved.map(Term::new), None, Term::new(lowest));
            let wanted = wanted
                .map(|term| stamp(term, HERE))
                .map_err(|term| Refused::Elsewhere(stamp(term, THERE)));
            assert_eq!(got, wanted, "{stands:?} {saved:?} {lowest}");
        }
    }

    #[test]
    fn of_two_hosts_that_load_one_file_one_gets_the_right() {
        let saved = Some(Term::new(7));
        let written = stamp(7, HostId(3));
        let first = start(Some(written), HERE, saved, None, Term::new(8)).unwrap();
        assert_eq!(first, stamp(8, HERE));
        assert_eq!(
            start(Some(first), THERE, saved, None, Term::new(8)),
            Err(Refused::Elsewhere(first))
        );
    }

    #[test]
    fn the_right_of_a_fenced_host_is_taken() {
        let (there, third) = (stamp(9, THERE), HostId(3));
        let lowest = Term::new(3);
        assert_eq!(start(Some(there), HERE, None, Some(THERE), lowest), Ok(stamp(10, HERE)));
        let no = start(Some(there), HERE, None, Some(third), lowest);
        assert_eq!(no, Err(Refused::Elsewhere(there)));
    }

    #[test]
    fn memory_runs_on_unless_the_arbiter_knows_better() {
        let highest = Term::new(2);
        let run = |stands, receiving| run_memory(stands, (HERE, THERE), highest, receiving);
        // At the source that gave it away, and at the target that heard nothing.
        assert_eq!(run(Some(stamp(2, THERE)), false), Ok(stamp(3, HERE)));
        assert_eq!(run(Some(stamp(1, THERE)), true), Ok(stamp(3, HERE)));
        assert_eq!(run(Some(stamp(2, HERE)), true), Ok(stamp(3, HERE)));
        assert_eq!(run(None, true), Ok(stamp(3, HERE)));
        let withdrawn = stamp(2, THERE);
        assert_eq!(run(Some(withdrawn), true), Err(Refused::TakenBack(withdrawn)));
        let third = stamp(1, HostId(3));
        assert_eq!(run(Some(third), false), Err(Refused::Elsewhere(third)));
        let newer = Refused::Newer { there: Term::new(3), here: highest };
        assert_eq!(run(Some(stamp(3, THERE)), false), Err(newer));
    }

    #[test]
    fn only_the_owner_moves_a_guest() {
        let held = stamp(5, HERE);
        for stands in [None, Some(stamp(3, HERE)), Some(held)] {
            assert_eq!(moving(stands, held), Ok(()), "{stands:?}");
        }
        let other = stamp(3, THERE);
        assert_eq!(moving(Some(other), held), Err(Refused::Elsewhere(other)));
        let (there, here) = (Term::new(6), held.term);
        assert_eq!(moving(Some(stamp(6, HERE)), held), Err(Refused::Newer { there, here }));
    }
}
