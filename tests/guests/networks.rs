//! Guests in bridges, in a network of the test's own, seen by a station on the other side of the
//! bridge.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{MsgFlags, recv};

use crate::support::{Home, PATIENCE, eventually, frames, kvm, pid_of, wait_gone};

const MAC: &str = "52:54:00:aa:bb:cc";
const MAC_BYTES: [u8; 6] = [0x52, 0x54, 0, 0xAA, 0xBB, 0xCC];
const GUEST: [&str; 4] = ["--guest", "scribbler:ws=4M", "--memory", "32M"];

/// Gives the calling thread, and the processes that it starts, a network of its own. Says so if
/// that is not possible.
fn own_network() -> bool {
    let made = nix::unistd::geteuid().is_root() && unshare(CloneFlags::CLONE_NEWNET).is_ok();
    if !made {
        eprintln!("SKIPPED: no network namespace can be made: run this test as root");
    }
    made
}

#[track_caller]
fn ran(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A bridge with one cable, and the far end of that cable.
struct Station(OwnedFd);

impl Station {
    fn at(bridge: &str) -> Self {
        ran("ip", &format!("link add {bridge} type bridge"));
        ran("ip", "link add port type veth peer name station");
        ran("ip", &format!("link set station master {bridge}"));
        for name in [bridge, "port", "station"] {
            ran("ip", &format!("link set {name} up"));
        }
        Self(frames::listen("port"))
    }

    /// Frames from the guest, until there are `count` or `within` is over.
    fn frames(&self, count: usize, within: Duration) -> Vec<Vec<u8>> {
        let end = Instant::now() + within;
        let (mut frames, mut frame) = (Vec::new(), vec![0; 2048]);
        while frames.len() < count && Instant::now() < end {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(n) if frame[6..12] == MAC_BYTES => frames.push(frame[..n].to_vec()),
                Ok(_) => {}
                Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => panic!("{e}"),
            }
        }
        frames
    }
}

/// Ports of the bridge that are taps of ours.
fn taps(bridge: &str) -> Vec<String> {
    let ports = ran("ip", &format!("-o link show master {bridge}"));
    let names = ports.lines().filter_map(|l| l.split(": ").nth(1));
    names.filter(|n| n.starts_with("migrate")).map(str::to_owned).collect()
}

#[test]
fn a_guest_in_a_bridge_announces_itself_where_it_continues() {
    if !kvm() || !own_network() {
        return;
    }
    let station = Station::at("br7");
    let home = Home::new();
    fs::create_dir_all(home.dirs().config).unwrap();
    let host = home.dirs().config.join("host.toml");
    fs::write(&host, "[network.lan]\nbridge = \"br7\"\n").unwrap();

    let net = format!("network=lan,mac={MAC},mtu=1400");
    let run = home.done(&[&["run", "n"], &GUEST[..], &["--net", &net]].concat());
    assert_eq!(run["definition"]["nets"][0]["network"], "lan");
    assert_eq!(taps("br7").len(), 1);
    // It boots: nobody has to be told that it is where it was not before.
    assert_eq!(station.frames(1, Duration::from_millis(100)), [[0; 0]; 0]);
    let file = home.file_text("n.save");
    home.done(&["save", "n", "--to", &file]);
    wait_gone(pid_of(&run));
    assert_eq!(taps("br7"), [""; 0], "the tap goes with the guest");

    let load = home.done(&["load", &file]);
    let frames = station.frames(6, PATIENCE);
    assert_eq!(frames.len(), 6);
    for frame in &frames {
        // RFC 903 with Ethernet's header: to all, "request reverse" of the sender for itself.
        let head = [&[0xFF; 6], &MAC_BYTES[..], &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]].concat();
        assert_eq!((&frame[..22], frame.len()), (&head[..], 60));
        assert_eq!((&frame[22..28], &frame[32..38]), (&MAC_BYTES[..], &MAC_BYTES[..]));
    }
    let [tap] = <[String; 1]>::try_from(taps("br7")).unwrap();
    let learned = ran("bridge", "fdb show br br7");
    let entry = format!("{MAC} dev {tap} ");
    assert!(learned.lines().any(|l| l.starts_with(&entry)), "{learned}");
    // The guest's own reset keeps its tap.
    home.done(&["reset", "n"]);
    assert_eq!(taps("br7"), [tap]);

    // However it ends, its tap is gone.
    let pid = pid_of(&load);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    wait_gone(pid);
    eventually("the tap is gone", || taps("br7").is_empty().then_some(()));
}

#[test]
fn bridges_that_cannot_be_used_are_named() {
    if !kvm() || !own_network() {
        return;
    }
    let home = Home::new();
    let refused = |net: &str, wanted: &[&str]| {
        let ran = home.json(&[&["run", "n"], &GUEST[..], &["--net", net]].concat());
        ran.refused("bad-net", wanted)["remedy"].as_str().unwrap().to_owned()
    };
    assert!(refused("bridge=br9", &["no bridge br9"]).contains("ip link add br9 type bridge"));
    refused("bridge=lo", &["lo is not a bridge"]);
    let remedy = refused("network=lan", &["no network 'lan'", "it has: none"]);
    assert!(remedy.contains("host.toml") && remedy.contains("[network.lan]"), "{remedy}");
    ran("ip", "link add br9 type bridge");
    let remedy = refused("bridge=br9,mtu=9000", &["9000", "br9 (1500)"]);
    assert!(remedy.contains("ip link set br9 mtu 9000"), "{remedy}");
    assert_eq!(taps("br9"), [""; 0]);
    home.assert_no_guest();

    // Without the capability.
    let words = [&["run", "n"], &GUEST[..], &["--net", "bridge=br9", "--json"]].concat();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    command.arg(env!("CARGO_BIN_EXE_migrate")).args(words);
    let ran = crate::support::run(home.surround(&mut command));
    let error = ran.refused("bad-net", &["CAP_NET_ADMIN"]);
    assert!(error["remedy"].as_str().unwrap().contains("--net tap=NAME"));
}
