//! Two complete hosts in a temporary directory: each with its own files, key and daemon, talking
//! over loopback. They are made with the commands that a user types. Dropping the world ends its
//! processes and removes its files, unless it is kept.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::api::client::{GuestClient, runtime};
use crate::api::daemon_client::DaemonClient;
use crate::api::{ErrorCode, Failure};
use crate::config::Dirs;
use crate::host::leftover::{Life, life};
use crate::host::registry;

/// Names of the two hosts.
pub const HOSTS: [&str; 2] = ["alpha", "beta"];
/// Name of the guest.
pub const GUEST: &str = "guest1";
/// Marks a directory that a demo made and may be removed.
const MARK: &str = "made-by-migrate-demo";
/// What a daemon says, in its home.
const LOG: &str = "daemon.log";
/// First control port that is tried; below the ports that the system gives out by itself.
const FIRST_PORT: u16 = 17_420;
/// Ports of a host: one for control and the rest for data.
const PORTS: u16 = 20;
/// How long a daemon may take to start or to end.
const DAEMON_DEADLINE: Duration = Duration::from_secs(15);
/// How long a guest that is killed may take to be gone.
const GUEST_DEADLINE: Duration = Duration::from_secs(10);

/// One of the two hosts.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: &'static str,
    /// Its `MIGRATE_HOME`.
    pub home: PathBuf,
    /// Its files.
    pub dirs: Dirs,
    /// Its daemon.
    pub daemon: DaemonClient,
    child: Option<Child>,
}

/// The two hosts.
#[derive(Debug)]
pub struct World {
    base: PathBuf,
    hosts: [Host; 2],
    keep: bool,
}

fn failed(what: &str, e: &io::Error) -> Failure {
    Failure::new(
        ErrorCode::File,
        format!("{what}: {e}"),
        "check the space and the rights there, or choose another place: TMPDIR=DIR migrate demo",
    )
}

impl Host {
    fn new(base: &Path, name: &'static str) -> Self {
        let home = base.join(name);
        let dirs = Dirs::below(&home);
        let start = format!("MIGRATE_HOME={} migrate daemon", home.display());
        let daemon = DaemonClient::new(dirs.daemon_socket(), start);
        Self { name, home, dirs, daemon, child: None }
    }

    /// A command of this program on this host, in a process group of its own: Ctrl-C is ours.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(words)
            .env("MIGRATE_HOME", &self.home)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Runs a command of this program on this host; answers its last document.
    ///
    /// # Errors
    /// That of the command.
    pub async fn run(&self, words: &[&str]) -> Result<Value, Failure> {
        let all: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let output = self.command(&all).output().await;
        let output = output.map_err(|e| failed("this program cannot start itself", &e))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        let document: Value = serde_json::from_str(last).unwrap_or_default();
        if output.status.success() {
            return Ok(document);
        }
        let error = document.get("error").cloned().unwrap_or_default();
        if let Ok(body) = serde_json::from_value(error) {
            return Err(Failure(Box::new(body)));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(
            ErrorCode::Unexpected,
            format!("'migrate {}' on {} failed: {said}", words.join(" "), self.name),
            "run the demo again with --keep and look at the log in its directory",
        ))
    }

    /// Writes where this host listens: an address of loopback and ports of its own.
    fn configure(&self, port: u16) -> io::Result<()> {
        fs::create_dir_all(&self.dirs.config)?;
        let (first, last) = (port + 1, port + PORTS - 1);
        let text = format!(
            "# One of the two hosts of a demo.\n\
             listen = \"127.0.0.1:{port}\"\n\
             advertise = \"127.0.0.1:{port}\"\n\
             data_ports = \"{first}-{last}\"\n"
        );
        fs::write(self.dirs.config.join("host.toml"), text)
    }

    /// Starts the daemon and waits until it answers.
    async fn start_daemon(&mut self, keep: bool) -> Result<(), Failure> {
        let log = fs::File::create(self.home.join(LOG))
            .map_err(|e| failed("no log for the daemon", &e))?;
        let log_too = log.try_clone().map_err(|e| failed("no log for the daemon", &e))?;
        let words: &[&str] = if keep { &["daemon"] } else { &["daemon", "--end-with-parent"] };
        let child = self.command(words).kill_on_drop(false).stdout(log).stderr(log_too).spawn();
        let child = child.map_err(|e| failed("this program cannot start itself", &e))?;
        // From here on whoever drops this host ends it.
        let child = self.child.insert(child);
        let start = Instant::now();
        while self.daemon.host().await.is_err() {
            let ended = child.try_wait().ok().flatten();
            if ended.is_some() || start.elapsed() > DAEMON_DEADLINE {
                let said = fs::read_to_string(self.home.join(LOG)).unwrap_or_default();
                let said: Vec<&str> = said.lines().rev().take(3).collect();
                return Err(Failure::new(
                    ErrorCode::Unexpected,
                    format!("the daemon of {} did not start: {}", self.name, said.join(" / ")),
                    "run the demo again; if it stays so, with MIGRATE_LOG=debug",
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends the daemon by its process id.
    fn stop_daemon(&mut self) {
        let pid = match &self.child {
            Some(child) => child.id(),
            None => runtime().ok().and_then(|r| r.block_on(self.daemon.host()).ok()).map(|h| h.pid),
        };
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1);
        let Some(pid) = pid.map(Pid::from_raw) else { return };
        let _ = kill(pid, Signal::SIGTERM);
        let start = Instant::now();
        while self.daemon_lives(pid) {
            if start.elapsed() > DAEMON_DEADLINE {
                let _ = kill(pid, Signal::SIGKILL);
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn daemon_lives(&mut self, pid: Pid) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => kill(pid, None).is_ok(),
        }
    }

    /// Kills what guests there are, also those that are just arriving.
    fn kill_guests(&self) {
        let Ok(runtime) = runtime() else { return };
        let start = Instant::now();
        while let Some(guest) = registry::names(&self.dirs).unwrap_or_default().pop() {
            if start.elapsed() > GUEST_DEADLINE {
                return;
            }
            let client = GuestClient::new(&guest, self.dirs.guest(&guest));
            if let Ok(Life::Dead(claim)) = life(client.paths()) {
                let _ = crate::host::leftover::clean(&self.dirs, client.paths(), claim);
                continue;
            }
            let _ = runtime.block_on(client.stop_async(Duration::ZERO));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl World {
    /// Makes the directory. With `keep` it stays.
    ///
    /// # Errors
    /// `file` if there is no place for it.
    pub fn new(keep: bool) -> Result<Self, Failure> {
        let template = std::env::temp_dir().join("migrate-demo-XXXXXX");
        let base = nix::unistd::mkdtemp(&template)
            .map_err(|e| failed("no directory for the two hosts", &e.into()))?;
        let world = Self { hosts: HOSTS.map(|name| Host::new(&base, name)), base, keep };
        fs::write(world.base.join(MARK), "").map_err(|e| failed("no mark", &e))?;
        for host in &world.hosts {
            host.dirs.check_socket_paths(GUEST).map_err(|Failure(mut body)| {
                "choose a place with a shorter path: TMPDIR=/tmp migrate demo"
                    .clone_into(&mut body.remedy);
                Failure(body)
            })?;
        }
        Ok(world)
    }

    /// The world that a demo with `--keep` left in `base`.
    ///
    /// # Errors
    /// `usage` if it was not made by a demo.
    pub fn kept(base: &Path) -> Result<Self, Failure> {
        let base = std::path::absolute(base).unwrap_or_else(|_| base.to_owned());
        if !base.join(MARK).is_file() {
            return Err(Failure::new(
                ErrorCode::Usage,
                format!("{} was not made by 'migrate demo --keep'", base.display()),
                "give the directory that it printed",
            ));
        }
        Ok(Self { hosts: HOSTS.map(|name| Host::new(&base, name)), base, keep: false })
    }

    /// Where it is.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The host that the guest begins on.
    pub fn source(&self) -> &Host {
        let [source, _] = &self.hosts;
        source
    }

    /// The host that it moves to.
    pub fn target(&self) -> &Host {
        let [_, target] = &self.hosts;
        target
    }

    /// It stays when it is dropped.
    pub fn is_kept(&self) -> bool {
        self.keep
    }

    /// Makes both hosts members of one site, with the commands that a user types, each told to
    /// `say` before.
    ///
    /// # Errors
    /// That of the first command that fails.
    pub async fn found(&mut self, say: &(dyn Fn(&str) + Sync)) -> Result<(), Failure> {
        let keep = self.keep;
        let ports = free_ports().map_err(|e| failed("no free ports on loopback", &e))?;
        for (host, port) in self.hosts.iter().zip(ports) {
            host.configure(port).map_err(|e| failed("no configuration", &e))?;
        }
        let [source, target] = &mut self.hosts;
        let told = |host: &Host, words: &str| say(&format!("[{}] $ migrate {words}", host.name));
        told(source, &format!("host init --name {}", source.name));
        source.run(&["host", "init", "--name", source.name]).await?;
        told(source, "daemon &");
        source.start_daemon(keep).await?;
        told(source, "host invite");
        let invited = source.run(&["host", "invite"]).await?;
        let line = invited.get("invitation").and_then(Value::as_str).unwrap_or_default();
        let begin: String = line.chars().take(16).collect();
        told(target, &format!("host join {begin}... --name {}", target.name));
        target.run(&["host", "join", line, "--name", target.name]).await?;
        told(target, "daemon &");
        target.start_daemon(keep).await
    }

    /// Ends everything and removes the directory.
    fn remove(&mut self) {
        for host in &mut self.hosts {
            host.stop_daemon();
        }
        for host in &self.hosts {
            host.kill_guests();
        }
        // A guest's process may still be removing its own files.
        for _ in 0..50 {
            match fs::remove_dir_all(&self.base) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                _ => return,
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.keep {
            self.remove();
        }
    }
}

/// The first port of each host, so that all its ports are free now.
fn free_ports() -> io::Result<[u16; 2]> {
    let free = |port: u16| UdpSocket::bind(("127.0.0.1", port));
    let mut found = Vec::new();
    for first in (FIRST_PORT..30_000).step_by(usize::from(PORTS)) {
        let all: io::Result<Vec<_>> = (first..first + PORTS).map(free).collect();
        if all.is_ok() {
            found.push(first);
        }
        if let [a, b] = *found {
            return Ok([a, b]);
        }
    }
    Err(io::Error::other("none between 17420 and 30000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_is_removed_and_only_a_world() {
        let world = World::new(false).unwrap();
        let base = world.base().to_owned();
        assert!(base.join(MARK).exists());
        drop(world);
        assert!(!base.exists());

        let kept = World::new(true).unwrap();
        let base = kept.base().to_owned();
        drop(kept);
        assert!(base.exists(), "kept");
        drop(World::kept(&base).unwrap());
        assert!(!base.exists());

        let other = tempfile::tempdir().unwrap();
        assert_eq!(World::kept(other.path()).unwrap_err().0.code, ErrorCode::Usage);
        assert!(other.path().exists());
    }

    #[test]
    fn the_hosts_have_ports_of_their_own() {
        let [a, b] = free_ports().unwrap();
        assert!(b >= a + PORTS);
    }
}
