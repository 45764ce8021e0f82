//! Moves to this host: room is reserved, a receiver started, followed, and cleared up after.
//!
//! Room is reserved under one lock before anything is started, so that two moves that come
//! together cannot share the last of it. It is given back when the receiver is gone, or when the
//! guest runs: then its memory shows by itself in what the host has left.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migrate_engine::transport::identity::Ephemeral;
use tracing::Instrument;
use uuid::Uuid;

use super::peer::{Answer, Prepare, Request};
use super::{Daemon, history, unexpected};
use crate::api::client::GuestClient;
use crate::api::moving::{DataEnd, HostRef, MoveEvent, MoveOutcome, ReceiveSpec};
use crate::api::{ErrorCode, Failure, LaunchSpec};
use crate::config::{GuestDefinition, hex};
use crate::host::leftover::{self, Life};
use crate::host::spawn::{Receiver, launch_receiver};
use crate::logging;

/// How long a receiver waits for its source.
const ORPHAN: Duration = Duration::from_mins(1);
/// How long a receiver may take to start.
const LAUNCH: Duration = Duration::from_secs(30);
/// Memory that a guest process needs beside its guest.
const OVERHEAD: u64 = 64 << 20;
/// Most data lanes.
const LANES: u8 = 8;

/// A guest that is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    name: String,
    guest: Uuid,
    memory: u64,
    ports: Vec<u16>,
    move_id: Uuid,
}

/// Guests that are expected, by attempt.
#[derive(Debug, Default)]
pub struct Inbound(Mutex<BTreeMap<Uuid, Expected>>);

/// Memory of this host, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All.
    pub total: u64,
    /// What could be had now.
    pub available: u64,
}

/// Reads `/proc/meminfo`.
pub fn memory() -> Memory {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Memory {
        total: field("MemTotal:").unwrap_or(0),
        available: field("MemAvailable:").unwrap_or(0),
    }
}

impl Inbound {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Expected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory promised to guests that are expected.
    pub fn reserved(&self) -> u64 {
        self.lock().values().map(|e| e.memory).sum()
    }

    /// Moves to here that go on.
    pub fn running(&self) -> u32 {
        u32::try_from(self.lock().len()).unwrap_or(u32::MAX)
    }

    /// Reserves room for a guest, or says why there is none. `available` is what the host has
    /// left; `ports` are to choose `wanted` from.
    fn reserve(
        &self,
        attempt: Uuid,
        expected: Expected,
        available: u64,
        (mut ports, wanted): (impl Iterator<Item = u16>, usize),
    ) -> Result<Vec<u16>, Failure> {
        let mut all = self.lock();
        if let Some(same) = all.values().find(|e| e.name == expected.name) {
            return Err(taken(&same.name, "is arriving there just now"));
        }
        if all.values().any(|e| e.guest == expected.guest) {
            return Err(taken(&expected.name, "is arriving there just now, under another name"));
        }
        let promised: u64 = all.values().map(|e| e.memory).sum();
        let left = available.saturating_sub(promised);
        if expected.memory > left {
            return Err(no_room(expected.memory, left));
        }
        let in_use: Vec<u16> = all.values().flat_map(|e| e.ports.iter().copied()).collect();
        let free: Vec<u16> = ports.by_ref().filter(|p| !in_use.contains(p)).take(wanted).collect();
        if free.len() < wanted {
            return Err(Failure::new(
                ErrorCode::Busy,
                "the destination's data ports are all in use by other moves",
                "try again when one of them is over, or widen data_ports in its host.toml",
            )
            .retryable());
        }
        all.insert(attempt, Expected { ports: free.clone(), ..expected });
        Ok(free)
    }

    fn release(&self, attempt: Uuid) {
        self.lock().remove(&attempt);
    }
}

fn taken(name: &str, why: &str) -> Failure {
    Failure::new(
        ErrorCode::NameTaken,
        format!("a guest '{name}' {why}"),
        "rename or remove one of the two",
    )
}

fn no_room(wanted: u64, left: u64) -> Failure {
    Failure::new(
        ErrorCode::NoRoom,
        format!(
            "the destination has {} MiB of memory left for guests, and this one needs {} MiB",
            left >> 20,
            wanted >> 20
        ),
        "free memory there, or move it to another host",
    )
}

/// Gives a reservation back.
pub struct Reservation {
    daemon: Arc<Daemon>,
    attempt: Uuid,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.daemon.inbound.release(self.attempt);
    }
}

impl Daemon {
    /// Whether a guest may come, as far as can be seen without starting anything.
    fn may_come(&self, definition: &GuestDefinition) -> Result<(), Failure> {
        let bad = |why: String| {
            Failure::new(
                ErrorCode::Incompatible,
                why,
                "see what both hosts have: migrate help moving",
            )
        };
        let name = &definition.name;
        crate::config::check_name(name).map_err(|e| bad(e.clone()))?;
        self.dirs.check_socket_paths(name)?;
        let paths = self.dirs.guest(name);
        if !matches!(leftover::life(&paths), Ok(Life::Absent | Life::Dead(_))) {
            return Err(taken(name, "runs on the destination already"));
        }
        let files = [&definition.kernel, &definition.initrd];
        let missing = files
            .into_iter()
            .flatten()
            .chain(definition.disks.iter().map(|d| &d.path))
            .find(|path| !path.exists());
        if let Some(path) = missing {
            let what = format!("the destination has no {}", path.display());
            return Err(Failure::new(
                ErrorCode::Incompatible,
                what,
                "make it reachable there at the same path",
            ));
        }
        Ok(())
    }

    /// Reserves room and starts a receiver, or only looks.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        from: HostRef,
        prepare: Prepare,
    ) -> Result<Answer, Failure> {
        let Prepare { move_id, attempt, definition, lanes, dry_run, .. } = &prepare;
        self.may_come(definition)?;
        if let Some(cpu) = &prepare.cpu {
            self.has_cpu(cpu).await?;
        }
        let lanes = (*lanes).clamp(1, LANES);
        let room = memory().available.saturating_sub(self.inbound.reserved());
        let needed = definition.memory_bytes.saturating_add(OVERHEAD);
        if *dry_run {
            if needed > room {
                return Err(no_room(needed, room));
            }
            let (ports, fingerprint) = (Vec::new(), String::new());
            return Ok(Answer::Prepared { ports, fingerprint, room_bytes: room });
        }
        let expected = Expected {
            name: definition.name.clone(),
            guest: definition.uuid,
            memory: needed,
            ports: Vec::new(),
            move_id: *move_id,
        };
        let wanted = usize::from(lanes) + 1;
        let usable = self.config.data_ports.clone().filter(|port| is_free(self, *port));
        let ports =
            self.inbound.reserve(*attempt, expected, memory().available, (usable, wanted))?;
        let reservation = Reservation { daemon: Arc::clone(self), attempt: *attempt };
        tracing::info!(MOVE = %move_id, GUEST = definition.name, from = from.name, "a guest is to come");
        self.start_receiver(from, prepare, &ports, reservation, room).await
    }

    async fn start_receiver(
        self: &Arc<Self>,
        from: HostRef,
        prepare: Prepare,
        ports: &[u16],
        reservation: Reservation,
        room_bytes: u64,
    ) -> Result<Answer, Failure> {
        let own = Ephemeral::generate().map_err(|e| unexpected("a certificate", &e))?;
        let (certificate, key) = own.to_der();
        let fingerprint = own.fingerprint().to_string();
        let ip = self.config.listen.ip();
        let Prepare { move_id, attempt, definition, payload, .. } = prepare;
        let client = GuestClient::new(&definition.name, self.dirs.guest(&definition.name));
        let guest = definition.uuid;
        let spec = LaunchSpec {
            definition,
            dirs: self.dirs.clone(),
            load: None,
            die_with_parent: false,
            stdio_console: false,
            start_paused: false,
            receive: Some(ReceiveSpec {
                move_id,
                attempt,
                from: from.clone(),
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
        let span = logging::about_move(Some(move_id), client.name());
        let asking = span.clone();
        let launch = move || asking.in_scope(|| launch_receiver(&spec, Some(LAUNCH)));
        let started = tokio::task::spawn_blocking(launch);
        let started = started.await.map_err(|e| unexpected("the receiver", &e))?;
        let Receiver { addresses, child } = started?;
        let ports = addresses.iter().map(SocketAddr::port).collect();
        let daemon = Arc::clone(self);
        let following = follow(daemon, client, guest, Some(child), Some(reservation));
        tokio::spawn(following.instrument(span));
        Ok(Answer::Prepared { ports, fingerprint, room_bytes })
    }

    /// The source's side says that a guest will not come.
    pub(super) async fn abandon(&self, attempt: Uuid) {
        let expected = self.inbound.lock().get(&attempt).cloned();
        let Some(expected) = expected else { return };
        tracing::info!(MOVE = %expected.move_id, GUEST = expected.name, "the guest does not come");
        let client = GuestClient::new(&expected.name, self.dirs.guest(&expected.name));
        let _ = client.cancel_move().await;
    }
}

/// Whether nobody has a UDP port.
fn is_free(daemon: &Daemon, port: u16) -> bool {
    std::net::UdpSocket::bind(SocketAddr::new(daemon.config.listen.ip(), port)).is_ok()
}

/// Follows a guest that arrives, until it is known what came of it.
pub async fn follow(
    daemon: Arc<Daemon>,
    client: GuestClient,
    guest: Uuid,
    child: Option<Child>,
    reservation: Option<Reservation>,
) {
    if let Some(mut child) = child {
        // Reaped by a thread: the process lives as long as its guest.
        let reaper = std::thread::Builder::new().name("reaper".into());
        if let Err(error) = reaper.spawn(move || child.wait()) {
            tracing::warn!(%error, "no thread waits for a guest process");
        }
    }
    let mut source = None;
    let mut told = false;
    match client.move_events().await {
        Ok(mut events) => loop {
            match events.next().await {
                Ok(Some(MoveEvent::Result(report))) => {
                    let arrived = report.outcome == Some(MoveOutcome::Moved);
                    tracing::info!(MOVE = %report.move_id, GUEST = report.guest, arrived, "an arrival ended");
                    // The source's report says more, and comes later.
                    if history::read(&daemon.dirs, report.move_id).is_err() {
                        history::keep(&daemon.dirs, &report);
                    }
                    told = true;
                    break;
                }
                Ok(Some(MoveEvent::Words(words))) => {
                    if source.is_none() {
                        source = daemon.source_of(guest);
                    }
                    let Some(source) = source.clone() else { continue };
                    let request = Request::Words { guest, words };
                    daemon.carry(&source, guest, request).await;
                }
                Ok(Some(MoveEvent::Phase { move_id, .. })) => logging::is_move(move_id),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(GUEST = client.name(), %error, "a receiver is gone");
                    break;
                }
            }
        },
        Err(error) => tracing::warn!(GUEST = client.name(), %error, "a receiver is not heard"),
    }
    drop(reservation);
    // What a killed receiver leaves is cleared up now, not when somebody looks. Its connection
    // breaks before its lock is free: all its memory is given back in between.
    let paths = daemon.dirs.guest(client.name());
    let lost = Instant::now();
    while !told && matches!(leftover::life(&paths), Ok(Life::Alive)) && lost.elapsed() < LAUNCH {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if let Ok(Life::Dead(claim)) = leftover::life(&paths)
        && let Err(error) = leftover::clean(&daemon.dirs, &paths, claim)
    {
        tracing::warn!(GUEST = client.name(), %error, "leftovers of a receiver remain");
    }
    daemon.settle(guest).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expected(name: u8, memory: u64) -> Expected {
        Expected {
            name: format!("g{name}"),
            guest: Uuid::from_u128(name.into()),
            memory,
            ports: vec![],
            move_id: Uuid::nil(),
        }
    }

    proptest! {
        /// However moves come and go, no more is promised than there is, and no port or name twice.
        #[test]
        fn what_is_promised_is_there(
            steps in proptest::collection::vec((any::<bool>(), 0u8..12, 0u64..60), 1..80),
        ) {
            const THERE: u64 = 100;
            let inbound = Inbound::default();
            let mut held: Vec<(Uuid, u8, u64)> = Vec::new();
            for (n, (come, name, memory)) in (0u128..).zip(steps) {
                if come {
                    let attempt = Uuid::from_u128(n);
                    let promised: u64 = held.iter().map(|h| h.2).sum();
                    let fits = promised + memory <= THERE
                        && held.iter().all(|h| h.1 != name)
                        && held.len() < 5;
                    let got = inbound
                        .reserve(attempt, expected(name, memory), THERE, (1..=10u16, 2));
                    prop_assert_eq!(got.is_ok(), fits);
                    if fits {
                        held.push((attempt, name, memory));
                    }
                } else if !held.is_empty() {
                    let (attempt, ..) = held.remove(usize::from(name) % held.len());
                    inbound.release(attempt);
                }
                prop_assert_eq!(inbound.reserved(), held.iter().map(|h| h.2).sum::<u64>());
                let ports: Vec<u16> =
                    inbound.lock().values().flat_map(|e| e.ports.clone()).collect();
                let mut once = ports.clone();
                once.sort_unstable();
                once.dedup();
                prop_assert_eq!(once.len(), ports.len());
            }
        }
    }
}
