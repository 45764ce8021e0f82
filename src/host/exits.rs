//! Records of guests that ended: read, written for guests that could not, pruned after 14 days.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::api::{ExitHow, ExitRecord, GuestInfo};
use crate::config::Dirs;

/// How long records and console logs are kept.
pub const KEPT: Duration = Duration::from_hours(14 * 24);
/// Longest record that is read, in bytes.
const RECORD_MAX: u64 = 64 << 10;

/// All records, the latest end first. A damaged record is left out and named in the log.
///
/// # Errors
/// If the directory cannot be read; a missing one is empty.
pub fn read_all(dirs: &Dirs) -> io::Result<Vec<ExitRecord>> {
    let mut records = Vec::new();
    for path in files(&dirs.exits())? {
        if path.extension().is_some_and(|e| e == "json") {
            match read(&path) {
                Ok(record) => records.push(record),
                Err(e) => tracing::warn!(path = %path.display(), "unreadable exit record: {e}"),
            }
        }
    }
    records.sort_by_key(|r| std::cmp::Reverse(r.ended));
    Ok(records)
}

/// The latest record of a guest called `name`.
///
/// # Errors
/// See [`read_all`].
pub fn latest(dirs: &Dirs, name: &str) -> io::Result<Option<ExitRecord>> {
    Ok(read_all(dirs)?.into_iter().find(|r| r.name == name))
}

/// Removes the records and console logs of all guests called `name`; answers how many there were.
///
/// # Errors
/// What the file system says.
pub fn remove(dirs: &Dirs, name: &str) -> io::Result<usize> {
    let mut removed = 0;
    for record in read_all(dirs)?.into_iter().filter(|r| r.name == name) {
        gone(fs::remove_file(dirs.exit_console(&record.uuid, record.term)))?;
        gone(fs::remove_file(dirs.exit_record(&record.uuid, record.term)))?;
        removed += 1;
    }
    Ok(removed)
}

/// Removes records, console logs and logs of guest processes that are older than [`KEPT`] at the
/// time `now`.
///
/// # Errors
/// What the file system says.
pub fn prune(dirs: &Dirs, now: SystemTime) -> io::Result<()> {
    // The log of a guest that runs stays, however long it had nothing to say.
    let runs = |log: &PathBuf| {
        let name = log.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.trim_end_matches(".1").trim_end_matches(".log");
        dirs.guest(name).dir().exists()
    };
    let logs = files(&dirs.logs())?.into_iter().filter(|log| !runs(log));
    for path in files(&dirs.exits())?.into_iter().chain(logs) {
        let written = fs::symlink_metadata(&path).and_then(|m| m.modified());
        let age = written.map(|at| now.duration_since(at).unwrap_or_default());
        if matches!(age, Ok(age) if age > KEPT) {
            gone(fs::remove_file(&path))?;
        }
    }
    Ok(())
}

/// Writes `record`, whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn write(dirs: &Dirs, record: &ExitRecord) -> io::Result<()> {
    let path = dirs.exit_record(&record.uuid, record.term);
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec_pretty(record)?)?;
    fs::rename(&temporary, &path)
}

/// The record of a guest whose process was killed, from what it knew at its start.
pub fn of_killed(info: &GuestInfo, ended: jiff::Timestamp) -> ExitRecord {
    ExitRecord {
        schema: 1,
        name: info.name.clone(),
        uuid: info.uuid,
        term: info.term,
        started: info.started,
        ended,
        how: ExitHow::Died,
        detail: Some("its process was killed or failed".to_owned()),
        version: info.version.clone(),
        memory_bytes: info.memory_bytes,
        cpus: info.cpus,
    }
}

fn read(path: &Path) -> io::Result<ExitRecord> {
    use io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(RECORD_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, term: u64, ended: &str) -> ExitRecord {
        ExitRecord {
            schema: 1,
            name: name.into(),
            uuid: uuid::Uuid::from_u128(1),
            term,
            started: "2026-01-01T00:00:00Z".parse().unwrap(),
            ended: ended.parse().unwrap(),
            how: ExitHow::PoweredOff,
            detail: None,
            version: "0.1.0".into(),
            memory_bytes: 1 << 20,
            cpus: 1,
        }
    }

    #[test]
    fn the_document_of_a_record_is_fixed() {
        let golden = r#"{"schema":1,"name":"a","uuid":"00000000-0000-0000-0000-000000000001","term":3,"started":"2026-01-01T00:00:00Z","ended":"2026-01-02T00:00:00Z","how":"powered-off","version":"0.1.0","memory_bytes":1048576,"cpus":1}"#;
        let one = record("a", 3, "2026-01-02T00:00:00Z");
        assert_eq!(serde_json::to_string(&one).unwrap(), golden);
        assert_eq!(serde_json::from_str::<ExitRecord>(golden).unwrap(), one);
    }

    #[test]
    fn records_are_listed_removed_and_pruned() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        assert!(read_all(&dirs).unwrap().is_empty());
        dirs.prepare().unwrap();
        let old = record("a", 1, "2026-01-02T00:00:00Z");
        let new = record("a", 2, "2026-01-03T00:00:00Z");
        let other = record("b", 3, "2026-01-04T00:00:00Z");
        for r in [&old, &new, &other] {
            write(&dirs, r).unwrap();
            fs::write(dirs.exit_console(&r.uuid, r.term), "log").unwrap();
        }
        fs::write(dirs.exits().join("x.json"), "{").unwrap();
        assert_eq!(read_all(&dirs).unwrap(), [other, new.clone(), old]);
        assert_eq!(latest(&dirs, "a").unwrap(), Some(new));

        assert_eq!(remove(&dirs, "a").unwrap(), 2);
        assert_eq!(read_all(&dirs).unwrap().len(), 1);

        let later = SystemTime::now() + KEPT;
        prune(&dirs, later - Duration::from_mins(1)).unwrap();
        assert_eq!(read_all(&dirs).unwrap().len(), 1);
        fs::write(dirs.guest_log("a"), "log").unwrap();
        prune(&dirs, later + Duration::from_mins(1)).unwrap();
        assert!(!dirs.guest_log("a").exists());
        fs::write(dirs.guest_log("runs"), "log").unwrap();
        fs::create_dir(dirs.guest("runs").dir()).unwrap();
        prune(&dirs, later + Duration::from_mins(1)).unwrap();
        assert!(dirs.guest_log("runs").exists());
        assert_eq!(files(&dirs.exits()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_damaged_record_is_refused_or_another_one() {
        crate::guest::testing::hostile_json(&record("one", 3, "2026-01-02T00:00:00Z"));
    }
}
