//! Moves to this host: room is reserved, a receiver started, followed, and cleared up after.
//!
//! Room is reserved under one lock before anything is started, so that two moves that come
//! together cannot share the last of it. It is given back when the receiver is gone, or when the
//! guest runs and its memory shows by itself in what the host has left.
//!
//! | module | what it does |
//! |---|---|
//! | [`room`] | what is promised, and what there is |
//! | [`facts`] | what the host has just now |

pub mod facts;
pub mod room;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use migrate_engine::handover::journal::Record as Step;
use migrate_engine::transport::identity::Ephemeral;
use tokio::sync::Notify;
use tracing::Instrument;
use uuid::Uuid;

use self::room::{Claim, Host, Limits, Room};
use super::moves::Begun;
use super::moves::follow::{Heard, follow};
use super::moves::record::{Direction, Open};
use super::peer::{Answer, Prepare};
use super::{Daemon, keeper, unexpected};
use crate::api::client::GuestClient;
use crate::api::moving::{DataEnd, HostRef, MoveReport, ReceiveSpec};
use crate::api::{ErrorCode, Failure, LaunchSpec};
use crate::config::{GuestDefinition, hex};
use crate::failpoint;
use crate::guest::journal;
use crate::guest::moving::report::About;
use crate::host::leftover::{self, Life};
use crate::host::spawn::{Receiver, launch_receiver};
use crate::logging;

pub use facts::memory;

/// How long a receiver waits for its source.
pub const ORPHAN: Duration = Duration::from_mins(1);
/// How long a receiver may take to start, and a guest that arrived to be on file.
pub const LAUNCH: Duration = Duration::from_secs(30);
/// Most data lanes.
const LANES: u8 = 8;
/// How long a guest that comes back waits for the process that it left, and between two looks.
const LEAVING: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long an attempt that its source has given up may take to be gone.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// Guests that are expected, by attempt.
#[derive(Debug)]
pub struct Inbound {
    room: Mutex<Room>,
    /// A promise is over.
    released: Notify,
}

impl Inbound {
    /// Of a host with these limits.
    pub fn new(limits: Limits) -> Self {
        Self { room: Mutex::new(Room::new(limits)), released: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is promised to `attempt`, but not for long. Says whether that came.
    async fn gone(&self, attempt: Uuid) -> bool {
        let wait = async {
            loop {
                let released = self.released.notified();
                if !self.lock().holds(attempt) {
                    return;
                }
                released.await;
            }
        };
        tokio::time::timeout(GIVEN_UP, wait).await.is_ok()
    }

    /// Memory promised to guests that are expected.
    pub fn reserved(&self) -> u64 {
        self.lock().promised()
    }

    /// Data ports of guests that are expected.
    pub fn ports(&self) -> Vec<u16> {
        self.lock().ports()
    }

    /// Moves to here that go on.
    pub fn running(&self) -> u32 {
        u32::try_from(self.lock().expected()).unwrap_or(u32::MAX)
    }
}

/// Gives a promise back.
pub struct Reservation {
    daemon: Arc<Daemon>,
    attempt: Uuid,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.daemon.inbound.lock().release(self.attempt);
        self.daemon.inbound.released.notify_waiters();
    }
}

/// Everything that the destination has not, and the guest needs.
fn missing(definition: &GuestDefinition) -> Option<Failure> {
    let files = [("kernel", &definition.kernel), ("initial RAM disk", &definition.initrd)];
    let files = files.into_iter().filter_map(|(what, path)| Some((what, path.as_ref()?)));
    let kind = |shared| if shared { "shared disk" } else { "disk" };
    let disks = definition.disks.iter().map(|disk| (kind(disk.shared), &disk.path));
    let absent = files.chain(disks).filter(|(_, path)| !path.exists());
    let absent: Vec<String> =
        absent.map(|(what, path)| format!("{what} {}", path.display())).collect();
    let remedy = match absent[..] {
        [] => return None,
        [_] => "make it reachable there at the same path",
        _ => "make them reachable there at the same paths",
    };
    let message = format!("the destination has not the guest's {}", absent.join(", nor its "));
    Some(Failure::new(ErrorCode::Incompatible, message, remedy))
}

/// Whether these paths are nowhere here, in the order in which they were asked for.
pub fn absent(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.into_iter().filter(|path| !path.exists()).collect()
}

impl Daemon {
    /// Whether a guest may come, as far as can be seen without starting anything.
    fn may_come(&self, definition: &GuestDefinition) -> Result<(), Failure> {
        let bad = |why: String| {
            let remedy = "see what both hosts have: migrate help moving";
            Failure::new(ErrorCode::Incompatible, why, remedy)
        };
        crate::config::check_name(&definition.name).map_err(bad)?;
        self.dirs.check_socket_paths(&definition.name)?;
        missing(definition).map_or(Ok(()), Err)
    }

    /// The host as it is now. `wanted` ports are looked for.
    fn host_now(&self, wanted: usize) -> Host {
        let receivers = self.inbound.lock().receivers();
        let filled = receivers.into_iter().map(|(pid, most)| facts::touched(pid).min(most));
        // More than are wanted: some are promised.
        let most = wanted.saturating_add(usize::from(LANES + 1) * self.inbound.lock().expected());
        let ports = self.config.data_ports.clone().filter(|port| is_free(self, *port));
        Host {
            available: memory().available,
            filled: filled.fold(0, u64::saturating_add),
            guests: facts::guests(&self.dirs),
            ports: ports.take(most).collect(),
        }
    }

    /// A guest that comes back soon may find the process that it left, or us in the place of that
    /// process: both are about to end.
    async fn let_end(&self, definition: &GuestDefinition) {
        let began = Instant::now();
        while began.elapsed() < LEAVING && self.acts_for(definition.uuid) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let record = journal::read(&self.dirs.journal(&definition.uuid)).ok().flatten();
        let now = record.as_ref().and_then(|r| r.ledger.now());
        if !matches!(now, Some(Step::Ceded(_) | Step::Moved(_))) {
            return;
        }
        let is_same = |g: &room::Present| {
            g.uuid.map_or(g.name == definition.name, |uuid| uuid == definition.uuid)
        };
        while began.elapsed() < LEAVING && facts::guests(&self.dirs).iter().any(is_same) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// An attempt before this one that its source has given up is ended, and waited for. Nothing
    /// is taken from it: its process decides whether it can be, by its journal.
    async fn let_go(&self, attempt: Uuid, claim: &Claim) {
        let Some(before) = self.inbound.lock().left_behind(attempt, claim) else { return };
        let record = journal::read(&self.dirs.journal(&claim.uuid)).ok().flatten();
        if matches!(record.as_ref().and_then(|r| r.ledger.now()), Some(Step::Owner { .. })) {
            // It has come: what is promised to it is about to be its own.
            self.inbound.gone(before).await;
            return;
        }
        self.abandon(before).await;
    }

    /// Reserves room and starts a receiver, or only looks.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        from: HostRef,
        prepare: Prepare,
    ) -> Result<Answer, Failure> {
        let Prepare { move_id, attempt, definition, lanes, dry_run, .. } = &prepare;
        self.may_come(definition)?;
        self.same_arbiter(&from.name, prepare.arbiter).await?;
        if let Some(cpu) = &prepare.cpu {
            self.has_cpu(cpu).await?;
        }
        self.let_end(definition).await;
        let wanted = usize::from((*lanes).clamp(1, LANES)) + 1;
        let claim = Claim::of(*move_id, from.id, definition, wanted);
        if !*dry_run {
            self.let_go(*attempt, &claim).await;
        }
        let host = self.host_now(wanted);
        let room_bytes = self.inbound.lock().left(&host);
        if *dry_run {
            let problems = self.inbound.lock().problems(&claim, &host);
            let (ports, fingerprint) = (Vec::new(), String::new());
            let arbiter = prepare.arbiter;
            let fits = Ok(Answer::Prepared { ports, fingerprint, room_bytes, arbiter });
            return problems.into_iter().next().map_or(fits, Err);
        }
        let ports = self.inbound.lock().reserve(*attempt, claim, &host)?;
        let reservation = Reservation { daemon: Arc::clone(self), attempt: *attempt };
        tracing::info!(MOVE = %move_id, GUEST = definition.name, from = from.name, "a guest is to come");
        let (started, options) = prepare.asked.clone().unwrap_or_default();
        let about = About {
            move_id: *move_id,
            guest: definition.name.clone(),
            uuid: definition.uuid,
            from: from.clone(),
            to: self.host_ref(),
            started,
            options,
            memory_bytes: definition.memory_bytes,
        };
        let open = Arc::new(Open::new(Direction::In, *attempt, about, definition.clone()));
        let begun = self.begin_move(&open)?;
        let arbiter = prepare.arbiter;
        match self.start_receiver(from, prepare, &ports).await {
            Ok((answer, child)) => {
                let wanted = self.inbound.lock().started(open.attempt, child.id());
                reap(child);
                if !wanted {
                    self.cancel_receiver(&open.about.guest).await;
                }
                let span = logging::about_move(Some(open.about.move_id), &open.about.guest);
                let receiving = receive(Arc::clone(self), open, begun, Some(reservation));
                tokio::spawn(receiving.instrument(span));
                Ok(answer.prepared(room_bytes, arbiter))
            }
            Err(failure) => {
                let report = super::moves::outbound::failed(&open.about, failure.clone());
                self.end_move(&open, &MoveReport { ended: Some(Timestamp::now()), ..report });
                Err(failure)
            }
        }
    }

    async fn start_receiver(
        self: &Arc<Self>,
        from: HostRef,
        prepare: Prepare,
        ports: &[u16],
    ) -> Result<(Listening, Child), Failure> {
        let own = Ephemeral::generate().map_err(|e| unexpected("a certificate", &e))?;
        let (certificate, key) = own.to_der();
        let fingerprint = own.fingerprint().to_string();
        let ip = self.config.listen.ip();
        let Prepare { move_id, attempt, definition, payload, .. } = prepare;
        let spec = LaunchSpec {
            definition,
            dirs: self.dirs.clone(),
            load: None,
            die_with_parent: false,
            stdio_console: false,
            start_paused: false,
            claim: None,
            receive: Some(ReceiveSpec {
                move_id,
                attempt,
                from,
                to: self.host_ref(),
                listen: ports.iter().map(|port| SocketAddr::new(ip, *port)).collect(),
                end: DataEnd {
                    certificate: hex::encode(certificate),
                    key: hex::encode(key),
                    peer: prepare.fingerprint,
                    payload,
                },
                patience_ms: u64::try_from(ORPHAN.as_millis()).unwrap_or(u64::MAX),
            }),
        };
        let span = logging::about_move(Some(move_id), &spec.definition.name);
        let _ = failpoint::at(|| "daemon.launch.before".into());
        let launch = move || span.in_scope(|| launch_receiver(&spec, Some(LAUNCH)));
        let started = tokio::task::spawn_blocking(launch);
        let started = started.await.map_err(|e| unexpected("the receiver", &e))?;
        let _ = failpoint::at(|| "daemon.launch.after".into());
        let Receiver { addresses, child } = started?;
        let ports = addresses.iter().map(SocketAddr::port).collect();
        Ok((Listening { ports, fingerprint }, child))
    }

    /// The source's side says that a guest will not come. Answers when nothing of the attempt is
    /// left, or it takes too long.
    pub(super) async fn abandon(&self, attempt: Uuid) {
        let name = {
            let mut room = self.inbound.lock();
            let Some(claim) = room.give_up(attempt) else { return };
            tracing::info!(MOVE = %claim.move_id, GUEST = claim.name, "the guest does not come");
            claim.name.clone()
        };
        self.cancel_receiver(&name).await;
        if !self.inbound.gone(attempt).await {
            tracing::warn!(GUEST = name, "an attempt that was given up is not gone yet");
        }
    }

    async fn cancel_receiver(&self, guest: &str) {
        let client = GuestClient::new(guest, self.dirs.guest(guest));
        // One that is just starting is told when it is there.
        let _ = client.cancel_move().await;
    }

    /// A guest that was arriving when a former daemon ended has its promise again. There is room
    /// for it: it is here already.
    pub(super) fn promise_again(self: &Arc<Self>, open: &Open, pid: u32) -> Reservation {
        let claim = Claim::of(open.about.move_id, open.about.from.id, &open.definition, 0);
        self.inbound.lock().hold(open.attempt, claim, pid);
        Reservation { daemon: Arc::clone(self), attempt: open.attempt }
    }
}

/// A receiver that waits.
struct Listening {
    ports: Vec<u16>,
    fingerprint: String,
}

impl Listening {
    fn prepared(self, room_bytes: u64, arbiter: Option<Uuid>) -> Answer {
        let Self { ports, fingerprint } = self;
        Answer::Prepared { ports, fingerprint, room_bytes, arbiter }
    }
}

/// Whether nobody has a UDP port.
fn is_free(daemon: &Daemon, port: u16) -> bool {
    std::net::UdpSocket::bind(SocketAddr::new(daemon.config.listen.ip(), port)).is_ok()
}

/// Waits for a process on a thread: it lives as long as its guest.
pub fn reap(mut child: Child) {
    let reaper = std::thread::Builder::new().name("reaper".into());
    if let Err(error) = reaper.spawn(move || child.wait()) {
        tracing::warn!(%error, "no thread waits for a guest process");
    }
}

/// Follows a guest that arrives, until it is known what came of it.
pub async fn receive(
    daemon: Arc<Daemon>,
    open: Arc<Open>,
    begun: Begun,
    reservation: Option<Reservation>,
) {
    // Its receiver is there, whoever is to be told to cancel.
    if daemon.moves.ordered(open.about.move_id) {
        daemon.cancel_receiver(&open.about.guest).await;
    }
    let about = &open.about;
    let report = match follow(&daemon, &open, &begun.feed).await {
        Heard::Result(report) => {
            MoveReport { started: about.started, options: about.options.clone(), ..*report }
        }
        Heard::Unknown => daemon.verdict(&open),
        Heard::Dead(acting) => {
            tracing::warn!(MOVE = %about.move_id, GUEST = about.guest, "a receiver is dead");
            let why = format!("the receiving process on {} died", about.to.name);
            let telling = daemon.tell_of_death(&about.from.name, about.uuid, about.move_id, &why);
            // A tombstone needs nobody's answer; the source's daemon may be slow to hear of it.
            tokio::join!(telling, daemon.settle(about.uuid, acting, keeper::PATIENCE));
            // A daemon that ends now comes back to the record of the move, so that goes last.
            daemon.clear_up(&about.guest).await;
            daemon.verdict(&open)
        }
    };
    on_file(&daemon, about).await;
    drop(reservation);
    tokio::spawn(daemon.clear_up(&about.guest));
    daemon.end_move(&open, &report);
}

/// Waits until the guest's process has described it or is gone: its memory counts by itself then.
async fn on_file(daemon: &Daemon, about: &About) {
    let paths = daemon.dirs.guest(&about.guest);
    let began = Instant::now();
    while began.elapsed() < LAUNCH
        && facts::info(&paths).is_none()
        && matches!(leftover::life(&paths), Ok(Life::Alive))
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
