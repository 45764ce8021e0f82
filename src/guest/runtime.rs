//! The guest's runtime directory: owner-only, locked for life, removed at the end. Holding its
//! lock is holding the guest's name.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::lockfile::LockFile;
use crate::api::{ErrorCode, Failure};
use crate::config::GuestPaths;

/// A runtime directory that is ours. Dropping it removes it.
#[derive(Debug)]
pub struct RuntimeDir {
    paths: GuestPaths,
    lock: LockFile,
}

impl RuntimeDir {
    /// Takes the name: makes the directory, locks it, and clears what a dead process left.
    ///
    /// # Errors
    /// `name-taken` if a guest of that name lives; `file` if the file system refuses.
    pub fn take(name: &str, paths: GuestPaths) -> Result<Self, Failure> {
        let refused = |error: io::Error| {
            Failure::new(
                ErrorCode::File,
                format!("the runtime directory {} cannot be made: {error}", paths.dir().display()),
                "check that its parent exists and is yours",
            )
        };
        let lock = lock_in(&paths).map_err(refused)?.ok_or_else(|| {
            Failure::new(
                ErrorCode::NameTaken,
                format!("a guest named '{name}' runs already"),
                format!("choose another name, or end it: migrate stop {name}"),
            )
        })?;
        let dir = Self { paths, lock };
        dir.clear().map_err(|error| {
            Failure::new(
                ErrorCode::File,
                format!("leftovers in {} cannot be removed: {error}", dir.path().display()),
                "remove the directory by hand",
            )
        })?;
        Ok(dir)
    }

    /// The paths in it.
    pub fn paths(&self) -> &GuestPaths {
        &self.paths
    }

    fn path(&self) -> &Path {
        self.paths.dir()
    }

    /// Binds a socket in it that only its owner can connect to.
    ///
    /// # Errors
    /// `file` if the path is too long or the file system refuses.
    pub fn bind(&self, path: &Path) -> Result<UnixListener, Failure> {
        let bound = UnixListener::bind(path).and_then(|socket| {
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            Ok(socket)
        });
        bound.map_err(|error| {
            Failure::new(
                ErrorCode::File,
                format!("the socket {} cannot be made: {error}", path.display()),
                "check the directory; a socket's path must be shorter than 108 bytes",
            )
        })
    }

    /// Removes everything but the lock.
    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.path())? {
            let path = entry?.path();
            if path == self.lock.path() {
                continue;
            }
            if path.symlink_metadata()?.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn remove(&self) -> io::Result<()> {
        self.clear()?;
        // The lock goes last: who finds it gone makes a new one and clears again.
        fs::remove_file(self.lock.path())?;
        match fs::remove_dir(self.path()) {
            // The next process of that name is already in it.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other,
        }
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::error!(%error, dir = %self.path().display(), "leftovers remain");
        }
    }
}

/// The lock; `None` if it is held. A process that ends may remove the directory under us.
fn lock_in(paths: &GuestPaths) -> io::Result<Option<LockFile>> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for _ in 0..16 {
        if let Some(parent) = paths.dir().parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(paths.dir()) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        match LockFile::take(&paths.lock()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => last = e,
            other => return other,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn paths(root: &Path) -> GuestPaths {
        GuestPaths { dir: root.join("guests").join("one") }
    }

    #[test]
    fn a_name_is_held_once_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::take("one", paths(root.path())).unwrap();
        let taken = RuntimeDir::take("one", paths(root.path())).unwrap_err();
        assert_eq!(taken.0.code, ErrorCode::NameTaken);
        let mode = |p: &Path| fs::metadata(p).unwrap().mode() & 0o777;
        assert_eq!(mode(dir.path()), 0o700);
        let socket = dir.bind(&dir.paths().api()).unwrap();
        assert_eq!(mode(&dir.paths().api()), 0o600);
        drop((dir, socket));
        assert!(!paths(root.path()).dir().exists());
        RuntimeDir::take("one", paths(root.path())).unwrap();
    }

    #[test]
    fn leftovers_of_a_dead_process_are_cleared() {
        let root = tempfile::tempdir().unwrap();
        let old = paths(root.path());
        fs::create_dir_all(old.dir().join("sub")).unwrap();
        for path in [old.lock(), old.api(), old.dir().join("sub/file")] {
            fs::write(path, "x").unwrap();
        }
        let dir = RuntimeDir::take("one", old).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names, [dir.paths().lock()]);
    }

    /// Many processes take and give back one name: never two at once, never an error.
    #[test]
    fn a_contended_name_never_has_two_holders() {
        let root = tempfile::tempdir().unwrap();
        let held = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        match RuntimeDir::take("one", paths(root.path())) {
                            Ok(dir) => {
                                use std::sync::atomic::Ordering::SeqCst;
                                assert_eq!(held.fetch_add(1, SeqCst), 0);
                                held.fetch_sub(1, SeqCst);
                                drop(dir);
                            }
                            Err(taken) => assert_eq!(taken.0.code, ErrorCode::NameTaken, "{taken}"),
                        }
                    }
                });
            }
        });
        assert!(!paths(root.path()).dir().exists());
    }
}
