//! Opens a disk for a guest: the right kind of file, and writable if it must be. It takes no lock:
//! that is [`super::lock`]'s, since a receiver opens a disk long before it may own it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a sector, the unit of every disk's size.
pub const SECTOR_BYTES: u64 = 512;

/// Why a file cannot be a guest's disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskOpenError {
    /// Nothing there.
    #[error("disk {0} does not exist; create it (`truncate -s 10G {0}`) or correct the path")]
    Missing(PathBuf),
    /// Not allowed at all.
    #[error(
        "no permission to open disk {path} for {access}; give this user access to the file and its directories"
    )]
    Permission {
        /// The disk.
        path: PathBuf,
        /// "reading" or "reading and writing".
        access: &'static str,
    },
    /// May be read but not written.
    #[error("disk {0} is read-only for this user; make it writable or attach it read-only")]
    ReadOnly(PathBuf),
    /// A directory, a pipe, …
    #[error("{path} is {kind}; a disk must be a regular file or a block device")]
    Kind {
        /// The path.
        path: PathBuf,
        /// What stands there.
        kind: &'static str,
    },
    /// No `O_DIRECT`.
    #[error(
        "the file system of disk {0} does not support direct I/O; use cache=writeback or move the disk"
    )]
    DirectUnsupported(PathBuf),
    /// Another guest has it.
    #[error(
        "disk {0} is locked by another guest; stop that guest, or attach the disk read-only to both"
    )]
    Locked(PathBuf),
    /// The file system has no locks.
    #[error("cannot lock disk {path}: {source}; the file system must support byte-range locks")]
    Lock {
        /// The disk.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Anything else that opening met.
    #[error("cannot open disk {path}: {source}")]
    Open {
        /// The disk.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The opened file does not tell its properties.
    #[error("cannot inspect the disk: {0}")]
    Inspect(#[source] io::Error),
    /// Nothing in it.
    #[error("the disk is empty; give it a size (`truncate -s 10G FILE`)")]
    Empty,
    /// A ragged end.
    #[error("the disk has {0} bytes, which is not a multiple of 512; grow it to {next}", next = .0.next_multiple_of(SECTOR_BYTES))]
    Size(u64),
    /// A ragged end for direct I/O.
    #[error("the disk has {size} bytes, but direct I/O here needs a multiple of {block}; grow it to {next} or use cache=writeback", next = size.next_multiple_of((*block).into()))]
    DirectSize {
        /// Bytes of the disk.
        size: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// Direct I/O with odd demands.
    #[error(
        "direct I/O on the disk needs alignment to {block} bytes on disk and {memory} in memory; at most 4096 is supported: use cache=writeback"
    )]
    Alignment {
        /// Of buffers.
        memory: usize,
        /// Of offsets.
        block: u32,
    },
}

/// Opens the disk at `path`. `direct` bypasses the page cache (`O_DIRECT`). No guest may use it
/// before a [`DiskLock`](super::DiskLock) on it holds OWNER.
pub fn open_disk(path: &Path, read_only: bool, direct: bool) -> Result<File, DiskOpenError> {
    let file = open_file(path, read_only, direct)?;
    let kind = file.metadata().map_err(DiskOpenError::Inspect)?.file_type();
    let refused = if kind.is_dir() {
        Some("a directory")
    } else if kind.is_file() || kind.is_block_device() {
        None
    } else {
        Some("neither a file nor a block device")
    };
    if let Some(kind) = refused {
        return Err(DiskOpenError::Kind { path: path.to_owned(), kind });
    }
    disk_size(&file)?;
    Ok(file)
}

/// Bytes of an open disk, checked to be a positive multiple of 512.
pub fn disk_size(file: &File) -> Result<u64, DiskOpenError> {
    let mut file = file;
    // Seeking, because a block device has no length in its metadata.
    let size = file.seek(SeekFrom::End(0)).map_err(DiskOpenError::Inspect)?;
    match size {
        0 => Err(DiskOpenError::Empty),
        n if !n.is_multiple_of(SECTOR_BYTES) => Err(DiskOpenError::Size(n)),
        n => Ok(n),
    }
}

fn open_file(path: &Path, read_only: bool, direct: bool) -> Result<File, DiskOpenError> {
    let open = |write: bool, direct: bool| {
        // Not blocking, lest a pipe at the path hang the caller; files and disks ignore it.
        let flags = libc::O_NONBLOCK | if direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)
    };
    let path_buf = || path.to_owned();
    let source = match open(!read_only, direct) {
        Ok(file) => return Ok(file),
        Err(source) => source,
    };
    Err(match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => DiskOpenError::Missing(path_buf()),
        Some(libc::EISDIR) => DiskOpenError::Kind { path: path_buf(), kind: "a directory" },
        Some(libc::EROFS) => DiskOpenError::ReadOnly(path_buf()),
        Some(libc::EACCES | libc::EPERM) if !read_only && open(false, false).is_ok() => {
            DiskOpenError::ReadOnly(path_buf())
        }
        Some(libc::EACCES | libc::EPERM) => DiskOpenError::Permission {
            path: path_buf(),
            access: if read_only { "reading" } else { "reading and writing" },
        },
        Some(libc::EINVAL) if direct => match open(!read_only, false).and_then(|f| f.metadata()) {
            Ok(there) if there.is_dir() => {
                DiskOpenError::Kind { path: path_buf(), kind: "a directory" }
            }
            Ok(_) => DiskOpenError::DirectUnsupported(path_buf()),
            Err(_) => DiskOpenError::Open { path: path_buf(), source },
        },
        _ => DiskOpenError::Open { path: path_buf(), source },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn image(dir: &Path, bytes: u64) -> PathBuf {
        let path = dir.join(format!("{bytes}.raw"));
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    #[test]
    fn says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let error = |p: &Path, read_only, direct| open_disk(p, read_only, direct).unwrap_err();
        assert!(matches!(error(&path("none"), false, false), DiskOpenError::Missing(_)));
        for (read_only, direct) in [(false, false), (true, false), (false, true), (true, true)] {
            let e = error(dir.path(), read_only, direct);
            assert!(matches!(e, DiskOpenError::Kind { kind: "a directory", .. }), "{e}");
        }
        let e = error(Path::new("/dev/null"), true, false);
        assert!(matches!(e, DiskOpenError::Kind { .. }), "{e}");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let e = error(&path("pipe"), true, false);
        assert!(matches!(e, DiskOpenError::Kind { .. }), "{e}");
        assert!(matches!(error(&image(dir.path(), 0), false, false), DiskOpenError::Empty));
        let e = error(&image(dir.path(), 1000), false, false);
        assert_eq!(
            e.to_string(),
            "the disk has 1000 bytes, which is not a multiple of 512; grow it to 1024"
        );
        // The kernel's file systems of state have no direct I/O.
        if let DiskOpenError::DirectUnsupported(_) = error(Path::new("/proc/self/maps"), true, true)
        {
        } else {
            panic!("direct I/O on /proc");
        }
    }

    #[test]
    fn read_only_and_forbidden_are_told_apart() {
        if nix::unistd::geteuid().is_root() {
            eprintln!("left out: root may open everything; tests/guests does it as another user");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), 4096);
        let set_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set_mode(0o400);
        assert!(matches!(open_disk(&path, false, false), Err(DiskOpenError::ReadOnly(_))));
        open_disk(&path, true, false).unwrap();
        set_mode(0);
        for read_only in [true, false] {
            let e = open_disk(&path, read_only, false).unwrap_err();
            assert!(matches!(e, DiskOpenError::Permission { .. }), "{e}");
        }
    }
}
