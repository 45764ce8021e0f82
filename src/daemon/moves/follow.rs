//! Hears the process of a guest that is moved, on either side: tells those who watch, and carries
//! its words to the other host. The process goes on without us, and whoever comes back hears
//! everything from the beginning; so a stream that breaks is opened again, until the process's
//! journal proves that it is dead.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;
use uuid::Uuid;

use super::outbox::{Outbox, Waiting, outbox};
use super::record::Open;
use crate::api::ErrorCode;
use crate::api::client::{CallError, GuestClient};
use crate::api::moving::{MoveEvent, MoveReport};
use crate::daemon::Daemon;
use crate::daemon::keeper::{Acting, Speaker};
use crate::failpoint;
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
    let carrying = carry(Arc::clone(daemon), Arc::clone(open), carried);
    tokio::spawn(carrying.in_current_span());
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
            let _ = failpoint::at(|| place(&event));
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

/// The place at which an event is heard.
fn place(event: &MoveEvent) -> String {
    let what = match event {
        MoveEvent::Phase { phase, .. } => failpoint::plain(phase),
        other => failpoint::kind(other),
    };
    format!("daemon.hear.{what}")
}

async fn carry(daemon: Arc<Daemon>, open: Arc<Open>, mut waiting: Waiting) {
    for tries in 0.. {
        let Some(words) = waiting.next().await else { return };
        daemon.carry(tries, open.other(), open.about.uuid, words).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{HostRef, MoveOptions, MoveOutcome, MovePhase};
    use crate::config::Dirs;
    use crate::daemon::moves::record::Direction;
    use crate::guest::journal::Journal;
    use crate::guest::moving::feed::Next;
    use crate::guest::moving::report::About;
    use crate::guest::testing::definition;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;

    fn about(guest: Uuid, move_id: u128) -> About {
        let host = |n: u128| HostRef { id: Uuid::from_u128(n), name: format!("h{n}") };
        About {
            move_id: Uuid::from_u128(move_id),
            guest: "one".into(),
            uuid: guest,
            from: host(1),
            to: host(2),
            started: jiff::Timestamp::UNIX_EPOCH,
            options: MoveOptions::default(),
            memory_bytes: 1,
        }
    }

    fn phase(about: &About, phase: MovePhase) -> MoveEvent {
        MoveEvent::Phase { move_id: about.move_id, guest: about.guest.clone(), phase }
    }

    /// Answers one client after the other with these events each; then the connection breaks.
    async fn process(listener: UnixListener, answers: Vec<Vec<MoveEvent>>) {
        for events in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
            for event in events {
                let line = serde_json::to_string(&event).unwrap() + "\n";
                let length = format!("{:x}", line.len());
                for part in [&length, "\r\n", &line, "\r\n"] {
                    text.push_str(part);
                }
            }
            socket.write_all(text.as_bytes()).await.unwrap();
            // Not closed before it was read, and never with the chunk that would be the last.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How a move is heard to end whose process gives these answers, and is then killed if so.
    fn heard(answers: Vec<Vec<MoveEvent>>, about: About, killed: bool) -> (Heard, Vec<String>) {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        dirs.prepare().unwrap();
        let journal = Journal::take(&dirs.journal(&about.uuid)).unwrap();
        let paths = dirs.guest("one");
        std::fs::create_dir_all(paths.dir()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let daemon = Arc::new(Daemon::new(&dirs).unwrap());
            let listener = UnixListener::bind(paths.api()).unwrap();
            let process = tokio::spawn(async move {
                process(listener, answers).await;
                if killed {
                    drop(journal);
                } else {
                    std::future::pending::<()>().await;
                }
            });
            let feed = Feed::default();
            let definition = definition("one");
            let open = Open::new(Direction::Out, Uuid::nil(), about, definition);
            let heard = follow(&daemon, &Arc::new(open), &feed).await;
            process.abort();
            let mut lines = Vec::new();
            let mut listener = feed.listen();
            let wait = Duration::from_millis(10);
            while let Ok(Next::Line(line)) = tokio::time::timeout(wait, listener.next()).await {
                lines.push(String::from_utf8(line.to_vec()).unwrap());
            }
            (heard, lines)
        })
    }

    #[test]
    fn a_stream_that_breaks_is_no_death_as_long_as_the_journal_is_held() {
        let about = about(definition("one").uuid, 5);
        let first = vec![phase(&about, MovePhase::Connecting)];
        let second = [first.clone(), vec![phase(&about, MovePhase::Copying)]].concat();
        let outcome = Some(MoveOutcome::Moved);
        let report = MoveReport { outcome, ..about.blank(MovePhase::Ended) };
        let third = [second.clone(), vec![MoveEvent::Result(Box::new(report))]].concat();
        let (heard, told) = heard(vec![first, second, vec![], third], about, false);
        assert!(matches!(heard, Heard::Result(report) if report.outcome == outcome));
        assert_eq!(told.len(), 2, "each is told once: {told:?}");
        assert!(told[0].contains("connecting") && told[1].contains("copying"), "{told:?}");
    }

    #[test]
    fn a_free_journal_is_the_death_and_another_move_is_not_ours() {
        let ours = about(definition("one").uuid, 5);
        let other = about(ours.uuid, 6);
        let copying = vec![phase(&ours, MovePhase::Copying)];
        let (dead, _) = heard(vec![copying.clone(), copying], ours.clone(), true);
        assert!(matches!(dead, Heard::Dead(_)));
        let (unknown, told) = heard(vec![vec![phase(&other, MovePhase::Copying)]], ours, false);
        assert!(matches!(unknown, Heard::Unknown));
        assert!(told.is_empty(), "{told:?}");
    }
}
