//! The two locks of a disk, by which guests on all hosts exclude each other.
//!
//! They are open-file-description locks on single bytes of the image itself, far beyond any
//! disk's end, so that they never touch data: OWNER at byte 2^62 is held by whoever runs the
//! guest, NEXT at byte 2^62 + 1 by a host that is about to take it over. A start takes both and
//! lets NEXT go once the guest runs; so nobody starts a guest whose hand-over is under way, even
//! while neither side owns the disk.
//!
//! On the image and not on a file beside it, because the lock then follows the data: two paths,
//! links or mounts of one image meet in one lock. A writable disk takes exclusive locks, a
//! read-only one shared ones.
//!
//! A lock belongs to the open file: every copy of the descriptor holds it, it ends with the last
//! of them, thus also with the process, and it never waits. On a network file system it excludes
//! other hosts only if that carries locks (`NFSv4`, cluster file systems do).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::open::DiskOpenError;

/// One of the two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    Owner,
    Next,
}

impl Range {
    fn start(self) -> i64 {
        (1 << 62) + i64::from(self == Self::Next)
    }
}

/// The right to lock one open disk. Taking what is held succeeds; dropping what is not does no
/// harm.
#[derive(Debug)]
pub struct DiskLock {
    disk: File,
    path: PathBuf,
    shared: bool,
}

impl DiskLock {
    /// For the open `disk`; holds nothing yet. `path` is for messages.
    ///
    /// # Errors
    /// [`DiskOpenError::Inspect`] without a free descriptor.
    pub fn new(disk: &File, path: &Path, read_only: bool) -> Result<Self, DiskOpenError> {
        let disk = disk.try_clone().map_err(DiskOpenError::Inspect)?;
        Ok(Self { disk, path: path.to_owned(), shared: read_only })
    }

    /// The disk's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes OWNER.
    ///
    /// # Errors
    /// [`DiskOpenError::Locked`] if it is held elsewhere, [`DiskOpenError::Lock`] if the file
    /// system has no locks or does not answer.
    pub fn take_owner(&self) -> Result<(), DiskOpenError> {
        self.take(Range::Owner)
    }

    /// Lets OWNER go.
    ///
    /// # Errors
    /// [`DiskOpenError::Lock`] if the file system does not answer; it may be held or not.
    pub fn drop_owner(&self) -> Result<(), DiskOpenError> {
        self.release(Range::Owner)
    }

    /// Takes NEXT.
    ///
    /// # Errors
    /// As [`DiskLock::take_owner`].
    pub fn take_next(&self) -> Result<(), DiskOpenError> {
        self.take(Range::Next)
    }

    /// Lets NEXT go.
    ///
    /// # Errors
    /// As [`DiskLock::drop_owner`].
    pub fn drop_next(&self) -> Result<(), DiskOpenError> {
        self.release(Range::Next)
    }

    /// Whether NEXT could be taken now. Takes nothing, not even for a moment.
    ///
    /// # Errors
    /// As [`DiskLock::take_owner`].
    pub fn peek_next(&self) -> Result<(), DiskOpenError> {
        let kind = if self.shared { libc::F_RDLCK } else { libc::F_WRLCK };
        let mut lock = range_lock(Range::Next, kind).map_err(|e| self.failed(e))?;
        match fcntl(&self.disk, FcntlArg::F_OFD_GETLK(&mut lock)) {
            Ok(_) if libc::c_int::from(lock.l_type) == libc::F_UNLCK => Ok(()),
            Ok(_) => Err(DiskOpenError::Locked(self.path.clone())),
            // Some file systems lock, but do not tell: taking it will.
            Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(()),
            Err(e) => Err(self.failed(e)),
        }
    }

    fn take(&self, range: Range) -> Result<(), DiskOpenError> {
        let kind = if self.shared { libc::F_RDLCK } else { libc::F_WRLCK };
        match set_lock(&self.disk, range, kind) {
            Ok(()) => Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(DiskOpenError::Locked(self.path.clone())),
            Err(e) => Err(self.failed(e)),
        }
    }

    fn release(&self, range: Range) -> Result<(), DiskOpenError> {
        set_lock(&self.disk, range, libc::F_UNLCK).map_err(|e| self.failed(e))
    }

    fn failed(&self, source: Errno) -> DiskOpenError {
        DiskOpenError::Lock { path: self.path.clone(), source: io::Error::from(source) }
    }
}

fn range_lock(range: Range, kind: libc::c_int) -> Result<libc::flock, Errno> {
    Ok(libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(|_| Errno::EINVAL)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(|_| Errno::EINVAL)?,
        l_start: range.start(),
        l_len: 1,
        l_pid: 0,
    })
}

fn set_lock(file: &File, range: Range, kind: libc::c_int) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range_lock(range, kind)?)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::devices::virtio::block::open_disk;

    fn image(dir: &Path) -> PathBuf {
        let path = dir.join("disk.raw");
        File::create(&path).unwrap().set_len(4096).unwrap();
        path
    }

    fn lock(path: &Path, read_only: bool) -> DiskLock {
        DiskLock::new(&open_disk(path, read_only, false).unwrap(), path, read_only).unwrap()
    }

    #[track_caller]
    fn refused(result: &Result<(), DiskOpenError>) {
        assert!(matches!(result, Err(DiskOpenError::Locked(_))), "{result:?}");
    }

    #[test]
    fn one_owner_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let file = open_disk(&path, false, false).unwrap();
        let owner = DiskLock::new(&file, &path, false).unwrap();
        owner.take_owner().unwrap();
        owner.take_owner().unwrap();
        refused(&lock(&path, false).take_owner());
        refused(&lock(&path, true).take_owner());
        // A copy of the descriptor keeps the lock; the last one gives it back.
        drop(owner);
        refused(&lock(&path, false).take_owner());
        drop(file);
        let (reader, other) = (lock(&path, true), lock(&path, true));
        reader.take_owner().unwrap();
        other.take_owner().unwrap();
        refused(&lock(&path, false).take_owner());
        drop((reader, other));
        lock(&path, false).take_owner().unwrap();
    }

    #[test]
    fn a_hand_over_leaves_no_moment_for_a_third() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let (source, target, third) = (lock(&path, false), lock(&path, false), lock(&path, false));
        // A start takes both; a third that takes them in any order gets at most one.
        let start = |l: &DiskLock| {
            l.take_next()?;
            l.take_owner().inspect_err(|_| l.drop_next().unwrap())
        };
        start(&source).unwrap();
        source.drop_next().unwrap();
        target.peek_next().unwrap();
        third.peek_next().unwrap();
        target.take_next().unwrap();
        target.peek_next().unwrap();
        refused(&third.peek_next());
        refused(&start(&third));
        refused(&target.take_owner());
        source.drop_owner().unwrap();
        refused(&start(&third));
        target.take_owner().unwrap();
        refused(&start(&third));
        target.drop_next().unwrap();
        refused(&start(&third));
        refused(&start(&source));
    }

    #[test]
    fn locks_lie_beyond_the_data_and_apart() {
        assert_eq!((Range::Owner.start(), Range::Next.start()), (1 << 62, (1 << 62) + 1));
    }

    const HOLD: &str = "MIGRATE_TEST_HOLD_DISK";

    /// Not a test: the process that [`hold`] starts.
    #[test]
    #[ignore = "a helper process of other tests"]
    fn holder() {
        let Some(path) = std::env::var_os(HOLD) else { return };
        let lock = lock(Path::new(&path), false);
        lock.take_owner().unwrap();
        lock.take_next().unwrap();
        println!("\nheld");
        let _ = io::stdin().lines().next();
    }

    /// Another process that holds both locks.
    fn hold(path: &Path) -> Child {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "devices::virtio::block::lock::tests::holder"])
            .args(["--ignored", "--nocapture"])
            .env(HOLD, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|l| l == "held"), "the holder gave up");
        child
    }

    #[test]
    fn processes_exclude_each_other_and_death_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let mine = lock(&path, false);
        let mut other = hold(&path);
        refused(&mine.take_owner());
        refused(&mine.take_next());
        other.kill().unwrap();
        other.wait().unwrap();
        mine.take_owner().unwrap();
        mine.take_next().unwrap();
    }
}
