//! The arbiter stands still in the very moment in which the source asks it to give the guest away:
//! nobody runs it until the arbiter has answered, and then one host does.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::etcd::{Etcd, line, there};
use crate::moves::{GUEST, PAGES, id, site, stands, start};
use crate::site::{Site, signal};
use crate::support::{eventually, kvm};
use crate::tap::Tap;

/// For so long nobody may run the guest.
const STILL: Duration = Duration::from_secs(3);
/// The same, and longer than a source waits that was not told to be patient.
const LONG: Duration = Duration::from_secs(8);

const PATIENT: [&str; 2] = ["--max-downtime", "10s"];

/// Processes that ask the arbiter for the guest.
fn agents() -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let guest = GUEST.to_string();
    let asks = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.contains("arbiter-agent") && words.contains(&guest)
    };
    pids.filter(asks).collect()
}

/// Of the instance of this site.
fn agents_of(site: &Site) -> Vec<i32> {
    let home = site.a.home.path().to_str().unwrap().to_owned();
    let ours = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&home)
    };
    agents().into_iter().filter(ours).collect()
}

/// Moves the guest, and stops etcd just before it hears that beta shall have it. `meanwhile` is
/// done while nobody may run. In the end one host has the guest, whole, as the arbiter says.
fn stopped_in_doubt(
    words: &[&str],
    still: Duration,
    meanwhile: impl FnOnce(&mut Site),
) -> &'static str {
    let etcd = Arc::new(Etcd::new());
    let tap = Tap::new(etcd.port());
    let mut site = site(&line(tap.port()), &line(etcd.port()));
    start(&site.a);
    let mut console = site.a.assert_runs("web1");
    let (beta, stopping) = (id(&site.b).to_string(), Arc::clone(&etcd));
    tap.when(&beta, move || stopping.stop());
    let move_id = site.a.begin("web1", &site.b, words);
    eventually("the right is asked for", || tap.has_sprung().then_some(()));
    site.a.until_report(&move_id, "it is in doubt", |r| r["phase"] == "in-doubt");
    while console.listen(Duration::from_millis(50)) {}
    let (heard, began) = (console.beats(), Instant::now());
    meanwhile(&mut site);
    while began.elapsed() < still {
        console.listen(Duration::from_millis(50));
        assert_eq!(console.beats(), heard, "it runs at alpha");
        let there = site.b.home.json(&["show", "web1"]);
        assert!(!there.stdout.contains("\"running\""), "it runs at beta: {there:?}");
    }
    etcd.go_on();
    let report = site.a.until_ended(&move_id);
    let alpha = id(&site.a);
    let (here, there) = match report["outcome"].as_str() {
        Some("moved") => (&site.b, &site.a),
        Some("kept") => (&site.a, &site.b),
        _ => panic!("{report}"),
    };
    here.assert_runs("web1").verify_clean(PAGES);
    there.assert_empty();
    let kept = here.name == "alpha";
    let (term, host) = stands(&etcd).unwrap();
    assert_eq!((term, host == alpha), (2, kept), "{report}");
    eventually("the agents of the arbiter end", || agents_of(&site).is_empty().then_some(()));
    // And it goes on from there.
    here.moves("web1", there);
    there.assert_runs("web1").verify_clean(PAGES);
    if kept { "kept" } else { "moved" }
}

#[test]
fn nobody_runs_while_it_stands_still() {
    if !kvm() || !there() {
        return;
    }
    // Long before the deadline: whoever is prepared gets it.
    assert_eq!(stopped_in_doubt(&PATIENT, STILL, |_| {}), "moved");
}

#[test]
fn nobody_runs_while_it_stands_still_beyond_the_deadline() {
    if !kvm() || !there() {
        return;
    }
    // The source would rather keep it from some moment on; what was asked for may be granted yet.
    let words = ["--max-downtime", "300ms", "--on-stall", "pause"];
    let outcome = stopped_in_doubt(&words, LONG, |_| {});
    println!("beyond the deadline: {outcome}");
}

#[test]
fn the_agent_and_the_daemon_die_in_the_doubt() {
    if !kvm() || !there() {
        return;
    }
    stopped_in_doubt(&PATIENT, STILL, |site| {
        let first = agents_of(site);
        assert_eq!(first.len(), 1, "one agent for the move");
        signal(first[0], Signal::SIGKILL);
        let second = eventually("another agent", || {
            let now = agents_of(site);
            (!now.is_empty() && now != first).then(|| now[0])
        });
        site.a.end_daemon(Signal::SIGKILL);
        signal(second, Signal::SIGKILL);
        site.a.start_daemon();
        eventually("another agent from the next daemon", || {
            let now = agents_of(site);
            (!now.is_empty() && !now.contains(&second)).then_some(())
        });
    });
}
