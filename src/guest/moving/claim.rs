//! An operator's word on its way to the session of a move, and the answer on its way back.

use migrate_engine::handover::resolve;
use migrate_engine::handover::term::Term;
use migrate_engine::session::Command;
use migrate_engine::session::claim::{Claim, NotClaimed};
use tokio::sync::mpsc;

use super::departure::UnderWay;
use crate::api::resolve::{self as api, Claimed, Wish};
use crate::api::{ErrorCode, Failure};
use crate::guest::inbox::{Answer, Reply};
use crate::guest::load::refused_claim;

/// Passes it on. The answer comes from a thread of its own: the owner waits for nobody.
pub fn pass(claim: &api::Claim, moving: &UnderWay, reply: Reply) {
    let (answer, mut heard) = mpsc::channel(1);
    let wish = match claim.wish {
        Wish::RunHere => resolve::Wish::RunHere { lose_later_work: claim.lose_later_work },
        Wish::GiveUp => resolve::Wish::GiveUp,
    };
    tracing::warn!(MOVE = %moving.move_id, note = claim.note, "an operator's word");
    let elsewhere = Term::new(claim.elsewhere);
    let (owned_by, silent) = (claim.owner(), claim.silent());
    moving.tell(Command::Claim(Claim { wish, elsewhere, owned_by, silent, answer }));
    let peer = moving.to.clone();
    let waiting = std::thread::Builder::new().name("claim".into()).spawn(move || {
        let answered = heard.blocking_recv().unwrap_or(Err(NotClaimed::NotNow));
        reply.send(match answered {
            Ok(term) => {
                let term = term.map(Term::get);
                Ok(Answer::Claimed(Claimed { schema: 1, term }))
            }
            Err(why) => Err(failure(&why, &peer)),
        });
    });
    if let Err(error) = waiting {
        // The word was passed on all the same; its outcome is seen in the guest.
        tracing::error!(%error, "no thread waits for the answer");
    }
}

fn failure(why: &NotClaimed, peer: &str) -> Failure {
    match why {
        NotClaimed::Refused(refused) => refused_claim(refused, Some(peer)),
        NotClaimed::NotNow => {
            let remedy = "it settles by itself; if it does not, say it again";
            Failure::new(ErrorCode::Busy, why.to_string(), remedy).retryable()
        }
        NotClaimed::Held => {
            let remedy = "make sure that the other host is off, and say it again";
            Failure::new(ErrorCode::DiskLocked, why.to_string(), remedy)
        }
        NotClaimed::Failed(_) => {
            let remedy = "check the state directory and the guest's disks, and say it again";
            Failure::new(ErrorCode::File, why.to_string(), remedy)
        }
    }
}
