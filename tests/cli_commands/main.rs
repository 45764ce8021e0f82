//! The commands against a stand-in for a guest process.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

mod daemon;
mod fake;
mod moves;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use fake::{Answer, Fake, info, take_descriptor};
use migrate::config::Dirs;
use serde_json::{Value, json};

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn migrate(home: &Path, words: &[&str]) -> Output {
    migrate_with(home, words, "")
}

fn migrate_with(home: &Path, words: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_migrate"))
        .args(words)
        .env("MIGRATE_HOME", home)
        .env_remove("MIGRATE_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn document(output: &Output) -> Value {
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "one document: {text} {}", stderr(output));
    serde_json::from_str(&text).unwrap()
}

fn error(code: &str, retryable: bool) -> Value {
    json!({"code": code, "message": "what happened", "remedy": "what to do",
           "retryable": retryable, "guest_state": "paused"})
}

#[test]
fn without_guests() {
    let home = home();
    let home = home.path();
    let ls = migrate(home, &["ls"]);
    assert_eq!(
        (code(&ls), stdout(&ls)),
        (0, "No guests. Run one: migrate run --guest scribbler\n".into())
    );
    assert_eq!(document(&migrate(home, &["ls", "--json"])), json!({"schema": 1, "guests": []}));
    assert_eq!(
        document(&migrate(home, &["ls", "-a", "--json"])),
        json!({"schema": 1, "guests": [], "ended": []})
    );
    for command in ["show", "pause", "resume", "reset", "stop", "console", "rm"] {
        let output = migrate(home, &[command, "none"]);
        assert_eq!(code(&output), 7, "{command}");
        assert_eq!(
            stderr(&output),
            "migrate: there is no guest 'none'\n  next:  see the guests there are: migrate ls -a\n"
        );
        let output = migrate(home, &[command, "none", "--json"]);
        assert_eq!(document(&output)["error"]["code"], "not-found", "{command}");
        assert_eq!((code(&output), stderr(&output)), (7, String::new()));
    }
    assert_eq!(fs::read_dir(home).unwrap().count(), 0, "looking makes nothing");
}

#[test]
fn usage_errors_are_told_to_scripts_too() {
    let home = home();
    let output = migrate(home.path(), &["stop", "--json"]);
    let error = &document(&output)["error"];
    assert_eq!((code(&output), &error["code"]), (2, &json!("usage")));
    assert!(error["message"].as_str().unwrap().contains("<GUEST>"), "{error}");
    let output = migrate(home.path(), &["run", "--guest", "scribbler", "--memory", "1X", "--json"]);
    assert!(document(&output)["error"]["message"].as_str().unwrap().contains("'1X' is not a size"));
    let output = migrate(home.path(), &["run", "--json"]);
    assert_eq!((code(&output), &document(&output)["error"]["code"]), (4, &json!("bad-definition")));
}

#[test]
fn guests_are_listed_also_silent_and_killed_ones() {
    let home = home();
    let home = home.path();
    let say = || Answer::Say(200, info("a", 1));
    let _a = Fake::start(home, "a", vec![say(), say()]);
    let _hung = Fake::start(home, "hung", vec![Answer::Silence, Answer::Silence]);
    Fake::start(home, "killed", vec![]).die();
    let listed = document(&migrate(home, &["ls", "--json"]));
    assert_eq!(
        listed,
        json!({"schema": 1, "guests": [
            info("a", 1),
            {"name": "hung", "state": "unreachable"},
            {"name": "killed", "state": "gone"},
        ]})
    );
    assert!(!Dirs::below(home).guest("killed").dir().exists(), "cleared up");

    let table = migrate(home, &["ls", "-a"]);
    let lines: Vec<Vec<String>> = stdout(&table)
        .lines()
        .map(|l| {
            l.split("  ").map(str::trim).filter(|w| !w.is_empty()).map(str::to_owned).collect()
        })
        .collect();
    assert_eq!(lines[0], ["NAME", "STATE", "CPUS", "MEMORY", "USED", "UPTIME", "VERSION"]);
    assert_eq!((lines[1][0].as_str(), lines[1][1].as_str()), ("a", "running"));
    assert_eq!((lines[1][3].as_str(), lines[1][4].as_str()), ("128M", "1M"));
    assert_eq!(lines[2][..2], ["hung", "unreachable"]);
    assert_eq!(lines[3][0], "killed");
    assert!(lines[3][1].starts_with("died "), "{:?}", lines[3]);
    assert!(!stdout(&table).contains('\u{1b}'), "no colours off a terminal");

    let shown = migrate(home, &["show", "killed", "--json"]);
    let record = document(&shown);
    assert_eq!((code(&shown), &record["how"], &record["term"]), (0, &json!("died"), &json!(3)));
    let removed = document(&migrate(home, &["rm", "killed", "--json"]));
    assert_eq!(removed, json!({"schema": 1, "name": "killed", "records": 1}));
    assert_eq!(code(&migrate(home, &["show", "killed"])), 7);
}

#[test]
fn buttons_are_pressed_and_the_answer_is_the_result() {
    let home = home();
    let home = home.path();
    let paused = {
        let mut paused = info("a", 1);
        paused["state"] = json!("paused");
        paused
    };
    let say = || Answer::Say(200, paused.clone());
    let fake = Fake::start(home, "a", vec![say(), say(), say(), say(), say(), say()]);
    assert_eq!(document(&migrate(home, &["pause", "a", "--json"])), paused);
    let words = migrate(home, &["resume", "a"]);
    assert_eq!(stdout(&words), "a is paused: 2 CPUs, 128M of RAM, process 1\n");
    assert_eq!(stdout(&migrate(home, &["reset", "a", "--quiet"])), "");
    assert_eq!(code(&migrate(home, &["throttle", "a", "50"])), 0);
    assert_eq!(document(&migrate(home, &["--json", "show", "a"])), paused);
    let page = stdout(&migrate(home, &["show", "a"]));
    assert!(page.contains("state      paused"), "{page}");
    assert_eq!(
        fake.requests(),
        [
            "POST /v1/pause",
            "POST /v1/resume",
            "POST /v1/reset",
            r#"PUT /v1/throttle {"cpu_share_percent":50}"#,
            "GET /v1/guest",
            "GET /v1/guest"
        ]
    );
}

#[test]
fn refusals_keep_their_code_and_broken_answers_have_one() {
    let home = home();
    let home = home.path();
    let _fake = Fake::start(
        home,
        "a",
        vec![
            Answer::Say(409, error("busy", true)),
            Answer::Say(409, error("wrong-state", false)),
            Answer::Say(504, error("timeout", false)),
            Answer::Say(500, json!("?")),
            Answer::Say(200, json!({"schema": 1})),
            Answer::HangUp,
            Answer::Silence,
        ],
    );
    let output = migrate(home, &["pause", "a"]);
    assert_eq!(code(&output), 4);
    assert_eq!(stderr(&output), "migrate: what happened\n  guest: paused\n  next:  what to do\n");
    let output = migrate(home, &["pause", "a", "--json"]);
    assert_eq!(document(&output), json!({"schema": 1, "error": error("wrong-state", false)}));
    assert_eq!(code(&output), 4);
    for (words, exit) in [
        (&["pause", "a"][..], 5),
        (&["pause", "a"], 1),
        (&["pause", "a"], 1),
        (&["pause", "a"], 8),
        (&["pause", "a", "--timeout", "200ms"], 8),
    ] {
        let output = migrate(home, words);
        assert_eq!(code(&output), exit, "{}", stderr(&output));
        assert_eq!(
            stderr(&output).lines().last().unwrap().split_whitespace().next(),
            Some("next:")
        );
    }
}

#[test]
fn stop_waits_until_nothing_is_left() {
    let home = home();
    let home = home.path();
    let how = |how: &str| json!({"schema": 1, "how": how});
    for (words, deadline, answer) in [
        (&["stop", "a", "--json"][..], 90_000, "powered-off"),
        (&["stop", "a", "--json", "--timeout", "5s"], 5000, "killed"),
        (&["stop", "a", "--json", "--kill"], 0, "killed"),
    ] {
        let fake = Fake::start(home, "a", vec![Answer::Vanish(how(answer))]);
        let output = migrate(home, words);
        assert_eq!(
            document(&output),
            json!({"schema": 1, "name": "a", "how": answer, "already_stopped": false})
        );
        assert_eq!(fake.requests(), [format!(r#"POST /v1/stop {{"deadline_ms":{deadline}}}"#)]);
    }
    // Its process broke down instead of answering: it is gone all the same.
    let fake = Fake::start(home, "a", vec![Answer::HangUp]);
    fake.lock.lock().unwrap().take();
    let lost = fake.paths.api();
    fs::remove_file(lost).unwrap();
    let again = document(&migrate(home, &["stop", "a", "--json"]));
    assert_eq!(again, json!({"schema": 1, "name": "a", "how": "died", "already_stopped": true}));
}

#[test]
fn stop_kill_ends_a_process_that_hangs() {
    let home = home();
    let home = home.path();
    let mut victim = Command::new("sleep").arg("1000").spawn().unwrap();
    let fake = Fake::start_as(home, "a", victim.id(), vec![Answer::Silence]);
    let lock = fake.lock.clone();
    let reaper = thread::spawn(move || {
        let status = victim.wait().unwrap();
        lock.lock().unwrap().take();
        status
    });
    let output = migrate(home, &["stop", "a", "--kill", "--json"]);
    assert_eq!(document(&output)["how"], "killed", "{}", stderr(&output));
    assert!(!reaper.join().unwrap().success());
    assert!(!fake.paths.dir().exists());
    let record = document(&migrate(home, &["show", "a", "--json"]));
    assert_eq!(record["how"], "killed");
}

fn saved(running: bool) -> Value {
    json!({"schema": 1, "file_bytes": 7, "memory_bytes": 5, "stopped_ms": 3, "pause_us": 2,
           "state_us": 1, "running": running})
}

fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into()).collect();
    files.sort();
    files
}

#[test]
fn a_save_gets_its_name_when_it_is_complete() {
    let (home, dir) = (home(), home());
    let (home, dir) = (home.path(), dir.path());
    let to = dir.join("a.save");
    let to_text = to.to_str().unwrap();
    let fake = Fake::start(home, "a", vec![Answer::Vanish(saved(false))]);
    let token = take_descriptor(&fake.paths, "content");
    let output = migrate(home, &["save", "a", "--to", to_text, "--json"]);
    let mut golden = saved(false);
    golden["file"] = json!(to_text);
    assert_eq!(document(&output), golden, "{}", stderr(&output));
    let token = token.join().unwrap();
    assert_eq!(
        fake.requests(),
        [format!(r#"POST /v1/save {{"fd_token":"{token}","keep_running":false}}"#)]
    );
    assert_eq!(fs::read_to_string(&to).unwrap(), "content");
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(files_of(dir), [Path::new("a.save")]);

    let fake = Fake::start(home, "a", vec![]);
    let output = migrate(home, &["save", "a", "--to", to_text, "--json"]);
    assert_eq!((code(&output), &document(&output)["error"]["code"]), (4, &json!("file-exists")));
    assert_eq!(fs::read_to_string(&to).unwrap(), "content");
    assert!(fake.requests().is_empty());
}

#[test]
fn a_failed_save_leaves_nothing_and_a_doubtful_one_is_kept() {
    let (home, dir) = (home(), home());
    let (home, dir) = (home.path(), dir.path());
    let to = dir.join("a.save");
    let to = to.to_str().unwrap();
    let saving = {
        let mut saving = info("a", 1);
        saving["state"] = json!("saving");
        saving
    };
    let answers = vec![
        Answer::Say(409, error("writable-disk", false)),
        Answer::HangUp,
        Answer::Say(200, info("a", 1)),
        Answer::HangUp,
        Answer::Say(200, saving),
    ];
    let fake = Fake::start(home, "a", answers);

    // Nobody takes the descriptor.
    assert_eq!(code(&migrate(home, &["save", "a", "--to", to])), 8);
    assert!(files_of(dir).is_empty());

    let token = take_descriptor(&fake.paths, "x");
    let refused = migrate(home, &["save", "a", "--to", to, "--keep-running", "--json"]);
    assert_eq!(document(&refused)["error"]["code"], "writable-disk");
    assert!(files_of(dir).is_empty());
    token.join().unwrap();

    for left in [0, 1] {
        fs::remove_file(fake.paths.fd()).unwrap();
        let token = take_descriptor(&fake.paths, "x");
        let lost = migrate(home, &["save", "a", "--to", to]);
        assert_eq!(code(&lost), 8, "{}", stderr(&lost));
        assert_eq!(files_of(dir).len(), left, "{}", stderr(&lost));
        token.join().unwrap();
    }
    assert_eq!(files_of(dir), [Path::new("a.save.partial")]);
}

#[test]
fn a_console_on_pipes_copies_both_ways() {
    let home = home();
    let home = home.path();
    let fake = Fake::start(home, "a", vec![]);
    let listener = UnixListener::bind(fake.paths.console()).unwrap();
    let guest = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"login: ").unwrap();
        let mut typed = String::new();
        stream.read_to_string(&mut typed).unwrap();
        stream.write_all(format!("hello {typed}").as_bytes()).unwrap();
        typed
    });
    let keys = "root\u{1d}\n".repeat(10_000);
    let output = migrate_with(home, &["console", "a"], &keys);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(guest.join().unwrap(), keys);
    assert_eq!(stdout(&output), format!("login: hello {keys}"));
}

/// Attaches to a console from a terminal, lets the guest see an `x`, and ends with `leave`.
fn console_on_a_terminal(leave: impl FnOnce(&mut fs::File, nix::unistd::Pid)) -> i32 {
    use nix::sys::termios::{LocalFlags, tcgetattr};
    let home = home();
    let fake = Fake::start(home.path(), "a", vec![]);
    let listener = UnixListener::bind(fake.paths.console()).unwrap();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let before = tcgetattr(&terminal.slave).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_migrate"))
        .args(["console", "a", "--quiet"])
        .env("MIGRATE_HOME", home.path())
        .stdin(terminal.slave.try_clone().unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut guest, _) = listener.accept().unwrap();
    let mut keyboard = fs::File::from(terminal.master);
    // An interrupt key goes to the guest: the terminal is raw by the time it arrives.
    while tcgetattr(&terminal.slave).unwrap().local_flags.contains(LocalFlags::ICANON) {
        thread::yield_now();
    }
    keyboard.write_all(b"x\x03").unwrap();
    let mut keys = [0; 2];
    guest.read_exact(&mut keys).unwrap();
    assert_eq!(&keys, b"x\x03");
    leave(&mut keyboard, nix::unistd::Pid::from_raw(child.id().try_into().unwrap()));
    let status = child.wait().unwrap();
    assert!(tcgetattr(&terminal.slave).unwrap() == before, "the terminal is as it was");
    status.code().unwrap()
}

#[test]
fn a_terminal_is_restored_however_the_console_is_left() {
    let escape = console_on_a_terminal(|keyboard, _| keyboard.write_all(b"\x1d").unwrap());
    assert_eq!(escape, 0);
    let signalled = console_on_a_terminal(|_, pid| {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    });
    assert_eq!(signalled, 130);
}

#[test]
fn load_refuses_what_is_not_a_saved_guest() {
    let home = home();
    let file = home.path().join("x");
    for (content, expected) in [(&b""[..], "bad-state-file"), (&[7; 9000], "bad-state-file")] {
        fs::write(&file, content).unwrap();
        let output = migrate(home.path(), &["load", file.to_str().unwrap(), "--json"]);
        let error = &document(&output)["error"];
        assert_eq!((code(&output), &error["code"]), (4, &json!(expected)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(file.to_str().unwrap()));
    }
}

#[test]
fn run_refuses_a_name_that_is_taken() {
    let home = home();
    let _fake = Fake::start(home.path(), "a", vec![Answer::Say(200, info("a", 1))]);
    let output = migrate(home.path(), &["run", "a", "--guest", "scribbler", "--json"]);
    let error = &document(&output)["error"];
    assert_eq!((code(&output), &error["code"]), (4, &json!("name-taken")));
    assert_eq!(error["guest_state"], "running");
}

#[test]
fn start_needs_a_definition_and_is_done_if_it_runs() {
    let home = home();
    let missing = migrate(home.path(), &["start", "a", "--json"]);
    assert_eq!((code(&missing), &document(&missing)["error"]["code"]), (7, &json!("not-found")));

    let _fake = Fake::start(home.path(), "a", vec![Answer::Say(200, info("a", 1))]);
    assert_eq!(document(&migrate(home.path(), &["start", "a", "--json"])), info("a", 1));

    let dirs = Dirs::below(home.path());
    fs::create_dir_all(dirs.definitions()).unwrap();
    fs::write(dirs.definition("b"), "name = 'c'\nguest = 'scribbler'").unwrap();
    let named = migrate(home.path(), &["start", "b", "--json"]);
    assert_eq!(document(&named)["error"]["code"], "bad-definition");
    fs::write(dirs.definition("b"), "memroy = '1G'").unwrap();
    let typo = document(&migrate(home.path(), &["start", "b", "--json"]));
    assert!(typo["error"]["message"].as_str().unwrap().contains("`memroy`"), "{typo}");
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_with_the_way_out() {
    let home = home();
    let long = home.path().join("x".repeat(90));
    let output = migrate(&long, &["run", "a", "--guest", "scribbler", "--json"]);
    let error = &document(&output)["error"];
    assert_eq!((code(&output), &error["code"]), (4, &json!("bad-definition")));
    assert!(error["remedy"].as_str().unwrap().contains("MIGRATE_HOME"), "{error}");
}

#[test]
fn help_and_completions() {
    let home = home();
    for topic in ["exit-codes", "files", "scribbler", "state", "run", "load"] {
        let output = migrate(home.path(), &["help", topic]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).lines().count() > 10, "{topic}");
    }
    assert_eq!(code(&migrate(home.path(), &["help", "nonsense"])), 2);
    assert_eq!(code(&migrate(home.path(), &["--help"])), 0);

    let script = migrate(home.path(), &["completions", "bash"]);
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&script.stdout).unwrap();
    assert!(bash.wait().unwrap().success());

    Dirs::below(home.path()).prepare().unwrap();
    fs::create_dir(Dirs::below(home.path()).guest("web1").dir()).unwrap();
    let words = migrate(home.path(), &["complete-words", "--", "--json", "stop", "w"]);
    assert_eq!(stdout(&words), "web1\n");
}

/// Places at which tests do harm are in no build that did not ask for them.
#[cfg(not(feature = "fail-points"))]
#[test]
fn the_program_knows_nothing_of_fail_points() {
    let program = fs::read(env!("CARGO_BIN_EXE_migrate")).unwrap();
    for name in [&b"MIGRATE_FAIL_POINTS"[..], b"source.pause.before", b"daemon.keep-move"] {
        let found = program.windows(name.len()).any(|word| word == name);
        assert!(!found, "{}", String::from_utf8_lossy(name));
    }
}
