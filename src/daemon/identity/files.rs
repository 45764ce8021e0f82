//! The files of a host's identity: whole or not at all, secrets for their owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::api::{ErrorCode, Failure};
use crate::config::Dirs;

/// Longest file that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// Where the files lie.
#[derive(Clone, Debug)]
pub struct Paths {
    config: PathBuf,
    state: PathBuf,
}

impl Paths {
    /// Those of an instance.
    pub fn of(dirs: &Dirs) -> Self {
        Self { config: dirs.config.clone(), state: dirs.state.clone() }
    }

    /// The host's private key, 0600.
    pub fn key(&self) -> PathBuf {
        self.config.join("host.key")
    }

    /// The host's certificate, then its issuers'.
    pub fn certificate(&self) -> PathBuf {
        self.config.join("host.crt")
    }

    /// Certificates of the authorities that the site trusts.
    pub fn authority(&self) -> PathBuf {
        self.config.join("ca.crt")
    }

    /// Private key of the site's CA, 0600; on the CA's host only.
    pub fn authority_key(&self) -> PathBuf {
        self.config.join("ca.key")
    }

    /// Hosts of the site, and those that were removed.
    pub fn hosts(&self) -> PathBuf {
        self.state.join("hosts.json")
    }

    /// Open invitations.
    pub fn invitations(&self) -> PathBuf {
        self.state.join("invitations.json")
    }

    /// Locked by whoever changes any of these.
    pub fn lock(&self) -> PathBuf {
        self.state.join("identity.lock")
    }
}

/// Reads a text file.
///
/// # Errors
/// `file`, with its name.
pub fn read(path: &Path) -> Result<String, Failure> {
    read_if_there(path)?.ok_or_else(|| failed("read", path, &io::ErrorKind::NotFound.into()))
}

/// Reads a text file that may be missing.
///
/// # Errors
/// `file`, with its name.
pub fn read_if_there(path: &Path) -> Result<Option<String>, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(FILE_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path, &e)),
    }
}

/// Writes a file beside and renames it into place, durably. `mode` is that of a new file.
///
/// # Errors
/// `file`, with its name; the old file is as it was.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let write = || {
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent)?;
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", Uuid::new_v4()));
        let beside = PathBuf::from(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        if let Err(e) = written.and_then(|()| fs::rename(&beside, path)) {
            let _ = fs::remove_file(&beside);
            return Err(e);
        }
        File::open(parent)?.sync_all()
    };
    write().map_err(|e| failed("write", path, &e))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        ErrorCode::File,
        format!("cannot {what} {}: {error}", path.display()),
        "check that the directory is yours and not full",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/key");
        assert_eq!(read_if_there(&path).unwrap(), None);
        write(&path, "one", 0o600).unwrap();
        write(&path, "two", 0o600).unwrap();
        assert_eq!(read(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let error = read(&dir.path().join("none")).unwrap_err();
        assert!(error.0.message.contains("none"), "{error}");
    }
}
