//! What an operator may say of a guest whose other host is gone, and what comes of it.

use std::fs::{self, File};

use migrate_engine::handover::journal::Record;
use nix::sys::signal::Signal;
use serde_json::Value;
use uuid::Uuid;

use crate::rig::{define, dies_after, error, highest, offer, reboot, record};
use crate::site::Site;
use crate::support::{eventually, kvm};

/// A guest that the first host offered to the second when both died; the second stays away.
fn in_doubt(more: &str) -> (Site, Uuid, migrate_engine::handover::term::Switch) {
    let mut site = Site::new();
    let guest = define(&site.a.home, "web1", more);
    site.a.home.done(&["start", "web1"]);
    site.a.assert_runs("web1");
    site.a.home.done(&["stop", "web1"]);
    site.b.end_daemon(Signal::SIGKILL);
    site.a.end_daemon(Signal::SIGKILL);
    let switch = offer(&site.a, &site.b, guest);
    dies_after(&site.a, guest, "beta", &[Record::Offered(switch)]);
    dies_after(&site.b, guest, "alpha", &[Record::Receiving(switch)]);
    reboot(&mut site.a);
    (site, guest, switch)
}

fn message(error: &Value) -> &str {
    error["message"].as_str().unwrap()
}

const RUN: [&str; 5] = ["resolve", "web1", "--run-here", "--fenced", "beta"];

#[test]
fn without_shared_disks_an_operator_says_what_may_be_lost() {
    if !kvm() {
        return;
    }
    let (mut site, guest, switch) = in_doubt("");
    let home = &site.a.home;
    // What is known, in words.
    let listed = home.done(&["ls"]);
    let doubt = &listed["in_doubt"][0];
    assert_eq!((&doubt["name"], &doubt["doubt"]), (&"web1".into(), &"offered".into()), "{listed}");
    let shown = home.done(&["show", "web1"]);
    assert_eq!((&shown["doubt"], &shown["other"]["name"]), (&"offered".into(), &"beta".into()));
    assert!(shown["known"].as_str().unwrap().contains("is here or there is not known"), "{shown}");
    assert!(shown["next"].as_str().unwrap().contains("until beta answers"), "{shown}");
    let text = home.text(&["ls"]).stdout;
    assert!(text.contains("web1: in doubt: ") && text.contains("migrate resolve web1"), "{text}");
    let standing = home.done(&["resolve", "web1"]);
    assert_eq!(standing["hosts"][0]["host"], "beta");
    assert!(standing["hosts"][0]["answer"]["Err"]["message"].is_string(), "{standing}");
    assert_eq!(standing["memory"], false);

    // Nobody is at a terminal; a wrong host; no word about what may be lost.
    let no = error(home, &["resolve", "web1", "--run-here"]);
    assert_eq!(no["code"], "usage", "{no}");
    assert!(no["remedy"].as_str().unwrap().contains("--fenced beta"), "{no}");
    let no = error(home, &["resolve", "web1", "--run-here", "--fenced", "gamma"]);
    assert!(message(&no).contains("is 'beta', not 'gamma'"), "{no}");
    let no = error(home, &RUN);
    assert_eq!(no["code"], "in-doubt", "{no}");
    assert!(message(&no).contains("whether host beta ran the guest on"), "{no}");
    assert_eq!(record(&site.a, guest), Record::Offered(switch), "nothing was done");

    let done = site.a.home.done(&[&RUN[..], &["--lose-later-work"]].concat());
    assert_eq!(done["guest"]["state"], "running");
    site.a.assert_runs("web1");
    let owner = record(&site.a, guest);
    assert!(matches!(owner, Record::Owner { term } if term > switch.term), "{owner:?}");
    // Everything that was said is on record, also what was refused.
    let path = site.a.home.dirs().state.join("resolved").join(format!("{guest}.jsonl"));
    let words = fs::read_to_string(path).unwrap();
    let words: Vec<Value> = words.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(words.len(), 3, "{words:?}");
    assert!(words[0]["refused"]["message"].is_string() && words[2]["refused"].is_null());
    assert_eq!(words[2]["asked"]["fenced"], "beta");
    let journal = site.a.home.dirs().journal(&guest).join("record");
    assert!(fs::read_to_string(journal).unwrap().contains("run here, as beta is fenced"));
    // The other host comes back, and hears that it never ran the guest.
    site.b.start_daemon();
    eventually("it hears of it", || {
        (record(&site.b, guest) == Record::Tombstone(switch)).then_some(())
    });
    define(&site.b.home, "web1", "");
    let toml = site.b.home.dirs().definition("web1");
    let text = fs::read_to_string(site.a.home.dirs().definition("web1")).unwrap();
    fs::write(toml, text).unwrap();
    assert_eq!(error(&site.b.home, &["start", "web1"])["code"], "moved-away");
    // Life goes on.
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1").verify_clean(1024);
}

#[test]
fn shared_disks_tell_and_are_told() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let disk =
        format!("[[disk]]\npath = \"{}\"\nshared = true\ncache = \"writeback\"\n", image.display());
    let (mut site, guest, switch) = in_doubt(&disk);
    // From its disks: what the other host wrote, if it did, is there.
    let done = site.a.home.done(&RUN);
    assert_eq!(done["guest"]["state"], "running");
    site.a.assert_runs("web1");
    // The other host has all that it needs to start the guest, but for the right: its own journal
    // says that it owns it, as if it had run there before it died.
    let owner = Record::Owner { term: switch.term };
    dies_after(&site.b, guest, "alpha", &[owner]);
    site.a.home.done(&["stop", "web1"]);
    site.b.start_daemon();
    define(&site.b.home, "web1", "");
    let text = fs::read_to_string(site.a.home.dirs().definition("web1")).unwrap();
    fs::write(site.b.home.dirs().definition("web1"), text).unwrap();
    let no = error(&site.b.home, &["start", "web1"]);
    assert_eq!(no["code"], "superseded", "{no}");
    assert!(highest(&site.a, guest) > switch.term.get());
    // Here it starts as ever.
    site.a.home.done(&["start", "web1"]);
    site.a.assert_runs("web1");
}

#[test]
fn a_host_that_answers_is_not_fenced_and_who_gives_up_has_no_claim() {
    if !kvm() {
        return;
    }
    let (mut site, guest, switch) = in_doubt("");
    let no = error(&site.a.home, &["resolve", "web1", "--give-up"]);
    assert_eq!(no["code"], "usage", "{no}");
    site.a.home.done(&["resolve", "web1", "--give-up", "--yes"]);
    assert_eq!(record(&site.a, guest), Record::Ceded(switch));
    assert_eq!(error(&site.a.home, &["start", "web1"])["code"], "moved-away");
    // The other host hears *ceded* when it is back: the guest is its own, to be started there.
    site.b.start_daemon();
    eventually("it owns the guest", || {
        matches!(record(&site.b, guest), Record::Owner { .. }).then_some(())
    });
    eventually("and it is confirmed", || {
        (record(&site.a, guest) == Record::Moved(switch)).then_some(())
    });
    let no = error(&site.a.home, &[&RUN[..], &["--lose-later-work"]].concat());
    assert_eq!(no["code"], "superseded", "{no}");
    assert!(message(&no).contains("'beta' answers, and says that it has"), "{no}");
    // Also if it is gone after that: without shared disks what ran there is lost with it.
    site.b.end_daemon(Signal::SIGKILL);
    let no = error(&site.a.home, &[&RUN[..], &["--lose-later-work"]].concat());
    assert_eq!(no["code"], "superseded", "{no}");
    assert!(message(&no).contains("was confirmed"), "{no}");
    let no = error(&site.a.home, &["resolve", "nobody"]);
    assert_eq!(no["code"], "not-found", "{no}");
}
