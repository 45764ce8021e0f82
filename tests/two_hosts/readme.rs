//! The README's "two hosts in five commands", run as they stand there: on two hosts of the lab,
//! with nothing set up but the service that it asks for.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::rig::{Space, into_network};
use crate::site::{id_of, signal};
use crate::support::lab::{self, Lab};
use crate::support::{Home, Ran, eventually, kvm, run};

const README: &str = include_str!("../../README.md");

/// Commands that the README gives, each with the host on which it is typed.
fn commands() -> Vec<(&'static str, &'static str)> {
    let marked = README.split_once("<!-- two-hosts -->").and_then(|(_, rest)| {
        let (block, _) = rest.split_once("<!-- /two-hosts -->")?;
        block.trim().strip_prefix("```sh\n")?.strip_suffix("\n```")
    });
    let lines = marked.expect("README.md marks its block about two hosts").lines();
    lines.map(|l| l.split_once("$ ").unwrap_or_else(|| panic!("not HOST$ COMMAND: {l}"))).collect()
}

/// The command line that starts the service, which the README gives before the block.
fn service() -> &'static str {
    let before = README.split_once("<!-- two-hosts -->").unwrap().0;
    let (_, line) =
        before.rsplit_once("the service runs: `").expect("README.md starts the service");
    line.split_once('`').unwrap().0
}

/// A host as a newcomer has it: the program in its path, and nothing else.
struct Host {
    name: &'static str,
    home: Home,
    enter: Vec<String>,
    service: Option<Child>,
}

impl Host {
    fn new(lab: &Lab, name: &'static str, side: lab::Host, space: &Space) -> Self {
        let enter = space.entered_too(into_network(lab, side));
        Self { name, home: Home::new(), enter, service: None }
    }

    /// A line of shell, typed here.
    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new(&self.enter[0]);
        command.args(&self.enter[1..]).args(["sh", "-c", line]);
        let program = Path::new(env!("CARGO_BIN_EXE_migrate")).parent().unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", program.display()));
        self.home.surround(&mut command);
        command
    }

    fn start_service(&mut self) {
        let line = service().strip_suffix(" &").expect("it stays in the background");
        let mut command = self.shell(&format!("exec {line}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.service = Some(command.spawn().unwrap());
        eventually("the service answers", || {
            self.home.dirs().daemon_socket().exists().then_some(())
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.home.json(&["stop", "web1", "--kill"]);
        if let Some(mut service) = self.service.take() {
            signal(id_of(&service), Signal::SIGTERM);
            let _ = service.wait();
        }
        eventually("everything of this host ends", || {
            self.home.processes().is_empty().then_some(())
        });
    }
}

#[test]
fn two_hosts_in_five_commands() {
    if !kvm() {
        return;
    }
    assert_eq!(commands().len(), 5, "five, as the heading says");
    let Some(lab) = Lab::up(&[]) else { return };
    // Names that the network knows, as README takes for granted.
    let names = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&names, "10.77.0.1 host1\n10.77.0.2 host2\n").unwrap();
    let space = Space::with(names.path(), "/etc/hosts".as_ref());
    let mut hosts = [("host1", lab::Host::A), ("host2", lab::Host::B)]
        .map(|(name, side)| Host::new(&lab, name, side, &space));
    for host in &mut hosts {
        host.start_service();
    }
    let mut invitation = String::new();
    for (name, line) in commands() {
        let host = hosts.iter().find(|h| h.name == name).expect("host1 or host2");
        let ran: Ran = run(&mut host.shell(&line.replace("LINE", &invitation)));
        assert_eq!(ran.code, Some(0), "{name}$ {line}: {ran:?}");
        if line.contains("host invite") {
            // What a person would paste: the one line that is printed.
            ran.stdout.trim().clone_into(&mut invitation);
            assert_eq!(invitation.split_whitespace().count(), 1, "one line to paste: {ran:?}");
        }
    }
    let mut console = hosts[1].home.console("web1");
    console.until_beats(20);
    let verdict = console.verify();
    assert!(verdict.starts_with("VERIFY ok "), "{verdict}");
    eventually("it is not on host1 any more", || {
        (!hosts[0].home.dirs().guest("web1").dir().exists()).then_some(())
    });
}
