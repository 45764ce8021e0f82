//! Whether the files that guests here need are at the same paths on another host. It opens none
//! of them: that two paths lead to the same storage is seen when a guest is moved.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{failed, line};
use crate::api::ErrorCode;
use crate::api::host::CheckLine;
use crate::config::GuestDefinition;
use crate::daemon::Daemon;
use crate::daemon::inbound::facts;
use crate::daemon::peer::{Answer, PATHS_MAX, Request};
use crate::host::registry;

const WHAT: &str = "guests' files there";

/// Files that guests need, each with the guests that need it.
type Needs = BTreeMap<PathBuf, Vec<String>>;

/// What `guests` need at the same path elsewhere: their shared disks, their kernels and initial
/// RAM disks. One with a disk of this host alone stays here anyway.
fn needs(guests: &[GuestDefinition]) -> Needs {
    let mut needs = Needs::new();
    for guest in guests.iter().filter(|g| g.disks.iter().all(|d| d.shared || d.read_only)) {
        let disks = guest.disks.iter().map(|d| &d.path);
        for path in disks.chain(&guest.kernel).chain(&guest.initrd) {
            needs.entry(path.clone()).or_default().push(guest.name.clone());
        }
    }
    needs
}

/// What is said of them, if `absent` are not there.
fn judge(needs: &Needs, absent: &[PathBuf]) -> CheckLine {
    let gone = |(path, guests): (&PathBuf, &Vec<String>)| {
        let missed = absent.contains(path);
        missed.then(|| format!("{} (of {})", path.display(), guests.join(", ")))
    };
    let gone: Vec<String> = needs.iter().filter_map(gone).collect();
    let found = match (needs.len(), gone.is_empty()) {
        (0, _) => "no guest here needs any".to_owned(),
        (n, true) => format!("all {n} are at the same paths"),
        (n, false) => format!("{} of {n} are missing: {}", gone.len(), gone.join("; ")),
    };
    let remedy = "mount the storage that they are on there, at the same path";
    line(WHAT, gone.is_empty(), found, Some(remedy.into()))
}

/// Asks the other host.
pub async fn check(daemon: &Arc<Daemon>, host: &str) -> CheckLine {
    let names = registry::names(&daemon.dirs).unwrap_or_default();
    let infos = names.iter().filter_map(|name| facts::info(&daemon.dirs.guest(name)));
    let guests: Vec<GuestDefinition> = infos.map(|info| info.definition).collect();
    let needs = needs(&guests);
    let paths: Vec<PathBuf> = needs.keys().take(PATHS_MAX).cloned().collect();
    if paths.is_empty() {
        return judge(&needs, &[]);
    }
    match daemon.ask(host, Request::Paths { paths }).await.map(|told| told.answer) {
        Ok(Answer::Absent(absent)) => judge(&needs, &absent),
        // A release before this one does not know the question.
        Err(failure) if failure.0.code == ErrorCode::NoCommonVersion => {
            line(WHAT, true, "not looked at: its daemon is older", None)
        }
        Err(failure) => failed(WHAT, &failure.0),
        Ok(_) => line(WHAT, true, "not looked at: it answered something else", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cache, DiskDefinition};
    use crate::guest::testing::definition;

    fn guest(name: &str, disks: &[(&str, bool)]) -> GuestDefinition {
        let disk = |(path, shared): &(&str, bool)| DiskDefinition {
            path: path.into(),
            read_only: false,
            shared: *shared,
            cache: Cache::None,
            serial: "s".into(),
        };
        let disks = disks.iter().map(disk).collect();
        GuestDefinition { disks, kernel: None, initrd: None, ..definition(name) }
    }

    #[test]
    fn every_missing_file_is_named_with_its_guests() {
        let guests = [
            guest("a", &[("/s/a", true), ("/s/both", true)]),
            guest("b", &[("/s/both", true)]),
            guest("stays", &[("/local", false), ("/s/stays", true)]),
            GuestDefinition { kernel: Some("/k".into()), ..guest("c", &[]) },
        ];
        let needs = needs(&guests);
        let paths: Vec<&str> = needs.keys().filter_map(|p| p.to_str()).collect();
        assert_eq!(paths, ["/k", "/s/a", "/s/both"]);
        let good = judge(&needs, &[]);
        assert!(good.ok && good.remedy.is_none() && good.found.contains("all 3"), "{good:?}");
        let bad = judge(&needs, &["/s/both".into(), "/k".into(), "/nobody/asked".into()]);
        assert!(!bad.ok && bad.remedy.is_some());
        assert_eq!(bad.found, "2 of 3 are missing: /k (of c); /s/both (of a, b)");
        assert!(judge(&Needs::new(), &[]).ok);
    }
}
