//! Moves in both directions: which go on, what they say, what is kept of them.
//!
//! | module | what it does |
//! |---|---|
//! | [`record`] | the report of a move, made from its events |
//! | [`store`] | reports on disk |
//! | [`outbound`] | gives a guest away |
//! | [`follow`] | hears a guest process, carries its words, tells those who watch |
//! | [`plan`] | what a move would be like |
//! | [`adopt`] | goes on with what a former daemon began |

pub mod adopt;
pub mod follow;
pub mod outbound;
pub mod plan;
pub mod record;
pub mod store;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use migrate_engine::transport::identity::HostName;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::api::client::GuestClient;
use crate::api::moving::{MoveEvent, MoveOutcome, MovePhase, MoveReport};
use crate::api::{ErrorCode, Failure};
use crate::config::Dirs;
use crate::guest::moving::feed::{Feed, Listener};
use record::Record;
use store::Store;

/// Ended moves whose events are kept for those who watch late.
const ENDED_KEPT: usize = 32;

/// Which way a guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It leaves.
    Out,
    /// It arrives.
    In,
}

/// A move, while it goes on and for a while after.
#[derive(Debug)]
pub struct Move {
    /// Its id, everywhere.
    pub id: Uuid,
    /// This attempt.
    pub attempt: Uuid,
    /// Name of the guest.
    pub guest: String,
    /// Identity of the guest.
    pub uuid: Uuid,
    /// Which way.
    pub direction: Direction,
    /// The other host.
    pub peer: HostName,
    /// The guest's process.
    pub client: GuestClient,
    feed: Feed,
    record: Mutex<Record>,
    /// Set when somebody cancels before there is a process that could be told.
    cancelled: watch::Sender<bool>,
}

impl Move {
    /// A move that begins; `report` says of what.
    pub fn new(
        report: MoveReport,
        attempt: Uuid,
        direction: Direction,
        peer: HostName,
        client: GuestClient,
    ) -> Arc<Self> {
        let feed = Feed::default();
        let (id, guest, uuid) = (report.move_id, report.guest.clone(), report.uuid);
        feed.tell(&MoveEvent::Phase {
            move_id: id,
            guest: guest.clone(),
            phase: MovePhase::Preparing,
        });
        let record = Mutex::new(Record::new(report, Timestamp::now()));
        let cancelled = watch::Sender::new(false);
        Arc::new(Self {
            id,
            attempt,
            guest,
            uuid,
            direction,
            peer,
            client,
            feed,
            record,
            cancelled,
        })
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened. Its end is told by [`Moves::end`].
    pub fn tell(&self, event: &MoveEvent) {
        self.record().apply(event, Timestamp::now());
        match event {
            MoveEvent::Words(_) | MoveEvent::Result(_) => {}
            event => self.feed.tell(event),
        }
    }

    /// It ended without a word of its process.
    pub fn conclude(&self, outcome: MoveOutcome, why: Option<&Failure>) {
        self.record().conclude(outcome, why, Timestamp::now());
    }

    /// The report, as far as it is known.
    pub fn report(&self) -> MoveReport {
        self.record().report(Timestamp::now())
    }

    /// Where it stands.
    pub fn phase(&self) -> MovePhase {
        self.record().phase()
    }

    /// Hears everything from the beginning.
    pub fn listen(&self) -> Listener {
        self.feed.listen()
    }

    /// Somebody wants it cancelled, whoever does that.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Waits until somebody wants it cancelled.
    pub async fn cancelled(&self) {
        let mut cancelled = self.cancelled.subscribe();
        if cancelled.wait_for(|yes| *yes).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether somebody wants it cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }
}

/// All moves of a host.
#[derive(Debug)]
pub struct Moves {
    /// Reports on disk.
    pub store: Store,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    moves: BTreeMap<Uuid, Arc<Move>>,
    /// The move that goes on with each guest, by the guest's name.
    busy: BTreeMap<String, Uuid>,
    /// Ended ones, the oldest first.
    ended: Vec<Uuid>,
}

impl Moves {
    /// Those of an instance; none goes on yet.
    pub fn new(dirs: &Dirs) -> Self {
        Self { store: Store::of(dirs), state: Mutex::default(), freed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A move begins, unless another one goes on with the same guest.
    ///
    /// # Errors
    /// `busy`, naming the other.
    pub fn begin(&self, new: &Arc<Move>) -> Result<(), Failure> {
        let mut state = self.lock();
        if let Some(other) = state.busy.get(&new.guest).and_then(|id| state.moves.get(id)) {
            let since = other.report().started;
            return Err(Failure::new(
                ErrorCode::Busy,
                format!("guest '{}' is busy: move {} since {since:.0}", new.guest, other.id),
                "wait for it (--wait), watch it (migrate watch), or cancel it (migrate cancel)",
            )
            .retryable());
        }
        state.busy.insert(new.guest.clone(), new.id);
        state.moves.insert(new.id, Arc::clone(new));
        drop(state);
        self.keep(&new.report());
        Ok(())
    }

    /// As [`Self::begin`], waiting until no other move goes on with the guest.
    pub async fn begin_when_free(&self, new: &Arc<Move>) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.begin(new).is_ok() {
                return;
            }
            freed.await;
        }
    }

    /// A move has ended, as its record says. Its report is kept and those who watch are told.
    pub fn end(&self, ended: &Arc<Move>) -> MoveReport {
        let report = ended.report();
        self.keep(&report);
        tracing::info!(
            MOVE = %ended.id, GUEST = %ended.guest, outcome = ?report.outcome,
            error = report.error.as_ref().map(|e| e.message.as_str()),
            "a move has ended"
        );
        {
            let mut state = self.lock();
            if state.busy.get(&ended.guest) == Some(&ended.id) {
                state.busy.remove(&ended.guest);
            }
            state.ended.push(ended.id);
            if state.ended.len() > ENDED_KEPT {
                let oldest = state.ended.remove(0);
                state.moves.remove(&oldest);
            }
        }
        ended.feed.tell(&MoveEvent::Result(Box::new(report.clone())));
        self.freed.notify_waiters();
        report
    }

    /// Writes a report down.
    pub fn keep(&self, report: &MoveReport) {
        if let Err(error) = self.store.write(report) {
            tracing::error!(MOVE = %report.move_id, %error, "the report cannot be kept");
        }
    }

    /// A move that goes on, or ended a short while ago.
    pub fn get(&self, id: Uuid) -> Option<Arc<Move>> {
        self.lock().moves.get(&id).cloned()
    }

    /// The moves that go on.
    pub fn running(&self) -> Vec<Arc<Move>> {
        let state = self.lock();
        state.busy.values().filter_map(|id| state.moves.get(id)).cloned().collect()
    }

    /// Reports, the latest first, those that go on included.
    ///
    /// # Errors
    /// `file` if the reports cannot be read.
    pub fn list(&self, guest: Option<&str>, limit: usize) -> Result<Vec<MoveReport>, Failure> {
        let mut reports = self.store.latest(guest, limit).map_err(|e| unreadable(&e))?;
        for report in &mut reports {
            if let Some(live) = self.get(report.move_id).filter(|_| report.ended.is_none()) {
                *report = live.report();
            }
        }
        Ok(reports)
    }

    /// The report of a move.
    ///
    /// # Errors
    /// `not-found`, or `file` if it cannot be read.
    pub fn report(&self, id: Uuid) -> Result<MoveReport, Failure> {
        if let Some(live) = self.get(id).filter(|m| m.phase() != MovePhase::Ended) {
            return Ok(live.report());
        }
        self.store.read(id).map_err(|e| unreadable(&e))?.ok_or_else(|| not_found(id))
    }
}

/// There is no such move.
pub fn not_found(id: Uuid) -> Failure {
    Failure::new(
        ErrorCode::NotFound,
        format!("no move {id} is known on this host"),
        "see what moves there were in the last 90 days: migrate history",
    )
}

fn unreadable(error: &std::io::Error) -> Failure {
    Failure::new(
        ErrorCode::File,
        format!("the reports of moves cannot be read: {error}"),
        "check the state directory: migrate help files",
    )
}
