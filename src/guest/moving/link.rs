//! The link of a move, from what the daemons have agreed on.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use migrate_engine::transport::identity::{Ephemeral, Fingerprint};
use migrate_engine::transport::link::{SourceLink, TargetLink};
use migrate_engine::transport::quic::{ConnectError, DataListener, Limiter, Settings, dial};

use crate::api::moving::{DataEnd, MoveStart, ReceiveSpec};
use crate::api::{ErrorCode, Failure};
use crate::config::hex;

/// Our end of a link, checked.
pub struct End {
    own: Ephemeral,
    peer: Fingerprint,
    settings: Settings,
    limiter: Arc<Limiter>,
}

fn malformed(what: &str) -> Failure {
    let message = format!("the order to move is malformed: {what}");
    Failure::new(ErrorCode::Usage, message, "use one release of migrate on this host")
}

impl End {
    /// What `end` says, with a budget for what is sent.
    ///
    /// # Errors
    /// `usage` if it is malformed.
    pub fn new(end: &DataEnd, bandwidth: Option<u64>) -> Result<Self, Failure> {
        let bytes = |text: &str, what| hex::decode(text).ok_or_else(|| malformed(what));
        let own = Ephemeral::from_der(
            &bytes(&end.certificate, "the certificate")?,
            &bytes(&end.key, "the key")?,
        )
        .map_err(|e| malformed(&e.to_string()))?;
        let peer = end.peer.parse().map_err(|_| malformed("the peer's fingerprint"))?;
        let limiter = Arc::new(Limiter::new(bandwidth));
        let settings = Settings {
            payload: end.payload,
            limiter: Some(Arc::clone(&limiter)),
            ..Settings::default()
        };
        Ok(Self { own, peer, settings, limiter })
    }

    /// The budget, which may be changed while the link is in use.
    pub fn limiter(&self) -> Arc<Limiter> {
        Arc::clone(&self.limiter)
    }

    /// Connects to the receiver.
    ///
    /// # Errors
    /// It cannot be reached, or is somebody else.
    pub async fn dial(&self, start: &MoveStart) -> Result<SourceLink, Failure> {
        let dialled = dial(&start.addresses, start.local, &self.own, self.peer, &self.settings);
        let (link, advice) = dialled.await.map_err(|e| failed(&e))?;
        for advice in advice {
            tracing::warn!(MOVE = %start.move_id, %advice, "the network could do better");
        }
        Ok(link)
    }

    /// Waits for the source, on sockets that were [bound](bind).
    ///
    /// # Errors
    /// It did not come.
    pub async fn accept(
        &self,
        sockets: Vec<UdpSocket>,
        patience: Duration,
    ) -> Result<TargetLink, Failure> {
        let listener = DataListener::from_sockets(sockets);
        let accepted = listener.accept(&self.own, self.peer, &self.settings, patience);
        accepted.await.map_err(|e| failed(&e))
    }
}

fn failed(error: &ConnectError) -> Failure {
    Failure::new(
        ErrorCode::MoveFailed,
        format!("the two guest processes did not connect: {error}"),
        "check ports and firewalls: migrate host check",
    )
}

/// Binds the sockets of a receiver: control, then each lane.
///
/// # Errors
/// A port is taken, or the address is not this host's.
pub fn bind(spec: &ReceiveSpec) -> Result<Vec<UdpSocket>, Failure> {
    let one = |address: &std::net::SocketAddr| {
        let bound = migrate_engine::transport::quic::socket::bind(*address);
        bound.map(|(socket, _)| socket).map_err(|e| {
            let busy = e.kind() == std::io::ErrorKind::AddrInUse;
            let code = if busy { ErrorCode::Busy } else { ErrorCode::BadNet };
            let message = format!("cannot listen for the guest's data on {address}: {e}");
            Failure::new(code, message, "free the port, or change data_ports in host.toml")
        })
    };
    spec.listen.iter().map(one).collect()
}
