//! The durable record of who may run a guest, one small directory per guest and host, locked for
//! life by the process that runs it.
//!
//! [`Journal::record`] returns when the record would survive a power loss: it is written beside
//! the old one, synced, renamed over it, and the directory synced. So there is always exactly one
//! whole record, the old or the new. What a journal finds when it is taken is synced before it is
//! believed: its last process may have died before it came to that.
//!
//! All of it goes through [`files::Files`], and is tested on a simulated disk that crashes at
//! every system call.

/// This boot of the host, for which the marks beside a journal are valid.
///
/// # Errors
/// The system does not tell, or something else than it should.
pub fn this_boot() -> io::Result<BootId> {
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let text = failpoint::boot_id().map_or_else(read, Ok)?;
    let boot = Uuid::parse_str(text.trim()).map_err(io::Error::other)?;
    Ok(BootId(boot.as_u128()))
}

#[cfg(test)]
mod crashes;
pub mod files;
pub mod record;
pub mod rules;
#[cfg(test)]
mod simulated;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use files::{Files, HostFiles, make_dirs, sync_way_to, write_all};
use jiff::Timestamp;
use migrate_engine::handover::journal::{self as handover, Ledger};
use migrate_engine::handover::term::{BootId, HostId};
use record::{Record, RecordError, State};
use uuid::Uuid;

use crate::failpoint;

const RECORD: &str = "record";
const FRESH: &str = "record.new";
const LOCK: &str = "lock";

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another guest process holds it.
    #[error("guest {uuid} runs already{}", other.as_ref().map_or(String::new(), |n| format!(" as '{n}'")))]
    Held {
        /// The guest.
        uuid: String,
        /// Name under which it runs.
        other: Option<String>,
    },
    /// The file system refuses.
    #[error("the guest's journal {path} cannot be {what}: {source}{}", hint(source))]
    Io {
        /// The journal.
        path: PathBuf,
        /// `opened`, `read` or `written`.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The record is not readable.
    #[error("the guest's journal {path} is not usable: {source}")]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A step that cannot follow what is written.
    #[error("the guest's journal does not allow it: {0}")]
    Illegal(#[from] handover::Illegal),
}

/// What to do about it, where that is certain.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => ": its disk is full, make room there",
        io::ErrorKind::QuotaExceeded => ": make room, or have the quota raised",
        _ => "",
    }
}

/// Whose journal it is, for its first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// The guest.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// This host, as people call it.
    pub host_name: String,
    /// This host.
    pub host: HostId,
    /// This boot of it.
    pub boot: BootId,
}

impl Whose {
    /// A record that says nothing yet.
    pub fn blank(&self, since: Timestamp) -> Record {
        let ledger = Ledger::new(self.host, self.boot);
        Record {
            uuid: self.uuid,
            name: self.name.clone(),
            host: self.host_name.clone(),
            peer: None,
            since,
            origin: None,
            saved_ever: false,
            state: State::Stopped,
            note: None,
            says: record::says(&ledger),
            ledger,
        }
    }
}

/// A journal that this process holds.
#[derive(Debug)]
pub struct Journal<F: Files = HostFiles> {
    files: F,
    dir: PathBuf,
    /// Kept open: syncing it must work in a confined process.
    handle: F::Handle,
    last: Option<Record>,
    /// What could not be written after `last`, or may have been all the same.
    tried: Option<Record>,
    _lock: F::Lock,
}

impl Journal {
    /// Takes the journal in `dir`, making it if need be.
    ///
    /// # Errors
    /// [`JournalError::Held`] if the guest runs; the others if it is damaged or unreachable.
    pub fn take(dir: &Path) -> Result<Self, JournalError> {
        Self::take_in(HostFiles, dir)
    }
}

impl<F: Files> Journal<F> {
    /// As [`Journal::take`], among `files`.
    ///
    /// # Errors
    /// As there.
    pub fn take_in(files: F, dir: &Path) -> Result<Self, JournalError> {
        let io = |what| move |source| JournalError::Io { path: dir.to_owned(), what, source };
        let Some(lock) = lock_in(&files, dir).map_err(io("opened"))? else {
            let uuid = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let other = read_in(&files, dir).ok().flatten().map(|r| r.name);
            return Err(JournalError::Held { uuid, other });
        };
        let handle = files.open(dir).map_err(io("opened"))?;
        let last = match read_in(&files, dir)? {
            None => {
                // The journal itself must survive a power loss, not only what it holds.
                sync_way_to(&files, dir).map_err(io("opened"))?;
                None
            }
            last => {
                // Its content was synced before it got its name.
                files.sync(&handle).map_err(io("opened"))?;
                last
            }
        };
        Ok(Self { files, dir: dir.to_owned(), handle, last, tried: None, _lock: lock })
    }

    /// The last record.
    pub fn last(&self) -> Option<&Record> {
        self.last.as_ref()
    }

    /// Makes `record` the journal's record, durably.
    ///
    /// # Errors
    /// The old or the new record is in force then; writing again decides it.
    pub fn record(&mut self, record: Record) -> Result<(), JournalError> {
        let path = self.dir.join(RECORD);
        let bytes = record::encode(&record)
            .map_err(|source| JournalError::Damaged { path: path.clone(), source })?;
        if let Err(source) = self.replace(&path, &bytes) {
            self.tried = Some(record);
            return Err(JournalError::Io { path, what: "written", source });
        }
        (self.last, self.tried) = (Some(record), None);
        Ok(())
    }

    /// Records a step of the ownership, with `peer` as the name of the other side. It may follow
    /// one that could not be written: an offer is withdrawn even if nobody knows its fate.
    ///
    /// # Errors
    /// [`JournalError::Illegal`] if it does not follow; else as [`Journal::record`].
    pub fn step(
        &mut self,
        whose: &Whose,
        step: handover::Record,
        peer: Option<String>,
        since: Timestamp,
    ) -> Result<(), JournalError> {
        let last = self.last.clone().unwrap_or_else(|| whose.blank(since));
        if last.ledger.now() == Some(&step) && self.tried.is_none() {
            return Ok(());
        }
        let fits = |record: &&Record| record.ledger.apply(step, whose.boot).is_ok();
        let tried = self.tried.as_ref().filter(fits);
        let base = if fits(&&last) { &last } else { tried.unwrap_or(&last) };
        let mut next = base.after(step, whose.boot, peer, since)?;
        // Whoever received it cannot know whether a file of it exists somewhere.
        next.saved_ever |= matches!(step, handover::Record::Receiving(_));
        self.record(next)
    }

    /// Changes only what became of the term. Nothing if the guest is not this host's any more.
    ///
    /// # Errors
    /// As [`Journal::record`]; also if there is no record yet.
    pub fn end_term(&mut self, state: State, since: Timestamp) -> Result<(), JournalError> {
        let Some(last) = &self.last else {
            let path = self.dir.join(RECORD);
            let source = io::ErrorKind::NotFound.into();
            return Err(JournalError::Io { path, what: "read", source });
        };
        if last.ledger.owned().is_none() {
            return Ok(());
        }
        let saved_ever = last.saved_ever || matches!(state, State::Saved { .. });
        self.record(Record { since, saved_ever, state, ..last.clone() })
    }

    /// Removes the journal while it is locked, the lock last: who comes then makes a new one,
    /// which must not be removed, so everything is removed by name and once.
    fn remove(&self) {
        for name in [RECORD, FRESH, LOCK] {
            let _ = self.files.remove_file(&self.dir.join(name));
        }
        let _ = self.files.remove_dir(&self.dir);
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.dir.join(FRESH);
        // Never written over: after a power loss a leftover may be the record itself, under both
        // names.
        match self.files.remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = self.files.create(&fresh)?;
        write_all(&self.files, &file, bytes)?;
        self.files.sync(&file)?;
        self.files.rename(&fresh, path)?;
        self.files.sync(&self.handle)
    }
}

/// A journal that several threads of its process write, one at a time. It is let go with the
/// last clone.
#[derive(Clone, Debug)]
pub struct SharedJournal {
    journal: Arc<Mutex<Journal>>,
    whose: Arc<Whose>,
}

impl SharedJournal {
    /// Shares `journal`.
    pub fn new(journal: Journal, whose: Whose) -> Self {
        Self { journal: Arc::new(Mutex::new(journal)), whose: Arc::new(whose) }
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose it is.
    pub fn whose(&self) -> &Whose {
        &self.whose
    }

    /// The last record.
    pub fn last(&self) -> Option<Record> {
        self.lock().last().cloned()
    }

    /// The ledger as it durably stands.
    pub fn ledger(&self) -> Ledger {
        let blank = || Ledger::new(self.whose.host, self.whose.boot);
        self.last().map_or_else(blank, |r| r.ledger)
    }

    /// See [`Journal::record`].
    ///
    /// # Errors
    /// As there.
    pub fn record(&self, record: Record) -> Result<(), JournalError> {
        self.lock().record(record)
    }

    /// See [`Journal::step`].
    ///
    /// # Errors
    /// As there.
    pub fn step(&self, step: handover::Record, peer: Option<String>) -> Result<(), JournalError> {
        self.lock().step(&self.whose, step, peer, failpoint::now())
    }

    /// See [`Journal::end_term`].
    ///
    /// # Errors
    /// As there.
    pub fn end_term(&self, state: State, since: Timestamp) -> Result<(), JournalError> {
        self.lock().end_term(state, since)
    }
}

/// The lock; `None` if it is held. Somebody may be removing an empty journal right now.
fn lock_in<F: Files>(files: &F, dir: &Path) -> io::Result<Option<F::Lock>> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for _ in 0..16 {
        make_dirs(files, dir)?;
        match files.lock(&dir.join(LOCK)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => last = e,
            other => return other,
        }
    }
    Err(last)
}

impl<F: Files> Drop for Journal<F> {
    /// A journal without a record says nothing: it is not left behind.
    fn drop(&mut self) {
        if self.last.is_none() {
            self.remove();
        }
    }
}

/// The record in `dir`, without its lock. `None` if there is none. A process that is just writing
/// it may not have synced it yet.
///
/// # Errors
/// It cannot be read or is damaged.
pub fn read(dir: &Path) -> Result<Option<Record>, JournalError> {
    read_in(&HostFiles, dir)
}

/// The record in `dir`, without its lock, and only if it would survive a power loss. For what is
/// said to others for ever.
///
/// # Errors
/// As [`read`].
pub fn read_durable(dir: &Path) -> Result<Option<Record>, JournalError> {
    let found = read_in(&HostFiles, dir)?;
    let synced = HostFiles.open(dir).and_then(|handle| HostFiles.sync(&handle));
    if let Err(source) = synced
        && source.kind() != io::ErrorKind::NotFound
    {
        return Err(JournalError::Io { path: dir.to_owned(), what: "read", source });
    }
    // Another one that came meanwhile may not be durable, and may not follow from this one.
    Ok(if read_in(&HostFiles, dir)? == found { found } else { None })
}

fn read_in<F: Files>(files: &F, dir: &Path) -> Result<Option<Record>, JournalError> {
    let path = dir.join(RECORD);
    let limit = record::MAX_BYTES as u64 + 1;
    match files.open(&path).and_then(|file| files.read(&file, limit)) {
        Ok(bytes) => record::decode(&bytes)
            .map(Some)
            .map_err(|source| JournalError::Damaged { path, source }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JournalError::Io { path, what: "read", source }),
    }
}

/// Removes journals below `journals` of guests that ended before `before` and were never saved:
/// no file anywhere knows their terms, and no host asks for a hand-over of theirs. Failures leave
/// a journal where it is.
pub fn prune(journals: &Path, before: Timestamp) {
    let Ok(entries) = fs::read_dir(journals) else { return };
    for entry in entries.flatten() {
        let dir = entry.path();
        // One that says where the guest went, or that is not settled, is kept.
        let old = |r: &Record| {
            let ours = r.ledger.owned().is_some() && r.ledger.past().is_empty();
            ours && !r.saved_ever && r.origin.is_none() && r.since < before
        };
        if !matches!(read(&dir), Ok(Some(r)) if old(&r)) {
            continue;
        }
        // Under the lock, and only what is still old then.
        if let Ok(journal) = Journal::take(&dir)
            && journal.last().is_some_and(old)
        {
            journal.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(term: u64) -> Record {
        let ledger = record::owned(term);
        let state = State::Owner;
        Record { ledger, origin: None, saved_ever: false, state, ..record::example() }
    }

    #[test]
    fn records_are_read_back_and_one_process_holds_them() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("journal").join(Uuid::from_u128(1).to_string());
        let mut journal = Journal::take(&dir).unwrap();
        assert_eq!(journal.last(), None);
        journal.record(owner(1)).unwrap();
        let Err(JournalError::Held { other, .. }) = Journal::take(&dir) else { panic!() };
        assert_eq!(other.as_deref(), Some("web"));
        let save = Uuid::from_u128(9);
        journal.end_term(State::Saved { save }, Timestamp::UNIX_EPOCH).unwrap();
        drop(journal);
        let journal = Journal::take(&dir).unwrap();
        let last = journal.last().unwrap();
        assert_eq!((last.term(), last.saved_ever), (1, true));
        assert_eq!(last.state, State::Saved { save });
    }

    #[test]
    fn a_journal_that_says_nothing_is_not_left_behind() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("j");
        drop(Journal::take(&dir).unwrap());
        assert!(!dir.exists());
        Journal::take(&dir).unwrap().record(owner(1)).unwrap();
        assert!(dir.exists());
    }

    #[test]
    fn steps_follow_each_other_and_a_guest_that_went_has_no_term_to_end() {
        use migrate_engine::handover::term::{Switch, SwitchId, Term};
        let root = tempfile::tempdir().unwrap();
        let (host, boot) = (HostId(1), BootId(2));
        let whose = Whose {
            uuid: Uuid::from_u128(1),
            name: "web".into(),
            host_name: "h1".into(),
            host,
            boot,
        };
        let journal = SharedJournal::new(Journal::take(root.path()).unwrap(), whose);
        let (before, term) = (Term::new(1), Term::new(2));
        let switch = Switch { id: SwitchId(5), before, term, from: host, to: HostId(9) };
        let step = |record| journal.step(record, Some("h9".into()));
        assert!(matches!(step(handover::Record::Offered(switch)), Err(JournalError::Illegal(_))));
        for record in [
            handover::Record::Owner { term: before },
            handover::Record::Offered(switch),
            handover::Record::Ceded(switch),
            handover::Record::Ceded(switch),
            handover::Record::Moved(switch),
        ] {
            step(record).unwrap();
        }
        journal.end_term(State::Stopped, Timestamp::UNIX_EPOCH).unwrap();
        let last = read(root.path()).unwrap().unwrap();
        assert_eq!(last.ledger.now(), Some(&handover::Record::Moved(switch)));
        assert_eq!((last.peer.as_deref(), last.term()), (Some("h9"), 2));
    }

    #[test]
    fn a_damaged_record_is_an_error_not_an_empty_journal() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(RECORD), "migrate-journal").unwrap();
        assert!(matches!(Journal::take(root.path()), Err(JournalError::Damaged { .. })));
    }

    #[test]
    fn a_record_left_half_written_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        Journal::take(root.path()).unwrap().record(owner(3)).unwrap();
        fs::write(root.path().join(FRESH), "torn").unwrap();
        let mut journal = Journal::take(root.path()).unwrap();
        assert_eq!(journal.last().unwrap().term(), 3);
        journal.record(owner(4)).unwrap();
        assert_eq!(read(root.path()).unwrap().unwrap().term(), 4);
    }

    #[test]
    fn only_old_journals_that_no_file_knows_are_pruned() {
        let root = tempfile::tempdir().unwrap();
        let day = |n: i64| Timestamp::from_second(n * 86400).unwrap();
        let write = |name: &str, since, saved_ever, origin| {
            let record = Record { since, origin, saved_ever, ..owner(1) };
            Journal::take(&root.path().join(name)).unwrap().record(record).unwrap();
        };
        write("old", day(1), false, None);
        write("new", day(20), false, None);
        write("saved", day(1), true, None);
        write("loaded", day(1), false, Some(Uuid::nil()));
        write("running", day(1), false, None);
        let running = Journal::take(&root.path().join("running")).unwrap();
        prune(root.path(), day(10));
        let there = |name: &str| root.path().join(name).exists();
        assert!(!there("old"));
        assert!(there("new") && there("saved") && there("loaded") && there("running"));
        drop(running);
    }
}
