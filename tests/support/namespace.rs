//! Commands in a mount namespace of their own, where the host looks otherwise, and as another
//! user. Nothing of it is seen outside, and it ends with its last process.

use std::ffi::OsStr;
use std::process::Command;

use super::Home;

/// A user without any rights.
pub const NOBODY: u32 = 65534;

/// What is changed before the command runs, as lines of shell. Paths of the instance are in
/// `$MIGRATE_HOME`.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    /// Also a network of its own.
    network: bool,
    setup: Vec<String>,
    user: Option<Vec<u32>>,
}

impl Namespace {
    /// Only root can make one. Says so if it cannot be made.
    pub fn new() -> Option<Self> {
        let root = nix::unistd::geteuid().is_root();
        let works = Command::new("unshare").args(["--mount", "true"]).status();
        if root && works.is_ok_and(|s| s.success()) {
            return Some(Self::default());
        }
        eprintln!("SKIPPED: no mount namespace can be made: run this test as root");
        None
    }

    /// Runs a line of shell first.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        self.setup.push(line.to_owned());
        self
    }

    /// Puts a device node in the place of `/dev/kvm`.
    #[must_use]
    pub fn with_kvm_node(self, numbers: &str, owner: &str, mode: &str) -> Self {
        self.with("node=$(mktemp -u \"$MIGRATE_HOME/node.XXXXXX\")")
            .with(&format!("mknod \"$node\" c {numbers}"))
            .with(&format!("chown {owner} \"$node\"; chmod {mode} \"$node\""))
            .with("mount --bind \"$node\" /dev/kvm; rm \"$node\"")
    }

    /// Makes a network of its own, with this tap.
    #[must_use]
    pub fn with_tap(mut self, name: &str) -> Self {
        self.network = true;
        self.with(&format!("ip tuntap add {name} mode tap; ip link set {name} up"))
    }

    /// Runs the command as nobody, in these groups.
    #[must_use]
    pub fn for_nobody(mut self, groups: &[u32]) -> Self {
        self.user = Some(groups.to_vec());
        self
    }

    /// `program` in here, with the instance `home`.
    pub fn command<S: AsRef<OsStr>>(&self, home: &Home, program: S, words: &[&str]) -> Command {
        let script = format!("set -eu\n{}\nexec \"$@\"\n", self.setup.join("\n"));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command.args(self.network.then_some("--net"));
        command.args(["sh", "-c", &script, "sh"]);
        if let Some(groups) = &self.user {
            command.args(["setpriv", &format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}")]);
            let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
            match groups.join(",").as_str() {
                "" => command.arg("--clear-groups"),
                list => command.arg(format!("--groups={list}")),
            };
        }
        command.arg(program.as_ref()).args(words);
        home.surround(&mut command);
        command
    }

    /// `migrate` in here, with `--json`.
    #[track_caller]
    pub fn json(&self, home: &Home, words: &[&str]) -> super::Ran {
        super::run(self.command(home, env!("CARGO_BIN_EXE_migrate"), words).arg("--json"))
    }
}
