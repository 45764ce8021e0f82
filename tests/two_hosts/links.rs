//! Links of all kinds, and links that are cut while memory goes over.

use std::time::Duration;

use serde_json::json;

use crate::rig::{NET, Rig, Station, learned_port};

/// A guest that writes all the time, on two vCPUs, and what it takes.
pub const WRITER: &str = "ws=8M,data=24M,rate=500,hb=5ms,poll=5ms";
pub const MEMORY: [&str; 4] = ["--memory", "64M", "--cpus", "2"];
pub const PAGES: u64 = (8 + 24) * 256;
/// At 8 MB/s it copies for seconds: time enough to cut the link.
pub const SLOW: [&str; 4] = ["--bandwidth", "8MB", "--max-downtime", "5s"];

/// Longer than what of a move may hang on a cut link before it is over.
const CUT: Duration = Duration::from_secs(5);

/// Moves the guest there and back; the network outside hears of it each time. A scribbler sends
/// nothing itself, so all that is known of it outside is its announcement.
#[track_caller]
fn there_and_back(rig: &Rig) {
    let Rig { site, lab, .. } = rig;
    site.a.scribbler("web1", WRITER, &[&MEMORY[..], &["--net", NET]].concat());
    assert_eq!(learned_port(lab), None, "nobody knows it yet");
    for (from, to, port) in [(&site.a, &site.b, "port-b"), (&site.b, &site.a, "port-a")] {
        let station = Station::at(lab, port);
        let report = from.moves("web1", to);
        assert_eq!(
            (&report["digest_equal"], &report["audit_equal"]),
            (&json!(true), &json!(true)),
            "{report}"
        );
        station.until_announced();
        assert_eq!(learned_port(lab).as_deref(), Some(port));
        to.assert_runs("web1").verify_clean(PAGES);
        from.assert_empty();
    }
}

#[test]
fn a_guest_goes_there_and_back_over_a_plain_link() {
    let Some(rig) = Rig::up(&[]) else { return };
    there_and_back(&rig);
}

#[test]
fn a_guest_goes_there_and_back_over_jumbo_frames() {
    let Some(rig) = Rig::up(&["--mtu", "9000"]) else { return };
    there_and_back(&rig);
}

#[test]
fn a_guest_goes_there_and_back_over_a_bad_link() {
    let conditions = ["--delay", "5ms", "--loss", "1%", "--duplicate", "1%", "--reorder", "2%"];
    let Some(rig) = Rig::up(&conditions) else { return };
    there_and_back(&rig);
    for what in ["lost", "duplicated", "reordered"] {
        assert!(rig.lab.counter("a-to-b", what) > 0, "nothing was {what}");
    }
}

/// A guest is on its way when the link is cut; the move's id.
#[track_caller]
fn cut_while_copying(Rig { site, lab, .. }: &Rig) -> String {
    site.a.scribbler("web1", WRITER, &MEMORY);
    let id = site.a.begin("web1", &site.b, &SLOW);
    site.a.until_copying(&id);
    lab.done(&["cut"]);
    id
}

#[test]
fn a_link_is_cut_for_seconds_and_the_move_goes_on() {
    let Some(rig) = Rig::up(&["--relay"]) else { return };
    let Rig { site, lab, .. } = &rig;
    let id = cut_while_copying(&rig);
    std::thread::sleep(CUT);
    // It runs where it was all the while.
    site.a.assert_runs("web1");
    assert!(lab.counter("a-to-b", "while_cut") > 0, "it was cut when something was sent");
    lab.done(&["heal"]);
    assert_eq!(site.a.until_ended(&id)["outcome"], "moved");
    site.b.assert_runs("web1").verify_clean(PAGES);
    site.a.assert_empty();
}

#[test]
fn a_link_is_cut_for_good_and_the_guest_stays() {
    let Some(rig) = Rig::up(&["--relay"]) else { return };
    let Rig { site, lab, .. } = &rig;
    let id = cut_while_copying(&rig);
    let report = site.a.until_ended(&id);
    assert_eq!(report["outcome"], "kept", "{report}");
    let error = &report["error"];
    assert_eq!(error["guest_state"], "running", "{error}");
    for part in ["message", "remedy"] {
        assert!(!error[part].as_str().unwrap().is_empty(), "{error}");
    }
    assert!(error["message"].as_str().unwrap().contains("beta"), "{error}");
    site.a.assert_runs("web1").verify_clean(PAGES);
    // Nothing is left there, although nobody can tell that host.
    site.b.assert_empty();
    lab.done(&["heal"]);
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1").verify_clean(PAGES);
    site.a.assert_empty();
}
