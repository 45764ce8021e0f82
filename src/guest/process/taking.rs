//! Everything that has a path or a name is taken and opened here, before the process is confined.
//! No byte of a kernel or of a saved machine is interpreted.

use std::fs::{self, File};
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use migrate_engine::handover::term::{Beside, HostId, Term};
use vmm::events::EventSink;

use super::{OpenMachine, OpenedMachine, Passed, Source, file, unexpected};
use crate::api::{ErrorCode, Failure, LaunchSpec, LoadSpec};
use crate::arbiter::{self, gate::Wish};
use crate::config::{Dirs, GuestDefinition, OnHostStop, host_id};
use crate::guest::confine::{Reach, confine};
use crate::guest::disks::track::TrackIn;
use crate::guest::disks::tracks;
use crate::guest::disks::{Asked, Claim, DiskSet, DiskSetError};
use crate::guest::journal::{self, Journal, JournalError, SharedJournal, Whose};
use crate::guest::load::{self, Grant, Known};
use crate::guest::moving::link;
use crate::guest::owner::HostStopFile;
use crate::guest::runtime::RuntimeDir;
use crate::guest::save::SavedDisk;
use crate::guest::server::Sockets;
use crate::guest::{caller, ending, fingerprint, savefile};

/// Journals that no saved file knows are kept this long, as exit records are.
const JOURNALS_KEPT: Duration = Duration::from_hours(14 * 24);

/// How long a daemon may take to let go of a journal.
const MAKES_WAY: Duration = Duration::from_secs(10);
/// The same, once nothing is left to settle.
const LETS_GO: Duration = Duration::from_secs(1);

/// Everything that had to be taken or opened before confinement.
pub(super) struct Taken<T> {
    pub(super) dir: RuntimeDir,
    pub(super) journal: SharedJournal,
    pub(super) right: Right,
    pub(super) opened: T,
    pub(super) disks: Arc<[SavedDisk]>,
    pub(super) disk_set: DiskSet,
    pub(super) host_stop: HostStopFile,
    pub(super) sockets: Sockets,
}

/// By what right a process has its guest.
pub(super) enum Right {
    /// It starts it.
    Start(Grant),
    /// It receives it, over these sockets.
    Receive(Vec<UdpSocket>),
}

/// Paths are made of the name, so it is checked here whoever checked it before.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let good = bytes.first().is_some_and(|b| plain(*b))
        && bytes.len() <= 63
        && bytes.iter().all(|b| plain(*b) || matches!(b, b'.' | b'-'));
    if good {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::BadDefinition,
        format!("'{name}' is not a guest's name"),
        "use up to 63 of a-z, 0-9, '.' and '-', a letter or digit first",
    ))
}

/// A relative path in a saved file would mean whatever directory this process is in.
pub(super) fn check_paths(definition: &GuestDefinition) -> Result<(), Failure> {
    let single = [&definition.kernel, &definition.initrd, &definition.console_file];
    let disks = definition.disks.iter().map(|d| &d.path);
    match single.into_iter().flatten().chain(disks).find(|p| !p.is_absolute()) {
        None => Ok(()),
        Some(path) => Err(Failure::new(
            ErrorCode::BadDefinition,
            format!("the path '{}' is not absolute", path.display()),
            "a definition that reaches a guest process has absolute paths only",
        )),
    }
}

pub(super) fn watch_caller(
    spec: &LaunchSpec,
    launch: &UnixStream,
) -> Result<Option<OwnedFd>, Failure> {
    if !spec.die_with_parent {
        return Ok(None);
    }
    let gone = |e: io::Error| Failure::new(ErrorCode::Interrupted, e.to_string(), "run it again");
    caller::watch(&launch).map(Some).map_err(gone)
}

pub(super) fn open_source(
    how: Option<&LoadSpec>,
    file: Option<OwnedFd>,
) -> Result<Option<Source>, Failure> {
    let (Some(how), Some(file)) = (how, file) else { return Ok(None) };
    let file = File::from(file);
    let saved = savefile::open(&file).map_err(|e| e.failure())?;
    Ok(Some(Source { how: how.clone(), saved, file }))
}

/// Takes name and identity, opens everything, and confines the process.
pub(super) fn take<O: OpenMachine>(
    machine: &O,
    spec: &LaunchSpec,
    source: Option<&Source>,
    passed: Passed,
    events: EventSink,
) -> Result<Taken<O::Opened>, Failure> {
    let (definition, dirs) = (&spec.definition, &spec.dirs);
    let dir = RuntimeDir::take(&definition.name, dirs.guest(&definition.name))?;
    let journal_dir = dirs.journal(&definition.uuid);
    if let Some(all) = journal_dir.parent() {
        journal::prune(all, Timestamp::now() - JOURNALS_KEPT);
    }
    let whose = whose(definition, dirs)?;
    let journal = take_journal(&journal_dir, &whose, spec.claim.is_some())?;
    let mut opened = machine.open(definition, &dir, passed, events)?;
    let claim = if spec.receive.is_some() { Claim::Receive } else { Claim::Start };
    let mut disk_set = opened.claim_disks(Asked { guest: definition.uuid, claim })?;
    let beside = match claim {
        Claim::Start => disk_set.read_for_start(),
        Claim::Receive => disk_set.read_beside(),
    };
    let beside = beside.map_err(|e| DiskSetError::from(e).failure())?;
    let disks = opened.disks();
    let known = Known { last: journal.last(), whose: &whose, beside };
    let mut right = match (source, &spec.receive) {
        (None, None) => Right::Start(match &spec.claim {
            None => load::grant_start(&known)?,
            Some(claim) => load::grant_claim(&known, claim, disk_set.shared() > 0)?,
        }),
        (Some(s), _) => {
            Right::Start(load::grant_load(&s.how, definition, &s.saved.metadata, &known)?)
        }
        (None, Some(receive)) => {
            load::may_receive(&known)?;
            Right::Receive(link::bind(receive)?)
        }
    };
    if let Some(source) = source {
        check_disks(definition, source, &disks, &whose.host_name)?;
    }
    let tracking = dirs.tracking(&definition.uuid);
    let within = TrackIn::this_boot(tracking.clone(), whose.boot.0)
        .map_err(|e| unexpected("the time of this boot cannot be read", &e))?;
    if let (Some(all), Some(journals)) = (tracking.parent(), journal_dir.parent()) {
        tracks::prune(all, journals, SystemTime::now() - tracks::KEPT);
    }
    disk_set.track(&within, definition.disks.iter(), claim);
    if let Right::Start(grant) = &mut right {
        // Last of all: what is refused for other reasons takes no right.
        let saved = source.filter(|s| !s.how.clone).map(|s| Term::new(s.saved.metadata.term));
        let fenced = spec.claim.as_ref().and_then(crate::api::resolve::Claim::fenced);
        let (guest, name, lowest) = (definition.uuid, &definition.name, Term::new(grant.term));
        let wish = Wish { guest, name, host: whose.host, saved, fenced, lowest };
        grant.term = arbiter::gate::start(dirs, wish)?.get();
    }
    let journal = SharedJournal::new(journal, whose);
    let sockets = Sockets { api: dir.bind(&dir.paths().api())?, fd: dir.bind(&dir.paths().fd())? };
    let saves = (definition.on_host_stop == OnHostStop::Save).then(|| dirs.saves());
    ending::prepare(dirs)
        .and_then(|()| saves.as_ref().map_or(Ok(()), fs::create_dir_all))
        .map_err(|e| file("the instance's directories cannot be made", &e))?;
    let host_stop = HostStopFile {
        fresh: dirs.saves().join(format!("{}.partial", definition.name)),
        path: dirs.saves().join(format!("{}.state", definition.name)),
    };
    let marks = dirs.marks(&definition.uuid);
    fs::create_dir_all(&marks)
        .map_err(|e| file("the instance's directories cannot be made", &e))?;
    confine(&Reach::new(dirs, dir.paths(), (journal_dir, marks, tracking), saves))
        .map_err(|e| unexpected("the guest process cannot be confined", &e))?;
    Ok(Taken { dir, journal, right, opened, disks: disks.into(), disk_set, host_stop, sockets })
}

/// Takes the guest's journal. If somebody holds it who is no guest process, but settles for a dead
/// one whose the guest is, what the journal says is the better answer. Whoever has settled it lets
/// go presently, and for one who `claims` the guest at any time.
fn take_journal(dir: &Path, whose: &Whose, claims: bool) -> Result<Journal, Failure> {
    let (began, patience) = (Instant::now(), if claims { MAKES_WAY } else { LETS_GO });
    loop {
        let held = match Journal::take(dir) {
            Err(held @ JournalError::Held { .. }) => held,
            taken => return Ok(taken?),
        };
        if !claims && let Ok(Some(record)) = journal::read(dir) {
            let known = Known { last: Some(&record), whose, beside: Beside::NOTHING };
            load::grant_start(&known)?;
        }
        if began.elapsed() >= patience {
            return Err(held.into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Under the disks' locks, so that nobody changes them after the look.
fn check_disks(
    definition: &GuestDefinition,
    source: &Source,
    disks: &[SavedDisk],
    host: &str,
) -> Result<(), Failure> {
    let look = |disk: &SavedDisk| {
        fingerprint::take(&disk.file).map_err(|e| {
            let what = format!("disk {} cannot be read: {e}", disk.path.display());
            Failure::new(ErrorCode::BadDisk, what, "check the disk's health")
        })
    };
    let now = disks.iter().map(look).collect::<Result<Vec<_>, _>>()?;
    load::check_disks(definition, &source.saved.metadata, &now, host)
}

/// Whose journal a guest process holds: this guest's, on this host in this boot.
fn whose(definition: &GuestDefinition, dirs: &Dirs) -> Result<Whose, Failure> {
    let name =
        nix::unistd::gethostname().map_err(|e| unexpected("the host's name cannot be read", &e))?;
    let boot = journal::this_boot().map_err(|e| unexpected("the boot id cannot be read", &e))?;
    Ok(Whose {
        uuid: definition.uuid,
        name: definition.name.clone(),
        host_name: name.to_string_lossy().into_owned(),
        host: HostId(host_id(dirs)?.as_u128()),
        boot,
    })
}
