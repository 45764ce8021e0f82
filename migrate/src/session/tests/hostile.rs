//! Peers that are broken or hostile, and links that change what they carry: no side panics, takes
//! more memory than it may, or ends with a guest in the wrong place.

use std::sync::Arc;

use bytes::Bytes;

use super::fake::{Paper, Place, World};
use super::pair::{
    SOURCE, Setup, Sides, TARGET, block_on, clock, expected, far_text, guest, link_options, memory,
    nothing, outside, plan, text_of,
};
use crate::codec::Digest;
use crate::handover::message::{SourceSays, TargetSays};
use crate::handover::term::{HostId, Switch, SwitchId, Term};
use crate::pump::fake::{Memory, Random};
use crate::pump::talk::message_of;
use crate::session::report::Reason;
use crate::session::{source, target};
use crate::transport::link::{FrameReceiver, FrameSender, SourceLink, TargetLink};
use crate::transport::mem::{Cable, pair};
use crate::wire::control::{Note, Sums};
use crate::wire::hello::{Hello, HelloText, Reply};
use crate::wire::{Message, Version};

/// What becomes of a frame of the control stream.
type Hook = Box<dyn FnMut(Bytes) -> Option<Bytes> + Send>;

/// A link with somebody in its middle, who changes what the control streams carry.
fn tapped(setup: &Setup, to_target: Hook, to_source: Hook) -> (SourceLink, TargetLink, Cable) {
    let (source, inner_target, cable) = pair(link_options(setup));
    let (inner_source, target, _) = pair(link_options(setup));
    let keep = (inner_target.handle.clone(), inner_source.handle.clone());
    for (mut from, to) in inner_target.lanes.into_iter().zip(inner_source.lanes) {
        tokio::spawn(async move { carry(&mut from, &to, Box::new(Some)).await });
    }
    let (mut from, to) = (inner_target.control.receiver, inner_source.control.sender);
    tokio::spawn(async move { carry(&mut from, &to, to_target).await });
    let (mut from, to) = (inner_source.control.receiver, inner_target.control.sender);
    tokio::spawn(async move { carry(&mut from, &to, to_source).await });
    // One end that goes takes the other with it.
    tokio::spawn(async move {
        let (a, b) = keep;
        let close = |how: crate::transport::link::Ended| {
            use crate::transport::link::{Close, CloseCode, Ended};
            match how {
                Ended::Peer(close) => close,
                other => Close::new(CloseCode::Failed, other.to_string()),
            }
        };
        tokio::select! {
            how = a.ended() => b.close(close(how)),
            how = b.ended() => a.close(close(how)),
        }
    });
    (source, target, cable)
}

async fn carry(from: &mut FrameReceiver, to: &FrameSender, mut hook: Hook) {
    while let Ok(Some(frame)) = from.recv().await {
        if let Some(frame) = hook(frame)
            && to.send(frame).await.is_err()
        {
            return;
        }
    }
}

fn untouched() -> Hook {
    Box::new(Some)
}

/// Changes messages, as `change` says.
fn changing(mut change: impl FnMut(&mut Message) + Send + 'static) -> Hook {
    Box::new(move |frame| match message_of(Version::V1, &frame) {
        Ok(mut message) => {
            change(&mut message);
            Some(message.encode(Version::V1).into())
        }
        Err(_) => Some(frame),
    })
}

fn tapped_sides(setup: &Setup, to_target: Hook, to_source: Hook) -> Sides {
    let link = tapped(setup, to_target, to_source);
    let world = Arc::default();
    Sides::over(setup, world, link, plan(setup), expected(setup), nothing(), nothing())
}

#[test]
fn memory_that_differs_at_the_target_withdraws_the_switch() {
    block_on(async {
        // The target computes its digests with another key: everything differs.
        let other_key = changing(|message| {
            if let Message::Layout { digest_key, .. } = message {
                digest_key[0] ^= 1;
            }
        });
        let (world, near, far) =
            tapped_sides(&Setup::default(), other_key, untouched()).ends().await;
        let source::Outcome::Kept { guest, reason, text, report } = near.0 else { panic!() };
        assert!(matches!(guest, source::Kept::Running(guest) if guest.runs()));
        assert_eq!(reason, Reason::DigestDiffers, "{text}");
        assert!(text.contains("in pages"), "{text}");
        assert_eq!(report.digest_agreed, Some(false));
        assert!(matches!(far.0, target::Outcome::NotTaken { .. }));
        assert_eq!(world.diary.at("T restores"), None);
    });
}

/// The source believes that the sums agree; the target knows better.
#[test]
fn a_target_does_not_restore_memory_that_differs() {
    block_on(async {
        let mut theirs = None;
        let (tell, told) = std::sync::mpsc::channel();
        let forge = changing(move |message| {
            if let Message::RoundDone { sums, .. } = message
                && !sums.as_slice().is_empty()
            {
                tell.send(sums.clone()).unwrap();
                *sums = vec![Digest(1)].try_into().unwrap();
            }
        });
        let agree = changing(move |message| {
            if let Message::RoundAck { sums, .. } = message
                && !sums.as_slice().is_empty()
            {
                *sums = theirs.get_or_insert_with(|| told.recv().unwrap()).clone();
            }
        });
        let (world, near, far) = tapped_sides(&Setup::default(), forge, agree).ends().await;
        let source::Outcome::Kept { reason, text, .. } = &near.0 else { panic!() };
        assert_eq!(*reason, Reason::NeverRan);
        assert!(text.contains("not what the source says"), "{text}");
        let target::Outcome::NotTaken { reason, .. } = &far.0 else { panic!() };
        assert_eq!(*reason, Reason::DigestDiffers);
        world.diary.in_order(&["T records Tombstone", "S records Withdrawn", "S stamps", "S runs"]);
    });
}

#[test]
fn a_control_stream_that_is_damaged_at_any_frame() {
    for seed in 0..40 {
        block_on(async {
            let setup = Setup { seed, times: 20, relay: true, ..Setup::default() };
            let mut random = Random(seed);
            let (victim, damaged) = (random.below(16), random.below(2) == 0);
            let mut frames = 0;
            let damage: Hook = Box::new(move |frame| {
                frames += 1;
                if frames != victim + 1 {
                    return Some(frame);
                }
                // Dropped, or with one byte changed: the checksum tells.
                let mut bytes = frame.to_vec();
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                bytes[at] ^= 1 << random.below(8);
                (random.below(4) > 0).then(|| bytes.into())
            });
            let hooks = if damaged { (damage, untouched()) } else { (untouched(), damage) };
            // A message that is missing may hold a move up until its time is over.
            let setup = Setup { timeout: std::time::Duration::from_secs(1), ..setup };
            let sides = tapped_sides(&setup, hooks.0, hooks.1);
            let near = sides.near.await.unwrap();
            match near.0 {
                source::Outcome::Kept { guest, .. } => {
                    let source::Kept::Running(guest) = guest else { panic!("seed {seed}") };
                    assert!(guest.runs(), "seed {seed}");
                    assert_eq!(sides.world.diary.at("T runs"), None, "seed {seed}");
                    sides.far.abort();
                }
                source::Outcome::Moved { .. } => {
                    let far = sides.far.await.unwrap().unwrap();
                    assert!(matches!(far.0, target::Outcome::Arrived { .. }), "seed {seed}");
                }
                source::Outcome::Superseded { .. } => panic!("seed {seed}"),
            }
        });
    }
}

/// A message that may be sent at any time by a peer that knows the protocol.
fn some_message(random: &mut Random, setup: &Setup) -> Message {
    let switch = Switch {
        id: SwitchId(u128::from(setup.seed) + 1),
        before: Term::FIRST,
        term: Term::new(random.below(4)),
        from: HostId(u128::from(random.below(3))),
        to: HostId(u128::from(random.below(3))),
    };
    let round = u32::try_from(random.below(3)).unwrap();
    let (units, zeros) = (random.below(3), random.below(3));
    let sums: Sums =
        vec![Digest(u128::from(random.next())); usize::try_from(random.below(2)).unwrap()]
            .try_into()
            .unwrap();
    let text = Note::clipped("x");
    let state = vec![1; 100].try_into().unwrap();
    match random.below(18) {
        0 => Message::RoundStart { round },
        1 => Message::RoundDone { round, units, zeros, sums },
        2 => Message::RoundAck { round, units, zeros, sums },
        3 => Message::OfferSwitch { switch },
        4 => Message::LastPiece { switch, paused: random.below(2) == 0, state },
        5 => Message::FromSource { switch, says: SourceSays::Ceded },
        6 => Message::FromSource { switch, says: SourceSays::Undecided },
        7 => Message::Ask { switch },
        8 => says(switch, TargetSays::Ready),
        9 => says(switch, TargetSays::Prepared),
        10 => says(switch, TargetSays::Ran { durable: true }),
        11 => {
            Message::Rehearsed { restore_us: random.next(), problems: vec![].try_into().unwrap() }
        }
        12 => Message::Started { switch: switch.id, steps: vec![1; 16].try_into().unwrap() },
        13 => Message::Restored { switch: switch.id, restore_us: u64::MAX, sums },
        14 => Message::Ping { nonce: random.next() },
        15 => Message::Progress { round, bytes: random.next() },
        16 => Message::Accept { attempt: plan(setup).attempt, lanes: 2 },
        _ => Message::Cancel { text },
    }
}

fn says(switch: Switch, says: TargetSays) -> Message {
    Message::FromTarget { switch, says, question: None, text: Note::default() }
}

/// A hostile peer: says the opening as it should be, for a while, and then anything.
async fn babble(to: &FrameSender, mut random: Random, setup: &Setup) {
    for _ in 0..random.below(60) {
        let frame: Vec<u8> = if random.below(8) == 0 {
            (0..=random.below(60)).map(|_| random.next().to_le_bytes()[0]).collect()
        } else {
            some_message(&mut random, setup).encode(Version::V1)
        };
        if to.send(frame.into()).await.is_err() {
            return;
        }
    }
}

#[test]
fn a_source_that_says_anything() {
    for seed in 0..120 {
        block_on(async {
            let setup = Setup { seed, times: 1000, ..Setup::default() };
            let world: Arc<World> = Arc::default();
            let (near, far, _) = pair(link_options(&setup));
            let ram = Memory::new(setup.units, None);
            let (place, rights) = (
                Place { source: ram.clone(), ram, world: world.clone(), problems: vec![] },
                Paper::target(TARGET, &world),
            );
            let (outside, ends) = outside();
            let session = target::run(far, expected(&setup), place, rights, clock(&setup), outside);
            let session = tokio::spawn(session);
            let mut random = Random(seed);
            let to = &near.control.sender;
            let plan = plan(&setup);
            let opening = random.below(4);
            if opening > 0 {
                to.send(Hello::of_all_versions("x").encode().into()).await.unwrap();
            }
            if opening > 1 {
                let offer = Message::Offer {
                    move_id: plan.move_id,
                    attempt: plan.attempt,
                    guest: plan.guest,
                    name: crate::wire::Text::clipped(&plan.name),
                    lanes: 2,
                    definition: plan.definition.clone().try_into().unwrap(),
                };
                let _ = to.send(offer.encode(Version::V1).into()).await;
                let region = crate::wire::control::Region {
                    kind: crate::wire::control::RegionKind::Ram,
                    unit_size: crate::pump::fake::UNIT,
                    units: setup.units,
                };
                let regions = vec![region].try_into().unwrap();
                let layout = Message::Layout { regions, digest_key: plan.digest_key };
                let _ = to.send(layout.encode(Version::V1).into()).await;
            }
            babble(to, random, &setup).await;
            drop(near);
            let withdrawn = async {
                // The true source's daemon withdraws whatever was offered.
                loop {
                    if let Some(switch) = world.offered_to(TARGET) {
                        let says = crate::handover::message::ToTarget::Says(SourceSays::Withdrawn);
                        let told = crate::handover::message::Message::to_target(switch, says);
                        let _ = ends.commands.send(crate::session::Command::Heard(told)).await;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            };
            let end = tokio::select! {
                end = session => end.unwrap(),
                () = withdrawn => unreachable!(),
            };
            assert!(
                matches!(end.0, target::Outcome::NotTaken { .. }),
                "{seed}: {}",
                far_text(&end.0)
            );
            assert_eq!(world.diary.at("T runs"), None, "seed {seed}");
        });
    }
}

#[test]
fn a_target_that_says_anything() {
    for seed in 0..120 {
        block_on(async {
            let setup = Setup { seed, times: 1000, ..Setup::default() };
            let world: Arc<World> = Arc::default();
            let (near, far, _) = pair(link_options(&setup));
            let ram = memory(&setup);
            let rights = Paper::source(SOURCE, &world);
            let (outside, _ends) = outside();
            let guest = guest(&setup, &ram, &world);
            let session = source::run(near, plan(&setup), guest, rights, clock(&setup), outside);
            let session = tokio::spawn(session);
            let mut random = Random(seed);
            let to = &far.control.sender;
            if random.below(4) > 0 {
                let program = HelloText::clipped("x");
                let reply = Reply::Chosen { version: 1, program };
                to.send(reply.encode().into()).await.unwrap();
            }
            babble(to, random, &setup).await;
            drop(far);
            let end = session.await.unwrap();
            let source::Outcome::Kept { guest, .. } = &end.0 else {
                panic!("seed {seed}: {}", text_of(&end.0))
            };
            assert!(matches!(guest, source::Kept::Running(guest) if guest.runs()), "seed {seed}");
        });
    }
}

#[test]
fn no_common_version_is_said_to_both() {
    block_on(async {
        let setup = Setup::default();
        let newer: Hook = Box::new(|_| {
            let (versions, program) = (vec![7, 8].try_into().unwrap(), HelloText::clipped("new"));
            Some(Hello { versions, program }.encode().into())
        });
        let (world, near, far) = tapped_sides(&setup, newer, untouched()).ends().await;
        let source::Outcome::Kept { reason, text, .. } = near.0 else { panic!() };
        assert_eq!(reason, Reason::NoCommonVersion);
        assert!(text.contains("speaks 7, 8") || text.contains("7, 8"), "{text}");
        let target::Outcome::NotTaken { reason, text, .. } = far.0 else { panic!() };
        assert_eq!(reason, Reason::NoCommonVersion);
        assert!(text.contains("no common protocol version"), "{text}");
        assert_eq!(world.diary.at("S starts the log"), None);
    });
}
