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
    refused(&site.b.tries("web1", "alpha", &[]), 4, "unknown-host", &["alpha"]);
    assert_stays(&site.b);
    // The removed one is not let in, neither with a guest nor to look.
    site.a.scribbler("web2", "ws=4M", &SMALL);
    refused(&site.a.tries("web2", "beta", &[]), 4, "host-refused", &["beta"]);
    site.a.assert_runs("web2").verify_clean(1024);
    assert_eq!(site.b.home.done(&["ls"])["guests"].as_array().unwrap().len(), 1);
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

    // A disk of this host alone.
    let image = a.file_text("disk.img");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    site.a.scribbler("local", "ws=4M", &["--memory", "32M", "--disk", &image]);
    let (exit, code, message) = why(&site.a.tries("local", "beta", &[]));
    assert_eq!((exit, code.as_str()), (Some(4), "local-disk"), "{message}");
    assert!(message.contains(&image), "{message}");
    // The dry run says it in the same words.
    let problems = planned(&site.a, "local")["problems"].clone();
    let problem = problems.as_array().unwrap().iter().find(|p| p["code"] == "local-disk").unwrap();
    assert_eq!(problem["message"], message.as_str());
    a.done(&["stop", "local", "--kill"]);

    assert_eq!(planned(&site.a, "web1")["possible"], true);
    site.b.assert_empty();
    assert_stays(&site.a);
}

/// The plan of a move to beta.
#[track_caller]
fn planned(host: &Host, guest: &str) -> Value {
    let ran = host.home.json(&["move", guest, "--to", "beta", "--dry-run"]);
    let plan = last(&ran)["plans"][0].clone();
    assert_eq!(plan["guest"], guest, "{ran:?}");
    plan
}

#[test]
fn two_guests_that_come_together_cannot_share_the_last_of_the_room() {
    if !kvm() {
        return;
    }
    let site = Site::with("[limits]\nmemory = \"96M\"\nvcpus = 3\nguests = 2\n");
    let kind = "ws=8M,data=24M,rate=500,hb=5ms,poll=5ms";
    let memory = ["--memory", "64M", "--cpus", "2"];
    site.a.scribbler("web1", kind, &memory);
    site.a.scribbler("web2", kind, &memory[..2]);
    site.a.scribbler("web3", "ws=4M", &[&SMALL[..], &["--cpus", "2"]].concat());
    site.a.scribbler("web4", "ws=4M", &SMALL);
    site.a.scribbler("web5", "ws=4M", &["--memory", "16M"]);
    let words = ["--bandwidth", "8MB", "--max-downtime", "5s"];
    let id = site.a.begin("web1", &site.b, &words);
    site.a.until_copying(&id);
    // The first is on its way, and has all that it will need.
    let memory = ["96 MiB of memory", "0 run there and 1 arrive", "32 MiB are left", "has 64 MiB"];
    refused(&site.a.tries("web2", "beta", &[]), 4, "no-room", &memory);
    let cpus = ["3 vCPUs", "1 vCPUs are left", "has 2"];
    refused(&site.a.tries("web3", "beta", &[]), 4, "no-room", &cpus);
    assert_eq!(planned(&site.a, "web2")["problems"][0]["code"], "no-room");
    site.a.moves("web4", &site.b);
    refused(&site.a.tries("web5", "beta", &[]), 4, "no-room", &["takes 2 guests"]);
    assert_eq!(site.a.until_ended(&id)["outcome"], "moved");
    // It counts as one that is there now, and gives way when it is gone.
    refused(&site.a.tries("web5", "beta", &[]), 4, "no-room", &["2 run there and 0 arrive"]);
    site.b.home.done(&["stop", "web1", "--kill"]);
    site.a.moves("web5", &site.b);
    for (host, guest, pages) in [(&site.b, "web4", 1024), (&site.a, "web2", (24 + 8) * 256)] {
        host.assert_runs(guest).verify_clean(pages);
    }
}

#[test]
fn of_two_guests_that_come_at_once_one_is_refused() {
    if !kvm() {
        return;
    }
    let site = Site::with("[limits]\nmemory = \"96M\"\n");
    let kind = "ws=8M,data=24M,rate=500,hb=5ms,poll=5ms";
    let words = ["--bandwidth", "16MB", "--max-downtime", "5s"];
    let guests = ["web1", "web2"];
    for guest in guests {
        site.a.scribbler(guest, kind, &["--memory", "64M"]);
    }
    let ids = guests.map(|guest| site.a.begin(guest, &site.b, &words));
    let reports = ids.map(|id| site.a.until_ended(&id));
    let kept: Vec<&Value> = reports.iter().filter(|r| r["outcome"] == "kept").collect();
    let moved: Vec<&Value> = reports.iter().filter(|r| r["outcome"] == "moved").collect();
    assert_eq!((kept.len(), moved.len()), (1, 1), "{reports:?}");
    assert_eq!(kept[0]["error"]["code"], "no-room");
    for (host, report) in [(&site.a, kept[0]), (&site.b, moved[0])] {
        let guest = report["guest"].as_str().unwrap();
        host.assert_runs(guest).verify_clean((24 + 8) * 256);
        assert_eq!(host.home.done(&["ls"])["guests"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn what_the_destination_has_not_is_named_before_anything_is_sent() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let (a, kernel) = (&site.a.home, site.a.home.file_text("kernel"));
    fs::write(&kernel, vmm::scribbler::elf()).unwrap();
    let image = a.file_text("disk.img");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let disk = format!("{image},shared");
    let words = ["run", "web1", "--memory", "32M", "--disk", &disk, "--kernel", &kernel];
    a.done(&[&words[..], &["--cmdline", "ws=4M"]].concat());
    // The two hosts have their files in common: what is gone is gone at both, and the source has
    // it open.
    for (path, what) in [(&kernel, "kernel"), (&image, "shared disk")] {
        let away = format!("{path}.away");
        fs::rename(path, &away).unwrap();
        let ran = site.a.tries("web1", "beta", &[]);
        refused(&ran, 4, "incompatible", &[path.as_str(), what]);
        assert!(last(&ran)["frame_bytes"].as_u64().unwrap_or(0) == 0, "{ran:?}");
        site.b.assert_empty();
        fs::rename(&away, path).unwrap();
    }
    // All that is missing is named at once, and a look between the hosts finds it too.
    let paths = |ok: bool| {
        let checked = last(&a.json(&["host", "check", "beta"]));
        let lines = checked["lines"].as_array().unwrap();
        let line = lines.iter().find(|l| l["what"] == "guests' files there").unwrap().clone();
        assert_eq!(line["ok"], ok, "{checked}");
        line
    };
    paths(true);
    let away = [&kernel, &image].map(|path| (path, format!("{path}.away")));
    for (path, away) in &away {
        fs::rename(path, away).unwrap();
    }
    refused(&site.a.tries("web1", "beta", &[]), 4, "incompatible", &[&kernel, &image]);
    assert!(planned(&site.a, "web1")["problems"][0]["message"].as_str().unwrap().contains(&image));
    let line = paths(false);
    for part in [&kernel, &image, "of web1"] {
        assert!(line["found"].as_str().unwrap().contains(part), "{line}");
    }
    assert!(line["remedy"].is_string(), "{line}");
    for (path, away) in &away {
        fs::rename(away, path).unwrap();
    }
    assert_eq!(a.done(&["show", "web1"])["state"], "running");
    a.done(&["stop", "web1", "--kill"]);
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
