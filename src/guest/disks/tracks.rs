//! The tracking of all disks of a guest, and the thread that cools them.
//!
//! A disk that cannot be tracked works all the same; it says why, and a backup reads all of it.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use super::track::{DiskTrack, TrackIn};
use crate::api::DiskTracking;
use crate::config::DiskDefinition;

/// Between two turns of cooling. After a power loss the regions written to during the last two
/// turns count as changed.
const TURN: Duration = Duration::from_secs(5);
/// Turns after which the live words are synced at the latest.
const TURNS_TO_SYNC: u32 = 6;

/// Maps of guests that have no journal any more are kept this long.
pub const KEPT: Duration = Duration::from_hours(90 * 24);

/// Removes below `all` the maps of guests that are not in `journals` and did not run since
/// `before`. Failures leave them where they are.
pub fn prune(all: &Path, journals: &Path, before: SystemTime) {
    let Ok(guests) = fs::read_dir(all) else { return };
    for guest in guests.flatten() {
        if journals.join(guest.file_name()).exists() {
            continue;
        }
        let Ok(maps) = fs::read_dir(guest.path()) else { continue };
        let new =
            |m: fs::DirEntry| m.metadata().and_then(|m| m.modified()).map_or(true, |t| t > before);
        if !maps.flatten().any(new)
            && let Err(error) = fs::remove_dir_all(guest.path())
        {
            tracing::warn!(%error, path = %guest.path().display(), "old maps of changes stay");
        }
    }
}

#[derive(Debug)]
struct Tracked {
    serial: String,
    /// Nothing of a disk that the guest cannot write.
    track: Option<Result<Arc<DiskTrack>, String>>,
}

/// One entry per disk, in the definition's order; none at all before tracking begins.
#[derive(Debug, Default)]
pub struct Tracks(Vec<Tracked>);

impl Tracks {
    /// Begins to track what the guest can write. `coming`: the guest is still on another host.
    pub fn begin<'a>(
        within: &TrackIn,
        disks: impl Iterator<Item = &'a DiskDefinition>,
        coming: bool,
    ) -> Self {
        let tracked = |disk: &DiskDefinition| {
            let track = (!disk.read_only).then(|| {
                DiskTrack::open(within, &disk.path, &disk.serial, coming).map(Arc::new).map_err(
                    |error| {
                        let disk = disk.path.display();
                        tracing::warn!(%error, %disk, "changes of a disk are not recorded");
                        error.to_string()
                    },
                )
            });
            Tracked { serial: disk.serial.clone(), track }
        };
        Self(disks.map(tracked).collect())
    }

    /// The tracking of each disk that has one.
    pub fn of_disks(&self) -> impl Iterator<Item = Option<Arc<DiskTrack>>> {
        self.0.iter().map(|t| t.track.as_ref().and_then(|t| t.as_ref().ok()).cloned())
    }

    /// The guest leaves this host.
    pub fn leave(&self) {
        self.of_disks().flatten().for_each(|disk| disk.leave());
    }

    /// The guest has ended here, and its disks are still this host's.
    pub fn finish(&self) {
        self.of_disks().flatten().for_each(|disk| disk.finish());
    }

    /// What people and scripts are told.
    pub fn info(&self) -> Vec<DiskTracking> {
        let told = |t: &Tracked| match t.track.as_ref()? {
            Ok(track) => Some(track.info(&t.serial)),
            Err(error) => Some(DiskTracking::failed(&t.serial, error)),
        };
        self.0.iter().filter_map(told).collect()
    }
}

/// The thread that cools the disks of a guest. Dropping it ends it.
#[derive(Debug)]
pub struct Cooler {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Cooler {
    /// Starts it.
    ///
    /// # Errors
    /// No thread.
    pub fn start(tracks: &Tracks) -> io::Result<Self> {
        let disks: Vec<_> = tracks.of_disks().flatten().collect();
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let seen = stop.clone();
        let run = move || {
            let (stop, changed) = &*seen;
            let mut turn = 0u32;
            let mut guard = stop.lock().unwrap_or_else(PoisonError::into_inner);
            while !*guard {
                let waited = changed.wait_timeout(guard, TURN);
                guard = waited.unwrap_or_else(PoisonError::into_inner).0;
                if *guard {
                    return;
                }
                turn = turn.wrapping_add(1);
                for disk in &disks {
                    cool(disk, turn);
                }
            }
        };
        let thread = std::thread::Builder::new().name("disk-track".into()).spawn(run)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

fn cool(disk: &DiskTrack, turn: u32) {
    let cooled = disk.tracker().cool();
    let synced = match cooled {
        Ok(_) if turn.is_multiple_of(TURNS_TO_SYNC) => disk.tracker().sync(),
        other => other.map(drop),
    };
    if let Err(error) = synced
        && turn.is_power_of_two()
    {
        tracing::warn!(%error, "a map of changes cannot be synced: its regions stay hot");
    }
}

impl Drop for Cooler {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
