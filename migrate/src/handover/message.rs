//! What the two sides of a switch say to each other. A side is the guest process, or the daemon
//! that acts for it once it is dead; the words are the same.
//!
//! Values only, for logs, simulation and the wire. The process that really sends a
//! [`SourceSays::Ceded`] needs a proof for it, see [`super::proof`].

use super::journal::{Ended, Ledger, Record};
use super::term::{QuestionId, Switch};

/// One message about one switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// The switch.
    pub switch: Switch,
    /// What is said.
    pub body: Body,
}

/// To whom, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Body {
    /// To the target's side.
    ToTarget(ToTarget),
    /// To the source's side.
    ToSource(ToSource),
}

/// What the source's side says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToTarget {
    /// Take part? Said when the offer is durable.
    Offer,
    /// The last piece that the target needs to become prepared. Saying it is the point of doubt.
    LastPiece {
        /// The user had paused the guest: it arrives paused.
        paused: bool,
    },
    /// Where the switch stands.
    Says(SourceSays),
    /// Where do you stand? Asked by a daemon after the source's death was proved.
    Probe(QuestionId),
}

/// Where the source's side stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceSays {
    /// The commit: the guest is the target's.
    Ceded,
    /// Wait.
    Undecided,
    /// The source keeps the guest. Said only when that is durable.
    Withdrawn,
    /// The source's host has rebooted and knows only that it offered: its marks are gone. As
    /// long as the target's side may still run the guest, it waits.
    OnlyOffered,
}

/// What the target's side says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToSource {
    /// Where do you stand?
    Ask,
    /// Where the target's side stands, and in answer to which question.
    Says(TargetSays, Option<QuestionId>),
}

/// Where the target's side stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetSays {
    /// Takes part: its `Receiving` is durable.
    Ready,
    /// Does not take part in this offer and recorded nothing of it.
    Refuses(Refusal),
    /// Not prepared yet, but may become so.
    NotYet,
    /// Has everything, restored and verified. It runs on *ceded* and gives up on *withdrawn*.
    Prepared,
    /// Alive, not prepared, and all streams of the switch have ended.
    NotPrepared,
    /// Runs, or ran, the guest.
    Ran {
        /// Its ownership is durable.
        durable: bool,
    },
    /// Will never run this switch. Said only when that is durable.
    NeverRan,
    /// This host never recorded the switch.
    NeverRecorded,
    /// Its host rebooted: the memory is gone, and whether it ran is not known.
    LostMemory,
}

/// Why a target does not take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// It knows this or a later term already.
    OldTerm,
    /// The offer is for another host, or out of all bounds.
    Malformed,
    /// Somebody else holds the NEXT lock of a disk.
    DiskTaken,
    /// Another host's term beside a disk is not older than the offer.
    DiskNewer,
    /// The rehearsal found the guest incompatible.
    Incompatible,
    /// Its journal cannot be written.
    Journal,
    /// It is not (or no longer) waiting for an offer.
    NotWaiting,
}

impl Message {
    /// From the source's side.
    pub const fn to_target(switch: Switch, what: ToTarget) -> Self {
        Self { switch, body: Body::ToTarget(what) }
    }

    /// From the target's side.
    pub const fn to_source(switch: Switch, what: ToSource) -> Self {
        Self { switch, body: Body::ToSource(what) }
    }
}

/// The answer of a host to a message about a switch that is settled there, or of which it knows
/// nothing. `None`: the switch is open here, or the message asks nothing.
pub fn from_ledger(ledger: &Ledger, heard: &Message) -> Option<Message> {
    let switch = heard.switch;
    let ended = ledger.ended(switch.id);
    match heard.body {
        Body::ToSource(ToSource::Ask) => {
            let says = match ended? {
                Ended::Withdrawn => SourceSays::Withdrawn,
                Ended::Ceded => SourceSays::Ceded,
                Ended::Ran | Ended::NeverRan => return None,
            };
            Some(Message::to_target(switch, ToTarget::Says(says)))
        }
        Body::ToTarget(what) => {
            let question = match what {
                ToTarget::Probe(id) => Some(id),
                ToTarget::Says(SourceSays::Ceded) => None,
                _ => return None,
            };
            let says = match ended {
                Some(Ended::Ran) => TargetSays::Ran { durable: true },
                Some(Ended::NeverRan) => TargetSays::NeverRan,
                Some(_) => return None,
                None if ledger.now().and_then(Record::switch).is_some_and(|s| *s == switch) => {
                    return None;
                }
                // Its past is bounded: it forgets only switches that both sides settled.
                None if ledger.highest() >= switch.term => return None,
                None => TargetSays::NeverRecorded,
            };
            Some(Message::to_source(switch, ToSource::Says(says, question)))
        }
        Body::ToSource(ToSource::Says(..)) => None,
    }
}
