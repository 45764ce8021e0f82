//! Who may start a guest, decided from records alone.
//!
//! A saved file is a right to continue, and like the guest itself it must not be used twice from
//! two different pasts. A load is allowed
//! * if this host knows nothing of the guest, or only of terms before the file's (the file came
//!   from another host, where the guest ran since);
//! * if the last thing that happened to the guest was the save of exactly this file;
//! * if the guest was continued from exactly this file and has ended without being saved again.
//!   (What it wrote to its disks is a separate question: fingerprints answer it.)
//!
//! Otherwise the guest lived on after the save: continuing would bring back an old memory. What
//! remains is a clone under a new identity.

use uuid::Uuid;

use super::record::{Record, State};

/// What a saved file knows of its guest's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedIdentity {
    /// The guest.
    pub uuid: Uuid,
    /// The term in which it was saved.
    pub term: u64,
    /// Identity of the save.
    pub save: Uuid,
}

/// The guest lived on after the save.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Superseded(String);

/// The term of a start from a saved file, if it is allowed. `last` is the journal's record, which
/// must say that this host owns the guest or knows nothing of it
/// ([`gate`](migrate_engine::handover::gate)); the caller holds the journal's lock, so the guest
/// does not run.
///
/// # Errors
/// [`Superseded`] says what happened since the save.
pub fn term_of_load(last: Option<&Record>, file: &SavedIdentity) -> Result<u64, Superseded> {
    let Some(last) = last else { return Ok(file.term.saturating_add(1)) };
    let continues_file = match last.state {
        State::Saved { save } => save == file.save,
        State::Owner | State::Stopped => last.origin == Some(file.save),
    };
    if last.term() >= file.term && !continues_file {
        return Err(Superseded(describe(last, file)));
    }
    Ok(last.ledger.highest().get().max(file.term).saturating_add(1))
}

fn describe(last: &Record, file: &SavedIdentity) -> String {
    let (name, since) = (&last.name, last.since);
    let saved = format!("the file was saved in term {} of the guest", file.term);
    let then = match last.state {
        State::Saved { .. } => {
            format!("it was saved again at {since} (term {}); continue from that file", last.term())
        }
        State::Owner => format!("it ran as '{name}' from {since} on (term {})", last.term()),
        State::Stopped => format!("it ran on as '{name}' until {since} (term {})", last.term()),
    };
    format!("{saved}, but since then {then}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::journal::record::example;

    const FILE: SavedIdentity =
        SavedIdentity { uuid: Uuid::from_u128(0x1234), term: 7, save: Uuid::from_u128(6) };

    fn last(term: u64, origin: Option<u128>, state: State) -> Record {
        let ledger = crate::guest::journal::record::owned(term);
        Record { ledger, origin: origin.map(Uuid::from_u128), state, ..example() }
    }

    #[test]
    fn loads() {
        let saved = |save| State::Saved { save: Uuid::from_u128(save) };
        let table: Vec<(&str, Option<Record>, Option<u64>)> = vec![
            ("unknown here", None, Some(8)),
            ("just saved", Some(last(7, None, saved(6))), Some(8)),
            ("saved again in the same term", Some(last(7, None, saved(9))), None),
            ("saved again later", Some(last(9, Some(6), saved(9))), None),
            ("loaded and died", Some(last(8, Some(6), State::Owner)), Some(9)),
            ("loaded and stopped", Some(last(8, Some(6), State::Stopped)), Some(9)),
            ("loaded twice and stopped", Some(last(9, Some(6), State::Stopped)), Some(10)),
            ("ran on after a running save", Some(last(7, None, State::Stopped)), None),
            ("ran on, died", Some(last(7, None, State::Owner)), None),
            ("cold start since", Some(last(8, None, State::Stopped)), None),
            ("loaded from another file since", Some(last(8, Some(5), State::Stopped)), None),
            ("older here than the file", Some(last(6, None, State::Stopped)), Some(8)),
            ("older save here than the file", Some(last(3, None, saved(2))), Some(8)),
        ];
        for (what, record, wanted) in table {
            assert_eq!(term_of_load(record.as_ref(), &FILE).ok(), wanted, "{what}");
        }
    }
}
