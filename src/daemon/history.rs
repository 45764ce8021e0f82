//! Reports of moves, a file each, kept 90 days on both hosts after success and failure.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::api::moving::{HostRef, MoveReport};
use crate::api::{ErrorCode, Failure};
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
        let written =
            fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, path(dirs, report.move_id)));
        if written.is_err() {
            // On a full disk a part of a report would only be in the way.
            let _ = fs::remove_file(&fresh);
        }
        written
    });
    if let Err(error) = kept {
        tracing::error!(%error, MOVE = %report.move_id, "a report was not kept");
    }
}

/// Keeps a report that the host `peer` has sent of a guest that it moved to this host (`here`).
/// Where this host is the source, its own report stays.
///
/// # Errors
/// `host-refused` if it is about something else, or has no end.
pub fn keep_from_peer(
    dirs: &Dirs,
    report: &MoveReport,
    peer: &HostRef,
    here: Uuid,
) -> Result<(), Failure> {
    let known = read(dirs, report.move_id).ok();
    acceptable(report, known.as_ref(), peer, here).map_err(|what| {
        let message = format!("the report of move {} is refused: {what}", report.move_id);
        Failure::new(ErrorCode::HostRefused, message, "see the logs of both daemons")
    })?;
    keep(dirs, report);
    Ok(())
}

/// Whether a peer's report may stand for a move of which `known` is kept here.
fn acceptable(
    report: &MoveReport,
    known: Option<&MoveReport>,
    peer: &HostRef,
    here: Uuid,
) -> Result<(), &'static str> {
    if report.to.id != here || report.from != *peer {
        return Err("it is not about a move from that host to this one");
    }
    if report.ended.is_none() || report.outcome.is_none() {
        return Err("the move has not ended");
    }
    if crate::config::check_name(&report.guest).is_err() {
        return Err("the guest has no proper name");
    }
    if known.is_some_and(|k| (&k.from, k.to.id, k.uuid) != (&report.from, here, report.uuid)) {
        return Err("another move has that id");
    }
    Ok(())
}

/// The report of a move.
///
/// # Errors
/// `NotFound` if there is none; a damaged one.
pub fn read(dirs: &Dirs, id: Uuid) -> io::Result<MoveReport> {
    read_at(&path(dirs, id))
}

fn read_at(path: &Path) -> io::Result<MoveReport> {
    let mut bytes = Vec::new();
    // One more than is kept: a longer file is no report of ours.
    let most = REPORT_MAX as u64 + 1;
    fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    if bytes.len() > REPORT_MAX {
        return Err(io::Error::other("it is longer than any report"));
    }
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

/// Reports, latest first; only of `guest` if there is one.
pub fn list(dirs: &Dirs, guest: Option<&str>, limit: usize) -> Vec<MoveReport> {
    let Ok(entries) = fs::read_dir(dir(dirs)) else { return Vec::new() };
    let mut found: Vec<MoveReport> = entries
        .flatten()
        .take(LISTED)
        .map(|e| e.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .filter_map(|path| read_at(&path).ok())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{MoveOptions, MoveOutcome, MovePhase};
    use crate::guest::moving::report::About;

    #[test]
    fn a_peer_reports_its_own_moves_to_here_and_nothing_else() {
        let host = |n: u128, name: &str| HostRef { id: Uuid::from_u128(n), name: name.into() };
        let (source, here, third) = (host(1, "a"), host(2, "b"), host(3, "c"));
        let about = About {
            move_id: Uuid::from_u128(9),
            guest: "g".into(),
            uuid: Uuid::from_u128(7),
            from: source.clone(),
            to: here.clone(),
            started: jiff::Timestamp::UNIX_EPOCH,
            options: MoveOptions::default(),
            memory_bytes: 1,
        };
        let open = about.blank(MovePhase::Copying);
        let ended = MoveReport {
            ended: Some(jiff::Timestamp::UNIX_EPOCH),
            outcome: Some(MoveOutcome::Moved),
            ..open.clone()
        };
        assert_eq!(acceptable(&ended, None, &source, here.id), Ok(()));
        assert_eq!(acceptable(&ended, Some(&ended), &source, here.id), Ok(()));
        assert!(acceptable(&ended, None, &third, here.id).is_err(), "another host's move");
        assert!(acceptable(&ended, None, &source, third.id).is_err(), "not to here");
        assert!(acceptable(&open, None, &source, here.id).is_err(), "it goes on");
        let other = MoveReport { uuid: Uuid::from_u128(8), ..ended.clone() };
        assert!(acceptable(&ended, Some(&other), &source, here.id).is_err(), "another guest");
        let own = MoveReport { from: here.clone(), to: source.clone(), ..ended.clone() };
        assert!(acceptable(&ended, Some(&own), &source, here.id).is_err(), "our own move");
        assert!(acceptable(&own, None, &source, here.id).is_err(), "our own move");
        let odd = MoveReport { guest: "../x".into(), ..ended };
        assert!(acceptable(&odd, None, &source, here.id).is_err());
    }

    #[test]
    fn only_whole_reports_of_a_possible_length_are_read() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let host = |n: u128| HostRef { id: Uuid::from_u128(n), name: format!("h{n}") };
        let about = About {
            move_id: Uuid::from_u128(9),
            guest: "g".into(),
            uuid: Uuid::from_u128(7),
            from: host(1),
            to: host(2),
            started: jiff::Timestamp::UNIX_EPOCH,
            options: MoveOptions::default(),
            memory_bytes: 1,
        };
        let report = about.blank(MovePhase::Copying);
        crate::guest::testing::hostile_json(&report);
        keep(&dirs, &report);
        assert_eq!(read(&dirs, report.move_id).unwrap(), report);
        // One that was not finished, and one that goes on for ever: a report, then spaces.
        let good = fs::read(path(&dirs, report.move_id)).unwrap();
        fs::write(path(&dirs, Uuid::from_u128(1)).with_extension("new"), &good).unwrap();
        fs::write(path(&dirs, Uuid::from_u128(2)), &good[..good.len() / 2]).unwrap();
        fs::write(path(&dirs, Uuid::from_u128(3)), &good).unwrap();
        let mut long =
            fs::File::options().append(true).open(path(&dirs, Uuid::from_u128(3))).unwrap();
        io::Write::write_all(&mut long, &vec![b' '; REPORT_MAX]).unwrap();
        assert!(read(&dirs, Uuid::from_u128(2)).is_err());
        assert!(read(&dirs, Uuid::from_u128(3)).is_err());
        assert_eq!(list(&dirs, None, 10), [report]);
    }
}
