//! Moves in both directions: which go on, who may begin one, what those hear who watch. A move
//! goes on in the guest's process whatever happens here.
//!
//! | module | what it does |
//! |---|---|
//! | [`outbound`] | gives a guest away: agrees, orders, follows, concludes |
//! | [`follow`] | hears a guest process, and carries its words |
//! | [`record`] | what a restarted daemon must know of moves that have not ended |
//! | [`plan`] | what a move would be like |
//! | [`forecast`] | how long it would take, and on what that rests |

pub mod follow;
mod forecast;
pub mod outbound;
mod outbox;
pub mod plan;
pub mod record;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use migrate_engine::handover::journal::Record as Step;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use self::record::{Direction, Open};
use super::{Daemon, history};
use crate::api::client::GuestClient;
use crate::api::moving::{MoveEvent, MoveOutcome, MovePhase, MoveReport};
use crate::api::{ErrorBody, ErrorCode, Failure, GuestState};
use crate::guest::journal;
use crate::guest::moving::feed::Feed;
use crate::host::leftover::{self, Life};

/// How long a process that is dead may take to let go of everything.
const DYING: Duration = Duration::from_secs(10);
/// Moves that ended and can still be listened to.
const REMEMBERED: usize = 64;

/// A move that goes on or has ended lately.
#[derive(Debug)]
struct Entry {
    open: Arc<Open>,
    feed: Feed,
    /// For its age; older ones are forgotten first.
    began: Instant,
    ended: bool,
    /// The guest's process has its order, and can be told to cancel.
    ordered: bool,
    /// Somebody wants it cancelled.
    cancel: watch::Sender<bool>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Moves {
    all: Mutex<BTreeMap<Uuid, Entry>>,
    changed: Notify,
}

/// What a move that has just begun is told with, and hears.
#[derive(Debug)]
pub struct Begun {
    /// Tells those who watch.
    pub feed: Feed,
    /// Whether somebody wants it cancelled.
    pub cancel: watch::Receiver<bool>,
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn going<T>(&self, look: impl Fn(&Entry) -> Option<T>) -> Vec<T> {
        self.lock().values().filter(|e| !e.ended).filter_map(look).collect()
    }

    /// Number of those away from here that go on.
    pub fn running(&self) -> u32 {
        let out = self.going(|e| (e.open.direction == Direction::Out).then_some(()));
        u32::try_from(out.len()).unwrap_or(u32::MAX)
    }

    /// A move begins, or what is in the way. A guest leaves in one move at a time.
    fn claim(&self, open: &Arc<Open>) -> Result<Begun, Failure> {
        let mut all = self.lock();
        let out = |e: &&Entry| !e.ended && e.open.direction == Direction::Out;
        let same = |e: &&Entry| e.open.about.uuid == open.about.uuid;
        if open.direction == Direction::Out
            && let Some(other) = all.values().filter(out).find(same)
        {
            let other = &other.open.about;
            return Err(Failure::new(
                ErrorCode::Busy,
                format!(
                    "guest '{}' is busy: move {} to {} since {:.0}",
                    other.guest, other.move_id, other.to.name, other.started
                ),
                format!("watch it: migrate watch {}; or wait for it: --wait", other.guest),
            )
            .retryable());
        }
        let feed = Feed::default();
        let (cancel, wanted) = watch::channel(false);
        let entry = Entry {
            open: Arc::clone(open),
            feed: feed.clone(),
            began: Instant::now(),
            ended: false,
            ordered: false,
            cancel,
        };
        all.insert(open.about.move_id, entry);
        while all.len() > REMEMBERED {
            let oldest = all.iter().filter(|(_, e)| e.ended).min_by_key(|(_, e)| e.began);
            let Some(oldest) = oldest.map(|(id, _)| *id) else { break };
            all.remove(&oldest);
        }
        Ok(Begun { feed, cancel: wanted })
    }

    /// The guest's process has its order. Says whether somebody wanted it cancelled before: then
    /// the process has not heard of it.
    pub fn ordered(&self, id: Uuid) -> bool {
        let mut all = self.lock();
        let Some(entry) = all.get_mut(&id) else { return false };
        entry.ordered = true;
        *entry.cancel.borrow()
    }

    /// Somebody wants it cancelled. Answers the guest, if its process must be told.
    fn cancel(&self, id: Uuid) -> Option<Cancelling> {
        let all = self.lock();
        let entry = all.get(&id).filter(|e| !e.ended)?;
        entry.cancel.send_replace(true);
        let guest = entry.open.about.guest.clone();
        Some(if entry.ordered { Cancelling::Told(guest) } else { Cancelling::Preparing })
    }

    /// What can be listened to of a move.
    pub fn feed(&self, id: Uuid) -> Option<Feed> {
        self.lock().get(&id).map(|e| e.feed.clone())
    }

    /// Whether this move goes on.
    pub fn goes_on(&self, id: Uuid) -> bool {
        self.lock().get(&id).is_some_and(|e| !e.ended)
    }

    /// Whether a move of this guest goes on.
    pub fn follows(&self, guest: Uuid) -> bool {
        !self.going(|e| (e.open.about.uuid == guest).then_some(())).is_empty()
    }

    /// Name here of the guest of a move that goes on with that host on its other side.
    pub fn guest_with(&self, id: Uuid, guest: Uuid, other: &str) -> Option<String> {
        let all = self.lock();
        let entry = all.get(&id).filter(|e| !e.ended)?;
        let fits = entry.open.about.uuid == guest && entry.open.other() == other;
        fits.then(|| entry.open.about.guest.clone())
    }

    /// A report of each move that goes on, latest first.
    pub fn going_on(&self) -> Vec<MoveReport> {
        let now = crate::failpoint::now();
        let mut reports = self.going(|e| {
            let phase = e.feed.phase().unwrap_or(MovePhase::Preparing);
            let about = &e.open.about;
            Some(MoveReport { total_ms: since(about.started, now), ..about.blank(phase) })
        });
        reports.sort_by_key(|r| std::cmp::Reverse(r.started));
        reports
    }

    /// What each of the moves with a budget may use: they share the smallest that was asked for.
    fn shares(&self) -> Vec<(String, u64)> {
        let limited = self.going(|e| {
            let about = &e.open.about;
            let rate = about.options.bandwidth_bytes_per_s?;
            (e.open.direction == Direction::Out).then(|| (about.guest.clone(), rate))
        });
        let Some(budget) = limited.iter().map(|(_, rate)| *rate).min() else { return Vec::new() };
        let share = (budget / limited.len().max(1) as u64).max(1);
        limited.into_iter().map(|(guest, _)| (guest, share)).collect()
    }

    /// The move has ended with this report.
    fn end(&self, report: &MoveReport) {
        if let Some(entry) = self.lock().get_mut(&report.move_id) {
            entry.ended = true;
            entry.feed.tell(&MoveEvent::Result(Box::new(report.clone())));
        }
        self.changed.notify_waiters();
    }
}

/// Who cancels a move.
enum Cancelling {
    /// Nobody yet is to be told but the task that prepares it.
    Preparing,
    /// The process of this guest.
    Told(String),
}

#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
fn since(started: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(started).as_micros().max(0) as f64 / 1000.0
}

fn body(code: ErrorCode, message: &str, remedy: &str, state: Option<GuestState>) -> ErrorBody {
    ErrorBody {
        code,
        message: message.into(),
        remedy: remedy.into(),
        retryable: false,
        guest_state: state,
    }
}

impl Daemon {
    /// A move begins: it is on record, and can be watched.
    pub(super) fn begin_move(&self, open: &Arc<Open>) -> Result<Begun, Failure> {
        let begun = self.moves.claim(open)?;
        if let Err(error) = record::keep(&self.dirs, open) {
            let failure = Failure::new(
                ErrorCode::File,
                format!(
                    "the move cannot be put on record on {} in {}, so it was not begun: {error}",
                    self.host_ref().name,
                    self.dirs.state.display(),
                ),
                "make room in that directory, and see that it can be written",
            );
            let failed = outbound::failed(&open.about, failure.clone());
            self.moves.end(&failed);
            return Err(failure);
        }
        let (move_id, guest) = (open.about.move_id, open.about.guest.clone());
        begun.feed.tell(&MoveEvent::Phase { move_id, guest, phase: MovePhase::Preparing });
        Ok(begun)
    }

    /// A move has ended, as far as this host knows: its report is kept, and those who watch hear
    /// it. One that is in doubt stays on record.
    pub(super) fn end_move(&self, open: &Open, report: &MoveReport) {
        let (id, guest) = (report.move_id, &report.guest);
        let error = report.error.as_ref().map(|e| e.message.as_str());
        let out = open.direction == Direction::Out;
        if out {
            let outcome = report.outcome.map(tracing::field::debug);
            tracing::info!(MOVE = %id, GUEST = guest, outcome, error, "a move ended");
        } else {
            let arrived = report.outcome == Some(MoveOutcome::Moved);
            tracing::info!(MOVE = %id, GUEST = guest, arrived, error, "an arrival ended");
        }
        // The source's report says more than ours, and may have come before.
        if out || !history::read(&self.dirs, report.move_id).is_ok_and(|r| r.ended.is_some()) {
            history::keep(&self.dirs, report);
        }
        if report.outcome != Some(MoveOutcome::InDoubt) {
            record::remove(&self.dirs, report.move_id);
        }
        self.moves.end(report);
    }

    /// What the journal says of a move whose process is dead.
    pub(super) fn verdict(&self, open: &Open) -> MoveReport {
        let about = &open.about;
        let record = journal::read(&self.dirs.journal(&about.uuid));
        let now = record.as_ref().map(|r| r.as_ref().and_then(|r| r.ledger.now()));
        let (outcome, error) = match (open.direction, now.map_err(ToString::to_string)) {
            (_, Err(why)) => {
                let what = format!("whose the guest is, cannot be seen here: {why}");
                let remedy = "repair it; then it settles by itself: migrate help recovery";
                (MoveOutcome::InDoubt, Some(body(ErrorCode::InDoubt, &what, remedy, None)))
            }
            (Direction::Out, Ok(Some(Step::Ceded(_) | Step::Moved(_))))
            | (Direction::In, Ok(Some(Step::Owner { .. }))) => (MoveOutcome::Moved, None),
            (_, Ok(Some(Step::Offered(_) | Step::Receiving(_)))) => {
                let what = "the guest's process died in the middle of the hand-over, and the other \
                            host does not answer: whose the guest is, is not settled";
                let remedy = format!("bring {} back; then it settles by itself", open.other());
                (MoveOutcome::InDoubt, Some(body(ErrorCode::InDoubt, what, &remedy, None)))
            }
            (Direction::Out, _) => {
                let what = "the guest's process died while the guest was being moved";
                let remedy = format!("start it again: migrate start {}", about.guest);
                let state = Some(GuestState::Stopped);
                (MoveOutcome::Kept, Some(body(ErrorCode::MoveFailed, what, &remedy, state)))
            }
            (Direction::In, _) => {
                let what = "the process that was to receive the guest died";
                let remedy = "see its log: migrate help files";
                (MoveOutcome::Kept, Some(body(ErrorCode::MoveFailed, what, remedy, None)))
            }
        };
        let ended = crate::failpoint::now();
        MoveReport {
            outcome: Some(outcome),
            error,
            ended: Some(ended),
            total_ms: since(about.started, ended),
            ..about.blank(MovePhase::Ended)
        }
    }

    /// Removes what a dead process left in its runtime directory.
    pub(super) fn clear_up(
        self: &Arc<Self>,
        guest: &str,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (daemon, guest) = (Arc::clone(self), guest.to_owned());
        async move {
            let paths = daemon.dirs.guest(&guest);
            let began = Instant::now();
            // Its journal is let go a moment before its directory, or after it.
            while matches!(leftover::life(&paths), Ok(Life::Alive)) && began.elapsed() < DYING {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if let Ok(Life::Dead(claim)) = leftover::life(&paths)
                && let Err(error) = leftover::clean(&daemon.dirs, &paths, claim)
            {
                tracing::warn!(GUEST = guest, %error, "leftovers of a guest process remain");
            }
        }
    }

    /// What a guest left open is settled: a move of it that was in doubt has its outcome.
    pub(super) fn settled(&self, guest: Uuid) {
        for open in record::all(&self.dirs).into_iter().filter(|o| o.about.uuid == guest) {
            if !self.moves.follows(guest) {
                let report = self.verdict(&open);
                self.end_move(&open, &report);
            }
        }
    }
}

/// Cancels a move. `None`: no such move goes on.
pub async fn cancel(daemon: &Daemon, id: Uuid) -> Option<Result<bool, Failure>> {
    let guest = match daemon.moves.cancel(id)? {
        Cancelling::Preparing => return Some(Ok(true)),
        Cancelling::Told(guest) => guest,
    };
    let client = GuestClient::new(&guest, daemon.dirs.guest(&guest));
    Some(match client.cancel_move().await {
        Ok(answer) => Ok(answer.accepted),
        Err(error) => Err(client.failure(error)),
    })
}
