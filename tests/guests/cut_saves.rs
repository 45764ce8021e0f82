//! Saves in which somebody is killed: the guest is never lost, and never in two places.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Home, eventually, kvm, names_in, pid_of, wait_gone};

const PAGES: u64 = 16_384;

fn run(home: &Home) -> Value {
    let guest = ["run", "a", "--guest", "scribbler:ws=64M,rate=max", "--memory", "128M"];
    let info = home.done(&guest);
    home.console("a").until_text("SCRIBBLER-READY");
    info
}

/// From "too early" to "too late".
const MOMENTS: [u64; 7] = [0, 5, 20, 60, 150, 400, 1000];

#[test]
fn the_command_is_killed() {
    if !kvm() {
        return;
    }
    for moment in MOMENTS {
        let home = Home::new();
        run(&home);
        let (file, partial) = (home.file_text("a.save"), home.file_text("a.save.partial"));
        let mut save = home.spawn(&["save", "a", "--to", &file]);
        thread::sleep(Duration::from_millis(moment));
        save.kill().unwrap();
        save.wait().unwrap();
        // The guest goes on with what it was asked, or never heard of it.
        let runs = eventually("the save ends", || {
            // In between, its process may not answer.
            let shown = home.json(&["show", "a"]).json();
            match (shown["state"].as_str(), shown["how"].as_str()) {
                (Some("running"), _) => Some(true),
                (_, Some("saved")) => Some(false),
                _ => None,
            }
        });
        eprintln!("killed after {moment} ms: the guest {}", if runs { "runs" } else { "is saved" });
        if !runs {
            home.assert_no_guest();
            let complete = if Path::new(&file).exists() { &file } else { &partial };
            home.done(&["load", complete]);
        }
        home.console("a").verify_clean(PAGES);
        home.done(&["stop", "a"]);
        home.assert_no_guest();
    }
}

#[test]
fn the_guests_process_is_killed() {
    if !kvm() {
        return;
    }
    for moment in MOMENTS {
        let home = Home::new();
        let info = run(&home);
        let file = home.file_text("a.save");
        let save = home.spawn(&["save", "a", "--to", &file, "--json"]);
        thread::sleep(Duration::from_millis(moment));
        let _ = kill(Pid::from_raw(pid_of(&info)), Signal::SIGKILL);
        let output = save.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let files = names_in(home.file("").as_path());
        // A file with its name is a whole one; without it nothing is left and the command failed.
        if output.status.success() {
            assert_eq!(files, ["a.save"], "{said}");
        } else {
            assert!(files.len() <= 1, "{files:?} {said}");
            assert!(said.contains(r#""remedy":""#), "{said}");
        }
        // A process that is still dying holds its lock, and nobody clears up after it.
        wait_gone(pid_of(&info));
        home.done(&["ls"]);
        eprintln!("killed after {moment} ms: {files:?} {said}");
        home.assert_no_guest();
        if let Some(name) = files.first() {
            assert_eq!(name, "a.save", "{said}");
            home.done(&["load", &file]);
            home.console("a").verify_clean(PAGES);
            home.done(&["stop", "a"]);
        }
        fs::remove_dir_all(home.file("")).unwrap();
        home.assert_no_guest();
    }
}
