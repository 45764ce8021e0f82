//! Real guests, as a user meets them: the built binary in a private instance of its own. Nothing
//! here calls into the code under test but for the layout of the instance's directories.

#![allow(dead_code, unused_imports, reason = "not every test program uses everything")]

mod console;
pub mod frames;
pub mod lab;
mod namespace;

pub use console::Console;
pub use namespace::{NOBODY, Namespace};

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use migrate::config::Dirs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing that is waited for takes that long, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Whether guests can run here. Says so if not.
pub fn kvm() -> bool {
    let there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        eprintln!("SKIPPED: /dev/kvm is missing or may not be opened");
    }
    there
}

/// Waits until `done` answers.
#[track_caller]
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The one document on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one document: {self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The document of a command that succeeded.
    #[track_caller]
    pub fn done(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.json()
    }

    /// The error of a refused command, which must be whole and name `wanted`.
    #[track_caller]
    pub fn refused(&self, code: &str, wanted: &[&str]) -> Value {
        let error = self.json()["error"].clone();
        assert_eq!((self.code, &error["code"]), (Some(4), &json!(code)), "{self:?}");
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
        assert!(!text("remedy").is_empty(), "no remedy: {self:?}");
        for part in wanted {
            assert!(text("message").contains(part), "'{part}' is not in: {}", text("message"));
        }
        self.assert_no_defect();
        error
    }

    #[track_caller]
    pub fn assert_no_defect(&self) {
        for word in ["defect", "panicked", "SIG"] {
            assert!(!self.stderr.contains(word), "{self:?}");
        }
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let (stdout, stderr) =
        (read_in_thread(child.stdout.take()), read_in_thread(child.stderr.take()));
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if Instant::now() > end {
            child.kill().expect("a child can be killed");
            panic!("{shown} did not end: {:?} {:?}", stdout.recv(), stderr.recv());
        }
        thread::sleep(Duration::from_millis(2));
    };
    // A guest that kept one of them open would be a defect, and would hang us here.
    let text = |from: mpsc::Receiver<String>| {
        from.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{shown} left its output open"))
    };
    Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

fn read_in_thread(from: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let mut from = from.expect("it was piped");
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// A private instance. Whatever of it still lives at the end is killed, and is a failure.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    /// The program that its commands are.
    binary: PathBuf,
    /// Words that run a command where this instance lives; none if that is here.
    enter: Vec<String>,
}

impl Home {
    pub fn new() -> Self {
        Self::entered(Vec::new())
    }

    /// An instance whose commands all begin with the words `enter`, such as those that lead into
    /// a namespace.
    pub fn entered(enter: Vec<String>) -> Self {
        // The name is short: paths of sockets are.
        let dir = tempfile::Builder::new().prefix("mg").rand_bytes(6).tempdir();
        let binary = env!("CARGO_BIN_EXE_migrate").into();
        Self { dir: dir.expect("a temporary directory"), binary, enter }
    }

    /// The same, with another program in the place of `migrate`.
    #[must_use]
    pub fn with(mut self, binary: PathBuf) -> Self {
        assert!(binary.exists(), "{} is built by: cargo test", binary.display());
        self.binary = binary;
        self
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the instance's directory that is none of its own.
    pub fn file(&self, name: &str) -> PathBuf {
        let own = self.path().join("files");
        fs::create_dir_all(&own).expect("a directory for the test's files");
        own.join(name)
    }

    /// As [`Self::file`], as text.
    pub fn file_text(&self, name: &str) -> String {
        self.file(name).to_str().expect("a path of ours").to_owned()
    }

    pub fn dirs(&self) -> Dirs {
        Dirs::below(self.path())
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let enter = self.enter.iter().map(Path::new);
        let all: Vec<&Path> = enter.chain([self.binary.as_path()]).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).args(words);
        self.surround(&mut command);
        command
    }

    /// Sets the environment of a command.
    pub fn surround<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("MIGRATE_HOME", self.path()).env_remove("MIGRATE_LOG").env("NO_COLOR", "1")
    }

    /// Runs `migrate` with these words, and with `--json`.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Ran {
        run(self.command(words).arg("--json"))
    }

    /// Runs `migrate`, for people.
    #[track_caller]
    pub fn text(&self, words: &[&str]) -> Ran {
        run(&mut self.command(words))
    }

    /// The document of a command that succeeds.
    #[track_caller]
    pub fn done(&self, words: &[&str]) -> Value {
        self.json(words).done()
    }

    /// Starts a command that stays, with its output in pipes.
    pub fn spawn(&self, words: &[&str]) -> Child {
        self.command(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the built binary runs")
    }

    /// Connects to the console of guest `name`.
    #[track_caller]
    pub fn console(&self, name: &str) -> Console {
        Console::connect(&self.dirs().guest(name).console())
    }

    /// Processes that use this instance: some descriptor of theirs leads into it.
    pub fn processes(&self) -> Vec<i32> {
        let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| *pid != i32::try_from(std::process::id()).unwrap_or(0))
            .filter(|pid| descriptors(*pid).iter().any(|path| path.starts_with(self.path())))
            .collect()
    }

    /// No guest is there, nor anything that a guest needs. A process that has given up everything
    /// may still be about to exit.
    #[track_caller]
    pub fn assert_no_guest(&self) {
        assert_eq!(names_in(&self.dirs().guests()), [""; 0], "runtime directories");
        for pid in self.processes() {
            let held = descriptors(pid);
            let costly = |path: &PathBuf| {
                let text = path.to_string_lossy();
                ["guest-ram", "kvm", "/files/disk", "/lock", "/journal/", "tun"]
                    .iter()
                    .any(|w| text.contains(w))
            };
            assert!(!held.iter().any(costly), "process {pid} still has {held:?}");
            wait_gone(pid);
        }
    }

    /// As [`Self::assert_no_guest`], and no trace that one ever was.
    #[track_caller]
    pub fn assert_untouched(&self) {
        self.assert_no_guest();
        for trace in ["journal", "exits", "identity", "saves"] {
            let dir = self.dirs().state.join(trace);
            assert_eq!(names_in(&dir), [""; 0], "{}", dir.display());
        }
    }

    /// Logs of all guest processes so far.
    pub fn logs(&self) -> String {
        let logs = self.dirs().logs();
        let text = |name: &String| {
            let path = logs.join(name);
            // Not what a test put in the place of a log, which may never end.
            let file = fs::symlink_metadata(&path).is_ok_and(|m| m.is_file());
            if file { fs::read_to_string(path).unwrap_or_default() } else { String::new() }
        };
        names_in(&logs).iter().map(text).collect()
    }

    #[track_caller]
    pub fn assert_no_defect(&self) {
        let logs = self.logs();
        assert!(!logs.contains("defect") && !logs.contains("panicked"), "{logs}");
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let left = self.processes();
        for pid in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if thread::panicking() {
            eprintln!("logs of the guests:\n{}", self.logs());
        } else {
            assert_eq!(left, [0; 0], "the test left processes");
            self.assert_no_defect();
        }
    }
}

/// Names in a directory; none if it is missing.
pub fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let name = |e: fs::DirEntry| e.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = entries.filter_map(|e| Some(name(e.ok()?))).collect();
    names.sort();
    names
}

/// Where the descriptors of a process lead; none if it is gone.
pub fn descriptors(pid: i32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
}

/// The process id in a guest's facts.
#[track_caller]
pub fn pid_of(info: &Value) -> i32 {
    info["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a process id")
}

/// Whether a process is gone with all its threads, or only not yet reaped by its parent. As long
/// as one of its threads is there, so are its descriptors and locks.
pub fn is_gone(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let dead = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    dead && threads <= 1
}

/// Waits until a process is gone.
#[track_caller]
pub fn wait_gone(pid: i32) {
    eventually("its process exits", || is_gone(pid).then_some(()));
}
