//! Moves away from this host: begun, followed to their end, and kept in history. One at a time
//! for each guest. A move goes on in the guest's process whatever happens here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use migrate_engine::handover::journal::Record as Step;
use migrate_engine::transport::identity::{Ephemeral, Right};
use migrate_engine::transport::quic::socket::path_payload;
use tokio::sync::Notify;
use tracing::Instrument;
use uuid::Uuid;

use super::peer::{Answer, Prepare, Request};
use super::peers::Told;
use super::{Daemon, history, host_name, unexpected};
use crate::api::client::{CallError, GuestClient};
use crate::api::host::{MovePlan, MoveRequest};
use crate::api::moving::{
    Bandwidth, DataEnd, HostRef, MoveEvent, MoveOutcome, MovePhase, MoveReport, MoveStart,
};
use crate::api::{ErrorBody, ErrorCode, Failure, GuestInfo, GuestState};
use crate::config::hex;
use crate::guest::journal;
use crate::guest::moving::feed::Feed;
use crate::guest::moving::report::About;
use crate::host::registry;
use crate::logging;

/// How long a guest process may take to tell of itself.
const LOOK: Duration = Duration::from_secs(5);
/// Bandwidth that a prediction counts on where nothing was measured, bytes per second.
const ASSUMED: u64 = 500 << 20;
/// Moves that ended and can still be listened to.
const REMEMBERED: usize = 64;

/// A move from here, that goes on or has ended lately.
#[derive(Clone, Debug)]
struct Entry {
    about: Arc<About>,
    feed: Feed,
    began: Instant,
    ended: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Moves {
    all: Mutex<BTreeMap<Uuid, Entry>>,
    changed: Notify,
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of those that go on.
    pub fn running(&self) -> u32 {
        let running = self.lock().values().filter(|e| !e.ended).count();
        u32::try_from(running).unwrap_or(u32::MAX)
    }

    /// Takes the guest for this move, or says what is in the way.
    fn claim(&self, about: Arc<About>) -> Result<Feed, Failure> {
        let mut all = self.lock();
        if let Some(other) = all.values().find(|e| !e.ended && e.about.uuid == about.uuid) {
            let other = &other.about;
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
        let id = about.move_id;
        let entry = Entry { about, feed: feed.clone(), began: Instant::now(), ended: false };
        all.insert(id, entry);
        while all.len() > REMEMBERED {
            let oldest = all.iter().filter(|(_, e)| e.ended).min_by_key(|(_, e)| e.began);
            let Some(oldest) = oldest.map(|(id, _)| *id) else { break };
            all.remove(&oldest);
        }
        Ok(feed)
    }

    /// What can be listened to of a move.
    pub fn feed(&self, id: Uuid) -> Option<Feed> {
        self.lock().get(&id).map(|e| e.feed.clone())
    }

    /// A report of each move that goes on, latest first.
    pub fn going_on(&self) -> Vec<MoveReport> {
        let all = self.lock();
        let mut reports: Vec<MoveReport> = all
            .values()
            .filter(|e| !e.ended)
            .map(|e| {
                let phase = e.feed.phase().unwrap_or(MovePhase::Preparing);
                MoveReport {
                    total_ms: e.began.elapsed().as_secs_f64() * 1000.0,
                    ..e.about.blank(phase)
                }
            })
            .collect();
        reports.sort_by_key(|r| std::cmp::Reverse(r.started));
        reports
    }

    /// What each of the moves with a budget may use: they share the smallest that was asked for.
    fn shares(&self) -> Vec<(String, u64)> {
        let all = self.lock();
        let limited = || {
            let running = all.values().filter(|e| !e.ended);
            running.filter_map(|e| Some((e, e.about.options.bandwidth_bytes_per_s?)))
        };
        let Some(budget) = limited().map(|(_, rate)| rate).min() else { return Vec::new() };
        let share = (budget / limited().count().max(1) as u64).max(1);
        limited().map(|(e, _)| (e.about.guest.clone(), share)).collect()
    }

    fn guest_of(&self, id: Uuid) -> Option<String> {
        self.lock().get(&id).filter(|e| !e.ended).map(|e| e.about.guest.clone())
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

/// The guest, which must have a process here.
async fn find(daemon: &Daemon, name: &str) -> Result<(GuestClient, GuestInfo), Failure> {
    let client = registry::locate(&daemon.dirs, name)?;
    let info = client.info_async(LOOK).await.map_err(|e| client.failure(e))?;
    Ok((client, info))
}

/// Begins a move; answers its id. It goes on in a task.
pub async fn begin(daemon: &Arc<Daemon>, request: MoveRequest) -> Result<Uuid, Failure> {
    let (client, info) = find(daemon, &request.guest).await?;
    let to = target(daemon, &request.to)?;
    let about = Arc::new(About {
        move_id: Uuid::new_v4(),
        guest: info.name.clone(),
        uuid: info.uuid,
        from: daemon.host_ref(),
        to,
        started: Timestamp::now(),
        options: request.options.clone(),
        memory_bytes: info.memory_bytes,
    });
    let feed = loop {
        let changed = daemon.moves.changed.notified();
        match daemon.moves.claim(Arc::clone(&about)) {
            Err(failure) if request.wait && failure.0.code == ErrorCode::Busy => changed.await,
            claimed => break claimed?,
        }
    };
    let id = about.move_id;
    tracing::info!(MOVE = %id, GUEST = about.guest, to = about.to.name, "a move begins");
    phase(&feed, &about, MovePhase::Preparing);
    let daemon = Arc::clone(daemon);
    let span = logging::about_move(Some(id), &about.guest);
    let work = async move {
        let began = Instant::now();
        let report = match order(&daemon, &client, &info, &about).await {
            Ok(()) => {
                share_bandwidth(&daemon).await;
                follow(&daemon, &client, &about, &feed).await
            }
            Err(failure) => failed(&about, failure),
        };
        finish(&daemon, report, began).await;
    };
    tokio::spawn(work.instrument(span));
    Ok(id)
}

fn phase(feed: &Feed, about: &About, phase: MovePhase) {
    let (move_id, guest) = (about.move_id, about.guest.clone());
    feed.tell(&MoveEvent::Phase { move_id, guest, phase });
}

/// The host to move to, which must be another one that may receive from here.
fn target(daemon: &Daemon, name: &str) -> Result<HostRef, Failure> {
    let identity = daemon.identity();
    daemon.dialler()?;
    let parsed = host_name(name)?;
    if identity.as_ref().is_some_and(|i| *i.host.name() == parsed) {
        return Err(Failure::new(
            ErrorCode::Usage,
            format!("'{name}' is this host: the guest is there already"),
            "name another host: migrate host ls",
        ));
    }
    let known = daemon.known(name)?;
    if !identity.is_some_and(|i| i.site.rights(&parsed).has(Right::Receive)) {
        return Err(Failure::new(
            ErrorCode::HostRefused,
            format!("host '{name}' has not the right to receive guests from here"),
            "grant it in site.json: migrate help files",
        ));
    }
    Ok(HostRef { id: known.id.unwrap_or_default(), name: name.to_owned() })
}

fn lanes(about: &About) -> u8 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    about.options.lanes.unwrap_or_else(|| u8::try_from((cores / 2).clamp(1, 4)).unwrap_or(1))
}

/// Divides the bandwidth anew, when a move has begun or ended.
async fn share_bandwidth(daemon: &Daemon) {
    for (guest, share) in daemon.moves.shares() {
        let client = GuestClient::new(&guest, daemon.dirs.guest(&guest));
        // One that has not begun or has ended does not need it.
        let _ = client.move_bandwidth(Bandwidth { bytes_per_s: Some(share) }).await;
    }
}

/// Has the other host get ready, and gives the guest's process its order.
async fn order(
    daemon: &Arc<Daemon>,
    client: &GuestClient,
    info: &GuestInfo,
    about: &About,
) -> Result<(), Failure> {
    let own = Ephemeral::generate().map_err(|e| unexpected("a certificate", &e))?;
    let address = super::peers::resolve(&daemon.known(&about.to.name)?.address).await?;
    let local = daemon.config.migration_address;
    let payload = path_payload(address, local).unwrap_or(1200);
    let attempt = Uuid::new_v4();
    let prepare = Prepare {
        move_id: about.move_id,
        attempt,
        definition: info.definition.clone(),
        fingerprint: own.fingerprint().to_string(),
        lanes: lanes(about),
        payload,
        dry_run: false,
        cpu: super::cpu::of_guest(client).await,
    };
    let told = daemon.ask(&about.to.name, Request::Prepare(Box::new(prepare))).await?;
    let Told { host, address, answer, .. } = told;
    let Answer::Prepared { ports, fingerprint, .. } = answer else {
        return Err(unexpected("the other daemon", &"it answered something else"));
    };
    let (certificate, key) = own.to_der();
    let start = MoveStart {
        move_id: about.move_id,
        attempt,
        from: about.from.clone(),
        to: host,
        addresses: ports.iter().map(|port| SocketAddr::new(address.ip(), *port)).collect(),
        local,
        end: DataEnd {
            certificate: hex::encode(certificate),
            key: hex::encode(key),
            peer: fingerprint,
            payload,
        },
        options: about.options.clone(),
    };
    if let Err(error) = client.start_move(&start).await {
        let abandoned = daemon.ask(&about.to.name, Request::Abandon { attempt }).await;
        if let Err(failure) = abandoned {
            tracing::warn!(MOVE = %about.move_id, %failure, "the receiver waits in vain for a minute");
        }
        return Err(client.failure(error));
    }
    Ok(())
}

/// Follows the guest's process to the move's result.
async fn follow(
    daemon: &Arc<Daemon>,
    client: &GuestClient,
    about: &About,
    feed: &Feed,
) -> MoveReport {
    let mut events = match client.move_events().await {
        Ok(events) => events,
        Err(error) => return lost(daemon, about, &error).await,
    };
    loop {
        match events.next().await {
            Ok(Some(MoveEvent::Result(report))) => {
                return MoveReport {
                    started: about.started,
                    to: HostRef { name: about.to.name.clone(), ..report.to.clone() },
                    ..*report
                };
            }
            Ok(Some(MoveEvent::Words(words))) => {
                let request = Request::Words { guest: about.uuid, words };
                daemon.carry(&about.to.name, about.uuid, request).await;
            }
            Ok(Some(event)) => feed.tell(&event),
            Ok(None) => {
                return lost(daemon, about, &CallError::Lost("no result came".into())).await;
            }
            Err(error) => return lost(daemon, about, &error).await,
        }
    }
}

/// The guest's process is gone in the middle: what became of the guest stands in its journal.
async fn lost(daemon: &Arc<Daemon>, about: &About, error: &CallError) -> MoveReport {
    tracing::error!(MOVE = %about.move_id, GUEST = about.guest, %error, "the guest's process is gone");
    daemon.settle(about.uuid).await;
    let record = journal::read(&daemon.dirs.journal(&about.uuid)).ok().flatten();
    let (outcome, error) = match record.as_ref().and_then(|r| r.ledger.now()) {
        Some(Step::Ceded(_) | Step::Moved(_)) => (MoveOutcome::Moved, None),
        Some(Step::Offered(_)) => {
            let message = "the guest's process died in the middle of the hand-over, and the other \
                           host does not answer: whose the guest is, is not settled";
            let remedy = format!("bring {} back; then it settles by itself", about.to.name);
            (MoveOutcome::InDoubt, Some(body(ErrorCode::InDoubt, message, &remedy, None)))
        }
        _ => {
            let message = "the guest's process died while the guest was being moved";
            let remedy = format!("start it again: migrate start {}", about.guest);
            let state = Some(GuestState::Stopped);
            (MoveOutcome::Kept, Some(body(ErrorCode::MoveFailed, message, &remedy, state)))
        }
    };
    MoveReport { outcome: Some(outcome), error, ..about.blank(MovePhase::Ended) }
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

/// Nothing has begun.
fn failed(about: &About, failure: Failure) -> MoveReport {
    let failure = failure.with_state(GuestState::Running);
    let outcome = Some(MoveOutcome::Kept);
    MoveReport { outcome, error: Some(*failure.0), ..about.blank(MovePhase::Ended) }
}

/// Keeps the report here and at the other host, and tells who waits.
async fn finish(daemon: &Arc<Daemon>, report: MoveReport, began: Instant) {
    let total_ms = began.elapsed().as_secs_f64() * 1000.0;
    let mut phases = report.phases.clone();
    if !phases.iter().any(|(phase, _)| *phase == MovePhase::Preparing) {
        let known: f64 = phases.iter().map(|(_, ms)| ms).sum();
        phases.insert(0, (MovePhase::Preparing, (total_ms - known).max(0.0)));
    }
    let report = MoveReport { ended: Some(Timestamp::now()), total_ms, phases, ..report };
    tracing::info!(MOVE = %report.move_id, GUEST = report.guest, outcome = report.outcome.map(tracing::field::debug),
        error = report.error.as_ref().map(|e| e.message.as_str()), "a move ended");
    history::keep(&daemon.dirs, &report);
    daemon.moves.end(&report);
    share_bandwidth(daemon).await;
    let copy = Request::Report(Box::new(report.clone()));
    if let Err(failure) = daemon.ask(&report.to.name, copy).await {
        tracing::debug!(%failure, "the other host did not get the report");
    }
}

/// Goes on with a move that its guest's process made while no daemon was here.
pub async fn readopt(daemon: Arc<Daemon>, client: GuestClient, guest: Uuid) {
    let Ok(mut events) = client.move_events().await else { return };
    let Ok(Some(MoveEvent::Phase { move_id, .. })) = events.next().await else { return };
    if history::read(&daemon.dirs, move_id).is_ok() {
        return;
    }
    let Ok(info) = client.info_async(LOOK).await else { return };
    let to = journal::read(&daemon.dirs.journal(&guest)).ok().flatten().and_then(|r| r.peer);
    let about = Arc::new(About {
        move_id,
        guest: info.name,
        uuid: guest,
        from: daemon.host_ref(),
        to: HostRef { id: Uuid::nil(), name: to.unwrap_or_else(|| "another host".into()) },
        started: Timestamp::now(),
        options: crate::api::moving::MoveOptions::default(),
        memory_bytes: info.memory_bytes,
    });
    let Ok(feed) = daemon.moves.claim(Arc::clone(&about)) else { return };
    tracing::info!(MOVE = %move_id, GUEST = about.guest, "a move is followed again");
    let began = Instant::now();
    let span = logging::about_move(Some(move_id), &about.guest);
    let report = follow(&daemon, &client, &about, &feed).instrument(span.clone()).await;
    let to = if report.to.name == "another host" { about.to.clone() } else { report.to.clone() };
    finish(&daemon, MoveReport { to, ..report }, began).instrument(span).await;
}

/// Cancels a move. `None`: no such move goes on.
pub async fn cancel(daemon: &Daemon, id: Uuid) -> Option<Result<bool, Failure>> {
    let guest = daemon.moves.guest_of(id)?;
    let client = GuestClient::new(&guest, daemon.dirs.guest(&guest));
    Some(match client.cancel_move().await {
        Ok(answer) => Ok(answer.accepted),
        Err(error) => Err(client.failure(error)),
    })
}

/// What a move would be like, with everything that is in its way.
pub async fn plan(daemon: &Arc<Daemon>, request: MoveRequest) -> Result<MovePlan, Failure> {
    let (client, info) = find(daemon, &request.guest).await?;
    let to = target(daemon, &request.to)?;
    let prepare = Prepare {
        move_id: Uuid::nil(),
        attempt: Uuid::nil(),
        definition: info.definition.clone(),
        fingerprint: String::new(),
        lanes: 1,
        payload: 0,
        dry_run: true,
        cpu: super::cpu::of_guest(&client).await,
    };
    let mut problems = Vec::new();
    let busy = daemon.moves.lock().values().any(|e| !e.ended && e.about.uuid == info.uuid);
    if busy {
        problems.push(body(ErrorCode::Busy, "the guest is being moved", "wait for it", None));
    }
    for disk in &info.definition.disks {
        if !disk.read_only && !disk.shared {
            let what = format!("disk {} is on this host only", disk.path.display());
            let remedy = "put it on shared storage and say so: --disk PATH,shared";
            problems.push(body(ErrorCode::LocalDisk, &what, remedy, None));
        }
    }
    let told = daemon.ask(&request.to, Request::Prepare(Box::new(prepare))).await;
    let (room_bytes, rtt) = match told {
        Ok(Told { answer: Answer::Prepared { room_bytes, .. }, round_trip, .. }) => {
            (room_bytes, Some(round_trip))
        }
        Ok(_) => return Err(unexpected("the other daemon", &"it answered something else")),
        Err(failure) => {
            problems.push(*failure.0);
            (0, None)
        }
    };
    let lately = history::list(&daemon.dirs, None, 50).into_iter().find(|r| {
        r.to.name == request.to && r.outcome == Some(MoveOutcome::Moved) && !r.rounds.is_empty()
    });
    let measured = lately.and_then(|r| r.rounds.first().map(|r| r.bandwidth_bytes_per_s));
    let bandwidth = measured.unwrap_or(ASSUMED);
    let bandwidth = request.options.bandwidth_bytes_per_s.map_or(bandwidth, |b| b.min(bandwidth));
    Ok(MovePlan {
        schema: 1,
        guest: info.name,
        to,
        possible: problems.is_empty(),
        problems,
        memory_bytes: info.memory_used_bytes,
        room_bytes,
        rtt_ms: rtt.map(|t| t.as_secs_f64() * 1000.0),
        bandwidth_bytes_per_s: Some(bandwidth),
        predicted_total_ms: Some(ms(info.memory_used_bytes, bandwidth)),
    })
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn ms(bytes: u64, bandwidth: u64) -> f64 {
    bytes as f64 / bandwidth.max(1) as f64 * 1000.0
}
