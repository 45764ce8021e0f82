//! Everything that can go wrong, and that each has one outcome: the guest runs here or there,
//! never twice, and what is left agrees with both journals.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::fake::World;
use super::pair::{FarEnd, Hands, NearEnd, React, Setup, Sides, at, block_on, nothing, text_of};
use super::pair::{SOURCE, TARGET, expected, far_text, link_options, plan};
use crate::handover::journal::{Ended, Record};
use crate::handover::message::{Message, SourceSays, TargetSays, ToSource, ToTarget};
use crate::handover::term::{HostId, Stamp, Switch, SwitchId, Term};
use crate::precopy::OnStall;
use crate::pump::fake::Random;
use crate::session::report::{Phase, Reason};
use crate::session::{Command, Event, source, target};
use crate::transport::mem::pair;

const SOURCE_PHASES: [Phase; 6] = [
    Phase::Opening,
    Phase::Copying,
    Phase::Offering,
    Phase::Stopping,
    Phase::InDoubt,
    Phase::Ceded,
];

fn faults(planned: &[(&str, u32)]) -> Arc<World> {
    let world = Arc::<World>::default();
    for (step, times) in planned {
        world.faults.plan(step, *times);
    }
    world
}

/// The guest is at one side, in memory and in the journals, and the log is off. Says whether it
/// moved.
fn settled(what: &str, world: &World, near: &NearEnd, far: Option<&FarEnd>) -> bool {
    let told = || format!("{what}: {}, {:?}", text_of(&near.0), world.diary.lines());
    let switch = SwitchId(plan(&Setup::default()).switch.0);
    match (&near.0, far.map(|f| &f.0)) {
        (source::Outcome::Moved { report }, Some(target::Outcome::Arrived { .. })) => {
            assert_eq!(report.audit.as_ref().unwrap().differing, Vec::<u64>::new(), "{}", told());
            assert!(matches!(near.1.ledger.now(), Some(Record::Moved(_))), "{}", told());
            let far = far.unwrap();
            assert!(matches!(far.1.ledger.now(), Some(Record::Owner { .. })), "{}", told());
            true
        }
        (source::Outcome::Kept { guest, .. }, None | Some(target::Outcome::NotTaken { .. })) => {
            let source::Kept::Running(guest) = guest else { panic!("{}", told()) };
            assert!(guest.runs(), "{}", told());
            assert!(!guest.ram.tracking.load(SeqCst), "the log is on: {}", told());
            let now = near.1.ledger.now();
            assert!(
                matches!(now, Some(Record::Owner { .. } | Record::Withdrawn(_))),
                "{now:?} {}",
                told()
            );
            let Some(far) = far else { return false };
            let now = far.1.ledger.now();
            assert!(matches!(now, None | Some(Record::Tombstone(_))), "{now:?} {}", told());
            assert_ne!(far.1.ledger.ended(switch), Some(Ended::Ran));
            false
        }
        (_, far) => panic!("{} and {:?}", told(), far.map(far_text)),
    }
}

async fn run(
    what: &str,
    setup: &Setup,
    world: Arc<World>,
    near: React,
    far: React,
) -> (bool, NearEnd, FarEnd) {
    let (world, near, far) = Sides::start_with(setup, world, near, far).ends().await;
    let moved = settled(what, &world, &near, Some(&far));
    (moved, near, far)
}

fn kept(near: &NearEnd) -> (Reason, &str) {
    let source::Outcome::Kept { reason, text, .. } = &near.0 else {
        panic!("{}", text_of(&near.0))
    };
    (*reason, text)
}

fn cancel(hands: &Hands) {
    hands.near.try_send(Command::Cancel("by käthe".into())).unwrap();
}

#[test]
fn cancelled_in_every_phase() {
    for phase in SOURCE_PHASES {
        block_on(async {
            let what = format!("cancelled when {phase:?}");
            let (moved, near, far) =
                run(&what, &Setup::default(), Arc::default(), at(phase, cancel), nothing()).await;
            match phase {
                Phase::Opening | Phase::Copying | Phase::Offering => {
                    assert_eq!(kept(&near), (Reason::Cancelled, "by käthe"), "{what}");
                    let target::Outcome::NotTaken { text, .. } = &far.0 else { panic!("{what}") };
                    assert!(text.contains("käthe") || text.contains("withdrew"), "{text}");
                }
                Phase::Ceded => assert!(moved, "{what}"),
                _ => {}
            }
        });
    }
}

#[test]
fn cancelled_at_any_moment() {
    for seed in 0..24 {
        block_on(async {
            let setup = Setup { seed, ..Setup::default() };
            let turns = Random(seed).below(1500);
            let sides = Sides::start(&setup);
            let hands = sides.hands.clone();
            tokio::spawn(async move {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                let _ = hands.near.send(Command::Cancel("enough".into())).await;
            });
            let (world, near, far) = sides.ends().await;
            settled(&format!("seed {seed}"), &world, &near, Some(&far));
        });
    }
}

#[test]
fn the_guest_ends_while_it_is_copied() {
    for phase in [Phase::Copying, Phase::Offering] {
        block_on(async {
            let ended = |hands: &Hands| {
                let _ = hands.near.try_send(Command::GuestEnded("power-off".into()));
            };
            let (_, near, _) =
                run("ended", &Setup::default(), Arc::default(), at(phase, ended), nothing()).await;
            assert_eq!(kept(&near), (Reason::GuestEnded, "power-off"));
        });
    }
}

#[test]
fn the_guest_ends_or_stays_when_it_is_to_be_stopped() {
    block_on(async {
        let sides =
            Sides::start_with(&Setup::default(), faults(&[("S ends", 1)]), nothing(), nothing());
        let (_, near, far) = sides.ends().await;
        let source::Outcome::Kept { guest, reason, .. } = near.0 else { panic!() };
        assert!(matches!(guest, source::Kept::Ended));
        assert_eq!(reason, Reason::GuestEnded);
        assert!(matches!(far.0, target::Outcome::NotTaken { .. }));
        assert!(matches!(near.1.ledger.now(), Some(Record::Withdrawn(_))));
    });
    for step in ["S pauses", "S saves", "S saves for a trial", "S starts the log"] {
        block_on(async {
            let world = faults(&[(step, 1)]);
            let (moved, near, _) = run(step, &Setup::default(), world, nothing(), nothing()).await;
            assert!(!moved);
            let reason = kept(&near).0;
            assert!(
                matches!(reason, Reason::GuestFailed | Reason::CopyFailed),
                "{step}: {reason:?}"
            );
        });
    }
}

#[test]
fn what_was_not_announced_is_refused() {
    type Change = fn(&mut target::Expected);
    let changes: [(&str, Change); 5] = [
        ("attempt", |e| e.attempt.0[0] ^= 1),
        ("guest", |e| e.guest.0[0] ^= 1),
        ("definition", |e| e.definition.push(b'x')),
        ("name", |e| e.name.push('x')),
        ("layout", |e| e.layout = crate::unit::Layout::new(512, 1).unwrap()),
    ];
    for (what, change) in changes {
        block_on(async {
            let setup = Setup::default();
            let mut expected = expected(&setup);
            change(&mut expected);
            let link = pair(link_options(&setup));
            let world = Arc::default();
            let sides =
                Sides::over(&setup, world, link, plan(&setup), expected, nothing(), nothing());
            let (world, near, far) = sides.ends().await;
            settled(what, &world, &near, Some(&far));
            let (reason, text) = kept(&near);
            assert_eq!(reason, Reason::Refused, "{what}");
            assert!(text.contains("announced"), "{what}: {text}");
            let target::Outcome::NotTaken { reason, .. } = &far.0 else { panic!() };
            assert_eq!(*reason, Reason::NotAnnounced);
        });
    }
}

#[test]
fn a_step_of_a_journal_that_fails() {
    // What fails how often, and whether the guest moves then.
    let table: &[(&str, u32, bool, Option<Reason>)] = &[
        ("S reads", 1, false, Some(Reason::Disks)),
        ("S stamps the offer", 1, false, Some(Reason::Disks)),
        ("S records Offered", 1, false, Some(Reason::Journal)),
        ("T takes NEXT", 1, false, Some(Reason::Refused)),
        ("T records Receiving", 1, false, Some(Reason::NeverRan)),
        ("T restores", 1, false, Some(Reason::NeverRan)),
        ("S marks ceded", 3, true, None),
        ("S records Ceded", 3, true, None),
        ("T takes OWNER", 2, true, None),
        ("T stamps", 2, true, None),
        ("T marks ran", 2, true, None),
        ("T records Owner", 3, true, None),
        ("S records Moved", 1, true, None),
    ];
    for (step, times, moves, why) in table {
        block_on(async {
            let setup = Setup { times: 10, relay: true, ..Setup::default() };
            let world = faults(&[(*step, *times)]);
            let sides = Sides::start_with(&setup, world, nothing(), nothing());
            let (world, near, far) = sides.ends().await;
            let now = near.1.ledger.now().copied();
            if *step == "S records Moved" {
                assert!(matches!(near.0, source::Outcome::Moved { .. }));
                assert!(matches!(now, Some(Record::Ceded(_) | Record::Moved(_))), "{now:?}");
                return;
            }
            assert_eq!(settled(step, &world, &near, Some(&far)), *moves, "{step}");
            if let Some(why) = why {
                assert_eq!(kept(&near).0, *why, "{step}: {}", text_of(&near.0));
            }
        });
    }
}

#[test]
fn a_link_that_is_lost_while_copying_ends_the_move_after_a_while() {
    for phase in [Phase::Opening, Phase::Copying] {
        block_on(async {
            let setup = Setup { times: 100, ..Setup::default() };
            let cut = at(phase, |hands: &Hands| hands.cable.sever());
            let (moved, near, _) = run("lost", &setup, Arc::default(), cut, nothing()).await;
            assert!(!moved);
            assert_eq!(kept(&near).0, Reason::LinkLost, "{}", text_of(&near.0));
        });
    }
}

#[test]
fn a_link_that_is_severed_at_any_moment() {
    for (seed, relay) in (0..16).map(|seed| (seed, seed % 2 == 0)) {
        block_on(async {
            let setup = Setup { seed, relay: true, times: 100, ..Setup::default() };
            let turns = Random(seed).below(1500);
            let sides = Sides::start(&setup);
            let hands = sides.hands.clone();
            tokio::spawn(async move {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
                // Sometimes it only stands still for a while.
                if relay {
                    hands.cable.sever();
                } else {
                    hands.cable.cut();
                    tokio::time::sleep(Duration::from_millis(60)).await;
                    hands.cable.heal();
                }
            });
            let (world, near, far) = sides.ends().await;
            settled(&format!("seed {seed}"), &world, &near, Some(&far));
        });
    }
}

#[test]
fn a_doubt_that_is_not_answered_is_withdrawn_and_the_late_answer_changes_nothing() {
    block_on(async {
        let setup = Setup { max_downtime: Duration::from_millis(100), ..Setup::default() };
        // The last piece arrives; what the target says of it does not.
        let cut = at(Phase::Restoring, |hands: &Hands| {
            let cable = hands.cable.clone();
            cable.cut();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(900)).await;
                cable.heal();
            });
        });
        let (world, near, far) =
            Sides::start_with(&setup, Arc::default(), nothing(), cut).ends().await;
        assert!(!settled("late", &world, &near, Some(&far)));
        assert_eq!(kept(&near).0, Reason::Deadline);
        let target::Outcome::NotTaken { reason, .. } = &far.0 else { panic!() };
        assert_eq!(*reason, Reason::Withdrawn);
        world.diary.in_order(&[
            "S records Offered",
            "S pauses",
            "T restores",
            "S records Withdrawn",
            "S stamps",
            "S runs",
            "T records Tombstone",
            "T is freed",
        ]);
        assert_eq!(world.diary.at("T runs"), None);
        let source::Outcome::Kept { report, .. } = near.0 else { panic!() };
        assert!(report.downtime_us.unwrap() >= 500_000, "the pause had half a second");
    });
}

#[test]
fn a_commit_that_the_link_does_not_carry_goes_through_the_daemons() {
    block_on(async {
        let setup = Setup { relay: true, ..Setup::default() };
        let sever = at(Phase::Ceded, |hands: &Hands| hands.cable.sever());
        let (moved, near, _) = run("ceded", &setup, Arc::default(), sever, nothing()).await;
        assert!(moved, "{}", text_of(&near.0));
    });
}

#[test]
fn a_commit_on_a_link_that_stands_still_goes_through_the_daemons() {
    block_on(async {
        let setup = Setup { relay: true, times: 5, ..Setup::default() };
        let cut = at(Phase::Ceded, |hands: &Hands| hands.cable.cut());
        let (moved, near, _) = run("still", &setup, Arc::default(), cut, nothing()).await;
        assert!(moved, "{}", text_of(&near.0));
    });
}

/// The target's process is killed. Its daemon, which has its journal's lock then, says what the
/// rules for the dead say: a tombstone if there is no `ran` mark.
#[test]
fn a_target_that_dies_in_every_phase() {
    let phases = [
        Phase::Opening,
        Phase::Filling,
        Phase::Receiving,
        Phase::Restoring,
        Phase::Prepared,
        Phase::Starting,
    ];
    for phase in phases {
        block_on(async {
            let setup = Setup { times: 10, ..Setup::default() };
            let what = format!("the target dies when {phase:?}");
            let die = at(phase, |hands: &Hands| {
                hands.kill_far.notify_one();
                let near = hands.near.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let _ = near.send(Command::PeerGone("killed".into())).await;
                    // It may be in doubt for a while, and is told again.
                    let switch = told_switch();
                    loop {
                        let says = ToSource::Says(TargetSays::NeverRan, None);
                        let word = Command::Heard(Message::to_source(switch, says));
                        if near.send(word).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                });
            });
            // Killing a task does not kill its threads: none may get as far as the mark.
            let world = faults(&[("T takes OWNER", 1000)]);
            let sides = Sides::start_with(&setup, Arc::clone(&world), nothing(), die);
            assert!(sides.far.await.unwrap().is_none());
            let near = sides.near.await.unwrap();
            assert!(!settled(&what, &world, &near, None));
            let reason = kept(&near).0;
            assert!(
                matches!(
                    reason,
                    Reason::PeerGone | Reason::NeverRan | Reason::Deadline | Reason::LinkLost
                ),
                "{what}: {reason:?}"
            );
            if world.diary.at("S marks ceded").is_some() {
                world.diary.in_order(&[
                    "S marks ceded",
                    "S takes OWNER",
                    "S records Owner",
                    "S stamps",
                    "S runs",
                ]);
            }
        });
    }
}

/// The source's process is killed, and its link stands still: nobody closes it.
#[test]
fn a_source_that_dies_before_the_doubt() {
    for phase in [Phase::Opening, Phase::Filling, Phase::Receiving] {
        block_on(async {
            let setup = Setup { times: 10, ..Setup::default() };
            let what = format!("the source dies when {phase:?}");
            let (told, mut ends) = tokio::sync::mpsc::unbounded_channel();
            let mut die = at(phase, |hands: &Hands| {
                hands.cable.cut();
                let far = hands.far.clone();
                tokio::spawn(async move {
                    let _ = far.send(Command::PeerGone("killed".into())).await;
                });
            });
            let far: React = Box::new(move |event: &Event, hands: &Hands| {
                if let Event::LinkLost(why) = event {
                    let _ = told.send((why.clone(), hands.far.clone()));
                }
                die(event, hands);
            });
            let sides = Sides::start_with(&setup, Arc::default(), nothing(), far);
            if phase == Phase::Receiving {
                // Only now is it certain that nothing more comes.
                let (why, far) = ends.recv().await.expect(&what);
                assert_eq!(why, "killed", "{what}");
                assert!(!sides.far.is_finished(), "{what}: it decided by itself");
                let word = ToTarget::Says(SourceSays::Withdrawn);
                let _ = far.send(Command::Heard(Message::to_target(told_switch(), word))).await;
            }
            let (outcome, rights) = sides.far.await.unwrap().expect(&what);
            sides.near.abort();
            let target::Outcome::NotTaken { reason, .. } = outcome else { panic!("{what}") };
            let (wanted, buried) = match phase {
                Phase::Receiving => (Reason::Withdrawn, true),
                _ => (Reason::PeerGone, false),
            };
            assert_eq!(reason, wanted, "{what}");
            let now = rights.ledger.now();
            assert_eq!(matches!(now, Some(Record::Tombstone(_))), buried, "{what}: {now:?}");
        });
    }
}

/// The switch that the source of these tests offers.
pub(super) fn told_switch() -> Switch {
    let id = plan(&Setup::default()).switch;
    Switch { id, before: Term::FIRST, term: Term::new(2), from: SOURCE, to: TARGET }
}

/// The commit does not arrive, the target dies, and its daemon buries the switch.
pub(super) fn buried_when_ceded() -> React {
    at(Phase::Ceded, |hands: &Hands| {
        hands.cable.sever();
        hands.kill_far.notify_one();
        let near = hands.near.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let says = ToSource::Says(TargetSays::NeverRan, None);
            let word = Message::to_source(told_switch(), says);
            let _ = near.send(Command::Heard(word)).await;
        });
    })
}

#[test]
fn ceded_and_never_ran_comes_back_under_a_new_term() {
    block_on(async {
        let setup = Setup { times: 10, ..Setup::default() };
        let near = buried_when_ceded();
        // It must not be faster than the cable.
        let world = faults(&[("T takes OWNER", 1000)]);
        let sides = Sides::start_with(&setup, world, near, nothing());
        assert!(sides.far.await.unwrap().is_none());
        let near = sides.near.await.unwrap();
        assert!(!settled("never ran", &sides.world, &near, None));
        assert_eq!(kept(&near).0, Reason::NeverRan);
        let Some(Record::Owner { term }) = near.1.ledger.now() else { panic!() };
        assert!(*term > told_switch().term);
        assert_eq!(sides.world.beside().owner.term, *term);
    });
}

#[test]
fn a_target_that_hears_nothing_more_of_an_offer_waits() {
    block_on(async {
        let setup = Setup { times: 50, ..Setup::default() };
        let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
        // Its source is gone just after it promised to take part.
        let far = at(Phase::Receiving, |hands: &Hands| hands.cable.sever());
        let far: React = {
            let mut far = far;
            Box::new(move |event: &Event, hands: &Hands| {
                if let Event::LinkLost(_) = event {
                    let _ = told.send(());
                }
                far(event, hands);
            })
        };
        let sides = Sides::start_with(&setup, Arc::default(), nothing(), far);
        let near = sides.near.await.unwrap();
        let source::Outcome::Kept { .. } = near.0 else { panic!("{}", text_of(&near.0)) };
        seen.recv().await;
        // Ten minutes of its clock.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!sides.far.is_finished(), "it gave up by itself: {:?}", sides.world.diary.lines());
        sides.far.abort();
    });
}

#[test]
fn a_move_that_cannot_end_in_time_is_given_up() {
    block_on(async {
        let on_stall = OnStall::Wait;
        let setup = Setup { max_downtime: Duration::ZERO, on_stall, ..Setup::default() };
        let (moved, near, _) = run("0 ms", &setup, Arc::default(), nothing(), nothing()).await;
        assert!(!moved);
        let (reason, text) = kept(&near);
        assert_eq!(reason, Reason::DoesNotConverge, "{text}");
        // A pause longer than allowed is what the user asked for.
        let setup = Setup { on_stall: OnStall::Pause, ..setup };
        let (moved, ..) =
            run("0 ms, all the same", &setup, Arc::default(), nothing(), nothing()).await;
        assert!(moved);
        let setup = Setup { timeout: Duration::ZERO, ..Setup::default() };
        let (moved, near, _) = run("no time", &setup, Arc::default(), nothing(), nothing()).await;
        assert!(!moved);
        assert_eq!(kept(&near).0, Reason::TimeUp);
    });
}

#[test]
fn whoever_finds_a_better_right_beside_the_disks_runs_nothing() {
    // The target finds it when it is to run the guest.
    block_on(async {
        let world: Arc<World> = Arc::default();
        let stranger = Stamp { term: Term::new(9), host: HostId(3) };
        let told = Arc::clone(&world);
        let far = at(Phase::Restoring, move |_| told.supersede(stranger));
        let sides = Sides::start_with(&Setup::default(), Arc::clone(&world), nothing(), far);
        let far = sides.far.await.unwrap().unwrap();
        assert!(matches!(far.0, target::Outcome::Superseded { .. }), "{}", far_text(&far.0));
        assert_eq!(world.diary.at("T runs"), None);
        assert!(!sides.near.is_finished(), "the source waits for an operator");
        sides.near.abort();
    });
    // The source finds it when it is to take the guest back.
    block_on(async {
        let world = faults(&[("T takes OWNER", 1000)]);
        let stranger = Stamp { term: Term::new(9), host: HostId(3) };
        let told = Arc::clone(&world);
        let near = at(Phase::Ceded, move |hands: &Hands| {
            told.supersede(stranger);
            hands.kill_far.notify_one();
            let says = ToSource::Says(TargetSays::NeverRan, None);
            let never = Message::to_source(told_switch(), says);
            let near = hands.near.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = near.send(Command::Heard(never)).await;
            });
        });
        let sides = Sides::start_with(&Setup::default(), Arc::clone(&world), near, nothing());
        let near = sides.near.await.unwrap();
        let source::Outcome::Superseded { guest, .. } = near.0 else {
            panic!("{}", text_of(&near.0))
        };
        assert!(matches!(guest, source::Held::Frozen(_)));
        assert_eq!(world.diary.at("S runs"), None);
    });
}
