//! Reports of moves, a file each, kept 90 days on both hosts after success and failure.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::api::moving::MoveReport;
use crate::config::Dirs;

/// How long a report is kept.
const KEPT: Duration = Duration::from_hours(90 * 24);
/// Reports that are read for a list.
const LISTED: usize = 10_000;
/// Longest report that is kept, in bytes.
const REPORT_MAX: usize = 4 << 20;

fn dir(dirs: &Dirs) -> PathBuf {
    dirs.state.join("moves")
}

fn path(dirs: &Dirs, id: Uuid) -> PathBuf {
    dir(dirs).join(format!("{id}.json"))
}

/// Keeps a report, in place of what was known of the move.
pub fn keep(dirs: &Dirs, report: &MoveReport) {
    let kept = serde_json::to_vec_pretty(report).map_err(io::Error::other).and_then(|bytes| {
        if bytes.len() > REPORT_MAX {
            return Err(io::Error::other("the report is too long"));
        }
        fs::create_dir_all(dir(dirs))?;
        let fresh = path(dirs, report.move_id).with_extension("new");
        fs::write(&fresh, bytes)?;
        fs::rename(&fresh, path(dirs, report.move_id))
    });
    if let Err(error) = kept {
        tracing::error!(%error, MOVE = %report.move_id, "a report was not kept");
    }
}

/// Keeps a report that another host has sent, if this host (`id`) took part in the move.
pub fn keep_from_peer(dirs: &Dirs, report: &MoveReport, id: Uuid) {
    if report.to.id == id || report.from.id == id {
        keep(dirs, report);
    }
}

/// The report of a move.
///
/// # Errors
/// `NotFound` if there is none; a damaged one.
pub fn read(dirs: &Dirs, id: Uuid) -> io::Result<MoveReport> {
    serde_json::from_slice(&fs::read(path(dirs, id))?).map_err(io::Error::other)
}

/// Reports, latest first; only of `guest` if there is one.
pub fn list(dirs: &Dirs, guest: Option<&str>, limit: usize) -> Vec<MoveReport> {
    let Ok(entries) = fs::read_dir(dir(dirs)) else { return Vec::new() };
    let mut found: Vec<MoveReport> = entries
        .flatten()
        .take(LISTED)
        .filter_map(|e| serde_json::from_slice(&fs::read(e.path()).ok()?).ok())
        .filter(|r: &MoveReport| guest.is_none_or(|g| r.guest == g || r.uuid.to_string() == g))
        .collect();
    found.sort_by_key(|r| std::cmp::Reverse(r.started));
    found.truncate(limit);
    found
}

/// Removes old reports.
pub fn prune(dirs: &Dirs) {
    let Ok(entries) = fs::read_dir(dir(dirs)) else { return };
    let old = SystemTime::now().checked_sub(KEPT);
    for entry in entries.flatten() {
        let written = entry.metadata().and_then(|m| m.modified()).ok();
        if written.zip(old).is_some_and(|(written, old)| written < old) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
