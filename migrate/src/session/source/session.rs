//! The loop: one happening at a time is turned into inputs of the machine, and what the machine
//! asks for is done before the next.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::super::claim::{Claim, NotClaimed, decide};
use super::super::edge::{Clock, Outside};
use super::super::line::{Line, Peer, PumpTalk};
use super::super::record::Recorder;
use super::super::report::{Phase, Reason, Side};
use super::super::wait::{Jobs, Timers};
use super::super::{Command, Event, OPENING_MS};
use super::arbiter::Desk;
use super::hold::{Back, Hold, Proofs};
use super::{Outcome, Plan};
use crate::converge::{Advice, Costs};
use crate::failpoint;
use crate::handover::effect::{Effect, Input, Step, Timer};
use crate::handover::proof::ClaimedProof;
use crate::handover::resolve;
use crate::handover::source::{Setup, Source, State};
use crate::port::{self, NotPaused, PausedGuest, Rights, RunningGuest, Stands};
use crate::precopy::{End, Precopy, PrecopyError, RoundReport};
use crate::pump::{Cancel, Lanes, TalkError};
use crate::transport::link::{CloseCode, Link, SourceLink};
use crate::wire::control;

pub(super) type Copy<G> = Precopy<<G as RunningGuest>::Ram, <G as RunningGuest>::Log>;
type GuestError<G> = <G as RunningGuest>::Error;
type PausedError<G> = <<G as RunningGuest>::Paused as PausedGuest>::Error;

/// A failed step of the journal is reported to the machine this much later where it would be
/// tried again at once.
pub(super) const RETRY_MS: u64 = 100;

/// What the conversation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The answer to our hello is awaited.
    Hello,
    /// The answer to our offer is awaited.
    Accept,
    /// Everything is agreed on.
    Open,
}

/// Work that goes on beside the machine, when it is done. Whatever it holds comes back.
pub(super) enum Done<G: RunningGuest> {
    Logged(G, Result<G::Log, GuestError<G>>),
    Copied(Box<(Copy<G>, PumpTalk)>, Result<End, PrecopyError>),
    TrialState(G, Result<port::Trial, GuestError<G>>),
    Paused(Result<G::Paused, NotPaused<G, GuestError<G>>>),
    Saved(crate::handover::proof::Stopped<G::Paused>, Result<Vec<u8>, PausedError<G>>),
    LastRound(Box<(Copy<G>, PumpTalk)>, Result<RoundReport, PrecopyError>),
    Audited(Result<Vec<u64>, String>, Duration),
    /// The guest was claimed at the arbiter, in this time.
    Claimed(Result<Duration, String>),
    /// What stands in the arbiter just before the offer.
    Looked(Box<Advice>, Stands),
    /// An answer of the arbiter to the machine.
    Answered(Stands),
    /// An input that was put off.
    Later(Input),
    /// The opening has taken too long, if it is not done.
    OpeningOver,
    /// The time for everything is up.
    TimeUp,
}

/// Rounds that are done, from the copy to the session.
type Rounds = (mpsc::UnboundedSender<Seen>, mpsc::UnboundedReceiver<Seen>);
type Seen = (RoundReport, Advice);

enum Happening<G: RunningGuest> {
    Frame(Result<Bytes, TalkError>),
    Command(Option<Command>),
    Timer(Timer),
    Done(Done<G>),
    Round(Box<RoundReport>, Box<Advice>),
}

/// A source's session.
pub(super) struct Session<G: RunningGuest, D, C> {
    pub(super) plan: Plan,
    pub(super) machine: Source,
    pub(super) clock: Arc<C>,
    pub(super) timers: Timers,
    pub(super) jobs: Jobs<Done<G>>,
    pub(super) inputs: VecDeque<Input>,
    pub(super) effects: VecDeque<Effect>,
    pub(super) hold: Hold<G>,
    pub(super) proofs: Proofs,
    /// Away only while a thread uses it.
    pub(super) rights: Option<D>,
    pub(super) line: Line,
    pub(super) outside: Outside,
    commands_open: bool,
    pub(super) log: Recorder,
    pub(super) stage: Stage,
    /// Until copying begins.
    pub(super) lanes: Option<Lanes>,
    pub(super) ram: Option<G::Ram>,
    /// While no round goes on.
    pub(super) copy: Option<Box<(Copy<G>, PumpTalk)>>,
    /// A round goes on, and gives the copy back.
    pub(super) copy_away: bool,
    pub(super) cancel: Cancel,
    pub(super) rounds: Rounds,
    pub(super) costs: Arc<Mutex<Option<Costs>>>,
    pub(super) trial: Trial,
    pub(super) desk: Desk,
    /// The saved state, until the last piece is sent.
    pub(super) state: Option<control::State>,
    pub(super) owner_dropped: bool,
    /// How often an answer was asked for in vain.
    pub(super) repeats: u32,
    pub(super) peer: Peer,
    /// What went wrong last at a durable step, for people.
    pub(super) trouble: String,
    /// What people were told of it last.
    pub(super) told: Option<(Step, String)>,
    /// Attempts to record a free withdrawal that failed.
    pub(super) unsaid: u32,
}

/// The rehearsal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Trial {
    #[default]
    NotBegun,
    Begun,
    Done,
}

impl<G: RunningGuest, D: Rights, C: Clock> Session<G, D, C> {
    pub(super) fn new(
        link: SourceLink,
        plan: Plan,
        guest: G,
        rights: D,
        clock: C,
        outside: Outside,
    ) -> Self {
        let Link { control, urgent: _, lanes, handle } = link;
        let setup = Setup {
            host: plan.host,
            to: plan.to,
            owned: plan.owned,
            highest: plan.highest,
            arbiter: plan.arbiter.is_some(),
            paused: plan.paused,
        };
        let names = [
            plan.move_id.to_string(),
            plan.attempt.to_string(),
            plan.guest.to_string(),
            plan.name.clone(),
        ];
        Self {
            machine: Source::new(setup),
            clock: Arc::new(clock),
            timers: Timers::default(),
            jobs: Jobs::new(),
            inputs: VecDeque::new(),
            effects: VecDeque::new(),
            hold: Hold::Running(guest),
            proofs: Proofs::default(),
            rights: Some(rights),
            line: Line::new(Side::Source, control, handle.clone()),
            outside,
            commands_open: true,
            log: Recorder::new(Side::Source, names, plan.began_unix_ms),
            stage: Stage::Hello,
            lanes: Lanes::new(lanes, handle),
            ram: None,
            copy: None,
            copy_away: false,
            cancel: Cancel::new(),
            rounds: mpsc::unbounded_channel(),
            costs: Arc::default(),
            trial: Trial::NotBegun,
            desk: Desk::new(plan.arbiter.clone(), plan.guest),
            state: None,
            owner_dropped: false,
            repeats: 0,
            peer: Peer::default(),
            trouble: String::new(),
            told: None,
            unsaid: 0,
            plan,
        }
    }

    pub(super) async fn run(mut self) -> (Outcome<G>, D) {
        self.tell_phase();
        self.open().await;
        loop {
            self.settle().await;
            if self.is_over() {
                return self.finish().await;
            }
            let happening = self.wait().await;
            self.take(happening).await;
        }
    }

    /// Lets the machine take its inputs, and does what it asks for.
    async fn settle(&mut self) {
        loop {
            if let Some(effect) = self.effects.pop_front() {
                self.perform(effect).await;
            } else if let Some(input) = self.inputs.pop_front() {
                let (machine, effects) = self.machine.step(input, self.clock.now());
                self.machine = machine;
                self.effects.extend(effects);
                self.tell_phase();
            } else {
                return;
            }
        }
    }

    async fn wait(&mut self) -> Happening<G> {
        let Self { line, outside, timers, jobs, clock, rounds, commands_open, .. } = self;
        tokio::select! {
            frame = line.next() => Happening::Frame(frame),
            command = outside.commands.recv(), if *commands_open => Happening::Command(command),
            timer = timers.next(clock.as_ref()) => Happening::Timer(timer),
            done = jobs.next() => Happening::Done(done),
            Some((report, advice)) = rounds.1.recv() => {
                Happening::Round(Box::new(report), Box::new(advice))
            }
        }
    }

    async fn take(&mut self, happening: Happening<G>) {
        match happening {
            Happening::Frame(Ok(frame)) => self.frame(frame).await,
            Happening::Frame(Err(why)) => self.link_failed(&why),
            Happening::Command(None) => self.commands_open = false,
            Happening::Command(Some(Command::Claim(claim))) => self.claim(claim).await,
            Happening::Command(Some(command)) => self.command(command),
            Happening::Timer(timer) => self.inputs.push_back(Input::Timer(timer)),
            Happening::Done(done) => self.done(done).await,
            Happening::Round(report, advice) => self.round(report, advice),
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Cancel(why) => {
                if self.is_free() {
                    self.log.cause(Reason::Cancelled, why);
                }
                self.inputs.push_back(Input::Cancel);
            }
            Command::GuestEnded(why) => {
                if self.is_free() {
                    self.log.cause(Reason::GuestEnded, why);
                }
                self.inputs.push_back(Input::GuestEnded);
            }
            Command::Heard(message) => {
                if failpoint::around(Side::Source, "hear-around", &message).is_lost() {
                    return;
                }
                self.peer.around = true;
                self.word(message);
            }
            Command::PeerGone(why) => self.peer_gone(why),
            Command::Claim(claim) => claim.not_now(),
        }
    }

    /// An operator's word. It counts only while the guest is frozen and nothing is under way.
    async fn claim(&mut self, claim: Claim) {
        let ceded = matches!(self.machine.state(), State::Ceded(_));
        if !ceded || !matches!(self.hold, Hold::Frozen(_)) {
            return claim.not_now();
        }
        let Hold::Frozen(frozen) = self.hold.take() else { return };
        let (frozen, claim, done) = self
            .with_rights(move |d| {
                let done = decide(d, &claim, |d, plan| match plan {
                    resolve::Plan::GiveUp(_) => Ok(None),
                    resolve::Plan::Run { .. } => ClaimedProof::record(d, &frozen, plan)
                        .map(Some)
                        .map_err(|why| NotClaimed::Failed(why.to_string())),
                });
                (frozen, claim, done)
            })
            .await;
        self.hold = Hold::Frozen(frozen);
        let answer = match done {
            Ok((resolve::Plan::Run { term, .. }, Some(proof))) => {
                self.owner_dropped = false;
                self.proofs.back = Back::Claimed(proof);
                self.inputs.push_back(Input::Claimed);
                Ok(Some(term))
            }
            Ok(_) => {
                self.inputs.push_back(Input::GivenUp);
                Ok(None)
            }
            Err(why) => Err(why),
        };
        let _ = claim.answer.try_send(answer);
    }

    /// Nothing comes from a dead process, and nothing reaches it: what is to be said goes around.
    fn peer_gone(&mut self, why: String) {
        self.peer.ended = true;
        self.line.drop_link(CloseCode::Failed, &why);
        self.event(Event::LinkLost(why.clone()));
        self.fail(Reason::PeerGone, why);
        self.inputs.push_back(Input::LinkLost);
    }

    /// Whether the attempt may still end freely.
    pub(super) fn is_free(&self) -> bool {
        matches!(
            self.machine.state(),
            State::Copying | State::Offering { .. } | State::Offered(_) | State::Stopping { .. }
        )
    }

    /// Copying cannot go on; after the point of doubt that is not what counts.
    pub(super) fn fail(&mut self, reason: Reason, why: impl Into<String>) {
        if self.is_free() {
            self.log.cause(reason, why);
            self.inputs.push_back(Input::CopyFailed);
        }
    }

    /// Gives the machine an input a little later, so that what fails is not tried without a pause.
    pub(super) fn later(&mut self, input: Input) {
        let clock = Arc::clone(&self.clock);
        let at = clock.now().after(RETRY_MS);
        self.jobs.start(async move {
            clock.sleep_until(at).await;
            Done::Later(input)
        });
    }

    /// Neither the opening nor the whole must take for ever. Copying has the same limit, but a
    /// target that does not answer an offer would hold the guest's log on.
    pub(super) fn limit_time(&mut self) {
        let now = self.clock.now();
        let limit = u64::try_from(self.plan.limits.timeout.as_millis()).unwrap_or(u64::MAX);
        for (limit, done) in [(limit, Done::TimeUp), (OPENING_MS, Done::OpeningOver)] {
            let (clock, at) = (Arc::clone(&self.clock), now.after(limit));
            self.jobs.start(async move {
                clock.sleep_until(at).await;
                done
            });
        }
    }

    pub(super) fn event(&self, event: Event) {
        // Nobody needs to listen.
        let _ = self.outside.events.send(event);
    }

    pub(super) fn tell_phase(&mut self) {
        let phase = match self.machine.state() {
            State::Copying if self.stage != Stage::Open => Phase::Opening,
            State::Copying => Phase::Copying,
            State::Offering { .. } | State::Offered(_) => Phase::Offering,
            State::Stopping { .. } => Phase::Stopping,
            State::InDoubt(_) | State::Deciding { .. } => Phase::InDoubt,
            State::Withdrawing { .. } => Phase::Withdrawing,
            State::Ceding(_) | State::Ceded(_) => Phase::Ceded,
            State::Returning { .. } => Phase::Returning,
            State::Auditing(_) => Phase::Auditing,
            State::Moved | State::Kept { .. } | State::Superseded(_) => return,
        };
        if self.log.phase(phase) {
            self.event(Event::Phase(phase));
        }
    }

    /// Since when the guest has been asked to stop.
    pub(super) fn begin_blackout(&mut self) {
        self.log.black(Instant::now());
    }
}
