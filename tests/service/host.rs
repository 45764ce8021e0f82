//! A small host with a real systemd: namespaces of its own for everything, a root in memory
//! (`root.sh`), a cgroup. The real host is neither seen nor changed from inside, and all of it
//! ends with the one process that the test started.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Console, Ran, eventually, kvm, run};
use crate::units::installed;

/// The host. Its end is that of all its processes.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    cgroup: PathBuf,
    outer: Child,
    /// The first process in there, as it is called out here.
    init: i32,
}

/// Units beside the one that is tested: a bus, a journal, and targets that do nothing.
const UNITS: &[(&str, &str)] = &[
    ("default.target", "[Unit]\nWants=dbus.socket systemd-journald.socket\nAfter=dbus.socket\n"),
    ("dbus.socket", "[Socket]\nListenStream=/run/dbus/system_bus_socket\n"),
    (
        "dbus.service",
        "[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon --system --address=systemd: \
         --nofork --nopidfile --systemd-activation --syslog-only\n",
    ),
    (
        "systemd-journald.socket",
        "[Socket]\nListenStream=/run/systemd/journal/stdout\n\
         ListenDatagram=/run/systemd/journal/socket\nPassCredentials=yes\n",
    ),
    (
        "systemd-journald.service",
        "[Service]\nType=notify\nExecStart=/usr/lib/systemd/systemd-journald\n\
         StandardOutput=null\nStandardError=null\nSockets=systemd-journald.socket\n",
    ),
    // A bus that takes calls and never answers.
    ("mute.socket", "[Socket]\nListenStream=/run/dbus/system_bus_socket\nBacklog=64\n"),
    ("mute.service", "[Service]\nExecStart=/usr/bin/sleep infinity\n"),
    (
        "user.service",
        "[Service]\nType=notify\nExecStart=/usr/lib/systemd/systemd --user\nDelegate=yes\n\
         RuntimeDirectory=user/0\nEnvironment=XDG_RUNTIME_DIR=/run/user/0 HOME=/root\n\
         Environment=SYSTEMD_UNIT_PATH=/etc/systemd/system/user\n",
    ),
];

/// The units of root's own manager, which is a service of the first one.
const USER: &[(&str, &str)] = &[
    ("default.target", "[Unit]\nWants=dbus.socket\nAfter=dbus.socket\n"),
    ("dbus.socket", "[Socket]\nListenStream=%t/bus\n"),
    (
        "dbus.service",
        "[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon --session --address=systemd: \
         --nofork --nopidfile --systemd-activation\n",
    ),
];

const TARGETS: [&str; 8] = [
    "sysinit",
    "basic",
    "shutdown",
    "sockets",
    "multi-user",
    "network-online",
    "remote-fs",
    "umount",
];

impl Host {
    /// Boots one whose `migrate.service` is the real unit. Says so if none can be had.
    pub fn boot() -> Option<Self> {
        if !kvm() || !installed() {
            return None;
        }
        let root = nix::unistd::geteuid().is_root();
        let Some(tree) = cgroup_tree().filter(|_| root) else {
            eprintln!("SKIPPED: no systemd can be booted: run this test as root, with cgroup v2");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        write_units(&dir.path().join("units"));
        let name = dir.path().file_name().unwrap_or_default().to_string_lossy();
        let cgroup = tree.join(format!("migrate-test{name}"));
        fs::create_dir(&cgroup).unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let log = File::create(dir.path().join("log")).unwrap();
        let outer = Command::new("sh")
            .args(["-ec", "echo $$ >\"$1/cgroup.procs\"; shift; exec \"$@\"", "sh"])
            .arg(&cgroup)
            // A test that is killed leaves nothing either.
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(["unshare", "--mount", "--pid", "--cgroup", "--net", "--uts", "--ipc"])
            .args(["--fork", "--kill-child=KILL"])
            .arg(here.join("tests/service/root.sh"))
            .arg(env!("CARGO_BIN_EXE_migrate"))
            .arg(dir.path().join("units"))
            .env("HOST_MNT", fs::read_link("/proc/self/ns/mnt").unwrap())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut host = Self { dir, cgroup, outer, init: 0 };
        host.init = eventually("systemd runs", || {
            assert!(host.outer.try_wait().unwrap().is_none(), "{}", host.log());
            let children = format!("/proc/{0}/task/{0}/children", host.outer.id());
            let init: i32 = fs::read_to_string(children).ok()?.trim().parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
            (name.trim() == "systemd").then_some(init)
        });
        eventually("the host is up", || {
            let state = host.run("systemctl", &["is-active", "default.target"]);
            (state.stdout.trim() == "active").then_some(())
        });
        Some(host)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A path in there, as it is called out here.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// A command in there, as root types it.
    pub fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.init.to_string(), program]).args(words);
        let path = [("PATH", "/usr/local/bin:/usr/sbin:/usr/bin"), ("NO_COLOR", "1")];
        command.env_clear().envs(path).env("HOME", "/root");
        command
    }

    #[track_caller]
    pub fn run(&self, program: &str, words: &[&str]) -> Ran {
        run(&mut self.command(program, words))
    }

    /// What a command that succeeds prints.
    #[track_caller]
    pub fn text(&self, program: &str, words: &[&str]) -> String {
        let ran = self.run(program, words);
        assert_eq!(ran.code, Some(0), "{program} {words:?}: {ran:?}\n{}", self.journal());
        ran.stdout.trim().to_owned()
    }

    /// The document of a `migrate` that succeeds, of the system's instance.
    #[track_caller]
    pub fn done(&self, words: &[&str]) -> Value {
        self.run("migrate", &[&["--json"], words].concat()).done()
    }

    #[track_caller]
    pub fn systemctl(&self, words: &[&str]) -> String {
        self.text("systemctl", words)
    }

    /// A property of a unit.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "-p", name, unit])
    }

    /// Everything in the journal, for people.
    pub fn journal(&self) -> String {
        self.run("journalctl", &["--no-pager", "-o", "short-precise"]).stdout
    }

    /// The entries of the journal that match, with all their fields.
    #[track_caller]
    pub fn entries(&self, matches: &[&str]) -> Vec<Value> {
        // What was sent before is in the journal's files.
        self.text("journalctl", &["--sync"]);
        let words = [&["--no-pager", "-o", "json"], matches].concat();
        let text = self.run("journalctl", &words).stdout;
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A guest's console, of the system's instance.
    #[track_caller]
    pub fn console(&self, guest: &str) -> Console {
        Console::connect(&self.path(&format!("/run/migrate/guests/{guest}/console.sock")))
    }

    /// The cgroup of a process that is called `pid` in there.
    #[track_caller]
    pub fn cgroup_of(&self, pid: i32) -> String {
        let all = self.text("cat", &[&format!("/proc/{pid}/cgroup")]);
        let line = all.lines().find_map(|l| l.strip_prefix("0::")).expect("a cgroup of version 2");
        line.to_owned()
    }

    /// Where processes of a unit's cgroup are.
    #[track_caller]
    pub fn pids_of(&self, unit: &str) -> Vec<i32> {
        let group = self.property(unit, "ControlGroup");
        let list = self.text("cat", &[&format!("/sys/fs/cgroup{group}/cgroup.procs")]);
        list.lines().map(|l| l.parse().unwrap()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("systemd: {}", self.log());
            if self.init != 0 {
                eprintln!("{}", self.journal());
            }
        }
        // The kernel ends whatever was in the namespace with its first process.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        if self.init != 0 {
            eventually("systemd is gone", || crate::support::is_gone(self.init).then_some(()));
        }
        eventually("the cgroup is empty", || remove_tree(&self.cgroup).is_ok().then_some(()));
    }
}

fn write_units(dir: &Path) {
    let user = dir.join("user");
    fs::create_dir_all(&user).unwrap();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd");
    for (dir, units, ours) in [(dir, UNITS, "."), (&user, USER, "user")] {
        for name in TARGETS {
            let text = format!("[Unit]\nDescription={name}\nDefaultDependencies=no\n");
            fs::write(dir.join(format!("{name}.target")), text).unwrap();
        }
        for (name, text) in units {
            let plain = text.strip_prefix("[Unit]\n").unwrap_or(text);
            let text = format!("[Unit]\nDefaultDependencies=no\n{plain}");
            fs::write(dir.join(name), text).unwrap();
        }
        fs::copy(scripts.join(ours).join("migrate.service"), dir.join("migrate.service")).unwrap();
    }
    // A hang is noticed sooner than it is in the unit.
    let more = dir.join("migrate.service.d");
    fs::create_dir(&more).unwrap();
    fs::write(more.join("watchdog.conf"), "[Service]\nWatchdogSec=8s\n").unwrap();
}

/// Where the tree of cgroups of version 2 is mounted.
fn cgroup_tree() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    words.filter(|w| w.get(2) == Some(&"cgroup2")).find_map(|w| w.get(1).map(PathBuf::from))
}

/// Removes a cgroup and those below it.
fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
