//! Guests as units of systemd. A guest that outlives whoever started it gets a scope of its own,
//! `migrate-guest-NAME.scope`: it leaves the cgroup of the daemon or of the login session, so
//! that neither's end is its own, and it is stopped in order when the host shuts down.
//!
//! The scope is made around the process that already runs: descriptors cannot be handed to a
//! process that systemd starts. A thread asks for it beside the start, so that a bus that hangs
//! holds up nothing; whatever goes wrong is a line in the log, and the guest stays where its
//! caller is, in a session of its own. Without systemd, and in private instances, nothing is
//! done. It never ends a process but `busctl`, which it started.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Dirs;

/// Time that systemd has for its answer. It needs some milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks whether it has come.
const LOOK: Duration = Duration::from_millis(5);
/// Microseconds a guest has to shut down or to be saved, before systemd kills it: more than the
/// 90 s that it gives its guest.
const STOP_US: &str = "120000000";
/// Bytes of an error that are read.
const ERROR_MAX: u64 = 1024;

/// Whose systemd looks after a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    System,
    User,
}

/// A request for a scope, under way. Dropping it leaves it under way.
#[derive(Debug)]
pub struct Asked {
    guest: String,
    withdrawn: Arc<AtomicBool>,
    answered: Receiver<()>,
}

/// Asks for a scope for the process `pid` of guest `guest`, if this instance's guests get one,
/// and does not wait for it. The log says if there is none in the end.
pub fn ask(dirs: &Dirs, guest: &str, pid: u32) -> Option<Asked> {
    let booted = Path::new("/run/systemd/system").is_dir();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR");
    let manager = manager(dirs, runtime.as_ref().map(Path::new)).filter(|_| booted)?;
    Some(ask_with(Path::new("busctl"), manager, guest, pid))
}

fn ask_with(busctl: &Path, manager: Manager, guest: &str, pid: u32) -> Asked {
    let withdrawn = Arc::new(AtomicBool::new(false));
    let (sender, answered) = channel();
    let asked = Asked { guest: guest.to_owned(), withdrawn: Arc::clone(&withdrawn), answered };
    let (busctl, guest) = (busctl.to_owned(), guest.to_owned());
    let span = tracing::Span::current();
    let started = thread::Builder::new().name("scope".into()).spawn(move || {
        let _log = span.enter();
        let result = request(&busctl, manager, &guest, pid, &withdrawn);
        // A guest that ended meanwhile needs none.
        let lives = Path::new(&format!("/proc/{pid}")).exists();
        if let Err(error) = result
            && lives
            && !withdrawn.load(Ordering::Relaxed)
        {
            tracing::warn!(GUEST = guest, %error, "the guest has no unit of its own");
        }
        let _ = sender.send(());
    });
    if let Err(error) = started {
        tracing::warn!(GUEST = asked.guest, %error, "the guest has no unit of its own");
    }
    asked
}

impl Asked {
    /// For a caller that ends soon, and its threads with it: waits for the answer, `grace` at
    /// most. One that comes later counts all the same, but nobody hears of it.
    pub fn settle(self, grace: Duration) {
        if self.answered.recv_timeout(grace) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                GUEST = self.guest,
                "systemd does not answer; the guest may stay without a unit of its own"
            );
        }
    }

    /// The process is gone: its number may soon be another's.
    pub fn withdraw(self) {
        self.withdrawn.store(true, Ordering::Relaxed);
        let _ = self.answered.recv_timeout(PATIENCE);
    }
}

/// Asks until there is an answer, and once more by another name: the scope of the last process
/// of that guest may not be gone yet.
fn request(
    busctl: &Path,
    manager: Manager,
    guest: &str,
    pid: u32,
    withdrawn: &AtomicBool,
) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let ask = |name: &str| {
        let child = start(busctl, &words(manager, name, guest, pid))?;
        answer(child, end, withdrawn)
    };
    match ask(&unit(guest)) {
        // No guest's name has an @ in it.
        Err(error) if error.to_string().contains("already") => {
            ask(&unit(&format!("{guest}@{pid}")))
        }
        other => other,
    }
}

/// Who looks after the guests of an instance; nobody after those of a private one.
fn manager(dirs: &Dirs, xdg_runtime: Option<&Path>) -> Option<Manager> {
    if dirs.run == Path::new("/run/migrate") {
        return Some(Manager::System);
    }
    xdg_runtime.filter(|runtime| dirs.run == runtime.join("migrate")).map(|_| Manager::User)
}

/// The name of a guest's unit. A guest's name has only characters that may stand in it.
fn unit(guest: &str) -> String {
    format!("migrate-guest-{guest}.scope")
}

/// The command that asks for a scope: `StartTransientUnit(name, mode, properties, auxiliary)`.
fn words(manager: Manager, unit: &str, guest: &str, pid: u32) -> Vec<String> {
    let pid = pid.to_string();
    let description = format!("Virtual machine {guest}");
    let mut properties: Vec<Vec<&str>> = vec![
        vec!["Description", "s", &description],
        vec!["PIDs", "au", "1", &pid],
        // One that failed goes too, and its name with it.
        vec!["CollectMode", "s", "inactive-or-failed"],
        vec!["TimeoutStopUSec", "t", STOP_US],
        // What starts first stops last: a guest ends while there are networks and file systems.
        vec!["After", "as", "3", "migrate.service", "network-online.target", "remote-fs.target"],
    ];
    if manager == Manager::System {
        properties.push(vec!["Slice", "s", "machine.slice"]);
    }
    let count = properties.len().to_string();
    let bus = match manager {
        Manager::System => "--system",
        Manager::User => "--user",
    };
    let timeout = format!("--timeout={}", PATIENCE.as_secs());
    let head = [
        bus,
        "--quiet",
        "--allow-interactive-authorization=false",
        &timeout,
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        unit,
        "fail",
        &count,
    ];
    let all = head.into_iter().chain(properties.into_iter().flatten()).chain(["0"]);
    all.map(str::to_owned).collect()
}

fn start(busctl: &Path, words: &[String]) -> io::Result<Child> {
    Command::new(busctl)
        .args(words)
        // Ctrl-C is for the command.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{} cannot be run: {e}", busctl.display())))
}

/// Waits for the end of `child` until `end`; then, or when nobody wants it any more, it is ended:
/// the limit that it was given does not hold while it connects.
fn answer(mut child: Child, end: Instant, withdrawn: &AtomicBool) -> io::Result<()> {
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end || withdrawn.load(Ordering::Relaxed) {
            child.kill()?;
            child.wait()?;
            let why = format!("systemd did not answer within {} s", PATIENCE.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        thread::sleep(LOOK);
    };
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(ERROR_MAX).read_to_end(&mut text)?;
    }
    Err(io::Error::other(String::from_utf8_lossy(&text).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_instance_has_no_manager() {
        let runtime = Path::new("/run/user/7");
        let mut dirs = Dirs::below(Path::new("/p"));
        assert_eq!(manager(&dirs, Some(runtime)), None);
        dirs.run = "/run/migrate".into();
        assert_eq!(manager(&dirs, Some(runtime)), Some(Manager::System));
        dirs.run = "/run/user/7/migrate".into();
        assert_eq!(manager(&dirs, Some(runtime)), Some(Manager::User));
        assert_eq!(manager(&dirs, None), None);
    }

    #[test]
    fn there_are_as_many_properties_as_it_says() {
        for (manager, count) in [(Manager::System, 6), (Manager::User, 5)] {
            let words = words(manager, &unit("web1"), "web1", 42);
            let at = words.iter().position(|w| w == "migrate-guest-web1.scope").unwrap();
            assert_eq!(words[at + 2], count.to_string());
            let types = ["s", "as", "au", "t"];
            let found = words[at + 3..].iter().filter(|w| types.contains(&w.as_str())).count();
            assert_eq!(found, count, "{words:?}");
            assert!(words.join(" ").contains("PIDs au 1 42 "));
        }
    }

    /// A stand-in for `busctl`, and the file in which it notes what it was asked.
    fn stand_in(dir: &Path, body: &str) -> std::path::PathBuf {
        use std::io::Write;
        let path = dir.join("busctl");
        let script = format!("#!/bin/sh\necho \"$@\" >>'{}/asked'\n{body}\n", dir.display());
        // Written by another process: a fork of another test would hold it open for writing, and
        // it could not be run.
        let mut writer = Command::new("sh")
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        path
    }

    #[test]
    fn a_name_that_is_taken_is_not_the_last_word() {
        let dir = tempfile::tempdir().unwrap();
        let refuse = "case $* in *@42.scope*) ;; *) echo Unit already exists. >&2; exit 1;; esac";
        let busctl = stand_in(dir.path(), refuse);
        let no = AtomicBool::new(false);
        request(&busctl, Manager::System, "web1", 42, &no).unwrap();
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
        assert_eq!(asked.lines().count(), 2, "{asked}");
        assert!(asked.contains(" migrate-guest-web1@42.scope fail "), "{asked}");
    }

    #[test]
    fn the_cause_is_what_systemd_says() {
        let dir = tempfile::tempdir().unwrap();
        let busctl = stand_in(dir.path(), "echo Call failed: Access denied >&2; exit 1");
        let no = AtomicBool::new(false);
        let error = request(&busctl, Manager::User, "web1", 42, &no).unwrap_err();
        assert_eq!(error.to_string(), "Call failed: Access denied");
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
        assert_eq!(asked.lines().count(), 1, "it is not asked twice: {asked}");
        let gone = request(&dir.path().join("none"), Manager::User, "web1", 42, &no).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_bus_that_hangs_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("pid");
        // It never answers while it lives.
        let busctl =
            stand_in(dir.path(), &format!("echo $$ >'{}'; exec sleep 600", note.display()));
        let asked = ask_with(&busctl, Manager::System, "web1", std::process::id());
        let pid = loop {
            let text = std::fs::read_to_string(&note).unwrap_or_default();
            if let Ok(pid) = text.trim().parse::<u32>() {
                break pid;
            }
            thread::sleep(LOOK);
        };
        // This returns although nothing was answered; and then nothing of it is left.
        asked.withdraw();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "busctl was ended");
    }
}
