//! The life of a guest process: launch, confinement, rule, end.
//!
//! Order matters. The name and the identity are taken first, then everything that needs a path
//! is opened, then the process is confined, and only then bytes of a kernel or of a saved machine
//! are interpreted and threads started. Whatever fails on the way, dropping what was made so far
//! leaves nothing behind.

mod coming;
mod taking;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use migrate_engine::handover::journal::Record as Step;
use migrate_engine::handover::term::Term;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use coming::Coming;
use taking::{Right, check_name, check_paths, open_source, take, watch_caller};
use vmm::events::{EventSink, channel_pair};

use super::disks::tracks::Tracks;
use super::disks::{Asked, DiskSet};
use super::facts::Facts;
use super::inbox::{self, Inbox, Sources};
use super::journal::record::Record;
use super::journal::{JournalError, SharedJournal};
use super::load::{self, Grant};
use super::machine::{MakeMachine, PausedMachine, Place, Restore};
use super::moving::departure::UnderWay;
use super::owner::{self, Ended, First, HostStopFile, Owner};
use super::runtime::RuntimeDir;
use super::save::SavedDisk;
use super::savefile::{self, SavedFile};
use super::server::{Server, Sockets, WaitConsole};
use super::{ending, log, sys};
use crate::api::launch::{ReceivedFds, receive_launch, send_reply};
use crate::api::{ErrorCode, Failure, GuestInfo, LaunchReply, LaunchSpec, LoadSpec};
use crate::config::{GuestDefinition, hidden_features};

/// What came with the launch document or from the host's settings, for the machine.
#[derive(Debug, Default)]
pub struct Passed {
    /// Where console output goes as well.
    pub console: Option<OwnedFd>,
    /// A tap for each interface whose tap was made for this process, in their order.
    pub taps: Vec<OwnedFd>,
    /// CPU features that no guest is shown on this host.
    pub hidden: Vec<String>,
}

/// Opens what a guest is made of.
pub trait OpenMachine {
    /// What it opens.
    type Opened: OpenedMachine;

    /// Opens everything that has a path or a name: devices, disks, kernel, sockets in `dir`.
    /// Starts no thread and interprets nothing.
    fn open(
        &self,
        definition: &GuestDefinition,
        dir: &RuntimeDir,
        passed: Passed,
        events: EventSink,
    ) -> Result<Self::Opened, Failure>;
}

/// Everything that a guest is made of, open.
pub trait OpenedMachine {
    /// Makes its machines.
    type Machines: MakeMachine;

    /// Claims its disks: with locks or without.
    fn claim_disks(&self, asked: Asked) -> Result<DiskSet, Failure>;

    /// Its disks in the definition's order, as a save sees them.
    fn disks(&mut self) -> Vec<SavedDisk>;

    /// Starts what needs threads (consoles, tracking). Writes to disks go through `tracks`. The process is confined now.
    fn start(self, tracks: &Tracks) -> Result<(Self::Machines, WaitConsole), Failure>;
}

/// The machine type of an [`OpenMachine`].
type MachinesOf<O> = <<O as OpenMachine>::Opened as OpenedMachine>::Machines;

/// The hidden subcommand: the whole life of one guest. It must be called first in the process,
/// before anything is opened and any thread started; what the process inherited is closed.
pub fn process_main(machine: &impl OpenMachine) -> ExitCode {
    if let Err(error) = sys::close_inherited() {
        let _ = writeln!(io::stderr(), "migrate: inherited descriptors cannot be closed: {error}");
        return ExitCode::FAILURE;
    }
    sys::one_heap();
    crate::failpoint::begin();
    log::start();
    match Process::begin().map_err(|e| unexpected("the guest process cannot start", &e)) {
        Ok(process) => process.live(machine),
        Err(failure) => {
            let _ = writeln!(io::stderr(), "migrate: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn unexpected(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Unexpected, format!("{what}: {error}"), "see the guest's log")
}

fn file(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        ErrorCode::File,
        format!("{what}: {error}"),
        "check the instance's directories: rights and free space",
    )
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let (code, remedy) = match &error {
            JournalError::Held { .. } => {
                (ErrorCode::AlreadyRunning, "stop that guest first, or load a clone: --as NAME")
            }
            JournalError::Io { .. } => (ErrorCode::File, "check the state directory's disk"),
            JournalError::Illegal(_) => (ErrorCode::Superseded, "see: migrate show GUEST"),
            JournalError::Damaged { .. } => (
                ErrorCode::File,
                "restore the record from a backup, or remove the journal if no other host can \
                 have this guest",
            ),
        };
        Self::new(code, error.to_string(), remedy)
    }
}

/// A new process, before it knows its guest.
struct Process {
    /// From whoever started us.
    launch: UnixStream,
    /// Where the answer goes; closed by answering.
    reply: File,
    signals: SignalFd,
    started: Timestamp,
}

/// A guest that is there.
struct Guest<M: MakeMachine> {
    owner: Owner<M>,
    server: Server,
    dir: RuntimeDir,
    facts: Facts,
    spec: LaunchSpec,
}

impl Process {
    fn begin() -> io::Result<Self> {
        // A session of its own: no terminal's signals. Fails only if it has one already.
        let _ = nix::unistd::setsid();
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        let none = nix::sys::resource::rlim_t::MIN;
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, none, none)?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        // Blocked here, before any thread, so blocked everywhere. A file that grows past the
        // limit of its size (ulimit -f) is an error of the write, not the end of the guest.
        let mut blocked = mask;
        blocked.add(Signal::SIGXFSZ);
        blocked.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags)?;
        let launch = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let reply = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        Ok(Self { launch, reply, signals, started: Timestamp::now() })
    }

    fn live(self, machine: &impl OpenMachine) -> ExitCode {
        let Self { launch, reply, signals, started } = self;
        match build(machine, &launch, signals, started) {
            Ok((life, answer)) => {
                // Nobody who hears it: then the guest lives all the same.
                let _ = send_reply(&reply, &answer);
                drop((reply, launch));
                match life {
                    Life::Here(guest) => guest.rule(),
                    Life::Coming(coming) => coming.wait(),
                }
            }
            Err(failure) => {
                tracing::error!(%failure, "the guest was not started");
                let code = failure.0.code.exit_code();
                let _ = send_reply(&reply, &LaunchReply::Failed(*failure.0));
                ExitCode::from(code)
            }
        }
    }
}

/// A saved file to continue from.
struct Source {
    how: LoadSpec,
    saved: SavedFile,
    file: File,
}

/// What a process lives for.
enum Life<M: MakeMachine> {
    /// A guest that is there.
    Here(Box<Guest<M>>),
    /// One that is to come.
    Coming(Box<Coming<M>>),
}

/// A confined process with all that a guest of any origin needs.
struct Frame<M: MakeMachine> {
    spec: LaunchSpec,
    started: Timestamp,
    dir: RuntimeDir,
    journal: SharedJournal,
    disks: Arc<[SavedDisk]>,
    disk_set: Arc<DiskSet>,
    host_stop: HostStopFile,
    machines: M,
    sources: Sources<M::Paused>,
    inbox: Inbox<M::Paused>,
}

/// From the launch document to a guest that runs.
fn build<O: OpenMachine>(
    machine: &O,
    launch: &UnixStream,
    signals: SignalFd,
    started: Timestamp,
) -> Result<(Life<MachinesOf<O>>, LaunchReply), Failure> {
    let (spec, fds) =
        receive_launch(launch).map_err(|e| unexpected("the launch document cannot be read", &e))?;
    check_name(&spec.definition.name)?;
    crate::logging::process::is_of(&spec.definition.name);
    check_paths(&spec.definition)?;
    let caller = watch_caller(&spec, launch)?;
    let ReceivedFds { console, load, taps } = fds;
    let source = open_source(spec.load.as_ref(), load)?;
    let no_counter = |e| unexpected("no event counter", &e);
    let (events, guest_events) = channel_pair().map_err(no_counter)?;
    let (inbox, sources) =
        inbox::sources(guest_events, Some(signals), caller).map_err(no_counter)?;

    let hidden = hidden_features(&spec.dirs.config.join("host.toml"))?;
    let passed = Passed { console, taps, hidden };
    let taken = take(machine, &spec, source.as_ref(), passed, events)?;
    let (machines, wait_console) = taken.opened.start(taken.disk_set.tracks())?;
    let frame = Frame {
        spec,
        started,
        dir: taken.dir,
        journal: taken.journal,
        disks: taken.disks,
        disk_set: Arc::new(taken.disk_set),
        host_stop: taken.host_stop,
        machines,
        sources,
        inbox,
    };
    let serve = Serve { sockets: taken.sockets, wait_console };
    match taken.right {
        Right::Start(grant) => frame.start(source, grant, serve),
        Right::Receive(sockets) => frame.receive(sockets, serve),
    }
}

/// What an API server is made of.
struct Serve {
    sockets: Sockets,
    wait_console: WaitConsole,
}

impl Serve {
    fn start<P: PausedMachine>(self, inbox: Inbox<P>) -> Result<Server, Failure> {
        Server::start(self.sockets, inbox, self.wait_console)
            .map_err(|e| unexpected("the API cannot be served", &e))
    }
}

impl<M: MakeMachine> Frame<M> {
    fn facts(&self, pause: Option<Duration>) -> Facts {
        Facts {
            definition: self.spec.definition.clone(),
            term: self.journal.ledger().highest().get(),
            started: self.started,
            console: self.dir.paths().console(),
            loaded_pause_ms: pause.map(|p| u64::try_from(p.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn marks(&self) -> PathBuf {
        self.spec.dirs.marks(&self.spec.definition.uuid)
    }

    /// The owner of `machine`. `brought` is the move that brought it, which has ended.
    fn owner(
        self,
        machine: First<M::Paused>,
        facts: Facts,
        brought: Option<UnderWay>,
    ) -> Result<(Owner<M>, RuntimeDir, LaunchSpec), Failure> {
        let marks = self.marks();
        let (last_feed, mover) = brought.map(|b| (b.feed, b.thread)).unzip();
        let parts = owner::Parts {
            machine,
            machines: self.machines,
            facts,
            journal: self.journal,
            disks: self.disks,
            disk_set: self.disk_set,
            host_stop: self.host_stop,
            sources: self.sources,
            inbox: self.inbox,
            marks,
            bound_to_caller: self.spec.die_with_parent,
            last_feed,
            mover,
        };
        let owner =
            Owner::new(parts).map_err(|e| unexpected("the guest's memory is out of reach", &e))?;
        Ok((owner, self.dir, self.spec))
    }

    /// Boots or loads the guest, and lets it run.
    fn start(
        mut self,
        source: Option<Source>,
        grant: Grant,
        serve: Serve,
    ) -> Result<(Life<M>, LaunchReply), Failure> {
        let (generation, now) = (grant.new_generation, self.started);
        let (first, pause) = first_machine(&mut self.machines, source, generation, now)?;
        let facts = Facts { term: grant.term, ..self.facts(pause) };
        let record = owner_record(&self.journal, grant)?;
        let (inbox, disk_set) = (self.inbox.clone(), self.disk_set.clone());
        let run = !self.spec.start_paused;
        let (mut owner, dir, spec) = self.owner(First::Paused(first), facts.clone(), None)?;
        let server = serve.start(inbox)?;
        write_info(&dir, &owner.info())
            .map_err(|e| file("the guest's facts cannot be written", &e))?;
        owner.begin(record, run)?;
        // It is the guest's now: a move may begin.
        disk_set.drop_next().map_err(|e| unexpected("the disks", &e))?;
        let answer = LaunchReply::Ready(Box::new(owner.info()));
        Ok((Life::Here(Box::new(Guest { owner, server, dir, facts, spec })), answer))
    }
}

/// The machine to begin with, and how far its clocks were put forward if it was loaded.
fn first_machine<M: MakeMachine>(
    machines: &mut M,
    source: Option<Source>,
    new_generation: bool,
    now: Timestamp,
) -> Result<(M::Paused, Option<Duration>), Failure> {
    let Some(Source { how, saved, file }) = source else {
        return Ok((machines.boot()?, None));
    };
    let restore = Restore {
        account_for_pause: load::account_for_pause(how.clock, saved.metadata.created, now),
        new_macs: how.clone,
        new_generation,
    };
    let mut fill = |place: &mut Place<'_>| savefile::load_memory(&file, &saved.header, place);
    let (machine, pause) = machines.restore(&saved.state, restore, &mut fill)?;
    Ok((machine, Some(pause)))
}

/// The record of a start: this host owns the guest, in a new term.
fn owner_record(journal: &SharedJournal, grant: Grant) -> Result<Record, Failure> {
    let (whose, now) = (journal.whose(), Timestamp::now());
    let last = journal.last().unwrap_or_else(|| whose.blank(now));
    let step = Step::Owner { term: Term::new(grant.term) };
    let record = last.after(step, whose.boot, None, now).map_err(JournalError::from)?;
    let Grant { origin, saved_ever, claimed: note, .. } = grant;
    let name = whose.name.clone();
    Ok(Record { name, origin, saved_ever, note, ..record })
}

fn write_info(dir: &RuntimeDir, info: &GuestInfo) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(info)?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.paths().info())?;
    file.write_all(&bytes)
}

impl<M: MakeMachine> Guest<M> {
    /// Until the end. Clients that wait for it hear of it when name, identity and disks are free.
    fn rule(self) -> ExitCode {
        let Self { owner, server, dir, facts, spec } = self;
        let Ended { how, detail, journal, farewells, mover } = owner.run();
        tracing::info!(?how, detail = detail.as_deref(), "the guest ended");
        // A switch that came to nothing leaves the guest in a later term.
        let facts = Facts { term: journal.last().map_or(facts.term, |r| r.term()), ..facts };
        if let Err(error) = ending::leave(&spec.dirs, dir.paths(), &facts, how, detail) {
            tracing::error!(%error, "the exit record or console log could not be kept");
        }
        drop(dir);
        // A move has some last words, and holds the journal until then.
        if let Some(mover) = mover {
            let _ = mover.join();
        }
        drop(journal);
        for (reply, answer) in farewells {
            reply.send(answer);
        }
        server.end();
        ExitCode::SUCCESS
    }
}
