//! All disks of a guest together, as a change of hands needs them: locks taken on all or on none,
//! the record beside each shared one, and the proof that the other side sees the same storage.
//!
//! It never reads or writes a disk's data, and decides nothing about who may run.

pub mod beside;
pub mod check;
mod mapping;
pub mod record;
mod sidecar;
pub mod track;
pub mod tracks;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use migrate_engine::handover::term::{Beside, Stamp, Term};
use nix::sys::statfs::fstatfs;
use uuid::Uuid;
use vmm::devices::virtio::block::{DiskLock, DiskOpenError};

use self::beside::{BesideError, BesideFile};
use self::check::{DiskFacts, obstacle};
use self::record::{Record, Stale};
use self::track::TrackIn;
use self::tracks::Tracks;
use super::fingerprint::{self, DiskChanged, Fingerprint};
use crate::api::{ErrorCode, Failure};
use crate::config::DiskDefinition;

/// Why the disks of a guest cannot be claimed, read or stamped.
#[derive(Debug, thiserror::Error)]
pub enum DiskSetError {
    /// A lock.
    #[error(transparent)]
    Lock(#[from] DiskOpenError),
    /// A record.
    #[error(transparent)]
    Beside(#[from] BesideError),
    /// A disk does not tell what it is.
    #[error("cannot inspect disk {path}: {source}")]
    Inspect {
        /// The disk.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// `shared` on something that cannot be.
    #[error("disk {0} is a block device and cannot be marked as shared")]
    BlockDevice(PathBuf),
    /// The other side has other disks.
    #[error("this guest has {here} {what} and {there} on the other host")]
    Count {
        /// `shared disks` or `read-only disks`.
        what: &'static str,
        /// Here.
        here: usize,
        /// There.
        there: usize,
    },
    /// The same path is other storage.
    #[error(
        "disk {0} is not the same image on both hosts: what the source wrote beside it cannot be \
         read here"
    )]
    OtherStorage(PathBuf),
    /// A read-only disk is another one here.
    #[error("{0}")]
    OtherContent(DiskChanged),
}

impl DiskSetError {
    /// As people and scripts see it.
    pub fn failure(&self) -> Failure {
        let (code, remedy) = match self {
            Self::Lock(DiskOpenError::Locked(_)) => (
                ErrorCode::DiskLocked,
                "stop the guest that uses it; after a move, the guest is where it moved to",
            ),
            Self::Beside(BesideError::Stale { .. }) => {
                (ErrorCode::Superseded, "manage the guest where its disk is in use")
            }
            Self::Beside(BesideError::Unreadable { .. }) => (
                ErrorCode::BadDisk,
                "make sure that the guest runs nowhere, then move that file away and start it",
            ),
            Self::BlockDevice(_) => (
                ErrorCode::BadDisk,
                "leave 'shared' out; for a guest that moves use an image file on NFSv4 or a \
                 cluster file system",
            ),
            Self::OtherStorage(_)
            | Self::OtherContent(_)
            | Self::Beside(BesideError::Missing(_)) => {
                (ErrorCode::BadDisk, "mount the same storage at the same path on both hosts")
            }
            Self::Count { .. } => (ErrorCode::BadDisk, "move it with the definition it runs with"),
            Self::Lock(_) | Self::Beside(_) | Self::Inspect { .. } => {
                (ErrorCode::BadDisk, "check the disk's storage, its mount and permissions")
            }
        };
        Failure::new(code, self.to_string(), remedy)
    }
}

/// On what terms a guest's disks are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The guest starts here: [`DiskSet::start`].
    Start,
    /// It comes from another host: [`DiskSet::receive`].
    Receive,
}

/// What is opened, for whom, and how.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The guest.
    pub guest: Uuid,
    /// On what terms.
    pub claim: Claim,
}

/// One disk that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// What its user says of it.
    pub definition: &'a DiskDefinition,
    /// The guest's handle.
    pub file: &'a File,
}

struct Disk {
    lock: DiskLock,
    /// Only beside writable shared disks.
    beside: Option<BesideFile>,
    facts: DiskFacts,
}

/// The disks of one guest, in the definition's order. Dropping it lets no lock go that another
/// copy of a disk's descriptor still holds.
pub struct DiskSet {
    guest: u128,
    /// Held while records change: a change reads, and writes what it made of it.
    changing: Mutex<()>,
    disks: Vec<Disk>,
    tracks: Tracks,
}

impl std::fmt::Debug for DiskSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.disks.iter().map(|d| &d.facts)).finish()
    }
}

impl DiskSet {
    /// The disks under this claim.
    ///
    /// # Errors
    /// [`DiskSetError`]; no lock is kept.
    pub fn claim(asked: Asked, parts: &[Part<'_>]) -> Result<Self, DiskSetError> {
        match asked.claim {
            Claim::Start => Self::start(asked.guest, parts),
            Claim::Receive => Self::receive(asked.guest, parts),
        }
    }

    /// For a guest that starts here: takes both locks of every disk, then opens the records
    /// beside the shared ones, or makes them. Let NEXT go once the guest runs.
    ///
    /// # Errors
    /// [`DiskSetError`]; no lock is kept.
    pub fn start(guest: Uuid, parts: &[Part<'_>]) -> Result<Self, DiskSetError> {
        let mut set = Self::unclaimed(guest, parts)?;
        set.take_next()?;
        // After a failure the caller drops the disks, and with them every lock.
        set.take_owner().inspect_err(|_| set.drop_quietly())?;
        set.open_records(BesideFile::open_or_make).inspect_err(|_| set.drop_quietly())?;
        Ok(set)
    }

    /// For a guest that comes from elsewhere: takes no lock, and the records must be there.
    ///
    /// # Errors
    /// [`DiskSetError`].
    pub fn receive(guest: Uuid, parts: &[Part<'_>]) -> Result<Self, DiskSetError> {
        let mut set = Self::unclaimed(guest, parts)?;
        set.open_records(BesideFile::open)?;
        Ok(set)
    }

    fn unclaimed(guest: Uuid, parts: &[Part<'_>]) -> Result<Self, DiskSetError> {
        let disk = |part: &Part<'_>| {
            let definition = part.definition;
            let lock = DiskLock::new(part.file, &definition.path, definition.read_only)?;
            Ok(Disk { lock, beside: None, facts: facts(part)? })
        };
        let disks = parts.iter().map(disk).collect::<Result<_, DiskSetError>>()?;
        let changing = Mutex::new(());
        Ok(Self { guest: guest.as_u128(), changing, disks, tracks: Tracks::default() })
    }

    fn open_records(
        &mut self,
        open: impl Fn(&std::path::Path) -> Result<BesideFile, BesideError>,
    ) -> Result<(), DiskSetError> {
        for disk in &mut self.disks {
            if disk.facts.read_only || !disk.facts.shared {
                continue;
            }
            if disk.facts.block_device {
                return Err(DiskSetError::BlockDevice(disk.facts.path.clone()));
            }
            let beside = open(&disk.facts.path)?;
            disk.facts.record_direct = Some(beside.is_direct());
            disk.beside = Some(beside);
        }
        Ok(())
    }

    /// What keeps this guest here, if anything: the first disk that cannot be handed over.
    ///
    /// # Errors
    /// The obstacle and its remedy.
    pub fn check_movable(&self) -> Result<(), Failure> {
        let failure = |d: &Disk| obstacle(&d.facts).map(|o| o.failure(&d.facts));
        self.disks.iter().find_map(failure).map_or(Ok(()), Err)
    }

    /// Takes OWNER of every disk, or of none. Taking what one holds succeeds.
    ///
    /// # Errors
    /// [`DiskOpenError::Locked`] names the disk that is held elsewhere.
    pub fn take_owner(&self) -> Result<(), DiskOpenError> {
        self.all_or_none(DiskLock::take_owner, DiskLock::drop_owner)
    }

    /// Takes NEXT of every disk, or of none. Taking what one holds succeeds.
    ///
    /// # Errors
    /// [`DiskOpenError::Locked`] names the disk that is held elsewhere.
    pub fn take_next(&self) -> Result<(), DiskOpenError> {
        self.all_or_none(DiskLock::take_next, DiskLock::drop_next)
    }

    /// Whether [`Self::take_next`] would succeed now. Takes nothing.
    ///
    /// # Errors
    /// As [`Self::take_next`].
    pub fn peek_next(&self) -> Result<(), DiskOpenError> {
        self.disks.iter().try_for_each(|disk| disk.lock.peek_next())
    }

    /// Begins to track the changes of these disks, which are those of this set.
    pub fn track<'a>(
        &mut self,
        within: &TrackIn,
        disks: impl Iterator<Item = &'a DiskDefinition>,
        claim: Claim,
    ) {
        self.tracks = Tracks::begin(within, disks, claim == Claim::Receive);
    }

    /// The tracking of its disks.
    pub fn tracks(&self) -> &Tracks {
        &self.tracks
    }

    /// Lets OWNER go everywhere.
    ///
    /// # Errors
    /// The first; the others are let go all the same.
    pub fn drop_owner(&self) -> Result<(), DiskOpenError> {
        self.tracks.leave();
        self.every(DiskLock::drop_owner)
    }

    /// Lets NEXT go everywhere.
    ///
    /// # Errors
    /// The first; the others are let go all the same.
    pub fn drop_next(&self) -> Result<(), DiskOpenError> {
        self.every(DiskLock::drop_next)
    }

    /// What stands beside the shared disks: the highest values of all. A disk that another guest
    /// used since has an owner that supersedes every right of this one.
    ///
    /// # Errors
    /// [`BesideError`].
    pub fn read_beside(&self) -> Result<Beside, BesideError> {
        self.highest(Record::for_guest)
    }

    /// The same for the gate of a start: another guest's terms count as offered only.
    ///
    /// # Errors
    /// [`BesideError`].
    pub fn read_for_start(&self) -> Result<Beside, BesideError> {
        self.highest(Record::for_start)
    }

    fn highest(&self, what: fn(&Record, u128) -> Beside) -> Result<Beside, BesideError> {
        let mut highest = Beside::NOTHING;
        for file in self.records() {
            let found = what(&file.read()?, self.guest);
            highest = Beside {
                owner: highest.owner.max(found.owner),
                offered: highest.offered.max(found.offered),
            };
        }
        Ok(highest)
    }

    /// Writes an offered term beside every shared disk; returns when the storage has it.
    ///
    /// # Errors
    /// [`BesideError`]; it may stand beside some.
    pub fn stamp_offer(&self, term: Term) -> Result<(), BesideError> {
        self.change(|_, record| record.offered(self.guest, term))
    }

    /// Writes the owner beside every shared disk, under OWNER; returns when the storage has it.
    ///
    /// # Errors
    /// [`BesideError::Stale`] if another host has a better right; it may stand beside some.
    pub fn stamp_owner(&self, owner: Stamp) -> Result<(), BesideError> {
        self.change(|_, record| record.owned(self.guest, owner))
    }

    /// Shared disks that have a record: as many nonces are needed.
    pub fn shared(&self) -> usize {
        self.records().count()
    }

    /// The source writes a random nonce beside each shared disk, under OWNER.
    ///
    /// # Errors
    /// [`DiskSetError::Count`] if `nonces` are not [`DiskSet::shared`] in number.
    pub fn write_nonces(&self, nonces: &[u128]) -> Result<(), DiskSetError> {
        self.count("shared disks", self.shared(), nonces.len())?;
        let nonce = |index: usize| nonces.get(index).copied().unwrap_or_default();
        Ok(self.change(|index, record| record.with_nonce(self.guest, nonce(index)))?)
    }

    /// The target looks for the source's nonces through its own files.
    ///
    /// # Errors
    /// [`DiskSetError::OtherStorage`] names the first disk that is not the same.
    pub fn check_nonces(&self, nonces: &[u128]) -> Result<(), DiskSetError> {
        self.count("shared disks", self.shared(), nonces.len())?;
        let shared = self.disks.iter().filter_map(|d| Some((d, d.beside.as_ref()?)));
        for ((disk, file), nonce) in shared.zip(nonces) {
            if file.read()?.nonce != *nonce || *nonce == 0 {
                return Err(DiskSetError::OtherStorage(disk.facts.path.clone()));
            }
        }
        Ok(())
    }

    /// The target compares how its read-only disks look with how the source's do: size and samples
    /// of content, in the definition's order.
    ///
    /// # Errors
    /// [`DiskSetError::OtherContent`] names the first that differs.
    pub fn check_read_only(
        &self,
        here: &[Fingerprint],
        there: &[Fingerprint],
    ) -> Result<(), DiskSetError> {
        self.count("read-only disks", here.len(), there.len())?;
        let read_only = self.disks.iter().filter(|d| d.facts.read_only);
        for (disk, (here, there)) in read_only.zip(here.iter().zip(there)) {
            fingerprint::compare(&disk.facts.path, there, here, false)
                .map_err(DiskSetError::OtherContent)?;
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "reads as a check of the set")]
    fn count(&self, what: &'static str, here: usize, there: usize) -> Result<(), DiskSetError> {
        if here == there { Ok(()) } else { Err(DiskSetError::Count { what, here, there }) }
    }

    fn records(&self) -> impl Iterator<Item = &BesideFile> {
        self.disks.iter().filter_map(|d| d.beside.as_ref())
    }

    /// Changes every record, all at once: this lies in the blackout, and each waits for storage.
    fn change(
        &self,
        change: impl Fn(usize, Record) -> Result<Record, Stale> + Sync,
    ) -> Result<(), BesideError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let change = &change;
        let mut records = self.records().enumerate();
        let Some((_, first)) = records.next() else { return Ok(()) };
        std::thread::scope(|scope| {
            let others: Vec<_> = records
                .map(|(index, file)| {
                    scope.spawn(move || file.change(|record| change(index, record)))
                })
                .collect();
            let mut result = first.change(|record| change(0, record)).map(drop);
            for other in others {
                let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(other.map(drop));
            }
            result
        })
    }

    fn all_or_none(
        &self,
        take: impl Fn(&DiskLock) -> Result<(), DiskOpenError>,
        release: impl Fn(&DiskLock) -> Result<(), DiskOpenError>,
    ) -> Result<(), DiskOpenError> {
        for disk in &self.disks {
            if let Err(error) = take(&disk.lock) {
                if let Err(error) = self.every(release) {
                    tracing::warn!(%error, "a lock may still be held");
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn every(
        &self,
        act: impl Fn(&DiskLock) -> Result<(), DiskOpenError>,
    ) -> Result<(), DiskOpenError> {
        let mut result = Ok(());
        for disk in &self.disks {
            result = result.and(act(&disk.lock));
        }
        result
    }

    fn drop_quietly(&self) {
        for result in [self.drop_next(), self.drop_owner()] {
            if let Err(error) = result {
                tracing::warn!(%error, "a lock may still be held");
            }
        }
    }
}

fn facts(part: &Part<'_>) -> Result<DiskFacts, DiskSetError> {
    let Part { definition, file } = part;
    let inspect = |source| DiskSetError::Inspect { path: definition.path.clone(), source };
    let kind = file.metadata().map_err(inspect)?.file_type();
    let file_system = fstatfs(file).map_err(|e| inspect(e.into()))?.filesystem_type().0;
    Ok(DiskFacts {
        path: definition.path.clone(),
        read_only: definition.read_only,
        shared: definition.shared,
        cache: definition.cache,
        block_device: kind.is_block_device(),
        file_system,
        record_direct: None,
    })
}

#[cfg(test)]
mod tests;
