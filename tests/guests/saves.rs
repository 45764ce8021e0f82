//! `save` and `load`: a guest continues exactly, and never twice from two pasts.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::{Home, kvm, names_in, pid_of, wait_gone};

const PAGES: u64 = 2048;
/// A byte in the last of a disk's blocks, which is always looked at.
const SAMPLED: u64 = (1 << 20) - 7;

/// A scribbler that writes all it can on two CPUs, past its start.
fn run(home: &Home, name: &str, more: &[&str]) -> Value {
    let guest = ["--guest", "scribbler:ws=8M,rate=max", "--memory", "32M", "--cpus", "2"];
    let info = home.done(&[&["run", name], &guest[..], more].concat());
    home.console(name).until_text("SCRIBBLER-READY");
    info
}

fn disk(home: &Home, name: &str) -> String {
    let path = home.file_text(name);
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    // Long ago, so that any change of the file changes its time.
    file.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
    path
}

#[test]
fn a_saved_guest_continues_in_another_process() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let run = run(&home, "a", &[]);
    home.console("a").until_beats(10);
    let file = home.file_text("a.save");
    let mut before = run.clone();
    for _ in 0..3 {
        let saved = home.done(&["save", "a", "--to", &file]);
        let length = fs::metadata(&file).unwrap().len();
        assert_eq!((&saved["file_bytes"], &saved["running"]), (&json!(length), &json!(false)));
        assert!(saved["memory_bytes"].as_u64().unwrap() >= PAGES * 4096, "{saved}");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        home.assert_no_guest();
        wait_gone(pid_of(&before));
        assert_eq!(home.done(&["show", "a"])["how"], "saved");

        let loaded = home.done(&["load", &file]);
        assert_ne!(loaded["pid"], before["pid"]);
        assert_eq!(loaded["uuid"], run["uuid"]);
        assert_eq!(loaded["definition"], run["definition"]);
        assert_eq!(loaded["term"].as_u64(), before["term"].as_u64().map(|t| t + 1));
        assert!(loaded["loaded_pause_ms"].is_u64(), "{loaded}");
        home.console("a").until_beats(10);
        fs::remove_file(&file).unwrap();
        before = loaded;
    }
    let mut console = home.console("a");
    console.verify_clean(PAGES);
    // It did not start anew, and its clock never went back.
    assert!(!console.text().contains("SCRIBBLER-READY"), "{}", console.text());
    console.press(b"s");
    console.until_text(" clk_back=0 regs=0 ");
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn a_paused_guest_is_saved_and_left_paused_if_asked() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    run(&home, "a", &[]);
    home.done(&["pause", "a"]);
    let file = home.file_text("a.save");
    home.done(&["save", "a", "--to", &file]);
    assert_eq!(home.done(&["load", &file, "--paused", "--clock", "freeze"])["state"], "paused");
    let mut console = home.console("a");
    assert!(!console.listen(Duration::from_secs(1)), "{}", console.text());
    home.done(&["resume", "a"]);
    console.until_beats(10);
    console.verify_clean(PAGES);
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn a_file_is_never_overwritten_and_a_place_must_exist() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    run(&home, "a", &[]);
    let file = home.file_text("mine");
    fs::write(&file, "mine").unwrap();
    home.json(&["save", "a", "--to", &file]).refused("file-exists", &[&file]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    let nowhere = home.file_text("missing/a.save");
    home.json(&["save", "a", "--to", &nowhere]).refused("file", &["missing"]);
    home.json(&["save", "a", "--to", "/proc/a.save"]).refused("file", &["/proc/a.save"]);
    assert_eq!(names_in(home.file("").as_path()), ["mine"]);
    let absent = home.json(&["save", "b", "--to", &home.file_text("b.save")]);
    assert_eq!(absent.code, Some(7));
    assert_eq!(names_in(home.file("").as_path()), ["mine"]);
    home.console("a").verify_clean(PAGES);
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn a_guest_may_run_on_only_without_writable_disks() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let (writable, read_only) = (disk(&home, "rw"), format!("{},ro", disk(&home, "ro")));
    run(&home, "w", &["--disk", &writable]);
    let file = home.file_text("w.save");
    home.json(&["save", "w", "--to", &file, "--keep-running"])
        .refused("writable-disk", &["writable disk"]);
    assert!(!Path::new(&file).exists() && !Path::new(&format!("{file}.partial")).exists());
    home.console("w").verify_clean(PAGES);
    home.done(&["save", "w", "--to", &file]);
    let clone = home.json(&["load", &file, "--as", "x"]);
    clone.refused("writable-disk", &[&writable]);
    home.assert_no_guest();
    home.done(&["load", &file]);
    home.console("w").verify_clean(PAGES);
    home.done(&["stop", "w"]);

    let run = run(&home, "r", &["--disk", &read_only]);
    let file = home.file_text("r.save");
    let kept = home.done(&["save", "r", "--to", &file, "--keep-running"]);
    assert_eq!(kept["running"], true);
    assert_eq!(home.done(&["show", "r"])["pid"], run["pid"]);
    home.json(&["load", &file]).refused("name-taken", &["'r'"]);
    // A clone has its own identity; both are whole.
    let clone = home.done(&["load", &file, "--as", "s"]);
    assert_ne!(clone["uuid"], run["uuid"]);
    assert_eq!((&clone["name"], &clone["definition"]["name"]), (&json!("s"), &json!("s")));
    let second = home.done(&["load", &file, "--as", "t"]);
    assert_ne!(second["uuid"], clone["uuid"]);
    home.json(&["load", &file, "--as", "s"]).refused("name-taken", &["'s'"]);
    for name in ["r", "s", "t"] {
        home.console(name).verify_clean(PAGES);
        home.done(&["stop", name]);
    }
    // It lived on after that save.
    home.json(&["load", &file]).refused("superseded", &["term 1", "'r'"]);
    home.assert_no_guest();
}

#[test]
fn a_guest_runs_only_once() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let run = run(&home, "a", &[]);
    let (first, second) = (home.file_text("1.save"), home.file_text("2.save"));
    home.done(&["save", "a", "--to", &first]);
    home.done(&["load", &first]);
    home.json(&["load", &first]).refused("name-taken", &["'a'"]);

    // The same identity under another name.
    let uuid = run["uuid"].as_str().unwrap();
    let toml = home.file_text("b.toml");
    fs::write(&toml, format!("uuid = '{uuid}'\nguest = 'scribbler:ws=4M'\nmemory = '32M'\n"))
        .unwrap();
    let error =
        home.json(&["run", "b", "--file", &toml]).refused("already-running", &[uuid, "'a'"]);
    assert_eq!(error["retryable"], false);
    assert_eq!(names_in(&home.dirs().guests()), ["a"]);

    home.done(&["save", "a", "--to", &second]);
    home.json(&["load", &first]).refused("superseded", &["term 1", "term 2"]);
    home.assert_no_guest();
    let loaded = home.done(&["load", &second]);
    assert_eq!(loaded["term"], 3);
    home.console("a").verify_clean(PAGES);
    home.done(&["stop", "a"]);

    // It ended without another save: from the same file once more, in a later term.
    assert_eq!(home.done(&["load", &second])["term"], 4);
    home.console("a").verify_clean(PAGES);
    home.done(&["stop", "a"]);
    home.json(&["load", &first]).refused("superseded", &["term 1"]);

    // A cold start of the same identity ends what the files know.
    home.done(&["run", "b", "--file", &toml]);
    home.done(&["stop", "b"]);
    home.json(&["load", &second]).refused("superseded", &["term 2", "'b'"]);
    home.assert_no_guest();
    // As a clone it may always continue.
    let clone = home.done(&["load", &first, "--as", "c"]);
    assert_eq!(clone["term"], 1);
    home.console("c").verify_clean(PAGES);
    home.done(&["stop", "c"]);
    home.assert_no_guest();
}

#[test]
fn a_disk_that_changed_is_noticed() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let path = disk(&home, "disk");
    let run = run(&home, "a", &["--disk", &path]);
    let file = home.file_text("a.save");
    home.done(&["save", "a", "--to", &file]);
    let touch = |time| fs::File::options().write(true).open(&path).unwrap().set_modified(time);
    let saved = fs::metadata(&path).unwrap().modified().unwrap();
    let refuse = |field: &str| {
        home.json(&["load", &file]).refused("disk-changed", &[&path, field]);
        home.assert_no_guest();
    };
    let open = || fs::File::options().write(true).open(&path).unwrap();

    open().write_all_at(b"x", SAMPLED).unwrap();
    refuse("modification time");
    // With the time put back: the content tells.
    touch(saved).unwrap();
    refuse("content");
    open().write_all_at(&[0], SAMPLED).unwrap();
    touch(saved + Duration::from_nanos(1)).unwrap();
    refuse("modification time");
    open().set_len((1 << 20) + 512).unwrap();
    touch(saved).unwrap();
    refuse("size");
    open().set_len(1 << 20).unwrap();
    touch(saved).unwrap();
    // A copy in its place, the original kept.
    let kept = home.file_text("kept");
    fs::rename(&path, &kept).unwrap();
    fs::copy(&kept, &path).unwrap();
    touch(saved).unwrap();
    refuse("file identity");
    fs::remove_file(&path).unwrap();
    home.json(&["load", &file]).refused("bad-disk", &[&path]);
    home.assert_no_guest();

    // None of it cost the guest anything.
    fs::rename(&kept, &path).unwrap();
    let loaded = home.done(&["load", &file]);
    assert_eq!((&loaded["uuid"], &loaded["term"]), (&run["uuid"], &json!(2)));
    home.console("a").verify_clean(PAGES);
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}
