//! The few file operations that a journal is made of, one system call each. What survives a power
//! loss depends on their order, so they stand behind a trait: the tests run the same code on a
//! simulated disk that loses and reorders whatever it may.
//!
//! It knows nothing of records.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::guest::lockfile::LockFile;

/// Where a journal lies.
pub trait Files: Clone + Debug {
    /// An open file or directory.
    type Handle: Debug;
    /// A held lock; dropping it lets go.
    type Lock: Debug;

    /// Makes one directory, for its owner only.
    ///
    /// # Errors
    /// Also `AlreadyExists`, and `NotFound` if the one above it is missing.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file or directory that exists, for reading and syncing.
    ///
    /// # Errors
    /// Also `NotFound`.
    fn open(&self, path: &Path) -> io::Result<Self::Handle>;

    /// Makes a file, for its owner only.
    ///
    /// # Errors
    /// Also `AlreadyExists`.
    fn create(&self, path: &Path) -> io::Result<Self::Handle>;

    /// Appends bytes; answers how many.
    ///
    /// # Errors
    /// Any number of the bytes may have been written then.
    fn write(&self, file: &Self::Handle, bytes: &[u8]) -> io::Result<usize>;

    /// What the file holds, up to `limit` bytes, from its beginning.
    ///
    /// # Errors
    /// What the file system says.
    fn read(&self, file: &Self::Handle, limit: u64) -> io::Result<Vec<u8>>;

    /// Makes the content of a file, or the entries of a directory, survive a power loss.
    ///
    /// # Errors
    /// Nothing is known of what survives then.
    fn sync(&self, handle: &Self::Handle) -> io::Result<()>;

    /// Gives a file another name in the same directory, in place of whatever has it.
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// Also `NotFound`.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// Also `NotFound` and `DirectoryNotEmpty`.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes the lock at `path`, making its file if need be; `None` if somebody else holds it.
    ///
    /// # Errors
    /// Also `NotFound` if the directory is missing.
    fn lock(&self, path: &Path) -> io::Result<Option<Self::Lock>>;
}

/// The host's file systems.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostFiles;

impl Files for HostFiles {
    type Handle = File;
    type Lock = LockFile;

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    fn read(&self, file: &File, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn sync(&self, handle: &File) -> io::Result<()> {
        handle.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<LockFile>> {
        LockFile::take(path)
    }
}

/// Makes the directory `dir` and those above it that are missing.
///
/// # Errors
/// What the file system says.
pub fn make_dirs<F: Files>(files: &F, dir: &Path) -> io::Result<()> {
    let made = match files.make_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => match dir.parent() {
            Some(above) => make_dirs(files, above).and_then(|()| files.make_dir(dir)),
            None => Err(e),
        },
        other => other,
    };
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Makes the way to `dir` survive a power loss: its entry in the directory above, and so on.
///
/// # Errors
/// What the file system says.
pub fn sync_way_to<F: Files>(files: &F, dir: &Path) -> io::Result<()> {
    for above in dir.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        match files.open(above).and_then(|above| files.sync(&above)) {
            Ok(()) => {}
            // Where we may not look, or nothing can be synced, we have made nothing either.
            Err(e) if is_not_ours(&e) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn is_not_ours(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput)
}

/// Writes all of `bytes`.
///
/// # Errors
/// Any number of them may have been written then.
pub fn write_all<F: Files>(files: &F, file: &F::Handle, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match files.write(file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
