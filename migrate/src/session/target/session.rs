//! The loop: one happening at a time is turned into inputs of the machine, and what the machine
//! asks for is done before the next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::claim::{Claim, NotClaimed, decide};
use super::super::edge::{Clock, Outside};
use super::super::line::{Line, Peer, PumpTalk};
use super::super::record::Recorder;
use super::super::report::{Phase, Reason, Side};
use super::super::wait::{Jobs, Timers, blocking};
use super::super::{Command, Event, OPENING_MS};
use super::{Expected, Outcome};
use crate::failpoint;
use crate::handover::effect::{Effect, Input, Timer};
use crate::handover::journal::Record;
use crate::handover::resolve::Plan;
use crate::handover::target::{Setup, State, Target};
use crate::port::{PausedGuest, Receiver, Rehearsal, Rights};
use crate::pump::{RecvError, TalkError, Target as Pump};
use crate::transport::link::{FrameReceiver, Link, TargetLink};
use crate::wire::{Message, control};

/// A failed step of the journal is reported to the machine this much later where it would be
/// tried again at once.
const RETRY_MS: u64 = 100;
/// What a source sent before it died has arrived after this time: nobody sends it again.
const DRAIN_MS: u64 = 500;

/// What the conversation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Hello,
    Offer,
    Layout,
    Open,
}

/// What became of the place for a guest.
pub(super) enum Hold<R: Receiver> {
    /// Memory arrives.
    Empty(R),
    /// A thread works on it, and gives it back.
    Away,
    /// Restored; it stands still.
    Here(R::Paused),
    /// It runs.
    Runs(<R::Paused as PausedGuest>::Running),
    /// It is ours, and could not be let run.
    Stuck(R::Paused, String),
    /// Nothing is left.
    Gone,
}

impl<R: Receiver> Hold<R> {
    /// Takes it, to give it to a thread.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Away)
    }
}

/// A pump and its end of the conversation.
pub(super) type Pumping<R> = Box<(Pump<<R as Receiver>::Ram>, PumpTalk)>;

/// Work that goes on beside the machine, when it is done. Whatever it holds comes back.
pub(super) enum Done<R: Receiver> {
    Conversed(Pumping<R>, Result<Message, RecvError>),
    Rehearsed(R, Result<Rehearsal, R::Error>),
    Restored(Result<R::Paused, R::Error>, Duration),
    /// An input that was put off.
    Later(Input),
    /// The opening has taken too long, if it is not done.
    OpeningOver,
    /// Of a source that is dead nothing comes any more.
    PeerSilent(String),
}

enum Happening<R: Receiver> {
    Frame(Result<Bytes, TalkError>),
    Command(Option<Command>),
    Timer(Timer),
    Done(Done<R>),
}

/// A target's session.
pub(super) struct Session<R: Receiver, D, C> {
    pub(super) expected: Expected,
    pub(super) machine: Target,
    pub(super) clock: Arc<C>,
    pub(super) timers: Timers,
    pub(super) jobs: Jobs<Done<R>>,
    pub(super) inputs: VecDeque<Input>,
    pub(super) effects: VecDeque<Effect>,
    pub(super) hold: Hold<R>,
    /// Away only while a thread uses it.
    pub(super) rights: Option<D>,
    pub(super) line: Line,
    pub(super) outside: Outside,
    commands_open: bool,
    pub(super) log: Recorder,
    pub(super) stage: Stage,
    /// Until memory may come.
    pub(super) lanes: Vec<FrameReceiver>,
    /// While no conversation about rounds goes on.
    pub(super) pump: Option<Pumping<R>>,
    pub(super) pump_away: bool,
    /// All memory is here and is what the source says.
    pub(super) verified: bool,
    /// The state of the last piece, until it is restored.
    pub(super) state: Option<control::State>,
    /// How often an answer was asked for in vain.
    pub(super) repeats: u32,
    pub(super) peer: Peer,
    /// Tombstones that could not be written.
    pub(super) unburied: u32,
    /// What went wrong last at a durable step, for people.
    pub(super) trouble: String,
}

impl<R: Receiver, D: Rights, C: Clock> Session<R, D, C> {
    pub(super) fn new(
        link: TargetLink,
        expected: Expected,
        receiver: R,
        rights: D,
        clock: C,
        outside: Outside,
    ) -> Self {
        let Link { control, urgent: _, lanes, handle } = link;
        let names = [
            expected.move_id.to_string(),
            expected.attempt.to_string(),
            expected.guest.to_string(),
            expected.name.clone(),
        ];
        Self {
            machine: Target::new(Setup { host: expected.host, highest: expected.highest }),
            clock: Arc::new(clock),
            timers: Timers::default(),
            jobs: Jobs::new(),
            inputs: VecDeque::new(),
            effects: VecDeque::new(),
            hold: Hold::Empty(receiver),
            rights: Some(rights),
            line: Line::new(Side::Target, control, handle),
            outside,
            commands_open: true,
            log: Recorder::new(Side::Target, names, expected.began_unix_ms),
            stage: Stage::Hello,
            lanes,
            pump: None,
            pump_away: false,
            verified: false,
            state: None,
            repeats: 0,
            peer: Peer::default(),
            unburied: 0,
            trouble: String::new(),
            expected,
        }
    }

    pub(super) async fn run(mut self) -> (Outcome<R::Paused>, D) {
        self.tell_phase();
        self.limit_opening();
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

    async fn wait(&mut self) -> Happening<R> {
        let Self { line, outside, timers, jobs, clock, commands_open, .. } = self;
        tokio::select! {
            frame = line.next() => Happening::Frame(frame),
            command = outside.commands.recv(), if *commands_open => Happening::Command(command),
            timer = timers.next(clock.as_ref()) => Happening::Timer(timer),
            done = jobs.next() => Happening::Done(done),
        }
    }

    async fn take(&mut self, happening: Happening<R>) {
        match happening {
            Happening::Frame(Ok(frame)) => self.frame(frame).await,
            Happening::Frame(Err(why)) => self.link_failed(&why),
            Happening::Command(None) => self.commands_open = false,
            Happening::Command(Some(Command::Claim(claim))) => self.claim(claim).await,
            Happening::Command(Some(command)) => self.command(command),
            Happening::Timer(timer) => self.inputs.push_back(Input::Timer(timer)),
            Happening::Done(done) => self.done(done).await,
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Cancel(why) => {
                if self.is_free() {
                    self.log.cause(Reason::Cancelled, why);
                } else {
                    self.event(Event::TooLateToCancel);
                }
                self.inputs.push_back(Input::Cancel);
            }
            // It is not ours yet, or its own process knows.
            Command::GuestEnded(_) => {}
            Command::Claim(claim) => claim.not_now(),
            Command::Heard(message) => {
                if failpoint::around(Side::Target, "hear-around", &message).is_lost() {
                    return;
                }
                self.peer.around = true;
                self.word(message);
            }
            Command::PeerGone(why) => {
                // Nobody waits to hear how this ends.
                self.peer.ended = true;
                self.end_attempt(Reason::PeerGone, why.clone());
                self.after(DRAIN_MS, Done::PeerSilent(why));
            }
        }
    }

    /// An operator's word. It counts only while everything is here and waits for the source.
    async fn claim(&mut self, claim: Claim) {
        if !matches!((self.machine.state(), &self.hold), (State::Prepared(_), Hold::Here(_))) {
            return claim.not_now();
        }
        let Some(mut rights) = self.rights.take() else { return claim.not_now() };
        let (rights, claim, done) = blocking(move || {
            let failed = |e: D::Error| NotClaimed::Failed(e.to_string());
            let done = decide(&mut rights, &claim, |d, plan| match plan {
                Plan::GiveUp(_) => Ok(()),
                Plan::Run { term, .. } => {
                    d.stamp(*term).map_err(failed)?;
                    d.record(Record::Owner { term: *term }).map_err(failed)
                }
            });
            (rights, claim, done)
        })
        .await;
        self.rights = Some(rights);
        let answer = match done {
            Ok((Plan::Run { term, .. }, ())) => {
                self.inputs.push_back(Input::Claimed);
                Ok(Some(term))
            }
            Ok((Plan::GiveUp(_), ())) => {
                self.inputs.push_back(Input::GivenUp);
                Ok(None)
            }
            Err(why) => Err(why),
        };
        let _ = claim.answer.try_send(answer);
    }

    /// Nothing was offered: the attempt may end without a trace.
    pub(super) fn is_free(&self) -> bool {
        matches!(self.machine.state(), State::Filling | State::NotTaken)
    }

    /// The attempt ends here, if nothing was offered.
    pub(super) fn end_attempt(&mut self, reason: Reason, why: impl Into<String>) {
        if self.is_free() {
            self.log.cause(reason, why);
            self.inputs.push_back(Input::AttemptEnded);
        }
    }

    /// Gives the machine an input a little later, so that what fails is not tried without a pause.
    pub(super) fn later(&mut self, input: Input) {
        self.after(RETRY_MS, Done::Later(input));
    }

    fn limit_opening(&mut self) {
        self.after(OPENING_MS, Done::OpeningOver);
    }

    fn after(&mut self, ms: u64, done: Done<R>) {
        let at = self.clock.now().after(ms);
        let clock = Arc::clone(&self.clock);
        self.jobs.start(async move {
            clock.sleep_until(at).await;
            done
        });
    }

    pub(super) fn event(&self, event: Event) {
        // Nobody needs to listen.
        let _ = self.outside.events.send(event);
    }

    pub(super) fn tell_phase(&mut self) {
        let phase = match self.machine.state() {
            State::Filling if self.stage != Stage::Open => Phase::Opening,
            State::Filling => Phase::Filling,
            State::Accepting { .. } | State::Receiving { .. } => Phase::Receiving,
            State::Restoring(_) => Phase::Restoring,
            State::Prepared(_) => Phase::Prepared,
            State::Starting(..) => Phase::Starting,
            State::Running { .. } => Phase::Running,
            State::Burying(..) => Phase::Burying,
            State::Buried(_) | State::NotTaken | State::Superseded(_) => return,
        };
        if self.log.phase(phase) {
            self.event(Event::Phase(phase));
        }
    }
}
