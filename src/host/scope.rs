//! Guests as units of systemd. A guest that outlives whoever started it gets a scope of its own,
//! `migrate-guest-NAME.scope`: it leaves the cgroup of the daemon or of the login session, so
//! that neither's end is its own, and it is stopped in order when the host shuts down.
//!
//! The scope is made around the process that already runs: descriptors cannot be handed to a
//! process that systemd starts, and a guest must not wait for systemd or fail with it. Without
//! systemd, and in private instances, nothing is done. It never ends a process.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::config::Dirs;

/// Seconds that systemd may take to answer.
const PATIENCE: &str = "5";
/// Microseconds a guest has to shut down or to be saved, before systemd kills it: more than the
/// 90 s that it gives its guest.
const STOP_US: &str = "120000000";

/// Whose systemd looks after a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    System,
    User,
}

/// The request for a scope, under way.
#[derive(Debug)]
pub struct Request {
    manager: Manager,
    guest: String,
    pid: u32,
    asked: io::Result<Child>,
}

/// Asks for a scope for the process `pid` of guest `guest`, if this instance's guests get one.
/// The answer is awaited in [`Request::finish`].
pub fn ask(dirs: &Dirs, guest: &str, pid: u32) -> Option<Request> {
    let booted = Path::new("/run/systemd/system").is_dir();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR");
    let manager = manager(dirs, runtime.as_ref().map(Path::new)).filter(|_| booted)?;
    let asked = start(&words(manager, &unit(guest), guest, pid));
    Some(Request { manager, guest: guest.to_owned(), pid, asked })
}

impl Request {
    /// Waits for the answer, for some seconds at most. If there is no scope the guest stays where
    /// its caller is, and the log says so.
    pub fn finish(self) {
        let Self { manager, guest, pid, asked } = self;
        let Err(first) = answer(asked) else { return };
        // The scope of the last process of that name may not be gone yet.
        let other = unit(&format!("{guest}-{pid}"));
        if answer(start(&words(manager, &other, &guest, pid))).is_err() {
            tracing::warn!(GUEST = guest, error = %first, "the guest has no unit of its own");
        }
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
    let timeout = format!("--timeout={PATIENCE}");
    let head = [
        bus,
        "--quiet",
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

fn start(words: &[String]) -> io::Result<Child> {
    Command::new("busctl")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

fn answer(asked: io::Result<Child>) -> io::Result<()> {
    let output = asked?.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
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
}
