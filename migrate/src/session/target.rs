//! The process that receives a guest: agrees to what the daemon announced, takes memory, tries
//! the state, takes part in an offer, restores, and runs the guest or buries the switch.
//!
//! It believes nothing that a peer says without checking it, and runs nothing before the word of
//! the source's side and its own mark.

mod effects;
mod finish;
mod hear;
mod session;
mod start;

use self::session::Session;
use super::edge::{Clock, Outside};
use super::report::{Reason, Report};
use crate::handover::term::{HostId, Term};
use crate::port::{PausedGuest, Receiver, Rights};
use crate::transport::link::TargetLink;
use crate::unit::Layout;
use crate::wire::{AttemptId, GuestId, MoveId};

/// What the daemons agreed on: anything else is refused.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The move.
    pub move_id: MoveId,
    /// This attempt of it.
    pub attempt: AttemptId,
    /// The guest.
    pub guest: GuestId,
    /// Its name.
    pub name: String,
    /// Its definition, byte for byte.
    pub definition: Vec<u8>,
    /// How its memory divides.
    pub layout: Layout,
    /// Program and release, for the other side's messages.
    pub program: String,
    /// This host.
    pub host: HostId,
    /// The source's host.
    pub from: HostId,
    /// The highest term that this host's journal knows of the guest.
    pub highest: Term,
    /// Now, in milliseconds since 1970, for the report.
    pub began_unix_ms: u64,
}

/// A guest that arrived.
#[derive(Debug)]
pub enum Arrived<P: PausedGuest> {
    /// It runs.
    Running(P::Running),
    /// Its user had paused it.
    Paused(P),
    /// It is ours, but could not be let run.
    Stuck {
        /// The guest.
        guest: P,
        /// Why.
        why: String,
    },
}

/// How it ended.
#[must_use]
pub enum Outcome<P: PausedGuest> {
    /// The guest is here, durably.
    Arrived {
        /// The guest.
        guest: Arrived<P>,
        /// The report.
        report: Box<Report>,
    },
    /// Nothing is left of the attempt here, and this switch will never run here.
    NotTaken {
        /// Why, for programs.
        reason: Reason,
        /// Why, for people.
        text: String,
        /// The report.
        report: Box<Report>,
    },
    /// Another host has a better right. The memory is kept for an operator.
    Superseded {
        /// The restored guest.
        guest: P,
        /// The report.
        report: Box<Report>,
    },
}

/// Receives a guest into `receiver` over `link`, which the source dialled. Gives `rights` back.
///
/// The process holds neither OWNER nor NEXT of the disks; it holds the journal's lock.
pub async fn run<R, D, C>(
    link: TargetLink,
    expected: Expected,
    receiver: R,
    rights: D,
    clock: C,
    outside: Outside,
) -> (Outcome<R::Paused>, D)
where
    R: Receiver,
    D: Rights,
    C: Clock,
{
    Session::new(link, expected, receiver, rights, clock, outside).run().await
}
