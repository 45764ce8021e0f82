//! What a move would be like, with everything that is in its way. Nothing is begun: the guest's
//! writes are watched for half a second, and a sample of data is sent to the other host.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::body;
use super::forecast::{self, Link, Writes};
use super::outbound::{find, target};
use crate::api::client::{CallError, GuestClient};
use crate::api::host::{BandwidthBasis, MovePlan, MoveRequest};
use crate::api::moving::{HostRef, MoveOutcome, MoveReport};
use crate::api::{ErrorBody, ErrorCode, Failure, GuestInfo, GuestState};
use crate::daemon::peer::{Answer, Prepare, Request};
use crate::daemon::peers::Told;
use crate::daemon::{Daemon, check, history, keeper, unexpected};

/// Reports of earlier moves that are looked at.
const LOOKED_AT: usize = 200;
/// A first pass over less memory than this says little of the link, bytes.
const TELLING: u64 = 16 << 20;

/// Looks at both hosts.
pub async fn plan(daemon: &Arc<Daemon>, request: MoveRequest) -> Result<MovePlan, Failure> {
    let (client, info) = find(daemon, &request.guest).await?;
    let to = match target(daemon, &request.to).await {
        Err(failure) if failure.0.code == ErrorCode::AlreadyThere => {
            let blank = blank(&info, daemon.host_ref());
            return Ok(MovePlan { possible: true, already_there: true, ..blank });
        }
        to => to?,
    };
    let mut problems = Vec::new();
    if daemon.moves.follows(info.uuid) {
        problems.push(body(ErrorCode::Busy, "the guest is being moved", "wait for it", None));
    }
    let definition = info.definition.clone();
    let look = tokio::task::spawn_blocking(move || keeper::place::obstacle(&definition));
    let obstacle = look.await.map_err(|e| unexpected("the guest's disks", &e))?;
    problems.extend(obstacle.map(|failure| *failure.0));
    let (room_bytes, rtt) = match ask(daemon, &client, &info, &request.to).await? {
        Ok(found) => (found.0, Some(found.1)),
        Err(problem) => {
            problems.push(problem);
            (0, None)
        }
    };
    let plan = MovePlan { room_bytes, rtt_ms: rtt.map(ms), ..blank(&info, to) };
    let Some(rtt) = rtt.filter(|_| problems.is_empty()) else {
        return Ok(MovePlan { problems, ..plan });
    };
    let earlier = history::list(&daemon.dirs, None, LOOKED_AT);
    let link = Link {
        limit: request.options.bandwidth_bytes_per_s,
        round_trip: rtt,
        ..link(daemon, &earlier, &request.to).await
    };
    let writes = writes(&client, info.state).await;
    let forecast = forecast::of(&forecast::Known {
        memory: info.memory_used_bytes,
        max_downtime: Duration::from_millis(request.options.max_downtime_ms),
        shared_disks: info.definition.disks.iter().any(|d| d.shared && !d.read_only),
        restore: restore(&earlier, info.uuid),
        link,
        writes,
    });
    Ok(forecast.into_plan(MovePlan { possible: true, ..plan }))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn blank(info: &GuestInfo, to: HostRef) -> MovePlan {
    MovePlan {
        schema: 1,
        guest: info.name.clone(),
        to,
        possible: false,
        already_there: false,
        problems: Vec::new(),
        memory_bytes: info.memory_used_bytes,
        room_bytes: 0,
        rtt_ms: None,
        bandwidth_bytes_per_s: None,
        bandwidth_basis: None,
        dirty_bytes_per_s: None,
        predicted_total_ms: None,
        predicted_downtime_ms: None,
        no_end_in_sight: false,
        rests_on: Vec::new(),
    }
}

/// Asks the other host whether the guest may come: its room and the round trip, or what is in the
/// way.
async fn ask(
    daemon: &Arc<Daemon>,
    client: &GuestClient,
    info: &GuestInfo,
    to: &str,
) -> Result<Result<(u64, Duration), ErrorBody>, Failure> {
    let prepare = Prepare {
        move_id: Uuid::nil(),
        attempt: Uuid::nil(),
        definition: info.definition.clone(),
        fingerprint: String::new(),
        lanes: 1,
        payload: 0,
        dry_run: true,
        asked: None,
        cpu: crate::daemon::cpu::of_guest(client).await,
    };
    match daemon.ask(to, Request::Prepare(Box::new(prepare))).await {
        Ok(Told { answer: Answer::Prepared { room_bytes, .. }, round_trip, .. }) => {
            Ok(Ok((room_bytes, round_trip)))
        }
        Ok(_) => Err(unexpected("the other daemon", &"it answered something else")),
        Err(failure) => Ok(Err(*failure.0)),
    }
}

/// How fast memory gets to that host: as in the last move there that was not held back, or else by
/// a sample that is sent now.
async fn link(daemon: &Arc<Daemon>, earlier: &[MoveReport], to: &str) -> Link {
    if let Some((rate, report)) = measured(earlier, to) {
        let words = format!(
            "memory got across at that rate in move {} of {:.0}",
            report.move_id, report.started
        );
        return Link::new(rate, BandwidthBasis::LastMove, words);
    }
    match check::sample(daemon, to).await {
        Ok(Some(rate)) => {
            let words = "a sample of half a second on one connection got across at that rate; \
                         memory, which is read, packed and compared as well, may be slower";
            Link::new(rate, BandwidthBasis::Probe, words.into())
        }
        Ok(None) => Link::assumed("no data port answered to a sample"),
        Err(failure) => Link::assumed(&format!("no sample could be sent: {failure}")),
    }
}

/// The rate of the latest move to that host from which it can be told.
fn measured<'a>(earlier: &'a [MoveReport], to: &str) -> Option<(u64, &'a MoveReport)> {
    let told = |r: &&MoveReport| {
        r.to.name == to
            && r.outcome == Some(MoveOutcome::Moved)
            && r.options.bandwidth_bytes_per_s.is_none()
    };
    let rate = |r: &'a MoveReport| {
        let first = r.rounds.first().filter(|round| round.memory_bytes >= TELLING)?;
        Some((first.bandwidth_bytes_per_s, r)).filter(|(rate, _)| *rate > 0)
    };
    earlier.iter().filter(told).find_map(rate)
}

/// Time to restore a guest's state at a destination, as the latest rehearsals found it: of this
/// guest, or else of any.
fn restore(earlier: &[MoveReport], guest: Uuid) -> Option<Duration> {
    let of = |r: &MoveReport| r.rehearsal_restore_ms.filter(|ms| ms.is_finite() && *ms >= 0.0);
    let same = earlier.iter().filter(|r| r.uuid == guest).find_map(of);
    let ms = same.or_else(|| earlier.iter().find_map(of))?;
    Duration::try_from_secs_f64(ms / 1000.0).ok()
}

/// How fast the guest writes.
async fn writes(client: &GuestClient, state: GuestState) -> Writes {
    if state == GuestState::Paused {
        return Writes::Paused;
    }
    match client.dirty_rate().await {
        Ok(rate) => Writes::Measured {
            bytes_per_s: rate.bytes_per_s,
            over: Duration::from_millis(rate.over_ms),
        },
        Err(CallError::Refused(body)) if body.code == ErrorCode::Usage => {
            Writes::Unknown("its process is of a release that cannot measure them".into())
        }
        Err(error) => Writes::Unknown(client.failure(error).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{MoveOptions, MovePhase, RoundLine};
    use crate::guest::moving::report::About;

    fn report(to: &str, limit: Option<u64>, memory_bytes: u64, rate: u64) -> MoveReport {
        let host = |name: &str| HostRef { id: Uuid::nil(), name: name.into() };
        let about = About {
            move_id: Uuid::nil(),
            guest: "g".into(),
            uuid: Uuid::from_u128(rate.into()),
            from: host("here"),
            to: host(to),
            started: jiff::Timestamp::UNIX_EPOCH,
            options: MoveOptions { bandwidth_bytes_per_s: limit, ..MoveOptions::default() },
            memory_bytes,
        };
        let round = RoundLine { memory_bytes, bandwidth_bytes_per_s: rate, ..RoundLine::default() };
        MoveReport {
            outcome: Some(MoveOutcome::Moved),
            rounds: vec![round],
            rehearsal_restore_ms: u32::try_from(rate).ok().map(f64::from),
            ..about.blank(MovePhase::Ended)
        }
    }

    #[test]
    fn only_moves_that_tell_of_the_link_count() {
        let kept = MoveReport { outcome: Some(MoveOutcome::Kept), ..report("b", None, 1 << 30, 1) };
        let earlier = [
            kept,
            report("c", None, 1 << 30, 2),
            report("b", Some(5), 1 << 30, 3),
            report("b", None, 1 << 20, 4),
            report("b", None, 1 << 30, 5),
            report("b", None, 1 << 30, 6),
        ];
        assert_eq!(measured(&earlier, "b").map(|(rate, _)| rate), Some(5));
        assert_eq!(measured(&earlier[..4], "b").map(|(rate, _)| rate), None);
        assert_eq!(restore(&earlier, Uuid::from_u128(4)), Some(Duration::from_millis(4)));
        assert_eq!(restore(&earlier, Uuid::from_u128(77)), Some(Duration::from_millis(1)));
        assert_eq!(restore(&[], Uuid::nil()), None);
    }
}
