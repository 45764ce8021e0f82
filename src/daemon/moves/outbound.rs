//! Gives a guest away: agrees with the other daemon, has the guest process begin, hears it out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use migrate_engine::transport::identity::{Ephemeral, HostName, Right};
use migrate_engine::transport::quic::socket::path_payload;
use uuid::Uuid;

use super::follow::{Heard, follow};
use super::{Direction, Move, record};
use crate::api::client::{GuestClient, LOOK_DEADLINE};
use crate::api::host::{MoveBegun, MoveRequest};
use crate::api::moving::{
    CancelAnswer, DataEnd, HostRef, MoveEvent, MoveOutcome, MovePhase, MoveReport, MoveStart,
};
use crate::api::{ErrorCode, Failure, GuestInfo, GuestState};
use crate::config::hex;
use crate::daemon::facts;
use crate::daemon::peer::link::{ANSWER_DEADLINE, Peer};
use crate::daemon::peer::pool::{self, permit};
use crate::daemon::peer::proto::{
    ADDRESSES_MAX, Ask, Attempt, Nothing, Prepare, Prepared, Whereabouts,
};
use crate::daemon::settings::MAX_LANES;
use crate::daemon::state::{Daemon, blocking};
use crate::host::registry;

/// How long the other daemon may take to have a receiver ready.
const PREPARE_DEADLINE: Duration = Duration::from_secs(60);
/// Tries to hand the report to the other host, and the time between them.
const REPORT_TRIES: [Duration; 3] =
    [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(60)];

/// Begins a move; it goes on without its caller.
///
/// # Errors
/// It is refused before anything happened: no such guest, host or identity, or `busy`.
pub async fn begin(daemon: &Arc<Daemon>, request: MoveRequest) -> Result<MoveBegun, Failure> {
    let to = destination(daemon, &request.to).await?;
    let client = guest(daemon, &request.guest).await?;
    let info = client.info_async(LOOK_DEADLINE).await.map_err(|e| client.failure(e))?;
    movable(&info)?;
    let id = Uuid::new_v4();
    let there = HostRef { id: Uuid::nil(), name: to.to_string() };
    let started = Timestamp::now();
    let report = record::outbound(id, &info, daemon.host(), there, request.options, started);
    let moved = Move::new(report, Uuid::new_v4(), Direction::Out, to, client);
    if request.wait {
        daemon.moves.begin_when_free(&moved).await;
    } else {
        daemon.moves.begin(&moved)?;
    }
    tracing::info!(MOVE = %id, GUEST = %moved.guest, to = %moved.peer, "a move begins");
    tokio::spawn(run(Arc::clone(daemon), moved));
    Ok(MoveBegun { schema: 1, move_id: id })
}

/// The host to move to, which must be another one that is known and may have guests of ours.
///
/// # Errors
/// `usage`, `no-identity`, `unknown-host` or `host-refused`.
pub async fn destination(daemon: &Arc<Daemon>, name: &str) -> Result<HostName, Failure> {
    let loaded = daemon.identity()?;
    let to: HostName = name.parse().map_err(|e| {
        let e: migrate_engine::transport::identity::name::BadName = e;
        Failure::new(ErrorCode::Usage, e.to_string(), "see the hosts there are: migrate host ls")
    })?;
    if to == *loaded.name() {
        let message = format!("'{to}' is this host: the guest is here already");
        return Err(Failure::new(ErrorCode::Usage, message, "name another host"));
    }
    if loaded.hosts.get(&to).is_none()
        && let Some(authority) = loaded.hosts.authority.filter(|a| a != loaded.identity.name())
        && let Err(error) = daemon.exchange_hosts(&authority).await
    {
        tracing::debug!(%error, "the CA's host was not asked for hosts");
    }
    if daemon.identity()?.hosts.get(&to).is_none() {
        return Err(pool::unknown(&to));
    }
    permit(&to, daemon.identity()?.site.rights(&to), Right::Receive)?;
    Ok(to)
}

/// The process of a guest of this host.
///
/// # Errors
/// `not-found`, with what is known of its end.
pub async fn guest(daemon: &Arc<Daemon>, name: &str) -> Result<GuestClient, Failure> {
    let (dirs, name) = (daemon.dirs.clone(), name.to_owned());
    blocking(move || registry::locate(&dirs, &name)).await
}

fn movable(info: &GuestInfo) -> Result<(), Failure> {
    match info.state {
        GuestState::Running | GuestState::Paused => Ok(()),
        GuestState::Leaving | GuestState::Arriving | GuestState::Saving => Err(Failure::new(
            ErrorCode::Busy,
            format!("guest '{}' is busy", info.name),
            format!("see what it does: migrate show {}", info.name),
        )
        .with_state(info.state)
        .retryable()),
        _ => Err(Failure::new(
            ErrorCode::WrongState,
            format!("guest '{}' does not run", info.name),
            format!("see what it does: migrate show {}", info.name),
        )
        .with_state(info.state)),
    }
}

async fn run(daemon: Arc<Daemon>, moved: Arc<Move>) {
    let begun = tokio::select! {
        begun = prepare(&daemon, &moved) => begun,
        () = moved.cancelled() => Err(cancelled()),
    };
    match begun {
        Ok(()) => {
            // Somebody may have cancelled in between.
            if moved.is_cancelled() {
                let _ = moved.client.cancel_move().await;
            }
            finish(&daemon, &moved).await;
        }
        Err(failure) => {
            abandon(&daemon, &moved).await;
            let failure = failure.with_state(GuestState::Running);
            moved.conclude(MoveOutcome::Kept, Some(&failure));
            end(&daemon, &moved);
        }
    }
}

/// Hears the guest process out, and ends the move.
pub async fn finish(daemon: &Arc<Daemon>, moved: &Arc<Move>) {
    if let Heard::Died = follow(daemon, moved).await {
        resolve(daemon, moved).await;
    }
    end(daemon, moved);
}

fn end(daemon: &Arc<Daemon>, moved: &Arc<Move>) {
    let report = daemon.moves.end(moved);
    daemon.metrics.moved(Direction::Out, &report);
    tokio::spawn(hand_over(Arc::clone(daemon), moved.peer.clone(), report));
}

fn cancelled() -> Failure {
    let message = "the move was cancelled before anything was sent";
    Failure::new(ErrorCode::Cancelled, message, "the guest runs as before")
}

/// Agrees with the other daemon and has the guest process begin.
async fn prepare(daemon: &Arc<Daemon>, moved: &Arc<Move>) -> Result<(), Failure> {
    let info = moved.client.info_async(LOOK_DEADLINE).await;
    let info = info.map_err(|e| moved.client.failure(e))?;
    let peer = pool::peer(daemon, &moved.peer).await?;
    let options = moved.report().options;
    let lanes = options.lanes.unwrap_or_else(|| usual_lanes(facts::cpus())).clamp(1, MAX_LANES);
    let own = Ephemeral::generate()
        .map_err(|e| Failure::new(ErrorCode::Unexpected, e.to_string(), "see the daemon's log"))?;
    let payload = payload_to(peer.address)?;
    let prepare = Prepare {
        move_id: moved.id,
        attempt: moved.attempt,
        from: daemon.host(),
        guest: info.definition,
        term: info.term,
        fingerprint: own.fingerprint().to_string(),
        lanes,
        payload,
        dry_run: false,
    };
    let ask = Ask::Prepare(Box::new(prepare));
    let prepared: Prepared =
        peer.ask(&ask, PREPARE_DEADLINE).await.map_err(|failure| quote(&moved.peer, failure))?;
    let addresses = reachable(&prepared.addresses, &peer, lanes)?;
    let (certificate, key) = own.to_der();
    let start = MoveStart {
        move_id: moved.id,
        attempt: moved.attempt,
        from: daemon.host(),
        to: prepared.to,
        addresses,
        local: None,
        end: DataEnd {
            certificate: hex::encode(certificate),
            key: hex::encode(key),
            peer: prepared.fingerprint,
            payload: prepared.payload.min(payload),
        },
        options,
    };
    moved.met(&start.to);
    moved.client.start_move(&start).await.map_err(|e| moved.client.failure(e))
}

impl Move {
    /// The other host has said who it is.
    fn met(&self, host: &HostRef) {
        self.record().met(host.clone());
    }
}

/// Says whose words a refusal of the other host is.
fn quote(host: &HostName, mut failure: Failure) -> Failure {
    if failure.0.code != ErrorCode::Unreachable {
        failure.0.message = format!("host '{host}' refused: {}", failure.0.message);
    }
    failure
}

/// Lanes, if nobody says: more do not help where there are no cores for them.
pub fn usual_lanes(cpus: u32) -> u8 {
    u8::try_from(cpus / 2).unwrap_or(u8::MAX).clamp(1, 4)
}

/// UDP payload of the path to `address`.
///
/// # Errors
/// `unreachable` if there is no route.
pub fn payload_to(address: SocketAddr) -> Result<u16, Failure> {
    path_payload(address, None).map_err(|e| {
        Failure::new(
            ErrorCode::Unreachable,
            format!("there is no route to {address}: {e}"),
            "check the network: migrate host check",
        )
    })
}

/// Addresses to dial: those without an IP are at the peer's own.
///
/// # Errors
/// `host-refused` if the peer sent something else than was asked for.
pub fn reachable(
    addresses: &[SocketAddr],
    peer: &Peer,
    lanes: u8,
) -> Result<Vec<SocketAddr>, Failure> {
    let as_asked = addresses.len() == usize::from(lanes) + 1 && addresses.len() <= ADDRESSES_MAX;
    if !as_asked || addresses.iter().any(|a| a.port() == 0) {
        return Err(Failure::new(
            ErrorCode::HostRefused,
            format!("host '{}' gave {} addresses for {lanes} lanes", peer.name, addresses.len()),
            "compare the releases on both hosts: migrate --version",
        ));
    }
    let at = |address: &SocketAddr| {
        let ip = if address.ip().is_unspecified() { peer.address.ip() } else { address.ip() };
        SocketAddr::new(ip, address.port())
    };
    Ok(addresses.iter().map(at).collect())
}

/// Tells the other daemon that nobody comes. It finds out by itself, too, only later.
async fn abandon(daemon: &Arc<Daemon>, moved: &Arc<Move>) {
    let Some(peer) = daemon.peers.live(&moved.peer) else { return };
    let ask = Ask::Abandon(Attempt { move_id: moved.id, attempt: moved.attempt });
    if let Err(error) = peer.ask::<Nothing>(&ask, ANSWER_DEADLINE).await {
        tracing::debug!(MOVE = %moved.id, %error, "the receiver was not given up");
    }
}

/// The guest's process is gone and has not said how the move ended: what can be known is found
/// out, and nothing else is said.
async fn resolve(daemon: &Arc<Daemon>, moved: &Arc<Move>) {
    let (dirs, name) = (daemon.dirs.clone(), moved.guest.clone());
    let record = blocking(move || {
        // Clears up after a process that was killed, and says what is known of its end.
        let _ = registry::locate(&dirs, &name);
        Ok(crate::host::exits::latest(&dirs, &name).ok().flatten())
    });
    let record = record.await.ok().flatten().filter(|r| r.uuid == moved.uuid);
    if record.is_some_and(|r| r.how == crate::api::ExitHow::Moved) {
        return moved.conclude(MoveOutcome::Moved, None);
    }
    if moved.phase() < MovePhase::InDoubt {
        abandon(daemon, moved).await;
        let failure = Failure::new(
            ErrorCode::MoveFailed,
            "the guest's process died during the move, before the guest was handed over: the guest \
             is stopped on this host",
            format!("see why: migrate ls -a; then start it: migrate start {}", moved.guest),
        );
        return moved.conclude(MoveOutcome::Kept, Some(&failure.with_state(GuestState::Stopped)));
    }
    let asked = async {
        let peer = pool::peer(daemon, &moved.peer).await?;
        let ask = Ask::Whereabouts(Attempt { move_id: moved.id, attempt: moved.attempt });
        peer.ask::<Whereabouts>(&ask, ANSWER_DEADLINE).await
    };
    match asked.await {
        Ok(Whereabouts::Here) => moved.conclude(MoveOutcome::Moved, None),
        answer => {
            let why = answer.map_or_else(|e| e.to_string(), |_| "it does not run there".into());
            let failure = Failure::new(
                ErrorCode::InDoubt,
                format!(
                    "the guest's process died while the guest was handed over to {}, and {why}",
                    moved.peer
                ),
                format!("see on both hosts: migrate show {}", moved.guest),
            );
            moved.conclude(MoveOutcome::InDoubt, Some(&failure));
        }
    }
}

/// Hands the report to the other host, which keeps it too.
async fn hand_over(daemon: Arc<Daemon>, to: HostName, report: MoveReport) {
    let id = report.move_id;
    let ask = Ask::KeepReport(Box::new(report));
    for wait in REPORT_TRIES {
        tokio::time::sleep(wait).await;
        let sent = async {
            let peer = pool::peer(&daemon, &to).await?;
            peer.ask::<Nothing>(&ask, ANSWER_DEADLINE).await
        };
        match sent.await {
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(MOVE = %id, host = %to, %error, "the report was not handed over");
                if error.0.code != ErrorCode::Unreachable {
                    return;
                }
            }
        }
    }
}

/// Cancels a move, if it is not too late.
///
/// # Errors
/// `not-found`; `wrong-state` on the destination; what the guest process says.
pub async fn cancel(daemon: &Arc<Daemon>, id: Uuid) -> Result<CancelAnswer, Failure> {
    let Some(moved) = daemon.moves.get(id) else {
        daemon.moves.report(id)?;
        return Ok(CancelAnswer { schema: 1, accepted: false });
    };
    match moved.phase() {
        MovePhase::Ended => Ok(CancelAnswer { schema: 1, accepted: false }),
        MovePhase::Preparing => {
            moved.cancel();
            Ok(CancelAnswer { schema: 1, accepted: true })
        }
        _ => moved.client.cancel_move().await.map_err(|e| moved.client.failure(e)),
    }
}

/// A move that a former daemon began goes on.
pub fn go_on(daemon: &Arc<Daemon>, moved: Arc<Move>) {
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        moved.tell(&MoveEvent::Notice { text: "the daemon was restarted".into() });
        finish(&daemon, &moved).await;
    });
}
