//! The file in which the changes of one disk are recorded: two slots of the record, a page of live
//! words, the stamps. What they mean is the engine's matter (`track::disk`); here they are read,
//! written, mapped and replaced.
//!
//! All space is taken when the file is made: a mapped file that has none left when a stamp is
//! written would end the process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use migrate_engine::track::disk::head::{SLOTS, encode};
use migrate_engine::track::disk::open::Found;
use migrate_engine::track::disk::{Head, Live, OpenError, Sidecar};
use nix::fcntl::{FallocateFlags, fallocate};

use super::mapping::{LIVE_BYTES, Mapping};

/// From one slot to the next: more than the record of the largest disk needs. Most of it is a
/// hole.
const SLOT_SPACE: u64 = 256 << 10;
/// Where the mapped part begins.
const MAPPED: u64 = SLOTS as u64 * SLOT_SPACE;
/// Stamps that are written at once.
const CHUNK: usize = 1 << 16;

/// An open and mapped sidecar.
#[derive(Debug)]
pub struct SidecarFile {
    /// For what is synced as a whole.
    file: File,
    /// The same file: its writes return when they are durable.
    record: File,
    path: PathBuf,
    mapping: Arc<Mapping>,
}

/// The stamps of a mapping.
#[derive(Clone, Debug)]
pub struct Stamps(Arc<Mapping>);

impl AsRef<[AtomicU32]> for Stamps {
    fn as_ref(&self) -> &[AtomicU32] {
        (*self.0).as_ref()
    }
}

impl SidecarFile {
    /// Opens what is at `path`. `None` if nothing is there.
    ///
    /// # Errors
    /// It cannot be read, or is no sidecar.
    pub fn open(path: &Path) -> Result<Option<(Self, Found)>, OpenError> {
        let open = |flags| {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | flags;
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
        };
        let file = match open(0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(OpenError::Store)?,
        };
        let slots = [slot(&file, 0), slot(&file, 1)];
        let [first, second] = slots.map(|s| s.map_err(OpenError::Store));
        let found = Found::read([&first?, &second?])?;
        let units = found.head.shape.layout().map_or(0, |l| l.units());
        let mapping = Mapping::new(&file, MAPPED, units).map_err(OpenError::Store)?;
        let record = open(libc::O_DSYNC).map_err(OpenError::Store)?;
        let path = path.to_owned();
        Ok(Some((Self { file, record, path, mapping: Arc::new(mapping) }, found)))
    }

    /// Makes a sidecar with this record and these stamps in the place of what is at `path`: the
    /// whole or, after a crash, the old one. Stamps that are left out are 0.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn replace(path: &Path, head: &Head, stamps: &[u32]) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&fresh)?;
        let units = head.shape.layout().map_or(0, |l| l.units());
        let length = LIVE_BYTES + (units * 4).next_multiple_of(4096);
        allocate(&file, MAPPED, length)?;
        file.write_all_at(&encode(head), 0)?;
        let mut at = MAPPED + LIVE_BYTES;
        for chunk in stamps.chunks(CHUNK) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|s| s.to_le_bytes()).collect();
            file.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
        }
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

/// What there is of a slot.
fn slot(file: &File, slot: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(SLOT_SPACE).unwrap_or_default()];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, slot * SLOT_SPACE + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// Takes space for `length` bytes at `offset`, and for both slots before them.
fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let beyond = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let end = i64::try_from(offset + length).map_err(beyond)?;
    match fallocate(file, FallocateFlags::empty(), 0, end) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => {
            let zeros = vec![0; 1 << 20];
            let mut at = 0;
            while at < offset + length {
                let n = usize::try_from(offset + length - at).unwrap_or(zeros.len());
                let part = zeros.get(..n.min(zeros.len())).unwrap_or(&zeros);
                file.write_all_at(part, at)?;
                at += part.len() as u64;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

impl Sidecar for SidecarFile {
    type Stamps = Stamps;

    fn stamps(&self) -> Stamps {
        Stamps(self.mapping.clone())
    }

    fn live(&self) -> &Live {
        self.mapping.live()
    }

    fn write_head(&self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        self.record.write_all_at(bytes, slot as u64 * SLOT_SPACE)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn abandon(&self) {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let removed = fs::remove_file(&self.path).and_then(|()| File::open(dir)?.sync_all());
        if let Err(error) = removed {
            let path = self.path.display();
            tracing::error!(%error, %path, "a map of changes can be neither written nor removed");
        }
    }
}
