//! What becomes of guests when the daemon's unit ends, one way or another.

use std::process::Child;

use serde_json::{Value, json};

use crate::host::Host;
use crate::support::{Console, eventually, pid_of};

const WRITER: &str = "scribbler:ws=8M,data=4M,rate=1000,hb=5ms,poll=5ms";
/// Pages of its working set and of its data.
const PAGES: u64 = (8 + 4) * 256;
const READY: [&str; 4] = ["--memory", "64M", "--wait-for", "console:SCRIBBLER-READY,60s"];

/// Starts a guest by the command, as an operator does.
#[track_caller]
fn starts(host: &Host, name: &str) -> Value {
    host.done(&[&["run", name, "--guest", WRITER], &READY[..]].concat())
}

/// A second instance on the same host, with a daemon of its own, and both in one site.
struct Other<'a> {
    host: &'a Host,
    daemon: Child,
}

const PRIVATE: &str = "MIGRATE_HOME=/tmp/other";

impl<'a> Other<'a> {
    #[track_caller]
    fn join(host: &'a Host) -> Self {
        let config = host.path("/tmp/other/config");
        std::fs::create_dir_all(&config).unwrap();
        let text = "listen = \"127.0.0.1:7520\"\nadvertise = \"127.0.0.1:7520\"\n\
                    data_ports = \"7521-7530\"\n";
        std::fs::write(config.join("host.toml"), text).unwrap();
        let text = "listen = \"127.0.0.1:7420\"\nadvertise = \"127.0.0.1:7420\"\n";
        std::fs::write(host.path("/etc/migrate/host.toml"), text).unwrap();
        host.done(&["host", "init", "--name", "service"]);
        host.systemctl(&["restart", "migrate"]);
        let invited = host.done(&["host", "invite"]);
        let line = invited["invitation"].as_str().unwrap();
        let mut daemon = host.command("env", &[PRIVATE, "migrate", "daemon"]);
        let other = Self { host, daemon: daemon.spawn().unwrap() };
        other.done(&["host", "join", line, "--name", "other"]);
        eventually("the other daemon knows the site", || {
            let shown = other.host.run("env", &[PRIVATE, "migrate", "--json", "host", "show"]);
            shown.stdout.contains("7520").then_some(())
        });
        other
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> Value {
        let words = [&[PRIVATE, "migrate", "--json"], words].concat();
        let ran = self.host.run("env", &words);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap()
    }

    /// Starts a guest there and moves it to the service; answers the move's id.
    #[track_caller]
    fn sends(&self, name: &str) -> String {
        self.done(&[&["run", name, "--guest", WRITER], &READY[..]].concat());
        let moved = self.done(&["move", name, "--to", "service", "--max-downtime", "5s"]);
        moved["move_id"].as_str().unwrap_or_else(|| panic!("no id: {moved}")).to_owned()
    }
}

impl Drop for Other<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The guest goes on: the same process, the same console, not reset, and all it has in memory.
#[track_caller]
fn assert_goes_on(host: &Host, console: &mut Console, before: &Value) {
    console.until_beats(20);
    let name = before["name"].as_str().unwrap();
    let now = host.done(&["show", name]);
    for field in ["pid", "uuid", "started", "resets"] {
        assert_eq!(now[field], before[field], "{field} of {name}");
    }
    assert_eq!(now["state"], "running");
}

/// Ends the daemon's unit in every way that there is; another one takes its place.
#[track_caller]
fn end_in_every_way(host: &Host, mut check: impl FnMut()) {
    let ways: [&[&str]; 3] = [
        &["restart", "migrate"],
        &["kill", "--kill-whom=main", "--signal=SIGKILL", "migrate"],
        // It hangs, and the watchdog ends it.
        &["kill", "--kill-whom=main", "--signal=SIGSTOP", "migrate"],
    ];
    for way in ways {
        let before = host.property("migrate", "MainPID");
        host.systemctl(way);
        eventually("there is another daemon", || {
            let now = host.property("migrate", "MainPID");
            let active = host.property("migrate", "ActiveState") == "active";
            (active && now != "0" && now != before).then_some(())
        });
        host.done(&["host", "show"]);
        check();
    }
    assert_eq!(host.property("migrate", "NRestarts"), "2");
    host.systemctl(&["stop", "migrate"]);
    assert_eq!(host.property("migrate", "Result"), "success");
    check();
    host.systemctl(&["start", "migrate"]);
    check();
}

#[test]
fn guests_are_scopes_that_no_end_of_the_daemon_touches() {
    let Some(host) = Host::boot() else { return };
    host.systemctl(&["start", "migrate"]);
    assert_eq!(host.property("migrate", "NotifyAccess"), "main");
    let mode = |path: &str| host.text("stat", &["-c", "%a %G", path]);
    assert_eq!(mode("/run/migrate"), "710 migrate");
    assert_eq!(mode("/run/migrate/daemon.sock"), "660 migrate");

    let run = starts(&host, "web1");
    let other = Other::join(&host);
    other.sends("web2");
    let came = host.done(&["show", "web2"]);
    let mut consoles = [host.console("web1"), host.console("web2")];
    for info in [&run, &came] {
        let name = info["name"].as_str().unwrap();
        let unit = format!("migrate-guest-{name}.scope");
        // The one that came is not waited for by its daemon.
        let group = eventually("a scope of its own", || {
            Some(host.cgroup_of(pid_of(info))).filter(|group| group.contains("/migrate-guest-"))
        });
        assert_eq!(group, format!("/machine.slice/{unit}"));
        assert_eq!(host.pids_of(&unit), [pid_of(info)]);
        assert_eq!(host.property(&unit, "Description"), format!("Virtual machine {name}"));
        assert!(host.property(&unit, "After").contains("migrate.service"));
    }
    let daemon = host.property("migrate", "MainPID");
    assert_eq!(host.pids_of("migrate"), [daemon.parse::<i32>().unwrap()]);
    end_in_every_way(&host, || {
        assert_goes_on(&host, &mut consoles[0], &run);
        assert_goes_on(&host, &mut consoles[1], &came);
    });
    for console in &mut consoles {
        console.verify_clean(PAGES);
    }

    // A guest's unit ends with it, and it with its unit.
    host.done(&["stop", "web2"]);
    host.systemctl(&["stop", "migrate-guest-web1.scope"]);
    eventually("no scope is left", || {
        let left = host.systemctl(&["list-units", "--all", "--no-legend", "migrate-guest-*"]);
        left.is_empty().then_some(())
    });
    assert_eq!(host.done(&["ls"])["guests"], json!([]));
    let again = starts(&host, "web1");
    assert_eq!(host.cgroup_of(pid_of(&again)), "/machine.slice/migrate-guest-web1.scope");
}

#[test]
fn the_journal_and_the_guests_log_name_the_move_and_the_guest() {
    let Some(host) = Host::boot() else { return };
    host.systemctl(&["start", "migrate"]);
    let other = Other::join(&host);
    let id = other.sends("web2");
    let about = format!("MOVE={id}");
    let entries = eventually("the arrival is in the journal", || {
        let entries = host.entries(&[&about]);
        let ended = |e: &Value| e["MESSAGE"].as_str().unwrap().contains("an arrival ended");
        entries.iter().any(ended).then_some(entries)
    });
    for entry in &entries {
        assert_eq!(entry["GUEST"], "web2", "{entry}");
        assert_eq!(entry["_SYSTEMD_UNIT"], "migrate.service", "{entry}");
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "migrate", "{entry}");
        assert!(entry["MESSAGE"].as_str().unwrap().contains(&about), "also for readers: {entry}");
    }
    assert!(entries.iter().all(|e| e["PRIORITY"] == "6"), "nothing to warn of: {entries:?}");
    // What tells of a guest's coming and going tells which move it is, and no line is lost.
    let of_guest = host.entries(&["GUEST=web2"]);
    assert_eq!(of_guest.len(), entries.len(), "{of_guest:?}");

    // The processes of the guest, at either end.
    for log in ["/var/lib/migrate/logs/web2.log", "/tmp/other/state/logs/web2.log"] {
        let text = std::fs::read_to_string(host.path(log)).unwrap();
        let moving: Vec<_> = text.lines().filter(|l| l.contains("phase=")).collect();
        assert!(moving.len() > 2, "{log}: {text}");
        for line in moving {
            assert!(line.contains(&about) && line.contains("GUEST=web2"), "{log}: {line}");
        }
        assert!(text.lines().all(|l| l.contains("GUEST=web2")), "{log}: {text}");
    }
}

#[test]
fn without_an_answer_of_systemd_guests_start_and_stay() {
    let Some(host) = Host::boot() else { return };
    host.systemctl(&["start", "migrate"]);
    let other = Other::join(&host);
    host.systemctl(&["stop", "dbus.socket", "dbus.service"]);
    host.systemctl(&["start", "mute.socket"]);

    let words = [&["run", "web1", "--guest", WRITER], &READY[..], &["--json"]].concat();
    let ran = host.run("migrate", &words);
    let run = ran.done();
    assert!(ran.stderr.contains("systemd does not answer"), "{ran:?}");
    assert!(ran.stderr.contains("GUEST=web1"), "{ran:?}");

    // One that came lives in the daemon's cgroup, and lives on.
    other.sends("web2");
    let came = host.done(&["show", "web2"]);
    let told = || host.entries(&["GUEST=web2", "PRIORITY=4"]);
    let entries = eventually("the journal says so", || Some(told()).filter(|e| !e.is_empty()));
    let message = entries[0]["MESSAGE"].as_str().unwrap();
    assert!(message.contains("no unit of its own"), "{message}");
    assert_eq!(host.cgroup_of(pid_of(&came)), "/system.slice/migrate.service");
    let mut consoles = [host.console("web1"), host.console("web2")];
    end_in_every_way(&host, || {
        assert_goes_on(&host, &mut consoles[0], &run);
        assert_goes_on(&host, &mut consoles[1], &came);
    });
    for console in &mut consoles {
        console.verify_clean(PAGES);
    }

    // No bus at all.
    host.systemctl(&["stop", "mute.socket", "mute.service"]);
    let words = [&["run", "web3", "--guest", WRITER], &READY[..], &["--json"]].concat();
    let ran = host.run("migrate", &words);
    ran.done();
    assert!(ran.stderr.contains("no unit of its own"), "{ran:?}");
}

#[test]
fn a_user_s_guests_are_scopes_of_his_own_manager() {
    let Some(host) = Host::boot() else { return };
    host.systemctl(&["start", "user"]);
    let own = |program: &str, words: &[&str]| {
        host.text("env", &[&["XDG_RUNTIME_DIR=/run/user/0", program], words].concat())
    };
    own("systemctl", &["--user", "start", "migrate"]);
    let main_pid = || own("systemctl", &["--user", "show", "--value", "-p", "MainPID", "migrate"]);
    let words = [&["--user", "--json", "run", "web1", "--guest", WRITER], &READY[..]].concat();
    let run: Value = serde_json::from_str(&own("migrate", &words)).unwrap();
    let group = host.cgroup_of(pid_of(&run));
    assert!(group.starts_with("/system.slice/user.service/"), "{group}");
    assert!(group.ends_with("/migrate-guest-web1.scope"), "{group}");
    let socket = host.path("/run/user/0/migrate/guests/web1/console.sock");
    let mut console = Console::connect(&socket);
    let before = main_pid();
    own("systemctl", &["--user", "restart", "migrate"]);
    assert_ne!(main_pid(), before);
    console.until_beats(20);
    own("systemctl", &["--user", "stop", "migrate"]);
    console.until_beats(20);
    console.verify_clean(PAGES);
    assert_eq!(host.cgroup_of(pid_of(&run)), group);
}
