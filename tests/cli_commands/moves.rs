//! The commands about moves and hosts, against a stand-in for the daemon.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::daemon::{Daemon, ID, Reply, begun, events, phase, report, result, round, wait_for};
use crate::{code, document, home, migrate, stderr, stdout};

fn lines(output: &std::process::Output) -> Vec<Value> {
    stdout(output).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn moved_events() -> Vec<Value> {
    vec![
        phase("preparing"),
        phase("copying"),
        round(0, 1 << 20),
        json!({"type": "words", "frame": "00"}),
        json!({"type": "a-kind-to-come", "x": 1}),
        json!({"type": "notice", "text": "a step is tried again"}),
        phase("stopped"),
        result(report(Some("moved"), None)),
    ]
}

fn error(code: &str) -> Value {
    json!({"code": code, "message": "what happened", "remedy": "what to do", "retryable": false})
}

/// A daemon whose moves go as `lines` say.
fn daemon(
    home: &std::path::Path,
    lines: impl Fn() -> Vec<Value> + Send + Sync + 'static,
) -> Daemon {
    Daemon::start(home, move |request| match request.split(' ').collect::<Vec<_>>()[..2] {
        ["POST", "/v1/moves"] => begun(),
        ["GET", path] if path.ends_with("/events") => events(lines()),
        ["GET", path] if path.starts_with("/v1/moves/") => {
            Reply::Say(200, report(Some("moved"), None))
        }
        ["GET", path] if path.starts_with("/v1/moves?guest=web1") => {
            Reply::Say(200, json!({"schema": 1, "moves": [report(Some("moved"), None)]}))
        }
        ["GET", path] if path.starts_with("/v1/moves?") => {
            Reply::Say(200, json!({"schema": 1, "moves": []}))
        }
        ["POST", path] if path.ends_with("/cancel") => {
            Reply::Say(200, json!({"schema": 1, "accepted": true}))
        }
        _ => Reply::Say(404, error("not-found")),
    })
}

#[test]
fn without_a_daemon_each_command_says_how_to_start_it() {
    let home = home();
    for words in [
        &["web1", "--to", "host2"][..],
        &["move", "web1", "--to", "host2"],
        &["--to", "host2", "--all"],
        &["watch"],
        &["cancel", "web1"],
        &["history"],
        &["report", "web1"],
        &["host", "ls"],
        &["host", "show"],
        &["host", "check", "host2"],
        &["host", "invite"],
        &["host", "remove", "host2"],
    ] {
        let output = migrate(home.path(), words);
        assert_eq!(code(&output), 8, "{words:?} {}", stderr(&output));
        let start = format!("MIGRATE_HOME={} migrate daemon", home.path().display());
        assert!(stderr(&output).contains(&start), "{words:?}: {}", stderr(&output));
        let json: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let output = migrate(home.path(), &json);
        assert_eq!(code(&output), 8);
        assert_eq!(lines(&output).pop().unwrap()["error"]["code"], "unreachable", "{words:?}");
    }
}

#[test]
fn a_move_is_shown_line_by_line_off_a_terminal() {
    let home = home();
    let daemon = daemon(home.path(), moved_events);
    let output = migrate(
        home.path(),
        &["web1", "--to", "host2", "--bandwidth", "1Gbit", "--max-downtime", "50ms", "--wait"],
    );
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "web1 runs on host2: moved in 2.50 s, 600M sent; it stood still for 38.2 ms (40.5 ms \
         predicted)\n"
    );
    let said = stderr(&output);
    let steps: Vec<&str> = said.lines().collect();
    assert_eq!(steps.len(), 5, "{said}");
    assert!(steps[2].starts_with("web1: round 0 done in 1.50 s: 1G of memory"), "{said}");
    assert_eq!(steps[3], "web1: a step is tried again");
    let requests = daemon.requests();
    let body = requests[0].strip_prefix("POST /v1/moves ").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        body,
        json!({"guest": "web1", "to": "host2", "wait": true, "options": {
            "max_downtime_ms": 50, "on_stall": "wait", "timeout_ms": 1_800_000,
            "bandwidth_bytes_per_s": 125_000_000}})
    );
    assert_eq!(requests[1], format!("GET /v1/moves/{ID}/events"));
    assert!(migrate(home.path(), &["--quiet", "web1", "--to", "host2"]).stderr.is_empty());
}

#[test]
fn json_is_a_line_for_each_event_and_ends_with_the_result() {
    let home = home();
    let _daemon = daemon(home.path(), moved_events);
    let output = migrate(home.path(), &["move", "web1", "--to", "host2", "--json"]);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    let lines = lines(&output);
    let kinds: Vec<&str> = lines.iter().map(|l| l["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["phase", "phase", "round", "notice", "phase", "result"]);
    assert!(lines.iter().all(|l| l["guest"] == "web1" && l["move_id"] == ID));
    assert_eq!(*lines.last().unwrap(), result(report(Some("moved"), None)), "golden");
}

#[test]
fn several_guests_end_with_a_summary() {
    let home = home();
    let number = AtomicUsize::new(0);
    let _daemon = Daemon::start(home.path(), move |request| {
        if request.starts_with("POST /v1/moves ") {
            return match number.fetch_add(1, Ordering::SeqCst) {
                1 => Reply::Say(409, error("busy")),
                _ => begun(),
            };
        }
        events(moved_events())
    });
    let words = ["move", "a", "b", "c", "--to", "host2", "--parallel", "1", "--json"];
    let output = migrate(home.path(), &words);
    assert_eq!(code(&output), 3);
    let lines = lines(&output);
    let results: Vec<&Value> = lines.iter().filter(|l| l["type"] == "guest-result").collect();
    assert_eq!(results.iter().map(|r| &r["guest"]).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(
        *lines.last().unwrap(),
        json!({"schema": 1, "type": "result", "moved": 2, "failed": 1, "guests": [
            {"guest": "a", "move_id": ID, "outcome": "moved", "exit_code": 0},
            {"guest": "b", "exit_code": 4, "error": error("busy")},
            {"guest": "c", "move_id": ID, "outcome": "moved", "exit_code": 0},
        ]})
    );
}

#[test]
fn each_outcome_has_its_exit_code_and_three_lines() {
    type Case =
        (Option<&'static str>, Option<&'static str>, &'static [&'static str], i32, &'static str);
    let cases: [Case; 6] = [
        (Some("kept"), Some("no-room"), &["preparing"], 4, "runs on host1, as before"),
        (Some("kept"), Some("unreachable"), &["preparing"], 8, "runs on host1, as before"),
        (Some("kept"), Some("unreachable"), &["preparing", "copying"], 5, "runs on host1"),
        (Some("kept"), Some("cancelled"), &["copying"], 5, "runs on host1, as before"),
        (Some("in-doubt"), Some("in-doubt"), &["copying"], 6, "runs nowhere, or on host2"),
        (Some("kept"), None, &["copying"], 5, "runs on host1"),
    ];
    for (outcome, why, phases, exit, place) in cases {
        let home = home();
        let mut end = report(outcome, why.map(error));
        end["phases"] = phases.iter().map(|p| json!([p, 1.0])).collect();
        let _daemon = daemon(home.path(), move || vec![phase("preparing"), result(end.clone())]);
        let output = migrate(home.path(), &["web1", "--to", "host2"]);
        assert_eq!((code(&output), stdout(&output)), (exit, String::new()), "{why:?} {phases:?}");
        let said = stderr(&output);
        let last: Vec<&str> = said.lines().skip(1).collect();
        assert_eq!(last.len(), 3, "{said}");
        assert!(last[0].starts_with("migrate: ") && last[0].contains("web1"), "{said}");
        assert!(last[1].starts_with(&format!("  guest: {place}")), "{said}");
        assert!(last[2].starts_with("  next:  ") && last[2].len() > 12, "{said}");
    }
}

#[test]
fn nobody_says_which_guests() {
    let home = home();
    let _daemon = daemon(home.path(), Vec::new);
    let output = migrate(home.path(), &["--to", "host2"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("name guests or give --all"), "{}", stderr(&output));
    let output = migrate(home.path(), &["a", "b", "c", "--to", "h", "--detach"]);
    assert_eq!(code(&output), 2);
    let output = migrate(home.path(), &["a", "--to", "h", "--detach", "--json"]);
    let begun = json!({"schema": 1, "type": "begun", "guest": "a", "move_id": ID});
    assert_eq!(document(&output), begun);
}

/// The command `words`, which is sent SIGINT when the daemon has seen a request that begins so.
fn interrupted(
    home: &std::path::Path,
    daemon: &Daemon,
    words: &[&str],
    when: &str,
) -> std::process::Output {
    let child = Command::new(env!("CARGO_BIN_EXE_migrate"))
        .args(words)
        .env("MIGRATE_HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    wait_for(when, || daemon.was_asked(when));
    // A lost terminal changes nothing.
    kill(pid, Signal::SIGHUP).unwrap();
    kill(pid, Signal::SIGINT).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn ctrl_c_cancels_and_waits_for_the_outcome() {
    for (accepted, outcome, says) in [
        (true, "kept", "is being cancelled; waiting for the outcome"),
        (false, "moved", "cannot be cancelled any more"),
    ] {
        let home = home();
        let asked = Arc::new(AtomicBool::new(false));
        let daemon = Daemon::start(home.path(), move |request| {
            if request.ends_with("/cancel") {
                asked.store(true, Ordering::SeqCst);
                return Reply::Say(200, json!({"schema": 1, "accepted": accepted}));
            }
            if request.starts_with("POST /v1/moves ") {
                return begun();
            }
            let (asked, mut step) = (asked.clone(), 0);
            Reply::Events(Box::new(move || {
                step += 1;
                match step {
                    1 => Some(phase("copying")),
                    2 => {
                        wait_for("the cancellation", || asked.load(Ordering::SeqCst));
                        Some(result(report(Some(outcome), None)))
                    }
                    _ => None,
                }
            }))
        });
        let when = format!("GET /v1/moves/{ID}/events");
        let output = interrupted(home.path(), &daemon, &["web1", "--to", "host2"], &when);
        assert_eq!(code(&output), 130, "{}", stderr(&output));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
        let told = stderr(&output) + &stdout(&output);
        assert!(told.contains(if accepted { "runs on host1" } else { "runs on host2" }), "{told}");
    }
}

#[test]
fn a_daemon_that_comes_back_is_heard_again_without_repetition() {
    let home = home();
    let times = AtomicUsize::new(0);
    let _daemon = daemon(home.path(), move || {
        let all = moved_events();
        let cut = if times.fetch_add(1, Ordering::SeqCst) == 0 { 3 } else { all.len() };
        all.into_iter().take(cut).collect()
    });
    let output = migrate(home.path(), &["web1", "--to", "host2", "--json"]);
    assert_eq!(code(&output), 0);
    let lines = lines(&output);
    let count = |kind| lines.iter().filter(|l| l["type"] == kind).count();
    assert_eq!((count("phase"), count("round"), count("result")), (3, 1, 1));
}

#[test]
fn a_dry_run_is_the_plan() {
    let home = home();
    let plan = |possible: bool| {
        let problems = if possible { vec![] } else { vec![error("no-room")] };
        json!({"schema": 1, "guest": "web1", "to": {"id": ID, "name": "host2"},
               "possible": possible, "problems": problems, "memory_bytes": 1 << 30,
               "room_bytes": 1_u64 << 33, "rtt_ms": 0.25, "predicted_total_ms": 2100.0})
    };
    let daemon =
        Daemon::start(home.path(), move |request| Reply::Say(200, plan(!request.contains("big"))));
    let output = migrate(home.path(), &["web1", "--to", "host2", "--dry-run"]);
    assert_eq!(code(&output), 0);
    assert_eq!(
        stdout(&output),
        "web1 -> host2: possible; 1G in use, 8G free there, round trip 250 us, about 2.10 s\n"
    );
    let output = migrate(home.path(), &["big", "--to", "host2", "--dry-run", "--json"]);
    assert_eq!(code(&output), 4);
    assert_eq!(
        document(&output),
        json!({"schema": 1, "to": "host2", "possible": false, "plans": [plan(false)]})
    );
    assert_eq!(code(&migrate(home.path(), &["big", "web1", "--to", "host2", "--dry-run"])), 3);
    assert!(!daemon.was_asked("POST /v1/moves "), "nothing was moved");
}

#[test]
fn moves_are_found_by_guest_and_id() {
    let home = home();
    let daemon = Daemon::start(home.path(), move |request| {
        let list = |moves: Vec<Value>| Reply::Say(200, json!({"schema": 1, "moves": moves}));
        let path = request.split(' ').nth(1).unwrap();
        let one = report(Some("moved"), None);
        match path {
            "/v1/moves?guest=web1&limit=1" | "/v1/moves?limit=1000" | "/v1/moves?limit=20" => {
                list(vec![one])
            }
            _ if path.starts_with("/v1/moves?") => list(vec![]),
            _ if path.contains(ID) && request.starts_with("GET") => Reply::Say(200, one),
            _ => Reply::Say(404, error("not-found")),
        }
    });
    for which in ["web1", ID, "3f2a00", "3F2A0000-0000"] {
        let output = migrate(home.path(), &["report", which, "--json"]);
        assert_eq!(document(&output), report(Some("moved"), None), "{which}");
    }
    assert_eq!(code(&migrate(home.path(), &["report", "web2"])), 7);
    assert_eq!(code(&migrate(home.path(), &["report", "abcdef"])), 7);
    let output = migrate(home.path(), &["history"]);
    let table = stdout(&output);
    assert!(
        table.lines().nth(1).unwrap().ends_with("moved    2.50 s  38.2 ms      600M  3f2a00000000"),
        "{table}"
    );
    let output = migrate(home.path(), &["watch"]);
    assert_eq!(stdout(&output), "No move goes on.\n");
    let output = migrate(home.path(), &["cancel", "web1"]);
    assert_eq!(code(&output), 4, "it is over");
    assert!(stderr(&output).contains("it is too late: web1 was moved to host2"));
    assert!(!daemon.was_asked("POST"), "nothing was changed");
}

#[test]
fn a_cancelled_move_is_done() {
    let home = home();
    let daemon = Daemon::start(home.path(), move |request| {
        if request.ends_with("/cancel") {
            return Reply::Say(200, json!({"schema": 1, "accepted": true}));
        }
        if request.ends_with("/events") {
            let end = report(Some("kept"), Some(error("cancelled")));
            return events(vec![phase("copying"), result(end)]);
        }
        Reply::Say(200, report(None, None))
    });
    let output = migrate(home.path(), &["cancel", ID]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output), "web1 was not moved; it runs on host1, as before\n");
    assert!(daemon.was_asked(&format!("POST /v1/moves/{ID}/cancel")));
}

#[test]
fn a_cancellation_ends_with_one_document() {
    // By the state in which it is found, and by what becomes of it meanwhile.
    for (before, outcome, exit) in [
        (Some("moved"), "moved", 4),
        (Some("kept"), "kept", 0),
        (Some("in-doubt"), "in-doubt", 6),
        (None, "moved", 4),
        (None, "kept", 0),
        (None, "in-doubt", 6),
    ] {
        let home = home();
        let _daemon = Daemon::start(home.path(), move |request| {
            if request.ends_with("/cancel") {
                return Reply::Say(200, json!({"schema": 1, "accepted": outcome == "kept"}));
            }
            if request.ends_with("/events") {
                let end = report(Some(outcome), (outcome != "moved").then(|| error("cancelled")));
                return events(vec![phase("copying"), result(end)]);
            }
            Reply::Say(200, report(before, None))
        });
        let output = migrate(home.path(), &["cancel", ID, "--json"]);
        assert_eq!(code(&output), exit, "{before:?} {outcome}: {}", stderr(&output));
        let lines = lines(&output);
        let results: Vec<&Value> = lines.iter().filter(|l| l["type"] == "result").collect();
        assert_eq!(results, [lines.last().unwrap()], "{before:?} {outcome}");
        assert_eq!(results[0]["outcome"], outcome);
        if before.is_some() {
            assert_eq!(lines.len(), 1, "{before:?}");
        }
        let code = &results[0]["error"]["code"];
        assert_eq!(*code == "wrong-state", outcome == "moved", "{lines:?}");
        assert!(lines.iter().all(|l| l["error"].is_null() || l["type"] == "result"), "{lines:?}");
    }
}

#[test]
fn a_move_that_is_left_alone_says_so_in_a_document() {
    let home = home();
    let daemon = Daemon::start(home.path(), |request| {
        if request.starts_with("POST /v1/moves ") {
            return begun();
        }
        if request.ends_with("/cancel") {
            return Reply::Say(200, json!({"schema": 1, "accepted": true}));
        }
        let mut said = false;
        Reply::Events(Box::new(move || {
            if std::mem::replace(&mut said, true) {
                std::thread::sleep(std::time::Duration::from_secs(20));
                return None;
            }
            Some(phase("copying"))
        }))
    });
    let child = Command::new(env!("CARGO_BIN_EXE_migrate"))
        .args(["web1", "--to", "host2", "--json"])
        .env("MIGRATE_HOME", home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    wait_for("the events", || daemon.was_asked(&format!("GET /v1/moves/{ID}/events")));
    kill(pid, Signal::SIGINT).unwrap();
    wait_for("the cancellation", || daemon.was_asked(&format!("POST /v1/moves/{ID}/cancel")));
    kill(pid, Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 130, "{}", stderr(&output));
    let lines = lines(&output);
    assert_eq!(
        *lines.last().unwrap(),
        json!({"schema": 1, "type": "result", "guest": "web1", "move_id": ID, "exit_code": 130})
    );
}

#[test]
fn hosts_are_shown() {
    let home = home();
    let info = json!({"schema": 1, "host": {"id": ID, "name": "host1"}, "version": "1.2.3",
        "pid": 77, "started": "2026-01-01T00:00:00Z", "cpus": 8, "memory_total_bytes": 1_u64 << 34,
        "memory_available_bytes": 1_u64 << 33, "memory_reserved_bytes": 1_u64 << 32, "guests": 2,
        "moves_running": 1, "advice": ["set net.core.rmem_max"], "now": "2026-01-01T01:00:00Z",
        "listen": "10.0.0.1:7420"});
    let hosts = json!({"schema": 1, "hosts": [
        {"name": "host1", "id": ID, "address": "10.0.0.1:7420", "rights": [], "this": true, "info": info},
        {"name": "host2", "address": "10.0.0.2:7420", "rights": ["send", "receive"], "this": false,
         "error": error("unreachable")},
    ]});
    let check = json!({"schema": 1, "host": "host2", "ok": false, "lines": [
        {"what": "control port", "ok": true, "found": "answers in 0.3 ms"},
        {"what": "UDP buffers", "ok": false, "found": "212992 bytes", "remedy": "sysctl -w net.core.rmem_max=7500000"},
    ]});
    let (info_, hosts_, check_) = (info.clone(), hosts.clone(), check.clone());
    let _daemon = Daemon::start(home.path(), move |request| {
        let body = match request.split(' ').nth(1).unwrap() {
            "/v1/host" => &info_,
            "/v1/hosts" => &hosts_,
            "/v1/hosts/host2/check" => &check_,
            "/v1/hosts/invite" => {
                let line = json!({"schema": 1, "invitation": "the-line", "expires": "2026-01-01T01:00:00Z"});
                return Reply::Say(200, line);
            }
            _ => return Reply::Say(404, error("unknown-host")),
        };
        Reply::Say(200, body.clone())
    });
    let ls = migrate(home.path(), &["host", "ls"]);
    assert_eq!(
        stdout(&ls),
        "NAME   STATE      ADDRESS        GUESTS  CPUS  MEMORY FREE  VERSION  RIGHTS\n\
         host1  this host  10.0.0.1:7420  2       8     4G           1.2.3    -\n\
         host2  silent     10.0.0.2:7420  -       -     -            -        send,receive\n\
         host2: what happened\n  next:  what to do\n"
    );
    assert_eq!(
        document(&migrate(home.path(), &["host", "ls", "--json"]))["hosts"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let show = stdout(&migrate(home.path(), &["host", "show"]));
    assert!(show.contains("up 1h 0m") && show.contains("set net.core.rmem_max"), "{show}");
    assert_eq!(stdout(&migrate(home.path(), &["host", "show", "host1"])), show);
    assert_eq!(code(&migrate(home.path(), &["host", "show", "host2"])), 8);
    let unknown = migrate(home.path(), &["host", "show", "host9"]);
    assert_eq!(code(&unknown), 4);
    let check = migrate(home.path(), &["host", "check", "host2"]);
    assert_eq!(code(&check), 5);
    assert_eq!(
        stdout(&check),
        "ok   control port  answers in 0.3 ms\nBAD  UDP buffers   212992 bytes\n  next:  sysctl -w \
         net.core.rmem_max=7500000\n"
    );
    let invite = migrate(home.path(), &["host", "invite"]);
    assert_eq!(stdout(&invite), "the-line\n");
    assert!(stderr(&invite).contains("migrate host join"));
}
