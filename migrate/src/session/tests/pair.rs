//! Two sessions, the link between them, and the daemons that relay for them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::fake::{Fast, Guest, Paper, Place, World};
use crate::converge::Limits;
use crate::handover::message::Message;
use crate::handover::term::{HostId, SwitchId, Term};
use crate::port::PausedGuest;
use crate::precopy::OnStall;
use crate::pump::fake::{Memory, Ram, Random, UNIT};
use crate::session::edge::Outside;
use crate::session::report::Phase;
use crate::session::{Command, Event, source, target};
use crate::transport::link::{LinkLimits, SourceLink, StreamLimits, TargetLink};
use crate::transport::mem::{Cable, Options, pair};
use crate::unit::Layout;
use crate::wire::{AttemptId, GuestId, MoveId};

pub(super) const SOURCE: HostId = HostId(1);
pub(super) const TARGET: HostId = HostId(2);

pub(super) type NearEnd = (source::Outcome<Guest>, Paper);
pub(super) type FarEnd = (target::Outcome<<Guest as crate::port::RunningGuest>::Paused>, Paper);

pub(super) fn block_on<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let limit = Duration::from_mins(1);
        tokio::time::timeout(limit, work).await.expect("the test stands still")
    })
}

/// What a test varies.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) seed: u64,
    pub(super) lanes: usize,
    pub(super) units: u64,
    pub(super) paused: bool,
    pub(super) problems: Vec<String>,
    /// The daemons carry words that the link does not.
    pub(super) relay: bool,
    /// How much faster than the host's the clocks of timers run.
    pub(super) times: u64,
    pub(super) max_downtime: Duration,
    pub(super) on_stall: OnStall,
    pub(super) timeout: Duration,
    pub(super) audit: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 7,
            lanes: 2,
            units: 300,
            paused: false,
            problems: Vec::new(),
            relay: false,
            times: 1,
            max_downtime: Duration::from_secs(2),
            on_stall: OnStall::Pause,
            timeout: Duration::from_secs(30),
            audit: true,
        }
    }
}

/// What to do when a side comes to a phase.
pub(super) type React = Box<dyn FnMut(&Event, &Hands) + Send>;

/// What a test can do from outside.
#[derive(Clone)]
pub(super) struct Hands {
    pub(super) near: mpsc::Sender<Command>,
    pub(super) far: mpsc::Sender<Command>,
    pub(super) cable: Cable,
    /// Whether the daemons relay.
    pub(super) relay: Arc<AtomicBool>,
    pub(super) kill_far: Arc<tokio::sync::Notify>,
}

pub(super) struct Sides {
    pub(super) world: Arc<World>,
    pub(super) near_ram: Ram,
    pub(super) hands: Hands,
    pub(super) near: JoinHandle<NearEnd>,
    pub(super) far: JoinHandle<Option<FarEnd>>,
}

pub(super) fn link_options(setup: &Setup) -> Options {
    let stream = |frame, depth| StreamLimits { frame, depth };
    let limits = LinkLimits {
        control: stream(1 << 20, 4),
        urgent: stream(1 << 10, 1),
        bulk: stream(16 << 10, 2),
    };
    Options { lanes: setup.lanes, limits, seed: setup.seed, max_turns: 5 }
}

pub(super) fn plan(setup: &Setup) -> source::Plan {
    source::Plan {
        move_id: MoveId([1; 16]),
        attempt: AttemptId([2; 16]),
        guest: GuestId([3; 16]),
        name: "web-1".into(),
        definition: b"name = \"web-1\"".to_vec(),
        program: "migrate test".into(),
        digest_key: [9; 32],
        switch: SwitchId(u128::from(setup.seed) + 1),
        host: SOURCE,
        to: TARGET,
        owned: Term::FIRST,
        highest: Term::FIRST,
        paused: setup.paused,
        limits: Limits { max_downtime: setup.max_downtime, timeout: setup.timeout },
        on_stall: setup.on_stall,
        audit: setup.audit,
        began_unix_ms: 1_700_000_000_000,
    }
}

pub(super) fn expected(setup: &Setup) -> target::Expected {
    let plan = plan(setup);
    target::Expected {
        move_id: plan.move_id,
        attempt: plan.attempt,
        guest: plan.guest,
        name: plan.name,
        definition: plan.definition,
        layout: Layout::new(UNIT, setup.units).unwrap(),
        program: plan.program,
        host: TARGET,
        from: SOURCE,
        highest: Term::NONE,
        began_unix_ms: plan.began_unix_ms,
    }
}

/// A side's connections, and their other ends.
pub(super) struct Ends {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) messages: mpsc::Receiver<Message>,
}

pub(super) fn outside() -> (Outside, Ends) {
    let (commands, taken) = mpsc::channel(16);
    let (told, events) = mpsc::unbounded_channel();
    let (relayed, messages) = mpsc::channel(16);
    let outside = Outside { commands: taken, events: told, messages: relayed };
    (outside, Ends { commands, events, messages })
}

/// A guest whose memory was written to in part.
pub(super) fn memory(setup: &Setup) -> Ram {
    let ram = Memory::new(setup.units, None);
    let mut random = Random(setup.seed);
    for unit in 0..setup.units {
        if random.below(100) < 70 {
            ram.store(unit, &random.content());
        }
    }
    ram
}

pub(super) fn guest(setup: &Setup, ram: &Ram, world: &Arc<World>) -> Guest {
    if setup.paused {
        Guest::paused_by_user(ram, world, setup.seed)
    } else {
        Guest::start("S", ram, world, setup.seed)
    }
}

pub(super) fn clock(setup: &Setup) -> Fast {
    Fast { began: tokio::time::Instant::now(), times: setup.times }
}

impl Sides {
    pub(super) fn start(setup: &Setup) -> Self {
        Self::start_with(setup, Arc::default(), Box::new(|_, _| {}), Box::new(|_, _| {}))
    }

    /// `near` and `far` see the events of their side, and may do something.
    pub(super) fn start_with(setup: &Setup, world: Arc<World>, near: React, far: React) -> Self {
        let (source, target, cable) = pair(link_options(setup));
        Self::over(setup, world, (source, target, cable), plan(setup), expected(setup), near, far)
    }

    pub(super) fn over(
        setup: &Setup,
        world: Arc<World>,
        (source, target, cable): (SourceLink, TargetLink, Cable),
        plan: source::Plan,
        expected: target::Expected,
        near: React,
        far: React,
    ) -> Self {
        let near_ram = memory(setup);
        let place = Place {
            ram: Memory::new(setup.units, None),
            source: Arc::clone(&near_ram),
            world: Arc::clone(&world),
            problems: setup.problems.clone(),
        };
        let guest = guest(setup, &near_ram, &world);
        let rights = [Paper::source(SOURCE, &world), Paper::target(TARGET, &world)];
        let [near_rights, far_rights] = rights;
        let (near_outside, near_ends) = outside();
        let (far_outside, far_ends) = outside();
        let hands = Hands {
            near: near_ends.commands,
            far: far_ends.commands,
            cable,
            relay: Arc::new(AtomicBool::new(setup.relay)),
            kill_far: Arc::default(),
        };
        watch(near_ends.events, near, hands.clone());
        watch(far_ends.events, far, hands.clone());
        let (near, far) = (hands.near.clone(), hands.far.clone());
        relay(near_ends.messages, [near.clone(), far.clone()], TARGET, &world, &hands);
        relay(far_ends.messages, [far, near], SOURCE, &world, &hands);
        let session = source::run(source, plan, guest, near_rights, clock(setup), near_outside);
        let near = tokio::spawn(session);
        let session = target::run(target, expected, place, far_rights, clock(setup), far_outside);
        let kill = Arc::clone(&hands.kill_far);
        let far = tokio::spawn(async move {
            tokio::select! {
                end = session => Some(end),
                () = kill.notified() => None,
            }
        });
        Self { world, near_ram, hands, near, far }
    }

    /// Both ends; both sides come to one.
    pub(super) async fn ends(self) -> (Arc<World>, NearEnd, FarEnd) {
        let near = self.near.await.unwrap();
        let far = self.far.await.unwrap().expect("the target was killed");
        (self.world, near, far)
    }
}

fn watch(mut events: mpsc::UnboundedReceiver<Event>, mut react: React, hands: Hands) {
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            react(&event, &hands);
        }
    });
}

/// Carries words from one side to the other, whose daemon answers for a process that has ended.
fn relay(
    mut messages: mpsc::Receiver<Message>,
    [back, to]: [mpsc::Sender<Command>; 2],
    host: HostId,
    world: &Arc<World>,
    hands: &Hands,
) {
    let (on, world) = (Arc::clone(&hands.relay), Arc::clone(world));
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            if on.load(SeqCst)
                && to.send(Command::Heard(message)).await.is_err()
                && let Some(answer) = world.answer(host, &message)
            {
                let _ = back.send(Command::Heard(answer)).await;
            }
        }
    });
}

/// Does something once, when a phase begins.
pub(super) fn at(phase: Phase, mut act: impl FnMut(&Hands) + Send + 'static) -> React {
    Box::new(move |event, hands| {
        if matches!(event, Event::Phase(now) if *now == phase) {
            act(hands);
        }
    })
}

pub(super) fn nothing() -> React {
    Box::new(|_, _| {})
}

pub(super) fn text_of(outcome: &source::Outcome<Guest>) -> String {
    match outcome {
        source::Outcome::Kept { reason, text, .. } => format!("kept: {reason:?}: {text}"),
        source::Outcome::Moved { .. } => "moved".into(),
        source::Outcome::Superseded { .. } => "superseded".into(),
    }
}

pub(super) fn far_text<P: PausedGuest>(outcome: &target::Outcome<P>) -> String {
    match outcome {
        target::Outcome::NotTaken { reason, text, .. } => format!("not taken: {reason:?}: {text}"),
        target::Outcome::Arrived { .. } => "arrived".into(),
        target::Outcome::Superseded { .. } => "superseded".into(),
    }
}
