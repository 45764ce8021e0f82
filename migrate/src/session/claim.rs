//! An operator's word about a guest whose memory is held here, at either end: the locks, what
//! stands beside the disks, the decision of [`resolve`], the term beside the disks, the record.
//!
//! It runs nothing: whoever holds the guest lets it run, with the proof that its type asks for.

use tokio::sync::mpsc;

use crate::handover::resolve::{self, Facts, Memory, Plan, Refused, Wish};
use crate::handover::term::{Beside, HostId, Stamp, Term};
use crate::port::{Lock, Rights};

/// What an operator wants, and what is known elsewhere.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What shall be.
    pub wish: Wish,
    /// The highest term that any host knows which could be asked.
    pub elsewhere: Term,
    /// The highest right under which a host that could be asked owns the guest.
    pub owned_by: Option<Stamp>,
    /// A host that could not be asked, and is not the one that is fenced.
    pub silent: Option<HostId>,
    /// Where the answer goes: the term under which the guest runs here now, nothing if it is given
    /// up.
    pub answer: mpsc::Sender<Result<Option<Term>, NotClaimed>>,
}

impl Claim {
    /// Answers that this is not the moment. Nobody needs to hear it.
    pub(super) fn not_now(&self) {
        let _ = self.answer.try_send(Err(NotClaimed::NotNow));
    }
}

/// Why it was not done. Everything is as before.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotClaimed {
    /// Something speaks against it.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// Not now: the hand-over is in the middle of a step that ends by itself.
    #[error("the hand-over is in the middle of a step: say it again in a moment")]
    NotNow,
    /// Another host holds a disk of the guest.
    #[error("another host holds a disk of the guest: it is not fenced")]
    Held,
    /// A step failed.
    #[error("{0}")]
    Failed(String),
}

/// Takes the locks and decides. What is planned is done by `act`, under the locks; if that fails
/// they are let go again, except OWNER where it was held before.
pub(super) fn decide<D: Rights, T>(
    rights: &mut D,
    claim: &Claim,
    act: impl FnOnce(&mut D, &Plan) -> Result<T, NotClaimed>,
) -> Result<(Plan, T), NotClaimed> {
    let Some((ledger, shared)) = rights.known() else { return Err(NotClaimed::NotNow) };
    let takes = matches!(claim.wish, Wish::RunHere { .. });
    let beside = if takes { lock(rights)? } else { None };
    let facts = Facts {
        ledger: &ledger,
        beside: beside.filter(|_| shared),
        memory: Memory::Whole,
        elsewhere: claim.elsewhere,
        runs_at: None,
        owned_by: claim.owned_by,
        silent: claim.silent,
    };
    let done = resolve::resolve(claim.wish, &facts)
        .map_err(NotClaimed::from)
        .and_then(|plan| act(rights, &plan).map(|done| (plan, done)));
    if takes {
        rights.drop_next();
        if done.is_err() {
            rights.drop_owner();
        }
    }
    done
}

fn lock<D: Rights>(rights: &mut D) -> Result<Option<Beside>, NotClaimed> {
    let failed = |e: D::Error| NotClaimed::Failed(e.to_string());
    match rights.take_owner().map_err(failed)? {
        Lock::Taken(_) => {}
        Lock::Busy => return Err(NotClaimed::Held),
    }
    let next = rights.take_next();
    match next {
        Ok(Lock::Taken(beside)) => Ok(Some(beside)),
        Ok(Lock::Busy) => {
            rights.drop_owner();
            Err(NotClaimed::Held)
        }
        Err(why) => {
            rights.drop_owner();
            Err(failed(why))
        }
    }
}
