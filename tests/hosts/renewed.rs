//! Certificates renew themselves, under daemons that run on.

use nix::sys::signal::Signal;

use crate::crafted::{DAY, authority, certify, check, now, reload, site_of};
use crate::site::Host;
use crate::support::eventually;

/// When the certificate ends, in seconds, and the daemon's process.
fn ends(host: &Host) -> (i64, i64) {
    let shown = host.home.done(&["host", "show"]);
    let ends: jiff::Timestamp = shown["certificate_ends"].as_str().unwrap().parse().unwrap();
    (ends.as_second(), shown["pid"].as_i64().unwrap())
}

#[track_caller]
fn until_renewed(host: &Host) -> i64 {
    let soon = i64::try_from(now().plus(DAY * 80).0).unwrap();
    eventually("the certificate is renewed", || {
        let (ends, pid) = ends(host);
        (ends > soon).then_some(pid)
    })
}

#[test]
fn a_certificate_is_renewed_by_the_ca_s_host_without_a_restart() {
    let mut hosts = site_of(&["alpha", "beta"]);
    let ca = authority(&hosts[0]);
    // At the start.
    hosts[1].end_daemon(Signal::SIGTERM);
    certify(&hosts[1], &ca, "beta", now().minus(DAY * 70));
    hosts[1].start_daemon();
    let pid = until_renewed(&hosts[1]);
    // And while it runs.
    certify(&hosts[1], &ca, "beta", now().minus(DAY * 70));
    reload(&hosts[1]);
    assert_eq!(until_renewed(&hosts[1]), pid);
    let (_, checked) = check(&hosts[0], "beta");
    assert!(checked["error"].is_null(), "{checked}");
}

#[test]
fn the_ca_s_host_renews_its_own_even_when_it_has_run_out() {
    let hosts = site_of(&["alpha", "beta"]);
    let ca = authority(&hosts[0]);
    certify(&hosts[0], &ca, "alpha", now().minus(DAY * 100));
    reload(&hosts[0]);
    until_renewed(&hosts[0]);
    let (_, checked) = check(&hosts[1], "alpha");
    assert!(checked["error"].is_null(), "{checked}");
}
