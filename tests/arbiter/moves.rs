//! Guests that start and move under an arbiter, and what is refused without its word.

use std::fs;

use migrate::arbiter::open;
use migrate_engine::handover::term::Stamp;
use migrate_engine::wire::GuestId;
use serde_json::Value;
use uuid::Uuid;

use crate::etcd::{Etcd, there};
use crate::site::{Host, Site, last};
use crate::support::kvm;

pub const GUEST: Uuid = Uuid::from_u128(0x1111_1111_2222_4333_8444_0000_0000_0001);
/// At 8 MB/s a guest of this size copies for seconds: time enough to do something to it.
const SLOW: [&str; 4] = ["--bandwidth", "8MB", "--max-downtime", "5s"];
pub const PAGES: u64 = (24 + 8) * 256;

/// Two hosts with these lines in their `host.toml`, and a definition of the guest on both.
pub fn site(first: &str, second: &str) -> Site {
    let (a, b) = (Host::new("alpha"), Host::new("beta"));
    for (host, lines) in [(&a, first), (&b, second)] {
        host.configure(lines);
        let guests = host.home.dirs().config.join("guests");
        fs::create_dir_all(&guests).unwrap();
        let text = format!(
            "uuid = \"{GUEST}\"\nmemory = \"64M\"\ncpus = 2\n\
             guest = \"scribbler:ws=8M,data=24M,rate=500,hb=5ms,poll=5ms\"\n"
        );
        fs::write(guests.join("web1.toml"), text).unwrap();
    }
    Site::of(a, b)
}

/// Starts the guest, and waits until its memory is filled.
#[track_caller]
pub fn start(host: &Host) -> Value {
    host.home.done(&["start", "web1", "--wait-for", "console:SCRIBBLER-READY,60s"])
}

pub fn id(host: &Host) -> Uuid {
    migrate::config::host_id(&host.home.dirs()).unwrap()
}

/// What stands in the arbiter: term and host.
#[track_caller]
pub fn stands(etcd: &Etcd) -> Option<(u64, Uuid)> {
    let arbiter = open(&etcd.config()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stands = runtime.block_on(arbiter.read(GuestId(GUEST.into_bytes()))).unwrap();
    stands.map(|Stamp { term, host }| (term.get(), Uuid::from_u128(host.0)))
}

#[track_caller]
fn assert_error(document: &Value, code: &str, parts: &[&str]) {
    let error = &document["error"];
    assert_eq!(error["code"], code, "{document}");
    let message = error["message"].as_str().unwrap_or_default();
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
    assert!(!error["remedy"].as_str().unwrap_or_default().is_empty(), "{document}");
}

#[test]
fn a_guest_goes_to_and_fro_and_the_right_with_it() {
    if !kvm() || !there() {
        return;
    }
    let etcd = Etcd::new();
    let site = site(&etcd.line(), &etcd.line());
    let (alpha, beta) = (id(&site.a), id(&site.b));
    let first = start(&site.a);
    assert_eq!(stands(&etcd), Some((1, alpha)));
    assert_eq!(first["term"], 1);
    for round in 0..3 {
        let moved = site.a.moves("web1", &site.b);
        // A read and a change of the arbiter are in the prediction, and the move waits for both.
        assert!(moved["predicted_downtime_ms"].as_f64() > Some(0.0), "{moved}");
        site.b.assert_runs("web1").verify_clean(PAGES);
        site.a.assert_empty();
        assert_eq!(stands(&etcd), Some((2 * round + 2, beta)));
        let refused = site.a.home.json(&["start", "web1"]);
        assert_eq!(refused.code, Some(4), "{refused:?}");
        site.b.moves("web1", &site.a);
        site.a.assert_runs("web1").verify_clean(PAGES);
        site.b.assert_empty();
        assert_eq!(stands(&etcd), Some((2 * round + 3, alpha)));
    }
    site.a.home.done(&["stop", "web1", "--kill"]);
    start(&site.a);
    assert_eq!(stands(&etcd), Some((8, alpha)));
}

#[test]
fn a_host_that_comes_back_without_its_journal_does_not_start_what_another_has() {
    if !kvm() || !there() {
        return;
    }
    let etcd = Etcd::new();
    let site = site(&etcd.line(), &etcd.line());
    start(&site.a);
    site.a.moves("web1", &site.b);
    site.a.assert_empty();
    let beta = id(&site.b);
    // Its state directory was restored from long ago, say.
    fs::remove_dir_all(site.a.home.dirs().journal(&GUEST)).unwrap();
    let ran = site.a.home.json(&["start", "web1"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_error(&ran.json(), "superseded", &["arbiter", &beta.simple().to_string()]);
    assert_eq!(stands(&etcd), Some((2, beta)));
    site.a.assert_empty();
    site.b.assert_runs("web1").verify_clean(PAGES);
}

#[test]
fn an_arbiter_that_died_starts_and_moves_nothing_and_stops_nobody() {
    if !kvm() || !there() {
        return;
    }
    let mut etcd = Etcd::new();
    let site = site(&etcd.line(), &etcd.line());
    start(&site.a);
    let id = site.a.begin("web1", &site.b, &SLOW);
    site.a.until_copying(&id);
    etcd.kill();
    // It had begun, and ends before anything is offered: the guest was not even stopped.
    let report = site.a.until_ended(&id);
    assert_eq!(report["outcome"], "kept", "{report}");
    assert_error(&report, "arbiter", &["did not answer", "etcd http://127.0.0.1"]);
    assert!(report["downtime_ms"].is_null(), "{report}");
    site.b.assert_empty();
    site.a.assert_runs("web1").verify_clean(PAGES);
    // The next one is refused before anything is sent; so is a start.
    let ran = site.a.tries("web1", "beta", &[]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_error(&last(&ran), "arbiter", &["did not answer"]);
    let ran = site.b.home.json(&["run", "web2", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_error(&ran.json(), "arbiter", &["did not answer"]);
    site.b.assert_empty();
    // It is back, with what it knew.
    etcd.start();
    site.a.assert_runs("web1");
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1").verify_clean(PAGES);
    site.a.assert_empty();
}

#[test]
fn hosts_without_the_same_arbiter_move_nothing() {
    if !kvm() || !there() {
        return;
    }
    let (one, two) = (Etcd::new(), Etcd::new());
    for (first, second, parts) in [
        (one.line(), two.line(), "different arbiters"),
        (one.line(), String::new(), "host beta has none"),
        (String::new(), two.line(), "host alpha has none"),
    ] {
        let site = site(&first, &second);
        // Another guest each time: none of them is known to an arbiter from before.
        let kind = "ws=4M";
        site.a.scribbler("web2", kind, &["--memory", "32M"]);
        let ran = site.a.tries("web2", "beta", &[]);
        assert_eq!(ran.code, Some(4), "{ran:?}");
        assert_error(&last(&ran), "arbiter", &[parts]);
        let planned = site.a.home.json(&["move", "web2", "--to", "beta", "--dry-run"]);
        assert!(planned.stdout.contains(parts), "{planned:?}");
        site.b.assert_empty();
        site.a.assert_runs("web2").verify_clean(1024);
    }
}
