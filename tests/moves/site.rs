//! Hosts of one site, each a private instance with a daemon of its own: on loopback, or where
//! their homes lead.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Console, Home, Ran, eventually, is_gone, pid_of, run};

/// Ports of a host: one for control, the rest for data.
pub const PORTS: u16 = 12;
/// Below the ports that the system gives out by itself, and away from those of the demo.
const FIRST_PORT: u16 = 23_000;
const LAST_PORT: u16 = 31_000;

/// A host: its files and its daemon.
#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub home: Home,
    address: String,
    pub port: u16,
    daemon: Option<Child>,
}

/// The first of [`PORTS`] ports that nobody has now, and that no other host of this program gets.
fn free_ports() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Other programs of this kind, at the same time, begin elsewhere.
    let places = (LAST_PORT - FIRST_PORT) / PORTS;
    let begin = u16::try_from(std::process::id() % u32::from(places)).unwrap();
    for _ in 0..places {
        let place = (begin + TAKEN.fetch_add(1, Ordering::Relaxed)) % places;
        let first = FIRST_PORT + place * PORTS;
        let all: Result<Vec<_>, _> =
            (first..first + PORTS).map(|port| UdpSocket::bind(("127.0.0.1", port))).collect();
        if all.is_ok() {
            return first;
        }
    }
    panic!("no {PORTS} free UDP ports in a row");
}

impl Host {
    /// A host that is in no site yet, and has no daemon.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::of(name, Home::new())
    }

    /// As [`Self::new`], with this home.
    #[track_caller]
    pub fn of(name: &str, home: Home) -> Self {
        Self::at(name, home, "127.0.0.1", free_ports())
    }

    /// As [`Self::new`], with this home, address and first port.
    #[track_caller]
    pub fn at(name: &str, home: Home, address: &str, port: u16) -> Self {
        let (name, address) = (name.to_owned(), address.to_owned());
        let host = Self { name, home, address, port, daemon: None };
        host.configure("");
        host
    }

    /// Writes its `host.toml`, with more lines at the end.
    pub fn configure(&self, more: &str) {
        let config = self.home.dirs().config;
        fs::create_dir_all(&config).unwrap();
        let address = &self.address;
        let (port, first, last) = (self.port, self.port + 1, self.port + PORTS - 1);
        let text = format!(
            "listen = \"{address}:{port}\"\nadvertise = \"{address}:{port}\"\n\
             data_ports = \"{first}-{last}\"\n{more}"
        );
        fs::write(config.join("host.toml"), text).unwrap();
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn start_daemon(&mut self) {
        let path = self.home.path().join("daemon.log");
        let log = File::options().create(true).append(true).open(&path).unwrap();
        let mut command = self.home.command(&["daemon"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = self.daemon.insert(command.spawn().expect("the built binary runs"));
        let home = &self.home;
        eventually("the daemon answers", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {}", fs::read_to_string(&path).unwrap());
            (home.json(&["host", "show"]).code == Some(0)).then_some(())
        });
    }

    /// Ends the daemon with this signal, and waits until it is gone.
    pub fn end_daemon(&mut self, with: Signal) {
        let Some(mut child) = self.daemon.take() else { return };
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), with);
        let _ = child.wait();
    }

    /// The process of its daemon.
    #[track_caller]
    pub fn daemon_pid(&self) -> i32 {
        id_of(self.daemon.as_ref().expect("it was started"))
    }

    /// Runs a scribbler, and waits until its memory is filled.
    #[track_caller]
    pub fn scribbler(&self, name: &str, kind: &str, words: &[&str]) -> Value {
        let guest = format!("scribbler:{kind}");
        let usual = ["run", name, "--guest", &guest, "--wait-for", "console:SCRIBBLER-READY,60s"];
        self.home.done(&[&usual[..], words].concat())
    }

    /// Begins a move that is left to the daemon; answers its id.
    #[track_caller]
    pub fn begin(&self, guest: &str, to: &Self, words: &[&str]) -> String {
        let usual = ["move", guest, "--to", &to.name, "--detach"];
        let begun = self.home.done(&[&usual[..], words].concat());
        begun["move_id"].as_str().expect("an id").to_owned()
    }

    /// Moves a guest; answers the result, which must be that it is moved.
    #[track_caller]
    pub fn moves(&self, guest: &str, to: &Self) -> Value {
        let ran = self.tries(guest, &to.name, &["--max-downtime", "5s"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        last(&ran)
    }

    /// Asks for a move by the name of the host.
    #[track_caller]
    pub fn tries(&self, guest: &str, to: &str, words: &[&str]) -> Ran {
        let usual = ["move", guest, "--to", to, "--json"];
        run(&mut self.home.command(&[&usual[..], words].concat()))
    }

    /// Waits until the move is copying, and a receiver is there.
    #[track_caller]
    pub fn until_copying(&self, id: &str) {
        eventually("the move copies", || {
            let shown = self.home.json(&["report", id]);
            let report: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
            assert!(report["outcome"].is_null(), "it ended before: {report}");
            (report["phase"] == "copying").then_some(())
        });
    }

    /// Waits until something of the move is known here that is as wanted; answers its report.
    #[track_caller]
    pub fn until_report(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || {
            let shown = self.home.json(&["report", id]);
            let report: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
            wanted(&report).then_some(report)
        })
    }

    /// Waits until the move has ended; answers its report.
    #[track_caller]
    pub fn until_ended(&self, id: &str) -> Value {
        self.until_report(id, "the move ends", |report| !report["outcome"].is_null())
    }

    /// The guest is here: it has a process, and beats.
    #[track_caller]
    pub fn assert_runs(&self, guest: &str) -> Console {
        let mut console = eventually("its console", || {
            let there = self.home.dirs().guest(guest).console().exists();
            there.then(|| self.home.console(guest))
        });
        console.until_beats(20);
        assert!(!is_gone(pid_of(&self.home.done(&["show", guest]))));
        console
    }

    /// No guest is here, nor anything of one. A guest that is on its way out has its time.
    #[track_caller]
    pub fn assert_empty(&self) {
        let guests = self.home.dirs().guests();
        eventually("the guests' directories go", || {
            crate::support::names_in(&guests).is_empty().then_some(())
        });
        let daemon = self.daemon.as_ref().map(|d| i32::try_from(d.id()).unwrap());
        eventually("the guests' processes go", || {
            self.home.processes().iter().all(|pid| Some(*pid) == daemon).then_some(())
        });
    }

    /// Ends a guest that is here.
    pub fn kill_guests(&self) {
        for guest in crate::support::names_in(&self.home.dirs().guests()) {
            let _ = self.home.json(&["stop", &guest, "--kill"]);
        }
    }

    /// What the daemon has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon of {}:\n{}", self.name, self.log());
        } else {
            assert!(!self.log().contains("panicked"), "{}", self.log());
        }
        self.end_daemon(Signal::SIGTERM);
        self.kill_guests();
        // Whatever is left now is found, killed and complained of by the home.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !self.home.processes().is_empty() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Two hosts that trust each other.
#[derive(Debug)]
pub struct Site {
    pub a: Host,
    pub b: Host,
}

impl Site {
    #[track_caller]
    pub fn new() -> Self {
        Self::with("")
    }

    /// With these lines at the end of the second's `host.toml`.
    #[track_caller]
    pub fn with(lines: &str) -> Self {
        let (a, b) = (Host::new("alpha"), Host::new("beta"));
        b.configure(lines);
        Self::of(a, b)
    }

    /// Makes a site of two hosts named alpha and beta.
    #[track_caller]
    pub fn of(mut a: Host, mut b: Host) -> Self {
        a.home.done(&["host", "init", "--name", "alpha"]);
        a.start_daemon();
        join(&a, &b);
        b.start_daemon();
        Self { a, b }
    }
}

/// Has `new` join the site of `member`, whose daemon runs.
#[track_caller]
pub fn join(member: &Host, new: &Host) {
    let invited = member.home.done(&["host", "invite"]);
    let line = invited["invitation"].as_str().expect("an invitation");
    new.home.done(&["host", "join", line, "--name", &new.name]);
}

/// The last document of a command.
#[track_caller]
pub fn last(ran: &Ran) -> Value {
    let line = ran.stdout.lines().last().unwrap_or_else(|| panic!("no document: {ran:?}"));
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

/// Sends a signal to a process.
#[track_caller]
pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is ours");
}

/// The process of a command that was spawned.
pub fn id_of(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

/// A command of a host, whose output nobody reads.
pub fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}
