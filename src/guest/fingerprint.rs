//! What a disk looked like: enough to notice that somebody else wrote to it.
//!
//! Size, modification time and file identity catch every ordinary change at once. For block
//! devices, and for copies that keep their times, a checksum over a sample of blocks is compared
//! as well. A change that keeps size and times and misses all samples is not noticed; a full
//! comparison would take as long as reading the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes of one sample.
const SAMPLE: u64 = SAMPLE_BYTES as u64;
const SAMPLE_BYTES: usize = 4096;
/// Most samples: evenly spaced, the first and the last block among them.
const SAMPLES: u64 = 64;

/// A disk at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Bytes.
    pub bytes: u64,
    /// What only regular files have.
    pub file: Option<FileIdentity>,
    /// CRC-32 over the sampled blocks.
    pub samples_crc32: u32,
}

/// Identity of a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i128,
    /// Device that holds it.
    pub device: u64,
    /// Inode on that device.
    pub inode: u64,
}

/// One difference between a disk then and now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("disk {disk} changed since the save: its {field} was {then} and is {now}")]
pub struct DiskChanged {
    /// Path of the disk.
    pub disk: String,
    /// What differs.
    pub field: &'static str,
    /// At the save.
    pub then: String,
    /// Now.
    pub now: String,
}

/// Takes the fingerprint of the disk at `path`.
///
/// # Errors
/// It cannot be opened or read.
pub fn take_at(path: &Path) -> io::Result<Fingerprint> {
    take(&OpenOptions::new().read(true).open(path)?)
}

/// Takes the fingerprint of an open disk, which must not be open for direct I/O. The file's
/// position is not kept.
///
/// # Errors
/// It cannot be read.
pub fn take(mut disk: &File) -> io::Result<Fingerprint> {
    let metadata = disk.metadata()?;
    let (bytes, file) = if metadata.file_type().is_block_device() {
        (disk.seek(SeekFrom::End(0))?, None)
    } else {
        let seconds = i128::from(metadata.mtime()) * 1_000_000_000;
        let modified_ns = seconds + i128::from(metadata.mtime_nsec());
        let identity = FileIdentity { modified_ns, device: metadata.dev(), inode: metadata.ino() };
        (metadata.len(), Some(identity))
    };
    Ok(Fingerprint { bytes, file, samples_crc32: samples(disk, bytes)? })
}

/// Checksum over samples of the first `bytes` bytes of a disk, which must not be open for direct
/// I/O.
///
/// # Errors
/// It cannot be read, or is shorter.
pub fn samples(disk: &File, bytes: u64) -> io::Result<u32> {
    let mut crc = crc32fast::Hasher::new();
    let mut block = [0; SAMPLE_BYTES];
    for offset in sample_offsets(bytes) {
        let length = usize::try_from((bytes - offset).min(SAMPLE)).unwrap_or(block.len());
        let block = block.get_mut(..length).unwrap_or_default();
        disk.read_exact_at(block, offset)?;
        crc.update(block);
    }
    Ok(crc.finalize())
}

/// Where samples are taken, ascending, all inside the disk.
fn sample_offsets(bytes: u64) -> impl Iterator<Item = u64> {
    let blocks = bytes.div_ceil(SAMPLE);
    let count = blocks.min(SAMPLES);
    let place = move |i: u64| match count {
        0 | 1 => 0,
        // At most 2^52 blocks times 63: no overflow.
        _ => (blocks - 1) * i / (count - 1) * SAMPLE,
    };
    (0..count).map(place)
}

/// Compares `disk` then and now.
///
/// # Errors
/// The first difference. File identity is compared only on the host that made the fingerprint.
pub fn compare(
    disk: &Path,
    then: &Fingerprint,
    now: &Fingerprint,
    same_host: bool,
) -> Result<(), DiskChanged> {
    let differs = |field, then: String, now: String| DiskChanged {
        disk: disk.display().to_string(),
        field,
        then,
        now,
    };
    if then.bytes != now.bytes {
        let (then, now) = (format!("{} bytes", then.bytes), format!("{} bytes", now.bytes));
        return Err(differs("size", then, now));
    }
    if let (Some(a), Some(b), true) = (then.file, now.file, same_host) {
        if (a.device, a.inode) != (b.device, b.inode) {
            let text = |f: FileIdentity| format!("device {} inode {}", f.device, f.inode);
            return Err(differs("file identity", text(a), text(b)));
        }
        if a.modified_ns != b.modified_ns {
            let (then, now) = (time(a.modified_ns), time(b.modified_ns));
            return Err(differs("modification time", then, now));
        }
    }
    if then.samples_crc32 != now.samples_crc32 {
        let text = |crc: u32| format!("{crc:08x}");
        let (then, now) = (text(then.samples_crc32), text(now.samples_crc32));
        return Err(differs("content (checksum of samples)", then, now));
    }
    Ok(())
}

fn time(ns: i128) -> String {
    jiff::Timestamp::from_nanosecond(ns).map_or_else(|_| format!("{ns} ns"), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn samples_cover_first_and_last_block() {
        for bytes in [512, 4096, 4608, 64 * 4096, 1 << 30, (1 << 30) + 512, u64::MAX] {
            let offsets: Vec<u64> = sample_offsets(bytes).collect();
            assert_eq!(offsets[0], 0);
            assert_eq!(*offsets.last().unwrap(), (bytes - 1) / 4096 * 4096, "{bytes}");
            assert!(offsets.is_sorted() && offsets.len() <= 64);
        }
        assert_eq!(sample_offsets(0).count(), 0);
    }

    fn changed(change: impl Fn(&File)) -> String {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(1 << 20).unwrap();
        let early = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        named.as_file().set_modified(early).unwrap();
        let then = take_at(named.path()).unwrap();
        assert_eq!(compare(named.path(), &then, &take_at(named.path()).unwrap(), true), Ok(()));
        change(named.as_file());
        let now = take_at(named.path()).unwrap();
        compare(named.path(), &then, &now, true).unwrap_err().field.to_string()
    }

    #[test]
    fn each_kind_of_change_is_named() {
        assert_eq!(changed(|f| f.set_len(512).unwrap()), "size");
        assert_eq!(changed(|f| f.write_all_at(b"x", 5000).unwrap()), "modification time");
        let content = changed(|f| {
            let kept = f.metadata().unwrap().modified().unwrap();
            f.write_all_at(b"x", (1 << 20) - 1).unwrap();
            f.set_modified(kept).unwrap();
        });
        assert_eq!(content, "content (checksum of samples)");
    }

    #[test]
    fn another_file_with_the_same_content_is_another_disk_here_but_not_elsewhere() {
        let (a, b) =
            (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let (then, now) = (take_at(a.path()).unwrap(), take_at(b.path()).unwrap());
        assert_eq!(compare(a.path(), &then, &now, true).unwrap_err().field, "file identity");
        assert_eq!(compare(a.path(), &then, &now, false), Ok(()));
    }

    proptest! {
        #[test]
        fn offsets_never_leave_the_disk(bytes in 1u64..) {
            for offset in sample_offsets(bytes) {
                prop_assert!(offset < bytes && offset % 4096 == 0);
            }
        }
    }
}
