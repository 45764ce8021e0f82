//! Where things lie on the host: the system instance, the user's own, or a private one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Directories of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dirs {
    /// Definitions and host configuration (`/etc/migrate`).
    pub config: PathBuf,
    /// Sockets, locks, marks: gone after a reboot (`/run/migrate`).
    pub run: PathBuf,
    /// Journals, records, logs (`/var/lib/migrate`).
    pub state: PathBuf,
}

/// Paths of one guest.
#[derive(Clone, Debug)]
pub struct GuestPaths {
    /// Its runtime directory, owner-only; removed when the guest ends.
    pub dir: PathBuf,
}

impl Dirs {
    /// Paths of guest `name`, which must be a valid name.
    pub fn guest(&self, name: &str) -> GuestPaths {
        GuestPaths { dir: self.run.join("guests").join(name) }
    }

    /// Where the host's daemon listens for commands.
    pub fn daemon_socket(&self) -> PathBuf {
        self.run.join("daemon.sock")
    }

    /// Runtime directories of all guests.
    pub fn guests(&self) -> PathBuf {
        self.run.join("guests")
    }

    /// The ownership journal of guest `uuid`.
    pub fn journal(&self, uuid: &uuid::Uuid) -> PathBuf {
        self.state.join("journal").join(uuid.to_string())
    }

    /// What tracks the changes of the disks of guest `uuid`, a file for each.
    pub fn tracking(&self, uuid: &uuid::Uuid) -> PathBuf {
        self.state.join("tracking").join(uuid.to_string())
    }

    /// Marks of the hand-overs of guest `uuid`: they outlive its process, not this boot.
    pub fn marks(&self, uuid: &uuid::Uuid) -> PathBuf {
        self.run.join("marks").join(uuid.to_string())
    }

    /// Exit records and last console logs, kept 14 days.
    pub fn exits(&self) -> PathBuf {
        self.state.join("exits")
    }

    /// The [`ExitRecord`](crate::api::ExitRecord) of the guest that ran under this identity and
    /// term.
    pub fn exit_record(&self, uuid: &uuid::Uuid, term: u64) -> PathBuf {
        self.exits().join(format!("{uuid}-{term}.json"))
    }

    /// The last console log beside [`Self::exit_record`].
    pub fn exit_console(&self, uuid: &uuid::Uuid, term: u64) -> PathBuf {
        self.exits().join(format!("{uuid}-{term}.console.log"))
    }

    /// Guests that were saved by SIGTERM (`on_host_stop = save`).
    pub fn saves(&self) -> PathBuf {
        self.state.join("saves")
    }

    /// Log of the process of guest `name` (its standard error), kept across its runs.
    pub fn guest_log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Logs of guest processes.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }
}

impl GuestPaths {
    fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// HTTP API.
    pub fn api(&self) -> PathBuf {
        self.join("api.sock")
    }

    /// Descriptor passing.
    pub fn fd(&self) -> PathBuf {
        self.join("fd.sock")
    }

    /// Serial console.
    pub fn console(&self) -> PathBuf {
        self.join("console.sock")
    }

    /// Log of the serial console.
    pub fn console_log(&self) -> PathBuf {
        self.join("console.log")
    }

    /// The last full [`Self::console_log`].
    pub fn console_log_previous(&self) -> PathBuf {
        self.join("console.log.1")
    }

    /// Virtio console (`hvc0`).
    pub fn hvc(&self) -> PathBuf {
        self.join("hvc0.sock")
    }

    /// Host side of the virtio socket.
    pub fn vsock(&self) -> PathBuf {
        self.join("vsock.sock")
    }

    /// The guest's facts as of its start, a [`GuestInfo`](crate::api::GuestInfo).
    pub fn info(&self) -> PathBuf {
        self.join("guest.json")
    }

    /// Locked (`flock`, exclusive) by the guest process for as long as it lives. Whoever gets the
    /// lock makes sure that the path still names the file it locked: a cleaner removes the
    /// directory only while it holds the lock.
    pub fn lock(&self) -> PathBuf {
        self.join("lock")
    }

    /// The runtime directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
