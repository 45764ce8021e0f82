//! The record of a move that has not ended: a small file per move, written whole before anything
//! is begun and removed when the move's report is kept. With it a restarted daemon knows which
//! moves go on, since when and how they were asked for, and what a guest is made of whose process
//! has died.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::{Dirs, GuestDefinition};
use crate::failpoint;
use crate::guest::moving::report::About;

/// Longest record that is read, in bytes.
const MAX: u64 = 1 << 20;
/// Records that are looked at.
const MOST: usize = 1000;
/// Version of the document.
const SCHEMA: u32 = 1;

/// Which way a guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// It leaves this host.
    Out,
    /// It comes to this host.
    In,
}

/// A move that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    schema: u32,
    /// Which way.
    pub direction: Direction,
    /// The attempt that goes on.
    pub attempt: Uuid,
    /// What it is about.
    pub about: About,
    /// The guest.
    pub definition: GuestDefinition,
}

impl Open {
    /// A move that begins.
    pub fn new(
        direction: Direction,
        attempt: Uuid,
        about: About,
        definition: GuestDefinition,
    ) -> Self {
        Self { schema: SCHEMA, direction, attempt, about, definition }
    }

    /// Name of the host on the other side.
    pub fn other(&self) -> &str {
        match self.direction {
            Direction::Out => &self.about.to.name,
            Direction::In => &self.about.from.name,
        }
    }
}

fn dir(dirs: &Dirs) -> PathBuf {
    dirs.state.join("moves").join("open")
}

fn path(dirs: &Dirs, id: Uuid) -> PathBuf {
    dir(dirs).join(format!("{id}.json"))
}

/// The last move of a guest that has ended.
fn last(dirs: &Dirs, guest: Uuid) -> PathBuf {
    dirs.state.join("moves").join("last").join(format!("{guest}.json"))
}

/// Keeps the record; it is whole and on the disk when this returns.
///
/// # Errors
/// What the file system says: then nothing may begin.
pub fn keep(dirs: &Dirs, open: &Open) -> io::Result<()> {
    failpoint::at(|| "daemon.keep-move.before".into()).written()?;
    fs::create_dir_all(dir(dirs))?;
    let path = path(dirs, open.about.move_id);
    let fresh = path.with_extension("new");
    let bytes = serde_json::to_vec(open)?;
    let written = (|| {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    let _ = failpoint::at(|| "daemon.keep-move.after".into());
    written
}

/// Puts away the record of a move that has ended: what the guest was made of is kept, in case an
/// operator says that it shall run here after all.
pub fn remove(dirs: &Dirs, id: Uuid) {
    let _ = failpoint::at(|| "daemon.forget-move.before".into());
    let path = path(dirs, id);
    if let Ok(open) = read(&path)
        && fs::create_dir_all(last(dirs, open.about.uuid).with_file_name("")).is_ok()
        && fs::rename(&path, last(dirs, open.about.uuid)).is_ok()
    {
        return;
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(MOVE = %id, %error, "the record of a move that has ended remains");
    }
}

/// All records. One that cannot be read is left out and named in the log.
pub fn all(dirs: &Dirs) -> Vec<Open> {
    let Ok(entries) = fs::read_dir(dir(dirs)) else { return Vec::new() };
    let paths = entries.flatten().map(|e| e.path());
    let records = paths.filter(|path| path.extension().is_some_and(|e| e == "json")).take(MOST);
    let read = |path: PathBuf| match read(&path) {
        Ok(open) => Some(open),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the record of a move cannot be read");
            None
        }
    };
    records.filter_map(read).collect()
}

fn read(path: &std::path::Path) -> io::Result<Open> {
    let open = parse(path)?;
    let named = path.file_stem().is_some_and(|n| *n == *open.about.move_id.to_string());
    if named { Ok(open) } else { Err(io::Error::other("it is not about what its name says")) }
}

fn parse(path: &std::path::Path) -> io::Result<Open> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX).read_to_end(&mut bytes)?;
    let open: Open = serde_json::from_slice(&bytes)?;
    let proper = open.schema == SCHEMA
        && crate::config::check_name(&open.about.guest).is_ok()
        && open.about.uuid == open.definition.uuid;
    if proper { Ok(open) } else { Err(io::Error::other("it is not about what its name says")) }
}

/// What a guest is made of that is being moved, or was last.
pub fn definition_of(dirs: &Dirs, guest: Uuid) -> Option<GuestDefinition> {
    let going_on = all(dirs).into_iter().find(|open| open.about.uuid == guest);
    let found = going_on.or_else(|| {
        let open = parse(&last(dirs, guest)).ok()?;
        (open.about.uuid == guest).then_some(open)
    });
    found.map(|open| open.definition)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{HostRef, MoveOptions};
    use crate::guest::testing::definition;

    #[test]
    fn a_record_is_found_until_it_is_removed_and_a_damaged_one_harms_nobody() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        assert_eq!(all(&dirs), []);
        let host = |n: u128| HostRef { id: Uuid::from_u128(n), name: format!("h{n}") };
        let definition = definition("one");
        let about = About {
            move_id: Uuid::from_u128(5),
            guest: "one".into(),
            uuid: definition.uuid,
            from: host(1),
            to: host(2),
            started: jiff::Timestamp::UNIX_EPOCH,
            options: MoveOptions { bandwidth_bytes_per_s: Some(7), ..MoveOptions::default() },
            memory_bytes: 9,
        };
        let open = Open::new(Direction::In, Uuid::from_u128(6), about, definition.clone());
        keep(&dirs, &open).unwrap();
        keep(&dirs, &open).unwrap();
        assert_eq!(all(&dirs), std::slice::from_ref(&open));
        assert_eq!((open.other(), definition_of(&dirs, definition.uuid)), ("h1", Some(definition)));
        assert_eq!(definition_of(&dirs, Uuid::from_u128(77)), None);

        let good = fs::read(path(&dirs, Uuid::from_u128(5))).unwrap();
        fs::write(path(&dirs, Uuid::from_u128(8)), &good).unwrap();
        for cut in [0, 1, good.len() / 2, good.len() - 1] {
            fs::write(path(&dirs, Uuid::from_u128(9)), &good[..cut]).unwrap();
            assert_eq!(
                all(&dirs),
                std::slice::from_ref(&open),
                "neither a cut one nor one of another name"
            );
        }
        crate::guest::testing::hostile_json(&open);
        remove(&dirs, Uuid::from_u128(5));
        remove(&dirs, Uuid::from_u128(5));
        assert_eq!(all(&dirs), []);
    }
}
