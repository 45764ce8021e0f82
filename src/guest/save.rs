//! One save, on a thread of its own, so that the owner stays reachable meanwhile.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::fingerprint;
use super::inbox::Inbox;
use super::machine::PausedMachine;
use super::savefile::{self, Content, Metadata};
use crate::api::{ErrorCode, Failure, SaveResult};

/// A disk as a save sees it: opened through the page cache, beside the guest's own handle.
#[derive(Debug)]
pub struct SavedDisk {
    /// Path, for messages.
    pub path: std::path::PathBuf,
    /// The handle.
    pub file: File,
    /// The guest may have written to it.
    pub writable: bool,
}

/// All that a save needs.
#[derive(Debug)]
pub struct Job<P> {
    /// The machine, standing still.
    pub machine: P,
    /// Where to.
    pub file: File,
    /// What is known before; `disks` is filled in here.
    pub metadata: Metadata,
    /// Its disks, in the definition's order.
    pub disks: Arc<[SavedDisk]>,
    /// Set to give up.
    pub cancel: Arc<AtomicBool>,
    /// When the vCPUs were told to stop.
    pub stopped_at: Instant,
    /// How long that took.
    pub pause: Duration,
}

/// How it ended. The machine stands still as before.
#[derive(Debug)]
pub struct Done<P> {
    /// The machine.
    pub machine: P,
    /// What was saved; `running` says nothing yet.
    pub result: Result<SaveResult, Failure>,
    /// When the vCPUs were told to stop.
    pub stopped_at: Instant,
}

/// Does `job` on a new thread and posts its end to `inbox`.
///
/// # Errors
/// No thread can be had; the machine comes back.
pub fn start<P: PausedMachine>(job: Job<P>, inbox: Inbox<P>) -> Result<(), (P, io::Error)> {
    // The job is handed over only once there is a thread, or it would be lost with it.
    let (sender, receiver) = std::sync::mpsc::channel::<Job<P>>();
    let spawned = std::thread::Builder::new().name("save".into()).spawn(move || {
        if let Ok(job) = receiver.recv() {
            inbox.save_done(run(job));
        }
    });
    match spawned {
        Err(error) => Err((job.machine, error)),
        Ok(_) => sender.send(job).map_err(|lost| (lost.0.machine, io::ErrorKind::Other.into())),
    }
}

fn run<P: PausedMachine>(mut job: Job<P>) -> Done<P> {
    let result = write(&mut job);
    Done { machine: job.machine, result, stopped_at: job.stopped_at }
}

fn write<P: PausedMachine>(job: &mut Job<P>) -> Result<SaveResult, Failure> {
    let begin = Instant::now();
    let state = job.machine.save_state()?;
    let state_time = begin.elapsed();
    for disk in job.disks.iter() {
        job.metadata.disks.push(settle(disk)?);
    }
    let ram = job.machine.ram().map_err(|e| {
        Failure::new(
            ErrorCode::Unexpected,
            format!("the guest's memory cannot be reached: {e}"),
            "report this",
        )
    })?;
    let content =
        Content { metadata: &job.metadata, state: &state, ram: &ram.file, ram_bytes: ram.bytes };
    let written = savefile::write(&job.file, &content, &job.cancel).map_err(|e| e.failure())?;
    Ok(SaveResult {
        schema: 1,
        file_bytes: written.file_bytes,
        memory_bytes: written.memory_bytes,
        stopped_ms: millis(job.stopped_at.elapsed()),
        pause_us: micros(job.pause),
        state_us: micros(state_time),
        running: false,
    })
}

/// Brings what the guest wrote to the disk itself, since the saved memory must never be newer
/// than the disk, and takes the fingerprint.
fn settle(disk: &SavedDisk) -> Result<fingerprint::Fingerprint, Failure> {
    let synced = if disk.writable { disk.file.sync_all() } else { Ok(()) };
    synced.and_then(|()| fingerprint::take(&disk.file)).map_err(|e| {
        Failure::new(
            ErrorCode::BadDisk,
            format!("disk {} cannot be synced and read: {e}", disk.path.display()),
            "check the disk's health; the guest was not saved",
        )
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
