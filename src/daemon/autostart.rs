//! Starts the guests that are to run whenever their host does, once for each boot. Like every
//! start it goes through the guest's process, which takes the right to run from its journal: a
//! guest that was moved away stays away; one in doubt is tried again until that is settled.
//!
//! It ends nothing, and starts nothing that was stopped since the host has booted.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use migrate_engine::handover::journal::Record as Step;
use serde::{Deserialize, Serialize};

use super::{Daemon, inbound, keeper, unexpected};
use crate::api::{ErrorCode, Failure};
use crate::config::Dirs;
use crate::guest::journal;
use crate::host::leftover::{Life, life};
use crate::host::{persistent, spawn};

/// How long a guest may take to be built.
const BUILD: Duration = Duration::from_mins(1);
/// Time between two tries to start a guest that is in doubt.
const AGAIN: Duration = Duration::from_secs(1);

/// What is left to start in this boot.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Round {
    /// The boot.
    boot: String,
    /// Guests that were not started yet.
    pending: Vec<String>,
}

fn path(dirs: &Dirs) -> PathBuf {
    dirs.run.join("autostart.json")
}

impl Round {
    /// What is left, or all there is if the host has booted since.
    fn of(dirs: &Dirs, boot: &str) -> Self {
        let kept = fs::read(path(dirs)).ok();
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        if let Some(kept) = kept.filter(|kept| kept.boot == boot) {
            return kept;
        }
        let wanted = |name: &String| match persistent::file(dirs, name) {
            Ok(file) => file.autostart == Some(true),
            Err(failure) => {
                tracing::warn!(GUEST = name, %failure, "whether it is to start is not known");
                false
            }
        };
        let pending = persistent::names(dirs).into_iter().filter(wanted).collect();
        Self { boot: boot.to_owned(), pending }
    }

    /// It only has to outlive the daemon, not the boot.
    fn keep(&self, dirs: &Dirs) -> io::Result<()> {
        let fresh = path(dirs).with_extension("new");
        fs::write(&fresh, serde_json::to_vec(self)?)?;
        fs::rename(&fresh, path(dirs))
    }
}

/// Starts what is left to start in this boot.
pub async fn start_all(daemon: Arc<Daemon>) {
    let boot = match keeper::boot() {
        Ok(boot) => boot.to_string(),
        Err(failure) => return tracing::error!(%failure, "no guest is started by itself"),
    };
    let mut round = Round::of(&daemon.dirs, &boot);
    let mut told = BTreeSet::new();
    loop {
        // Before it is tried: one that brings the daemon down is not started for ever.
        let trying = std::mem::take(&mut round.pending);
        for name in trying {
            if in_doubt(&daemon.dirs, &name) {
                if told.insert(name.clone()) {
                    tracing::warn!(GUEST = name, "not started yet: whose it is, is not settled");
                }
                round.pending.push(name);
                continue;
            }
            if let Err(error) = round.keep(&daemon.dirs) {
                return tracing::error!(%error, "no guest is started by itself");
            }
            match start(&daemon, &name).await {
                Ok(()) => tracing::info!(GUEST = name, "started, as its host has booted"),
                // Its journal may just be held by whoever has settled it.
                Err(f) if matches!(f.0.code, ErrorCode::InDoubt | ErrorCode::AlreadyRunning) => {
                    round.pending.push(name);
                }
                Err(failure) => tracing::error!(GUEST = name, %failure, "not started"),
            }
        }
        if let Err(error) = round.keep(&daemon.dirs) {
            tracing::error!(%error, "what is left to start is not on record");
        }
        if round.pending.is_empty() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether trying is in vain for now. Only a look: the gate is in the guest's process.
fn in_doubt(dirs: &Dirs, name: &str) -> bool {
    let definition = persistent::definition(dirs, name).ok();
    let record = definition.and_then(|d| journal::read(&dirs.journal(&d.uuid)).ok()?);
    let now = record.as_ref().and_then(|r| r.ledger.now());
    matches!(now, Some(Step::Offered(_) | Step::Receiving(_)))
}

async fn start(daemon: &Daemon, name: &str) -> Result<(), Failure> {
    if matches!(life(&daemon.dirs.guest(name)), Ok(Life::Alive)) {
        return Ok(());
    }
    let definition = persistent::definition(&daemon.dirs, name)?;
    let spec = persistent::launch_spec(&daemon.dirs, definition);
    let launched = tokio::task::spawn_blocking(move || spawn::launch(&spec, None, Some(BUILD)));
    inbound::reap(launched.await.map_err(|e| unexpected("the start of a guest", &e))??.child);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_boot_has_one_round() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        dirs.prepare().unwrap();
        fs::create_dir_all(dirs.config.join("guests")).unwrap();
        let write = |name: &str, more: &str| {
            let text = format!("guest = \"scribbler\"\n{more}");
            fs::write(dirs.definition(name), text).unwrap();
        };
        write("a", "autostart = true\n");
        write("b", "");
        write("c", "autostart = false\n");
        write("d", "nonsense = 1\n");
        let round = Round::of(&dirs, "boot 1");
        assert_eq!(round.pending, ["a"]);
        Round { pending: vec![], ..round }.keep(&dirs).unwrap();
        assert_eq!(Round::of(&dirs, "boot 1").pending, [""; 0], "the daemon came back");
        assert_eq!(Round::of(&dirs, "boot 2").pending, ["a"], "the host came back");
        fs::write(path(&dirs), "torn").unwrap();
        assert_eq!(Round::of(&dirs, "boot 1").pending, ["a"]);
    }
}
