//! `save`: the file is opened here, next to its final place, and written by the confined guest
//! process. It gets its name when it is complete; the only copy of a guest is never removed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::Serialize;

use super::args::SaveArgs;
use super::control::GONE_DEADLINE;
use super::{Done, OK, Session};
use crate::api::client::{CallError, GuestClient, LOOK_DEADLINE};
use crate::api::fds::hand_over_fd;
use crate::api::{ErrorCode, Failure, GuestState, SaveRequest, SaveResult};
use crate::guest::savefile;
use crate::host::leftover::{Life, life};
use crate::host::registry::{locate, wait_gone};
use crate::show::units::{bytes, micros};

/// The result of `save`.
#[derive(Debug, Serialize)]
struct Saved<'a> {
    file: &'a Path,
    #[serde(flatten)]
    result: SaveResult,
}

/// `save`
pub fn save(session: &Session, args: &SaveArgs) -> Done {
    let name = args.guest.guest.as_str();
    let client = locate(&session.dirs, name)?;
    let target = Target::open(&args.to)?;
    session.out.progress(&format!("{name}: saving to {} …", target.path.display()));
    let result = match write(session, &client, &target, args.keep_running) {
        Ok(result) => result,
        Err(error) => return Err(target.after_failure(&client, error)),
    };
    target.name_it(name)?;
    if !result.running {
        wait_gone(&session.dirs, &client, GONE_DEADLINE)?;
    }
    let words = format!(
        "{name} is saved in {} ({}); it stood still for {}{}",
        target.path.display(),
        bytes(result.file_bytes),
        micros(result.stopped_ms.saturating_mul(1000)),
        if result.running {
            " and runs on".to_owned()
        } else {
            format!(" and has ended\n  continue: migrate load {}", target.path.display())
        }
    );
    session.out.result(&Saved { file: &target.path, result }, &words)?;
    Ok(OK)
}

fn write(
    session: &Session,
    client: &GuestClient,
    target: &Target,
    keep_running: bool,
) -> Result<SaveResult, CallError> {
    let fd_token = uuid::Uuid::new_v4().to_string();
    hand_over_fd(&client.paths().fd(), &fd_token, target.file.as_fd())
        .map_err(CallError::Connect)?;
    client.save(&SaveRequest { fd_token, keep_running }, session.global.timeout)
}

/// The file to write.
struct Target {
    /// Its final name.
    path: PathBuf,
    /// Its name until it is complete.
    partial: PathBuf,
    file: File,
}

impl Target {
    fn open(to: &Path) -> Result<Self, Failure> {
        let cannot = |path: &Path, e: &io::Error| match e.kind() {
            io::ErrorKind::AlreadyExists => Failure::new(
                ErrorCode::FileExists,
                format!("the file {} exists already", path.display()),
                "choose another name, or remove it if it is no longer wanted",
            ),
            _ => Failure::new(
                ErrorCode::File,
                format!("cannot write {}: {e}", path.display()),
                "check the directory and its permissions",
            ),
        };
        let path = std::path::absolute(to).map_err(|e| cannot(to, &e))?;
        if path.file_name().is_none() || to.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(cannot(to, &io::ErrorKind::IsADirectory.into()));
        }
        if fs::symlink_metadata(&path).is_ok() {
            return Err(cannot(&path, &io::ErrorKind::AlreadyExists.into()));
        }
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&partial).map_err(|e| cannot(&partial, &e))?;
        Ok(Self { path, partial, file })
    }

    /// Gives the complete file its name.
    fn name_it(&self, name: &str) -> Result<(), Failure> {
        let renamed =
            renameat2(AT_FDCWD, &self.partial, AT_FDCWD, &self.path, RenameFlags::RENAME_NOREPLACE);
        let renamed = match renamed {
            // A file system without that flag: the window is that between two commands.
            Err(Errno::EINVAL) if fs::symlink_metadata(&self.path).is_err() => {
                fs::rename(&self.partial, &self.path)
            }
            other => other.map_err(io::Error::from),
        };
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        renamed.and_then(|()| File::open(parent)?.sync_all()).map_err(|e| {
            let code = match e.kind() {
                io::ErrorKind::AlreadyExists => ErrorCode::FileExists,
                _ => ErrorCode::File,
            };
            let kept = if self.partial.exists() { &self.partial } else { &self.path };
            Failure::new(
                code,
                format!(
                    "'{name}' is saved completely in {}, which could not be made {}: {e}",
                    kept.display(),
                    self.path.display()
                ),
                format!("load it from there: migrate load {}", kept.display()),
            )
        })
    }

    /// Clears up after a failed save. Only if the guest is certainly still there, or the file
    /// certainly not complete, is the file removed.
    fn after_failure(&self, client: &GuestClient, error: CallError) -> Failure {
        let name = client.name();
        let unsure =
            matches!(error, CallError::Lost(_) | CallError::Late(_) | CallError::Malformed(_));
        let mut failure = client.failure(error);
        if !unsure {
            self.remove();
            return failure;
        }
        if let Ok(info) = client.info(LOOK_DEADLINE) {
            failure.0.guest_state = Some(info.state);
            if info.state == GuestState::Saving {
                failure.0.message.push_str("; the save goes on");
                failure.0.remedy = format!(
                    "wait until it is no longer 'saving' (migrate show {name}); the file is {}",
                    self.partial.display()
                );
            } else {
                self.remove();
            }
            return failure;
        }
        if matches!(life(client.paths()), Ok(Life::Alive)) {
            failure.0.remedy =
                format!("migrate show {name}; keep {}: it may be complete", self.partial.display());
            return failure;
        }
        // The process is gone. The header is written last, so a readable file is complete.
        if savefile::open(&self.file).is_err() {
            self.remove();
            failure.0.message.push_str("; its process is gone and the save is not complete");
            failure.0.remedy = format!("see how it ended: migrate show {name}");
            failure.0.guest_state = Some(GuestState::Stopped);
            return failure;
        }
        self.name_it(name).err().unwrap_or_else(|| {
            Failure::new(
                ErrorCode::Unexpected,
                format!(
                    "the process of '{name}' ended before it confirmed the save, but {} is complete",
                    self.path.display()
                ),
                format!("continue from it: migrate load {}", self.path.display()),
            )
            .with_state(GuestState::Stopped)
        })
    }

    fn remove(&self) {
        if let Err(e) = fs::remove_file(&self.partial) {
            tracing::warn!("cannot remove {}: {e}", self.partial.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.save");
        let target = Target::open(&path).unwrap();
        assert_eq!(fs::metadata(&target.partial).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Target::open(&path).err().unwrap();
        assert_eq!(again.0.code, ErrorCode::FileExists);
        fs::write(&path, "somebody else's").unwrap();
        let late = target.name_it("a").unwrap_err();
        assert_eq!(late.0.code, ErrorCode::FileExists);
        assert!(late.0.message.contains("a.save.partial"), "{}", late.0.message);
        assert!(target.partial.exists());
        fs::remove_file(&path).unwrap();
        target.name_it("a").unwrap();
        assert!(path.exists() && !target.partial.exists());
        assert_eq!(Target::open(&path).err().unwrap().0.code, ErrorCode::FileExists);
        assert_eq!(Target::open(&dir.path().join("x/y")).err().unwrap().0.code, ErrorCode::File);
    }
}
