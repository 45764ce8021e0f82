//! What this host's journals say of guests that have no owner for sure. It reads, and decides
//! nothing.

use std::fs;

use migrate_engine::handover::journal::Record as Step;
use migrate_engine::handover::term::HostId;
use uuid::Uuid;

use crate::api::moving::HostRef;
use crate::api::resolve::{Doubt, Doubtful, Word};
use crate::config::Dirs;
use crate::guest::journal;
use crate::guest::journal::record::Record;
use crate::show::doubt as words;

/// All records there are. One that cannot be read is left out: whoever starts its guest hears why.
pub fn records(dirs: &Dirs) -> Vec<Record> {
    let Ok(entries) = fs::read_dir(dirs.state.join("journal")) else { return Vec::new() };
    let guests = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<Uuid>().ok());
    let mut records: Vec<Record> =
        guests.filter_map(|guest| journal::read(&dirs.journal(&guest)).ok().flatten()).collect();
    records.sort_by(|a, b| (&a.name, b.since).cmp(&(&b.name, a.since)));
    records
}

/// How the guest of a record stands, and the host at the other end of its switch.
fn open(record: &Record) -> (Option<Doubt>, Option<HostId>) {
    match record.ledger.now() {
        None | Some(Step::Owner { .. } | Step::Withdrawn(_)) => (None, None),
        Some(Step::Offered(s)) => (Some(Doubt::Offered), Some(s.to)),
        Some(Step::Ceded(s)) => (Some(Doubt::Ceded), Some(s.to)),
        Some(Step::Receiving(s)) => (Some(Doubt::Receiving), Some(s.from)),
        Some(Step::Moved(s)) => (None, Some(s.to)),
        Some(Step::Tombstone(s)) => (None, Some(s.from)),
    }
}

/// What the record of a guest means, in words.
pub fn doubtful(record: &Record) -> Doubtful {
    let (doubt, other) = open(record);
    let name = record.peer.clone().unwrap_or_else(|| "another host".into());
    let (known, next) = words::sentences(record, doubt, &name);
    Doubtful {
        schema: 1,
        name: record.name.clone(),
        uuid: record.uuid,
        doubt,
        other: other.map(|id| HostRef { id: Uuid::from_u128(id.0), name }),
        since: record.since,
        term: record.ledger.highest().get(),
        known,
        next,
    }
}

/// What this host says of a guest to others.
pub fn word(dirs: &Dirs, guest: Uuid) -> Result<Word, journal::JournalError> {
    let Some(record) = journal::read_durable(&dirs.journal(&guest))? else {
        return Ok(Word { says: "nothing is known of it here".into(), ..Word::default() });
    };
    Ok(Word {
        term: record.ledger.highest().get(),
        owns: record.ledger.owned().map(|right| right.term.get()),
        says: doubtful(&record).known,
    })
}

/// The guests whose owner is in doubt and that do not run here.
pub fn all(dirs: &Dirs) -> Vec<Doubtful> {
    let all = records(dirs).into_iter().map(|record| doubtful(&record));
    all.filter(|guest| guest.doubt.is_some()).collect()
}

/// The guest called `which`, or of this identity, that belongs to another host or to nobody for
/// sure; else any of that name.
pub fn find(dirs: &Dirs, which: &str) -> Option<Record> {
    let own = |r: &&Record| r.name == which || r.uuid.to_string() == which;
    let all = records(dirs);
    let elsewhere = |r: &&Record| r.ledger.owned().is_none();
    let found = all.iter().filter(own).find(|r| open(r).0.is_some());
    let found = found.or_else(|| all.iter().filter(own).find(elsewhere));
    found.or_else(|| all.iter().find(own)).cloned()
}
