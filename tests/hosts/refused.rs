//! Each reason to refuse a host is named to the people on both sides.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use migrate_engine::transport::identity::{Authority, Moment};

use crate::crafted::{DAY, authority, certify, check, now, site_of, until_logged};
use crate::site::Host;

/// Both directions are refused with the cause, said on both sides.
#[track_caller]
fn assert_refused(good: &Host, bad: &Host, cause: &[&str]) {
    for (from, to) in [(good, bad), (bad, good)] {
        let (code, checked) = check(from, &to.name);
        assert_eq!((code, &checked["error"]["code"]), (Some(4), &Value::from("host-refused")));
        let message = checked["error"]["message"].as_str().unwrap();
        for word in cause {
            assert!(message.contains(word), "'{word}' is not in: {message}");
        }
        assert!(!checked["error"]["remedy"].as_str().unwrap().is_empty());
        // And at the other side, in the log of its daemon.
        until_logged(to, cause);
    }
}

/// Beta comes with a certificate for `name` signed `by` a CA at `signed`.
fn with_certificate(hosts: &mut [Host], by: &Authority, name: &str, signed: Moment) {
    hosts[1].end_daemon(Signal::SIGTERM);
    certify(&hosts[1], by, name, signed);
    hosts[1].start_daemon();
}

#[test]
fn expired() {
    let mut hosts = site_of(&["alpha", "beta"]);
    let ca = authority(&hosts[0]);
    with_certificate(&mut hosts, &ca, "beta", now().minus(DAY * 100));
    assert_refused(&hosts[0], &hosts[1], &["certificate of beta expired on", "timedatectl"]);
    let shown = hosts[1].home.done(&["host", "show"]);
    assert!(shown["advice"].to_string().contains("certificate ended on"), "{shown}");
}

#[test]
fn not_yet_valid_means_a_wrong_clock() {
    let mut hosts = site_of(&["alpha", "beta"]);
    let ca = authority(&hosts[0]);
    with_certificate(&mut hosts, &ca, "beta", now().plus(DAY));
    let cause = ["certificate of beta is valid from", "clocks is wrong"];
    assert_refused(&hosts[0], &hosts[1], &cause);
    let shown = hosts[1].home.done(&["host", "show"]);
    assert!(shown["advice"].to_string().contains("clocks is wrong"), "{shown}");
}

#[test]
fn of_another_site() {
    let mut hosts = site_of(&["alpha", "beta"]);
    let other = Authority::generate("other", now()).unwrap();
    with_certificate(&mut hosts, &other, "beta", now());
    let cause = ["certificate of beta is not signed by the CA of this site"];
    assert_refused(&hosts[0], &hosts[1], &cause);
}

#[test]
fn another_name_than_expected() {
    let mut hosts = site_of(&["alpha", "beta"]);
    let ca = authority(&hosts[0]);
    with_certificate(&mut hosts, &ca, "gamma", now());
    let cause = "expected beta, but the host that answered is gamma";
    let (code, checked) = check(&hosts[0], "beta");
    assert_eq!((code, &checked["error"]["code"]), (Some(4), &Value::from("host-refused")));
    let message = checked["error"]["message"].as_str().unwrap();
    assert!(message.contains(cause), "{message}");
    until_logged(&hosts[1], &[cause]);
}

#[test]
fn a_host_without_rights() {
    let mut hosts = site_of(&["alpha", "beta"]);
    let allow = |hosts: &mut [Host], rights: &str| {
        let text = format!(r#"{{ "rights": {{ "beta": {rights} }} }}"#);
        fs::write(hosts[0].home.dirs().config.join("site.json"), text).unwrap();
        hosts[0].end_daemon(Signal::SIGTERM);
        hosts[0].start_daemon();
    };
    allow(&mut hosts, "[]");
    let (code, checked) = check(&hosts[1], "alpha");
    assert_eq!(code, Some(4), "{checked}");
    let cause = "host 'beta' has not the right to 'observe' on alpha";
    assert!(checked["error"]["message"].as_str().unwrap().contains(cause), "{checked}");
    until_logged(&hosts[0], &[cause]);
    // It may look, and no more.
    allow(&mut hosts, r#"["observe"]"#);
    let (code, checked) = check(&hosts[1], "alpha");
    assert_eq!(code, Some(5), "{checked}");
    let refused = crate::crafted::line(&checked, "data from here")["found"].to_string();
    assert!(refused.contains("has not the right to 'send' or 'receive' on alpha"), "{refused}");
}
