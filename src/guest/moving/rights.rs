//! How a guest process holds its right to a guest: journal, marks, and locks and terms of the
//! shared disks.
//!
//! Marks are files in the runtime directory, one for each switch. They cost no flush: they must
//! outlive this process, not its host, and the boot in which one was set stands in it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use migrate_engine::handover::journal::{Mark, Record};
use migrate_engine::handover::proof::Durable;
use migrate_engine::handover::term::{Beside, BootId, Stamp, SwitchId, Term};
use migrate_engine::port::{Lock, Rights};
use vmm::devices::virtio::block::DiskOpenError;

use crate::guest::disks::{DiskSet, DiskSetError};
use crate::guest::journal::{JournalError, SharedJournal};

/// Why a step did not succeed. It may have been done all the same.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A mark.
    #[error("the mark {0} cannot be set: {1}")]
    Mark(PathBuf, io::Error),
    /// The disks.
    #[error(transparent)]
    Disks(#[from] DiskSetError),
}

/// The rights of one guest process.
#[derive(Debug)]
pub struct ProcessRights {
    journal: SharedJournal,
    disks: Arc<DiskSet>,
    marks: PathBuf,
    /// The other host, as people call it.
    peer: String,
}

impl ProcessRights {
    /// Rights to the guest of `journal`, whose disks are `disks`, in a move with the host `peer`.
    /// `marks` is a directory that exists.
    pub fn new(journal: SharedJournal, disks: Arc<DiskSet>, marks: PathBuf, peer: String) -> Self {
        Self { journal, disks, marks, peer }
    }
}

impl Durable for ProcessRights {
    type Error = RightsError;

    fn record(&mut self, record: Record) -> Result<(), RightsError> {
        Ok(self.journal.step(record, Some(self.peer.clone()))?)
    }

    fn mark(&mut self, mark: Mark) -> Result<(), RightsError> {
        let path = self.marks.join(name(mark));
        set(&path, self.journal.whose().boot).map_err(|e| RightsError::Mark(path, e))
    }

    fn stamp(&mut self, term: Term) -> Result<(), RightsError> {
        let host = self.journal.whose().host;
        Ok(self.disks.stamp_owner(Stamp { term, host }).map_err(DiskSetError::from)?)
    }
}

impl Rights for ProcessRights {
    fn beside(&mut self) -> Result<Beside, RightsError> {
        Ok(self.disks.read_beside().map_err(DiskSetError::from)?)
    }

    fn stamp_offer(&mut self, term: Term) -> Result<(), RightsError> {
        Ok(self.disks.stamp_offer(term).map_err(DiskSetError::from)?)
    }

    fn take_owner(&mut self) -> Result<Lock, RightsError> {
        let taken = self.disks.take_owner();
        self.locked(taken)
    }

    fn drop_owner(&mut self) {
        let_go("OWNER", self.disks.drop_owner());
    }

    fn take_next(&mut self) -> Result<Lock, RightsError> {
        let taken = self.disks.take_next();
        self.locked(taken)
    }

    fn drop_next(&mut self) {
        let_go("NEXT", self.disks.drop_next());
    }
}

impl ProcessRights {
    fn locked(&mut self, taken: Result<(), DiskOpenError>) -> Result<Lock, RightsError> {
        match taken {
            Ok(()) => Ok(Lock::Taken(self.beside()?)),
            Err(DiskOpenError::Locked(_)) => Ok(Lock::Busy),
            Err(other) => Err(DiskSetError::from(other).into()),
        }
    }
}

/// A lock that cannot be let go ends with the process at the latest.
fn let_go(which: &str, dropped: Result<(), DiskOpenError>) {
    if let Err(error) = dropped {
        tracing::error!(%error, which, "a lock of a disk cannot be let go");
    }
}

fn name(mark: Mark) -> String {
    match mark {
        Mark::Ceded(switch) => format!("ceded-{switch}"),
        Mark::Ran(switch) => format!("ran-{switch}"),
    }
}

fn parse(name: &str) -> Option<Mark> {
    let (kind, id) = name.split_once('-')?;
    if id.len() != 32 {
        return None;
    }
    let id = SwitchId(u128::from_str_radix(id, 16).ok()?);
    let mark = match kind {
        "ceded" => Mark::Ceded(id),
        "ran" => Mark::Ran(id),
        _ => return None,
    };
    // There is one spelling of each.
    (name == self::name(mark)).then_some(mark)
}

fn set(path: &Path, boot: BootId) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{boot}")
}

/// The marks in `dir` that were set in `boot`. A missing directory has none.
///
/// # Errors
/// They cannot be read: then nothing is known.
pub fn marks(dir: &Path, boot: BootId) -> io::Result<Vec<Mark>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(mark) = entry.file_name().to_str().and_then(parse) else { continue };
        // One that was made and not written yet was not reported as set, but may be: it counts.
        let text = fs::read_to_string(entry.path())?;
        if text.is_empty() || text.trim() == boot.to_string() {
            found.push(mark);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn marks_are_found_in_the_boot_in_which_they_were_set() {
        let dir = tempfile::tempdir().unwrap();
        let (now, before) = (BootId(2), BootId(1));
        let all = [Mark::Ceded(SwitchId(7)), Mark::Ran(SwitchId(u128::MAX))];
        for mark in all {
            assert_eq!(parse(&name(mark)), Some(mark));
            set(&dir.path().join(name(mark)), now).unwrap();
        }
        set(&dir.path().join(name(Mark::Ran(SwitchId(1)))), before).unwrap();
        fs::write(dir.path().join("something"), "else").unwrap();
        let mut found = marks(dir.path(), now).unwrap();
        found.sort();
        assert_eq!(found, all);
        assert_eq!(marks(&dir.path().join("missing"), now).unwrap(), []);
    }

    proptest! {
        #[test]
        fn a_mark_has_one_name(id: u128, text: String, digits in "(ran|ceded)-[+0-9a-fA-F]{32}") {
            for mark in [Mark::Ceded(SwitchId(id)), Mark::Ran(SwitchId(id))] {
                prop_assert_eq!(parse(&name(mark)), Some(mark));
            }
            for text in [text, digits] {
                if let Some(mark) = parse(&text) {
                    prop_assert_eq!(name(mark), text);
                }
            }
        }
    }
}
