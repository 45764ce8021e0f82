//! What commands say of guests that are elsewhere, of moves that are over, and of moves to come;
//! and what the daemon tells of them in figures.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::site::{Host, Site, last};
use crate::support::{Ran, kvm};

/// A guest with memory enough to tell of a link, that writes all the time.
const WRITER: &str = "ws=16M,data=24M,rate=2000,hb=5ms,poll=5ms";
const MEMORY: [&str; 4] = ["--memory", "64M", "--cpus", "2"];
const PAGES: u64 = (24 + 16) * 256;

#[track_caller]
fn one_document(ran: &Ran) -> Value {
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

#[test]
fn a_guest_that_is_there_already() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let a = &site.a.home;
    site.a.scribbler("web1", "ws=4M", &["--memory", "32M"]);
    let text = a.text(&["move", "web1", "--to", "alpha"]);
    assert_eq!((text.code, text.stdout.as_str()), (Some(0), "web1 is on alpha already\n"));
    let ran = a.json(&["web1", "--to", "alpha"]);
    let said = one_document(&ran);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let fields = (&said["type"], &said["already_there"], &said["guest"]);
    assert_eq!(fields, (&"result".into(), &true.into(), &"web1".into()), "{said}");
    for more in ["--detach", "--dry-run", "--all"] {
        let guest: &[&str] = if more == "--all" { &["move"] } else { &["move", "web1"] };
        let words = [guest, &["--to", "alpha", more]].concat();
        let ran = a.text(&words);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let said = if more == "--all" { "1 there already" } else { "web1 is on alpha already" };
        assert!(ran.stdout.contains(said), "{ran:?}");
    }
    let plan = a.done(&["move", "web1", "--to", "alpha", "--dry-run"]);
    assert_eq!(plan["plans"][0]["already_there"], true);
    assert!(a.done(&["history"])["moves"].as_array().unwrap().is_empty(), "nothing was begun");
    // One that is nowhere is not there.
    assert_eq!(a.json(&["move", "web2", "--to", "alpha"]).code, Some(7));
}

#[test]
fn a_guest_that_has_left() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let a = &site.a.home;
    site.a.scribbler("web1", "ws=4M", &["--memory", "32M"]);
    let report = site.a.moves("web1", &site.b);
    site.a.assert_empty();
    let file = a.file_text("state");
    let day = &report["ended"].as_str().unwrap()[..10];
    let commands: [&[&str]; 8] = [
        &["move", "web1", "--to", "beta"],
        &["move", "web1", "--to", "beta", "--dry-run"],
        &["show", "web1"],
        &["stop", "web1"],
        &["pause", "web1"],
        &["resume", "web1"],
        &["reset", "web1"],
        &["save", "web1", "--to", &file],
    ];
    let assert_left = |words: &[&str]| {
        let ran = a.json(words);
        let error = one_document(&ran)["error"].clone();
        assert_eq!((ran.code, error["code"].as_str()), (Some(4), Some("moved-away")), "{ran:?}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("beta") && message.contains(day), "{words:?}: {message}");
        assert!(error["remedy"].as_str().unwrap().contains("beta"), "{error}");
    };
    for words in commands {
        assert_left(words);
    }
    assert!(!fs::exists(&file).unwrap());
    // Records of ends go before journals do.
    assert_eq!(a.done(&["rm", "web1"])["records"], 1);
    assert_left(&["show", "web1"]);
    assert_left(&["rm", "web1"]);
    // The name is free for another guest, whose end counts then.
    site.a.scribbler("web1", "ws=4M", &["--memory", "32M"]);
    assert_eq!(a.done(&["show", "web1"])["state"], "running");
    a.done(&["stop", "web1", "--kill"]);
    assert_eq!(a.done(&["stop", "web1"])["already_stopped"], true);
    // It comes back, and is nobody else's any more.
    site.b.moves("web1", &site.a);
    assert_eq!(a.done(&["show", "web1"])["state"], "running");
    site.b.assert_empty();
    site.b.home.json(&["show", "web1"]).refused("moved-away", &["alpha"]);
}

#[test]
fn a_move_that_is_over_is_cancelled_in_one_document() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let a = &site.a.home;
    site.a.scribbler("web1", "ws=4M", &["--memory", "32M"]);
    let id = site.a.moves("web1", &site.b)["move_id"].as_str().unwrap().to_owned();
    let ran = a.json(&["cancel", &id]);
    let said = one_document(&ran);
    let fields = (&said["type"], &said["outcome"], &said["error"]["code"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(fields, (&"result".into(), &"moved".into(), &"wrong-state".into()), "{said}");
}

/// What the daemon answers to `GET /metrics`.
#[track_caller]
fn metrics(host: &Host) -> String {
    let mut stream = UnixStream::connect(host.home.dirs().daemon_socket()).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    body.to_owned()
}

/// Values by their series, each of which must be one of a family that was announced before, with
/// help and a type.
#[track_caller]
fn exposition(page: &str) -> BTreeMap<String, f64> {
    let (mut helps, mut kinds) = (BTreeMap::new(), BTreeMap::<&str, &str>::new());
    let mut values = BTreeMap::new();
    assert!(page.ends_with('\n'), "the last line ends");
    for line in page.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => {
                assert!(!help.is_empty() && helps.insert(name, help).is_none(), "{line}");
            }
            ["#", "TYPE", name, kind] => {
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(helps.contains_key(name) && kinds.insert(name, kind).is_none(), "{line}");
            }
            [series, value] => {
                let name = series.split('{').next().unwrap();
                let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                assert!(name.chars().all(good), "{line}");
                let parts = ["_bucket", "_sum", "_count"];
                let family = parts.iter().find_map(|part| name.strip_suffix(part));
                let family = family.filter(|f| kinds.get(f) == Some(&"histogram"));
                assert!(kinds.contains_key(family.unwrap_or(name)), "{line}");
                if let Some(labels) = series.strip_prefix(name).filter(|l| !l.is_empty()) {
                    let inner = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}')).unwrap();
                    let (_, value) = inner.split_once("=\"").unwrap();
                    assert!(value.ends_with('"'), "{line}");
                }
                let value: f64 = value.parse().unwrap_or_else(|e| panic!("{e}: {line}"));
                assert!(values.insert(series.to_owned(), value).is_none(), "twice: {line}");
            }
            _ => panic!("not a line of an exposition: {line}"),
        }
    }
    values
}

/// A histogram's buckets only grow, and end with its count.
#[track_caller]
fn assert_histogram(values: &BTreeMap<String, f64>, name: &str) {
    let start = format!("{name}_bucket{{le=\"");
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (series, value) in values {
        if let Some(end) = series.strip_prefix(&start) {
            buckets.push((end.trim_end_matches("\"}").parse().unwrap(), *value));
        }
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{buckets:?}");
    let (end, all) = buckets.last().expect("buckets");
    assert!(end.is_infinite(), "{buckets:?}");
    assert_eq!(all.to_bits(), values[&format!("{name}_count")].to_bits(), "{buckets:?}");
}

#[test]
fn the_figures_are_those_of_what_happened() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    site.a.scribbler("web1", "ws=4M", &["--memory", "32M"]);
    let before = exposition(&metrics(&site.a));
    let whole = |values: &BTreeMap<String, f64>, name: &str| format!("{:.0}", values[name]);
    assert_eq!(whole(&before, "migrate_guests"), "1");
    assert_eq!(whole(&before, "migrate_downtime_seconds_count"), "0");
    // One is refused, one happens.
    site.b.scribbler("web1", "ws=4M", &["--memory", "32M"]);
    assert_eq!(site.a.tries("web1", "beta", &[]).code, Some(4));
    site.b.home.done(&["stop", "web1", "--kill"]);
    let report = site.a.moves("web1", &site.b);
    site.a.assert_empty();
    let downtime = report["downtime_ms"].as_f64().unwrap() / 1000.0;
    for host in [&site.a, &site.b] {
        let moves = host.home.done(&["history"])["moves"].clone();
        let refused = moves.as_array().unwrap().iter().filter(|m| m["outcome"] == "kept").count();
        let page = metrics(host);
        let now = exposition(&page);
        assert_eq!(whole(&now, "migrate_moves_kept{outcome=\"moved\"}"), "1");
        let kept = whole(&now, "migrate_moves_kept{outcome=\"kept\"}");
        assert_eq!(kept, refused.to_string());
        assert_eq!(whole(&now, "migrate_moves_kept{outcome=\"in-doubt\"}"), "0");
        for name in ["migrate_moves_out", "migrate_moves_in", "migrate_memory_reserved_bytes"] {
            assert_eq!(whole(&now, name), "0", "{name}");
        }
        let guests = if host.name == "beta" { "1" } else { "0" };
        assert_eq!(whole(&now, "migrate_guests"), guests, "{}", host.name);
        for name in ["migrate_downtime_seconds", "migrate_withdrawn_pause_seconds"] {
            assert_histogram(&now, name);
        }
        assert_eq!(whole(&now, "migrate_downtime_seconds_count"), "1");
        assert_eq!(whole(&now, "migrate_withdrawn_pause_seconds_count"), "0");
        assert!((now["migrate_downtime_seconds_sum"] - downtime).abs() < 1e-6, "{page}");
        let bytes = report["udp_bytes"].as_f64().unwrap();
        assert!(now["migrate_moves_kept_bytes"] >= bytes && bytes > 0.0, "{page}");
        for (series, value) in &now {
            let Some(end) = series.strip_prefix("migrate_downtime_seconds_bucket{le=\"") else {
                continue;
            };
            let end: f64 = end.trim_end_matches("\"}").parse().unwrap();
            let wanted = if downtime <= end { "1" } else { "0" };
            assert_eq!(format!("{value:.0}"), wanted, "{series}: {downtime}");
        }
    }
    let refused = site.a.home.done(&["history"]);
    assert_eq!(refused["moves"].as_array().unwrap().len(), 2, "{refused}");
}

/// The plan of a move of web1 to beta, with its text for people.
#[track_caller]
fn planned(site: &Site) -> (Value, String) {
    let words = ["move", "web1", "--to", "beta", "--dry-run"];
    let ran = site.a.home.json(&words);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    (last(&ran)["plans"][0].clone(), site.a.home.text(&words).stdout)
}

#[test]
fn a_dry_run_says_what_it_would_be_like_and_on_what_that_rests() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    site.a.scribbler("web1", WRITER, &MEMORY);
    let (plan, text) = planned(&site);
    println!("{text}");
    assert_eq!(plan["bandwidth_basis"], "probe", "{plan}");
    let figure = |plan: &Value, name: &str| {
        plan[name].as_f64().unwrap_or_else(|| panic!("no {name}: {plan}"))
    };
    // 2000 pages a second of a working set of 4096, some of them twice.
    let dirty = figure(&plan, "dirty_bytes_per_s");
    assert!(dirty > f64::from(1 << 20) && dirty < f64::from(64 << 20), "{plan}");
    assert!(figure(&plan, "bandwidth_bytes_per_s") > 0.0);
    assert!(figure(&plan, "predicted_downtime_ms") > 0.0);
    assert!(figure(&plan, "predicted_total_ms") > figure(&plan, "predicted_downtime_ms"));
    for part in ["standing still for about", "a sample of half a second", "watched for"] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    // The guest is none the worse for it, and can be moved at once.
    site.a.assert_runs("web1").verify_clean(PAGES);
    planned(&site);
    let moved = site.a.moves("web1", &site.b);
    println!("it took {} ms, and {} ms of it still", moved["total_ms"], moved["downtime_ms"]);
    site.b.moves("web1", &site.a);
    let (plan, text) = planned(&site);
    println!("{text}");
    assert_eq!(plan["bandwidth_basis"], "last-move", "{plan}");
    assert!(text.contains("got across at that rate in move"), "{text}");
    site.a.home.done(&["pause", "web1"]);
    let (plan, text) = planned(&site);
    assert_eq!(plan["dirty_bytes_per_s"], 0, "{plan}");
    assert!(text.contains("is paused"), "{text}");
    site.a.home.done(&["resume", "web1"]);
    site.a.assert_runs("web1").verify_clean(PAGES);
}

#[test]
fn what_is_being_measured_gives_way_to_a_move() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    site.a.scribbler("web1", WRITER, &MEMORY);
    let (mut here, mut there) = (&site.a, &site.b);
    for _ in 0..4 {
        let words = ["move", "web1", "--to", &there.name, "--dry-run", "--json"];
        let looking: Vec<_> = (0..2).map(|_| here.home.spawn(&words)).collect();
        here.moves("web1", there);
        for child in looking {
            let _ = child.wait_with_output().unwrap();
        }
        here.assert_empty();
        there.assert_runs("web1").verify_clean(PAGES);
        (here, there) = (there, here);
    }
}
