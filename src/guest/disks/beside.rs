//! The file `IMAGE.migrate` beside a shared disk: [`super::record`] on storage.
//!
//! It is opened before the process is confined and only read and written in place afterwards,
//! past the page cache and acknowledged by the storage (`O_DIRECT`, `O_DSYNC`), so that hosts see
//! each other's records at once. Whoever writes holds the disk's OWNER lock; that is the caller's
//! promise, and the reason why read, change and write need no lock of their own.
//!
//! It stands beside the image itself, not beside a link to it: so the same storage has the same
//! record, whatever it is called on a host.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::record::{self, Record, SLOT_BYTES, SLOTS, Stale, Unreadable};

/// What is added to the image's name.
const SUFFIX: &str = ".migrate";

/// Why a record cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum BesideError {
    /// No file.
    #[error(
        "there is no {0}: no guest was started here with this disk marked as shared, or the path \
         leads to other storage than on the other host"
    )]
    Missing(PathBuf),
    /// Something else stands there.
    #[error("{0} is not a regular file; move it away")]
    Kind(PathBuf),
    /// The host refuses.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// `open`, `make`, `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// No record in it.
    #[error("{path} is not usable: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Unreadable,
    },
    /// Somebody else has a better right.
    #[error("{path}: {source}")]
    Stale {
        /// The file.
        path: PathBuf,
        /// Who.
        source: Stale,
    },
}

/// A slot's worth of memory that direct I/O takes.
#[repr(align(4096))]
struct Block([u8; SLOT_BYTES]);

/// An open record file.
#[derive(Debug)]
pub struct BesideFile {
    file: File,
    path: PathBuf,
    direct: bool,
}

impl BesideFile {
    /// Opens the record of `image`, or makes one. The caller holds both locks of the disk, so
    /// that nobody else makes one meanwhile.
    ///
    /// # Errors
    /// [`BesideError`].
    pub fn open_or_make(image: &Path) -> Result<Self, BesideError> {
        match Self::open(image) {
            Err(BesideError::Missing(path)) => {
                make(image, &path).map_err(|source| BesideError::Io {
                    what: "make",
                    path,
                    source,
                })?;
                Self::open(image)
            }
            other => other,
        }
    }

    /// Opens the record of `image`, whatever is locked.
    ///
    /// # Errors
    /// [`BesideError::Missing`] if there is none.
    pub fn open(image: &Path) -> Result<Self, BesideError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| BesideError::Io { what: "open", path, source }
        };
        let image = image.canonicalize().map_err(io(image))?;
        let path = path_beside(&image);
        let open = |direct| {
            let flags = libc::O_DSYNC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let flags = flags | if direct { libc::O_DIRECT } else { 0 };
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path)
        };
        let (file, direct) = match open(true) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (open(false), false),
            other => (other, true),
        };
        let file = match file {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(BesideError::Missing(path));
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::EISDIR)) => {
                return Err(BesideError::Kind(path));
            }
            Err(e) => return Err(io(&path)(e)),
        };
        if !file.metadata().map_err(io(&path))?.is_file() {
            return Err(BesideError::Kind(path));
        }
        Ok(Self { file, path, direct })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and writes bypass this host's page cache. If not, what another host wrote may be
    /// seen late.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The record, as the storage has it now.
    ///
    /// # Errors
    /// [`BesideError`].
    pub fn read(&self) -> Result<Record, BesideError> {
        self.newest().map(|(record, _)| record)
    }

    /// Replaces the record by what `change` makes of it; returns when the storage has
    /// acknowledged it. Under the disk's OWNER lock only.
    ///
    /// # Errors
    /// [`BesideError`]. After [`BesideError::Io`] the old or the new record stands there.
    pub fn change(
        &self,
        change: impl FnOnce(Record) -> Result<Record, Stale>,
    ) -> Result<Record, BesideError> {
        let (old, slot) = self.newest()?;
        let new =
            change(old).map_err(|source| BesideError::Stale { path: self.path.clone(), source })?;
        let block = Block(record::encode(&new));
        let io = |source| BesideError::Io { what: "write", path: self.path.clone(), source };
        self.file.write_all_at(&block.0, offset(slot)).map_err(io)?;
        Ok(new)
    }

    fn newest(&self) -> Result<(Record, usize), BesideError> {
        let [first, second] = [self.slot(0)?, self.slot(1)?];
        let unreadable = |source| BesideError::Unreadable { path: self.path.clone(), source };
        record::newest([&first.0, &second.0]).map_err(unreadable)
    }

    /// What there is of a slot; zeros where the file is too short.
    fn slot(&self, slot: usize) -> Result<Block, BesideError> {
        let mut block = Block([0; SLOT_BYTES]);
        match self.file.read_at(&mut block.0, offset(slot)) {
            Ok(_) => Ok(block),
            Err(source) => Err(BesideError::Io { what: "read", path: self.path.clone(), source }),
        }
    }
}

fn offset(slot: usize) -> u64 {
    slot as u64 * SLOT_BYTES as u64
}

/// `image`'s name and [`SUFFIX`], in the same directory.
fn path_beside(image: &Path) -> PathBuf {
    let mut name = OsString::from(image.file_name().unwrap_or_default());
    name.push(SUFFIX);
    image.with_file_name(name)
}

/// Makes the file with its first record, whole or not at all, with the image's permissions: who
/// may write the image may write this.
fn make(image: &Path, path: &Path) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    // A leftover of a process that died here; both locks are ours, so nobody is at it.
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let image = fs::metadata(image)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let slot = record::encode(&Record::FIRST);
    for index in 0..SLOTS {
        file.write_all_at(&slot, offset(index))?;
    }
    let mode = image.mode() & 0o666;
    // An owner other than ours is root's to give; what matters then is the group.
    if let Err(e) = std::os::unix::fs::fchown(&file, Some(image.uid()), Some(image.gid())) {
        tracing::debug!(%e, path = %fresh.display(), "keeps its maker as owner");
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use migrate_engine::handover::term::{HostId, Stamp, Term};

    use super::*;

    fn image() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, [0; 4096]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        (dir, path)
    }

    fn stamp(term: u64) -> Stamp {
        Stamp { term: Term::new(term), host: HostId(term.into()) }
    }

    #[test]
    fn two_hosts_see_each_others_records_at_once() {
        let (_dir, image) = image();
        assert!(matches!(BesideFile::open(&image), Err(BesideError::Missing(_))));
        let source = BesideFile::open_or_make(&image).unwrap();
        assert_eq!(source.path().metadata().unwrap().mode() & 0o777, 0o640);
        let target = BesideFile::open(&image).unwrap();
        assert_eq!(target.read().unwrap(), Record::FIRST);
        for term in 1..5 {
            target.change(|r| r.owned(7, stamp(term))).unwrap();
            assert_eq!(source.read().unwrap().beside.owner, stamp(term));
            source.change(|r| r.offered(7, Term::new(term))).unwrap();
            assert_eq!(target.read().unwrap().beside.offered, Term::new(term));
        }
        let refused = source.change(|r| r.owned(7, stamp(2)));
        assert!(matches!(refused, Err(BesideError::Stale { .. })), "{refused:?}");
        assert_eq!(source.read().unwrap().beside.owner, stamp(4));
        // Made once only.
        assert_eq!(BesideFile::open_or_make(&image).unwrap().read().unwrap().sequence, 9);
    }

    #[test]
    fn a_link_leads_to_the_images_own_record() {
        let (dir, image) = image();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&image, &link).unwrap();
        let file = BesideFile::open_or_make(&link).unwrap();
        assert_eq!(file.path().file_name().unwrap(), "disk.img.migrate");
    }

    #[test]
    fn a_crash_at_any_byte_of_a_write_is_survived() {
        let (_dir, image) = image();
        let file = BesideFile::open_or_make(&image).unwrap();
        file.change(|r| r.owned(7, stamp(3))).unwrap();
        let before = fs::read(file.path()).unwrap();
        file.change(|r| r.offered(7, Term::new(4))).unwrap();
        let after = fs::read(file.path()).unwrap();
        let differs = before.iter().zip(&after).position(|(a, b)| a != b).unwrap();
        for cut in differs..=differs + 80 {
            let mut torn = before.clone();
            torn[..cut].copy_from_slice(&after[..cut]);
            fs::write(file.path(), &torn).unwrap();
            let found = file.read().unwrap();
            assert_eq!(found.beside.owner, stamp(3), "cut at {cut}");
            // And whoever goes on from there, goes on.
            file.change(|r| r.offered(7, Term::new(5))).unwrap();
            assert_eq!(file.read().unwrap().beside.offered, Term::new(5), "cut at {cut}");
            assert_eq!(file.read().unwrap().beside.owner, stamp(3), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_record_is_named() {
        let (_dir, image) = image();
        let path = path_beside(&image);
        fs::write(&path, b"something else").unwrap();
        let file = BesideFile::open(&image).unwrap();
        assert!(matches!(file.read(), Err(BesideError::Unreadable { .. })));
        assert!(matches!(file.change(Ok), Err(BesideError::Unreadable { .. })));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(BesideFile::open(&image), Err(BesideError::Kind(_))));
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(BesideFile::open(&image), Err(BesideError::Kind(_))));
    }
}
