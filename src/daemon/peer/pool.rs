//! Sessions with other daemons, by host: one is made when it is needed and kept while it lives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migrate_engine::transport::identity::{HostName, Refusal, Right, Rights};
use migrate_engine::transport::link::CloseCode;
use migrate_engine::transport::quic::{ConnectError, Session};

use super::link::{Answerer, Peer, greet, not_connected};
use super::proto::{Ask, Joined};
use crate::api::{ErrorCode, Failure};
use crate::daemon::answers::Answers;
use crate::daemon::identity::resolve;
use crate::daemon::state::Daemon;

/// How long somebody without a certificate may stay.
const STRANGER_DEADLINE: Duration = Duration::from_secs(30);

/// Live sessions.
#[derive(Debug, Default)]
pub struct Pool {
    live: Mutex<BTreeMap<HostName, Arc<Peer>>>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostName, Arc<Peer>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A live session with `name`, if there is one.
    pub fn live(&self, name: &HostName) -> Option<Arc<Peer>> {
        self.lock().get(name).filter(|peer| !peer.is_over()).cloned()
    }

    /// All live sessions.
    pub fn all(&self) -> Vec<Arc<Peer>> {
        self.lock().values().filter(|peer| !peer.is_over()).cloned().collect()
    }

    /// Ends the session with `name`.
    pub fn drop(&self, name: &HostName, why: &str) {
        let peer = self.lock().remove(name);
        if let Some(peer) = peer {
            peer.close(CloseCode::Refused, why);
        }
    }

    fn keep(&self, peer: &Arc<Peer>) {
        self.lock().insert(peer.name.clone(), Arc::clone(peer));
    }

    fn forget(&self, peer: &Arc<Peer>) {
        let mut live = self.lock();
        if live.get(&peer.name).is_some_and(|kept| Arc::ptr_eq(kept, peer)) {
            live.remove(&peer.name);
        }
    }
}

/// The daemon of the host `name`: the session there is, or a new one.
///
/// # Errors
/// `no-identity`, `unknown-host`, `unreachable`, `host-refused`, with the cause.
pub async fn peer(daemon: &Arc<Daemon>, name: &HostName) -> Result<Arc<Peer>, Failure> {
    if let Some(peer) = daemon.peers.live(name) {
        return Ok(peer);
    }
    dial(daemon, name).await
}

/// A new session with the host `name`.
///
/// # Errors
/// As [`peer`].
pub async fn dial(daemon: &Arc<Daemon>, name: &HostName) -> Result<Arc<Peer>, Failure> {
    let loaded = daemon.identity()?;
    let dialler = daemon.dialler()?;
    let entry = loaded.hosts.get(name).cloned().ok_or_else(|| unknown(name))?;
    let mut last = unknown(name);
    for address in resolve(&entry.address).await? {
        match dialler.dial(address, name).await {
            Ok(session) => {
                let rights = session.peer.rights;
                return welcome(daemon, session, name.clone(), rights).await;
            }
            Err(e) => {
                last = not_connected(name.as_str(), &e);
                if !matches!(e, ConnectError::Unreachable { .. } | ConnectError::Here { .. }) {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// No host of that name.
pub fn unknown(name: &HostName) -> Failure {
    Failure::new(
        ErrorCode::UnknownHost,
        format!("no host '{name}' is known here"),
        "see the hosts there are: migrate host ls; to add one: migrate host invite",
    )
}

/// Greets a host of the site and serves the session from now on.
///
/// # Errors
/// No version in common, or the session ended.
pub async fn welcome<P>(
    daemon: &Arc<Daemon>,
    session: Session<P>,
    name: HostName,
    rights: Rights,
) -> Result<Arc<Peer>, Failure> {
    let Session { address, mut control, handle, .. } = session;
    let hello = greet(&mut control, &handle, &daemon.hello()).await?;
    let peer = Arc::new(Peer::new(name, hello, address, rights, control.sender, handle));
    tracing::debug!(peer = %peer.name, address = %peer.address, "a session with a daemon");
    daemon.note_peer(&peer);
    daemon.peers.keep(&peer);
    let answers = Arc::new(Answers(Arc::clone(daemon)));
    let (serving, daemon) = (Arc::clone(&peer), Arc::clone(daemon));
    tokio::spawn(async move {
        Arc::clone(&serving).serve(control.receiver, answers).await;
        daemon.peers.forget(&serving);
    });
    Ok(peer)
}

/// Lets somebody join who has an invitation, and nothing else.
pub async fn let_join<P>(daemon: Arc<Daemon>, session: Session<P>) {
    let Session { address, mut control, handle, .. } = session;
    let hello = match greet(&mut control, &handle, &daemon.hello()).await {
        Ok(hello) => hello,
        Err(error) => return tracing::info!(%address, %error, "a host could not join"),
    };
    let Ok(name) = hello.host.name.parse::<HostName>() else {
        return tracing::info!(%address, "a host could not join: it has no proper name");
    };
    let peer = Peer::new(name, hello, address, Rights::NONE, control.sender, handle);
    let answers = Arc::new(JoinOnly(daemon));
    let serve = Arc::new(peer).serve(control.receiver, answers);
    if tokio::time::timeout(STRANGER_DEADLINE, serve).await.is_err() {
        tracing::info!(%address, "a host that wanted to join took too long");
    }
}

/// Answers strangers.
struct JoinOnly(Arc<Daemon>);

impl Answerer for JoinOnly {
    async fn answer(
        &self,
        peer: &Arc<Peer>,
        ask: Ask,
    ) -> Result<Box<serde_json::value::RawValue>, Failure> {
        let Ask::Join(join) = ask else {
            return Err(Failure::new(
                ErrorCode::HostRefused,
                Refusal::NoCertificate.to_string(),
                "join first: migrate host join LINE",
            ));
        };
        let joined: Joined = self.0.let_in(peer, join).await.inspect_err(|error| {
            tracing::warn!(address = %peer.address, %error, "a host was not let in");
        })?;
        super::proto::raw(&joined)
    }
}

/// Whether the host `name` may do `right` here.
///
/// # Errors
/// `host-refused`, in words for both sides.
pub fn permit(name: &HostName, rights: Rights, right: Right) -> Result<(), Failure> {
    Refusal::unless(rights, right, name).map_err(|refusal| {
        let remedy = format!("grant it in host.toml: [rights] {name} = [\"{right}\", ...]");
        Failure::new(ErrorCode::HostRefused, refusal.to_string(), remedy)
    })
}
