//! A file that one process holds locked for as long as it lives.
//!
//! The lock belongs to the open file description: it ends with the process, however that ends,
//! and getting it proves that the former holder is gone.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A held lock. Dropping it lets go, the file stays.
#[derive(Debug)]
pub struct LockFile {
    /// Closing it lets go of the lock.
    _file: File,
    path: PathBuf,
}

impl LockFile {
    /// Takes the lock at `path`, making the file if need be; `None` if somebody else holds it.
    /// Never waits.
    ///
    /// # Errors
    /// What the file system says, also `NotFound` if the directory is missing.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        // A holder that ends may remove the file between our open and our lock. Then we locked a
        // file that no one else will ever see: look again.
        for _ in 0..16 {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            let inode = inode(&file.metadata()?);
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            match std::fs::metadata(path) {
                Ok(there) if self::inode(&there) == inode => {
                    return Ok(Some(Self { _file: file, path: path.to_owned() }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other("the lock file is replaced again and again"))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn inode(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_a_removed_file_is_not_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = LockFile::take(&path).unwrap().unwrap();
        assert!(LockFile::take(&path).unwrap().is_none());
        std::fs::remove_file(first.path()).unwrap();
        let second = LockFile::take(&path).unwrap().unwrap();
        assert!(LockFile::take(&path).unwrap().is_none());
        drop(second);
        assert!(LockFile::take(&path).unwrap().is_some());
        assert!(LockFile::take(&dir.path().join("none/lock")).is_err());
    }
}
