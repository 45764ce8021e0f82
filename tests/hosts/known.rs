//! Hosts learn of each other.

use nix::sys::signal::Signal;

use crate::crafted::{check, knows, site_of};
use crate::site::{Host, join};
use crate::support::{eventually, kvm, run};

#[test]
fn a_host_that_joins_is_known_to_all() {
    let hosts = site_of(&["alpha", "beta"]);
    let mut gamma = Host::new("gamma");
    join(&hosts[0], &gamma);
    // Nobody asks beta for anything: alpha tells it.
    eventually("beta hears of gamma", || knows(&hosts[1], "gamma").then_some(()));
    gamma.start_daemon();
    let (code, checked) = check(&hosts[1], "gamma");
    assert_eq!(code, Some(if kvm() { 0 } else { 5 }), "{checked}");
}

#[test]
fn a_host_that_was_off_knows_who_came_meanwhile() {
    let mut hosts = site_of(&["alpha", "beta"]);
    hosts[1].end_daemon(Signal::SIGTERM);
    let mut gamma = Host::new("gamma");
    join(&hosts[0], &gamma);
    gamma.start_daemon();
    assert!(!knows(&hosts[1], "gamma"));
    hosts[1].start_daemon();
    // At once, whether or not it has heard of it by now: an unknown host is asked for.
    let tried = run(&mut hosts[1].home.command(&["host", "check", "gamma", "--json"]));
    assert!(tried.stdout.contains("\"lines\""), "{tried:?}");
    let unknown = hosts[1].home.json(&["host", "check", "delta"]);
    unknown.refused("unknown-host", &["delta"]);
}

#[test]
fn a_host_that_moved_its_daemon_is_found() {
    let mut hosts = site_of(&["alpha", "beta", "gamma"]);
    // Both are off while gamma changes its address; only alpha hears of it.
    hosts[1].end_daemon(Signal::SIGTERM);
    hosts[2].end_daemon(Signal::SIGTERM);
    let (config, spare) = (hosts[2].home.dirs().config.join("host.toml"), Host::new("spare"));
    std::fs::copy(spare.home.dirs().config.join("host.toml"), config).unwrap();
    hosts[2].start_daemon();
    let at = |host: &Host| {
        let path = host.home.dirs().state.join("hosts.json");
        std::fs::read_to_string(path).unwrap().contains(&format!("127.0.0.1:{}", spare.port))
    };
    eventually("alpha hears where gamma is", || at(&hosts[0]).then_some(()));
    hosts[1].start_daemon();
    eventually("beta hears where gamma is", || at(&hosts[1]).then_some(()));
    let (_, checked) = check(&hosts[1], "gamma");
    assert!(checked["error"].is_null(), "{checked}");
}
