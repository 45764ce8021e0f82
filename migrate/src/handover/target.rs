//! The target of a move: fills, rehearses, takes part in an offer, becomes prepared, and runs the
//! guest or buries the switch.
//!
//! ```text
//! Filling ─Offer─▶ Accepting ─▶ Receiving ─▶ Restoring ─▶ Prepared ─Commit─▶ Starting ─▶ Running
//!    ▼                 │            │            │            │                  ▼
//! NotTaken             └────────────┴────────────┴── Burying ─┘              Superseded
//!                                                       ▼
//!                                                     Buried
//! ```
//!
//! Once prepared it does nothing by timeout: it waits, and asks. Only *withdrawn* lets it bury a
//! prepared switch. Nothing here reads a clock, a file or a socket.

mod receive;
mod start;

use super::effect::{Effect, Input, Notice, Timer, Why};
use super::journal::Record;
use super::message::{Body, Message, SourceSays, TargetSays, ToSource, ToTarget};
use super::term::{HostId, Millis, QuestionId, Switch, Term};

/// A receiver whose link has been gone for this long ends, if it has not recorded an offer, in
/// milliseconds.
pub const ORPHAN_MS: u64 = 60_000;
/// How often a prepared target asks, and an unanswered step is tried again, in milliseconds.
pub const AGAIN_MS: u64 = 200;

/// What does not change during an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Setup {
    /// This host.
    pub host: HostId,
    /// The highest term that its journal knows.
    pub highest: Term,
}

/// Where the attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Memory arrives, trial states are restored; nothing was offered.
    Filling,
    /// An offer came: NEXT is being taken, then the record is being written.
    Accepting {
        /// The offer.
        switch: Switch,
        /// NEXT is held.
        locked: bool,
    },
    /// Takes part, durably. Data may still arrive, unless all streams have ended.
    Receiving {
        /// The offer.
        switch: Switch,
        /// Nothing more can arrive.
        ended: bool,
    },
    /// Everything is here and is being restored.
    Restoring(Arrived),
    /// Restored and verified: this host could run the guest.
    Prepared(Arrived),
    /// The guest is ours: disks, mark, run.
    Starting(Arrived, Start),
    /// It was let run; the record follows.
    Running {
        /// The switch that brought it.
        switch: Switch,
        /// Our ownership is durable.
        durable: bool,
    },
    /// The tombstone is being written.
    Burying(Switch, Why),
    /// The end: this switch will never run here.
    Buried(Switch),
    /// The end: nothing was recorded, nothing is left.
    NotTaken,
    /// Another host has a better right. The memory waits for an operator.
    Superseded(Switch),
}

/// A guest that is here in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arrived {
    /// The switch that brought it.
    pub switch: Switch,
    /// Its user had paused it.
    pub paused: bool,
}

/// How far a start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Start {
    /// Taking OWNER.
    Locking,
    /// Writing the term beside the disks.
    Stamping,
    /// Setting the `ran` mark.
    Marking,
}

/// The target of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    setup: Setup,
    state: State,
}

/// What a state makes of an input. `None`: nothing changes.
type Next = Option<(State, Vec<Effect>)>;

impl Target {
    /// An attempt begins: an empty guest waits for its memory.
    pub const fn new(setup: Setup) -> Self {
        Self { setup, state: State::Filling }
    }

    /// Where it stands.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The switch in question.
    pub const fn switch(&self) -> Option<&Switch> {
        match &self.state {
            State::Filling | State::NotTaken => None,
            State::Accepting { switch, .. }
            | State::Receiving { switch, .. }
            | State::Running { switch, .. }
            | State::Burying(switch, _)
            | State::Buried(switch)
            | State::Superseded(switch) => Some(switch),
            State::Restoring(arrived) | State::Prepared(arrived) | State::Starting(arrived, _) => {
                Some(&arrived.switch)
            }
        }
    }

    /// Takes one input. What the state does not expect changes nothing.
    #[must_use]
    pub fn step(self, input: Input, now: Millis) -> (Self, Vec<Effect>) {
        let Self { setup, state } = self;
        let next = match input {
            Input::Heard(Message { switch, body: Body::ToTarget(what) }) => {
                match self.switch().copied() {
                    Some(ours) if ours == switch => heard(state, switch, what),
                    Some(_) => None,
                    None => receive::first_heard(&setup, state, switch, what),
                }
            }
            Input::Heard(_) => None,
            _ => match state {
                State::Filling => receive::filling(input, now),
                State::Accepting { switch, locked } => {
                    receive::accepting(switch, locked, input, now)
                }
                State::Receiving { switch, ended } => receive::receiving(switch, ended, input, now),
                State::Restoring(arrived) => receive::restoring(arrived, input, now),
                State::Prepared(arrived) => prepared(arrived, input, now),
                State::Starting(arrived, start) => start::starting(arrived, start, input, now),
                State::Running { switch, durable } => start::running(switch, durable, input),
                State::Burying(switch, why) => burying(switch, why, input),
                State::Buried(_) | State::NotTaken | State::Superseded(_) => None,
            },
        };
        let (state, effects) = next.unwrap_or((state, Vec::new()));
        (Self { setup, state }, effects)
    }
}

/// The source's side speaks about our switch.
fn heard(state: State, switch: Switch, what: ToTarget) -> Next {
    match (state, what) {
        (_, ToTarget::Probe(question)) => {
            Some((state, vec![says(switch, standing(&state)?, Some(question))]))
        }
        (State::Receiving { ended: false, .. }, ToTarget::LastPiece { paused }) => {
            Some((State::Restoring(Arrived { switch, paused }), vec![Effect::Restore]))
        }
        (State::Prepared(arrived), ToTarget::Says(SourceSays::Ceded)) => {
            Some((State::Starting(arrived, Start::Locking), vec![Effect::TakeOwner]))
        }
        (
            State::Receiving { .. } | State::Restoring(_) | State::Prepared(_),
            ToTarget::Says(SourceSays::Withdrawn),
        ) => Some(bury(switch, Why::Withdrawn)),
        // Said again until it is answered; the answer comes when there is one.
        (State::Starting(..), ToTarget::Says(SourceSays::Ceded)) => None,
        (State::Prepared(_), ToTarget::Says(SourceSays::Undecided | SourceSays::OnlyOffered))
        | (_, ToTarget::Offer | ToTarget::LastPiece { .. } | ToTarget::Says(SourceSays::Ceded)) => {
            match standing(&state)? {
                TargetSays::NotYet if what == ToTarget::Offer && is_receiving(&state) => {
                    Some((state, vec![says(switch, TargetSays::Ready, None)]))
                }
                TargetSays::NotYet => None,
                known => Some((state, vec![says(switch, known, None)])),
            }
        }
        _ => None,
    }
}

fn is_receiving(state: &State) -> bool {
    matches!(state, State::Receiving { .. })
}

/// What may be said at any time. `None`: nothing true can be said yet.
fn standing(state: &State) -> Option<TargetSays> {
    Some(match state {
        State::Receiving { ended: true, .. } => TargetSays::NotPrepared,
        State::Receiving { ended: false, .. } | State::Accepting { .. } | State::Restoring(_) => {
            TargetSays::NotYet
        }
        State::Prepared(_) | State::Starting(..) => TargetSays::Prepared,
        State::Running { durable, .. } => TargetSays::Ran { durable: *durable },
        State::Buried(_) => TargetSays::NeverRan,
        State::Filling | State::NotTaken | State::Burying(..) | State::Superseded(_) => {
            return None;
        }
    })
}

/// It waits for a word of the source's side; or of an operator, if that is gone for good.
fn prepared(arrived: Arrived, input: Input, now: Millis) -> Next {
    let Arrived { switch, paused } = arrived;
    match input {
        Input::Claimed => {
            let run = vec![Effect::Run { paused }, Effect::DropNext];
            let effects = run.into_iter().chain([Effect::Report(Notice::Arrived)]).collect();
            Some((State::Running { switch, durable: true }, effects))
        }
        Input::GivenUp => Some(bury(switch, Why::Operator)),
        _ => asks(State::Prepared(arrived), input, now),
    }
}

/// Asks until it is told.
fn asks(state: State, input: Input, now: Millis) -> Next {
    let Input::Timer(Timer::Again) = input else { return None };
    let switch = match state {
        State::Receiving { switch, .. } => switch,
        State::Restoring(arrived) | State::Prepared(arrived) => arrived.switch,
        _ => return None,
    };
    Some((state, vec![Effect::Send(Message::to_source(switch, ToSource::Ask)), again(now)]))
}

/// First the record, everything else after it.
fn bury(switch: Switch, why: Why) -> (State, Vec<Effect>) {
    (State::Burying(switch, why), vec![Effect::Record(Record::Tombstone(switch))])
}

fn burying(switch: Switch, why: Why, input: Input) -> Next {
    let tombstone = Record::Tombstone(switch);
    match input {
        Input::Recorded(r) if r == tombstone => {
            let effects = vec![
                Effect::Discard,
                Effect::DropNext,
                says(switch, TargetSays::NeverRan, None),
                Effect::Report(Notice::NotTaken(why)),
            ];
            Some((State::Buried(switch), effects))
        }
        Input::RecordFailed(_) => {
            Some((State::Burying(switch, why), vec![Effect::Record(tombstone)]))
        }
        _ => None,
    }
}

fn says(switch: Switch, what: TargetSays, question: Option<QuestionId>) -> Effect {
    Effect::Send(Message::to_source(switch, ToSource::Says(what, question)))
}

fn again(now: Millis) -> Effect {
    Effect::SetTimer(Timer::Again, now.after(AGAIN_MS))
}
