//! What dies in the middle of a move, or is told to stop. In the end there is one guest, which has
//! all its memory, or none if the process that had the memory died; and nothing else is left.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Site, id_of, last, quiet, signal};
use crate::slow::{KIND, MEMORY, PAGES, SLOW, receiver};
use crate::support::{eventually, kvm, pid_of, run, wait_gone};

/// Two hosts, and a guest on its way from the first to the second.
fn under_way() -> (Site, String, i32) {
    let site = Site::new();
    let guest = site.a.scribbler("web1", KIND, &MEMORY);
    let id = site.a.begin("web1", &site.b, &SLOW);
    site.a.until_copying(&id);
    (site, id, pid_of(&guest))
}

/// The guest is where it was, whole, and nothing of it is at the other host; and it can be moved.
#[track_caller]
fn assert_kept_and_movable(site: &Site) {
    site.b.assert_empty();
    site.a.assert_runs("web1").verify_clean(PAGES);
    site.a.moves("web1", &site.b);
    assert_moved(site);
}

#[track_caller]
fn assert_moved(site: &Site) {
    site.a.assert_empty();
    site.b.assert_runs("web1").verify_clean(PAGES);
}

#[test]
fn the_receiver_is_killed() {
    if !kvm() {
        return;
    }
    let (site, id, _) = under_way();
    signal(receiver(&site), Signal::SIGKILL);
    let report = site.a.until_ended(&id);
    assert_eq!(report["outcome"], "kept");
    // Not because its link was silent for long enough: its daemon knew.
    assert_cause(&report, "the receiving process on beta died");
    assert_kept_and_movable(&site);
}

#[track_caller]
fn assert_cause(report: &Value, cause: &str) {
    let message = report["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains(cause), "'{cause}' is not in: {report}");
}

#[test]
fn the_daemon_of_the_destination_is_killed() {
    if !kvm() {
        return;
    }
    let (mut site, id, _) = under_way();
    site.b.end_daemon(Signal::SIGKILL);
    // The processes need no daemon: the guest is there before one is again.
    assert_eq!(site.a.until_ended(&id)["outcome"], "moved");
    site.b.start_daemon();
    assert_moved(&site);
    assert_eq!(site.b.until_ended(&id)["outcome"], "moved");
}

#[test]
fn the_daemon_of_the_destination_is_killed_and_the_receiver_with_it() {
    if !kvm() {
        return;
    }
    let (mut site, id, _) = under_way();
    let receiver = receiver(&site);
    site.b.end_daemon(Signal::SIGKILL);
    signal(receiver, Signal::SIGKILL);
    wait_gone(receiver);
    // The next one finds what was on record, and says so.
    site.b.start_daemon();
    let report = site.a.until_ended(&id);
    assert_eq!(report["outcome"], "kept");
    assert_cause(&report, "the receiving process on beta died");
    assert_kept_and_movable(&site);
}

#[test]
fn the_daemon_of_the_source_is_killed_and_the_move_goes_on() {
    if !kvm() {
        return;
    }
    let (mut site, id, pid) = under_way();
    let known = |report: &Value| {
        let known = |field: &str| report[field].clone();
        [known("started"), known("options"), known("from"), known("to")]
    };
    let before = site.a.home.done(&["report", &id]);
    assert_eq!(before["options"]["bandwidth_bytes_per_s"], 8_000_000);
    site.a.end_daemon(Signal::SIGKILL);
    site.a.start_daemon();
    let again = site.a.until_report(&id, "it is followed", |r| r["phase"] == "copying");
    assert_eq!(known(&again)[..2], known(&before)[..2]);
    let after = site.a.until_ended(&id);
    assert_eq!(after["outcome"], "moved");
    assert_eq!(known(&after)[..2], known(&before)[..2]);
    let phases: Vec<&str> =
        after["phases"].as_array().unwrap().iter().filter_map(|p| p[0].as_str()).collect();
    for phase in ["preparing", "copying", "stopped"] {
        assert!(phases.contains(&phase), "{phases:?}");
    }
    assert!(after["total_ms"].as_f64() > after["phases"][1][1].as_f64(), "{after}");
    wait_gone(pid);
    assert_moved(&site);
    let history = site.a.home.done(&["history"]);
    assert_eq!(history["moves"][0]["move_id"], id.as_str(), "{history}");
}

#[test]
fn the_guest_process_is_killed() {
    if !kvm() {
        return;
    }
    let (site, id, pid) = under_way();
    signal(pid, Signal::SIGKILL);
    assert_eq!(site.a.until_ended(&id)["outcome"], "kept");
    // Its memory is gone, and nobody pretends otherwise.
    let there = site.b.until_ended(&id);
    assert_eq!(there["outcome"], "kept");
    site.b.assert_empty();
    eventually("the guest is not shown", || {
        site.a.home.done(&["ls"])["guests"].as_array().unwrap().is_empty().then_some(())
    });
    site.a.assert_empty();
}

#[test]
fn it_is_cancelled() {
    if !kvm() {
        return;
    }
    let (site, id, _) = under_way();
    let ran = site.a.home.json(&["cancel", "web1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(site.a.until_ended(&id)["outcome"], "kept");
    assert_kept_and_movable(&site);
}

#[test]
fn the_guest_is_stopped() {
    if !kvm() {
        return;
    }
    let (site, id, pid) = under_way();
    let ran = site.a.home.json(&["stop", "web1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(site.a.until_ended(&id)["outcome"], "kept");
    wait_gone(pid);
    site.a.assert_empty();
    site.b.assert_empty();
}

#[test]
fn the_guest_is_reset() {
    if !kvm() {
        return;
    }
    let (site, id, _) = under_way();
    let mut console = site.a.home.console("web1");
    let _ = site.a.home.json(&["reset", "web1"]);
    // Keys that are pressed while it boots are lost.
    console.until("it has booted again", |c| {
        (c.text().matches("SCRIBBLER-READY").count() > 1).then_some(())
    });
    // There was much left to copy: the guest that would have arrived is not there any more.
    let report = site.a.until_ended(&id);
    assert_eq!(report["outcome"], "kept", "{report}");
    assert_cause(&report, "reset");
    assert_kept_and_movable(&site);
}

#[test]
fn it_is_cancelled_before_the_other_host_has_answered() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let kind = "ws=8M,data=24M,rate=500,hb=5ms,poll=5ms";
    site.a.scribbler("web1", kind, &["--memory", "64M", "--cpus", "2"]);
    // Its daemon is asked, and is not heard.
    let there = site.b.daemon_pid();
    signal(there, Signal::SIGSTOP);
    let id = site.a.begin("web1", &site.b, &SLOW);
    site.a.until_report(&id, "it is prepared", |r| r["phase"] == "preparing");
    let ran = site.a.home.json(&["cancel", "web1"]);
    let report = site.a.until_ended(&id);
    signal(there, Signal::SIGCONT);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let why = (&report["outcome"], &report["error"]["code"]);
    assert_eq!(why, (&"kept".into(), &"cancelled".into()), "{report}");
    assert_kept_and_movable(&site);
}

#[test]
fn a_move_to_here_is_watched_here() {
    if !kvm() {
        return;
    }
    let (mut site, id, _) = under_way();
    let there = site.b.until_report(&id, "it copies", |r| r["phase"] == "copying");
    let here = site.a.home.done(&["report", &id]);
    for field in ["started", "options", "uuid"] {
        assert_eq!(there[field], here[field], "{field}");
    }
    site.b.end_daemon(Signal::SIGKILL);
    site.b.start_daemon();
    let ran = run(site.b.home.command(&["watch", "web1", "--json"]).stdin(Stdio::null()));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let result = last(&ran);
    assert_eq!((&result["type"], &result["outcome"]), (&"result".into(), &"moved".into()));
    assert!(ran.stdout.contains("\"copying\""), "{ran:?}");
    assert_moved(&site);
}

#[test]
fn ctrl_c_cancels_and_a_killed_command_does_not() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let kind = "ws=8M,data=24M,rate=500,hb=5ms,poll=5ms";
    site.a.scribbler("web1", kind, &["--memory", "64M", "--cpus", "2"]);
    let words = [&["move", "web1", "--to", "beta", "--json"], &SLOW[..]].concat();

    let child = site.a.home.spawn(&words);
    receiver(&site);
    signal(id_of(&child), Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    site.b.assert_empty();
    site.a.assert_runs("web1").verify_clean(PAGES);

    let mut child = quiet(&mut site.a.home.command(&words)).spawn().unwrap();
    receiver(&site);
    signal(id_of(&child), Signal::SIGKILL);
    child.wait().unwrap();
    assert_moved(&site);
}

#[test]
fn a_guest_that_is_moved_is_busy() {
    if !kvm() {
        return;
    }
    let (site, id, _) = under_way();
    let second = site.a.tries("web1", "beta", &[]);
    assert_eq!(second.code, Some(4), "{second:?}");
    let error = last(&second)["error"].clone();
    assert_eq!((&error["code"], &error["retryable"]), (&"busy".into(), &true.into()));
    assert!(error["message"].as_str().unwrap().contains(&id), "{error}");
    assert_eq!(site.a.home.json(&["cancel", "web1"]).code, Some(0));
    assert_kept_and_movable(&site);
}
