//! Guests that arrive: whether there is room ([`room`]), their receivers, and what an attempt
//! leaves behind. A receiver that nobody comes to ends by itself; then its promise ends too.

pub mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use migrate_engine::transport::identity::{Ephemeral, Fingerprint};
use uuid::Uuid;

use self::room::{Claim, Host, Room};
use super::facts;
use super::moves::follow::{Heard, follow, is_gone};
use super::moves::outbound::payload_to;
use super::moves::{Direction, Move, record};
use super::peer::link::Peer;
use super::peer::proto::{Attempt, Prepare, Prepared, Whereabouts};
use super::settings::{MAX_LANES, Settings};
use super::state::{Daemon, blocking};
use crate::api::client::GuestClient;
use crate::api::moving::{DataEnd, HostRef, MoveOptions, MoveOutcome, ReceiveSpec};
use crate::api::{ErrorBody, ErrorCode, Failure, GuestState, LaunchSpec};
use crate::config::{GuestDefinition, check_name, hex};
use crate::host::leftover::{self, Life, life};

/// How long a receiver waits for its source.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// How long a receiver that has said its last word may take to end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Tries to find ports that nobody uses.
const TRIES: usize = 4;
/// Most vCPUs, memory and devices of a guest that may come.
const MOST: (u32, u64, usize) = (32, 1 << 40, 64);

/// Guests that arrive.
#[derive(Debug, Default)]
pub struct Inbound {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    room: Room,
    /// Process ids of receivers, by attempt.
    receivers: BTreeMap<Uuid, u32>,
}

impl Inbound {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that is promised, bytes.
    pub fn reserved(&self) -> u64 {
        self.lock().room.reserved()
    }

    fn release(&self, attempt: &Uuid) {
        let mut state = self.lock();
        state.room.release(attempt);
        state.receivers.remove(attempt);
    }

    /// A receiver that a former daemon started keeps its promise.
    pub fn adopt(&self, attempt: Uuid, claim: Claim, host: &Host) {
        let nothing = BTreeSet::new();
        let without_ports = Claim { ports: 0, ..claim };
        if let Err(error) = self.lock().room.reserve(attempt, without_ports, host, &nothing) {
            tracing::warn!(%error, "a guest arrives for which there was no room");
        }
    }
}

/// The host as it is now. Guests that arrive are in `state`, not here.
fn host(dirs: &crate::config::Dirs, settings: &Settings, state: &State) -> Host {
    let arriving: BTreeSet<&str> = state.room.names().collect();
    let mut guests = facts::guests(dirs);
    guests.retain(|guest| guest.info.is_some() || !arriving.contains(guest.name.as_str()));
    let receivers: Vec<u32> = state.receivers.values().copied().collect();
    Host {
        free: facts::free_for_guests(&guests, &receivers, settings.memory),
        cpus: facts::cpus(),
        guests: guests.iter().map(facts::Here::present).collect(),
        ports: settings.data_ports.clone(),
    }
}

/// The host as it is now, for adopting.
pub fn host_now(daemon: &Daemon) -> Host {
    host(&daemon.dirs, &daemon.settings(), &daemon.inbound.lock())
}

/// Answers a daemon whose guest wants to come: room is promised and a receiver waits.
///
/// # Errors
/// What is in the way, in words for the user at the source.
pub async fn prepare(
    daemon: &Arc<Daemon>,
    peer: &Arc<Peer>,
    prepare: Prepare,
) -> Result<Prepared, Failure> {
    let from = HostRef { id: peer.hello.host.id, name: peer.name.to_string() };
    check(&prepare, &from)?;
    if prepare.dry_run {
        return dry_run(daemon, peer, prepare).await;
    }
    // An id belongs to one move: nobody writes over the report of another.
    let known = daemon.moves.report(prepare.move_id).ok();
    if known.is_some_and(|r| r.from != from || r.uuid != prepare.guest.uuid || r.ended.is_none()) {
        let message = format!("there is a move {} already", prepare.move_id);
        return Err(Failure::new(ErrorCode::Busy, message, "see it: migrate report ID"));
    }
    let payload = payload_to(peer.address)?.min(prepare.payload);
    let own = Ephemeral::generate()
        .map_err(|e| Failure::new(ErrorCode::Unexpected, e.to_string(), "see the daemon's log"))?;
    let (certificate, key) = own.to_der();
    let end = DataEnd {
        certificate: hex::encode(certificate),
        key: hex::encode(key),
        peer: prepare.fingerprint.clone(),
        payload,
    };
    let to = daemon.host();
    let moved = entry(daemon, &prepare, from, peer);
    daemon.moves.begin(&moved)?;
    let (work, attempt) = (Arc::clone(daemon), prepare.attempt);
    let started = blocking(move || start(&work, prepare, end)).await;
    let (addresses, room_bytes) = match started {
        Ok(started) => started,
        Err(failure) => {
            daemon.inbound.release(&attempt);
            moved.conclude(MoveOutcome::Kept, Some(&failure));
            end_move(daemon, &moved);
            return Err(failure);
        }
    };
    tracing::info!(MOVE = %moved.id, GUEST = %moved.guest, from = %moved.peer, "a guest arrives");
    tokio::spawn(attend(Arc::clone(daemon), moved));
    let fingerprint = own.fingerprint().to_string();
    Ok(Prepared { to, addresses, fingerprint, payload, room_bytes, problems: Vec::new() })
}

fn entry(daemon: &Daemon, prepare: &Prepare, from: HostRef, peer: &Peer) -> Arc<Move> {
    let guest = &prepare.guest;
    let about = (guest.name.as_str(), guest.uuid, guest.memory_bytes);
    let options = MoveOptions::default();
    let report =
        record::blank(prepare.move_id, about, from, daemon.host(), options, Timestamp::now());
    let client = GuestClient::new(&guest.name, daemon.dirs.guest(&guest.name));
    Move::new(report, prepare.attempt, Direction::In, peer.name.clone(), client)
}

/// Everything that can be said of a request without looking at the host.
fn check(prepare: &Prepare, from: &HostRef) -> Result<(), Failure> {
    let refuse = |what: &str| {
        let remedy = "use the same release of migrate on both hosts";
        Err(Failure::new(
            ErrorCode::BadDefinition,
            format!("the request is refused: {what}"),
            remedy,
        ))
    };
    let guest = &prepare.guest;
    if check_name(&guest.name).is_err() {
        return refuse("the guest has no proper name");
    }
    if prepare.from != *from {
        return refuse("it names another host as its source");
    }
    if prepare.fingerprint.parse::<Fingerprint>().is_err() {
        return refuse("the fingerprint is none");
    }
    if !(1..=MAX_LANES).contains(&prepare.lanes) {
        return refuse("the number of lanes is out of range");
    }
    let (cpus, memory, devices) = MOST;
    let fits = (1..=cpus).contains(&guest.cpus) && guest.memory_bytes <= memory;
    if !fits || guest.disks.len() > devices || guest.nets.len() > devices {
        return refuse("the guest is larger than any that can run");
    }
    Ok(())
}

/// What of the guest's definition cannot be had on this host. Looks at paths only.
fn missing(guest: &GuestDefinition) -> Vec<Failure> {
    let mut problems = Vec::new();
    let absent = |path: &Path| !path.is_absolute() || !path.exists();
    for disk in guest.disks.iter().filter(|disk| absent(&disk.path)) {
        problems.push(Failure::new(
            ErrorCode::BadDisk,
            format!("the disk {} is not there on the destination", disk.path.display()),
            "mount the shared storage there under the same path",
        ));
    }
    for file in [&guest.kernel, &guest.initrd].into_iter().flatten().filter(|path| absent(path)) {
        problems.push(Failure::new(
            ErrorCode::Incompatible,
            format!("{} is not there on the destination: a reset would need it", file.display()),
            "copy it there under the same path",
        ));
    }
    problems
}

async fn dry_run(
    daemon: &Arc<Daemon>,
    peer: &Arc<Peer>,
    prepare: Prepare,
) -> Result<Prepared, Failure> {
    let payload = payload_to(peer.address)?.min(prepare.payload);
    let work = Arc::clone(daemon);
    let looked = blocking(move || {
        let claim = Claim::of(prepare.move_id, &prepare.guest, 0);
        let state = work.inbound.lock();
        let host = host(&work.dirs, &work.settings(), &state);
        let mut problems = missing(&prepare.guest);
        problems.extend(state.room.problems(&claim, &host));
        Ok((state.room.left(&host), problems))
    });
    let (room_bytes, problems) = looked.await?;
    let problems: Vec<ErrorBody> = problems.into_iter().map(|f| *f.0).collect();
    let (to, addresses, fingerprint) = (daemon.host(), Vec::new(), String::new());
    Ok(Prepared { to, addresses, fingerprint, payload, room_bytes, problems })
}

/// Promises room and starts the receiver. Blocks. Answers where it listens, and the room left.
fn start(
    daemon: &Daemon,
    prepare: Prepare,
    end: DataEnd,
) -> Result<(Vec<SocketAddr>, u64), Failure> {
    if let Some(problem) = missing(&prepare.guest).into_iter().next() {
        return Err(problem);
    }
    let settings = daemon.settings();
    let ip = listen_ip(daemon, &settings)?;
    let ports = usize::from(prepare.lanes) + 1;
    let claim = Claim::of(prepare.move_id, &prepare.guest, ports);
    let attempt = prepare.attempt;
    let mut spec = LaunchSpec {
        definition: prepare.guest,
        dirs: daemon.dirs.clone(),
        load: None,
        die_with_parent: false,
        stdio_console: false,
        start_paused: false,
        receive: None,
    };
    let mut avoid = BTreeSet::new();
    let mut last = None;
    for _ in 0..TRIES {
        let (ports, left) = {
            let mut state = daemon.inbound.lock();
            let host = host(&daemon.dirs, &settings, &state);
            let ports = state.room.reserve(attempt, claim.clone(), &host, &avoid)?;
            (ports, state.room.left(&host))
        };
        spec.receive = Some(ReceiveSpec {
            move_id: prepare.move_id,
            attempt,
            from: prepare.from.clone(),
            to: daemon.host(),
            listen: ports.iter().map(|port| SocketAddr::new(ip, *port)).collect(),
            end: end.clone(),
            patience_ms: u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX),
        });
        match daemon.launcher.launch(&spec) {
            Ok(waiting) => {
                daemon.inbound.lock().receivers.insert(attempt, waiting.pid);
                return Ok((waiting.addresses, left));
            }
            Err(failure) => {
                daemon.inbound.release(&attempt);
                if failure.0.code != ErrorCode::Busy {
                    return Err(failure);
                }
                avoid.extend(ports);
                last = Some(failure);
            }
        }
    }
    Err(last.unwrap_or_else(|| Failure::new(ErrorCode::Unexpected, "no receiver was started", "")))
}

/// Where receivers listen: in the migration network, else where the daemon does.
///
/// # Errors
/// `bad-net` if this host has no address in that network.
pub fn listen_ip(daemon: &Daemon, settings: &Settings) -> Result<IpAddr, Failure> {
    let Some(network) = &settings.migration_network else {
        return Ok(daemon.port().map_or(settings.listen.ip(), |port| port.address.ip()));
    };
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    addresses.into_iter().find(|ip| network.contains(*ip)).ok_or_else(|| {
        Failure::new(
            ErrorCode::BadNet,
            "the destination has no address in its migration_network",
            "correct migration_network in host.toml there",
        )
    })
}

/// Hears a receiver out, then ends its promise and clears up after it.
async fn attend(daemon: Arc<Daemon>, moved: Arc<Move>) {
    if let Heard::Died = follow(&daemon, &moved).await {
        let here = whereabouts(&daemon, moved.attempt, moved.uuid).await;
        let failure = Failure::new(
            ErrorCode::MoveFailed,
            "the receiving process died; whose the guest is, is known at the source",
            format!("see on the other host: migrate report {}", moved.id),
        );
        match here {
            Whereabouts::Here => moved.conclude(MoveOutcome::Moved, None),
            _ => moved.conclude(MoveOutcome::InDoubt, Some(&failure)),
        }
    }
    let report = moved.report();
    if report.outcome != Some(MoveOutcome::Moved) {
        clear_up(&daemon, &moved).await;
    }
    daemon.inbound.release(&moved.attempt);
    end_move(&daemon, &moved);
}

fn end_move(daemon: &Daemon, moved: &Arc<Move>) {
    // The source knows more: what it has handed over already stays.
    let kept = daemon.moves.store.read(moved.id).ok().flatten().filter(|r| r.ended.is_some());
    let report = daemon.moves.end(moved);
    if let Some(kept) = kept {
        daemon.moves.keep(&kept);
    }
    daemon.metrics.moved(Direction::In, &report);
}

/// Waits for the process to end, and removes what is left of one that was killed.
async fn clear_up(daemon: &Arc<Daemon>, moved: &Arc<Move>) {
    let step = Duration::from_millis(100);
    for _ in 0..FAREWELL.as_millis() / step.as_millis() {
        if is_gone(moved) {
            break;
        }
        tokio::time::sleep(step).await;
    }
    let (dirs, paths) = (daemon.dirs.clone(), moved.client.paths().clone());
    let cleared = blocking(move || {
        if let Ok(Life::Dead(claim)) = life(&paths) {
            let clean = leftover::clean(&dirs, &paths, claim);
            clean.map_err(|e| Failure::new(ErrorCode::File, e.to_string(), ""))?;
        }
        Ok(())
    });
    if let Err(error) = cleared.await {
        tracing::warn!(MOVE = %moved.id, GUEST = %moved.guest, %error, "leftovers remain");
    }
}

/// Goes on with a receiver that a former daemon started.
pub fn go_on(daemon: &Arc<Daemon>, moved: Arc<Move>) {
    tokio::spawn(attend(Arc::clone(daemon), moved));
}

/// The source's daemon says that nobody comes.
///
/// # Errors
/// The receiver does not answer.
pub async fn abandon(daemon: &Arc<Daemon>, peer: &Peer, attempt: Attempt) -> Result<(), Failure> {
    let Some(moved) = daemon.moves.get(attempt.move_id) else { return Ok(()) };
    let same = moved.attempt == attempt.attempt && moved.peer == peer.name;
    if !same || moved.direction != Direction::In {
        return Ok(());
    }
    match moved.client.cancel_move().await {
        Ok(_) => Ok(()),
        Err(_) if is_gone(&moved) => Ok(()),
        Err(error) => Err(moved.client.failure(error).with_state(GuestState::Arriving)),
    }
}

/// What became of an attempt here.
pub async fn whereabouts(daemon: &Arc<Daemon>, attempt: Uuid, guest: Uuid) -> Whereabouts {
    let work = Arc::clone(daemon);
    let looked = blocking(move || {
        if facts::guests(&work.dirs).iter().any(|here| here.uuid() == Some(guest)) {
            return Ok(Whereabouts::Here);
        }
        let arriving = work.inbound.lock().receivers.contains_key(&attempt);
        Ok(if arriving { Whereabouts::Arriving } else { Whereabouts::Nothing })
    });
    looked.await.unwrap_or(Whereabouts::Nothing)
}
