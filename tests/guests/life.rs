//! From `run` to `stop`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Home, kvm, pid_of, wait_gone};

/// Heartbeats are 10 ms apart: a second without one is silence.
const SILENCE: Duration = Duration::from_secs(1);

#[test]
fn a_guest_is_run_shown_and_stopped() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let guest = ["run", "web-1.a", "--guest", "scribbler:ws=4M", "--memory", "32M", "--cpus", "2"];
    let run = home.done(&guest);
    let pid = pid_of(&run);
    for (field, wanted) in [
        ("schema", json!(1)),
        ("name", json!("web-1.a")),
        ("state", json!("running")),
        ("term", json!(1)),
        ("memory_bytes", json!(32 << 20)),
        ("cpus", json!(2)),
        ("cpu_template", json!("host")),
        ("cpu_share_percent", json!(100)),
        ("resets", json!(0)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("console", json!(home.dirs().guest("web-1.a").console())),
    ] {
        assert_eq!(run[field], wanted, "{field}");
    }
    assert!(run.get("loaded_pause_ms").is_none() && run.get("crash").is_none(), "{run}");
    let fields = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let shown = home.done(&["show", "web-1.a"]);
    assert_eq!(fields(&shown), fields(&run));
    assert_eq!((&shown["uuid"], pid_of(&shown)), (&run["uuid"], pid));
    let list = home.done(&["ls"]);
    assert_eq!(fields(&list), ["guests", "schema"]);
    assert_eq!(list["guests"][0]["uuid"], run["uuid"]);

    let page = home.text(&["show", "web-1.a"]);
    for line in ["state      running", "cpus       2 (template host)", "memory     32M, "] {
        assert!(page.stdout.contains(line), "{page:?}");
    }
    let table = home.text(&["ls"]);
    assert!(table.stdout.lines().any(|l| l.starts_with("web-1.a  running")), "{table:?}");

    assert_private(&home.dirs().guest("web-1.a").dir);
    assert_eq!(home.done(&["stop", "web-1.a"])["how"], "powered-off");
    wait_gone(pid);
    home.assert_no_guest();

    assert_eq!(home.done(&["ls"])["guests"], json!([]));
    let ended = home.done(&["ls", "-a"])["ended"][0].clone();
    assert_eq!((&ended["uuid"], &ended["how"]), (&run["uuid"], &json!("powered-off")));
    let gone = home.json(&["pause", "web-1.a"]);
    assert_eq!((gone.code, &gone.json()["error"]["code"]), (Some(7), &json!("not-found")));
    assert_eq!(gone.json()["error"]["guest_state"], "stopped");
}

/// Nobody else may reach a guest.
fn assert_private(dir: &Path) {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir), 0o700);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
}

#[test]
fn a_paused_guest_is_silent_until_it_is_resumed() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    home.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    let mut console = home.console("a");
    console.until_text("SCRIBBLER-READY");
    console.until_beats(20);

    assert_eq!(home.done(&["pause", "a"])["state"], "paused");
    console.until_silent(Duration::from_millis(300));
    let cpu = home.done(&["show", "a"])["cpu_ms"].clone();
    assert!(!console.listen(SILENCE), "{}", console.text());
    let now = home.done(&["show", "a"]);
    assert_eq!(now["state"], "paused");
    // All its threads wait; its API costs a little.
    assert!(now["cpu_ms"].as_u64().unwrap() < cpu.as_u64().unwrap() + 100, "{cpu} {now}");
    assert_eq!(home.done(&["pause", "a"])["state"], "paused", "done already");

    assert_eq!(home.done(&["resume", "a"])["state"], "running");
    console.until_beats(20);
    assert_eq!(home.done(&["resume", "a"])["state"], "running", "done already");
    console.verify_clean(1024);
    let killed = home.done(&["stop", "a", "--kill"]);
    assert_eq!((&killed["how"], &killed["already_stopped"]), (&json!("killed"), &json!(false)));
    let again = home.done(&["stop", "a"]);
    assert_eq!(again["already_stopped"], true, "{again}");
    console.until("the end", |c| c.closed().then_some(()));
    home.assert_no_guest();
}

#[test]
fn a_reset_guest_keeps_identity_and_console() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let run = home.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    let mut console = home.console("a");
    console.until_text("SCRIBBLER-READY");
    let reset = home.done(&["reset", "a"]);
    assert_eq!((&reset["resets"], &reset["state"]), (&json!(1), &json!("running")));
    for same in ["uuid", "term", "pid", "started"] {
        assert_eq!(reset[same], run[same], "{same}");
    }
    // The same connection hears the guest start again.
    let starts = |text: &str| text.matches("SCRIBBLER-READY").count();
    console.until("a second start", |c| (starts(&c.text()) == 2).then_some(()));
    console.verify_clean(1024);

    home.done(&["pause", "a"]);
    let paused = home.done(&["reset", "a"]);
    assert_eq!((&paused["resets"], &paused["state"]), (&json!(2), &json!("paused")));
    home.done(&["resume", "a"]);
    console.until("a third start", |c| (starts(&c.text()) == 3).then_some(()));
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn a_throttled_guest_does_less() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    home.done(&["run", "a", "--guest", "scribbler:ws=4M,rate=max", "--memory", "32M"]);
    home.console("a").until_text("SCRIBBLER-READY");
    assert_eq!(home.done(&["throttle", "a", "10"])["cpu_share_percent"], 10);
    // A tenth of the time that passes, and the cost of being throttled; a loaded host only
    // takes more away.
    let cpu = || home.done(&["show", "a"])["cpu_ms"].as_u64().unwrap();
    let (before, start) = (cpu(), std::time::Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let (used, time) = (cpu() - before, start.elapsed().as_millis());
    assert!(u128::from(used) * 3 < time, "{used} ms of {time}");
    assert_eq!(home.done(&["throttle", "a", "100"])["cpu_share_percent"], 100);
    home.console("a").verify_clean(1024);
    let bad = home.json(&["throttle", "a", "0"]);
    assert_eq!(bad.code, Some(2));
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}

#[test]
fn run_waits_for_what_the_guest_says() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let scribbler = ["--guest", "scribbler:ws=4M", "--memory", "32M"];
    let with = |more: &[&'static str]| [&["run"], more, &scribbler].concat();
    let run = home.done(&with(&["a", "--wait-for", "console:SCRIBBLER-READY,60s"]));
    assert!(home.console("a").listen(Duration::from_secs(10)), "{run}");
    let late = home.json(&with(&["b", "--wait-for", "console:never said,1s"]));
    let error = late.json()["error"].clone();
    assert_eq!((late.code, &error["code"]), (Some(5), &json!("timeout")));
    assert_eq!(error["guest_state"], "running", "it is said where the guest is");
    assert_eq!(home.done(&["show", "b"])["state"], "running");

    let paused = home.done(&with(&["c", "--paused"]));
    assert_eq!(paused["state"], "paused");
    let mut console = home.console("c");
    assert!(!console.listen(SILENCE), "{}", console.text());
    home.done(&["resume", "c"]);
    console.until_text("SCRIBBLER-READY");
    for name in ["a", "b", "c"] {
        home.done(&["stop", name]);
    }
    home.assert_no_guest();
}

#[test]
fn a_persistent_guest_keeps_its_identity() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let definitions = home.path().join("config/guests");
    fs::create_dir_all(&definitions).unwrap();
    let text = "memory = '32M'\nguest = 'scribbler:ws=4M'\ncpus = 2\n";
    fs::write(definitions.join("web.toml"), text).unwrap();
    let first = home.done(&["start", "web"]);
    assert_eq!((&first["cpus"], &first["term"]), (&json!(2), &json!(1)));
    assert_eq!(home.done(&["start", "web"])["pid"], first["pid"], "done already");
    home.done(&["stop", "web"]);
    let second = home.done(&["start", "web"]);
    assert_eq!((&second["uuid"], &second["term"]), (&first["uuid"], &json!(2)));
    home.done(&["stop", "web"]);
    assert_eq!(home.done(&["rm", "web"])["records"], 2);
    assert_eq!(home.done(&["ls", "-a"])["ended"], json!([]));

    // A file and flags: the flags win.
    let file = definitions.join("web.toml");
    let file = file.to_str().unwrap();
    let run = home.done(&["run", "other", "--file", file, "--cpus", "1"]);
    assert_eq!((&run["cpus"], &run["memory_bytes"]), (&json!(1), &json!(32 << 20)));
    home.done(&["stop", "other"]);
    home.assert_no_guest();
}

#[test]
fn a_guest_with_every_kind_of_device_continues() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let disk = home.file("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let toml = home.file_text("a.toml");
    let text = "guest = 'scribbler:ws=4M'\nmemory = '32M'\nrng = true\nvsock_cid = 7\n\
                virtio_console = true\n[[disk]]\npath = 'disk'\n";
    fs::write(&toml, text).unwrap();
    for acpi in [&["--no-acpi"][..], &[]] {
        let run = home.done(&[&["run", "a", "--file", &toml], acpi].concat());
        assert_eq!(run["definition"]["disks"][0]["path"], json!(disk));
        let paths = home.dirs().guest("a");
        assert!(paths.vsock().exists() && paths.hvc().exists());
        home.console("a").verify_clean(1024);
        let file = home.file_text("a.save");
        home.done(&["save", "a", "--to", &file]);
        home.assert_no_guest();
        let loaded = home.done(&["load", &file]);
        assert_eq!(loaded["definition"], run["definition"]);
        assert!(paths.vsock().exists() && paths.hvc().exists());
        home.console("a").verify_clean(1024);
        home.done(&["stop", "a", "--kill"]);
        home.assert_no_guest();
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn the_api_is_http_on_a_socket() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let run = home.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    let ask = |request: &str| {
        let mut api = UnixStream::connect(home.dirs().guest("a").api()).unwrap();
        write!(api, "{request}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        api.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str::<Value>(body).unwrap_or_default())
    };
    let (status, info) = ask("GET /v1/guest HTTP/1.1");
    assert_eq!((status, &info["uuid"]), (200, &run["uuid"]));
    assert_eq!(ask("POST /v1/pause HTTP/1.1").1["state"], "paused");
    assert_eq!(ask("POST /v1/resume HTTP/1.1").1["state"], "running");
    let (status, error) = ask("GET /v1/nonsense HTTP/1.1");
    assert!((400..500).contains(&status), "{status} {error}");
    let (status, _) = ask("PUT /v1/throttle HTTP/1.1\r\nContent-Length: 5");
    assert!((400..500).contains(&status), "{status}");
    // Nothing of it harms the guest.
    let mut garbage = UnixStream::connect(home.dirs().guest("a").api()).unwrap();
    let _ = garbage.write_all(&vec![0xff; 100_000]);
    drop(garbage);
    let mut garbage = UnixStream::connect(home.dirs().guest("a").fd()).unwrap();
    let _ = garbage.write_all(&vec![0xff; 100_000]);
    drop(garbage);
    home.console("a").verify_clean(1024);
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}
