//! A user of the group `kvm`, who is not root: the whole life of a guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::{Console, Home, NOBODY, Namespace, kvm, names_in, pid_of, run};

/// A group that stands for `kvm`.
const GROUP: u32 = 64_242;

/// Runs commands as that user, in an instance that is theirs.
struct User {
    home: Home,
    namespace: Namespace,
}

impl User {
    fn new() -> Option<Self> {
        let namespace = Namespace::new()?
            .with_kvm_node("10 232", &format!("root:{GROUP}"), "660")
            .for_nobody(&[GROUP]);
        let home = Home::new();
        chown(home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        chown(home.file("").as_path(), Some(NOBODY), Some(NOBODY)).unwrap();
        // The build may lie where others may not look.
        fs::copy(env!("CARGO_BIN_EXE_migrate"), home.path().join("migrate")).unwrap();
        Some(Self { home, namespace })
    }

    fn command(&self, words: &[&str]) -> Command {
        self.namespace.command(&self.home, self.home.path().join("migrate"), words)
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> serde_json::Value {
        run(self.command(words).arg("--json")).done()
    }
}

#[test]
fn a_user_of_the_group_runs_saves_loads_and_stops() {
    if !kvm() {
        return;
    }
    let Some(user) = User::new() else { return };
    let disk = user.home.file_text("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    chown(&disk, Some(NOBODY), Some(NOBODY)).unwrap();
    let guest = [
        "run",
        "a",
        "--guest",
        "scribbler:ws=4M",
        "--memory",
        "32M",
        "--cpus",
        "2",
        "--disk",
        &disk,
        "--wait-for",
        "console:SCRIBBLER-READY",
    ];
    let info = user.done(&guest);
    let process = format!("/proc/{}", pid_of(&info));
    assert_eq!(fs::metadata(&process).unwrap().uid(), NOBODY);
    let status = fs::read_to_string(Path::new(&process).join("status")).unwrap();
    assert!(status.lines().any(|l| l == "Seccomp:\t2"), "{status}");
    assert_eq!(user.done(&["ls"])["guests"][0]["uuid"], info["uuid"]);
    assert_eq!(user.done(&["pause", "a"])["state"], "paused");
    assert_eq!(user.done(&["resume", "a"])["state"], "running");
    assert_eq!(user.done(&["reset", "a"])["resets"], 1);
    let mut console = user.home.console("a");
    // Keys that are pressed while it boots are lost.
    console.until("it has booted again", |c| {
        (c.text().matches("SCRIBBLER-READY").count() > 1).then_some(())
    });
    console.verify_clean(1024);
    drop(console);
    let file = user.home.file_text("a.save");
    user.done(&["save", "a", "--to", &file]);
    user.home.assert_no_guest();
    assert_eq!(fs::metadata(&file).unwrap().uid(), NOBODY);
    assert_eq!(user.done(&["load", &file])["term"], 2);
    user.home.console("a").verify_clean(1024);
    assert_eq!(user.done(&["stop", "a"])["how"], "powered-off");
    user.home.assert_no_guest();
    let rm =
        ["run", "a", "--rm", "--duration", "1s", "--guest", "scribbler:ws=4M", "--memory", "32M"];
    let ran = run(user.command(&rm).arg("--json"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    user.home.assert_no_guest();
}

#[test]
fn a_user_has_guests_below_their_home() {
    if !kvm() {
        return;
    }
    let Some(user) = User::new() else { return };
    let command = |words: &[&str]| {
        let mut command = user.command(words);
        command.env("HOME", user.home.path()).env_remove("XDG_RUNTIME_DIR");
        command.env_remove("XDG_STATE_HOME").env_remove("XDG_CONFIG_HOME").arg("--user");
        run(command.arg("--json")).done()
    };
    let guest = ["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"];
    let info = command(&guest);
    let state = user.home.path().join(".local/state/migrate");
    let socket = state.join("run/guests/a/console.sock");
    assert_eq!(info["console"], json!(socket));
    Console::connect(&socket).verify_clean(1024);
    command(&["stop", "a"]);
    assert_eq!(command(&["ls"])["guests"], json!([]));
    assert_eq!(names_in(&state.join("run/guests")), [""; 0]);
}

#[test]
fn another_users_guest_is_out_of_reach() {
    if !kvm() {
        return;
    }
    let Some(user) = User::new() else { return };
    // Root's guest, in an instance of which the user knows the path.
    let root = Home::new();
    root.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    for words in [&["show", "a"][..], &["stop", "a", "--kill"], &["ls"]] {
        let mut command = user.command(words);
        let ran = run(command.env("MIGRATE_HOME", root.path()).arg("--json"));
        ran.refused("file", &[]);
    }
    assert_eq!(root.done(&["show", "a"])["state"], "running");
    root.done(&["stop", "a"]);
    root.assert_no_guest();
    user.home.assert_no_guest();
}
