//! A host of a pair: a private instance whose processes look for a plan of harm, with a boot id
//! and a clock of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use migrate::failpoint::plan::Plan;
use migrate::guest::journal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use uuid::Uuid;

use crate::support::{Home, descriptors, names_in, run};

/// What went wrong, in words.
pub type Failed = String;

/// Ports of a host: one for control, the rest for data.
pub const PORTS: u16 = 8;

/// A line of the log of places: its generation, process, place, time and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub generation: u64,
    pub pid: i32,
    pub place: String,
    pub what: String,
}

pub struct Host {
    pub name: String,
    pub home: Home,
    daemon: Option<Child>,
    plan: File,
}

/// Sends a signal. A process that is gone does not need it.
pub fn signal(pid: i32, with: Signal) {
    let _ = kill(Pid::from_raw(pid), with);
}

/// Waits until `done` says so; whether it did in time.
pub fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

impl Host {
    /// A host that listens at `back` and says that it is reached at `front`.
    pub fn new(
        name: &str,
        (front, back): (Ipv4Addr, Ipv4Addr),
        port: u16,
        (boot, skew_s): (Uuid, i64),
    ) -> Result<Self, Failed> {
        let home = Home::new();
        let config = home.dirs().config;
        let (first, last) = (port + 1, port + PORTS - 1);
        let text = format!(
            "listen = \"{back}:{port}\"\nadvertise = \"{front}:{port}\"\n\
             data_ports = \"{first}-{last}\"\n"
        );
        let harm = home.path().join("harm");
        let made = (|| {
            fs::create_dir_all(&config)?;
            fs::write(config.join("host.toml"), text)?;
            fs::create_dir_all(&harm)?;
            fs::write(harm.join("boot_id"), boot.to_string())?;
            fs::write(harm.join("skew_s"), skew_s.to_string())?;
            File::create(harm.join("log"))?;
            File::create(harm.join("plan"))
        })();
        let plan = made.map_err(|e: std::io::Error| format!("the files of {name}: {e}"))?;
        Ok(Self { name: name.to_owned(), home, daemon: None, plan })
    }

    fn harm(&self) -> PathBuf {
        self.home.path().join("harm")
    }

    /// A command of this host.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.home.command(words);
        command.env("MIGRATE_FAIL_POINTS", self.harm());
        command
    }

    /// The document of a command that succeeds.
    pub fn done(&self, words: &[&str]) -> Result<Value, Failed> {
        let ran = run(self.command(words).arg("--json"));
        let last = ran.stdout.lines().last().unwrap_or_default();
        match (ran.code, serde_json::from_str(last)) {
            (Some(0), Ok(value)) => Ok(value),
            _ => Err(format!("{}: migrate {}: {ran:?}", self.name, words.join(" "))),
        }
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon(&mut self) -> Result<(), Failed> {
        let path = self.home.path().join("daemon.log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(|e| format!("{}: {e}", path.display()))?;
        let error = log.try_clone().map_err(|e| e.to_string())?;
        let mut command = self.command(&["daemon"]);
        command.stdin(Stdio::null()).stdout(log).stderr(error);
        self.daemon = Some(command.spawn().map_err(|e| e.to_string())?);
        if within(Duration::from_secs(30), || self.get("/v1/host").is_ok()) {
            return Ok(());
        }
        Err(format!("the daemon of {} does not answer", self.name))
    }

    /// The daemon's process.
    pub fn daemon_pid(&self) -> i32 {
        self.daemon.as_ref().and_then(|d| i32::try_from(d.id()).ok()).unwrap_or(0)
    }

    /// Whether the daemon lives; one that has ended is reaped.
    pub fn daemon_lives(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|d| matches!(d.try_wait(), Ok(None)))
    }

    pub fn end_daemon(&mut self, with: Signal) {
        if let Some(mut child) = self.daemon.take() {
            signal(i32::try_from(child.id()).unwrap_or(0), Signal::SIGCONT);
            signal(i32::try_from(child.id()).unwrap_or(0), with);
            let _ = child.wait();
        }
    }

    pub fn get(&self, path: &str) -> Result<Value, Failed> {
        call(&self.home.dirs().daemon_socket(), &format!("GET {path}"), "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failed> {
        self.poster(path, body)()
    }

    /// The same, to be called wherever.
    pub fn poster(
        &self,
        path: &str,
        body: &Value,
    ) -> impl FnOnce() -> Result<Value, Failed> + Send + 'static {
        let socket = self.home.dirs().daemon_socket();
        let (head, body) = (format!("POST {path}"), body.to_string());
        move || call(&socket, &head, &body)
    }

    /// Has this plan followed from now on.
    pub fn plan(&self, plan: &Plan) -> Result<(), Failed> {
        let mut text = plan.text();
        // In one piece, over whatever stood there.
        let blank = migrate::failpoint::plan::MAX.saturating_sub(text.len() + 1);
        text.push_str(&"\n".repeat(blank));
        self.plan.write_all_at(text.as_bytes(), 0).map_err(|e| e.to_string())
    }

    /// The log of places begins anew.
    pub fn forget_passed(&self) {
        if let Ok(log) = File::options().write(true).open(self.harm().join("log")) {
            let _ = log.set_len(0);
        }
    }

    /// The places that were passed in this generation.
    pub fn passed(&self, generation: u64) -> Vec<Passed> {
        let text = fs::read_to_string(self.harm().join("log")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let line = |line: &str| {
            let mut words = line.split(' ');
            let generation = words.next()?.parse().ok()?;
            let pid = words.next()?.parse().ok()?;
            let place = words.next()?.to_owned();
            let what = words.nth(1)?.to_owned();
            Some(Passed { generation, pid, place, what })
        };
        whole.lines().filter_map(line).filter(|p| p.generation == generation).collect()
    }

    /// Guest processes of this host. Only a process of the program is looked into: there are many
    /// others, and this is asked often.
    pub fn others(&self) -> Vec<i32> {
        let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let is_guest = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let hidden = b"guest-process";
            words.windows(hidden.len()).any(|word| word == hidden)
        };
        let ours = |pid: &i32| descriptors(*pid).iter().any(|p| p.starts_with(self.home.path()));
        pids.filter(|pid| is_guest(pid) && ours(pid)).collect()
    }

    /// Names of the guests that have something in the runtime directory.
    pub fn guests(&self) -> Vec<String> {
        names_in(&self.home.dirs().guests())
    }

    /// What the journal of a guest says here.
    pub fn record(&self, guest: Uuid) -> Result<Option<journal::record::Record>, Failed> {
        journal::read(&self.home.dirs().journal(&guest)).map_err(|e| e.to_string())
    }

    /// Records of moves that have not ended.
    pub fn open_moves(&self) -> Vec<String> {
        names_in(&self.home.dirs().state.join("moves").join("open"))
    }

    /// Keeps the evidence: all that lies there but keys.
    pub fn keep(&self, to: &Path) {
        let _ = fs::create_dir_all(to);
        let from = self.home.path();
        let parts = ["daemon.log", "harm", "state"].map(|part| from.join(part));
        let _ = Command::new("cp").arg("-r").args(parts).arg(to).status();
    }
}

/// Asks a daemon.
fn call(socket: &Path, head: &str, body: &str) -> Result<Value, Failed> {
    let failed = |e: std::io::Error| format!("the API at {}: {e}", socket.display());
    let mut socket = UnixStream::connect(socket).map_err(failed)?;
    socket.set_read_timeout(Some(Duration::from_mins(1))).map_err(failed)?;
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: daemon\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    socket.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(format!("{head}: {body}"));
    }
    serde_json::from_str(body).map_err(|e| format!("{e}: {answer}"))
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end_daemon(Signal::SIGKILL);
        for pid in self.home.processes() {
            signal(pid, Signal::SIGCONT);
            signal(pid, Signal::SIGKILL);
        }
        within(Duration::from_secs(10), || self.home.processes().is_empty());
    }
}
