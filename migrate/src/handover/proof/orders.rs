//! Orders that do not compile. Each stands below the right one, from which it differs in one step:
//! that one compiles, so nothing but this step is refused.
//!
//! A guest is stopped only for an offer that is durable.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(disk: &mut D, switch: Switch, guest: String) -> Result<Stopped<String>, D::Error> {
//! let offer = OfferProof::record(disk, switch)?;
//! Ok(Stopped::new(guest, offer))
//! # }
//! ```
//! ```compile_fail,E0451
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(disk: &mut D, switch: Switch, guest: String) -> Result<Stopped<String>, D::Error> {
//! let offer = OfferProof { switch };
//! Ok(Stopped::new(guest, offer))
//! # }
//! ```
//!
//! The last piece, with which the doubt begins, comes from a stopped guest.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(stopped: Stopped<String>, message: Message) -> LastPiece {
//! stopped.doubt(false).1
//! # }
//! ```
//! ```compile_fail,E0423
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(stopped: Stopped<String>, message: Message) -> LastPiece {
//! LastPiece(message)
//! # }
//! ```
//!
//! Only a guest that is not in doubt is let run on freely.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(stopped: Stopped<String>, in_doubt: InDoubt<String>) -> String {
//! stopped.abort()
//! # }
//! ```
//! ```compile_fail,E0599
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(stopped: Stopped<String>, in_doubt: InDoubt<String>) -> String {
//! in_doubt.abort()
//! # }
//! ```
//!
//! Once the last piece is sent, that is over.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(stopped: Stopped<String>) -> String {
//! let guest = stopped.abort();
//! guest
//! # }
//! ```
//! ```compile_fail,E0382
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(stopped: Stopped<String>) -> String {
//! let (in_doubt, last_piece) = stopped.doubt(false);
//! let guest = stopped.abort();
//! guest
//! # }
//! ```
//!
//! A commit is said only after the `ceded` mark is set.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(in_doubt: InDoubt<String>, disk: &mut D) -> Option<Commit> {
//! let guest = in_doubt.cede(disk).ok()?;
//! Some(guest.commit())
//! # }
//! ```
//! ```compile_fail,E0599
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(in_doubt: InDoubt<String>, disk: &mut D) -> Option<Commit> {
//! let guest = in_doubt;
//! Some(guest.commit())
//! # }
//! ```
//!
//! Nobody makes a commit from a message.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(frozen: Frozen<String>, message: Message) -> Commit {
//! frozen.commit()
//! # }
//! ```
//! ```compile_fail,E0423
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(frozen: Frozen<String>, message: Message) -> Commit {
//! Commit(message)
//! # }
//! ```
//!
//! Nor the proof that the guest was given away.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(proof: CededProof, switch: Switch) -> Commit {
//! Commit::new(&proof)
//! # }
//! ```
//! ```compile_fail,E0451
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(proof: CededProof, switch: Switch) -> Commit {
//! Commit::new(&CededProof { switch })
//! # }
//! ```
//!
//! A guest in doubt is kept only if that is in the journal and beside the disks.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(in_doubt: InDoubt<String>, disk: &mut D) -> Option<String> {
//! let recorded = WithdrawnProof::record(disk, &in_doubt).ok()?;
//! let proof = recorded.stamp(disk).ok()?;
//! in_doubt.keep(proof).ok()
//! # }
//! ```
//! ```compile_fail,E0308
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(in_doubt: InDoubt<String>, disk: &mut D) -> Option<String> {
//! let recorded = WithdrawnProof::record(disk, &in_doubt).ok()?;
//! let proof = recorded;
//! in_doubt.keep(proof).ok()
//! # }
//! ```
//!
//! Nobody makes that proof but the durable steps.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(in_doubt: InDoubt<String>, switch: Switch, proof: WithdrawnProof) -> Option<String> {
//! in_doubt.keep(proof).ok()
//! # }
//! ```
//! ```compile_fail,E0451
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(in_doubt: InDoubt<String>, switch: Switch, proof: WithdrawnProof) -> Option<String> {
//! in_doubt.keep(WithdrawnProof { switch }).ok()
//! # }
//! ```
//!
//! The doubt ends once: who ceded does not keep.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(in_doubt: InDoubt<String>, disk: &mut D, proof: WithdrawnProof) -> Option<String> {
//! in_doubt.keep(proof).ok()
//! # }
//! ```
//! ```compile_fail,E0382
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(in_doubt: InDoubt<String>, disk: &mut D, proof: WithdrawnProof) -> Option<String> {
//! let frozen = in_doubt.cede(disk).ok()?;
//! in_doubt.keep(proof).ok()
//! # }
//! ```
//!
//! And who keeps does not cede.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(in_doubt: InDoubt<String>, disk: &mut D, proof: WithdrawnProof) -> Option<Frozen<String>> {
//! in_doubt.cede(disk).ok()
//! # }
//! ```
//! ```compile_fail,E0382
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(in_doubt: InDoubt<String>, disk: &mut D, proof: WithdrawnProof) -> Option<Frozen<String>> {
//! let guest = in_doubt.keep(proof).ok()?;
//! in_doubt.cede(disk).ok()
//! # }
//! ```
//!
//! A guest that was given away comes back only because it never ran at the target.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(frozen: Frozen<String>, never_ran: NeverRanProof, withdrawn: WithdrawnProof) -> Option<String> {
//! frozen.come_back(never_ran).ok()
//! # }
//! ```
//! ```compile_fail,E0308
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(frozen: Frozen<String>, never_ran: NeverRanProof, withdrawn: WithdrawnProof) -> Option<String> {
//! frozen.come_back(withdrawn).ok()
//! # }
//! ```
//!
//! And only when its new term stands beside the disks.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(frozen: Frozen<String>, disk: &mut D, recorded: Unstamped<NeverRanProof>) -> Option<String> {
//! let proof = recorded.stamp(disk).ok()?;
//! frozen.come_back(proof).ok()
//! # }
//! ```
//! ```compile_fail,E0308
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<D: Durable>(frozen: Frozen<String>, disk: &mut D, recorded: Unstamped<NeverRanProof>) -> Option<String> {
//! let proof = recorded;
//! frozen.come_back(proof).ok()
//! # }
//! ```
//!
//! Nobody makes that proof but the durable steps.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(frozen: Frozen<String>, switch: Switch, proof: NeverRanProof) -> Option<String> {
//! frozen.come_back(proof).ok()
//! # }
//! ```
//! ```compile_fail,E0451
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(frozen: Frozen<String>, switch: Switch, proof: NeverRanProof) -> Option<String> {
//! frozen.come_back(NeverRanProof { switch }).ok()
//! # }
//! ```
//!
//! The frozen memory can be looked at, not taken.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(frozen: Frozen<String>) -> String {
//! frozen.audit().clone()
//! # }
//! ```
//! ```compile_fail,E0616
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(frozen: Frozen<String>) -> String {
//! frozen.guest
//! # }
//! ```
//!
//! A proof is used up.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(one: InDoubt<String>, other: InDoubt<String>, proof: WithdrawnProof) {
//! let guest = one.keep(proof);
//! # }
//! ```
//! ```compile_fail,E0382
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(one: InDoubt<String>, other: InDoubt<String>, proof: WithdrawnProof) {
//! let guest = one.keep(proof);
//! let second = other.keep(proof);
//! # }
//! ```
//!
//! And is not copied.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(guest: String, offer: OfferProof) -> Stopped<String> {
//! Stopped::new(guest, offer)
//! # }
//! ```
//! ```compile_fail,E0599
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f(guest: String, offer: OfferProof) -> Stopped<String> {
//! Stopped::new(guest, offer.clone())
//! # }
//! ```
//!
//! What is retired can only be ended.
//!
//! ```
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<G: migrate_engine::port::PausedGuest>(frozen: Frozen<G>) {
//! frozen.retire().end();
//! # }
//! ```
//! ```compile_fail,E0599
//! # use migrate_engine::handover::{journal::*, message::*, proof::*, term::*};
//! # fn f<G: migrate_engine::port::PausedGuest>(frozen: Frozen<G>) {
//! frozen.retire().commit();
//! # }
//! ```
