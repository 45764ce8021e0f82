//! The guest's networks at the destination, in a network of the test's own.

use std::fs;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::catalogue::{Cell, Pair, cell, has_views, odd};
use crate::support::kvm;

const MAC: &str = "52:54:00:aa:bb:cc";
const TAP_MAC: &str = "52:54:00:aa:bb:cd";
/// Takes the tap away, and brings it back.
const AWAY: &str = "link set tap0 name away0";
const BACK: &str = "link set away0 name tap0";

#[track_caller]
fn ip(words: &str) {
    let ran = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(ran.status.success(), "ip {words}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn all(commands: &[&str]) {
    for words in commands {
        ip(words);
    }
}

/// Beta's network `lan` is this bridge, if any.
fn lan(pair: &Pair, bridge: Option<&str>) {
    let lines = bridge.map(|bridge| format!("[network.lan]\nbridge = \"{bridge}\"\n"));
    pair.site.b.configure(&lines.unwrap_or_default());
}

/// Beta's `lan` is another one.
fn network(name: &str, parts: [&str; 4], bridge: Option<&'static str>) -> Cell {
    cell(name, "bad-net", parts, move |pair| {
        lan(pair, bridge);
        Box::new(|pair: &mut Pair| lan(pair, Some("br1")))
    })
}

/// Puts this thread, and what it starts, into a network of its own. Says so if it cannot.
fn alone() -> bool {
    if !has_views() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
        eprintln!("SKIPPED: no network namespace can be made: run this test as root");
        return false;
    }
    ip("link set lo up");
    true
}

#[test]
fn networks_of_the_destination() {
    if !kvm() || !alone() {
        return;
    }
    for (bridge, mtu) in [("br0", 9000), ("br1", 9000), ("br2", 1500)] {
        ip(&format!("link add {bridge} type bridge"));
        // Set, and not only given: it stays when the last port goes.
        ip(&format!("link set {bridge} mtu {mtu} up"));
    }
    // The guest's network is known at alpha before it starts, and at beta between the cells.
    let net = format!("network=lan,mac={MAC},mtu=4000");
    let pair = Pair::prepared(&["--net", &net], |site| {
        site.a.configure("[network.lan]\nbridge = \"br0\"\n");
        site.b.configure("[network.lan]\nbridge = \"br1\"\n");
    });
    let same = "same definition";
    let cells = vec![
        network("an unknown network", ["network", "'lan'", "it has: none", "[network.lan]"], None),
        network(
            "a bridge that is missing",
            ["bridge", "br9", "no bridge", "ip link add br9"],
            Some("br9"),
        ),
        network("a bridge that is none", ["lo", "", "not a bridge", "ip link show"], Some("lo")),
        network("a small MTU", ["MTU", "4000", "br2 (1500)", "mtu 4000"], Some("br2")),
        cell(
            "no tap driver",
            "bad-net",
            ["/dev/net/tun", "", "cannot open", "tun module"],
            |pair| {
                pair.view(
                    "mknod $0/files/none c 10 250; mount --bind $0/files/none /dev/net/tun",
                    "umount -l /dev/net/tun; rm $0/files/none",
                )
            },
        ),
        cell(
            "the address is in use there",
            "bad-net",
            [MAC, "'web1'", "'other'", "another address"],
            |pair| {
                pair.site.b.scribbler("other", "ws=4M", &["--memory", "16M"]);
                let file = pair.beta().dirs().guest("other").info();
                let mut info: serde_json::Value =
                    serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
                let ours = pair.site.a.home.done(&["show", "web1"]);
                info["definition"]["nets"] = ours["definition"]["nets"].clone();
                assert_ne!(info["definition"]["nets"], json!([]));
                fs::write(&file, info.to_string()).unwrap();
                Box::new(|pair: &mut Pair| drop(pair.beta().done(&["stop", "other", "--kill"])))
            },
        ),
        odd("state mac", "incompatible", ["mac", "52:54:00:aa:bb:cd", MAC, same]),
        odd("state mtu", "incompatible", ["mtu", "9000", "4000", same]),
        odd("state offloads", "incompatible", ["offloads", "0x40000000", "known are", same]),
    ];
    pair.try_all("networks", cells);
}

/// A tap that somebody has prepared, or not.
#[test]
fn taps_of_the_destination() {
    if !kvm() || !alone() {
        return;
    }
    ip("tuntap add tap0 mode tap");
    let net = format!("tap=tap0,mac={TAP_MAC}");
    let mut pair = Pair::new(&["--net", &net]);
    // The two hosts have one network, and so one tap of that name: beta has none while it is
    // called otherwise, and a busy one as it is.
    let renamed = |name: &str, parts, set: &'static [&'static str], undo: &'static [&str]| {
        cell(name, "bad-net", parts, move |_| {
            all(set);
            Box::new(move |_: &mut Pair| all(undo))
        })
    };
    let cells = vec![
        renamed("a tap in use", ["tap tap0", "", "in use", "of its own"], &[], &[]),
        renamed(
            "a tap that is missing",
            ["tap tap0", "", "does not exist", "ip tuntap"],
            &[AWAY],
            &[BACK],
        ),
        renamed(
            "an interface that is no tap",
            ["tap0", "", "not a tap", "ip tuntap add"],
            &[AWAY, "link add tap0 type bridge"],
            &["link del tap0", BACK],
        ),
    ];
    pair.try_each("taps", cells);
}
