//! Moves that must not begin: the cause is named, the guest runs on, and nothing is at the other
//! host.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Host, Site, join, last};
use crate::support::{Ran, kvm, wait_gone};

const SMALL: [&str; 2] = ["--memory", "32M"];

/// What was said of a refused move: its exit code, the code, the message. It has a remedy.
#[track_caller]
fn why(ran: &Ran) -> (Option<i32>, String, String) {
    let last = last(ran);
    let error = &last["error"];
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    assert!(!text("remedy").is_empty(), "no remedy: {ran:?}");
    (ran.code, text("code"), text("message"))
}

#[track_caller]
fn refused(ran: &Ran, exit: i32, code: &str, parts: &[&str]) {
    let (got, name, message) = why(ran);
    assert_eq!((got, name.as_str()), (Some(exit), code), "{ran:?}");
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

/// The guest is where it was, undisturbed.
#[track_caller]
fn assert_stays(host: &Host) {
    host.assert_runs("web1").verify_clean(1024);
}

#[test]
fn hosts_that_cannot_be_moved_to() {
    if !kvm() {
        return;
    }
    let mut site = Site::new();
    site.a.scribbler("web1", "ws=4M", &SMALL);
    refused(&site.a.tries("web1", "gamma", &[]), 4, "unknown-host", &["gamma"]);
    refused(&site.a.tries("web1", "alpha", &[]), 2, "usage", &["alpha"]);
    refused(&site.a.tries("web2", "beta", &[]), 7, "not-found", &["web2"]);
    site.b.end_daemon(Signal::SIGTERM);
    refused(&site.a.tries("web1", "beta", &[]), 8, "unreachable", &["beta"]);
    site.b.start_daemon();
    site.b.assert_empty();
    assert_stays(&site.a);
    // What was wrong is over, and forgotten.
    site.a.moves("web1", &site.b);
    assert_stays(&site.b);
    site.a.assert_empty();

    site.b.home.done(&["host", "remove", "alpha"]);
    let (exit, code, message) = why(&site.b.tries("web1", "alpha", &[]));
    assert_eq!(exit, Some(4), "{code}: {message}");
    assert!(["unknown-host", "host-refused"].contains(&code.as_str()), "{code}: {message}");
    assert_stays(&site.b);
}

#[test]
fn a_host_of_another_site_in_the_place_of_one() {
    if !kvm() {
        return;
    }
    let mut site = Site::new();
    site.a.scribbler("web1", "ws=4M", &SMALL);
    // Another one with the same name listens where beta did.
    let mut stranger = Host::new("beta");
    let config = stranger.home.dirs().config.join("host.toml");
    fs::copy(site.b.home.dirs().config.join("host.toml"), config).unwrap();
    stranger.home.done(&["host", "init", "--name", "beta"]);
    site.b.end_daemon(Signal::SIGTERM);
    stranger.start_daemon();
    refused(&site.a.tries("web1", "beta", &[]), 4, "host-refused", &["beta"]);
    stranger.assert_empty();
    assert_stays(&site.a);
}

#[test]
fn guests_that_cannot_come() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let (a, b) = (&site.a.home, &site.b.home);
    site.a.scribbler("web1", "ws=4M", &SMALL);

    // The name is taken there.
    let other = site.b.scribbler("web1", "ws=4M", &SMALL);
    refused(&site.a.tries("web1", "beta", &[]), 4, "name-taken", &["web1"]);
    assert_eq!(b.done(&["show", "web1"])["uuid"], other["uuid"]);
    b.done(&["stop", "web1", "--kill"]);
    site.b.assert_empty();

    // More memory than this machine can have: it is promised, not used.
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).unwrap();
    let kib: u64 = total.trim().trim_end_matches(" kB").parse().unwrap();
    let memory = format!("{}M", (kib >> 10) + 1024);
    let large = a.json(&["run", "large", "--guest", "scribbler:ws=4M", "--memory", &memory]);
    if large.code == Some(0) {
        refused(&site.a.tries("large", "beta", &[]), 4, "no-room", &["memory", "MiB"]);
        a.done(&["stop", "large", "--kill"]);
    } else {
        // Where memory is not promised beyond what there is, it cannot run here either.
        assert_eq!(large.json()["error"]["code"], "no-memory", "{large:?}");
    }

    // A disk of this host alone.
    let image = a.file_text("disk.img");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    site.a.scribbler("local", "ws=4M", &["--memory", "32M", "--disk", &image]);
    let (exit, code, message) = why(&site.a.tries("local", "beta", &[]));
    assert_eq!((exit, code.as_str()), (Some(4), "writable-disk"), "{message}");
    assert!(message.contains(&image), "{message}");
    a.done(&["stop", "local", "--kill"]);

    // The dry run names the same.
    site.a.home.done(&["show", "web1"]);
    let plan = a.json(&["move", "web1", "--to", "beta", "--dry-run"]);
    let plan: Value = serde_json::from_str(plan.stdout.lines().last().unwrap()).unwrap();
    assert!(plan.to_string().contains("\"possible\":true"), "{plan}");
    site.b.assert_empty();
    assert_stays(&site.a);
}

#[test]
fn a_guest_in_the_foreground_stays_with_its_caller() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let words = ["run", "web1", "--rm", "--guest", "scribbler:ws=4M", "--memory", "32M"];
    let mut child = site.a.home.spawn(&words);
    assert_stays(&site.a);
    let (exit, code, message) = why(&site.a.tries("web1", "beta", &[]));
    assert_eq!(exit, Some(4), "{code}: {message}");
    assert!(message.contains("--rm"), "{message}");
    site.b.assert_empty();
    assert_stays(&site.a);
    let pid = crate::support::pid_of(&site.a.home.done(&["show", "web1"]));
    crate::site::signal(crate::site::id_of(&child), Signal::SIGKILL);
    child.wait().unwrap();
    wait_gone(pid);
}

#[test]
fn a_third_host_that_joins_can_be_moved_to() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    site.a.scribbler("web1", "ws=4M", &SMALL);
    let mut third = Host::new("gamma");
    join(&site.a, &third);
    third.start_daemon();
    site.a.moves("web1", &third);
    assert_stays(&third);
    site.a.assert_empty();
}
