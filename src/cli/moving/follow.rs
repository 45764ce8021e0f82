//! Follows one move to its outcome. The daemon owns the move: a daemon that was restarted is asked
//! again, and whoever stops following ends nothing.

use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use super::display::Row;
use crate::api::client::CallError;
use crate::api::daemon_client::{DaemonClient, MoveEvents};
use crate::api::moving::{MoveEvent, MoveReport};
use crate::api::{ErrorCode, Failure};

/// How often a daemon that went away is tried again, and how long it is waited for.
const RETRY: Duration = Duration::from_millis(500);
const RETRIES: u32 = 60;

/// What the user wants of the moves that go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// See them through.
    #[default]
    Follow,
    /// Cancel them, and hear how they end.
    Cancel,
    /// Hear no more.
    Leave,
}

/// How following ended.
#[derive(Debug)]
pub enum Followed {
    /// With the outcome.
    Ended(Box<MoveReport>),
    /// By the user; the move goes on.
    Left,
}

/// Follows the move `id` until its result, or until the user leaves.
///
/// # Errors
/// `unreachable` if the daemon stays away, `not-found` if it knows no such move.
pub async fn follow(
    client: &DaemonClient,
    id: Uuid,
    row: &mut Row,
    wishes: &mut watch::Receiver<Wish>,
) -> Result<Followed, Failure> {
    row.begun(id);
    let mut events = reach(client, id, row, wishes).await?;
    // A wish that was there before the move began counts as well.
    let mut heard = Wish::Follow;
    loop {
        let wish = *wishes.borrow_and_update();
        if wish == Wish::Leave {
            return Ok(Followed::Left);
        }
        if wish == Wish::Cancel && heard < wish {
            cancel(client, id, row).await;
        }
        heard = wish;
        let Some(stream) = &mut events else { return Ok(Followed::Left) };
        tokio::select! {
            Ok(()) = wishes.changed() => {}
            event = stream.next() => match event {
                Ok(Some(event)) => {
                    row.show(&event)?;
                    if let MoveEvent::Result(report) = event {
                        return Ok(Followed::Ended(report));
                    }
                }
                Ok(None) | Err(CallError::Lost(_)) => {
                    row.say("the daemon went away; the move goes on, waiting for the daemon …");
                    row.begin_again();
                    tokio::time::sleep(RETRY).await;
                    events = reach(client, id, row, wishes).await?;
                }
                Err(error) => return Err(client.failure(error)),
            }
        }
    }
}

/// The events from the beginning, once the daemon is there; `None` if the user left meanwhile.
async fn reach(
    client: &DaemonClient,
    id: Uuid,
    row: &mut Row,
    wishes: &mut watch::Receiver<Wish>,
) -> Result<Option<MoveEvents>, Failure> {
    let mut tries = 0;
    loop {
        match client.events(id).await {
            Ok(events) => return Ok(Some(events)),
            Err(CallError::Connect(_) | CallError::Lost(_)) if tries < RETRIES => tries += 1,
            Err(error @ (CallError::Connect(_) | CallError::Lost(_) | CallError::Late(_))) => {
                let Failure(mut body) = client.failure(error);
                body.message = format!("{}; the move {id} goes on without it", body.message);
                body.remedy = format!("{}; then: migrate watch {id}", body.remedy);
                return Err(Failure(body));
            }
            Err(error) => return Err(client.failure(error)),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            Ok(()) = wishes.changed() => {
                if *wishes.borrow() == Wish::Leave {
                    return Ok(None);
                }
                row.say("cancelling has to wait for the daemon");
            }
        }
    }
}

/// Asks for the cancellation, and says what came of it. The outcome tells the rest.
pub async fn cancel(client: &DaemonClient, id: Uuid, row: &Row) {
    match client.cancel(id).await {
        Ok(answer) if answer.accepted => row.say("is being cancelled; waiting for the outcome …"),
        Ok(_) => row.say(
            "cannot be cancelled any more: all its memory is sent, and only the destination's word \
             decides; waiting for the outcome …",
        ),
        Err(error) => {
            let failure = client.failure(error);
            if failure.0.code != ErrorCode::NotFound {
                row.say(&format!("cannot be cancelled: {failure}; waiting for the outcome …"));
            }
        }
    }
}
