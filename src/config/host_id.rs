//! The identity of this host (of this instance of it, to be exact), made once and kept for life.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use uuid::Uuid;

use super::Dirs;
use crate::api::{ErrorCode, Failure};

const NAME: &str = "host-id";

/// The identity, made now if there is none. Whoever comes first makes it; all others read it.
///
/// # Errors
/// `file` if it cannot be read or made, or is none.
pub fn host_id(dirs: &Dirs) -> Result<Uuid, Failure> {
    let path = dirs.state.join(NAME);
    let failed = |what: &str| {
        Failure::new(
            ErrorCode::File,
            format!("the identity of this host, {}, {what}", path.display()),
            "check that the state directory is yours and not full",
        )
    };
    let io = |e: io::Error| failed(&format!("cannot be used: {e}"));
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(dirs).map_err(io)?,
        read => read.map_err(io)?,
    };
    Uuid::parse_str(text.trim()).map_err(|_| {
        let mut failure = failed("is damaged");
        failure.0.remedy = "restore it from a backup: the guests' journals name it".into();
        failure
    })
}

/// Writes a new one beside and links it into place, so that nobody ever reads half of one, and
/// one that is there already stays.
fn make(dirs: &Dirs) -> io::Result<String> {
    fs::create_dir_all(&dirs.state)?;
    let path = dirs.state.join(NAME);
    let fresh = dirs.state.join(format!("{NAME}.{}", Uuid::new_v4()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?;
    let made = writeln!(file, "{}", Uuid::new_v4()).and_then(|()| file.sync_all()).and_then(|()| {
        match fs::hard_link(&fresh, &path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => File::open(&dirs.state)?.sync_all(),
        }
    });
    fs::remove_file(&fresh)?;
    made?;
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_by_whoever_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let ids: Vec<Uuid> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| host_id(&dirs).unwrap())).collect();
            tries.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(fs::read_dir(&dirs.state).unwrap().count(), 1, "nothing else is left");
        fs::write(dirs.state.join(NAME), "x").unwrap();
        assert_eq!(host_id(&dirs).unwrap_err().0.code, ErrorCode::File);
    }
}
