//! The guest, in the type that says what may be done with it.

use crate::handover::proof::{
    ClaimedProof, Frozen, InDoubt, NeverRanProof, OfferProof, Stopped, Unstamped, WithdrawnProof,
};
use crate::port::RunningGuest;

/// Where the guest is.
pub(super) enum Hold<G: RunningGuest> {
    /// It runs.
    Running(G),
    /// A thread works on it, and gives it back.
    Away,
    /// It stands still for the offer, which may be aborted freely.
    Stopped(Stopped<G::Paused>),
    /// It may be the target's already, or not.
    InDoubt(InDoubt<G::Paused>),
    /// It was given away.
    Frozen(Frozen<G::Paused>),
    /// It is ours, and could not be let run.
    Stuck(G::Paused, String),
    /// It ended by itself.
    Ended,
    /// What was left of it is gone: it is the target's.
    Gone,
}

impl<G: RunningGuest> Hold<G> {
    /// Takes it, to give it to a thread.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Away)
    }
}

/// The proofs that a session has, in the order in which they come into being.
#[derive(Default)]
pub(super) struct Proofs {
    /// The offer is durable; used up when the guest stands still.
    pub(super) offer: Option<OfferProof>,
    /// The switch is withdrawn, or never ran: in the journal, and then beside the disks.
    pub(super) back: Back,
}

/// How far the way back from doubt or from the other side is.
#[derive(Default)]
pub(super) enum Back {
    /// Not begun.
    #[default]
    None,
    /// The withdrawal is in the journal.
    Withdrawing(Unstamped<WithdrawnProof>),
    /// And beside the disks.
    Withdrawn(WithdrawnProof),
    /// The return is in the journal.
    Returning(Unstamped<NeverRanProof>),
    /// And beside the disks.
    Returned(NeverRanProof),
    /// An operator said so.
    Claimed(ClaimedProof),
}
