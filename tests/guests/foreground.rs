//! `run --rm`: nothing of the guest outlives the command, however it ends.

use std::io::Read;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Home, PATIENCE, eventually, is_gone, kvm, names_in, pid_of, wait_gone};

const GUEST: [&str; 5] = ["--rm", "--guest", "scribbler:ws=4M", "--memory", "32M"];

fn foreground(home: &Home, more: &[&str]) -> Child {
    home.spawn(&[&["run", "a", "--json"], &GUEST[..], more].concat())
}

/// Waits until the guest is there; answers its process.
fn guest_of(home: &Home) -> i32 {
    eventually("the guest is there", || {
        let shown = home.json(&["show", "a"]);
        (shown.code == Some(0) && shown.json()["state"] == "running").then(|| pid_of(&shown.json()))
    })
}

/// Waits for the end of a command; answers its exit code and its documents.
fn end_of(mut child: Child) -> (Option<i32>, Vec<Value>) {
    let status = eventually("the command ends", || child.try_wait().unwrap());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let documents = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (status.code(), documents)
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_time_is_given_and_memory_is_verified() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let run = home.json(&[&["run", "a"], &GUEST[..], &["--duration", "1s"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    let documents: Vec<Value> =
        run.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(documents.len(), 2, "{run:?}");
    assert_eq!((&documents[0]["type"], &documents[0]["name"]), (&json!("started"), &json!("a")));
    let wanted = json!({"schema": 1, "type": "result", "name": "a", "how": "powered-off",
                        "interrupted": false, "verified": true});
    assert_eq!(documents[1], wanted);
    home.assert_no_guest();
}

#[test]
fn a_guest_that_is_not_ready_in_time_verifies_when_it_is() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let run = home.json(&[&["run", "a"], &GUEST[..], &["--duration", "1ms"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    let last: Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&last["verified"], &last["how"]), (&json!(true), &json!("powered-off")));
    home.assert_no_guest();
}

#[test]
fn a_guest_with_a_wrong_page_fails_the_command() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let guest = ["--rm", "--guest", "scribbler:ws=4M,rate=1,poison=700", "--memory", "32M"];
    let run = home.text(&[&["run", "a", "--duration", "1s"], &guest[..]].concat());
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("Memory is wrong"), "{run:?}");
    home.assert_no_guest();
}

#[test]
fn an_interrupt_ends_the_guest_in_order() {
    if !kvm() {
        return;
    }
    for ask in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let home = Home::new();
        let child = foreground(&home, &[]);
        let guest = guest_of(&home);
        home.console("a").until_text("SCRIBBLER-READY");
        signal(&child, ask);
        let (code, documents) = end_of(child);
        let last = documents.last().unwrap();
        assert_eq!((code, &last["interrupted"]), (Some(130), &json!(true)), "{ask}: {last}");
        assert_eq!(last["how"], "powered-off");
        wait_gone(guest);
        home.assert_no_guest();
    }
}

#[test]
fn a_killed_caller_takes_everything_with_it() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let disk = home.file("disk");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let mut child = foreground(&home, &["--disk", disk.to_str().unwrap()]);
    let guest = guest_of(&home);
    signal(&child, Signal::SIGKILL);
    let killed = std::time::Instant::now();
    child.wait().unwrap();
    // Promised within 5 s; a starved host gets what every test here gets.
    let limit = PATIENCE.min(std::time::Duration::from_secs(5 * 4));
    while !is_gone(guest) || !names_in(&home.dirs().guests()).is_empty() {
        assert!(killed.elapsed() < limit, "still there after {limit:?}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // Nobody holds its memory, its sockets, its disk or its locks.
    home.assert_no_guest();
    let again = home.done(&[
        "run",
        "a",
        "--guest",
        "scribbler:ws=4M",
        "--memory",
        "32M",
        "--disk",
        disk.to_str().unwrap(),
    ]);
    assert_eq!(again["state"], "running");
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn a_guest_that_ends_ends_the_command() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let child = foreground(&home, &["--wait-for", "console:SCRIBBLER-READY"]);
    guest_of(&home);
    let mut console = home.console("a");
    console.until_text("SCRIBBLER-READY");
    console.press(b"q");
    let (code, documents) = end_of(child);
    let last = documents.last().unwrap();
    assert_eq!((code, &last["how"]), (Some(0), &json!("powered-off")), "{last}");
    home.assert_no_guest();

    // Its process is killed: the command says so and fails.
    let child = foreground(&home, &[]);
    kill(Pid::from_raw(guest_of(&home)), Signal::SIGKILL).unwrap();
    let (code, documents) = end_of(child);
    let error = &documents.last().unwrap()["error"];
    assert_eq!((code, &error["code"]), (Some(1), &json!("unexpected")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("died"), "{error}");
    home.assert_no_guest();

    let late =
        home.json(&[&["run", "a"], &GUEST[..], &["--wait-for", "console:never said,1s"]].concat());
    assert_eq!(late.code, Some(5), "{late:?}");
    home.assert_no_guest();
}
