//! Every path to a running guest goes through one gate.

use std::fs;
use std::time::{Duration, Instant};

use migrate_engine::handover::journal::Record;
use nix::sys::signal::Signal;
use serde_json::Value;
use uuid::Uuid;

use crate::rig::{define, dies_after, error, highest, offer, reboot, record};
use crate::site::Site;
use crate::support::{eventually, kvm};

/// Everything that a user can say to have a guest run here. `file` was saved before.
fn every_start<'a>(toml: &'a str, file: &'a str) -> [Vec<&'a str>; 4] {
    [
        vec!["start", "web1"],
        vec!["run", "--file", toml],
        vec!["run", "other", "--file", toml],
        vec!["load", file],
    ]
}

/// A guest that starts with its host has run on the first one and was saved: its identity, its
/// definition and the file.
fn saved(site: &Site) -> (Uuid, String, String) {
    let guest = define(&site.a.home, "web1", "autostart = true\n");
    let toml = site.a.home.dirs().definition("web1").to_str().unwrap().to_owned();
    let file = site.a.home.file_text("state");
    site.a.home.done(&["start", "web1"]);
    site.a.assert_runs("web1");
    site.a.home.done(&["save", "web1", "--to", &file]);
    (guest, toml, file)
}

#[test]
fn a_guest_that_was_moved_starts_nowhere_but_there_until_it_comes_back() {
    if !kvm() {
        return;
    }
    let mut site = Site::new();
    let (guest, toml, file) = saved(&site);
    site.a.home.done(&["load", &file]);
    site.a.moves("web1", &site.b);
    site.a.assert_empty();
    site.b.assert_runs("web1").verify_clean(1024);

    let refused = |site: &Site| {
        for words in every_start(&toml, &file) {
            let error = error(&site.a.home, &words);
            let message = error["message"].as_str().unwrap();
            assert_eq!(error["code"], "moved-away", "{words:?}: {error}");
            assert!(message.contains("moved to beta"), "{words:?}: {message}");
        }
        error(&site.a.home, &["resume", "web1"]);
        site.a.assert_empty();
    };
    refused(&site);
    // Also when its host has booted, and wants to start it by itself.
    reboot(&mut site.a);
    eventually("it was tried", || site.a.log().contains("not started").then_some(()));
    assert!(site.a.log().contains("moved to beta"), "{}", site.a.log());
    refused(&site);
    // Also when it has ended there.
    site.b.home.done(&["stop", "web1"]);
    refused(&site);
    // It starts there, under its own definition; then it comes back, and is as good as ever.
    let on_b = define(&site.b.home, "web1", "");
    let text = fs::read_to_string(site.b.home.dirs().definition("web1")).unwrap();
    let text = text.replace(&on_b.to_string(), &guest.to_string());
    fs::write(site.b.home.dirs().definition("web1"), text).unwrap();
    site.b.home.done(&["start", "web1"]);
    site.b.assert_runs("web1");
    site.b.moves("web1", &site.a);
    site.a.assert_runs("web1");
    let before = highest(&site.a, guest);
    assert_eq!(error(&site.b.home, &["start", "web1"])["code"], "moved-away");
    // A reboot of its host now starts it.
    reboot(&mut site.a);
    site.a.assert_runs("web1");
    assert!(highest(&site.a, guest) > before);
    // And the old file is of another life.
    site.a.home.done(&["stop", "web1"]);
    assert_eq!(error(&site.a.home, &["load", &file])["code"], "superseded");
}

#[test]
fn a_clone_is_another_guest_whatever_became_of_the_first() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let first = site.a.scribbler("web1", "ws=4M", &["--memory", "32M"]);
    let file = site.a.home.file_text("state");
    site.a.home.done(&["save", "web1", "--to", &file]);
    site.a.home.done(&["load", &file]);
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1");
    let clone = site.a.home.done(&["load", &file, "--as", "web2"]);
    assert_ne!(clone["uuid"], first["uuid"]);
    let of = |guest: &Value| guest["definition"]["nets"].clone();
    assert_eq!(of(&clone).as_array().map(Vec::len), of(&first).as_array().map(Vec::len));
    // It has a life of its own, moves included.
    site.a.assert_runs("web2").verify_clean(1024);
    site.a.moves("web2", &site.b);
    site.b.assert_runs("web2").verify_clean(1024);
    site.b.assert_runs("web1").verify_clean(1024);
}

#[test]
fn a_guest_in_doubt_starts_by_no_path_and_settles_when_the_other_host_is_back() {
    if !kvm() {
        return;
    }
    let mut site = Site::new();
    let (guest, toml, file) = saved(&site);
    // Its host dies when it has offered the guest, and the other host is gone, too.
    site.b.end_daemon(Signal::SIGKILL);
    site.a.end_daemon(Signal::SIGKILL);
    let switch = offer(&site.a, &site.b, guest);
    dies_after(&site.a, guest, "beta", &[Record::Offered(switch)]);
    reboot(&mut site.a);
    let refused = || {
        for words in every_start(&toml, &file) {
            let error = error(&site.a.home, &words);
            assert_eq!(error["code"], "in-doubt", "{words:?}: {error}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("here or on beta is not settled"), "{words:?}: {message}");
        }
    };
    refused();
    eventually("it was tried", || site.a.log().contains("not started yet").then_some(()));
    std::thread::sleep(Duration::from_secs(3));
    refused();
    assert_eq!(record(&site.a, guest), Record::Offered(switch));
    // It knows nothing of the guest, so that is this host's; and starts, as it should have.
    site.b.start_daemon();
    let back = Instant::now();
    eventually("it settles", || {
        matches!(record(&site.a, guest), Record::Owner { .. }).then_some(())
    });
    eprintln!("settled {} ms after the other host was back", back.elapsed().as_millis());
    site.a.assert_runs("web1");
    assert!(highest(&site.a, guest) > switch.term.get());
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1");
}
