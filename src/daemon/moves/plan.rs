//! A dry run: what a move would be like, and everything that is in its way. Nothing is begun.

use std::sync::Arc;

use uuid::Uuid;

use super::outbound::{destination, guest, payload_to, usual_lanes};
use crate::api::client::LOOK_DEADLINE;
use crate::api::host::{MovePlan, MoveRequest};
use crate::api::moving::{HostRef, MoveOutcome};
use crate::api::{ErrorCode, Failure, GuestInfo, GuestState};
use crate::daemon::facts;
use crate::daemon::peer::link::{ANSWER_DEADLINE, Peer};
use crate::daemon::peer::pool;
use crate::daemon::peer::proto::{Ask, Prepare, Prepared};
use crate::daemon::state::{Daemon, blocking};

/// Bytes per second that are assumed where no move has told better: a gigabit link.
const ASSUMED: u64 = 110_000_000;
/// Reports that are looked through for the bandwidth to a host.
const LOOKED_AT: usize = 50;

/// What the move would be like.
///
/// # Errors
/// There is no such guest or host here; everything else is in the plan.
pub async fn plan(daemon: &Arc<Daemon>, request: &MoveRequest) -> Result<MovePlan, Failure> {
    let to = destination(daemon, &request.to).await?;
    let client = guest(daemon, &request.guest).await?;
    let info = client.info_async(LOOK_DEADLINE).await.map_err(|e| client.failure(e))?;
    let mut plan = MovePlan {
        schema: 1,
        guest: info.name.clone(),
        to: HostRef { id: Uuid::nil(), name: to.to_string() },
        possible: false,
        problems: here(daemon, &info).into_iter().map(|f| *f.0).collect(),
        memory_bytes: info.memory_used_bytes,
        room_bytes: 0,
        rtt_ms: None,
        bandwidth_bytes_per_s: None,
        predicted_total_ms: None,
    };
    let asked = async {
        let peer = pool::peer(daemon, &to).await?;
        let prepared = ask(daemon, &peer, &info).await?;
        Ok::<_, Failure>((peer, prepared))
    };
    match asked.await {
        Ok((peer, prepared)) => {
            plan.to = prepared.to;
            plan.room_bytes = prepared.room_bytes;
            plan.rtt_ms = Some(peer.rtt().as_secs_f64() * 1000.0);
            plan.problems.extend(prepared.problems);
            let bandwidth = bandwidth(daemon, to.as_str()).await;
            let limit = request.options.bandwidth_bytes_per_s.unwrap_or(u64::MAX);
            let bandwidth = bandwidth.unwrap_or(ASSUMED).min(limit).max(1);
            plan.bandwidth_bytes_per_s = Some(bandwidth);
            plan.predicted_total_ms = Some(predict(info.memory_used_bytes, bandwidth));
        }
        Err(failure) => plan.problems.push(*failure.0),
    }
    plan.possible = plan.problems.is_empty();
    Ok(plan)
}

#[expect(clippy::cast_precision_loss, reason = "a prediction")]
fn predict(bytes: u64, bandwidth: u64) -> f64 {
    // Connecting, agreeing, rehearsing and switching take about this long.
    const AROUND_MS: f64 = 300.0;
    bytes as f64 / bandwidth as f64 * 1000.0 + AROUND_MS
}

/// What is in the way on this host.
fn here(daemon: &Daemon, info: &GuestInfo) -> Vec<Failure> {
    let mut problems = Vec::new();
    let running = daemon.moves.running().into_iter().find(|m| m.guest == info.name);
    if let Some(running) = running {
        let message = format!("guest '{}' is busy: move {}", info.name, running.id);
        let remedy = "wait for it (--wait), or cancel it (migrate cancel)";
        problems.push(Failure::new(ErrorCode::Busy, message, remedy).retryable());
    } else if !matches!(info.state, GuestState::Running | GuestState::Paused) {
        let message = format!("guest '{}' does not run", info.name);
        let remedy = format!("see what it does: migrate show {}", info.name);
        problems.push(Failure::new(ErrorCode::WrongState, message, remedy).with_state(info.state));
    }
    for disk in info.definition.disks.iter().filter(|d| !d.read_only && !d.shared) {
        problems.push(Failure::new(
            ErrorCode::LocalDisk,
            format!("disk {} is on this host only", disk.path.display()),
            "if all hosts reach it at the same path, say so: --disk PATH,shared",
        ));
    }
    problems
}

async fn ask(
    daemon: &Arc<Daemon>,
    peer: &Arc<Peer>,
    info: &GuestInfo,
) -> Result<Prepared, Failure> {
    let prepare = Prepare {
        move_id: Uuid::new_v4(),
        attempt: Uuid::new_v4(),
        from: daemon.host(),
        guest: info.definition.clone(),
        term: info.term,
        fingerprint: "0".repeat(64),
        lanes: usual_lanes(facts::cpus()),
        payload: payload_to(peer.address)?,
        dry_run: true,
    };
    peer.ask(&Ask::Prepare(Box::new(prepare)), ANSWER_DEADLINE).await
}

/// Bytes of guest memory per second that got across in the last move to `to`, in its best round.
async fn bandwidth(daemon: &Arc<Daemon>, to: &str) -> Option<u64> {
    let store = daemon.moves.store.clone();
    let reports = blocking(move || Ok(store.latest(None, LOOKED_AT).unwrap_or_default())).await;
    let mut reports = reports.unwrap_or_default().into_iter();
    let last = reports.find(|r| r.to.name == to && r.outcome == Some(MoveOutcome::Moved))?;
    last.rounds.iter().map(|round| round.bandwidth_bytes_per_s).max().filter(|b| *b > 0)
}
