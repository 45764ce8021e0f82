//! Two hosts in network namespaces, made by `scripts/lab` and removed when the test is over.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Ran, run};

/// A host of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    A,
    B,
    /// The network outside: the switch between the guests' bridges.
    Outside,
}

impl Host {
    fn word(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Outside => "out",
        }
    }
}

/// A lab of this test alone. Its addresses are 10.77.0.1 and .2, and 10.78.0.1, .2 and .254 on the
/// guests' network: labs do not see each other.
#[derive(Debug)]
pub struct Lab {
    name: String,
}

impl Lab {
    /// Makes one; `options` are those of `scripts/lab up`. `None`, said aloud, if this user or
    /// machine cannot.
    #[track_caller]
    pub fn up(options: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let made = Command::new("unshare").args(["--net", "true"]).status();
        if !(nix::unistd::geteuid().is_root() && made.is_ok_and(|s| s.success())) {
            eprintln!("SKIPPED: no network namespace can be made: run this test as root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lab = Self { name: format!("test-{}-{number}", std::process::id()) };
        let mut words = vec!["up"];
        words.extend(options);
        let ran = lab.script(&words);
        assert_eq!(ran.code, Some(0), "scripts/lab up: {}", ran.stderr);
        Some(lab)
    }

    /// The prefix of its namespaces' names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of a host's namespace below `/run/netns`.
    pub fn namespace(&self, host: Host) -> String {
        format!("{}-{}", self.name, host.word())
    }

    /// Runs `scripts/lab` with these words for this lab.
    #[track_caller]
    pub fn script(&self, words: &[&str]) -> Ran {
        let mut command = Command::new(root().join("scripts/lab"));
        command.args(["--name", &self.name]).args(words);
        // Built together with the tests, but not by every way to build them.
        let relay = Path::new(env!("CARGO_BIN_EXE_migrate")).with_file_name("examples/lab_relay");
        if std::env::var_os("LAB_RELAY").is_none() && relay.exists() {
            command.env("LAB_RELAY", relay);
        }
        run(&mut command)
    }

    /// As [`Self::script`], and it must work.
    #[track_caller]
    pub fn done(&self, words: &[&str]) -> String {
        let ran = self.script(words);
        assert_eq!(ran.code, Some(0), "scripts/lab {words:?}: {}", ran.stderr);
        ran.stdout
    }

    /// Tells the relay something at once, such as `cut a-to-b`: for what cannot wait for a script.
    #[track_caller]
    pub fn relay(&self, request: &str) {
        let path = Path::new("/run/migrate-lab").join(format!("{}.sock", self.name));
        let mut stream = UnixStream::connect(path).expect("a lab with a relay");
        writeln!(stream, "{request}").expect("the relay listens");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the relay answers");
        assert!(answer.ends_with("ok\n"), "{request}: {answer}");
    }

    /// A command on a host.
    pub fn command(&self, host: Host, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host), program]).args(words);
        command
    }

    /// Starts a command on a host, with its output in pipes.
    #[track_caller]
    pub fn spawn(&self, host: Host, program: &str, words: &[&str]) -> Child {
        self.command(host, program, words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Does `work` on a thread whose sockets are on a host.
    #[track_caller]
    pub fn on<T: Send>(&self, host: Host, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace(host);
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                enter(&namespace);
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A counter of the relay, such as `lost`, of direction `a-to-b` or `b-to-a`.
    #[track_caller]
    pub fn counter(&self, direction: &str, key: &str) -> u64 {
        let shown = self.done(&["show"]);
        let line = shown.lines().find_map(|l| l.strip_prefix(direction));
        let words = line.unwrap_or_default().split_whitespace();
        let value = words.filter_map(|w| w.split_once('=')).find(|(k, _)| *k == key);
        value.and_then(|(_, v)| v.parse().ok()).unwrap_or_else(|| panic!("no {key} in {shown}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let ran = self.script(&["down"]);
        if !std::thread::panicking() {
            assert_eq!(ran.code, Some(0), "scripts/lab down: {}", ran.stderr);
        }
    }
}

/// Moves this thread into a namespace.
#[track_caller]
fn enter(namespace: &str) {
    let path = Path::new("/run/netns").join(namespace);
    let file = std::fs::File::open(path).expect("a namespace of the lab");
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter it");
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
