//! The process that has the guest: opens the attempt, copies while the guest runs, rehearses,
//! offers, stops the guest, and ends with it kept or given away.
//!
//! It never runs a guest without the proof that its state asks for, and never decides.

mod arbiter;
mod copy;
mod effects;
mod finish;
mod hear;
mod hold;
mod session;
mod switch;

use std::sync::Arc;

use self::session::Session;
use super::edge::{Clock, Outside};
use super::report::{Reason, Report};
use crate::converge::Limits;
use crate::handover::proof::{Frozen, InDoubt};
use crate::handover::term::{HostId, SwitchId, Term};
use crate::port::{Arbiter, Rights, RunningGuest};
use crate::precopy::OnStall;
use crate::transport::link::SourceLink;
use crate::wire::{AttemptId, GuestId, MoveId};

/// What is to be moved, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The move, as its user knows it.
    pub move_id: MoveId,
    /// This attempt of it.
    pub attempt: AttemptId,
    /// The guest.
    pub guest: GuestId,
    /// Its name; at most 63 bytes of it are sent.
    pub name: String,
    /// Its definition, at most 64 KiB, which this crate does not look into.
    pub definition: Vec<u8>,
    /// Program and release, for the other side's messages.
    pub program: String,
    /// Key of the digests: 32 random bytes, new for this attempt.
    pub digest_key: [u8; 32],
    /// Name of the switch that this attempt offers: random, new.
    pub switch: SwitchId,
    /// This host.
    pub host: HostId,
    /// The other host.
    pub to: HostId,
    /// The term under which this host owns the guest.
    pub owned: Term,
    /// The highest term that its journal knows.
    pub highest: Term,
    /// Who has the last word on every way out of the doubt, if anybody.
    pub arbiter: Option<Arc<dyn Arbiter>>,
    /// The user has paused the guest: it arrives paused.
    pub paused: bool,
    /// Longest blackout, longest time for everything.
    pub limits: Limits,
    /// What to do when rounds do not shrink.
    pub on_stall: OnStall,
    /// Compare the frozen memory with what was sent, after the move.
    pub audit: bool,
    /// Now, in milliseconds since 1970, for the report.
    pub began_unix_ms: u64,
}

/// A guest that stayed.
#[derive(Debug)]
pub enum Kept<G: RunningGuest> {
    /// It runs, or is paused by its user, as before. If the reason is that it ended by itself, it
    /// is what is left of it.
    Running(G),
    /// It is ours, but could not be let run.
    Paused {
        /// The guest.
        guest: G::Paused,
        /// Why; empty if it ended by itself while it was being stopped.
        why: String,
    },
    /// It ended by itself just when it was to be stopped.
    Ended,
}

/// A guest whose owner is another host, as it seems: only an operator can let it run here.
#[derive(Debug)]
pub enum Held<P> {
    /// Nothing was decided here.
    InDoubt(InDoubt<P>),
    /// It was given away.
    Frozen(Frozen<P>),
}

/// How it ended.
#[derive(Debug)]
#[must_use]
pub enum Outcome<G: RunningGuest> {
    /// The guest is still here. The dirty log is off.
    Kept {
        /// The guest.
        guest: Kept<G>,
        /// Why, for programs.
        reason: Reason,
        /// Why, for people.
        text: String,
        /// The report.
        report: Box<Report>,
    },
    /// The guest is the target's, confirmed and audited; what was left of it here is gone.
    Moved {
        /// The report.
        report: Box<Report>,
    },
    /// Another host has a better right. The memory is kept for an operator.
    Superseded {
        /// The frozen guest.
        guest: Held<G::Paused>,
        /// The report.
        report: Box<Report>,
    },
}

/// Moves `guest` over `link`, which was dialled to the receiving process. Gives `rights` back.
///
/// The guest must hold OWNER of its disks. Cancelled, refused, failed: the guest comes back at
/// full speed.
pub async fn run<G, D, C>(
    link: SourceLink,
    plan: Plan,
    guest: G,
    rights: D,
    clock: C,
    outside: Outside,
) -> (Outcome<G>, D)
where
    G: RunningGuest,
    D: Rights,
    C: Clock,
{
    Session::new(link, plan, guest, rights, clock, outside).run().await
}
