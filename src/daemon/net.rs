//! The control port: opened when there is an identity, and served until the daemon ends.

use std::sync::Arc;
use std::time::Duration;

use migrate_engine::transport::quic::{Accepted, ConnectError, HostEndpoint, Settings};
use tokio::sync::{Semaphore, mpsc, watch};

use super::peer::pool;
use super::state::{Daemon, Net, Order};
use crate::api::{ErrorCode, Failure};

/// Strangers with an invitation at a time.
const STRANGERS: usize = 8;
/// How long closing the port may take.
const CLOSE: Duration = Duration::from_secs(2);

/// Opens the control port and serves it. Without effect if it is open.
///
/// # Errors
/// `no-identity`; `bad-net` if the port cannot be had.
pub fn open(daemon: &Arc<Daemon>, stop: watch::Receiver<bool>) -> Result<(), Failure> {
    if daemon.port().is_some() {
        return Ok(());
    }
    let loaded = daemon.identity()?;
    let (address, fallback) = daemon.settings().listen_on();
    let bind = |address| {
        let (identity, site) = (loaded.identity.clone(), loaded.site.clone());
        HostEndpoint::bind(address, identity, site, Settings::default())
    };
    let bound = match (bind(address), fallback) {
        // Where there is no IPv6.
        (Err(_), Some(v4)) => bind(v4),
        (bound, _) => bound,
    };
    let endpoint = bound.map_err(|e| {
        Failure::new(
            ErrorCode::BadNet,
            format!("cannot listen on UDP {address}: {e}"),
            "see who has the port (ss -lunp), or change 'listen' in host.toml",
        )
    })?;
    let address = endpoint.local_addr().unwrap_or(address);
    let advice: Vec<String> = endpoint.advice().iter().map(ToString::to_string).collect();
    for advice in &advice {
        tracing::warn!(advice, "the network could do better");
    }
    tracing::info!(%address, name = %loaded.name(), "listening for other hosts");
    let (orders, received) = mpsc::unbounded_channel();
    daemon.set_port(Some(Net { dialler: endpoint.dialler().clone(), address, advice, orders }));
    daemon.note_self();
    tokio::spawn(serve(Arc::clone(daemon), endpoint, received, stop));
    Ok(())
}

async fn serve(
    daemon: Arc<Daemon>,
    mut endpoint: HostEndpoint,
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut stop: watch::Receiver<bool>,
) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(Order::Replace(identity, site)) = orders.recv() => {
                endpoint.replace(identity, site);
            }
            came = endpoint.accept() => match came {
                Some(came) => accept(&daemon, came, &strangers),
                None => break,
            },
        }
    }
    daemon.set_port(None);
    let _ = tokio::time::timeout(CLOSE, endpoint.close("the daemon stops")).await;
}

fn accept(daemon: &Arc<Daemon>, came: Result<Accepted, ConnectError>, strangers: &Arc<Semaphore>) {
    let daemon = Arc::clone(daemon);
    match came {
        Ok(Accepted::Host(session)) => {
            tokio::spawn(async move {
                let (name, rights) = (session.peer.name.clone(), session.peer.rights);
                let address = session.address;
                if let Err(error) = pool::welcome(&daemon, session, name.clone(), rights).await {
                    tracing::warn!(host = %name, %address, %error, "a session was not made");
                }
            });
        }
        Ok(Accepted::Joining(session)) => {
            let Ok(permit) = Arc::clone(strangers).try_acquire_owned() else {
                return tracing::warn!("too many hosts want to join at a time");
            };
            tokio::spawn(async move {
                pool::let_join(daemon, session).await;
                drop(permit);
            });
        }
        Err(error) => tracing::warn!(%error, "a host could not connect"),
    }
}
