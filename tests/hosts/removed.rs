//! A removed host is refused by all, and stays so until it joins again.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::crafted::{check, error, knows, site_of, until_logged};
use crate::site::{Host, join};
use crate::support::eventually;

/// `host` will not hear of gamma, and gamma hears why.
#[track_caller]
fn assert_refuses(host: &Host, gamma: &Host) {
    let (code, message) = error(&host.home.json(&["host", "check", "gamma"]));
    assert_eq!(code, "unknown-host", "{message}");
    assert!(message.contains("gamma' was removed from this site on"), "{message}");
    let (code, checked) = check(gamma, &host.name);
    assert_eq!((code, &checked["error"]["code"]), (Some(4), &Value::from("host-refused")));
    let message = checked["error"]["message"].as_str().unwrap();
    assert!(message.contains("refused us: gamma was removed from this site on"), "{message}");
    assert!(message.contains("migrate host join"), "{message}");
    until_logged(host, &["was refused here", "gamma was removed from this site on"]);
    // Also who only looks at the removed host is told.
    let shown = gamma.home.done(&["host", "show"]);
    assert!(shown["advice"].to_string().contains("gamma was removed"), "{shown}");
}

#[track_caller]
fn assert_meets(one: &Host, other: &Host) {
    for (from, to) in [(one, other), (other, one)] {
        let (_, checked) = check(from, &to.name);
        assert!(checked["error"].is_null(), "{checked}");
    }
}

#[test]
fn a_removed_host_is_refused_by_all_until_it_joins_again() {
    let mut hosts = site_of(&["alpha", "beta", "gamma"]);
    assert_meets(&hosts[1], &hosts[2]);
    let removed = hosts[0].home.done(&["host", "remove", "gamma"]);
    let outcome = &removed["removal"];
    assert_eq!(
        (&outcome["from_site"], &outcome["not_told"]),
        (&true.into(), &Value::Array(vec![]))
    );
    assert!(!knows(&hosts[0], "gamma") && !knows(&hosts[1], "gamma"));
    assert_refuses(&hosts[0], &hosts[2]);
    assert_refuses(&hosts[1], &hosts[2]);
    until_logged(&hosts[2], &["gamma was removed from this site on"]);

    // It joins again, over what it has; its daemon runs on.
    join(&hosts[0], &hosts[2]);
    eventually("beta hears of gamma", || knows(&hosts[1], "gamma").then_some(()));
    assert_meets(&hosts[1], &hosts[2]);
    let shown = hosts[2].home.done(&["host", "show"]);
    assert!(!shown["advice"].to_string().contains("removed"), "{shown}");
    for host in &mut hosts {
        host.end_daemon(Signal::SIGTERM);
        host.start_daemon();
    }
    assert_meets(&hosts[0], &hosts[2]);
    assert_meets(&hosts[1], &hosts[2]);
}

#[test]
fn who_was_off_hears_of_a_removal_from_anybody_and_old_lists_bring_nobody_back() {
    let mut hosts = site_of(&["alpha", "beta", "gamma", "delta"]);
    let list = hosts[1].home.dirs().state.join("hosts.json");
    eventually("beta knows all", || {
        (knows(&hosts[1], "gamma") && knows(&hosts[1], "delta")).then_some(())
    });
    let old = fs::read(&list).unwrap();
    hosts[1].end_daemon(Signal::SIGTERM);
    let removed = hosts[0].home.done(&["host", "remove", "gamma"]);
    assert_eq!(removed["removal"]["not_told"], serde_json::json!(["beta"]), "{removed}");
    // The CA's host is off when beta comes back: delta carries the CA's word.
    hosts[0].end_daemon(Signal::SIGTERM);
    hosts[1].start_daemon();
    eventually("beta hears of the removal", || (!knows(&hosts[1], "gamma")).then_some(()));
    assert_refuses(&hosts[1], &hosts[2]);

    hosts[1].end_daemon(Signal::SIGTERM);
    fs::write(&list, old).unwrap();
    hosts[1].start_daemon();
    assert_refuses(&hosts[1], &hosts[2]);
    hosts[0].start_daemon();
    assert_refuses(&hosts[0], &hosts[2]);
}

#[test]
fn who_may_not_remove_from_the_site_removes_for_itself() {
    let mut hosts = site_of(&["alpha", "beta", "gamma"]);
    eventually("beta knows gamma", || knows(&hosts[1], "gamma").then_some(()));
    let ran = hosts[1].home.json(&["host", "remove", "gamma"]);
    let outcome = ran.json()["removal"].clone();
    assert_eq!((ran.code, &outcome["from_site"]), (Some(3), &Value::from(false)), "{ran:?}");
    let why = outcome["error"]["message"].as_str().unwrap();
    assert!(why.contains("'beta' has not the right to 'control' on alpha"), "{why}");
    assert_refuses(&hosts[1], &hosts[2]);
    assert_meets(&hosts[0], &hosts[2]);

    // Alpha allows it.
    let rights = r#"{ "rights": { "beta": ["send", "receive", "observe", "control"] } }"#;
    fs::write(hosts[0].home.dirs().config.join("site.json"), rights).unwrap();
    hosts[0].end_daemon(Signal::SIGTERM);
    hosts[0].start_daemon();
    let removed = hosts[1].home.done(&["host", "remove", "gamma"]);
    assert_eq!(removed["removal"]["from_site"], true, "{removed}");
    assert_refuses(&hosts[0], &hosts[2]);

    // The CA's host itself can only be left, not removed.
    let left = hosts[1].home.done(&["host", "remove", "alpha"]);
    assert_eq!(left["removal"]["from_site"], false, "{left}");
    let own = hosts[0].home.json(&["host", "remove", "alpha"]);
    assert_eq!((own.code, error(&own).0.as_str()), (Some(2), "usage"), "{own:?}");
}
