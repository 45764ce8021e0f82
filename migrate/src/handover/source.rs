//! The source of a move: copies, offers, stops, doubts, and ends with the guest here or there.
//!
//! ```text
//! Copying ─▶ Offering ─▶ Offered ─▶ Stopping ══▶ InDoubt ─Prepared─▶ Ceding ─▶ Ceded ─▶ Auditing
//!    │           │           │          │           │                             │
//!    └───────────┴───────────┴──────────┘ free      │ Withdrawing                 │ Returning
//!                     ▼                             ▼                             ▼
//!                   Kept ◀──────────────────────────┴─────────────────────────────┘
//! ```
//!
//! Before the double line every failure lets the guest run on at once. After it nothing does
//! except a durable `Withdrawn` and the offered term beside the disks, or the target's durable
//! word that it never ran. Nothing here reads a clock, a file or a socket.

mod decide;
mod doubt;
mod free;

use super::effect::{Effect, Input, Notice, Timer, Why};
use super::journal::{Mark, Record};
use super::message::{Body, Message, SourceSays, TargetSays, ToSource, ToTarget};
use super::term::{HostId, Millis, Stamp, Switch, Term};

/// A link that is cut for less than this ends nothing, in milliseconds.
pub const LINK_MS: u64 = 10_000;
/// How often an unanswered step is tried again, in milliseconds.
pub const AGAIN_MS: u64 = 100;

/// How long a pause may last until the offer is withdrawn, in milliseconds: four times the
/// longest wanted downtime, at least half a second. Where a longer one was foreseen and accepted,
/// that counts: a stop that does what it was expected to do is not withdrawn.
pub const fn pause_limit(max_downtime_ms: u64, accepted_ms: u64) -> u64 {
    let wanted = if accepted_ms > max_downtime_ms { accepted_ms } else { max_downtime_ms };
    let four = wanted.saturating_mul(4);
    if four > 500 { four } else { 500 }
}

/// What does not change during an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Setup {
    /// This host.
    pub host: HostId,
    /// The other host.
    pub to: HostId,
    /// The term under which this host owns the guest.
    pub owned: Term,
    /// The highest term that its journal knows.
    pub highest: Term,
    /// An arbiter decides every way out of the doubt.
    pub arbiter: bool,
    /// The user has paused the guest.
    pub paused: bool,
}

/// Where the attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The guest runs; nothing was offered.
    Copying,
    /// The guest runs; the offer is being written, beside the disks first.
    Offering {
        /// The offer.
        switch: Switch,
        /// It stands beside the disks.
        stamped: bool,
    },
    /// The guest runs; the offer is durable and was sent.
    Offered(Switch),
    /// The guest stands still, or is about to; it may still run on freely.
    Stopping {
        /// The offer.
        switch: Switch,
        /// Only the arbiter's word is missing.
        sent: bool,
    },
    /// The target may be, or become, prepared. Nothing runs here.
    InDoubt(Switch),
    /// The arbiter is asked to settle the doubt.
    Deciding {
        /// The offer.
        switch: Switch,
        /// What we ask it for: to give the guest away.
        cede: bool,
    },
    /// The decision to keep the guest is being made durable: journal, then disks.
    Withdrawing {
        /// The offer.
        switch: Switch,
        /// The journal has it.
        recorded: bool,
        /// Why.
        why: Why,
    },
    /// The `ceded` mark is being set.
    Ceding(Switch),
    /// The guest is the target's. We keep its frozen memory.
    Ceded(Switch),
    /// The target never ran it: we take it back under a new term.
    Returning {
        /// The offer.
        switch: Switch,
        /// How far.
        step: Return,
    },
    /// The target has confirmed; the frozen memory is compared with what was sent.
    Auditing(Switch),
    /// The end: the guest is the target's.
    Moved,
    /// The end: the guest is ours (it runs, unless it ended by itself).
    Kept {
        /// The offer that was withdrawn, if there was one.
        switch: Option<Switch>,
        /// It may be said: the withdrawal is durable.
        said: bool,
    },
    /// Another host has a better right. The frozen memory waits for an operator.
    Superseded(Switch),
}

/// The way back from [`State::Ceded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Return {
    /// Taking OWNER.
    Locking,
    /// Writing the new term beside the disks as one that nobody else may use any more.
    Reserving(Term),
    /// Asking the arbiter for this right in place of the target's.
    Deciding(Term),
    /// Recording the new term.
    Recording(Term),
    /// Writing it beside the disks.
    Stamping(Term),
}

/// The source of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    setup: Setup,
    /// Longest pause, in milliseconds. 0 until a switch is asked for.
    pause_ms: u64,
    state: State,
}

/// What a state makes of an input. `None`: nothing changes.
type Next = Option<(State, Vec<Effect>)>;

impl Source {
    /// An attempt begins; the guest runs.
    pub const fn new(setup: Setup) -> Self {
        Self { setup, pause_ms: 0, state: State::Copying }
    }

    /// Where it stands.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// What it was begun with.
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Takes one input. What the state does not expect changes nothing.
    #[must_use]
    pub fn step(self, input: Input, now: Millis) -> (Self, Vec<Effect>) {
        if let Input::Heard(Message { switch, .. }) = input
            && self.switch() != Some(&switch)
        {
            return (self, Vec::new());
        }
        let Self { setup, mut pause_ms, state } = self;
        if let (State::Copying, Input::Switch { pause_ms: accepted, .. }) = (state, input) {
            pause_ms = accepted;
        }
        let limit = now.after(pause_ms);
        let next = match state {
            State::Copying | State::Offering { .. } | State::Offered(_) => {
                free::running(&setup, state, input, now, limit)
            }
            State::Stopping { switch, sent } => free::stopping(&setup, switch, sent, input, limit),
            State::InDoubt(switch) => doubt::in_doubt(&setup, switch, input, now),
            State::Deciding { switch, cede } => decide::deciding(switch, cede, input, now),
            State::Withdrawing { switch, recorded, why } => {
                doubt::withdrawing(switch, recorded, why, input, now)
            }
            State::Ceding(switch) => doubt::ceding(switch, input, now),
            State::Ceded(switch) => doubt::ceded(switch, input, now),
            State::Returning { switch, step } => {
                decide::returning(&setup, switch, step, input, now)
            }
            State::Auditing(_) => audited(input),
            State::Kept { switch: Some(switch), said } => kept(switch, said, input),
            State::Kept { switch: None, .. } | State::Moved | State::Superseded(_) => None,
        };
        let (state, effects) = next.unwrap_or((state, Vec::new()));
        (Self { setup, pause_ms, state }, effects)
    }

    /// The switch in question.
    pub const fn switch(&self) -> Option<&Switch> {
        match &self.state {
            State::Copying | State::Moved => None,
            State::Kept { switch, .. } => switch.as_ref(),
            State::Offering { switch, .. }
            | State::Offered(switch)
            | State::Stopping { switch, .. }
            | State::InDoubt(switch)
            | State::Deciding { switch, .. }
            | State::Withdrawing { switch, .. }
            | State::Ceding(switch)
            | State::Ceded(switch)
            | State::Returning { switch, .. }
            | State::Auditing(switch)
            | State::Superseded(switch) => Some(switch),
        }
    }
}

fn says(switch: Switch, what: SourceSays) -> Effect {
    Effect::Send(Message::to_target(switch, ToTarget::Says(what)))
}

fn again(now: Millis) -> Effect {
    Effect::SetTimer(Timer::Again, now.after(AGAIN_MS))
}

/// The doubt ends with the guest given away: first the mark, everything else after it.
fn cede(switch: Switch) -> (State, Vec<Effect>) {
    (State::Ceding(switch), vec![Effect::Mark(Mark::Ceded(switch.id))])
}

/// The doubt ends with the guest kept: first the record, everything else after it.
fn withdraw(switch: Switch, why: Why) -> (State, Vec<Effect>) {
    let state = State::Withdrawing { switch, recorded: false, why };
    (state, vec![Effect::Record(Record::Withdrawn(switch))])
}

/// Asks the arbiter, where `expect` stands, for one of the two ways out of the doubt.
fn ask_arbiter(switch: Switch, cede: bool, expect: Stamp, now: Millis) -> (State, Vec<Effect>) {
    let want = if cede { switch.moved() } else { switch.withdrawn() };
    let ask = Effect::CompareAndSet { expect, want };
    (State::Deciding { switch, cede }, vec![ask, again(now)])
}

/// The target may have been told nothing yet, or asks again.
fn kept(switch: Switch, said: bool, input: Input) -> Next {
    let withdrawn = Record::Withdrawn(switch);
    match input {
        Input::Recorded(r) if r == withdrawn => {
            let state = State::Kept { switch: Some(switch), said: true };
            Some((state, vec![says(switch, SourceSays::Withdrawn)]))
        }
        Input::RecordFailed(r) if r == withdrawn && !said => {
            Some((State::Kept { switch: Some(switch), said }, vec![Effect::Record(withdrawn)]))
        }
        Input::Heard(Message { body: Body::ToSource(what), .. }) if said && waits(what) => {
            let answer = vec![says(switch, SourceSays::Withdrawn)];
            Some((State::Kept { switch: Some(switch), said }, answer))
        }
        _ => None,
    }
}

/// Whoever says this waits for a word of the source.
const fn waits(what: ToSource) -> bool {
    matches!(what, ToSource::Ask | ToSource::Says(TargetSays::Ready | TargetSays::Prepared, _))
}

fn audited(input: Input) -> Next {
    let Input::Audited { same } = input else { return None };
    Some((State::Moved, vec![Effect::Discard, Effect::Report(Notice::Moved { audited: same })]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::term::{Beside, SwitchId};

    const HERE: HostId = HostId(1);
    const THERE: HostId = HostId(2);

    /// The deadlines that are set on the way into the doubt, at the time 0.
    fn deadlines(pause_ms: u64) -> Vec<Millis> {
        let (owned, highest) = (Term::FIRST, Term::FIRST);
        let setup = Setup { host: HERE, to: THERE, owned, highest, arbiter: false, paused: false };
        let ours = Stamp { term: owned, host: HERE };
        let beside = Beside { owner: ours, offered: Term::NONE };
        let mut source = Source::new(setup);
        let mut effects = Vec::new();
        let mut take = |source: Source, input| {
            let (source, new) = source.step(input, Millis(0));
            effects.extend(new);
            source
        };
        source = take(source, Input::Switch { id: SwitchId(7), beside, pause_ms });
        source = take(source, Input::OfferStamped);
        let switch = *source.switch().unwrap();
        source = take(source, Input::Recorded(Record::Offered(switch)));
        let ready = Message::to_source(switch, ToSource::Says(TargetSays::Ready, None));
        source = take(source, Input::Heard(ready));
        source = take(source, Input::Paused);
        source = take(source, Input::LastRoundDone);
        assert_eq!(source.state(), &State::InDoubt(switch));
        effects
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::SetTimer(Timer::Deadline, at) => Some(at),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_pause_may_last_as_long_as_was_accepted() {
        assert_eq!(deadlines(1234), [Millis(1234); 2]);
        assert_eq!(pause_limit(300, 0), 1200);
        assert_eq!(pause_limit(10, 20), 500);
        assert_eq!(pause_limit(300, 9000), 36_000);
        assert_eq!(pause_limit(300, u64::MAX), u64::MAX);
    }
}
