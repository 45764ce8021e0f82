//! Whole copies of fake guests over links inside this process.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;

use super::*;
use crate::codec::DigestKey;
use crate::pump::fake::{Gauge, Log, Memory, Ram, Random, Writer};
use crate::pump::{RecvError, Shards, Target};
use crate::transport::link::{Control, LinkLimits, StreamLimits};
use crate::transport::mem::{Cable, Options, pair};
use crate::wire::Version;
use crate::wire::control::Note;

const KEY: [u8; 32] = [9; 32];

fn block_on<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn shards(lanes: usize) -> Shards {
    Shards::small(NonZeroUsize::new(lanes).unwrap(), 1)
}

/// Queues of one frame each: everything waits for everything.
fn tight() -> LinkLimits {
    let stream = |frame| StreamLimits { frame, depth: 1 };
    LinkLimits { control: stream(1 << 20), urgent: stream(1 << 10), bulk: stream(16 << 10) }
}

fn options(lanes: usize, seed: u64) -> Options {
    Options { lanes, limits: tight(), seed, max_turns: 7 }
}

type Copy = Precopy<Ram, Log>;
type Receiving = tokio::task::JoinHandle<(Target<Ram>, Result<Message, RecvError>)>;

/// The source's half of a link.
struct Near {
    lanes: Lanes,
    control: Control,
    cable: Cable,
}

/// Joins a source that is to be made with `target`, which begins to receive.
async fn join(mut target: Target<Ram>, options: Options) -> (Near, Receiving) {
    let (source, far, cable) = pair(options);
    let shards = shards(options.lanes);
    let lanes = Lanes::new(source.lanes, source.handle).unwrap().with_shards(shards);
    let mut control = far.control;
    target.attach_sharded(far.lanes, far.handle, shards).await.unwrap();
    let receiving = tokio::spawn(async move {
        let ended = target.converse(&mut control).await;
        (target, ended)
    });
    (Near { lanes, control: source.control, cable }, receiving)
}

fn source_of(ram: &Ram, log: Log) -> Source<Ram, Log> {
    Source::new(Version::V1, 0, Arc::clone(ram), log, DigestKey::new(KEY))
}

fn target_of(ram: &Ram) -> Target<Ram> {
    Target::new(Version::V1, 0, Arc::clone(ram), DigestKey::new(KEY))
}

/// A guest in which `touched` of 100 units were ever written to.
fn guest(units: u64, touched: u64, seed: u64) -> Ram {
    let ram = Memory::new(units, None);
    let mut random = Random(seed);
    for unit in 0..units {
        if random.below(100) < touched {
            ram.store(unit, &random.content());
        }
    }
    ram
}

async fn farewell(control: &mut Control) {
    let goodbye = Message::Cancel { text: Note::clipped("that was all") };
    control.say(&goodbye).await.unwrap();
}

fn limits() -> Limits {
    let second = Duration::from_secs(1);
    Limits { max_downtime: second, timeout: 100 * second }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn memories_are_equal_after_the_last_round(
        seed: u64, units in 1..700u64, touched in 0..=100u64, lanes in 1..=3usize, set: bool,
    ) {
        block_on(async {
            let (near_ram, far_ram) = (guest(units, touched, seed), Memory::new(units, None));
            let log = Log::start(&near_ram, set);
            let writer = Writer::start(&near_ram, seed ^ 1);
            let (mut near, receiving) = join(target_of(&far_ram), options(lanes, seed)).await;
            let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
            for _ in 0..3 {
                copy.round(&mut near.control).await.unwrap();
            }
            writer.pause();
            let last = copy.last_round(&mut near.control).await.unwrap();
            assert_eq!(last.round, 3);
            assert_eq!(near_ram.differing(&far_ram), Vec::<u64>::new());
            farewell(&mut near.control).await;
            let (target, _) = receiving.await.unwrap();
            assert!(target.is_verified());
            let untouched = |u: &u64| !near_ram.is_touched(*u) && far_ram.is_touched(*u);
            assert_eq!((0..units).find(untouched), None, "touched at the target only");
            assert_eq!(copy.seal().unwrap().audit(9).unwrap(), vec![]);
            assert!(!near_ram.tracking.load(SeqCst), "the log is still on");
        });
    }

    /// The link ends at any moment, several times, and the copy goes on over another.
    #[test]
    fn nothing_is_lost_when_a_link_is_cut(seed: u64, lanes in 1..=3usize, cuts in 1..4u32) {
        block_on(async {
            let units = 500;
            let (near_ram, far_ram) = (guest(units, 80, seed), Memory::new(units, None));
            let mut random = Random(seed);
            let log = Log::start(&near_ram, true);
            let writer = Writer::start(&near_ram, seed ^ 2);
            let (mut near, mut receiving) = join(target_of(&far_ram), options(lanes, seed)).await;
            let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
            for cut in 0..cuts {
                let (cable, turns) = (near.cable.clone(), random.below(400));
                let cutter = tokio::spawn(async move {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                    cable.sever();
                });
                let failed = loop {
                    match copy.round(&mut near.control).await {
                        Ok(_) => {}
                        Err(why) => break why,
                    }
                };
                assert!(failed.is_cut(), "{failed}");
                cutter.await.unwrap();
                let (target, ended) = receiving.await.unwrap();
                assert!(ended.unwrap_err().is_cut());
                let lanes = (lanes + cut as usize) % 3 + 1;
                let link = join(target, options(lanes, seed ^ u64::from(cut))).await;
                (near, receiving) = link;
                copy.reconnect(near.lanes);
            }
            copy.round(&mut near.control).await.unwrap();
            writer.pause();
            copy.last_round(&mut near.control).await.unwrap();
            assert_eq!(near_ram.differing(&far_ram), Vec::<u64>::new());
            assert_eq!(copy.seal().unwrap().audit(9).unwrap(), vec![]);
            drop(near.control);
            let (target, _) = receiving.await.unwrap();
            assert!(target.is_verified());
        });
    }
}

/// Copies a guest that writes to a unit just when it was read, and says what the memories and the
/// audit show afterwards.
fn rewritten_when_read(clears_late: bool) -> (Vec<u64>, Vec<u64>) {
    block_on(async {
        let (near_ram, far_ram) = (guest(300, 100, 5), Memory::new(300, None));
        for unit in (0..300).step_by(7) {
            near_ram.after_reading(unit, unit);
        }
        let mut log = Log::start(&near_ram, true);
        log.clears_late = clears_late;
        let (mut near, receiving) = join(target_of(&far_ram), options(2, 5)).await;
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
        copy.round(&mut near.control).await.unwrap();
        // The digests cannot tell: what was sent did arrive.
        copy.last_round(&mut near.control).await.unwrap();
        farewell(&mut near.control).await;
        receiving.await.unwrap().1.unwrap();
        let missed = copy.seal().unwrap().audit(1000).unwrap();
        (near_ram.differing(&far_ram), missed.iter().map(|u| u.get()).collect())
    })
}

#[test]
fn clearing_before_reading_misses_nothing() {
    assert_eq!(rewritten_when_read(false), (vec![], vec![]));
}

#[test]
fn clearing_after_reading_is_caught_by_memories_and_audit() {
    let expected: Vec<u64> = (0..300).step_by(7).collect();
    assert_eq!(rewritten_when_read(true), (expected.clone(), expected));
}

#[test]
fn a_unit_touched_behind_the_scan_is_not_forgotten() {
    block_on(async {
        let (near_ram, far_ram) = (Memory::new(640, None), Memory::new(640, None));
        near_ram.store(3, &[1; 64]);
        near_ram.store(600, &[2; 64]);
        // Holes, before and behind the reader, in its own stripe and in others.
        for unit in [2, 4, 100, 601] {
            near_ram.after_reading(600, unit);
            near_ram.after_reading(3, unit);
        }
        let log = Log::start(&near_ram, true);
        let (mut near, receiving) = join(target_of(&far_ram), options(3, 1)).await;
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
        copy.round(&mut near.control).await.unwrap();
        copy.last_round(&mut near.control).await.unwrap();
        assert_eq!(near_ram.differing(&far_ram), Vec::<u64>::new());
        farewell(&mut near.control).await;
        receiving.await.unwrap().1.unwrap();
    });
}

#[test]
fn pages_that_differ_at_the_target_are_named() {
    block_on(async {
        let (near_ram, far_ram) = (guest(5000, 100, 8), Memory::new(5000, None));
        let log = Log::start(&near_ram, true);
        let (mut near, receiving) = join(target_of(&far_ram), options(2, 8)).await;
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
        copy.round(&mut near.control).await.unwrap();
        // The source believes that it sent something else.
        let source = copy.source.as_mut().unwrap();
        let layout = source.layout();
        for unit in [0, 77, 78, 4999] {
            source.forge(layout.unit(unit).unwrap());
        }
        let failed = copy.last_round(&mut near.control).await.unwrap_err();
        assert!(failed.to_string().contains("in pages 0, 77, 78, 4999;"), "{failed}");
        farewell(&mut near.control).await;
        let (target, _) = receiving.await.unwrap();
        assert!(!target.is_verified());
        copy.abandon().unwrap();
    });
}

#[test]
fn what_is_in_flight_is_bounded() {
    block_on(async {
        let gauge = Arc::new(Gauge::default());
        let (units, lanes) = (6400, 2);
        let near_ram = Memory::new(units, Some(Arc::clone(&gauge)));
        let far_ram = Memory::new(units, Some(Arc::clone(&gauge)));
        let mut random = Random(3);
        for unit in 0..units {
            near_ram.store(unit, &std::array::from_fn(|_| random.next()));
        }
        let log = Log::start(&near_ram, true);
        let (mut near, receiving) = join(target_of(&far_ram), options(lanes, 3)).await;
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
        copy.last_round(&mut near.control).await.unwrap();
        // A lane: a batch being filled and one being sent, a frame in each queue and with the
        // courier, and one being decoded.
        let most = 16 * 6 * lanes as u64;
        let seen = gauge.most.load(SeqCst);
        assert!((1..=most).contains(&seen), "{seen} units in flight, at most {most} are allowed");
        farewell(&mut near.control).await;
        receiving.await.unwrap().1.unwrap();
    });
}

#[test]
fn a_cancelled_copy_leaves_the_log_off_even_where_the_link_stands_still() {
    block_on(async {
        let (near_ram, far_ram) = (guest(3000, 100, 4), Memory::new(3000, None));
        let log = Log::start(&near_ram, true);
        let (mut near, receiving) = join(target_of(&far_ram), options(2, 4)).await;
        near.cable.cut();
        let cancel = Cancel::new();
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, cancel.clone());
        let stop = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            cancel.cancel();
        };
        let (ended, ()) = tokio::join!(copy.round(&mut near.control), stop);
        assert!(matches!(ended, Err(PrecopyError::Cancelled)), "{ended:?}");
        assert!(near_ram.tracking.load(SeqCst));
        copy.abandon().unwrap();
        assert!(!near_ram.tracking.load(SeqCst));
        near.cable.sever();
        assert!(receiving.await.unwrap().1.is_err());
    });
}

#[test]
fn the_time_also_ends_a_round_that_stands_still() {
    block_on(async {
        let (near_ram, far_ram) = (guest(3000, 100, 4), Memory::new(3000, None));
        let log = Log::start(&near_ram, true);
        let (mut near, receiving) = join(target_of(&far_ram), options(2, 4)).await;
        near.cable.cut();
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
        let limits = Limits { timeout: Duration::from_millis(20), ..limits() };
        let control = &mut near.control;
        let ended = copy.run(control, limits, OnStall::Wait, |_| None, |_, _| {}).await;
        assert!(matches!(ended, Err(PrecopyError::TimeUp(_))), "{ended:?}");
        copy.abandon().unwrap();
        assert!(!near_ram.tracking.load(SeqCst));
        near.cable.sever();
        assert!(receiving.await.unwrap().1.is_err());
    });
}

#[test]
fn a_dropped_round_switches_the_log_off() {
    let near_ram = guest(3000, 100, 4);
    block_on(async {
        let far_ram = Memory::new(3000, None);
        let log = Log::start(&near_ram, true);
        let (mut near, receiving) = join(target_of(&far_ram), options(2, 4)).await;
        near.cable.cut();
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
        let soon = Duration::from_millis(20);
        let dropped = tokio::time::timeout(soon, copy.round(&mut near.control)).await;
        assert!(dropped.is_err());
        let again = copy.round(&mut near.control).await;
        assert!(again.is_err(), "{again:?}");
        near.cable.sever();
        assert!(receiving.await.unwrap().1.is_err());
    });
    // The runtime waited for the thread.
    assert!(!near_ram.tracking.load(SeqCst));
}

#[test]
fn an_idle_guest_is_switched_and_one_that_writes_too_much_is_not() {
    block_on(async {
        let (near_ram, far_ram) = (guest(300, 50, 6), Memory::new(300, None));
        let log = Log::start(&near_ram, true);
        let (mut near, receiving) = join(target_of(&far_ram), options(2, 6)).await;
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
        let mut rounds = 0;
        // The rehearsal is ready after three rounds.
        let mut asked = 0;
        let costs = |_| {
            asked += 1;
            (asked > 3).then(Costs::default)
        };
        let seen = |report: &RoundReport, _: &Advice| {
            assert_eq!(report.round, rounds);
            rounds += 1;
        };
        let control = &mut near.control;
        let end = copy.run(control, limits(), OnStall::Cancel, costs, seen).await.unwrap();
        assert!(matches!(end, End::Switch(_)), "{end:?}");
        assert!(rounds > 3, "{rounds}");
        // More than any blackout: it cannot fit.
        let costs = |_| Some(Costs { restore: Duration::from_secs(9), ..Costs::default() });
        let end = copy.run(control, limits(), OnStall::Wait, costs, |_, _| {}).await.unwrap();
        assert!(matches!(end, End::GiveUp(_)), "{end:?}");
        // Unless that is what was asked for.
        let end = copy.run(control, limits(), OnStall::Pause, costs, |_, _| {}).await.unwrap();
        assert!(matches!(end, End::Switch(_)), "{end:?}");
        farewell(control).await;
        receiving.await.unwrap().1.unwrap();
    });
}

#[test]
fn unchanged_pages_are_not_sent_twice() {
    block_on(async {
        let (near_ram, far_ram) = (Memory::new(256, None), Memory::new(256, None));
        for unit in 0..128 {
            near_ram.store(unit, &[unit + 1; 64]);
        }
        let log = Log::start(&near_ram, true);
        let (mut near, receiving) = join(target_of(&far_ram), options(2, 6)).await;
        let mut copy = Copy::new(source_of(&near_ram, log), near.lanes, Cancel::new());
        let first = copy.round(&mut near.control).await.unwrap();
        assert_eq!((first.tally.units, first.tally.untouched), (128, 128));
        assert_eq!((first.tally.zeros, first.tally.same, first.dirty_after), (0, 0, 0));
        for unit in 0..10 {
            near_ram.store(unit, &[unit + 1; 64]);
        }
        near_ram.store(20, &[0; 64]);
        near_ram.store(200, &[0; 64]);
        let second = copy.round(&mut near.control).await.unwrap();
        assert_eq!((second.tally.units, second.tally.zeros, second.tally.same), (0, 2, 10));
        assert_eq!(second.tally.done(), 12);
        farewell(&mut near.control).await;
        receiving.await.unwrap().1.unwrap();
    });
}
