//! What a move would be like, with everything that is in its way. Nothing is begun.

use std::sync::Arc;

use uuid::Uuid;

use super::body;
use super::outbound::{find, target};
use crate::api::ErrorCode;
use crate::api::Failure;
use crate::api::host::{MovePlan, MoveRequest};
use crate::api::moving::MoveOutcome;
use crate::daemon::peer::{Answer, Prepare, Request};
use crate::daemon::peers::Told;
use crate::daemon::{Daemon, history, keeper, unexpected};

/// Bandwidth that a prediction counts on where nothing was measured, bytes per second.
const ASSUMED: u64 = 500 << 20;

/// Looks at both hosts.
pub async fn plan(daemon: &Arc<Daemon>, request: MoveRequest) -> Result<MovePlan, Failure> {
    let (client, info) = find(daemon, &request.guest).await?;
    let to = target(daemon, &request.to).await?;
    let mut problems = Vec::new();
    if daemon.moves.follows(info.uuid) {
        problems.push(body(ErrorCode::Busy, "the guest is being moved", "wait for it", None));
    }
    let definition = info.definition.clone();
    let look = tokio::task::spawn_blocking(move || keeper::place::obstacle(&definition));
    let obstacle = look.await.map_err(|e| unexpected("the guest's disks", &e))?;
    problems.extend(obstacle.map(|failure| *failure.0));
    let arbiter = match daemon.arbiter_id().await {
        Ok(arbiter) => arbiter,
        Err(failure) => {
            problems.push(*failure.0);
            None
        }
    };
    let prepare = Prepare {
        move_id: Uuid::nil(),
        attempt: Uuid::nil(),
        definition: info.definition,
        fingerprint: String::new(),
        lanes: 1,
        payload: 0,
        dry_run: true,
        asked: None,
        cpu: crate::daemon::cpu::of_guest(&client).await,
        arbiter,
    };
    let told = daemon.ask(&request.to, Request::Prepare(Box::new(prepare))).await;
    let (room_bytes, rtt) = match told {
        Ok(Told {
            host,
            answer: Answer::Prepared { room_bytes, arbiter: theirs, .. },
            round_trip,
            ..
        }) => {
            if arbiter != theirs
                && let Err(failure) = daemon.same_arbiter(&host.name, theirs).await
            {
                problems.push(*failure.0);
            }
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
