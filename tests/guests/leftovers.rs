//! After `kill -9` of a guest's process.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Home, eventually, kvm, pid_of, wait_gone};

fn run_with_disk(home: &Home) -> Value {
    let disk = home.file_text("disk");
    if fs::metadata(&disk).is_err() {
        fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    }
    home.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M", "--disk", &disk])
}

fn kill_process_of(info: &Value) {
    let pid = pid_of(info);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_gone(pid);
}

#[test]
fn a_killed_guest_is_seen_recorded_and_cleared_up() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let run = run_with_disk(&home);
    // The log follows the console at a small distance.
    let log = home.dirs().guest("a").console_log();
    eventually("the log has the guest's words", || {
        fs::read_to_string(&log).ok().filter(|text| text.contains("SCRIBBLER-READY"))
    });
    kill_process_of(&run);

    let list = home.done(&["ls"]);
    assert_eq!(list["guests"], json!([{"name": "a", "state": "gone"}]));
    home.assert_no_guest();
    let record = home.done(&["show", "a"]);
    assert_eq!((&record["how"], &record["uuid"]), (&json!("died"), &run["uuid"]));
    let uuid = run["uuid"].as_str().unwrap().parse().unwrap();
    let log = fs::read_to_string(home.dirs().exit_console(&uuid, 1)).unwrap();
    assert!(log.contains("SCRIBBLER-READY"), "{log}");
    assert_eq!(home.done(&["ls"])["guests"], json!([]));

    // Name, disk and everything else are free.
    let again = run_with_disk(&home);
    assert_ne!(again["uuid"], run["uuid"]);
    home.console("a").verify_clean(1024);

    // Also without anybody having looked.
    kill_process_of(&again);
    let third = run_with_disk(&home);
    assert_eq!(home.done(&["ls", "-a"])["ended"].as_array().unwrap().len(), 2);
    kill_process_of(&third);
    let stopped = home.done(&["stop", "a"]);
    assert_eq!((&stopped["how"], &stopped["already_stopped"]), (&json!("died"), &json!(true)));
    home.assert_no_guest();
}

#[test]
fn a_loaded_guest_that_was_killed_can_be_loaded_again() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    home.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    home.console("a").until_text("SCRIBBLER-READY");
    let file = home.file_text("a.save");
    home.done(&["save", "a", "--to", &file]);
    let loaded = home.done(&["load", &file]);
    kill_process_of(&loaded);
    let again = home.done(&["load", &file]);
    assert_eq!((&again["uuid"], &again["term"]), (&loaded["uuid"], &json!(3)));
    home.console("a").verify_clean(1024);
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn a_guest_that_is_told_to_end_by_its_host_does_as_defined() {
    if !kvm() {
        return;
    }
    for (on_host_stop, how) in [("shutdown", "powered-off"), ("kill", "killed"), ("save", "saved")]
    {
        let home = Home::new();
        let file = home.file_text("a.toml");
        let text =
            format!("guest = 'scribbler:ws=4M'\nmemory = '32M'\non_host_stop = '{on_host_stop}'\n");
        fs::write(&file, text).unwrap();
        let run = home.done(&["run", "a", "--file", &file]);
        home.console("a").until_text("SCRIBBLER-READY");
        kill(Pid::from_raw(pid_of(&run)), Signal::SIGTERM).unwrap();
        wait_gone(pid_of(&run));
        home.assert_no_guest();
        assert_eq!(home.done(&["show", "a"])["how"], how);
        if how == "saved" {
            let saved = home.dirs().saves().join("a.state");
            home.done(&["load", saved.to_str().unwrap()]);
            home.console("a").verify_clean(1024);
            home.done(&["stop", "a"]);
            home.assert_no_guest();
        }
    }
}
