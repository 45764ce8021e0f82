//! The daemon, acting for a guest process that is dead: it settles what that process left open.
//!
//! It exists only under the dead process's journal lock, and decides only from durable records,
//! from marks of the same boot, and from what the other side says. It never has the guest's
//! memory and never runs anything: its best outcome is a stopped guest that may be started.
//!
//! | dead | its record | known | decision |
//! |---|---|---|---|
//! | source | Offered | `ceded` mark; or target prepared, or ran | `Ceded` |
//! | source | Offered | target buried, not prepared, knows nothing; or lost its memory and no `ceded` mark in this boot | `Owner` of a new term |
//! | source | Ceded | target's ownership durable | `Moved` |
//! | source | Ceded | target never ran | `Owner` of a new term |
//! | target | Receiving | `ran` mark | `Owner` |
//! | target | Receiving | no `ran` mark in this boot | `Tombstone` |
//! | target | Receiving | rebooted; source *ceded* | `Owner` |
//! | target | Receiving | rebooted; source *withdrawn*, or rebooted and knows only that it offered | `Tombstone` |
//!
//! Everything else waits, and asks again.

mod dead_source;
mod dead_target;

use super::effect::{Effect, Input, Notice, Step, Timer};
use super::journal::{Illegal, Ledger, Mark, Marks, Record};
use super::message::{Message, SourceSays, ToSource, ToTarget, from_ledger};
use super::term::{Beside, BootId, HostId, Millis, QuestionId, Stamp, Switch, Term};

/// How often an unanswered question is asked again, in milliseconds.
pub const AGAIN_MS: u64 = 500;

/// What the daemon is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Acting {
    /// Nothing is open: it answers from the journal.
    Settled,
    /// A source is dead whose offer is open: what does the target's side know?
    AskingTarget {
        /// The offer.
        switch: Switch,
        /// The marks are of this boot, and `ceded` is not among them.
        not_ceded: bool,
    },
    /// A source is dead that ceded: did the target take it?
    AskingFate(Switch),
    /// The guest of a dead source is to stay here, under a new term.
    TakingBack {
        /// The offer.
        switch: Switch,
        /// The right that the new one replaces.
        right: Stamp,
        /// OWNER is held, and this term is being written beside the disks as one that nobody else
        /// may use any more. `None`: OWNER is being taken.
        term: Option<Term>,
    },
    /// A target's host rebooted: what does the source's side know?
    AskingSource(Switch),
    /// The arbiter is asked before a decision for a dead source.
    Deciding {
        /// The offer.
        switch: Switch,
        /// What stands there, as far as known.
        expect: Stamp,
        /// The right that we ask for.
        want: Stamp,
    },
    /// A decision is being made durable.
    Recording {
        /// The switch that it settles.
        switch: Switch,
        /// The decision.
        record: Record,
    },
    /// Another host has a better right.
    Superseded(Switch),
}

/// The daemon in the place of one dead guest process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keeper {
    ledger: Ledger,
    boot: BootId,
    question: QuestionId,
    arbiter: bool,
    acting: Acting,
}

/// What a state makes of an input. `None`: nothing changes.
type Next = Option<(Acting, Vec<Effect>)>;

impl Keeper {
    /// Takes the place of a process that is dead, in this `boot`. The caller holds the journal's
    /// lock, which is the proof of the death; `ledger` is what then stands there durably (synced
    /// by the caller: the dead process may not have come to it), `found` the marks that are
    /// there. `question` is new.
    #[must_use]
    pub fn adopt(
        ledger: Ledger,
        boot: BootId,
        found: Vec<Mark>,
        question: QuestionId,
        arbiter: bool,
        now: Millis,
    ) -> (Self, Vec<Effect>) {
        let marks = Marks::judge(&ledger, boot, found);
        let (acting, effects) = match ledger.now().copied() {
            Some(Record::Offered(s)) => dead_source::offered(&s, &marks, question, arbiter, now),
            Some(Record::Ceded(s)) => (Acting::AskingFate(s), probe(s, question, now)),
            Some(Record::Receiving(s)) => dead_target::receiving(&s, &marks, now),
            _ => (Acting::Settled, Vec::new()),
        };
        (Self { ledger, boot, question, arbiter, acting }, effects)
    }

    /// What it is about.
    pub const fn acting(&self) -> &Acting {
        &self.acting
    }

    /// The journal as it durably stands.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Takes one input. What it does not expect changes nothing.
    ///
    /// # Errors
    /// [`Illegal`] if the edge reports a record that it was not asked for.
    pub fn step(mut self, input: Input, now: Millis) -> Result<(Self, Vec<Effect>), Illegal> {
        if let Input::Recorded(record) = input {
            self.ledger = self.ledger.apply(record, self.boot)?;
        }
        if let Input::Heard(message) = input
            && self.switch() != Some(message.switch)
        {
            let answer = from_ledger(&self.ledger, &message).map(Effect::Send);
            return Ok((self, answer.into_iter().collect()));
        }
        let next = match self.acting {
            Acting::AskingTarget { switch, not_ceded } => {
                dead_source::asking(&self, switch, not_ceded, input, now)
            }
            Acting::AskingFate(switch) => dead_source::fate(&self, switch, input, now),
            Acting::TakingBack { switch, right, term } => {
                dead_source::taking_back(&self, switch, (right, term), input, now)
            }
            Acting::Deciding { switch, expect, want } => {
                dead_source::deciding(switch, (expect, want), input, now)
            }
            Acting::AskingSource(switch) => dead_target::asking(switch, input, now),
            Acting::Recording { switch, record } => self.recording(switch, record, input, now),
            Acting::Settled | Acting::Superseded(_) => None,
        };
        let (acting, effects) = next.unwrap_or((self.acting, Vec::new()));
        Ok((Self { acting, ..self }, effects))
    }

    /// The switch that is open.
    fn switch(&self) -> Option<Switch> {
        match self.acting {
            Acting::Settled => None,
            Acting::AskingTarget { switch, .. }
            | Acting::AskingFate(switch)
            | Acting::TakingBack { switch, .. }
            | Acting::AskingSource(switch)
            | Acting::Deciding { switch, .. }
            | Acting::Recording { switch, .. }
            | Acting::Superseded(switch) => Some(switch),
        }
    }

    /// Said only when it is durable; then it is said at once.
    fn recording(&self, switch: Switch, record: Record, input: Input, now: Millis) -> Next {
        let here = Acting::Recording { switch, record };
        match input {
            Input::Recorded(r) if r == record => {
                let mut effects = vec![Effect::DropOwner, Effect::DropNext];
                effects.extend(self.announce(&switch));
                if record != Record::Ceded(switch) {
                    return Some((Acting::Settled, effects));
                }
                effects.extend(probe(switch, self.question, now));
                Some((Acting::AskingFate(switch), effects))
            }
            Input::RecordFailed(_) => {
                let report = Effect::Report(Notice::Retrying(Step::Journal));
                Some((here, vec![report, Effect::Record(record)]))
            }
            _ => None,
        }
    }

    /// What the journal says of `switch`, for the other side.
    fn announce(&self, switch: &Switch) -> Option<Effect> {
        let asked = if switch.from == self.ledger.host() {
            Message::to_source(*switch, ToSource::Ask)
        } else {
            Message::to_target(*switch, ToTarget::Says(SourceSays::Ceded))
        };
        from_ledger(&self.ledger, &asked).map(Effect::Send)
    }
}

fn record(switch: Switch, record: Record) -> (Acting, Vec<Effect>) {
    (Acting::Recording { switch, record }, vec![Effect::Record(record)])
}

fn tell(switch: Switch, what: SourceSays) -> Effect {
    Effect::Send(Message::to_target(switch, ToTarget::Says(what)))
}

fn probe(switch: Switch, question: QuestionId, now: Millis) -> Vec<Effect> {
    let ask = Message::to_target(switch, ToTarget::Probe(question));
    vec![Effect::Send(ask), again(now)]
}

fn again(now: Millis) -> Effect {
    Effect::SetTimer(Timer::Again, now.after(AGAIN_MS))
}

/// The stamp of `host` in `term`.
const fn stamp(host: HostId, term: Term) -> Stamp {
    Stamp { term, host }
}

/// Above everything that the journal and the disks know.
fn new_term(ledger: &Ledger, beside: &Beside) -> Term {
    Term::above(&[ledger.highest(), beside.highest()])
}
