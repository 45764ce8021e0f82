//! A move that failed is over when its command says so: the next one can begin at once.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Site, last, signal};
use crate::slow::{KIND, MEMORY, PAGES, SLOW, receiver};
use crate::support::kvm;

/// Two hosts, and a guest on the first.
fn site() -> Site {
    let site = Site::new();
    site.a.scribbler("web1", KIND, &MEMORY);
    site
}

#[track_caller]
fn assert_moves_now(site: &Site) {
    site.a.moves("web1", &site.b);
    site.a.assert_empty();
    site.b.assert_runs("web1").verify_clean(PAGES);
}

#[test]
fn directly_after_moves_that_timed_out() {
    if !kvm() {
        return;
    }
    let site = site();
    let words = [&["--timeout", "700ms"], &SLOW[..]].concat();
    for round in 0..5 {
        let ran = site.a.tries("web1", "beta", &words);
        // Each fails by its time, none is refused because of the one before.
        assert_eq!(ran.code, Some(5), "round {round}: {ran:?}");
    }
    assert_moves_now(&site);
}

#[test]
fn in_the_very_moment_in_which_others_end() {
    if !kvm() {
        return;
    }
    let site = site();
    let words = ["move", "web1", "--to", "beta", "--json", "--wait", "--timeout", "500ms"];
    let words = [&words[..], &SLOW].concat();
    let waiting: Vec<_> = (0..6).map(|_| site.a.home.spawn(&words)).collect();
    for child in waiting {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{output:?}");
    }
    assert_moves_now(&site);
}

#[test]
fn directly_after_moves_that_were_cancelled() {
    if !kvm() {
        return;
    }
    let site = site();
    for round in 0..3 {
        let id = site.a.begin("web1", &site.b, &SLOW);
        // Before anything of it is there, and while it copies.
        if round > 0 {
            site.a.until_copying(&id);
        }
        let ran = site.a.home.json(&["cancel", &id]);
        assert_eq!(ran.code, Some(0), "round {round}: {ran:?}");
    }
    assert_moves_now(&site);
}

#[test]
fn directly_after_the_death_of_a_receiver() {
    if !kvm() {
        return;
    }
    let site = site();
    for _ in 0..2 {
        let id = site.a.begin("web1", &site.b, &SLOW);
        site.a.until_copying(&id);
        signal(receiver(&site), Signal::SIGKILL);
        assert_eq!(site.a.until_ended(&id)["outcome"], "kept");
    }
    assert_moves_now(&site);
}

#[test]
fn a_receiver_that_hangs_is_waited_for_and_not_replaced() {
    if !kvm() {
        return;
    }
    let site = site();
    let id = site.a.begin("web1", &site.b, &SLOW);
    site.a.until_copying(&id);
    let hangs = receiver(&site);
    signal(hangs, Signal::SIGSTOP);
    let ran = site.a.home.json(&["cancel", &id]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // Its journal says whose the guest is, and nobody can ask it now.
    let ran = site.a.tries("web1", "beta", &[]);
    let error: Value = last(&ran)["error"].clone();
    let told = (ran.code, error["code"].as_str(), error["retryable"].as_bool());
    assert_eq!(told, (Some(4), Some("busy"), Some(true)), "{ran:?}");
    assert_eq!(receiver_still(&site), hangs);
    // The next one comes while it hangs, and goes on once it does not.
    let id = site.a.begin("web1", &site.b, &["--max-downtime", "5s"]);
    site.a.until_report(&id, "it is prepared", |r| r["phase"] == "preparing");
    signal(hangs, Signal::SIGCONT);
    assert_eq!(site.a.until_ended(&id)["outcome"], "moved");
    site.a.assert_empty();
    site.b.assert_runs("web1").verify_clean(PAGES);
}

/// The process there, which does not answer.
#[track_caller]
fn receiver_still(site: &Site) -> i32 {
    let known = site.b.home.processes();
    let daemon = site.b.daemon_pid();
    let others: Vec<i32> = known.into_iter().filter(|pid| *pid != daemon).collect();
    assert_eq!(others.len(), 1, "{others:?}");
    others[0]
}
