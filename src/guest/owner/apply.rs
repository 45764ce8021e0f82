//! Carrying out what was decided.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use super::{
    Action, Answer, AtomicBool, Command, Done, Ending, ExitHow, Failure, HOST_STOP_DEADLINE,
    Handles, HostStopFile, Instant, MakeMachine, Owner, PausedMachine, Reply, Request,
    SaveUnderWay, State, Term, Timestamp,
};
use vmm::memory::layout::PAGE_SIZE;

use crate::api::ErrorCode;
use crate::api::cpu::GuestCpu;
use crate::guest::facts::VERSION;
use crate::guest::journal::record::Record;
use crate::guest::machine::RunningMachine;
use crate::guest::measure::Measuring;
use crate::guest::save::{self, Job};
use crate::guest::savefile::Metadata;

/// What to save for whom.
struct SaveOrder {
    file: File,
    keep_running: bool,
    reply: Option<Reply>,
    host_stop: Option<HostStopFile>,
}

pub(super) fn unexpected(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Unexpected, format!("{what}: {error}"), "see the guest's log")
}

impl<M: MakeMachine> Owner<M> {
    /// Does it; `Some` when the guest ends by it.
    pub(super) fn apply(&mut self, action: Action, request: Option<Request>) -> Option<Ending> {
        if !matches!(action, Action::Answer | Action::Measure | Action::Ignore | Action::Refuse(_))
        {
            // Whatever it is may need the log, or end the machine that the log is of.
            self.stop_measuring();
        }
        match action {
            Action::Answer => self.answer(request, Ok(())),
            Action::Measure => self.measure(request),
            Action::Pause => {
                self.pause_machine();
                self.answer(request, Ok(()))
            }
            Action::Resume => match self.resume_machine() {
                Ok(result) => self.answer(request, result),
                Err(ending) => Some(ending),
            },
            Action::Rebuild { run, crashed } => {
                self.end_move("it was reset");
                if crashed {
                    self.restarts.push_back(Instant::now());
                }
                self.rebuild(run, request)
            }
            Action::PowerButton => {
                self.end_move("it is being stopped");
                self.power_button(request)
            }
            Action::Move => self.begin_move(request),
            Action::CancelMove | Action::Feed | Action::Hear => self.about_move(request),
            Action::Save { keep_running } => self.save_for_client(keep_running, request),
            Action::SaveAndEnd => {
                self.end_move("its host stops");
                self.save_for_host_stop()
            }
            Action::Throttle(share) => {
                let set = self.set_cpu_share(share);
                self.answer(request, set)
            }
            Action::StandStill { reason } => {
                self.end_move("it crashed");
                self.stand_still(reason);
                None
            }
            Action::End { how, detail } => {
                self.stop_waiters.extend(request.map(|r| r.reply));
                Some(Ending::stopped(how, detail))
            }
            Action::Later => {
                self.terminate_later = true;
                None
            }
            Action::Ignore => None,
            Action::Refuse(no) => {
                let mut failure = Failure::new(no.code, no.message, no.remedy);
                if no.code == ErrorCode::Busy {
                    failure = failure.retryable();
                }
                self.answer(request, Err(failure))
            }
        }
    }

    /// Answers with the facts, or the failure and where the guest is now.
    fn answer(&self, request: Option<Request>, result: Result<(), Failure>) -> Option<Ending> {
        if let Err(failure) = &result {
            tracing::warn!(%failure, "refused or failed");
        }
        if let Some(request) = request {
            request.reply.send(match result {
                Ok(()) if matches!(request.command, Command::Cpu) => self.cpu(),
                Ok(()) => Ok(Answer::Info(Box::new(self.info()))),
                Err(failure) => Err(failure.with_state(self.guest_state())),
            });
        }
        None
    }

    /// The CPU that the guest is shown, while it has one.
    fn cpu(&self) -> Result<Answer, Failure> {
        let Some(handles) = &self.handles else {
            let why = "it is being handed over";
            return Err(Failure::new(ErrorCode::Busy, why, "ask again later").retryable());
        };
        Ok(Answer::Cpu(Box::new(GuestCpu { schema: 1, shown: handles.controls.cpu() })))
    }

    /// Watches the guest's writes; the answer comes when that is done.
    fn measure(&mut self, request: Option<Request>) -> Option<Ending> {
        let Request { reply, .. } = request?;
        let busy = || {
            let why = "the guest's writes are being measured already";
            Failure::new(ErrorCode::Busy, why, "ask again in a second").retryable()
        };
        let units = self.handles.as_ref().map_or(0, |h| h.ram.bytes / PAGE_SIZE);
        let log = match &self.state {
            _ if self.measuring.as_ref().is_some_and(Measuring::goes_on) => Err(busy()),
            State::Running(machine) => machine.start_log(),
            State::Paused(machine) => machine.start_log(),
            _ => Err(busy()),
        };
        match log {
            Ok(log) => {
                self.stop_measuring();
                self.measuring = Measuring::start(log, units, reply);
            }
            Err(failure) => reply.send(Err(failure.with_state(self.guest_state()))),
        }
        None
    }

    /// The dirty log is free when this returns.
    pub(super) fn stop_measuring(&mut self) {
        if let Some(measuring) = self.measuring.take() {
            measuring.stop();
        }
    }

    fn set_cpu_share(&self, share: u8) -> Result<(), Failure> {
        let Some(handles) = &self.handles else { return Ok(()) };
        let set = handles.controls.set_cpu_share(share);
        set.map_err(|e| unexpected("the CPU share cannot be set", &e))
    }

    pub(super) fn pause_machine(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Running(running) | State::Stopping { machine: running, .. } => {
                State::Paused(running.pause())
            }
            other => other,
        };
    }

    /// Lets a paused machine run. The outer error: the machine is lost.
    pub(super) fn resume_machine(&mut self) -> Result<Result<(), Failure>, Ending> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Paused(paused) => match paused.resume() {
                Ok(running) => {
                    self.state = State::Running(running);
                    self.announce();
                }
                Err((Some(paused), failure)) => {
                    self.state = State::Paused(paused);
                    return Ok(Err(failure));
                }
                Err((None, failure)) => {
                    let detail = Some(format!("it could not be resumed: {failure}"));
                    return Err(Ending::stopped(ExitHow::Crashed, detail));
                }
            },
            other => self.state = other,
        }
        Ok(Ok(()))
    }

    /// Tells the network where the guest is, when it runs for the first time in a new place.
    fn announce(&mut self) {
        if let Some(handles) = &self.handles
            && std::mem::take(&mut self.arrived)
            && let Err(error) = handles.controls.announce()
        {
            tracing::warn!(%error, "the network was not told where the guest is");
        }
    }

    fn rebuild(&mut self, run: bool, request: Option<Request>) -> Option<Ending> {
        let share = self.handles.as_ref().map_or(100, |h| h.controls.cpu_share());
        // The old machine must be gone before the new one takes its disks and its memory.
        self.handles = None;
        self.state = State::Gone;
        while self.sources.guest_event().is_some() {}
        self.backlog.clear();
        let rebuilt = self.machines.boot().and_then(|machine| {
            let handles = Handles::of(&machine);
            self.handles = Some(handles.map_err(|e| unexpected("memory is out of reach", &e))?);
            self.state = State::Paused(machine);
            self.resets += 1;
            self.set_cpu_share(share)
        });
        let result = match (rebuilt, run) {
            (Ok(()), true) => match self.resume_machine() {
                Ok(result) => result,
                Err(ending) => return Some(ending),
            },
            (rebuilt, _) => rebuilt,
        };
        match result {
            Ok(()) => self.answer(request, Ok(())),
            Err(failure) => {
                let detail = Some(format!("it could not be reset: {failure}"));
                let mut ending = Ending::stopped(ExitHow::Crashed, detail);
                ending.farewell = request.map(|r| (r.reply, Err(failure)));
                Some(ending)
            }
        }
    }

    fn power_button(&mut self, request: Option<Request>) -> Option<Ending> {
        let (deadline, reply) = match request {
            Some(Request { command: Command::Stop { deadline }, reply }) => (deadline, Some(reply)),
            other => (HOST_STOP_DEADLINE, other.map(|r| r.reply)),
        };
        match self.resume_machine() {
            Ok(Ok(())) => {}
            // It cannot run, so it cannot power itself off.
            Ok(Err(failure)) => {
                self.stop_waiters.extend(reply);
                return Some(Ending::stopped(ExitHow::Killed, Some(failure.to_string())));
            }
            Err(ending) => {
                self.stop_waiters.extend(reply);
                return Some(ending);
            }
        }
        self.stop_waiters.extend(reply);
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Running(machine) => {
                if let Some(handles) = &self.handles {
                    handles.controls.press_power_button();
                }
                let now = Instant::now();
                State::Stopping { machine, until: now.checked_add(deadline).unwrap_or(now) }
            }
            other => other,
        };
        None
    }

    fn stand_still(&mut self, reason: String) {
        tracing::error!(%reason, "the guest crashed and is kept");
        self.pause_machine();
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Paused(machine) => State::Crashed { _machine: machine, reason },
            other => other,
        };
    }

    fn save_for_client(&mut self, keep_running: bool, request: Option<Request>) -> Option<Ending> {
        match request {
            Some(Request { command: Command::Save { file, .. }, reply }) => {
                let reply = Some(reply);
                self.save(SaveOrder { file, keep_running, reply, host_stop: None })
            }
            _ => None,
        }
    }

    fn save_for_host_stop(&mut self) -> Option<Ending> {
        let place = self.host_stop.clone();
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&place.fresh);
        match opened {
            Ok(file) => {
                let host_stop = Some(place);
                self.save(SaveOrder { file, keep_running: false, reply: None, host_stop })
            }
            Err(error) => {
                tracing::error!(%error, "the guest cannot be saved, it is shut down instead");
                self.power_button(None)
            }
        }
    }

    /// Begins a save. The journal is written first, while the guest still runs: the record alone
    /// allows nothing, only together with the complete file, which comes after the stop.
    fn save(&mut self, order: SaveOrder) -> Option<Ending> {
        let save = uuid::Uuid::new_v4();
        if let Err(error) = self.announce_save(save, order.keep_running) {
            return self.save_failed(order.reply, order.host_stop.is_some(), error);
        }
        let was_running = matches!(self.state, State::Running(_));
        let stopped_at = Instant::now();
        let created = Timestamp::now();
        self.pause_machine();
        let pause = stopped_at.elapsed();
        // A reset or power-off that was under way is not part of any machine state: it is
        // carried out instead of the save.
        if let Some(event) = self.sources.guest_event() {
            self.backlog.push_back(event);
            let why = "the guest is being reset or ends by itself";
            let failure = Failure::new(ErrorCode::Busy, why, "try again").retryable();
            // A SIGTERM is looked at again after the event.
            self.terminate_later |= order.host_stop.is_some();
            return self.save_over(was_running, order.reply, false, failure);
        }
        let State::Paused(machine) = std::mem::replace(&mut self.state, State::Gone) else {
            return None;
        };
        let cancel = std::sync::Arc::new(AtomicBool::new(false));
        let job = Job {
            machine,
            file: order.file,
            metadata: self.metadata(save, created, order.keep_running),
            disks: self.disks.clone(),
            cancel: cancel.clone(),
            stopped_at,
            pause,
        };
        match save::start(job, self.inbox.clone()) {
            Ok(()) => {
                self.state = State::Saving(SaveUnderWay {
                    was_running,
                    keep_running: order.keep_running,
                    reply: order.reply,
                    cancel,
                    save,
                    host_stop: order.host_stop,
                });
                None
            }
            Err((machine, error)) => {
                self.state = State::Paused(machine);
                let failure = unexpected("no thread for the save", &error);
                self.save_over(was_running, order.reply, order.host_stop.is_some(), failure)
            }
        }
    }

    fn metadata(&self, save: uuid::Uuid, created: Timestamp, kept_running: bool) -> Metadata {
        Metadata {
            definition: self.facts.definition.clone(),
            term: self.facts.term,
            save,
            created,
            program: VERSION.into(),
            host: self.journal.whose().host_name.clone(),
            disks: Vec::new(),
            kept_running,
        }
    }

    fn announce_save(&mut self, save: uuid::Uuid, keep_running: bool) -> Result<(), Failure> {
        let state = if keep_running { Term::Owner } else { Term::Saved { save } };
        self.rewrite(state, true)
    }

    fn rewrite(&mut self, state: Term, saved_ever: bool) -> Result<(), Failure> {
        let Some(last) = self.journal.last() else { return Ok(()) };
        let saved_ever = saved_ever || last.saved_ever;
        let record = Record { since: Timestamp::now(), saved_ever, state, ..last };
        Ok(self.journal.record(record)?)
    }

    /// A save ended, one way or the other.
    pub(super) fn save_done(&mut self, done: Done<M::Paused>) -> Option<Ending> {
        let State::Saving(save) = std::mem::replace(&mut self.state, State::Paused(done.machine))
        else {
            return None;
        };
        let placed = match (done.result, &save.host_stop) {
            (Ok(result), Some(place)) => put_in_place(place).map(|()| result).map_err(|e| {
                Failure::new(ErrorCode::File, e.to_string(), "check the state directory's disk")
            }),
            (result, _) => result,
        };
        let mut result = match placed {
            Ok(result) => result,
            Err(failure) => {
                let by_host = save.host_stop.is_some();
                return self.save_over(save.was_running, save.reply, by_host, failure);
            }
        };
        if !save.keep_running {
            let mut ending = Ending::stopped(ExitHow::Saved, None);
            ending.detail = save.host_stop.map(|p| p.path.display().to_string());
            ending.term = Term::Saved { save: save.save };
            ending.farewell = save.reply.map(|reply| (reply, Ok(Answer::Save(result))));
            return Some(ending);
        }
        let resumed = if save.was_running { self.resume_machine() } else { Ok(Ok(())) };
        let resumed = match resumed {
            Ok(resumed) => resumed,
            Err(ending) => return Some(ending),
        };
        result.running = matches!(self.state, State::Running(_));
        let stopped = done.stopped_at.elapsed().as_millis();
        result.stopped_ms = u64::try_from(stopped).unwrap_or(u64::MAX);
        if let Some(reply) = save.reply {
            let state = self.guest_state();
            reply.send(resumed.map(|()| Answer::Save(result)).map_err(|f| f.with_state(state)));
        }
        None
    }

    /// A save came to nothing: the guest goes on as before. It may do so only once the journal
    /// says again that no file continues it.
    fn save_over(
        &mut self,
        was_running: bool,
        reply: Option<Reply>,
        by_host: bool,
        failure: Failure,
    ) -> Option<Ending> {
        if let Err(error) = self.rewrite(Term::Owner, true) {
            tracing::error!(%error, "the guest stays paused: its journal cannot be written");
            return self.save_failed(reply, by_host, error);
        }
        if was_running {
            match self.resume_machine() {
                Ok(Ok(())) => {}
                Ok(Err(worse)) => return self.save_failed(reply, by_host, worse),
                Err(ending) => return Some(ending),
            }
        }
        self.save_failed(reply, by_host, failure)
    }

    fn save_failed(
        &mut self,
        reply: Option<Reply>,
        by_host: bool,
        failure: Failure,
    ) -> Option<Ending> {
        tracing::error!(%failure, "the save failed");
        if let Some(reply) = reply {
            reply.send(Err(failure.with_state(self.guest_state())));
        }
        if by_host { self.power_button(None) } else { None }
    }
}

/// Gives a complete file its name, durably.
fn put_in_place(place: &HostStopFile) -> io::Result<()> {
    fs::rename(&place.fresh, &place.path)?;
    match place.path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
