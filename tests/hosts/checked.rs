//! What `host check` finds, and what it says of what it does not find.

use std::fs;
use std::net::UdpSocket;

use nix::sys::signal::Signal;

use crate::crafted::{check, line, site_of};
use crate::support::kvm;

#[test]
fn everything_is_tried_in_both_directions() {
    let hosts = site_of(&["alpha", "beta"]);
    // Somebody has one of beta's data ports.
    let taken = UdpSocket::bind(("127.0.0.1", hosts[1].port + 3)).unwrap();
    let (code, checked) = check(&hosts[0], "beta");
    assert_eq!(code, Some(if kvm() { 0 } else { 5 }), "{checked}");
    for what in [
        "address",
        "control from here",
        "identity",
        "version",
        "clock there",
        "certificate there",
        "room there",
        "data ports from here",
        "datagrams from here",
        "speed from here",
        "control from there",
        "data ports from there",
        "datagrams from there",
        "speed from there",
    ] {
        assert_eq!(line(&checked, what)["ok"], true, "{what}: {checked}");
    }
    assert_eq!(line(&checked, "KVM there")["ok"], kvm(), "{checked}");
    let port = hosts[1].port;
    let found = line(&checked, "data ports from here")["found"].as_str().unwrap();
    let rest = format!(
        "{}-{}, {}-{} answer; {} in use",
        port + 1,
        port + 2,
        port + 4,
        port + 11,
        port + 3
    );
    assert!(found.starts_with(&rest), "{found}");
    let port = hosts[0].port;
    let found = line(&checked, "data ports from there")["found"].as_str().unwrap();
    assert_eq!(found, format!("{}-{} answer", port + 1, port + 11));
    // Loopback carries the largest datagrams there are.
    let found = line(&checked, "datagrams from here")["found"].as_str().unwrap();
    assert_eq!(found, "65000 bytes of UDP payload");
    drop(taken);
    // The ports are free again, and the next check finds them all.
    let (_, checked) = check(&hosts[0], "beta");
    let port = hosts[1].port;
    let found = line(&checked, "data ports from here")["found"].as_str().unwrap();
    assert_eq!(found, format!("{}-{} answer", port + 1, port + 11));
    // For people: a table.
    let said = hosts[0].home.text(&["host", "check", "beta"]);
    assert!(said.stdout.contains("data ports from there"), "{said:?}");
}

#[test]
fn a_host_that_does_not_answer() {
    let mut hosts = site_of(&["alpha", "beta"]);
    hosts[1].end_daemon(Signal::SIGTERM);
    let (code, checked) = check(&hosts[0], "beta");
    assert_eq!((code, checked["error"]["code"].as_str()), (Some(8), Some("unreachable")));
    let control = line(&checked, "control from here");
    assert_eq!(control["ok"], false);
    assert!(control["found"].as_str().unwrap().contains(&hosts[1].port.to_string()), "{control}");
}

#[test]
fn a_way_back_that_does_not_exist() {
    let mut hosts = site_of(&["alpha", "beta"]);
    hosts[0].end_daemon(Signal::SIGTERM);
    // Nobody is where alpha says that it is.
    let config = hosts[0].home.dirs().config.join("host.toml");
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let (listen, advertise) = (text.lines().next().unwrap(), format!("advertise = \"{nobody}\""));
    let rest: Vec<&str> = text.lines().skip(2).collect();
    fs::write(&config, format!("{listen}\n{advertise}\n{}\n", rest.join("\n"))).unwrap();
    hosts[0].start_daemon();
    let (code, checked) = check(&hosts[0], "beta");
    assert_eq!(code, Some(5), "{checked}");
    assert_eq!(line(&checked, "data ports from here")["ok"], true, "{checked}");
    for what in ["control from there", "data from there"] {
        let found = line(&checked, what);
        assert_eq!(found["ok"], false, "{checked}");
        assert!(found["found"].as_str().unwrap().contains(&nobody.to_string()), "{found}");
        assert!(!found["remedy"].as_str().unwrap().is_empty());
    }
}
