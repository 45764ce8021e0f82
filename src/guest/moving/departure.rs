//! Gives a guest away: a session of the engine on a thread of its own, beside the owner, which
//! keeps the machine until the switch.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use migrate_engine::converge::Limits;
use migrate_engine::failpoint;
use migrate_engine::handover::term::{HostId, SwitchId};
use migrate_engine::port::Arbiter;
use migrate_engine::precopy;
use migrate_engine::session::edge::Outside;
use migrate_engine::session::report::Side;
use migrate_engine::session::source::{self, Held, Kept, Outcome, Plan};
use migrate_engine::session::{Command, SystemClock};
use migrate_engine::transport::quic::Limiter;
use migrate_engine::wire::{AttemptId, GuestId, MoveId};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::arrival::given_up;
use super::feed::Feed;
use super::lease::{LentPaused, LentRunning};
use super::link::End;
use super::report::About;
use super::rights::ProcessRights;
use super::tell::Teller;
use crate::api::moving::{
    MoveEvent, MoveOptions, MoveOutcome, MovePhase, MoveReport, MoveStart, OnStall,
};
use crate::api::{ErrorCode, Failure, GuestState};
use crate::arbiter::remote::Remote;
use crate::config::GuestDefinition;
use crate::guest::disks::DiskSet;
use crate::guest::inbox::Inbox;
use crate::guest::journal::SharedJournal;
use crate::guest::machine::PausedMachine;

/// Commands that may wait for a session.
const COMMANDS: usize = 64;
/// Words that may wait to be carried.
pub(super) const WORDS: usize = 16;

/// All that a departure needs of its process.
pub struct Departure<P: PausedMachine> {
    /// The daemon's order.
    pub start: MoveStart,
    /// The way to the arbiter, if there is one.
    pub arbiter: Option<Arc<Remote>>,
    /// The guest.
    pub definition: GuestDefinition,
    /// Its RAM.
    pub ram: P::Ram,
    /// Its user had paused it.
    pub paused: bool,
    /// The owner.
    pub inbox: Inbox<P>,
    /// The guest's journal.
    pub journal: SharedJournal,
    /// Its disks.
    pub disks: Arc<DiskSet>,
    /// Directory of its marks.
    pub marks: PathBuf,
}

/// A move in progress, as the owner knows it.
#[derive(Debug)]
pub struct UnderWay {
    /// The move.
    pub move_id: Uuid,
    /// Where to, as people call it.
    pub to: String,
    /// Tells the session something.
    pub commands: mpsc::Sender<Command>,
    /// What happens.
    pub feed: Feed,
    /// Budget of what is sent.
    pub limiter: Arc<Limiter>,
    /// The way to the arbiter, of a departure under one.
    pub arbiter: Option<Arc<Remote>>,
    /// Ends soon after the session.
    pub thread: JoinHandle<()>,
}

impl UnderWay {
    /// Runs the future that `session` makes on a thread and a runtime of its own.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn start<F: Future<Output = ()>>(
        move_id: Uuid,
        to: String,
        limiter: Arc<Limiter>,
        session: impl FnOnce(mpsc::Receiver<Command>, Feed) -> F + Send + 'static,
    ) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("move-work")
            .build()
            .map_err(|e| super::unexpected("the move cannot start", &e))?;
        let feed = Feed::default();
        let (commands, told) = mpsc::channel(COMMANDS);
        let telling = feed.clone();
        let body = move || {
            let _log = crate::logging::process::moving(move_id);
            runtime.block_on(session(told, telling));
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("move".into()).spawn(body);
        let thread = thread.map_err(|e| super::unexpected("no thread for the move", &e))?;
        Ok(Self { move_id, to, commands, feed, limiter, arbiter: None, thread })
    }

    /// Tells the session. One that has ended does not need to hear it.
    pub fn tell(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// Cancels; whether that is still free, as far as can be known from here.
    pub fn cancel(&self, why: &str) -> bool {
        let phase = self.feed.phase();
        self.tell(Command::Cancel(why.to_owned()));
        let late = [MovePhase::InDoubt, MovePhase::Ceded, MovePhase::Auditing, MovePhase::Ended];
        !phase.is_some_and(|p| late.contains(&p))
    }
}

/// How a departure ended, for the owner.
pub enum Over<P: PausedMachine> {
    /// The guest stays. The owner has its machine, but for this one, which could not be let run.
    Kept(Option<LentPaused<P>>),
    /// It is gone, certainly.
    Moved,
    /// It is another host's, as it seems; its memory waits for an operator.
    Held(Held<LentPaused<P>>),
}

/// Begins.
///
/// # Errors
/// The order is malformed, a disk cannot be moved, or no thread can be had. Nothing has begun
/// then.
pub fn begin<P: PausedMachine>(departure: Departure<P>) -> Result<UnderWay, Failure> {
    departure.disks.check_movable()?;
    let bandwidth = departure.start.options.bandwidth_bytes_per_s;
    let end = End::new(&departure.start.end, bandwidth)?;
    let plan = plan(&departure)?;
    let (move_id, to) = (departure.start.move_id, departure.start.to.name.clone());
    let (limiter, arbiter) = (end.limiter(), departure.arbiter.clone());
    let begun =
        UnderWay::start(move_id, to, limiter, |told, feed| run(departure, end, plan, told, feed));
    Ok(UnderWay { arbiter, ..begun? })
}

fn plan<P: PausedMachine>(departure: &Departure<P>) -> Result<Plan, Failure> {
    let Departure { start, definition, journal, .. } = departure;
    let ledger = journal.ledger();
    let Some(owned) = ledger.owned() else {
        return Err(super::unexpected("the move", &"this host does not own the guest"));
    };
    let MoveOptions { max_downtime_ms, on_stall, timeout_ms, .. } = start.options;
    Ok(Plan {
        move_id: MoveId(start.move_id.into_bytes()),
        attempt: AttemptId(start.attempt.into_bytes()),
        guest: GuestId(definition.uuid.into_bytes()),
        name: definition.name.clone(),
        definition: super::definition_bytes(definition)?,
        program: super::PROGRAM.into(),
        digest_key: super::random_key(),
        switch: SwitchId(Uuid::new_v4().as_u128()),
        host: journal.whose().host,
        to: HostId(start.to.id.as_u128()),
        owned: owned.term,
        highest: ledger.highest(),
        arbiter: departure.arbiter.clone().map(|a| a as Arc<dyn Arbiter>),
        paused: departure.paused,
        limits: Limits {
            max_downtime: Duration::from_millis(max_downtime_ms),
            timeout: Duration::from_millis(timeout_ms),
        },
        on_stall: match on_stall {
            OnStall::Wait => precopy::OnStall::Wait,
            OnStall::Pause => precopy::OnStall::Pause,
            OnStall::Cancel => precopy::OnStall::Cancel,
        },
        audit: true,
        began_unix_ms: super::unix_ms(),
    })
}

async fn run<P: PausedMachine>(
    departure: Departure<P>,
    end: End,
    plan: Plan,
    commands: mpsc::Receiver<Command>,
    feed: Feed,
) {
    let Departure { start, definition, ram, inbox, journal, disks, marks, .. } = departure;
    let about = Arc::new(About {
        move_id: start.move_id,
        guest: definition.name.clone(),
        uuid: definition.uuid,
        from: start.from.clone(),
        to: start.to.clone(),
        started: Timestamp::now(),
        options: start.options.clone(),
        memory_bytes: definition.memory_bytes,
    });
    let teller = Arc::new(Teller::new(feed.clone(), Arc::clone(&about)));
    teller.phase(MovePhase::Connecting);
    let mut commands = commands;
    let dialled = tokio::select! {
        link = end.dial(&start) => link,
        why = given_up(&mut commands) => {
            Err(Failure::new(ErrorCode::Cancelled, why, "start the move again when it suits"))
        }
    };
    let link = match dialled {
        Ok(link) => link,
        Err(failure) => {
            inbox.move_over(Over::Kept(None)).await;
            feed.tell(&MoveEvent::Result(Box::new(not_connected(&about, failure))));
            return;
        }
    };
    let (events, heard) = mpsc::unbounded_channel();
    let (messages, carried) = mpsc::channel(WORDS);
    let outside = Outside { commands, events, messages };
    let rights = ProcessRights::new(journal, disks, marks, start.to.name.clone());
    let rights = failpoint::rights(Side::Source, rights);
    let guest = LentRunning::new(inbox.clone(), ram);
    let telling = {
        let teller = Arc::clone(&teller);
        tokio::spawn(async move { tokio::join!(teller.events(heard), teller.words(carried)) })
    };
    let (outcome, _rights) =
        source::run(link, plan, guest, rights, SystemClock::new(), outside).await;
    // Everything that was said is told before the result.
    let _ = telling.await;
    let (over, report) = match outcome {
        Outcome::Kept { guest, report, text, .. } => {
            tracing::warn!(MOVE = %about.move_id, GUEST = %about.guest, text, "the guest stays");
            let lent = match guest {
                Kept::Paused { guest, .. } => Some(guest),
                Kept::Running(_) | Kept::Ended => None,
            };
            (Over::Kept(lent), report)
        }
        Outcome::Moved { report } => (Over::Moved, report),
        Outcome::Superseded { guest, report } => (Over::Held(guest), report),
    };
    inbox.move_over(over).await;
    feed.tell(&MoveEvent::Result(Box::new(about.ended(&report, Timestamp::now()))));
}

fn not_connected(about: &About, failure: Failure) -> MoveReport {
    let mut error = *failure.with_state(GuestState::Running).0;
    error.message = format!("the guest was not moved to {}: {}", about.to.name, error.message);
    MoveReport {
        ended: Some(Timestamp::now()),
        outcome: Some(MoveOutcome::Kept),
        error: Some(error),
        ..about.blank(MovePhase::Ended)
    }
}
