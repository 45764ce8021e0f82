//! The tracking of a guest's disks, joined to the host: opens the sidecar of a disk or makes one,
//! stands around its writes, and closes it when the guest ends. It never changes what a disk
//! contains, and reads no more of it than a few samples.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use migrate_engine::track::disk::head::REGION_UNITS;
use migrate_engine::track::disk::judge::{Now, Verdict, judge};
use migrate_engine::track::disk::open::{Found, grown, resume};
use migrate_engine::track::disk::{Fresh, Head, Look, OpenError, Shape, Sidecar, Tracker};
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;
use vmm::devices::virtio::block::WriteObserver;

use super::sidecar::SidecarFile;
use crate::api::DiskTracking;
use crate::guest::fingerprint;

/// Bytes of a unit: what a backup reads and stores of a small write is near it, and the stamps of
/// a disk of 1 TiB are 64 MiB.
const UNIT_SIZE: u32 = 64 << 10;
/// Where and under which circumstances disks are tracked.
#[derive(Clone, Debug)]
pub struct TrackIn {
    /// Directory of the guest's sidecars; made if need be.
    pub dir: PathBuf,
    /// This boot of the host.
    pub boot: u128,
    /// When it began, in ns since 1970.
    pub boot_began: u64,
}

impl TrackIn {
    /// In `dir`, in this boot, whose id is `boot`.
    ///
    /// # Errors
    /// The host does not say when it began.
    pub fn this_boot(dir: PathBuf, boot: u128) -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().find_map(|l| l.strip_prefix("btime "));
        let seconds = line.and_then(|s| s.trim().parse::<u64>().ok());
        let seconds = seconds.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { dir, boot, boot_began: seconds.saturating_mul(1_000_000_000) })
    }
}

/// One tracked disk. The guest's writes go through it.
#[derive(Debug)]
pub struct DiskTrack {
    tracker: Tracker<SidecarFile>,
    /// A handle with which the image is read through the cache.
    image: File,
    bytes: u64,
    /// The guest may be running on another host.
    away: AtomicBool,
}

fn now_ns() -> u64 {
    // Coarse, as the times of files are.
    let Ok(now) = clock_gettime(ClockId::CLOCK_REALTIME_COARSE) else { return 0 };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// How an image looks; the samples are of its first `bytes` bytes.
fn look(image: &File, bytes: u64) -> io::Result<Look> {
    let metadata = image.metadata()?;
    let time = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    let file = (!metadata.file_type().is_block_device()).then(|| (time, metadata.ino()));
    Ok(Look { file, samples: fingerprint::samples(image, bytes)? })
}

/// The name of the sidecar of the disk that its guest knows by `serial`.
fn file_name(serial: &str) -> String {
    let mut name = String::new();
    for byte in serial.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02x}");
        }
    }
    name + ".track"
}

impl DiskTrack {
    /// Opens the tracking of the disk at `path`, which its guest knows by `serial`, or begins it. The disk's locks are held, unless the guest is `coming` from
    /// another host.
    ///
    /// # Errors
    /// Neither what is there nor a new sidecar can be used.
    pub fn open(
        within: &TrackIn,
        path: &Path,
        serial: &str,
        coming: bool,
    ) -> Result<Self, OpenError> {
        let store = OpenError::Store;
        std::fs::create_dir_all(&within.dir).map_err(store)?;
        let mut image = File::open(path).map_err(store)?;
        // Seeking, because a block device has no length in its metadata.
        let bytes = image.seek(SeekFrom::End(0)).map_err(store)?;
        let shape = Shape { bytes, unit_size: UNIT_SIZE, region_units: REGION_UNITS };
        let sidecar = within.dir.join(file_name(serial));
        let now = Now {
            boot: within.boot,
            boot_began: within.boot_began,
            shape,
            look: look(&image, bytes).map_err(store)?,
        };
        let tracker = match SidecarFile::open(&sidecar) {
            Ok(Some(found)) if !coming => go_on(&sidecar, found, &image, &now)?,
            Ok(found) => {
                let why = if coming { Fresh::Elsewhere } else { Fresh::New };
                begin(&sidecar, found.as_ref().map(|(_, f)| &f.head), why, &now)?
            }
            Err(error) => {
                tracing::warn!(%error, disk = %path.display(), "all of it counts as changed");
                begin(&sidecar, None, Fresh::Damaged, &now)?
            }
        };
        tracker.set_away(coming);
        Ok(Self { tracker, image, bytes, away: AtomicBool::new(coming) })
    }

    /// The tracker.
    pub fn tracker(&self) -> &Tracker<SidecarFile> {
        &self.tracker
    }

    /// The guest leaves this host. Its next write here says that it has come back, or never ran
    /// elsewhere: whoever lets it run makes sure of that.
    pub fn leave(&self) {
        self.away.store(true, Ordering::SeqCst);
        self.tracker.set_away(true);
    }

    /// Closes the map after the guest's last write, while the disk is still this host's. Nothing
    /// if the guest is away.
    pub fn finish(&self) {
        if self.away.load(Ordering::SeqCst) {
            return;
        }
        let closed = self.image.sync_all().and_then(|()| look(&self.image, self.bytes));
        match closed.and_then(|look| self.tracker.finish(look)) {
            Ok(true) => {}
            Ok(false) => tracing::warn!("a map of changes was not closed; it is as after a kill"),
            Err(error) => tracing::warn!(%error, "a map of changes was not closed"),
        }
    }

    /// What people and scripts are told of it.
    pub fn info(&self, serial: &str) -> DiskTracking {
        let head = self.tracker.head();
        DiskTracking {
            serial: serial.to_owned(),
            disk: Some(Uuid::from_u128(head.disk)),
            generation: head.generation,
            epoch: self.tracker.epoch(),
            hot_regions: head.hot.len(),
            began: Some(head.fresh.text().to_owned()),
            error: self.tracker.broken().map(str::to_owned),
        }
    }
}

/// Continues what was found, if it is worth it.
fn go_on(
    path: &Path,
    (file, found): (SidecarFile, Found),
    image: &File,
    now: &Now,
) -> Result<Tracker<SidecarFile>, OpenError> {
    let head = found.head.clone();
    // The samples of the part that was recorded.
    let known = head.shape.bytes.min(now.shape.bytes);
    let seen = Now { look: look(image, known).map_err(OpenError::Store)?, ..*now };
    let live = file.live();
    let power_loss = match judge(&head, live.written(), live.void(), &seen) {
        Verdict::Exact => false,
        Verdict::PowerLoss => true,
        Verdict::Grown => {
            let (head, stamps) = grown(&head, file.stamps().as_ref(), now.shape, now.look)?;
            drop(file);
            SidecarFile::replace(path, &head, &stamps).map_err(OpenError::Store)?;
            return reopened(path, now);
        }
        Verdict::Fresh(why) => return begin(path, Some(&head), why, now),
    };
    match resume(file, found, power_loss, now) {
        Err(OpenError::Map(_)) if head.epoch == u32::MAX => {
            begin(path, Some(&head), Fresh::UsedUp, now)
        }
        Err(OpenError::Map(error)) => {
            tracing::warn!(%error, path = %path.display(), "begins anew");
            begin(path, Some(&head), Fresh::Damaged, now)
        }
        other => other,
    }
}

/// A new map, in the next generation of `before` if that is known.
fn begin(
    path: &Path,
    before: Option<&Head>,
    why: Fresh,
    now: &Now,
) -> Result<Tracker<SidecarFile>, OpenError> {
    let fresh = || (Uuid::new_v4().as_u128(), 1);
    // Another file is another disk.
    let same = before.filter(|_| why != Fresh::Replaced);
    let (disk, generation) = same.map_or_else(fresh, |b| (b.disk, b.generation.saturating_add(1)));
    let head = Head::first(disk, generation, why, now.shape, now.look);
    SidecarFile::replace(path, &head, &[]).map_err(OpenError::Store)?;
    if why != Fresh::New {
        tracing::warn!(path = %path.display(), why = why.text(), "all of a disk counts as changed");
    }
    reopened(path, now)
}

fn reopened(path: &Path, now: &Now) -> Result<Tracker<SidecarFile>, OpenError> {
    let gone = || OpenError::Store(io::ErrorKind::NotFound.into());
    let (file, found) = SidecarFile::open(path)?.ok_or_else(gone)?;
    resume(file, found, false, now)
}

impl WriteObserver for DiskTrack {
    fn around_write(
        &self,
        offset: u64,
        len: u64,
        change: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.saturating_add(len);
        // The device lets nothing through that is not inside the disk.
        let Some(run) = self.tracker.layout().covering(offset..end) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if self.away.load(Ordering::Relaxed) && self.away.swap(false, Ordering::SeqCst) {
            self.tracker.set_away(false);
        }
        let write = self.tracker.begin(run, now_ns());
        let result = change();
        self.tracker.settle(write, now_ns());
        result
    }
}

#[cfg(test)]
mod tests;
