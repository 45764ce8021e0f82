//! The owner of the guest: one loop that takes one event, asks [`decide`] and carries it out.
//! Nothing else in the process runs, stops or ends the machine.

mod apply;
mod moving;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use vmm::events::GuestEvent;

use super::decide::{Action, Input, Phase, Policy, decide};
use super::disks::{DiskSet, DiskSetError};
use super::facts::{Facts, Now};
use super::inbox::{Answer, Command, Event, Inbox, Reply, Request, Sources};
use super::journal::SharedJournal;
use super::journal::record::{Record, State as Term};
use super::machine::{Controls, MakeMachine, PausedMachine, RamFile, RunningMachine};
use super::measure::Measuring;
use super::moving::departure::UnderWay;
use super::moving::feed::Feed;
use super::save::{Done, SavedDisk};
use crate::api::{ExitHow, Failure, GuestInfo, GuestState, StopHow, StopResult};

/// Time that a guest gets to power off on SIGTERM.
const HOST_STOP_DEADLINE: Duration = Duration::from_secs(90);
/// More restarts after a crash than this within [`CRASH_WINDOW`] are a loop.
const CRASH_LIMIT: usize = 5;
/// See [`CRASH_LIMIT`].
const CRASH_WINDOW: Duration = Duration::from_mins(1);
/// A save that was given up gets this long to let go of the machine.
const GIVE_UP: Duration = Duration::from_secs(5);

/// The machine and what it is doing.
enum State<P: PausedMachine> {
    Running(P::Running),
    Paused(P),
    Crashed {
        /// Held for a look.
        _machine: P,
        reason: String,
    },
    Stopping {
        machine: P::Running,
        until: Instant,
    },
    Saving(SaveUnderWay),
    /// It is with the move.
    Leaving,
    /// Another host has the better right; what is left of the guest waits for an operator.
    Held {
        _guest: Box<dyn Send>,
    },
    /// Only while a machine changes hands, and at the end.
    Gone,
}

/// What must be known when a save ends.
struct SaveUnderWay {
    was_running: bool,
    keep_running: bool,
    reply: Option<Reply>,
    cancel: Arc<AtomicBool>,
    save: uuid::Uuid,
    /// For a save by SIGTERM: renamed into place at the end.
    host_stop: Option<HostStopFile>,
}

/// Where a save by SIGTERM goes.
#[derive(Clone, Debug)]
pub struct HostStopFile {
    /// Written to.
    pub fresh: PathBuf,
    /// Renamed to when complete.
    pub path: PathBuf,
}

/// The guest, and everything by which it is ruled.
pub struct Owner<M: MakeMachine> {
    state: State<M::Paused>,
    machines: M,
    /// `None` only while there is no machine: they keep parts of it alive.
    handles: Option<Handles>,
    facts: Facts,
    journal: SharedJournal,
    disks: Arc<[SavedDisk]>,
    disk_set: Arc<DiskSet>,
    host_stop: HostStopFile,
    sources: Sources<M::Paused>,
    inbox: Inbox<M::Paused>,
    /// Events that came while nobody could act on them.
    backlog: VecDeque<GuestEvent>,
    stop_waiters: Vec<Reply>,
    terminate_later: bool,
    restarts: VecDeque<Instant>,
    resets: u64,
    /// Directory of the guest's marks.
    marks: PathBuf,
    bound_to_caller: bool,
    moving: Option<UnderWay>,
    /// What happened in the last move.
    last_feed: Option<Feed>,
    /// The thread of the last move, which has some last words.
    mover: Option<JoinHandle<()>>,
    /// Its writes are watched just now.
    measuring: Option<Measuring>,
    /// It has not run here yet, but elsewhere or earlier: the network must hear of it.
    arrived: bool,
}

/// What reaches a machine whatever it is doing.
struct Handles {
    controls: Box<dyn Controls>,
    ram: RamFile,
}

impl Handles {
    fn of<P: PausedMachine>(machine: &P) -> std::io::Result<Self> {
        Ok(Self { controls: machine.controls(), ram: machine.ram()? })
    }
}

/// The machine that an owner begins with.
#[derive(Debug)]
pub enum First<P: PausedMachine> {
    /// It stands still.
    Paused(P),
    /// It runs: it came from another host.
    Running(P::Running),
    /// It came from another host, which has the better right all the same.
    Held(P),
}

impl<P: PausedMachine> First<P> {
    fn handles(&self) -> std::io::Result<Handles> {
        match self {
            Self::Paused(machine) | Self::Held(machine) => Handles::of(machine),
            Self::Running(machine) => {
                Ok(Handles { controls: machine.controls(), ram: machine.ram()? })
            }
        }
    }
}

/// What an owner is made of.
pub struct Parts<M: MakeMachine> {
    /// The first machine.
    pub machine: First<M::Paused>,
    /// For resets.
    pub machines: M,
    /// About the guest.
    pub facts: Facts,
    /// Held for life; its record says `Owner`.
    pub journal: SharedJournal,
    /// The guest's disks, as a save sees them.
    pub disks: Arc<[SavedDisk]>,
    /// Their locks, held, and what stands beside them.
    pub disk_set: Arc<DiskSet>,
    /// Where SIGTERM saves to.
    pub host_stop: HostStopFile,
    /// What to wait for.
    pub sources: Sources<M::Paused>,
    /// For worker threads.
    pub inbox: Inbox<M::Paused>,
    /// Directory of the guest's marks.
    pub marks: PathBuf,
    /// The guest ends with the process that started it.
    pub bound_to_caller: bool,
    /// What happened in the move that brought it.
    pub last_feed: Option<Feed>,
    /// The thread of that move.
    pub mover: Option<JoinHandle<()>>,
}

/// The end.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub how: ExitHow,
    /// More, for people.
    pub detail: Option<String>,
    /// The journal, its record final.
    pub journal: SharedJournal,
    /// Clients that wait for the guest to be gone, and what to tell them then.
    pub farewells: Vec<(Reply, Result<Answer, Failure>)>,
    /// A move that has some last words.
    pub mover: Option<JoinHandle<()>>,
}

/// How it will end.
struct Ending {
    how: ExitHow,
    detail: Option<String>,
    term: Term,
    farewell: Option<(Reply, Result<Answer, Failure>)>,
}

impl Ending {
    fn stopped(how: ExitHow, detail: Option<String>) -> Self {
        Self { how, detail, term: Term::Stopped, farewell: None }
    }
}

impl<M: MakeMachine> Owner<M> {
    /// Takes over a machine.
    ///
    /// # Errors
    /// Its memory cannot be reached.
    pub fn new(parts: Parts<M>) -> std::io::Result<Self> {
        let handles = Some(parts.machine.handles()?);
        // One that runs already was announced when it was resumed.
        let arrived =
            parts.facts.loaded_pause_ms.is_some() && matches!(parts.machine, First::Paused(_));
        Ok(Self {
            state: match parts.machine {
                First::Paused(machine) => State::Paused(machine),
                First::Running(machine) => State::Running(machine),
                First::Held(machine) => State::Held { _guest: Box::new(machine) },
            },
            machines: parts.machines,
            handles,
            facts: parts.facts,
            journal: parts.journal,
            disks: parts.disks,
            disk_set: parts.disk_set,
            host_stop: parts.host_stop,
            sources: parts.sources,
            inbox: parts.inbox,
            backlog: VecDeque::new(),
            stop_waiters: Vec::new(),
            terminate_later: false,
            restarts: VecDeque::new(),
            resets: 0,
            marks: parts.marks,
            bound_to_caller: parts.bound_to_caller,
            moving: None,
            last_feed: parts.last_feed,
            mover: parts.mover,
            measuring: None,
            arrived,
        })
    }

    /// Writes the right to run beside the shared disks and into the journal, in this order (see
    /// [`gate`](migrate_engine::handover::gate)), and lets the machine `run` for the first time.
    ///
    /// # Errors
    /// The record cannot be written, or the machine cannot run. It never ran then.
    pub fn begin(&mut self, record: Record, run: bool) -> Result<(), Failure> {
        if let Some(right) = record.ledger.owned() {
            let stamped = self.disk_set.stamp_owner(right).map_err(DiskSetError::from);
            stamped.map_err(|e| e.failure())?;
        }
        self.journal.record(record)?;
        if !run {
            return Ok(());
        }
        let failed = |ending: Ending| {
            let why = ending.detail.unwrap_or_default();
            Failure::new(crate::api::ErrorCode::Unexpected, why, "see the guest's log")
        };
        let ran = self.resume_machine().map_err(failed).flatten();
        if ran.is_err() {
            self.journal.end_term(Term::Stopped, Timestamp::now())?;
        }
        ran
    }

    /// Facts as they are now.
    pub fn info(&self) -> GuestInfo {
        let crash = match &self.state {
            State::Crashed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        self.facts.info(Now {
            state: self.guest_state(),
            memory_used_bytes: self.handles.as_ref().map_or(0, |h| h.ram.used_bytes()),
            cpu_share_percent: self.handles.as_ref().map_or(100, |h| h.controls.cpu_share()),
            resets: self.resets,
            crash,
            disk_tracking: self.disk_set.tracks().info(),
        })
    }

    /// Rules until the guest ends. Its machine is gone then.
    pub fn run(mut self) -> Ended {
        let ending = loop {
            if let Some(ending) = self.step() {
                break ending;
            }
        };
        self.finish(ending)
    }

    fn step(&mut self) -> Option<Ending> {
        if let Some(event) = self.backlog.pop_front() {
            return self.handle(Input::Guest(event), None);
        }
        if self.terminate_later && !matches!(self.state, State::Saving(_) | State::Leaving) {
            self.terminate_later = false;
            return self.handle(Input::Terminate, None);
        }
        let deadline = match &self.state {
            State::Stopping { until, .. } => Some(*until),
            _ => None,
        };
        match self.sources.wait(deadline) {
            Event::Request(request) => self.handle(request.command.input(), Some(request)),
            Event::SaveDone(done) => self.save_done(done),
            Event::Lease(lease) => self.lease(lease),
            Event::MoveOver(over, ack) => self.move_over(over, ack),
            Event::Landed(..) => None,
            Event::Guest(event) => {
                tracing::info!(?event, "guest event");
                self.handle(Input::Guest(event), None)
            }
            Event::Terminate => self.handle(Input::Terminate, None),
            Event::CallerGone => self.handle(Input::CallerGone, None),
            Event::Deadline => self.handle(Input::Deadline, None),
        }
    }

    fn handle(&mut self, input: Input, request: Option<Request>) -> Option<Ending> {
        // Outside of an event there is always a machine; without one only the end is left.
        let Some(phase) = self.phase() else {
            let detail = Some("the machine was lost".to_owned());
            return Some(Ending::stopped(ExitHow::Died, detail));
        };
        let policy = self.policy();
        let action = decide(phase, input, policy);
        if action != Action::Answer {
            tracing::debug!(?phase, ?action, "decided");
        }
        self.apply(action, request)
    }

    fn phase(&self) -> Option<Phase> {
        match self.state {
            State::Running(_) => Some(Phase::Running),
            State::Paused(_) => Some(Phase::Paused),
            State::Crashed { .. } => Some(Phase::Crashed),
            State::Stopping { .. } => Some(Phase::Stopping),
            State::Saving(_) => Some(Phase::Saving),
            State::Leaving => Some(Phase::Leaving),
            State::Held { .. } => Some(Phase::Held),
            State::Gone => None,
        }
    }

    fn guest_state(&self) -> GuestState {
        match self.state {
            State::Running(_) => GuestState::Running,
            State::Paused(_) => GuestState::Paused,
            State::Crashed { .. } => GuestState::Crashed,
            State::Stopping { .. } => GuestState::Stopping,
            State::Saving(_) => GuestState::Saving,
            State::Leaving | State::Held { .. } => GuestState::Leaving,
            State::Gone => GuestState::Stopped,
        }
    }

    fn policy(&mut self) -> Policy {
        while self.restarts.front().is_some_and(|t| t.elapsed() > CRASH_WINDOW) {
            self.restarts.pop_front();
        }
        Policy {
            on_crash: self.facts.definition.on_crash,
            on_host_stop: self.facts.definition.on_host_stop,
            writable_disk: self.facts.writable_disk(),
            crash_loop: self.restarts.len() >= CRASH_LIMIT,
            moving: self.moving.is_some(),
            bound_to_caller: self.bound_to_caller,
        }
    }

    /// Gives up everything, the machine first.
    fn finish(mut self, ending: Ending) -> Ended {
        let mut farewells: Vec<_> = ending.farewell.into_iter().collect();
        self.stop_measuring();
        self.finish_move(ending.detail.as_deref().unwrap_or("the guest has ended"));
        self.handles = None;
        if let State::Saving(save) = std::mem::replace(&mut self.state, State::Gone) {
            save.cancel.store(true, Ordering::Relaxed);
            drop(self.sources.wait_for_save(GIVE_UP));
            let gone = "the guest was ended while it was being saved";
            let failure = Failure::new(crate::api::ErrorCode::Interrupted, gone, "start it again");
            farewells.extend(save.reply.map(|r| (r, Err(failure))));
        }
        if self.journal.ledger().owned().is_some() {
            self.disk_set.tracks().finish();
        }
        if let Err(error) = self.journal.end_term(ending.term, Timestamp::now()) {
            // The record still says `Owner` and the lock will be free: that reads as "died".
            tracing::error!(%error, "the end of the guest could not be recorded");
        }
        let how =
            if ending.how == ExitHow::PoweredOff { StopHow::PoweredOff } else { StopHow::Killed };
        let stopped = || Ok(Answer::Stop(StopResult { schema: 1, how }));
        farewells.extend(self.stop_waiters.drain(..).map(|reply| (reply, stopped())));
        let (detail, journal, mover) = (ending.detail, self.journal, self.mover);
        Ended { how: ending.how, detail, journal, farewells, mover }
    }
}
