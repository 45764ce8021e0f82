//! Links that are cut in the very moment of the switch. The link is so long (in time) that there
//! is a moment: the last piece is under way, and the answer takes its time.

use std::time::Duration;

use serde_json::Value;

use crate::links::{MEMORY, PAGES, WRITER};
use crate::rig::Rig;
use crate::site::Host;
use crate::support::eventually;

/// One way. Twice as long passes between the last piece and its answer.
const DELAY: &str = "delay=250ms";
/// The link is silent for longer than either side takes for alive.
const FOR_GOOD: Duration = Duration::from_secs(35);

/// A guest whose last piece is under way to the second host.
#[track_caller]
fn at_the_switch() -> Option<(Rig, String)> {
    let rig = Rig::up(&["--relay"])?;
    let Rig { site, lab, .. } = &rig;
    site.a.scribbler("web1", WRITER, &MEMORY);
    lab.done(&["set", DELAY]);
    let id = site.a.begin("web1", &site.b, &["--on-stall", "pause"]);
    eventually("the last piece is sent", || {
        let report = phase_of(&site.a, &id);
        assert!(report["outcome"].is_null(), "it ended before: {report}");
        (report["phase"] == "in-doubt").then_some(())
    });
    Some((rig, id))
}

fn phase_of(host: &Host, id: &str) -> Value {
    let shown = host.home.json(&["report", id]);
    serde_json::from_str(&shown.stdout).unwrap_or_default()
}

/// No guest beats at this host.
#[track_caller]
fn assert_does_not_run(host: &Host) {
    if host.home.dirs().guest("web1").console().exists() {
        let mut console = host.home.console("web1");
        console.until_silent(Duration::from_millis(300));
        let before = console.beats();
        console.listen(Duration::from_secs(1));
        assert_eq!(console.beats(), before, "it runs on {}", host.name);
    }
}

#[test]
fn the_answer_to_the_last_piece_is_lost() {
    let Some((rig, id)) = at_the_switch() else { return };
    let Rig { site, lab, .. } = &rig;
    lab.relay("cut b-to-a");
    // It is withdrawn in time, which is this side's right until it has ceded.
    let report = site.a.until_ended(&id);
    assert_eq!(report["outcome"], "kept", "{report}");
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.contains("not answered in time"), "{report}");
    site.a.assert_runs("web1").verify_clean(PAGES);
    // The other host has all of the guest, waits for a word, and does not run it.
    assert_does_not_run(&site.b);
    std::thread::sleep(FOR_GOOD);
    assert_does_not_run(&site.b);
    lab.relay("heal");
    site.b.assert_empty();
    lab.done(&["set", "delay=0ms"]);
    site.a.moves("web1", &site.b);
    site.b.assert_runs("web1").verify_clean(PAGES);
    site.a.assert_empty();
}

#[test]
fn the_word_that_cedes_the_guest_is_lost() {
    let Some((rig, id)) = at_the_switch() else { return };
    let Rig { site, lab, .. } = &rig;
    // The last piece has left, also where this machine is slow to send it.
    std::thread::sleep(Duration::from_millis(100));
    lab.relay("cut a-to-b");
    eventually("the guest is ceded", || (phase_of(&site.a, &id)["phase"] == "ceded").then_some(()));
    // It is nowhere, and that is said, for as long as the two cannot talk.
    let until = std::time::Instant::now() + FOR_GOOD;
    while std::time::Instant::now() < until {
        for host in [&site.a, &site.b] {
            assert_does_not_run(host);
        }
        let report = phase_of(&site.a, &id);
        assert!(report["outcome"].is_null(), "nobody can know: {report}");
        let said = site.a.home.text(&["report", &id]);
        assert!(
            said.stdout.contains("in doubt") && said.stdout.contains("both daemons"),
            "{said:?}"
        );
        std::thread::sleep(Duration::from_secs(5));
    }
    lab.relay("heal");
    assert_eq!(site.a.until_ended(&id)["outcome"], "moved");
    site.b.assert_runs("web1").verify_clean(PAGES);
    site.a.assert_empty();
}
