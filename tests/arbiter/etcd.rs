//! An etcd server of a test's own, on loopback.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use migrate::arbiter::open;
use migrate::config::ArbiterConfig;
use migrate_engine::wire::GuestId;
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
    /// Directory of its certificates, if it wants some of its clients.
    tls: Option<TempDir>,
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
        Self::with(None)
    }

    /// One that talks only to those who have a certificate of its CA.
    #[track_caller]
    pub fn secure() -> Self {
        Self::with(Some(certificates()))
    }

    #[track_caller]
    fn with(tls: Option<TempDir>) -> Self {
        let free = || TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let held = [free(), free()];
        let ports = held.each_ref().map(|listener| listener.local_addr().unwrap().port());
        drop(held);
        let mut etcd = Self { dir: tempfile::tempdir().unwrap(), ports, tls, child: None };
        etcd.start();
        etcd
    }

    /// Starts it with the data that it has.
    #[track_caller]
    pub fn start(&mut self) {
        let [_, members] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let clients = self.endpoint();
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
        if let Some(dir) = &self.tls {
            let file = |name: &str| dir.path().join(name);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(file("ca.crt"));
            command.arg("--cert-file").arg(file("server.crt"));
            command.arg("--key-file").arg(file("server.key"));
        }
        self.child = Some(command.spawn().unwrap());
        // It listens before it has elected itself. The caller may have a runtime of its own.
        let config = self.config();
        let answers = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let (runtime, arbiter) = (runtime.unwrap(), open(&config).unwrap());
            eventually("etcd answers", || {
                runtime.block_on(arbiter.read(GuestId([0xff; 16]))).is_ok().then_some(())
            });
        };
        std::thread::spawn(answers).join().unwrap();
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

    fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port())
    }

    pub fn config(&self) -> ArbiterConfig {
        let file = |name| self.tls.as_ref().map(|dir| dir.path().join(name));
        let identity = file("client.crt").zip(file("client.key"));
        ArbiterConfig { endpoints: vec![self.endpoint()], ca: file("ca.crt"), identity }
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

/// A CA, and what it signed for a server on loopback and a client of it.
fn certificates() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |words: &[&str]| {
        let ran = Command::new("openssl").args(words).current_dir(dir.path()).output().unwrap();
        assert!(ran.status.success(), "{words:?}: {ran:?}");
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"];
    let ca =
        ["req", "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt"];
    openssl(&[&ca[..], &key[..]].concat());
    for name in ["server", "client"] {
        let (secret, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        let subject = format!("/CN={name}");
        let request = ["req", "-x509", "-days", "2", "-CA", "ca.crt", "-CAkey", "ca.key"];
        let named = ["-subj", &subject, "-keyout", &secret, "-out", &certificate];
        let address = ["-addext", "subjectAltName=IP:127.0.0.1"];
        let leaf = ["-addext", "basicConstraints=critical,CA:FALSE"];
        openssl(&[&request[..], &named[..], &address[..], &leaf[..], &key[..]].concat());
    }
    dir
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
