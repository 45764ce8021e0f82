//! Hosts of which one shows its guests less of a CPU. Both are this machine; beta hides a feature.

use std::fs;

use serde_json::Value;

use crate::site::{Host, Site, last};
use crate::support::kvm;

const SMALL: [&str; 2] = ["--memory", "32M"];
/// Features of which any KVM offers one, and that a scribbler can do without.
const SPARE: [&str; 6] = ["clwb", "umip", "clflushopt", "rdseed", "movbe", "popcnt"];

/// Names in an array.
#[track_caller]
fn names(array: &Value) -> Vec<&str> {
    array.as_array().expect("an array").iter().map(|v| v.as_str().unwrap()).collect()
}

/// Has `host` hide a feature from its guests.
fn hide(host: &Host, feature: &str) {
    let path = host.home.dirs().config.join("host.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}[cpu]\nmask = [\"{feature}\"]\n")).unwrap();
}

/// A feature that beta now hides. What the program says that this host has must be what the
/// kernel says.
#[track_caller]
fn lesser_beta(site: &Site) -> String {
    let alone = site.a.home.done(&["host", "cpu", "alpha"]);
    let offered = names(&alone["common"]);
    let kernel = fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = kernel.lines().find(|l| l.starts_with("flags")).unwrap();
    let spare = SPARE.into_iter().find(|f| offered.contains(f)).expect("a feature to spare");
    assert!(flags.split(' ').any(|f| f == spare), "the kernel knows nothing of {spare}");
    hide(&site.b, spare);
    spare.to_owned()
}

#[test]
fn a_guest_with_more_than_the_other_host_has_stays_and_one_with_the_common_part_goes() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let (a, b) = (&site.a.home, &site.b.home);
    let feature = lesser_beta(&site);
    let lacks = |text: &str| text.contains("beta") && text.contains(&feature);

    // All of this host's CPU: refused by name before anything is sent, and in the dry run.
    site.a.scribbler("web1", "ws=4M", &SMALL);
    let ran = site.a.tries("web1", "beta", &[]);
    let error = &last(&ran)["error"];
    assert_eq!((ran.code, error["code"].as_str()), (Some(4), Some("cpu-mismatch")), "{ran:?}");
    assert!(lacks(error["message"].as_str().unwrap()), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("--cpu-template"), "{error}");
    let planned = site.a.tries("web1", "beta", &["--dry-run"]);
    let plan = &last(&planned)["plans"][0];
    assert_eq!((planned.code, &plan["possible"]), (Some(4), &Value::Bool(false)), "{plan}");
    assert!(lacks(plan["problems"][0]["message"].as_str().unwrap()), "{plan}");
    site.a.assert_runs("web1").verify_clean(1024);
    site.b.assert_empty();
    // So it is said before: only the way to beta lacks something.
    let line = |from: &Host, to: &str| {
        let check: Value = from.home.json(&["host", "check", to]).json();
        let lines = check["lines"].as_array().unwrap().clone();
        lines.into_iter().find(|l| l["what"] == "CPU").expect("a line about the CPU")
    };
    let (there, back) = (line(&site.a, "beta"), line(&site.b, "alpha"));
    assert!(there["ok"] == false && there["found"].as_str().unwrap().contains(&feature), "{there}");
    assert_eq!(back["ok"], true, "{back}");

    // What both have goes, and comes back, and still is what it was made with.
    let path = a.file_text("common.json");
    let compared = a.done(&["host", "cpu", "-o", &path]);
    assert_eq!(names(&compared["hosts"][0]["beyond"]), [feature.as_str()], "{compared}");
    assert_eq!(names(&compared["hosts"][1]["beyond"]), Vec::<&str>::new(), "{compared}");
    assert!(!names(&compared["common"]).contains(&feature.as_str()), "{compared}");
    let template = format!("@{path}");
    site.a.scribbler("web2", "ws=4M", &["--memory", "32M", "--cpu-template", &template]);
    let made = a.done(&["show", "web2"]);
    assert_eq!(made["cpu_template"], "alpha+beta");
    site.a.moves("web2", &site.b);
    site.b.assert_runs("web2").verify_clean(1024);
    assert_eq!(b.done(&["show", "web2"])["definition"], made["definition"]);
    site.b.moves("web2", &site.a);
    site.a.assert_runs("web2").verify_clean(1024);
    site.b.assert_empty();
    // What counts is what the guest was shown, not where it comes from: one that was made at beta
    // goes back to it from alpha.
    site.b.scribbler("web3", "ws=4M", &SMALL);
    site.b.moves("web3", &site.a);
    site.b.assert_empty();
    site.a.moves("web3", &site.b);
    site.b.assert_runs("web3").verify_clean(1024);
}

#[test]
fn a_template_is_refused_where_it_cannot_be_had() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    let (a, b) = (&site.a.home, &site.b.home);
    let path = a.file_text("full.json");
    a.done(&["host", "cpu", "alpha", "-o", &path]);
    let feature = lesser_beta(&site);
    let template = format!("@{path}");
    let run = |template: &str| {
        b.json(&["run", "g", "--guest", "scribbler:ws=4M", "--cpu-template", template])
    };
    let refused = run(&template);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    let error = &refused.json()["error"];
    assert_eq!(error["code"], "cpu-mismatch");
    assert!(error["message"].as_str().unwrap().contains(&feature), "{error}");

    // A file is not written over without being told.
    let again = a.json(&["host", "cpu", "-o", &path]);
    assert_eq!(again.json()["error"]["code"], "file", "{again:?}");
    assert_eq!(run(&format!("{template}x")).json()["error"]["code"], "not-found");
    fs::write(&path, "{}").unwrap();
    assert_eq!(run(&template).json()["error"]["code"], "bad-definition");
    assert_eq!(a.json(&["host", "cpu", "gamma"]).json()["error"]["code"], "unknown-host");
}
