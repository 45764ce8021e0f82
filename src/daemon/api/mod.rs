//! The API on the daemon's Unix socket, as [`crate::api::host`] describes it. It decides nothing.

mod routes;
mod socket;

use std::sync::Arc;

use jiff::Timestamp;

use super::facts;
use super::state::{Daemon, blocking};
use crate::api::host::HostInfo;

pub use routes::router;
pub use socket::{Listener, bind};

/// This host, as it describes itself.
pub async fn info(daemon: &Arc<Daemon>) -> HostInfo {
    let work = Arc::clone(daemon);
    let guests = blocking(move || Ok(facts::guests(&work.dirs).len())).await.unwrap_or(0);
    let memory = facts::memory();
    let identity = daemon.identity().ok();
    let port = daemon.port();
    let ends = identity.map(|loaded| loaded.identity.not_after().0);
    let limit = daemon.settings().memory.unwrap_or(u64::MAX);
    HostInfo {
        schema: 1,
        host: daemon.host(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started: daemon.started,
        listen: port.as_ref().map(|port| port.address.to_string()),
        certificate_ends: ends.and_then(|at| Timestamp::from_second(i64::try_from(at).ok()?).ok()),
        cpus: facts::cpus(),
        memory_total_bytes: memory.total.min(limit),
        memory_available_bytes: memory.available.min(limit),
        memory_reserved_bytes: daemon.inbound.reserved(),
        guests: u32::try_from(guests).unwrap_or(u32::MAX),
        moves_running: u32::try_from(daemon.moves.running().len()).unwrap_or(u32::MAX),
        advice: port.map(|port| port.advice).unwrap_or_default(),
        now: Timestamp::now(),
    }
}
