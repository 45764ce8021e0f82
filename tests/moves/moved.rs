//! Moves that succeed: the guest is there with all it had, and nothing of it is here.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::site::Site;
use crate::support::{Console, kvm, pid_of, wait_gone};

/// A guest that writes all the time, on two vCPUs.
const WRITER: &str = "ws=16M,data=8M,rate=2000,hb=5ms,poll=5ms";
const TWO: [&str; 4] = ["--memory", "64M", "--cpus", "2"];
/// Pages of its working set and of its data.
const PAGES: u64 = (16 + 8) * 256;

/// The status lines of a scribbler begin with its time, which must go on and never go back.
fn times(console: &Console) -> Vec<u64> {
    let text = console.text();
    let field = text.lines().filter_map(|l| l.strip_prefix("S t="));
    field.filter_map(|l| l.split_whitespace().next()?.parse().ok()).collect()
}

#[test]
fn a_guest_goes_to_and_fro_and_keeps_all_it_has() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let first = site.a.scribbler("web1", WRITER, &TWO);
    let mut before = pid_of(&first);
    let (mut here, mut there) = (&site.a, &site.b);
    for round in 0..10 {
        here.moves("web1", there);
        let mut console = there.assert_runs("web1");
        console.verify_clean(PAGES);
        let times = times(&console);
        assert!(times.is_sorted(), "time went back: {times:?}");
        wait_gone(before);
        here.assert_empty();
        let info = there.home.done(&["show", "web1"]);
        assert_eq!((&info["uuid"], &info["cpus"]), (&first["uuid"], &json!(2)), "round {round}");
        assert_eq!(info["state"], "running");
        before = pid_of(&info);
        (here, there) = (there, here);
    }
}

#[test]
fn a_guest_that_was_moved_cannot_be_started_where_it_was() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let home = &site.a.home;
    let guests = home.dirs().config.join("guests");
    fs::create_dir_all(&guests).unwrap();
    let text = "memory = \"32M\"\nguest = \"scribbler:ws=4M\"\n";
    fs::write(guests.join("web1.toml"), text).unwrap();
    let started = home.done(&["start", "web1"]);
    site.a.assert_runs("web1");
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1").verify_clean(1024);
    site.a.assert_empty();

    home.json(&["start", "web1"]).refused("moved-away", &["moved", "beta"]);
    // It is stopped there, and still not ours.
    site.b.home.done(&["stop", "web1"]);
    site.b.assert_empty();
    home.json(&["start", "web1"]).refused("moved-away", &["beta"]);
    site.a.assert_empty();
    let ended = home.done(&["ls", "-a"]);
    let mine = |v: &Value| v["uuid"] == started["uuid"];
    let ended = ended["ended"].as_array().unwrap().iter().find(|v| mine(v)).unwrap();
    assert_eq!(ended["how"], "moved");
}

#[test]
fn a_saved_state_is_not_loaded_once_the_guest_was_moved() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let (a, file) = (&site.a.home, site.a.home.file_text("state"));
    site.a.scribbler("web1", "ws=4M", &["--memory", "32M"]);
    a.done(&["save", "web1", "--to", &file]);
    a.done(&["load", &file]);
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1");
    let refused = a.json(&["load", &file]);
    let error = refused.json()["error"].clone();
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(["moved-away", "superseded"].contains(&error["code"].as_str().unwrap()), "{error}");
    site.a.assert_empty();
    site.b.assert_runs("web1").verify_clean(1024);
}

#[test]
fn a_paused_guest_arrives_paused() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    site.a.scribbler("web1", WRITER, &TWO);
    site.a.home.done(&["pause", "web1"]);
    site.a.moves("web1", &site.b);
    site.a.assert_empty();
    let info = site.b.home.done(&["show", "web1"]);
    assert_eq!(info["state"], "paused");
    let mut console = site.b.home.console("web1");
    console.until_silent(Duration::from_millis(300));
    let beats = console.beats();
    assert!(!console.listen(Duration::from_secs(1)), "it beats: {}", console.beats() - beats);
    site.b.home.done(&["resume", "web1"]);
    console.until_beats(20);
    console.verify_clean(PAGES);
}
