//! Reports of moves on disk: `moves/ID.json` in the state directory, for 90 days. One is written
//! when a move begins, so that a restarted daemon knows what went on, and again when it ends.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::api::moving::MoveReport;
use crate::config::Dirs;

/// How long reports are kept.
pub const KEPT: Duration = Duration::from_hours(90 * 24);
/// Longest report that is read, in bytes.
const REPORT_MAX: u64 = 4 << 20;

/// The directory of an instance's reports.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// That of an instance.
    pub fn of(dirs: &Dirs) -> Self {
        Self { dir: dirs.state.join("moves") }
    }

    fn path(&self, id: Uuid) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Writes a report, whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, report: &MoveReport) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let path = self.path(report.move_id);
        let beside = self.dir.join(format!("{}.{}", report.move_id, Uuid::new_v4()));
        let written = fs::write(&beside, serde_json::to_vec(report)?)
            .and_then(|()| File::open(&beside)?.sync_all())
            .and_then(|()| fs::rename(&beside, &path));
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }

    /// The report of a move.
    ///
    /// # Errors
    /// What the file system says, also if it is damaged.
    pub fn read(&self, id: Uuid) -> io::Result<Option<MoveReport>> {
        match read(&self.path(id)) {
            Ok(report) => Ok(Some(report)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// At most `limit` reports, of `guest` if there is one, the latest first. Damaged ones are left
    /// out and named in the log.
    ///
    /// # Errors
    /// If the directory cannot be read; a missing one is empty.
    pub fn latest(&self, guest: Option<&str>, limit: usize) -> io::Result<Vec<MoveReport>> {
        let mut files = self.files()?;
        files.sort_by_key(|(_, written)| std::cmp::Reverse(*written));
        let mut reports = Vec::new();
        for (path, _) in files {
            if reports.len() >= limit {
                break;
            }
            match read(&path) {
                Ok(report) if guest.is_none_or(|g| g == report.guest) => reports.push(report),
                Ok(_) => {}
                Err(e) => tracing::warn!(path = %path.display(), "unreadable report: {e}"),
            }
        }
        reports.sort_by_key(|report| std::cmp::Reverse(report.started));
        Ok(reports)
    }

    /// Reports of moves that have no end.
    ///
    /// # Errors
    /// As [`Self::latest`].
    pub fn unfinished(&self) -> io::Result<Vec<MoveReport>> {
        let all = self.latest(None, usize::MAX)?;
        Ok(all.into_iter().filter(|report| report.ended.is_none()).collect())
    }

    /// Removes what is older than [`KEPT`] at `now`, and what a crash left half written.
    ///
    /// # Errors
    /// What the file system says.
    pub fn prune(&self, now: SystemTime) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let age = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            let whole = entry.path().extension().is_some_and(|e| e == "json");
            if age > KEPT || (!whole && age > Duration::from_hours(1)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn files(&self) -> io::Result<Vec<(PathBuf, SystemTime)>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.path().extension().is_some_and(|e| e == "json") {
                files.push((entry.path(), entry.metadata()?.modified()?));
            }
        }
        Ok(files)
    }
}

fn read(path: &Path) -> io::Result<MoveReport> {
    let mut bytes = Vec::new();
    File::open(path)?.take(REPORT_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{HostRef, MoveOptions};

    #[test]
    fn reports_are_kept_listed_and_pruned() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::of(&Dirs::below(home.path()));
        assert!(store.latest(None, 9).unwrap().is_empty());
        store.prune(SystemTime::now()).unwrap();
        let host = HostRef { id: Uuid::nil(), name: "h".into() };
        let report = |n: u128, guest: &str| {
            let started = jiff::Timestamp::from_second(i64::try_from(n).unwrap()).unwrap();
            let guest = (guest, Uuid::nil(), 1);
            let options = MoveOptions::default();
            let id = Uuid::from_u128(n);
            super::super::record::blank(id, guest, host.clone(), host.clone(), options, started)
        };
        for (n, guest) in [(1, "a"), (2, "b"), (3, "a")] {
            store.write(&report(n, guest)).unwrap();
        }
        let mut ended = report(2, "b");
        ended.ended = Some(jiff::Timestamp::UNIX_EPOCH);
        store.write(&ended).unwrap();
        let ids = |reports: Vec<MoveReport>| -> Vec<u128> {
            reports.iter().map(|r| r.move_id.as_u128()).collect()
        };
        assert_eq!(ids(store.latest(Some("a"), 9).unwrap()), [3, 1]);
        assert_eq!(ids(store.latest(None, 9).unwrap()), [3, 2, 1]);
        assert_eq!(store.latest(None, 2).unwrap().len(), 2);
        assert_eq!(ids(store.unfinished().unwrap()), [3, 1]);
        fs::write(store.path(Uuid::from_u128(7)), "{").unwrap();
        assert!(store.read(Uuid::from_u128(7)).is_err());
        assert_eq!(store.read(Uuid::from_u128(8)).unwrap(), None);
        assert_eq!(store.latest(None, 9).unwrap().len(), 3);
        store.prune(SystemTime::now() + KEPT + Duration::from_mins(1)).unwrap();
        assert_eq!(fs::read_dir(&store.dir).unwrap().count(), 0);
    }
}
