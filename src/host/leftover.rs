//! Runtime directories whose guest process is gone: proved by their lock, recorded, removed.
//! A directory whose lock is held is never touched.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::exits;
use crate::api::{ExitRecord, GuestInfo};
use crate::config::{Dirs, GuestPaths};
use crate::guest::lockfile::LockFile;

/// A directory younger than this without a lock file may belong to a process that is starting.
const YOUNG: Duration = Duration::from_secs(30);

/// Whether a guest process lives in a runtime directory.
#[derive(Debug)]
pub enum Life {
    /// Its lock is held, or its process is just starting.
    Alive,
    /// There is no directory.
    Absent,
    /// Its lock is free, and now ours.
    Dead(Claim),
}

/// The lock of a dead guest.
#[derive(Debug)]
pub struct Claim {
    _lock: LockFile,
}

/// Looks whether a guest process lives in `paths`.
///
/// # Errors
/// What the file system says.
pub fn life(paths: &GuestPaths) -> io::Result<Life> {
    let dir = match fs::metadata(paths.dir()) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Life::Absent),
        Err(e) => return Err(e),
    };
    if !paths.lock().exists() {
        let age = SystemTime::now().duration_since(dir.modified()?).unwrap_or_default();
        if age < YOUNG {
            return Ok(Life::Alive);
        }
    }
    match LockFile::take(&paths.lock()) {
        Ok(None) => Ok(Life::Alive),
        Ok(Some(lock)) => Ok(Life::Dead(Claim { _lock: lock })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Life::Absent),
        Err(e) => Err(e),
    }
}

/// Records the end of a dead guest, keeps its console log and removes its runtime directory.
/// Answers the record, if the guest had got far enough to have one.
///
/// # Errors
/// What the file system says.
pub fn clean(dirs: &Dirs, paths: &GuestPaths, claim: Claim) -> io::Result<Option<ExitRecord>> {
    dirs.prepare().map_err(|e| io::Error::other(e.to_string()))?;
    let record = record_end(dirs, paths)?;
    // The lock goes last: until then nobody starts a guest in here.
    for entry in fs::read_dir(paths.dir())? {
        let path = entry?.path();
        if path != paths.lock() {
            remove(&path)?;
        }
    }
    match fs::remove_file(paths.lock()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match fs::remove_dir(paths.dir()) {
        // Somebody began to start a guest under the same name: it is theirs now.
        Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => return Err(e),
        _ => {}
    }
    drop(claim);
    Ok(record)
}

fn record_end(dirs: &Dirs, paths: &GuestPaths) -> io::Result<Option<ExitRecord>> {
    let info = fs::read(paths.info()).ok();
    let Some(info) = info.and_then(|bytes| serde_json::from_slice::<GuestInfo>(&bytes).ok()) else {
        return Ok(None);
    };
    // The process may have come as far as its own record.
    let own = fs::read(dirs.exit_record(&info.uuid, info.term)).ok();
    let record = if let Some(own) = own.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        own
    } else {
        let record = exits::of_killed(&info, jiff::Timestamp::now());
        exits::write(dirs, &record)?;
        record
    };
    let mut kept = fs::File::create(dirs.exit_console(&info.uuid, info.term))?;
    for part in [paths.console_log_previous(), paths.console_log()] {
        match fs::File::open(part) {
            Ok(mut part) => drop(io::copy(&mut part, &mut kept)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Some(record))
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_alive_and_a_free_one_is_cleaned() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        dirs.prepare().unwrap();
        let paths = dirs.guest("a");
        assert!(matches!(life(&paths).unwrap(), Life::Absent));

        fs::create_dir(paths.dir()).unwrap();
        assert!(matches!(life(&paths).unwrap(), Life::Alive), "it may be starting");

        let lock = LockFile::take(&paths.lock()).unwrap().unwrap();
        assert!(matches!(life(&paths).unwrap(), Life::Alive));

        drop(lock);
        fs::create_dir(paths.dir().join("sub")).unwrap();
        let Life::Dead(claim) = life(&paths).unwrap() else { panic!("its lock is free") };
        assert!(matches!(life(&paths).unwrap(), Life::Alive), "the claim is exclusive");
        assert_eq!(clean(&dirs, &paths, claim).unwrap(), None);
        assert!(matches!(life(&paths).unwrap(), Life::Absent));
    }
}
