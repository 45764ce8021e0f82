//! What a guest's process may do and what it holds, seen from outside. What it cannot do any more
//! is tried from inside in `src/guest/confine/tests.rs`.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Home, descriptors, eventually, kvm, pid_of, run};

/// A field of `/proc/PID/status`, of the process or of one of its threads.
fn status(path: &Path, field: &str) -> String {
    let text = fs::read_to_string(path.join("status")).unwrap();
    let line = text.lines().find(|l| l.starts_with(&format!("{field}:"))).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[track_caller]
fn assert_confined(pid: i32) {
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().path();
        threads += 1;
        for (field, wanted) in [
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("CapEff", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
        ] {
            let name = status(&thread, "Name");
            assert_eq!(status(&thread, field), wanted, "{field} of {name}");
        }
    }
    assert!(threads > 2, "all threads were looked at");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let cores = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().nth(4), Some("0"), "guest memory in a core file");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("SECRET"), "{environment}");
}

/// Every descriptor is one that a guest with these devices needs.
#[track_caller]
fn assert_only_needed(home: &Home, info: &Value, disks: &[&str]) {
    let (name, pid) = (info["name"].as_str().unwrap(), pid_of(info));
    let uuid = info["uuid"].as_str().unwrap().parse().unwrap();
    let dirs = home.dirs();
    let journal = dirs.journal(&uuid);
    let paths = dirs.guest(name);
    let tracking = dirs.tracking(&uuid);
    let files = [
        paths.lock(),
        paths.console_log(),
        paths.console_log_previous(),
        dirs.guest_log(name),
        journal.join("lock"),
        journal,
    ];
    let (mut sockets, mut logs) = (0, 0);
    // The pipe of the answer to its launcher is closed just after the launcher has read it.
    let settled = eventually("the answer's pipe is closed", || {
        let all = descriptors(pid);
        let open = |p: &std::path::PathBuf| p.to_string_lossy().starts_with("pipe:[");
        if all.iter().any(open) { None } else { Some(all) }
    });
    for path in settled {
        let text = path.to_str().unwrap().to_owned();
        sockets += usize::from(text.starts_with("socket:["));
        logs += usize::from(path == dirs.guest_log(name));
        let known = files.contains(&path)
            || disks.contains(&text.as_str())
            || path.starts_with(&tracking)
            || text == "/dev/null"
            || text == "/dev/kvm"
            || text == "/dev/urandom"
            || text == "/memfd:guest-ram (deleted)"
            || text.starts_with("socket:[")
            || ["kvm-vm", "kvm-vcpu:", "[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]"]
                .iter()
                .any(|kind| text.starts_with(&format!("anon_inode:{kind}")));
        assert!(known, "a descriptor leads to {text}");
    }
    assert_eq!(logs, 1, "standard error is its log");
    // API, descriptors, console, and two pairs of the runtime's own; no client is connected.
    assert!(sockets <= 8, "{:?}", descriptors(pid));
}

#[test]
fn a_guest_process_is_confined_and_holds_only_what_it_needs() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let disk = home.file_text("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let words = [
        "run",
        "a",
        "--json",
        "--guest",
        "scribbler:ws=4M",
        "--memory",
        "32M",
        "--cpus",
        "2",
        "--disk",
        &disk,
    ];
    // The caller has files, sockets and secrets that it leaves open.
    let planted = home.file_text("planted");
    fs::write(&planted, "secret").unwrap();
    let listener = home.path().join("listener");
    let _listener = UnixListener::bind(&listener).unwrap();
    let script = "exec 7<\"$PLANTED\" 8>&1 9</etc/hostname; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_migrate")]).args(words);
    home.surround(&mut command);
    let info = run(command.env("PLANTED", &planted).env("SECRET", "x")).done();

    assert_confined(pid_of(&info));
    assert_only_needed(&home, &info, &[&disk]);
    // Used and reset, it gains nothing.
    home.console("a").verify_clean(1024);
    home.done(&["reset", "a"]);
    assert_only_needed(&home, &info, &[&disk]);

    // Neither does a loaded one, nor is the file of a save kept.
    let file = home.file_text("a.save");
    home.done(&["save", "a", "--to", &file]);
    let loaded = home.done(&["load", &file]);
    home.console("a").verify_clean(1024);
    assert_confined(pid_of(&loaded));
    assert_only_needed(&home, &loaded, &[&disk]);
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn a_guest_process_is_apart_from_its_callers_session() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let info = home.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    let pid = pid_of(&info);
    let of = |pid: i32| nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
    assert_eq!(of(pid).as_raw(), pid, "a session of its own");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_death() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let script = "ulimit -f 1000; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_migrate")]);
    command.args(["run", "a", "--json", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    home.surround(&mut command);
    // The memory of a guest is a file, too.
    run(&mut command).refused("no-memory", &["33554432 bytes", "File too large"]);
    home.assert_untouched();
}

#[test]
fn a_log_that_cannot_be_written_costs_nothing() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    home.dirs().prepare().unwrap();
    std::os::unix::fs::symlink("/dev/full", home.dirs().guest_log("a")).unwrap();
    home.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    home.console("a").until_text("SCRIBBLER-READY");
    // Each of these writes a line to the log.
    home.json(&["save", "a", "--to", "/proc/no"]);
    home.done(&["reset", "a"]);
    home.console("a").verify_clean(1024);
    assert_eq!(home.done(&["stop", "a"])["how"], "powered-off");
    home.assert_no_guest();
    let late = home.json(&[
        "run",
        "a",
        "--guest",
        "scribbler:ws=4M",
        "--memory",
        "32M",
        "--disk",
        "/nonexistent",
    ]);
    late.refused("bad-disk", &["/nonexistent"]);
}

#[test]
fn output_that_goes_nowhere_is_no_defect() {
    let home = Home::new();
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    for words in [
        &["ls"][..],
        &["ls", "--json"],
        &["show", "a", "--json"],
        &["run", "--json"],
        &["--nonsense", "--json"],
        &["--help"],
        &["help", "files"],
    ] {
        let mut child = home.command(words).stdout(full()).stderr(full()).spawn().unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_some_and(|code| code < 100), "{words:?}: {status}");
    }
    home.assert_untouched();
}
