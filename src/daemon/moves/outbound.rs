//! Gives a guest away: agrees with the other daemon, gives the guest's process its order, follows
//! it, and keeps what came of it. Everything before the order can be cancelled here; after it the
//! process decides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use migrate_engine::transport::identity::{Ephemeral, Right};
use migrate_engine::transport::quic::socket::path_payload;
use tokio::sync::watch;
use tracing::Instrument;
use uuid::Uuid;

use super::follow::{Heard, follow};
use super::record::{Direction, Open};
use super::{Begun, since};
use crate::api::client::{CallError, GuestClient};
use crate::api::host::MoveRequest;
use crate::api::moving::{
    Bandwidth, DataEnd, HostRef, MoveOutcome, MovePhase, MoveReport, MoveStart,
};
use crate::api::{ErrorCode, Failure, GuestInfo, GuestState};
use crate::config::hex;
use crate::daemon::arbiter::Agent;
use crate::daemon::keeper::{self, Acting, Speaker};
use crate::daemon::peer::{Answer, Prepare, Request};
use crate::daemon::peers::{self, Told};
use crate::daemon::{Daemon, host_name, unexpected};
use crate::failpoint;
use crate::guest::moving::report::About;
use crate::host::registry;
use crate::logging;

/// How long a guest process may take to tell of itself.
const LOOK: Duration = Duration::from_secs(5);
/// How long the other host may take to let go of an attempt before the end is reported.
const LET_GO: Duration = Duration::from_secs(6);

/// The guest, which must have a process here.
pub async fn find(daemon: &Daemon, name: &str) -> Result<(GuestClient, GuestInfo), Failure> {
    let client = registry::locate(&daemon.dirs, name)?;
    let info = client.info_async(LOOK).await.map_err(|e| client.failure(e))?;
    Ok((client, info))
}

/// Begins a move; answers its id. It goes on in a task.
pub async fn begin(daemon: &Arc<Daemon>, request: MoveRequest) -> Result<Uuid, Failure> {
    let (client, info) = find(daemon, &request.guest).await?;
    let to = target(daemon, &request.to).await?;
    let about = About {
        move_id: Uuid::new_v4(),
        guest: info.name.clone(),
        uuid: info.uuid,
        from: daemon.host_ref(),
        to,
        started: failpoint::now(),
        options: request.options.clone(),
        memory_bytes: info.memory_bytes,
    };
    let id = about.move_id;
    let open = Open::new(Direction::Out, Uuid::new_v4(), about, info.definition);
    let open = Arc::new(open);
    let begun = loop {
        let changed = daemon.moves.changed.notified();
        match daemon.begin_move(&open) {
            Err(failure) if request.wait && failure.0.code == ErrorCode::Busy => changed.await,
            begun => break begun?,
        }
    };
    let about = &open.about;
    tracing::info!(MOVE = %id, GUEST = about.guest, to = about.to.name, "a move begins");
    let span = logging::about_move(Some(id), &about.guest);
    tokio::spawn(run(Arc::clone(daemon), client, Arc::clone(&open), begun).instrument(span));
    Ok(id)
}

async fn run(daemon: Arc<Daemon>, client: GuestClient, open: Arc<Open>, begun: Begun) {
    let Begun { feed, cancel } = begun;
    let report = match order(&daemon, &client, &open, cancel).await {
        Ok(agent) => {
            tokio::spawn(Arc::clone(&daemon).keep_agents(Arc::clone(&open), agent));
            if daemon.moves.ordered(open.about.move_id) {
                // Somebody cancelled just when the process got its order.
                let _ = client.cancel_move().await;
            }
            share_bandwidth(&daemon).await;
            hear_out(&daemon, &open, follow(&daemon, &open, &feed).await).await
        }
        Err(failure) => not_begun(&daemon, &open, failure).await,
    };
    finish(&daemon, &open, report).await;
}

/// A move that a former daemon began goes on.
pub async fn go_on(daemon: Arc<Daemon>, open: Arc<Open>, begun: Begun) {
    let client = GuestClient::new(&open.about.guest, daemon.dirs.guest(&open.about.guest));
    if daemon.moves.ordered(open.about.move_id) {
        let _ = client.cancel_move().await;
    }
    tokio::spawn(Arc::clone(&daemon).keep_agents(Arc::clone(&open), None));
    let heard = follow(&daemon, &open, &begun.feed).await;
    let report = hear_out(&daemon, &open, heard).await;
    finish(&daemon, &open, report).await;
}

/// The host to move to, which must be another one that may receive from here.
pub async fn target(daemon: &Arc<Daemon>, name: &str) -> Result<HostRef, Failure> {
    let identity = daemon.identity();
    daemon.dialler()?;
    let parsed = host_name(name)?;
    if identity.as_ref().is_some_and(|i| *i.host.name() == parsed) {
        return Err(Failure::new(
            ErrorCode::AlreadyThere,
            format!("the guest is on {name} already"),
            "to move it elsewhere, name another host: migrate host ls",
        ));
    }
    let known = daemon.find(name).await?;
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

/// Has the other host get ready, and gives the guest's process its order. Cancelled before the
/// order, nothing of the attempt is left there.
async fn order(
    daemon: &Arc<Daemon>,
    client: &GuestClient,
    open: &Open,
    mut cancel: watch::Receiver<bool>,
) -> Result<Option<Agent>, Failure> {
    let agreed = tokio::select! {
        biased;
        () = wanted(&mut cancel) => Err(cancelled()),
        start = agree(daemon, client, open) => start,
    };
    let start = match agreed {
        Ok(start) => start,
        Err(failure) => {
            match failure.0.code {
                ErrorCode::Cancelled => abandon(daemon, open).await,
                // It will not answer sooner now.
                ErrorCode::Unreachable => {
                    let (daemon, open) = (Arc::clone(daemon), open.clone());
                    tokio::spawn(async move { abandon(&daemon, &open).await });
                }
                // One that refused has nothing to clear up.
                _ => {}
            }
            return Err(failure);
        }
    };
    let passed = match daemon.pass_arbiter(client, open.about.uuid).await {
        Ok(passed) => passed,
        Err(failure) => {
            abandon(daemon, open).await;
            return Err(failure);
        }
    };
    let (arbiter, agent) = passed.unzip();
    let start = MoveStart { arbiter, ..start };
    let _ = failpoint::at(|| "daemon.order.before".into());
    let ordered = client.start_move(&start).await;
    let _ = failpoint::at(|| "daemon.order.after".into());
    match ordered {
        Ok(_) => Ok(agent),
        // It may have begun: whoever follows it finds out.
        Err(error @ (CallError::Lost(_) | CallError::Late(_))) => {
            tracing::warn!(MOVE = %open.about.move_id, %error, "whether the move begins is not known");
            Ok(agent)
        }
        Err(error) => {
            abandon(daemon, open).await;
            agent.into_iter().for_each(Agent::end);
            Err(client.failure(error))
        }
    }
}

async fn wanted(cancel: &mut watch::Receiver<bool>) {
    if cancel.wait_for(|wanted| *wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn cancelled() -> Failure {
    let what = "the move was cancelled by its user before anything was sent";
    Failure::new(ErrorCode::Cancelled, what, "start the move again when it suits")
}

/// Has the other host get ready; answers the order for the guest's process.
async fn agree(
    daemon: &Arc<Daemon>,
    client: &GuestClient,
    open: &Open,
) -> Result<MoveStart, Failure> {
    let about = &open.about;
    let definition = open.definition.clone();
    let look = tokio::task::spawn_blocking(move || keeper::place::obstacle(&definition));
    if let Ok(Some(obstacle)) = look.await {
        return Err(obstacle);
    }
    let own = Ephemeral::generate().map_err(|e| unexpected("a certificate", &e))?;
    let address = peers::resolve(&daemon.known(&about.to.name)?.address).await?;
    let local = daemon.config.migration_address;
    let payload = path_payload(address, local).unwrap_or(1200);
    let prepare = Prepare {
        move_id: about.move_id,
        attempt: open.attempt,
        definition: open.definition.clone(),
        fingerprint: own.fingerprint().to_string(),
        lanes: lanes(about),
        payload,
        dry_run: false,
        asked: Some((about.started, about.options.clone())),
        cpu: crate::daemon::cpu::of_guest(client).await,
        arbiter: daemon.arbiter_id().await?,
    };
    let told = daemon.ask(&about.to.name, Request::Prepare(Box::new(prepare))).await?;
    let Told { host, address, answer, .. } = told;
    let Answer::Prepared { ports, fingerprint, arbiter, .. } = answer else {
        return Err(unexpected("the other daemon", &"it answered something else"));
    };
    if let Err(failure) = daemon.same_arbiter(&host.name, arbiter).await {
        // A release that knows of no arbiter would have taken the guest.
        abandon(daemon, open).await;
        return Err(failure);
    }
    let (certificate, key) = own.to_der();
    Ok(MoveStart {
        move_id: about.move_id,
        attempt: open.attempt,
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
        arbiter: None,
    })
}

/// Tells the other daemon that nobody comes, and waits for its word that nothing of the attempt is
/// left there, but not for long: it goes on being told. A receiver that is not told finds out by
/// itself, after a minute.
async fn abandon(daemon: &Arc<Daemon>, open: &Open) {
    let (daemon, to) = (Arc::clone(daemon), open.about.to.name.clone());
    let (id, attempt) = (open.about.move_id, open.attempt);
    let telling = tokio::spawn(async move {
        if let Err(failure) = daemon.ask(&to, Request::Abandon { attempt }).await {
            tracing::warn!(MOVE = %id, %failure, "a receiver may wait in vain for a minute");
        }
    });
    if tokio::time::timeout(LET_GO, telling).await.is_err() {
        tracing::warn!(MOVE = %id, "the destination has not let go of the attempt yet");
    }
}

/// What came of a move whose process was heard for the last time.
async fn hear_out(daemon: &Arc<Daemon>, open: &Arc<Open>, heard: Heard) -> MoveReport {
    let about = &open.about;
    match heard {
        Heard::Result(report) => {
            if report.outcome == Some(MoveOutcome::Kept) {
                // A receiver that never heard from the source waits no longer.
                abandon(daemon, open).await;
            }
            let to = HostRef { name: about.to.name.clone(), ..report.to.clone() };
            MoveReport { started: about.started, to, ..*report }
        }
        Heard::Dead(acting) => dead(daemon, open, acting).await,
        Heard::Unknown => {
            abandon(daemon, open).await;
            let what = "the daemon ended before the guest's process had begun to move";
            let failure = Failure::new(ErrorCode::MoveFailed, what, "start the move again");
            failed(about, failure)
        }
    }
}

/// The guest's process is dead: the other side hears it at once, what it left open is settled, and
/// what became of the guest stands in its journal.
async fn dead(daemon: &Arc<Daemon>, open: &Arc<Open>, acting: Acting) -> MoveReport {
    let about = &open.about;
    tracing::error!(MOVE = %about.move_id, GUEST = about.guest, "the guest's process is dead");
    let why = format!("the guest's process on {} died", about.from.name);
    let telling = daemon.tell_of_death(&about.to.name, about.uuid, about.move_id, &why);
    // The other side may be slow to hear of it, or gone: what it has to say it is asked for.
    tokio::join!(telling, daemon.settle(about.uuid, acting, keeper::PATIENCE));
    // A daemon that ends now comes back to the record of the move, so that goes last.
    daemon.clear_up(&about.guest).await;
    daemon.verdict(open)
}

/// Nothing has begun. If that is so because the guest's process died meanwhile, that is the truth
/// of it, and nothing of the process is left.
async fn not_begun(daemon: &Arc<Daemon>, open: &Arc<Open>, failure: Failure) -> MoveReport {
    match daemon.speaker(open.about.uuid) {
        Ok(Speaker::Us(acting)) => dead(daemon, open, acting).await,
        _ => failed(&open.about, failure),
    }
}

/// Nothing has begun.
pub fn failed(about: &About, failure: Failure) -> MoveReport {
    let failure = failure.with_state(GuestState::Running);
    let outcome = Some(MoveOutcome::Kept);
    MoveReport { outcome, error: Some(*failure.0), ..about.blank(MovePhase::Ended) }
}

/// Keeps the report here and at the other host, and tells who waits.
async fn finish(daemon: &Arc<Daemon>, open: &Open, report: MoveReport) {
    let ended = failpoint::now();
    let total_ms = since(open.about.started, ended);
    let mut phases = report.phases.clone();
    if !phases.iter().any(|(phase, _)| *phase == MovePhase::Preparing) {
        let known: f64 = phases.iter().map(|(_, ms)| ms).sum();
        phases.insert(0, (MovePhase::Preparing, (total_ms - known).max(0.0)));
    }
    let report = MoveReport { ended: Some(ended), total_ms, phases, ..report };
    daemon.end_move(open, &report);
    share_bandwidth(daemon).await;
    let copy = Request::Report(Box::new(report.clone()));
    if let Err(failure) = daemon.ask(&report.to.name, copy).await {
        tracing::debug!(%failure, "the other host did not get the report");
    }
}
