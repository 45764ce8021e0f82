//! What a broken or hostile source can send.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::codec::{Batch, Codec};
use crate::pump::fake::{Memory, Ram, UNIT};
use crate::transport::mem::{Options, pair};
use crate::unit::UnitIndex;
use crate::wire::data::{self, put_round_end, put_units, put_zeros};

/// Units of the memory, in stripes of 64 over two lanes.
const UNITS: u64 = 300;

fn layout() -> Layout {
    Layout::new(UNIT, UNITS).unwrap()
}

/// Units as another layout has them, so that they need not lie in ours.
fn unit(n: u64) -> UnitIndex {
    Layout::new(UNIT, 1 << 30).unwrap().unit(n).unwrap()
}

fn run(first: u64, count: u64) -> Run {
    Layout::new(UNIT, 1 << 32).unwrap().run(first, count).unwrap()
}

fn at(round: u32, sequence: u64) -> data::Place {
    data::Place { region: 0, round, sequence }
}

fn units(place: data::Place, units: &[u64]) -> Vec<u8> {
    let mut batch = Batch::new(&layout());
    for n in units {
        batch.slot().unwrap().fill(u8::try_from(n % 251).unwrap() + 1);
        batch.keep(unit(*n)).unwrap();
    }
    let mut out = Vec::new();
    put_units(Version::V1, place, &batch, Codec::Lz4, &mut out).unwrap();
    out
}

fn zeros(place: data::Place, runs: &[Run]) -> Vec<u8> {
    let mut out = Vec::new();
    put_zeros(Version::V1, place, runs, &mut out).unwrap();
    out
}

fn end(place: data::Place, units: u64, zeros: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_round_end(Version::V1, place, units, zeros, &mut out);
    out
}

/// What the source does.
enum Step {
    Say(Message),
    Lane(usize, Vec<u8>),
    /// Waits for an answer.
    Hear,
}
use Step::{Hear, Lane as On, Say};

fn start(round: u32) -> Step {
    Say(Message::RoundStart { round })
}

fn done(round: u32, units: u64, zeros: u64) -> Step {
    Say(Message::RoundDone { round, units, zeros, sums: Sums::default() })
}

/// The steps, until the target ends; what it ended with, its memory, and the answers.
fn play(steps: Vec<Step>) -> (Result<Message, RecvError>, Ram, Vec<Message>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ram = Memory::new(UNITS, None);
        let key = DigestKey::new([1; 32]);
        let mut target = Target::new(Version::V1, 0, Arc::clone(&ram), key);
        let (mut near, far, _cable) = pair(Options { lanes: 2, ..Options::default() });
        let shards = Shards::small(NonZeroUsize::new(2).unwrap(), 1);
        target.attach_sharded(far.lanes, far.handle, shards).await.unwrap();
        let mut control = far.control;
        let receiving = tokio::spawn(async move {
            let ended = target.converse(&mut control).await;
            target.detach().await;
            ended
        });
        let mut answers = Vec::new();
        for step in steps {
            let went = match step {
                Say(message) => near.control.say(&message).await.is_ok(),
                On(lane, frame) => near.lanes[lane].send(Bytes::from(frame)).await.is_ok(),
                Hear => near.control.hear().await.map(|m| answers.push(m)).is_ok(),
            };
            if !went {
                break;
            }
        }
        let ended = tokio::time::timeout(std::time::Duration::from_mins(1), receiving);
        let ended = ended.await.expect("the target waits for ever").unwrap();
        (ended, ram, answers)
    })
}

fn refused(steps: Vec<Step>) -> String {
    play(steps).0.unwrap_err().to_string()
}

#[test]
fn a_round_in_order_is_acknowledged() {
    let ping = || Say(Message::Ping { nonce: 1 });
    let (ended, ram, answers) = play(vec![
        // Lanes may be ahead of the conversation.
        On(0, units(at(0, 0), &[0, 1, 63, 128])),
        On(0, end(at(0, 1), 4, 0)),
        start(0),
        On(1, zeros(at(0, 0), &[run(64, 64)])),
        On(1, end(at(0, 1), 0, 64)),
        done(0, 4, 64),
        Hear,
        start(1),
        On(0, units(at(1, 2), &[0])),
        On(0, end(at(1, 3), 1, 0)),
        On(1, end(at(1, 2), 0, 0)),
        done(1, 1, 0),
        Hear,
        ping(),
    ]);
    assert!(matches!(ended, Ok(Message::Ping { nonce: 1 })), "{ended:?}");
    let ack =
        |round, units, zeros| Message::RoundAck { round, units, zeros, sums: List::default() };
    assert_eq!(answers, [ack(0, 4, 64), ack(1, 1, 0)]);
    assert_eq!(ram.load(63), [0x4040_4040_4040_4040; 64]);
    assert!(!ram.is_touched(64) && !ram.is_touched(2), "zeros must not touch memory");
}

#[test]
fn every_broken_rule_has_a_name() {
    let frame = || units(at(0, 0), &[3]);
    let mut damaged = frame();
    *damaged.last_mut().unwrap() ^= 1;
    let region = data::Place { region: 1, ..at(0, 0) };
    let begun = |first: Vec<u8>, second: Vec<u8>| vec![On(0, first), On(0, second)];
    for (what, steps) in [
        ("checksum is wrong", vec![On(0, damaged)]),
        ("ends in the middle of a data header", vec![On(0, vec![1; 27])]),
        ("region 1, which was not announced", vec![On(0, units(region, &[3]))]),
        ("frame 1 came where frame 0", vec![On(0, units(at(0, 1), &[3]))]),
        ("frame 0 came where frame 1", begun(frame(), frame())),
        ("frame of round 1 came where round 0", begun(frame(), units(at(1, 1), &[3]))),
        // After the end of a round, before it is acknowledged.
        ("frame of round 0 came", begun(end(at(0, 0), 0, 0), units(at(0, 1), &[3]))),
        ("frame of round 1 came", begun(end(at(0, 0), 0, 0), units(at(1, 1), &[3]))),
        ("units 64+1 do not travel on this lane", vec![On(0, units(at(0, 0), &[3, 64]))]),
        ("units 3+1 do not travel on this lane", vec![On(1, frame())]),
        ("units 63+2 do not travel", vec![On(0, units(at(0, 0), &[63, 64]))]),
        ("units 0+300 do not travel", vec![On(0, zeros(at(0, 0), &[run(0, 300)]))]),
        ("units 300+1 do not lie", vec![On(0, units(at(0, 0), &[300]))]),
        ("units 256+45 do not lie", vec![On(0, zeros(at(0, 0), &[run(256, 45)]))]),
        ("do not lie", vec![On(0, zeros(at(0, 0), &[run(1, 1 << 31)]))]),
        ("1 units came in round 0, the sender counted 2", begun(frame(), end(at(0, 1), 2, 0))),
        ("not started", vec![done(0, 0, 0)]),
        ("before the last was acknowledged", vec![start(0), start(1)]),
        (
            "another round than the one started",
            vec![On(0, end(at(0, 0), 0, 0)), On(1, end(at(0, 0), 0, 0)), start(1), done(1, 0, 0)],
        ),
        (
            "lanes ended different rounds",
            vec![On(0, end(at(0, 0), 0, 0)), On(1, end(at(1, 0), 0, 0))],
        ),
        (
            "round 0: 0 units and 0 zero units came, the source sent 7 and 0",
            vec![start(0), On(0, end(at(0, 0), 0, 0)), On(1, end(at(0, 0), 0, 0)), done(0, 7, 0)],
        ),
        (
            "region 9",
            vec![Say(Message::AskSums { span: Span { region: 9, first: 0, count: 1 }, parts: 1 })],
        ),
        (
            "units 299+2 do not lie",
            vec![Say(Message::AskSums {
                span: Span { region: 0, first: 299, count: 2 },
                parts: 1,
            })],
        ),
    ] {
        let found = refused(steps);
        assert!(found.contains(what), "expected {what:?}, found {found:?}");
    }
}

#[test]
fn an_older_round_cannot_come_again() {
    let whole = |round, sequence| {
        [
            start(round),
            On(0, end(at(round, sequence), 0, 0)),
            On(1, end(at(round, sequence), 0, 0)),
            done(round, 0, 0),
            Hear,
        ]
    };
    let mut steps: Vec<Step> = whole(5, 0).into_iter().chain(whole(6, 1)).collect();
    steps.push(start(5));
    assert!(refused(steps).contains("acknowledged before"));
}

#[test]
fn nothing_of_a_wrong_frame_is_written() {
    let (ended, ram, _) = play(vec![On(0, units(at(0, 0), &[5, 64]))]);
    assert!(ended.is_err());
    let (_, also, _) = play(vec![On(0, zeros(at(0, 0), &[run(0, 4), run(64, 1)]))]);
    assert!((0..UNITS).all(|u| !ram.is_touched(u) && !also.is_touched(u)));
    assert!(!ram.tracking.load(SeqCst));
}

#[test]
#[expect(clippy::await_holding_lock, reason = "it is there to stop another thread")]
fn a_new_link_waits_until_the_old_one_writes_no_more() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ram = Memory::new(UNITS, None);
        let key = DigestKey::new([1; 32]);
        let mut target = Target::new(Version::V1, 0, Arc::clone(&ram), key);
        let link = || pair(Options { lanes: 1, ..Options::default() });
        let (near, far, cable) = link();
        target.attach(far.lanes, far.handle).await.unwrap();
        let closed = ram.gate.lock().unwrap();
        near.lanes[0].send(Bytes::from(units(at(0, 0), &[3]))).await.unwrap();
        while !ram.arriving.load(SeqCst) {
            tokio::task::yield_now().await;
        }
        cable.sever();
        let (_near, far, _cable) = link();
        let mut attached = std::pin::pin!(target.attach(far.lanes, far.handle));
        let moment = std::time::Duration::from_millis(20);
        let early = tokio::time::timeout(moment, &mut attached).await;
        assert!(early.is_err(), "the old link can still write");
        drop(closed);
        attached.await.unwrap();
        assert!(ram.is_touched(3));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Bytes at random, and frames that were damaged where no checksum tells.
    #[test]
    fn any_bytes_end_in_an_error_that_has_a_name(
        bytes in prop::collection::vec(any::<u8>(), 1..200),
        patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        random: bool,
    ) {
        let frame = if random { bytes } else {
            let mut frame = units(at(0, 0), &[0, 1, 2, 7, 9, 63]);
            for (at, byte) in patches {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            // A hostile source computes its checksums.
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&frame[..24]);
            hasher.update(&frame[28..]);
            let crc = hasher.finalize().to_le_bytes();
            frame[24..28].copy_from_slice(&crc);
            frame
        };
        let steps = vec![On(0, frame), On(0, vec![0; 28])];
        prop_assert!(!refused(steps).is_empty());
    }
}
