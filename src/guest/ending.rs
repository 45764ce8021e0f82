//! What remains of a guest: its exit record and its last console log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use jiff::Timestamp;

use super::facts::{Facts, VERSION};
use crate::api::{ExitHow, ExitRecord};
use crate::config::{Dirs, GuestPaths};

/// Leaves record and log in the directory of exits. The log first: a record promises one.
///
/// # Errors
/// What the file system says; whatever could be written is there.
pub fn leave(
    dirs: &Dirs,
    paths: &GuestPaths,
    facts: &Facts,
    how: ExitHow,
    detail: Option<String>,
) -> io::Result<()> {
    let definition = &facts.definition;
    let log = copy_log(dirs, paths, facts);
    let record = ExitRecord {
        schema: 1,
        name: definition.name.clone(),
        uuid: definition.uuid,
        term: facts.term,
        started: facts.started,
        ended: Timestamp::now(),
        how,
        detail,
        version: VERSION.into(),
        memory_bytes: definition.memory_bytes,
        cpus: definition.cpus,
    };
    let mut bytes = serde_json::to_vec_pretty(&record)?;
    bytes.push(b'\n');
    // In place, not by renaming: a confined process may make files here, not remove any.
    create(&dirs.exit_record(&definition.uuid, facts.term))?.write_all(&bytes)?;
    log
}

fn copy_log(dirs: &Dirs, paths: &GuestPaths, facts: &Facts) -> io::Result<()> {
    let mut out = create(&dirs.exit_console(&facts.definition.uuid, facts.term))?;
    for path in [paths.console_log_previous(), paths.console_log()] {
        match File::open(path) {
            Ok(mut part) => drop(io::copy(&mut part, &mut out)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn create(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Makes the directory of exits, while that is still possible.
///
/// # Errors
/// What the file system says.
pub fn prepare(dirs: &Dirs) -> io::Result<()> {
    fs::create_dir_all(dirs.exits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::testing::definition;

    #[test]
    fn record_and_log_remain() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let dirs = Dirs { config: at("c"), run: at("r"), state: at("s") };
        let paths = dirs.guest("one");
        fs::create_dir_all(paths.dir()).unwrap();
        fs::write(paths.console_log_previous(), "earlier ").unwrap();
        fs::write(paths.console_log(), "later").unwrap();
        prepare(&dirs).unwrap();
        let facts = Facts {
            definition: definition("one"),
            term: 4,
            started: Timestamp::UNIX_EPOCH,
            console: paths.console(),
            loaded_pause_ms: None,
        };
        leave(&dirs, &paths, &facts, ExitHow::Crashed, Some("why".into())).unwrap();
        let uuid = facts.definition.uuid;
        let record = fs::read(dirs.exit_record(&uuid, 4)).unwrap();
        let record: ExitRecord = serde_json::from_slice(&record).unwrap();
        assert_eq!((record.how, record.term), (ExitHow::Crashed, 4));
        assert_eq!(record.detail.as_deref(), Some("why"));
        let log = fs::read_to_string(dirs.exit_console(&uuid, 4)).unwrap();
        assert_eq!(log, "earlier later");
    }
}
