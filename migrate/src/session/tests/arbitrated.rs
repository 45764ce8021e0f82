//! Moves under an arbiter that is silent, late, or does what it is asked for and does not say so:
//! the guest runs where the arbiter says, and nowhere while that is not known.

use std::sync::Arc;
use std::time::Duration;

use super::fake::World;
use super::pair::{
    FarEnd, NearEnd, SOURCE, Setup, Sides, TARGET, at, block_on, far_text, nothing, plan, text_of,
};
use super::trouble::buried_when_ceded;
use crate::handover::journal::Record;
use crate::handover::term::{HostId, Stamp, Term};
use crate::pump::fake::Random;
use crate::session::memory::{Fault, MemoryArbiter};
use crate::session::report::{Phase, Reason};
use crate::session::{source, target};
use crate::wire::GuestId;

/// Questions before that of the doubt: claimed (read, change), looked at, probed.
const CLAIMED: usize = 2;
const LOOKED: usize = 3;
const PROBED: usize = 4;

fn guest() -> GuestId {
    plan(&Setup::default()).guest
}

fn stamp(term: u64, host: HostId) -> Stamp {
    Stamp { term: Term::new(term), host }
}

fn with(faults: impl IntoIterator<Item = Fault>, setup: Setup) -> (Arc<MemoryArbiter>, Setup) {
    let arbiter = Arc::<MemoryArbiter>::default();
    arbiter.plan(faults);
    let setup = Setup { arbiter: Some(Arc::clone(&arbiter)), ..setup };
    (arbiter, setup)
}

/// Answers as far as `answered`, then these.
fn after(answered: usize, faults: &[Fault]) -> Vec<Fault> {
    [&vec![Fault::None; answered], faults].concat()
}

/// Whether it moved; what stands in the arbiter, both journals and the guest agree.
fn settled(what: &str, arbiter: &MemoryArbiter, world: &World, ends: (&NearEnd, &FarEnd)) -> bool {
    let (near, far) = ends;
    let told = || {
        let (near, far) = (text_of(&near.0), far_text(&far.0));
        format!("{what}: {near}; {far}; {:?}; {:?}", world.diary.lines(), arbiter.past())
    };
    let stands = arbiter.stands(guest());
    match (&near.0, &far.0) {
        (source::Outcome::Moved { .. }, target::Outcome::Arrived { .. }) => {
            assert_eq!(stands, Some(stamp(2, TARGET)), "{}", told());
            true
        }
        (source::Outcome::Kept { guest, .. }, target::Outcome::NotTaken { .. }) => {
            let source::Kept::Running(guest) = guest else { panic!("{}", told()) };
            assert!(guest.runs(), "{}", told());
            assert!(stands.is_none_or(|s| s.host == SOURCE), "{}", told());
            let now = near.1.ledger.now();
            assert!(matches!(now, Some(Record::Owner { .. } | Record::Withdrawn(_))), "{}", told());
            false
        }
        _ => panic!("{}", told()),
    }
}

async fn run(what: &str, faults: Vec<Fault>, setup: Setup) -> (bool, Arc<World>, NearEnd) {
    let (arbiter, setup) = with(faults, setup);
    let (world, near, far) = Sides::start(&setup).ends().await;
    let moved = settled(what, &arbiter, &world, (&near, &far));
    (moved, world, near)
}

fn kept(near: &NearEnd) -> (Reason, &str) {
    let source::Outcome::Kept { reason, text, .. } = &near.0 else {
        panic!("{}", text_of(&near.0))
    };
    (*reason, text)
}

#[test]
fn a_guest_moves_with_the_arbiters_word_and_its_time_is_foreseen() {
    block_on(async {
        let late = Fault::Late(Duration::from_millis(20));
        let (arbiter, setup) = with([late, late], Setup::default());
        let (world, near, far) = Sides::start(&setup).ends().await;
        assert!(settled("a move", &arbiter, &world, (&near, &far)));
        // Claimed in the owner's term, then given to the target; nothing else ever stood there.
        assert_eq!(arbiter.past(), [stamp(1, SOURCE), stamp(2, TARGET)]);
        let source::Outcome::Moved { report } = near.0 else { panic!() };
        let outside = report.predicted.unwrap().outside_us;
        assert!(outside >= 40_000, "a read and a change: {outside} µs");
    });
}

#[test]
fn what_another_host_has_is_not_moved() {
    block_on(async {
        for other in [stamp(1, HostId(9)), stamp(7, TARGET), stamp(4, SOURCE)] {
            let (arbiter, setup) = with([], Setup::default());
            arbiter.put(guest(), other);
            let (world, near, _) = Sides::start(&setup).ends().await;
            let (reason, text) = kept(&near);
            assert_eq!(reason, Reason::Arbiter);
            assert!(text.contains("the arbiter "), "{text}");
            assert_eq!(world.diary.at("S records Offered"), None);
            assert_eq!(arbiter.past(), [other]);
        }
    });
}

#[test]
fn silence_before_the_doubt_leaves_the_guest_where_it_is() {
    for (answered, offered, paused) in
        [(0, false, false), (1, false, false), (CLAIMED, false, false), (LOOKED, true, true)]
    {
        block_on(async {
            let what = format!("silent after {answered}");
            let faults = after(answered, &[Fault::Silent]);
            let (moved, world, near) = run(&what, faults, Setup::default()).await;
            assert!(!moved, "{what}");
            let (reason, text) = kept(&near);
            assert_eq!(reason, Reason::Arbiter, "{what}: {text}");
            assert!(text.contains("did not answer"), "{what}: {text}");
            assert_eq!(world.diary.at("S records Offered").is_some(), offered, "{what}");
            assert_eq!(world.diary.at("S pauses").is_some(), paused, "{what}");
        });
        block_on(async {
            let what = format!("hangs after {answered}");
            let faults = after(answered, &[Fault::Hangs]);
            let setup = Setup { times: 20, ..Setup::default() };
            let (moved, _, near) = run(&what, faults, setup).await;
            assert!(!moved, "{what}");
            assert!(matches!(kept(&near).0, Reason::Arbiter | Reason::Deadline), "{what}");
        });
    }
}

#[test]
fn in_doubt_it_is_asked_until_it_answers() {
    for fault in [
        Fault::Silent,
        Fault::Lost,
        Fault::Hangs,
        Fault::Late(Duration::from_millis(120)),
        Fault::AnsweredLate(Duration::from_millis(120)),
    ] {
        for times in [1, 3] {
            block_on(async {
                let what = format!("{fault:?} in doubt, {times} times");
                let faults = after(PROBED, &vec![fault; times]);
                let setup = Setup { times: 5, ..Setup::default() };
                let _ = run(&what, faults, setup).await;
            });
        }
    }
}

/// The change that was asked for is made, and nobody hears of it for longer than the guest may
/// stand still: the source would rather keep it, and must not.
#[test]
fn what_was_granted_and_not_heard_counts_after_the_deadline() {
    block_on(async {
        let lost = [vec![Fault::Lost], vec![Fault::Silent; 40]].concat();
        let setup = Setup { times: 20, max_downtime: Duration::from_millis(10), ..far_setup() };
        let (moved, world, _) = run("lost", after(PROBED, &lost), setup).await;
        assert!(moved, "the arbiter had given it away");
        assert_eq!(world.diary.at("S runs"), None);
    });
}

fn far_setup() -> Setup {
    Setup { on_stall: crate::precopy::OnStall::Pause, ..Setup::default() }
}

#[test]
fn nobody_runs_while_it_is_silent_and_then_one_does() {
    block_on(async {
        let (arbiter, setup) = with(vec![Fault::None; PROBED], Setup::default());
        let setup = Setup { times: 20, ..setup };
        // Silent for ever from the doubt on, for both wishes and beyond the deadline.
        arbiter.from_now(Some(Fault::Silent));
        let sides = Sides::start(&setup);
        let world = Arc::clone(&sides.world);
        let stood = async {
            while world.diary.at("T restores").is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // The pause may last for 8 s of the sides' clocks: 0.4 s here.
            tokio::time::sleep(Duration::from_millis(900)).await;
            for line in ["S runs", "T runs", "S marks ceded", "S records Withdrawn"] {
                assert_eq!(world.diary.at(line), None, "{:?}", world.diary.lines());
            }
            arbiter.from_now(None);
        };
        let ((), (world, near, far)) = tokio::join!(stood, sides.ends());
        settled("silent, then not", &arbiter, &world, (&near, &far));
    });
}

#[test]
fn a_right_that_vanished_decides_nothing_until_it_is_back() {
    block_on(async {
        let (arbiter, setup) = with(vec![Fault::None; PROBED], Setup::default());
        arbiter.from_now(Some(Fault::Silent));
        let sides = Sides::start(&Setup { times: 20, ..setup });
        let world = Arc::clone(&sides.world);
        let meanwhile = async {
            while world.diary.at("T restores").is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            arbiter.forget(guest());
            arbiter.from_now(None);
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!(world.diary.at("S runs"), None);
            assert_eq!(world.diary.at("T runs"), None);
            arbiter.put(guest(), stamp(1, SOURCE));
        };
        let ((), (world, near, far)) = tokio::join!(meanwhile, sides.ends());
        settled("forgotten, then put back", &arbiter, &world, (&near, &far));
    });
}

#[test]
fn whoever_took_the_right_in_the_doubt_has_the_guest() {
    block_on(async {
        let (arbiter, setup) = with(vec![Fault::None; PROBED], Setup::default());
        arbiter.from_now(Some(Fault::Silent));
        let sides = Sides::start(&setup);
        let (world, kill) = (Arc::clone(&sides.world), Arc::clone(&sides.hands.kill_far));
        let taken = async {
            while world.diary.at("T restores").is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            arbiter.put(guest(), stamp(9, HostId(9)));
            arbiter.from_now(None);
        };
        let near = sides.near;
        let ((), near) = tokio::join!(taken, near);
        let near = near.unwrap();
        assert!(matches!(near.0, source::Outcome::Superseded { .. }), "{}", text_of(&near.0));
        assert_eq!(world.diary.at("S runs"), None);
        assert_eq!(world.diary.at("T runs"), None);
        kill.notify_one();
    });
}

#[test]
fn a_target_that_dies_in_the_doubt_leaves_the_guest_to_the_source() {
    block_on(async {
        let (arbiter, setup) = with([], Setup::default());
        let setup = Setup { times: 20, max_downtime: Duration::from_millis(300), ..setup };
        let world = Arc::<World>::default();
        world.faults.plan("T restores", 1);
        world.faults.plan("T records Tombstone", 1);
        let kill = at(Phase::InDoubt, |hands| hands.kill_far.notify_one());
        let sides = Sides::start_with(&setup, Arc::clone(&world), kill, nothing());
        let near = sides.near.await.unwrap();
        let source::Outcome::Kept { guest: source::Kept::Running(kept), .. } = &near.0 else {
            panic!("{}", text_of(&near.0))
        };
        assert!(kept.runs());
        assert_eq!(arbiter.stands(guest()), Some(stamp(2, SOURCE)));
        assert!(matches!(near.1.ledger.now(), Some(Record::Withdrawn(_))));
    });
}

#[test]
fn what_never_ran_comes_back_with_the_arbiters_word() {
    for faults in [vec![], vec![Fault::Lost], vec![Fault::Silent, Fault::Hangs, Fault::Lost]] {
        block_on(async {
            let (arbiter, setup) = with(after(PROBED + 1, &faults), Setup::default());
            let setup = Setup { times: 10, ..setup };
            let near = buried_when_ceded();
            let world = Arc::<World>::default();
            world.faults.plan("T takes OWNER", 1000);
            let sides = Sides::start_with(&setup, world, near, nothing());
            let near = sides.near.await.unwrap();
            let source::Outcome::Kept { guest: source::Kept::Running(kept), .. } = &near.0 else {
                panic!("{faults:?}: {}", text_of(&near.0))
            };
            assert!(kept.runs());
            let Some(Record::Owner { term }) = near.1.ledger.now() else { panic!() };
            let stands = arbiter.stands(guest()).unwrap();
            assert_eq!((stands.host, stands.term), (SOURCE, *term), "{faults:?}");
            assert_eq!(arbiter.past()[..2], [stamp(1, SOURCE), stamp(2, TARGET)]);
        });
    }
}

#[test]
fn any_faults_at_any_question() {
    for seed in 0..60 {
        block_on(async {
            let mut random = Random(seed);
            let faults: Vec<Fault> = (0..40)
                .map(|_| match random.below(10) {
                    0..5 => Fault::None,
                    5 => Fault::Silent,
                    6 => Fault::Lost,
                    7 => Fault::Hangs,
                    8 => Fault::Late(Duration::from_millis(random.below(150))),
                    _ => Fault::AnsweredLate(Duration::from_millis(random.below(150))),
                })
                .collect();
            let faults = after(usize::try_from(random.below(6)).unwrap(), &faults);
            let max_downtime = Duration::from_millis(10 + random.below(400));
            let setup = Setup { seed, times: 20, max_downtime, ..far_setup() };
            let _ = run(&format!("seed {seed}, {faults:?}"), faults.clone(), setup).await;
        });
    }
}
