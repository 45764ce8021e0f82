//! What a former daemon began goes on: moves whose report has no end, with the processes that make
//! them. The processes have not noticed anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::{Direction, Move, outbound};
use crate::api::Failure;
use crate::api::client::GuestClient;
use crate::api::moving::MoveReport;
use crate::daemon::facts;
use crate::daemon::inbound::{self, room::Claim};
use crate::daemon::state::{Daemon, blocking};

/// Takes over everything that has not ended.
///
/// # Errors
/// The reports cannot be read.
pub async fn adopt(daemon: &Arc<Daemon>) -> Result<(), Failure> {
    let work = Arc::clone(daemon);
    let (reports, guests) = blocking(move || {
        let reports = work.moves.store.unfinished().unwrap_or_else(|error| {
            tracing::error!(%error, "the reports of moves cannot be read");
            Vec::new()
        });
        Ok((reports, facts::guests(&work.dirs)))
    })
    .await?;
    let here: BTreeMap<&str, &facts::Here> =
        guests.iter().map(|guest| (guest.name.as_str(), guest)).collect();
    tracing::info!(guests = guests.len(), moves = reports.len(), "found on this host");
    for report in reports {
        one(daemon, report, &here);
    }
    Ok(())
}

fn one(daemon: &Arc<Daemon>, report: MoveReport, here: &BTreeMap<&str, &facts::Here>) {
    let out = report.from.id == daemon.id;
    let (direction, other) =
        if out { (Direction::Out, &report.to) } else { (Direction::In, &report.from) };
    let Ok(peer) = other.name.parse() else {
        return tracing::warn!(MOVE = %report.move_id, "a report without a proper host");
    };
    let client = GuestClient::new(&report.guest, daemon.dirs.guest(&report.guest));
    let guest = here.get(report.guest.as_str());
    // The attempt's id is not written down: there is only one of each move.
    let attempt = Uuid::from_u128(report.move_id.as_u128());
    let arriving = !out && guest.is_some_and(|g| g.info.is_none());
    let claim = Claim {
        move_id: report.move_id,
        name: report.guest.clone(),
        uuid: report.uuid,
        memory: report.memory_bytes,
        cpus: 0,
        disks: Vec::new(),
        ports: 0,
    };
    let moved = Move::new(report, attempt, direction, peer, client);
    if let Err(error) = daemon.moves.begin(&moved) {
        return tracing::warn!(MOVE = %moved.id, %error, "a move cannot be taken over");
    }
    tracing::info!(MOVE = %moved.id, GUEST = %moved.guest, "a move goes on");
    if out {
        outbound::go_on(daemon, moved);
    } else {
        if arriving {
            let mut host = inbound::host_now(daemon);
            host.guests.retain(|present| present.name != moved.guest);
            daemon.inbound.adopt(attempt, claim, &host);
        }
        inbound::go_on(daemon, moved);
    }
}
