//! A site of two hosts in a lab, and what is seen of them from the network outside.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::site::{Host, Site};
use crate::storage::{Mount, Storage};
use crate::support::lab::{self, Lab};
use crate::support::{Home, PATIENCE, eventually, frames, kvm};

/// A guest's card, and how it is written on a command line.
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 1];
pub const NET: &str = "bridge=br0,mac=52:54:00:77:00:01";

/// Control port of every host in a lab.
const PORT: u16 = 7420;
const SIDES: [(&str, lab::Host, &str); 2] =
    [("alpha", lab::Host::A, "10.77.0.1"), ("beta", lab::Host::B, "10.77.0.2")];

/// Two hosts with daemons in a lab. Fields are dropped in their order: the hosts first.
pub struct Rig {
    pub site: Site,
    _spaces: Vec<Space>,
    mounts: Vec<Mount>,
    pub lab: Lab,
}

impl Rig {
    /// Makes it; `options` are those of `scripts/lab up`. `None`, said aloud, where there is no
    /// KVM or no right to make a lab.
    #[track_caller]
    pub fn up(options: &[&str]) -> Option<Self> {
        if !kvm() {
            return None;
        }
        let lab = Lab::up(options)?;
        let [a, b] = SIDES.map(|(name, side, address)| {
            Host::at(name, Home::entered(into_network(&lab, side)), address, PORT)
        });
        Some(Self { site: Site::of(a, b), _spaces: Vec::new(), mounts: Vec::new(), lab })
    }

    /// As [`Self::up`], with storage at the same path `at` on both hosts, which exists: each has a
    /// mount of its own, with a cache of its own.
    #[track_caller]
    pub fn sharing(options: &[&str], storage: [&Storage; 2], at: &Path) -> Option<Self> {
        if !kvm() {
            return None;
        }
        let lab = Lab::up(options)?;
        let (mut spaces, mut mounts, mut hosts) = (Vec::new(), Vec::new(), Vec::new());
        for ((name, side, address), storage) in SIDES.into_iter().zip(storage) {
            let mount = storage.mount(at.with_extension(name))?;
            let space = Space::with(mount.path(), at);
            let enter = space.entered_too(into_network(&lab, side));
            hosts.push(Host::at(name, Home::entered(enter), address, PORT));
            spaces.push(space);
            mounts.push(mount);
        }
        let (b, a) = (hosts.pop()?, hosts.pop()?);
        Some(Self { site: Site::of(a, b), _spaces: spaces, mounts, lab })
    }

    /// Where the first host's mount is for this test.
    pub fn seen_by_a(&self) -> &Path {
        self.mounts[0].path()
    }

    /// Where the second host's mount is for this test.
    pub fn seen_by_b(&self) -> &Path {
        self.mounts[1].path()
    }
}

/// Words that run a command in the network of a host.
pub fn into_network(lab: &Lab, side: lab::Host) -> Vec<String> {
    let net = format!("--net=/run/netns/{}", lab.namespace(side));
    vec!["nsenter".to_owned(), net, "--".to_owned()]
}

/// A process that holds a mount namespace, in which one file or directory is seen at another place
/// too.
pub struct Space(Child);

impl Space {
    #[track_caller]
    pub fn with(what: &Path, at: &Path) -> Self {
        const SCRIPT: &str = "mount --bind \"$1\" \"$2\" && exec sleep infinity";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]);
        command.args([what, at]).stdin(Stdio::null()).stdout(Stdio::null());
        let space = Self(command.spawn().expect("util-linux is installed"));
        let program = Path::new("/proc").join(space.0.id().to_string()).join("comm");
        eventually("a mount namespace", || {
            let name = std::fs::read_to_string(&program).ok()?;
            (name.trim() == "sleep").then_some(())
        });
        space
    }

    /// Words of `nsenter` that lead into this as well.
    pub fn entered_too(&self, mut enter: Vec<String>) -> Vec<String> {
        enter.insert(1, format!("--mount=/proc/{}/ns/mnt", self.0.id()));
        enter
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Listens to all that passes the switch outside.
pub struct Station(OwnedFd);

impl Station {
    /// Listens at the port of the switch to which one host's bridge is connected.
    #[track_caller]
    pub fn at(lab: &Lab, port: &str) -> Self {
        Self(lab.on(lab::Host::Outside, || frames::listen(port)))
    }

    /// Waits for a RARP frame in which the guest's card says where it is.
    #[track_caller]
    pub fn until_announced(&self) {
        let end = Instant::now() + PATIENCE;
        let mut frame = [0; 2048];
        while Instant::now() < end {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                // To all, from the card, of the protocol RARP.
                Ok(_) if frame[..6] == [0xFF; 6] && frame[6..12] == MAC => {
                    if frame[12..14] == [0x80, 0x35] {
                        return;
                    }
                }
                Ok(_) => {}
                Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(5)),
                Err(e) => panic!("{e}"),
            }
        }
        panic!("not within {PATIENCE:?}: an announcement of the guest");
    }
}

/// The port of the switch outside behind which it has learned the guest's card to be.
pub fn learned_port(lab: &Lab) -> Option<String> {
    let output = lab.command(lab::Host::Outside, "bridge", &["fdb", "show", "br", "sw0"]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let card = MAC.map(|byte| format!("{byte:02x}")).join(":");
    let entry = text.lines().find_map(|l| l.strip_prefix(&card)?.strip_prefix(" dev "));
    entry.and_then(|rest| rest.split(' ').next()).map(str::to_owned)
}
