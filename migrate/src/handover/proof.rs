//! The right to run a guest, as types. The machines of this module's siblings decide; the guest
//! process that performs their effects can do so only in the right order, because a guest that
//! was stopped for a switch is held by [`Stopped`], [`InDoubt`] or [`Frozen`], and each of them
//! gives it back only for its proof. No proof can be made, copied or kept back: each is made by
//! the durable step that it proves.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, proof::*, term::*};
//! # use std::convert::Infallible;
//! # struct Paper(Vec<String>);
//! # impl Durable for Paper {
//! #     type Error = Infallible;
//! #     fn record(&mut self, r: Record) -> Result<(), Infallible> { self.0.push(format!("{r:?}")); Ok(()) }
//! #     fn mark(&mut self, m: Mark) -> Result<(), Infallible> { self.0.push(format!("{m:?}")); Ok(()) }
//! #     fn stamp(&mut self, t: Term) -> Result<(), Infallible> { self.0.push(format!("stamp {t}")); Ok(()) }
//! # }
//! # let mut disk = Paper(vec![]);
//! # let switch = Switch { id: SwitchId(1), before: Term::new(1), term: Term::new(2), from: HostId(1), to: HostId(2) };
//! # let paused_guest = String::from("guest");
//! let offer = OfferProof::record(&mut disk, switch)?;
//! let stopped = Stopped::new(paused_guest, offer);
//! let (in_doubt, last_piece) = stopped.doubt(false);
//! // … `last_piece` is sent; the target says that it is prepared …
//! let frozen = in_doubt.cede(&mut disk).map_err(|(_, error)| error)?;
//! let commit = frozen.commit();
//! # assert_eq!(disk.0.len(), 2);
//! # Ok::<(), Infallible>(())
//! ```
//!
//! What does not compile stands in `orders.rs` beside this file, each beside its right order.

mod orders;

use super::journal::{Mark, Record};
use super::message::{Body, Message, SourceSays, TargetSays, ToSource, ToTarget};
use super::term::{Switch, Term};
use crate::port::PausedGuest;

/// The durable memory of a guest process. Whoever implements it promises that `Ok` means done:
/// a record survives power loss, a mark survives a kill, a term is acknowledged by the storage.
pub trait Durable {
    /// Why it did not succeed. The step may have been done all the same.
    type Error;
    /// Records in the journal.
    fn record(&mut self, record: Record) -> Result<(), Self::Error>;
    /// Sets a mark in the runtime directory.
    fn mark(&mut self, mark: Mark) -> Result<(), Self::Error>;
    /// Writes the owner's term beside every shared disk, under OWNER.
    fn stamp(&mut self, term: Term) -> Result<(), Self::Error>;
}

/// The offer is durable.
#[derive(Debug)]
#[must_use]
pub struct OfferProof {
    switch: Switch,
}

impl OfferProof {
    /// Makes the offer durable.
    ///
    /// # Errors
    /// As the journal says.
    pub fn record<D: Durable>(disk: &mut D, switch: Switch) -> Result<Self, D::Error> {
        disk.record(Record::Offered(switch))?;
        Ok(Self { switch })
    }
}

/// A guest that stands still for an offered switch, before the point of doubt.
#[derive(Debug)]
#[must_use]
pub struct Stopped<G> {
    guest: G,
    offer: OfferProof,
}

impl<G> Stopped<G> {
    /// `guest` was paused for this offer.
    pub const fn new(guest: G, offer: OfferProof) -> Self {
        Self { guest, offer }
    }

    /// The guest, to be saved.
    pub const fn guest(&mut self) -> &mut G {
        &mut self.guest
    }

    /// An abort is free: the guest may run on at once.
    pub fn abort(self) -> G {
        self.guest
    }

    /// The point of doubt: from here on the last piece may be sent.
    pub fn doubt(self, paused: bool) -> (InDoubt<G>, LastPiece) {
        let switch = self.offer.switch;
        let piece = LastPiece(Message::to_target(switch, ToTarget::LastPiece { paused }));
        (InDoubt { guest: self.guest, switch }, piece)
    }
}

/// The message with which the doubt begins.
#[derive(Debug)]
pub struct LastPiece(Message);

impl LastPiece {
    /// As it is sent, as often as it takes.
    pub const fn message(&self) -> Message {
        self.0
    }
}

/// A guest that may be the target's already, or not.
#[derive(Debug)]
#[must_use]
pub struct InDoubt<G> {
    guest: G,
    switch: Switch,
}

/// A right that is in the journal, and not beside the disks yet.
#[derive(Debug)]
#[must_use]
pub struct Unstamped<P> {
    proof: P,
    term: Term,
}

impl<P> Unstamped<P> {
    /// Writes its term beside the disks.
    ///
    /// # Errors
    /// As the disks say; try again, nothing else is safe then.
    pub fn stamp<D: Durable>(self, disk: &mut D) -> Result<P, (Self, D::Error)> {
        match disk.stamp(self.term) {
            Ok(()) => Ok(self.proof),
            Err(error) => Err((self, error)),
        }
    }
}

/// The switch is withdrawn: durable in the journal, its term beside the disks.
#[derive(Debug)]
#[must_use]
pub struct WithdrawnProof {
    switch: Switch,
}

impl WithdrawnProof {
    /// Decides to keep the guest: journal first, then the disks.
    ///
    /// # Errors
    /// As the journal says; try again, nothing else is safe then.
    pub fn record<D: Durable, G>(
        disk: &mut D,
        doubt: &InDoubt<G>,
    ) -> Result<Unstamped<Self>, D::Error> {
        let switch = doubt.switch;
        disk.record(Record::Withdrawn(switch))?;
        Ok(Unstamped { proof: Self { switch }, term: switch.term })
    }
}

impl<G> InDoubt<G> {
    /// The guest may run on.
    ///
    /// # Errors
    /// The guest stays in doubt if the proof is that of another switch.
    #[expect(clippy::needless_pass_by_value, reason = "a proof is used up")]
    pub fn keep(self, proof: WithdrawnProof) -> Result<G, Self> {
        if proof.switch == self.switch { Ok(self.guest) } else { Err(self) }
    }

    /// Gives the guest away: sets the `ceded` mark.
    ///
    /// # Errors
    /// The mark is not set for certain, and the guest stays in doubt.
    pub fn cede<D: Durable>(self, disk: &mut D) -> Result<Frozen<G>, (Self, D::Error)> {
        match disk.mark(Mark::Ceded(self.switch.id)) {
            Ok(()) => Ok(Frozen { guest: self.guest, proof: CededProof { switch: self.switch } }),
            Err(error) => Err((self, error)),
        }
    }
}

/// The guest was given away, and that outlives this process.
#[derive(Debug)]
#[must_use]
pub struct CededProof {
    switch: Switch,
}

/// The message that makes the target run the guest.
#[derive(Debug)]
pub struct Commit(Message);

impl Commit {
    /// The only way to say *ceded* in a process that holds the guest.
    pub const fn new(proof: &CededProof) -> Self {
        let says = ToTarget::Says(SourceSays::Ceded);
        Self(Message::to_target(proof.switch, says))
    }

    /// As it is sent, as often as it takes.
    pub const fn message(&self) -> Message {
        self.0
    }
}

/// The frozen memory of a guest that was given away.
#[derive(Debug)]
#[must_use]
pub struct Frozen<G> {
    guest: G,
    proof: CededProof,
}

/// The target never ran the guest, and this host owns it again: journal, then disks.
#[derive(Debug)]
#[must_use]
pub struct NeverRanProof {
    switch: Switch,
}

/// Why a frozen guest did not come back.
#[derive(Debug, thiserror::Error)]
pub enum NotBack<E> {
    /// The message does not say that this switch never ran.
    #[error("the other side did not say that this switch never ran there")]
    NotSaid,
    /// A return needs a term above the offered one.
    #[error("a returning guest needs a term above the offered one")]
    OldTerm,
    /// The journal.
    #[error("{0}")]
    Failed(E),
}

impl NeverRanProof {
    /// Takes the guest back under `term`, on the word of the target's side. The caller holds
    /// OWNER and found nobody else's later term beside the disks.
    ///
    /// # Errors
    /// [`NotBack`]; the guest stays frozen.
    pub fn record<D: Durable, G>(
        disk: &mut D,
        frozen: &Frozen<G>,
        heard: &Message,
        term: Term,
    ) -> Result<Unstamped<Self>, NotBack<D::Error>> {
        let switch = frozen.proof.switch;
        let body = Body::ToSource(ToSource::Says(TargetSays::NeverRan, None));
        if *heard != (Message { switch, body }) {
            return Err(NotBack::NotSaid);
        }
        if term <= switch.term {
            return Err(NotBack::OldTerm);
        }
        disk.record(Record::Owner { term }).map_err(NotBack::Failed)?;
        Ok(Unstamped { proof: Self { switch }, term })
    }
}

impl<G> Frozen<G> {
    /// Says that it was given away.
    pub const fn commit(&self) -> Commit {
        Commit::new(&self.proof)
    }

    /// The frozen guest, to be compared with what was sent.
    pub const fn audit(&self) -> &G {
        &self.guest
    }

    /// The guest may run here again.
    ///
    /// # Errors
    /// The guest stays frozen if the proof is that of another switch.
    #[expect(clippy::needless_pass_by_value, reason = "a proof is used up")]
    pub fn come_back(self, proof: NeverRanProof) -> Result<G, Self> {
        if proof.switch == self.proof.switch { Ok(self.guest) } else { Err(self) }
    }

    /// The memory, to be freed: the target has confirmed.
    pub fn retire(self) -> Retired<G> {
        Retired { guest: self.guest }
    }
}

/// A guest that can only be ended.
#[derive(Debug)]
pub struct Retired<G> {
    guest: G,
}

impl<G: PausedGuest> Retired<G> {
    /// Ends it, and frees its memory.
    pub fn end(self) {
        self.guest.retire();
    }
}

#[cfg(test)]
mod tests {
    use super::super::term::{HostId, SwitchId};
    use super::*;

    #[derive(Default)]
    struct Disk {
        done: Vec<String>,
        fails_at: Option<usize>,
    }

    impl Disk {
        fn step(&mut self, what: String) -> Result<(), String> {
            if self.fails_at == Some(self.done.len()) {
                return Err(what);
            }
            self.done.push(what);
            Ok(())
        }
    }

    impl Durable for Disk {
        type Error = String;
        fn record(&mut self, record: Record) -> Result<(), String> {
            let text = format!("{record:?}");
            self.step(text.split([' ', '(']).next().unwrap_or_default().to_owned())
        }
        fn mark(&mut self, _: Mark) -> Result<(), String> {
            self.step("mark".into())
        }
        fn stamp(&mut self, term: Term) -> Result<(), String> {
            self.step(format!("stamp {term}"))
        }
    }

    fn switch(id: u128) -> Switch {
        let (before, term) = (Term::new(1), Term::new(2));
        Switch { id: SwitchId(id), before, term, from: HostId(1), to: HostId(2) }
    }

    fn doubt(disk: &mut Disk, id: u128) -> InDoubt<&'static str> {
        let offer = OfferProof::record(disk, switch(id)).unwrap();
        Stopped::new("guest", offer).doubt(false).0
    }

    #[test]
    fn a_withdrawal_is_in_the_journal_before_it_is_beside_the_disks() {
        let mut disk = Disk::default();
        let doubt = doubt(&mut disk, 1);
        let proof = WithdrawnProof::record(&mut disk, &doubt).unwrap();
        let proof = proof.stamp(&mut disk).unwrap();
        assert_eq!(doubt.keep(proof).unwrap(), "guest");
        assert_eq!(disk.done, ["Offered", "Withdrawn", "stamp 2"]);
    }

    #[test]
    fn a_failed_step_gives_no_proof() {
        for fails_at in 0..3 {
            let mut disk = Disk { done: vec![], fails_at: Some(fails_at) };
            let Ok(offer) = OfferProof::record(&mut disk, switch(1)) else {
                assert_eq!(fails_at, 0);
                continue;
            };
            let doubt = Stopped::new((), offer).doubt(false).0;
            match WithdrawnProof::record(&mut disk, &doubt) {
                Ok(unstamped) => assert!(unstamped.stamp(&mut disk).is_err()),
                Err(_) => assert_eq!(fails_at, 1),
            }
        }
        let mut disk = Disk { done: vec![], fails_at: Some(1) };
        let doubt = doubt(&mut disk, 1);
        assert!(doubt.cede(&mut disk).is_err());
    }

    #[test]
    fn a_proof_serves_its_own_switch_only() {
        let mut disk = Disk::default();
        let (one, other) = (doubt(&mut disk, 1), doubt(&mut disk, 2));
        let proof = WithdrawnProof::record(&mut disk, &one).unwrap();
        let proof = proof.stamp(&mut disk).unwrap();
        assert!(other.keep(proof).is_err());
    }

    #[test]
    fn a_frozen_guest_comes_back_only_on_the_targets_word_and_under_a_new_term() {
        let mut disk = Disk::default();
        let frozen = doubt(&mut disk, 1).cede(&mut disk).unwrap();
        let said = |id, what| Message::to_source(switch(id), ToSource::Says(what, None));
        let never = said(1, TargetSays::NeverRan);
        let (old, new) = (Term::new(2), Term::new(3));
        for (heard, term) in [
            (said(1, TargetSays::NotPrepared), new),
            (said(2, TargetSays::NeverRan), new),
            (never, old),
        ] {
            assert!(NeverRanProof::record(&mut disk, &frozen, &heard, term).is_err());
        }
        let proof = NeverRanProof::record(&mut disk, &frozen, &never, new).unwrap();
        let proof = proof.stamp(&mut disk).unwrap();
        assert_eq!(frozen.come_back(proof).unwrap(), "guest");
        assert_eq!(disk.done, ["Offered", "mark", "Owner", "stamp 3"]);
    }
}
