//! Guests whose journal says something rare, and hosts that come and go.

use std::fs;

use migrate::guest::journal::{self, Journal, Whose};
use migrate_engine::handover::journal::Record;
use migrate_engine::handover::term::{BootId, HostId, Switch, SwitchId, Term};
use nix::sys::signal::Signal;
use serde_json::Value;
use uuid::Uuid;

use crate::site::Host;
use crate::support::{Home, eventually, names_in, wait_gone};

/// A persistent guest of this definition, which has no process yet.
pub fn define(home: &Home, name: &str, more: &str) -> Uuid {
    let guests = home.dirs().config.join("guests");
    fs::create_dir_all(&guests).unwrap();
    let uuid = Uuid::new_v4();
    let text = format!("uuid = \"{uuid}\"\nmemory = \"32M\"\nguest = \"scribbler:ws=4M\"\n{more}");
    fs::write(guests.join(format!("{name}.toml")), text).unwrap();
    uuid
}

/// The journal's record of a guest on a host.
pub fn record(host: &Host, guest: Uuid) -> Record {
    let record = journal::read(&host.home.dirs().journal(&guest)).unwrap().unwrap();
    *record.ledger.now().unwrap()
}

/// The highest term that a host knows of a guest.
pub fn highest(host: &Host, guest: Uuid) -> u64 {
    let record = journal::read(&host.home.dirs().journal(&guest)).unwrap().unwrap();
    record.ledger.highest().get()
}

/// Identity of a host, from its state directory: also if its daemon is gone.
pub fn id(host: &Host) -> HostId {
    let text = fs::read_to_string(host.home.dirs().state.join("host-id")).unwrap();
    HostId(Uuid::parse_str(text.trim()).unwrap().as_u128())
}

/// What a guest process would have written that died in the middle of a hand-over, in another
/// boot of its host: its marks are gone with that.
pub fn dies_after(host: &Host, guest: Uuid, peer: &str, steps: &[Record]) {
    let dir = host.home.dirs().journal(&guest);
    // The last process may be about to let it go.
    let mut journal = eventually("the journal is free", || Journal::take(&dir).ok());
    let name = journal.last().map_or_else(|| "web1".to_owned(), |r| r.name.clone());
    let (host_name, host, boot) = (host.name.clone(), id(host), BootId(7));
    let whose = Whose { uuid: guest, name, host_name, host, boot };
    for step in steps {
        journal.step(&whose, *step, Some(peer.to_owned()), jiff::Timestamp::now()).unwrap();
    }
}

/// An offer of a guest in its next term.
pub fn offer(from: &Host, to: &Host, guest: Uuid) -> Switch {
    let before = highest(from, guest);
    Switch {
        id: SwitchId(Uuid::new_v4().as_u128()),
        before: Term::new(before),
        term: Term::new(before + 1),
        from: id(from),
        to: id(to),
    }
}

/// The host reboots: all its processes die, its runtime directory is empty, and its daemon starts.
pub fn reboot(host: &mut Host) {
    host.end_daemon(Signal::SIGKILL);
    for pid in host.home.processes() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        wait_gone(pid);
    }
    let run = host.home.dirs().run;
    for name in names_in(&run) {
        let path = run.join(name);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    host.start_daemon();
}

/// The error of a command that failed.
#[track_caller]
pub fn error(home: &Home, words: &[&str]) -> Value {
    let ran = home.json(words);
    assert_ne!(ran.code, Some(0), "{words:?}: {ran:?}");
    ran.assert_no_defect();
    let line = ran.stdout.lines().last().unwrap_or_default();
    let document: Value = serde_json::from_str(line).unwrap_or_default();
    assert!(document["error"]["remedy"].is_string(), "{words:?}: {ran:?}");
    document["error"].clone()
}
