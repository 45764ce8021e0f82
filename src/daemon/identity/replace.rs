//! Puts a file in the place of another as a whole: whoever reads, also after a crash at any
//! moment, finds the old one or the new one. Secrets are for their owner only from the first byte.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Ends the name of a file that is not in its place yet; the writer's process id stands before.
const UNFINISHED: &str = ".new";

/// A moment at which the writer may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The new file is there, empty.
    Opened,
    /// Half of it is written.
    HalfWritten,
    /// All of it is written.
    Written,
    /// It is on the disk.
    Synced,
    /// It is in its place, which the disk may not know yet.
    Renamed,
}

/// Puts `text` in the place of a file, for its owner only, durably.
///
/// # Errors
/// The system's; the old file is as it was.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    replace_until(path, text, &mut |_| false)
}

/// The same, but stops without another act where `killed` says so.
pub fn replace_until(
    path: &Path,
    text: &str,
    killed: &mut dyn FnMut(Step) -> bool,
) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}{UNFINISHED}", std::process::id()));
    let fresh = Path::new(&fresh);
    let mut stop =
        |step| if killed(step) { Err(io::Error::from(io::ErrorKind::Interrupted)) } else { Ok(()) };
    let mut write = || {
        let mut open = OpenOptions::new();
        let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(fresh)?;
        stop(Step::Opened)?;
        let (first, second) = text.as_bytes().split_at(text.len() / 2);
        file.write_all(first)?;
        stop(Step::HalfWritten)?;
        file.write_all(second)?;
        stop(Step::Written)?;
        file.sync_all()?;
        stop(Step::Synced)?;
        fs::rename(fresh, path)?;
        stop(Step::Renamed)?;
        File::open(dir)?.sync_all()
    };
    let written = write();
    // One who was killed cleans nothing up.
    if written.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
        let _ = fs::remove_file(fresh);
    }
    written
}

/// Removes what writers that are gone have left behind in a directory.
pub fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let writer = name.to_str().and_then(|n| n.strip_suffix(UNFINISHED)?.rsplit('.').next());
        let Some(writer) = writer.and_then(|id| id.parse::<u32>().ok()) else { continue };
        if writer == std::process::id() || !Path::new(&format!("/proc/{writer}")).exists() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_or_new_and_nothing_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.pem");
        replace(&path, "the old one").unwrap();
        for (step, found) in [
            (Step::Opened, "the old one"),
            (Step::HalfWritten, "the old one"),
            (Step::Written, "the old one"),
            (Step::Synced, "the old one"),
            (Step::Renamed, "the new one"),
        ] {
            replace_until(&path, "the new one", &mut |at| at == step).unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), found, "{step:?}");
            sweep(dir.path());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{step:?}");
        }
        replace(&path, "the last one").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "the last one");
        fs::write(dir.path().join("file.pem.1.new"), "of a process that lives").unwrap();
        fs::write(dir.path().join("other.new"), "of somebody else").unwrap();
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
