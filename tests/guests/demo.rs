//! The demo, from outside: what it says is compared with what can be seen, and nothing is left.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{eventually, kvm};

/// A demo in a temporary directory of its own.
fn demo(place: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migrate"));
    command.arg("demo").args(words).env("TMPDIR", place).env_remove("MIGRATE_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn last_document(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_else(|| panic!("no document: {said}"));
    serde_json::from_str(last).unwrap()
}

/// Processes that know of a directory by their environment or arguments.
fn processes_of(place: &Path) -> Vec<String> {
    let name = place.to_str().unwrap();
    let about = |pid: &str, file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| {
            let all = [about(pid, "environ"), about(pid, "cmdline")].concat();
            String::from_utf8_lossy(&all).contains(name)
        })
        .collect()
}

fn assert_nothing_left(place: &Path) {
    assert_eq!(fs::read_dir(place).unwrap().count(), 0, "files are left");
    eventually("all processes are gone", || processes_of(place).is_empty().then_some(()));
}

#[test]
fn a_guest_is_moved_and_nothing_is_left() {
    if !kvm() {
        return;
    }
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let output = demo(place.path(), &["--json", "--memory", "64M"]).output().unwrap();
    let proof = last_document(&output);
    assert_eq!(output.status.code(), Some(0), "{proof}");
    assert_eq!((&proof["type"], &proof["ok"]), (&"result".into(), &true.into()), "{proof}");
    assert!(proof["verified_pages"].as_u64().unwrap() > 8192, "{proof}");
    assert!(proof["blackout_ms"].as_f64().unwrap() > 0.0, "{proof}");
    assert_eq!(proof["report"]["outcome"], "moved");
    assert_nothing_left(place.path());
}

#[test]
fn a_kept_demo_is_two_hosts_that_can_be_used_and_removed() {
    if !kvm() {
        return;
    }
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let output = demo(place.path(), &["--json", "--keep", "--memory", "64M"]).output().unwrap();
    let proof = last_document(&output);
    assert_eq!(output.status.code(), Some(0), "{proof}");
    let base = Path::new(proof["kept"].as_str().unwrap()).to_owned();
    let back = Command::new(env!("CARGO_BIN_EXE_migrate"))
        .args(["guest1", "--to", "alpha", "--max-downtime", "5s", "--json"])
        .env("MIGRATE_HOME", base.join("beta"))
        .output()
        .unwrap();
    assert_eq!(last_document(&back)["outcome"], "moved");
    let removed = demo(place.path(), &["--remove", base.to_str().unwrap()]).output().unwrap();
    assert_eq!(removed.status.code(), Some(0));
    assert_nothing_left(place.path());
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    if !kvm() {
        return;
    }
    for (after_ms, with) in [(50, Signal::SIGINT), (1000, Signal::SIGTERM), (2500, Signal::SIGINT)]
    {
        let place = tempfile::tempdir_in("/tmp").unwrap();
        let child = demo(place.path(), &["--memory", "64M", "--json"]).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        // Wherever it is by then: there is no moment at which something may be left.
        std::thread::sleep(Duration::from_millis(after_ms));
        kill(pid, with).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 130)), "{output:?}");
        if output.status.code() == Some(130) {
            // Nothing more is said, and what to do next is.
            let said = last_document(&output);
            let error = (&said["error"]["code"], &said["error"]["remedy"]);
            assert_eq!(error, (&"interrupted".into(), &"run it again: migrate demo".into()));
        }
        assert_nothing_left(place.path());
    }
}
