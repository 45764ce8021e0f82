//! An etcd server of a test's own, on loopback.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use migrate::config::ArbiterConfig;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::site::{id_of, signal};
use crate::support::eventually;

/// The server. Its data outlive its process.
#[derive(Debug)]
pub struct Etcd {
    dir: TempDir,
    /// For clients, and for members.
    ports: [u16; 2],
    child: Option<Child>,
}

/// Whether it is installed. Says so if not.
pub fn there() -> bool {
    let version = Command::new("etcd").arg("--version").stdout(Stdio::null()).status();
    let there = version.is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: etcd is missing; scripts/ci-deps installs it");
    }
    there
}

impl Etcd {
    /// One that runs and answers.
    #[track_caller]
    pub fn new() -> Self {
        let free = || TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let held = [free(), free()];
        let ports = held.each_ref().map(|listener| listener.local_addr().unwrap().port());
        drop(held);
        let mut etcd = Self { dir: tempfile::tempdir().unwrap(), ports, child: None };
        etcd.start();
        etcd
    }

    /// Starts it with the data that it has.
    #[track_caller]
    pub fn start(&mut self) {
        let [clients, members] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        // It goes with the thread of the test, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "etcd", "--name", "one"])
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &members, "--initial-advertise-peer-urls", &members])
            .args(["--initial-cluster", &format!("one={members}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
        eventually("etcd listens", || TcpStream::connect(("127.0.0.1", self.ports[0])).ok());
    }

    fn log(&self) -> std::path::PathBuf {
        self.dir.path().join("log")
    }

    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// The line of `host.toml` that names it.
    pub fn line(&self) -> String {
        line(self.port())
    }

    pub fn config(&self) -> ArbiterConfig {
        let endpoints = vec![format!("http://127.0.0.1:{}", self.port())];
        ArbiterConfig { endpoints, ca: None, identity: None }
    }

    pub fn pid(&self) -> i32 {
        id_of(self.child.as_ref().expect("it runs"))
    }

    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn stop(&self) {
        signal(self.pid(), Signal::SIGSTOP);
    }

    pub fn go_on(&self) {
        signal(self.pid(), Signal::SIGCONT);
    }
}

/// The line of `host.toml` that names an etcd at this port.
pub fn line(port: u16) -> String {
    format!("arbiter = \"etcd http://127.0.0.1:{port}\"\n")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("last of etcd's log, latest first:\n{}", tail.join("\n"));
        }
    }
}
