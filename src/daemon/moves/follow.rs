//! Hears the process of a guest that is moved, on either side: tells those who watch, and carries
//! its words to the other host. The process goes on without us; whoever comes back hears
//! everything from the beginning.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Move;
use crate::api::client::CallError;
use crate::api::moving::{MoveEvent, MoveReport, Words};
use crate::daemon::peer::link::ANSWER_DEADLINE;
use crate::daemon::peer::pool;
use crate::daemon::peer::proto::{Ask, Carried, Nothing};
use crate::daemon::state::Daemon;
use crate::host::leftover::{Life, life};

/// Time between two tries to hear a process that lives and does not answer.
const AGAIN: Duration = Duration::from_millis(200);
/// Words that may wait to be carried. The hand-over says again what got lost.
const WORDS: usize = 64;

/// How the process of a moved guest was heard last.
#[derive(Debug)]
pub enum Heard {
    /// It said how the move ended.
    Result(Box<MoveReport>),
    /// It is gone without having said it.
    Died,
}

/// Follows the process of `moved` until it has said how the move ended, or is gone.
pub async fn follow(daemon: &Arc<Daemon>, moved: &Arc<Move>) -> Heard {
    let (words, carried) = mpsc::channel(WORDS);
    let carrier = tokio::spawn(carry(Arc::clone(daemon), Arc::clone(moved), carried));
    let heard = listen(moved, &words).await;
    drop(words);
    // What was said last is still carried.
    let _ = carrier.await;
    heard
}

async fn listen(moved: &Arc<Move>, words: &mpsc::Sender<Words>) -> Heard {
    // Events that were heard already; progress is not repeated and does not count.
    let mut heard = 0usize;
    loop {
        match once(moved, words, &mut heard).await {
            Ok(Some(result)) => return Heard::Result(result),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(MOVE = %moved.id, GUEST = %moved.guest, %error, "not heard");
                if is_gone(moved) {
                    return Heard::Died;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// One connection; `None` if it ended too early.
async fn once(
    moved: &Arc<Move>,
    words: &mpsc::Sender<Words>,
    heard: &mut usize,
) -> Result<Option<Box<MoveReport>>, CallError> {
    let mut events = moved.client.move_events().await?;
    let mut at = 0usize;
    while let Some(event) = events.next().await? {
        if !matches!(event, MoveEvent::Progress { .. }) {
            at += 1;
            if at <= *heard {
                continue;
            }
            *heard = at;
        }
        moved.tell(&event);
        match event {
            MoveEvent::Words(said) => {
                if words.try_send(said).is_err() {
                    tracing::warn!(MOVE = %moved.id, "too many words wait to be carried");
                }
            }
            MoveEvent::Result(report) => return Ok(Some(report)),
            _ => {}
        }
    }
    // The stream ended in order, but without a result: this must not repeat at full speed.
    Err(CallError::Lost("its events ended without a result".into()))
}

/// Whether the guest's process is gone for certain.
pub fn is_gone(moved: &Move) -> bool {
    matches!(life(moved.client.paths()), Ok(Life::Absent | Life::Dead(_)))
}

async fn carry(daemon: Arc<Daemon>, moved: Arc<Move>, mut words: mpsc::Receiver<Words>) {
    while let Some(words) = words.recv().await {
        let carried = Carried { guest: moved.uuid, move_id: moved.id, words };
        let sent = async {
            let peer = pool::peer(&daemon, &moved.peer).await?;
            peer.ask::<Nothing>(&Ask::Words(carried), ANSWER_DEADLINE).await
        };
        if let Err(error) = sent.await {
            tracing::info!(MOVE = %moved.id, GUEST = %moved.guest, %error,
                "words of the hand-over could not be carried");
        }
    }
}
