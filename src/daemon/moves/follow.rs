//! Hears the process of a guest that is moved, on either side: tells those who watch, and carries
//! its words to the other host. The process goes on without us, and whoever comes back hears
//! everything from the beginning; so a stream that breaks is opened again, until the process's
//! journal proves that it is dead.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::outbox::{Outbox, Waiting, outbox};
use super::record::Open;
use crate::api::ErrorCode;
use crate::api::client::{CallError, GuestClient};
use crate::api::moving::{MoveEvent, MoveReport};
use crate::daemon::Daemon;
use crate::daemon::keeper::{Acting, Speaker};
use crate::guest::moving::feed::Feed;

/// Time between two tries to hear a process that lives and does not answer, at first and at most.
const AGAIN: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// How the process of a moved guest was heard last.
pub enum Heard {
    /// It said how the move ended.
    Result(Box<MoveReport>),
    /// It is dead, proved by its journal, which is ours now.
    Dead(Acting),
    /// It lives, and knows nothing of this move.
    Unknown,
}

/// Follows the process of a move until it has said how it ended, or is dead.
pub async fn follow(daemon: &Arc<Daemon>, open: &Arc<Open>, feed: &Feed) -> Heard {
    let (words, carried) = outbox();
    // What was said last is carried even if it is not heard any more here; a host that does not
    // answer keeps nobody waiting.
    tokio::spawn(carry(Arc::clone(daemon), Arc::clone(open), carried));
    let about = &open.about;
    let listening = Listening {
        client: GuestClient::new(&about.guest, daemon.dirs.guest(&about.guest)),
        move_id: about.move_id,
        feed,
        words,
    };
    listening.until_the_end(daemon, about.uuid).await
}

struct Listening<'a> {
    client: GuestClient,
    move_id: Uuid,
    feed: &'a Feed,
    words: Outbox,
}

impl Listening<'_> {
    async fn until_the_end(&self, daemon: &Arc<Daemon>, guest: Uuid) -> Heard {
        // Events that were heard already; progress is not repeated and does not count.
        let mut heard = 0;
        let mut wait = AGAIN[0];
        loop {
            let before = heard;
            match self.once(&mut heard).await {
                Ok(Some(report)) => return Heard::Result(report),
                Ok(None) => return Heard::Unknown,
                Err(CallError::Refused(body)) if body.code == ErrorCode::NotFound => {
                    return Heard::Unknown;
                }
                Err(error) => {
                    tracing::warn!(MOVE = %self.move_id, GUEST = self.client.name(), %error,
                        "the process of a move is not heard");
                }
            }
            match daemon.speaker(guest) {
                Ok(Speaker::Us(acting)) => return Heard::Dead(acting),
                Ok(Speaker::Process) => {}
                Err(failure) => tracing::error!(MOVE = %self.move_id, %failure, "the journal"),
            }
            if heard > before {
                wait = AGAIN[0];
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN[1]);
        }
    }

    /// One connection, to its result. `None`: the process tells of another move.
    async fn once(&self, heard: &mut usize) -> Result<Option<Box<MoveReport>>, CallError> {
        let mut events = self.client.move_events().await?;
        let mut at = 0;
        while let Some(event) = events.next().await? {
            if let MoveEvent::Phase { move_id, .. } = &event
                && *move_id != self.move_id
            {
                return Ok(None);
            }
            if !matches!(event, MoveEvent::Progress { .. }) {
                at += 1;
                if at <= *heard {
                    continue;
                }
                *heard = at;
            }
            match event {
                MoveEvent::Words(words) => self.words.put(words),
                MoveEvent::Result(report) if report.move_id == self.move_id => {
                    return Ok(Some(report));
                }
                MoveEvent::Result(_) => return Ok(None),
                event => self.feed.tell(&event),
            }
        }
        Err(CallError::Lost("its events ended without a result".into()))
    }
}

async fn carry(daemon: Arc<Daemon>, open: Arc<Open>, mut waiting: Waiting) {
    while let Some(words) = waiting.next().await {
        daemon.carry(open.other(), open.about.uuid, words).await;
    }
}
