//! Whole moves of fake guests between two sessions in this process.

mod claims;
mod fake;
mod hostile;
mod pair;
mod trouble;

use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;

use self::pair::{Setup, Sides, block_on};
use super::report::{Phase, Reason, Side, Step, Verdict};
use super::{source, target};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The guest writes all the time, lanes overtake each other, and what arrives is what was
    /// there when it stopped: the place that restores it compares.
    #[test]
    fn a_guest_moves(seed: u64, lanes in 1..=3usize, units in 1..900u64) {
        block_on(async {
            let setup = Setup { seed, lanes, units, ..Setup::default() };
            let sides = Sides::start(&setup);
            let near = sides.near_ram.clone();
            let (world, near_end, far_end) = sides.ends().await;
            let source::Outcome::Moved { report } = near_end.0 else {
                panic!("seed {seed}: {:?} {:?}", pair::text_of(&near_end.0), world.diary.lines())
            };
            let target::Outcome::Arrived { guest, report: theirs } = far_end.0 else { panic!() };
            assert!(matches!(guest, target::Arrived::Running(guest) if guest.runs()));
            assert!(!near.tracking.load(SeqCst), "the log is still on");
            assert_eq!(report.verdict, Verdict::Moved);
            assert_eq!(report.audit.as_ref().unwrap().differing, Vec::<u64>::new());
            assert_eq!(report.digest_agreed, Some(true));
            assert_eq!(theirs.verdict, Verdict::Arrived);
            assert!(report.rounds.last().unwrap().last);
            world.diary.in_order(&[
                "S stamps the offer", "S records Offered", "T takes NEXT", "T records Receiving",
                "S pauses", "S saves", "T restores", "S marks ceded", "S drops OWNER",
                "T takes OWNER", "T stamps", "T marks ran", "T runs", "T records Owner",
                "S records Moved", "S is freed",
            ]);
        });
    }
}

#[test]
fn the_report_tells_both_sides_of_the_blackout() {
    block_on(async {
        let (_, near, far) = Sides::start(&Setup::default()).ends().await;
        let source::Outcome::Moved { report } = near.0 else { panic!() };
        let steps: Vec<Step> = report.blackout.iter().map(|s| s.step).collect();
        let ours = [
            Step::Stopped,
            Step::Saved,
            Step::LastRound,
            Step::LastPiece,
            Step::PreparedHeard,
            Step::Marked,
            Step::Committed,
            Step::RanHeard,
        ];
        assert_eq!(steps, ours);
        assert!(report.blackout.is_sorted_by_key(|s| s.at_us));
        let theirs: Vec<Step> = report.peer_blackout.iter().map(|s| s.step).collect();
        assert_eq!(theirs, Step::TARGET);
        assert!(report.peer_blackout.is_sorted_by_key(|s| s.at_us));
        assert!(report.downtime_us.is_some());
        assert_eq!(report.side, Side::Source);
        let target::Outcome::Arrived { report: other, .. } = far.0 else { panic!() };
        assert_eq!(other.blackout, report.peer_blackout);
        let phases: Vec<Phase> = report.phases.iter().map(|p| p.phase).collect();
        assert!(phases.starts_with(&[Phase::Opening, Phase::Copying, Phase::Offering]));
        // It is data: it comes back from its own text.
        let text = serde_json::to_string(&report).unwrap();
        let back: super::Report = serde_json::from_str(&text).unwrap();
        assert_eq!(back, *report);
    });
}

#[test]
fn a_guest_that_its_user_paused_arrives_paused() {
    block_on(async {
        let setup = Setup { paused: true, ..Setup::default() };
        let (world, near, far) = Sides::start(&setup).ends().await;
        assert!(matches!(near.0, source::Outcome::Moved { .. }), "{:?}", pair::text_of(&near.0));
        let target::Outcome::Arrived { guest, .. } = far.0 else { panic!() };
        assert!(matches!(guest, target::Arrived::Paused(_)));
        assert_eq!(world.diary.at("T runs"), None);
    });
}

#[test]
fn problems_of_the_rehearsal_end_the_move_and_are_all_named() {
    block_on(async {
        let problems = vec!["no avx512f: use a template".to_owned(), "no tsc".to_owned()];
        let setup = Setup { problems: problems.clone(), ..Setup::default() };
        let (world, near, far) = Sides::start(&setup).ends().await;
        let source::Outcome::Kept { guest, reason, text, report } = near.0 else { panic!() };
        assert!(matches!(guest, source::Kept::Running(guest) if guest.runs()));
        assert_eq!(reason, Reason::Incompatible);
        assert!(problems.iter().all(|p| text.contains(p)), "{text}");
        assert_eq!(report.rehearsal.unwrap().problems, problems);
        let target::Outcome::NotTaken { reason, .. } = far.0 else { panic!() };
        assert_eq!(reason, Reason::Incompatible);
        assert_eq!(world.diary.at("S records Offered"), None);
        assert_eq!(world.diary.at("S pauses"), None);
    });
}

/// Where the blackout goes, without a network and without a guest: what the sessions themselves
/// cost. Figures for people, no test of speed: `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn the_blackout_that_sessions_cost() {
    const MOVES: u64 = 100;
    let mut steps: std::collections::BTreeMap<String, Vec<u64>> = std::collections::BTreeMap::new();
    for seed in 0..MOVES {
        block_on(async {
            let setup = Setup { seed, units: 300, ..Setup::default() };
            let (_, near, _) = Sides::start(&setup).ends().await;
            let source::Outcome::Moved { report } = near.0 else { panic!() };
            let both = report.blackout.iter().chain(&report.peer_blackout);
            for (order, done) in both.enumerate() {
                let name = format!("{order:02} {:?}", done.step);
                steps.entry(name).or_default().push(done.at_us);
            }
            steps.entry("99 downtime".into()).or_default().extend(report.downtime_us);
        });
    }
    for (step, mut times) in steps {
        times.sort_unstable();
        let at = |part: usize| times[times.len() * part / 100];
        println!("{step}: median {} µs, 90 % {} µs", at(50), at(90));
    }
}
