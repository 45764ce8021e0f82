//! What the parts of a daemon share: its identity, its sessions, its moves, what it has promised.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use jiff::Timestamp;
use migrate_engine::transport::identity::{HostIdentity, HostName, Site};
use migrate_engine::transport::quic::Dialler;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::PROGRAM;
use super::identity::{self, Loaded, hosts::Hosts};
use super::inbound::Inbound;
use super::launcher::Launcher;
use super::metrics::Metrics;
use super::moves::Moves;
use super::peer::link::Peer;
use super::peer::pool::{self, Pool};
use super::peer::proto::{Ask, Hello, Join, Joined, VERSIONS};
use super::settings::Settings;
use crate::api::moving::HostRef;
use crate::api::{ErrorCode, Failure};
use crate::config::Dirs;

/// One host's service.
#[derive(Debug)]
pub struct Daemon {
    /// Directories of the instance.
    pub dirs: Dirs,
    /// Identity of the host, for life.
    pub id: Uuid,
    /// When the service started.
    pub started: Timestamp,
    /// Sessions with other daemons.
    pub peers: Pool,
    /// Moves in both directions.
    pub moves: Moves,
    /// Guests that arrive.
    pub inbound: Inbound,
    /// What is counted.
    pub metrics: Metrics,
    /// What starts guest processes.
    pub launcher: Launcher,
    settings: RwLock<Arc<Settings>>,
    loaded: RwLock<Option<Loaded>>,
    net: Mutex<Option<Net>>,
    /// Held by whoever changes the hosts of the site.
    changing: Mutex<()>,
}

/// The open control port.
#[derive(Clone, Debug)]
pub struct Net {
    /// Makes sessions.
    pub dialler: Dialler,
    /// Where it listens.
    pub address: SocketAddr,
    /// What could be better about it.
    pub advice: Vec<String>,
    /// Orders to the task that has the port.
    pub orders: mpsc::UnboundedSender<Order>,
}

/// An order to the task that has the control port.
#[derive(Debug)]
pub enum Order {
    /// Show and trust these from now on.
    Replace(Arc<HostIdentity>, Arc<Site>),
}

impl Daemon {
    /// A daemon without a port yet.
    pub fn new(
        dirs: Dirs,
        id: Uuid,
        settings: Settings,
        loaded: Option<Loaded>,
        launcher: Launcher,
    ) -> Self {
        Self {
            id,
            started: Timestamp::now(),
            peers: Pool::default(),
            moves: Moves::new(&dirs),
            inbound: Inbound::default(),
            metrics: Metrics::default(),
            launcher,
            settings: RwLock::new(Arc::new(settings)),
            loaded: RwLock::new(loaded),
            net: Mutex::new(None),
            changing: Mutex::new(()),
            dirs,
        }
    }

    /// What the user says.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Identity and site.
    ///
    /// # Errors
    /// `no-identity`, with what to do.
    pub fn identity(&self) -> Result<Loaded, Failure> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone();
        loaded.ok_or_else(|| {
            Failure::new(
                ErrorCode::NoIdentity,
                "this host has no identity yet, so no other host can know it",
                "make it the first of a site: migrate host init; or join one: migrate host join",
            )
        })
    }

    fn net(&self) -> MutexGuard<'_, Option<Net>> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What dials other daemons.
    ///
    /// # Errors
    /// `no-identity` or `unreachable` if the control port is not open.
    pub fn dialler(&self) -> Result<Dialler, Failure> {
        self.port().map(|net| net.dialler).ok_or_else(|| {
            Failure::new(
                ErrorCode::Unreachable,
                "the daemon's UDP port is not open",
                "see the daemon's log; then restart it, or: migrate host show",
            )
        })
    }

    /// The open control port.
    pub fn port(&self) -> Option<Net> {
        self.net().clone()
    }

    /// The control port was opened, or closed.
    pub fn set_port(&self, net: Option<Net>) {
        *self.net() = net;
    }

    /// This host, as moves name it: by its certificate, before that by its hostname.
    pub fn host(&self) -> HostRef {
        let name = self.identity().map(|loaded| loaded.name().to_string());
        HostRef { id: self.id, name: name.unwrap_or_else(|_| identity::hostname()) }
    }

    /// What it says first to other daemons.
    pub fn hello(&self) -> Hello {
        let settings = self.settings();
        let listen = self.port().map_or(settings.listen, |net| net.address);
        let address = settings.advertise.clone().or_else(|| {
            // An address of this host that everybody may use, if it listens on one.
            let one = !listen.ip().is_unspecified();
            one.then(|| listen.to_string())
        });
        Hello {
            versions: VERSIONS.to_vec(),
            program: PROGRAM.into(),
            host: self.host(),
            address,
            port: listen.port(),
        }
    }

    /// Reads `host.toml` and the identity again.
    ///
    /// # Errors
    /// A file is malformed; nothing has changed then.
    pub fn reload(&self) -> Result<(), Failure> {
        let settings = Settings::read(&self.dirs)?;
        let loaded = Loaded::read(&self.dirs, &settings)?;
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.put(loaded);
        Ok(())
    }

    fn put(&self, loaded: Option<Loaded>) {
        if let (Some(loaded), Some(net)) = (&loaded, self.port()) {
            let order = Order::Replace(loaded.identity.clone(), loaded.site.clone());
            let _port_closed = net.orders.send(order);
        }
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
    }

    /// Changes what is known of the site's hosts; `change` says whether it did anything. Sessions
    /// with hosts that were removed end.
    ///
    /// # Errors
    /// `no-identity`, or `file` if it cannot be written.
    pub fn change_hosts(&self, change: impl FnOnce(&mut Hosts) -> bool) -> Result<bool, Failure> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = self.identity()?;
        let mut hosts = loaded.hosts.clone();
        if !change(&mut hosts) {
            return Ok(false);
        }
        let own = loaded.name().clone();
        let loaded = loaded.with_hosts(&self.dirs, &self.settings(), hosts)?;
        let gone: Vec<HostName> = loaded
            .hosts
            .removed
            .keys()
            .filter(|n| loaded.hosts.get(n).is_none())
            .cloned()
            .collect();
        self.put(Some(loaded));
        for name in gone.iter().filter(|name| **name != own) {
            self.peers.drop(name, "this host was removed from the site");
        }
        Ok(true)
    }

    /// A peer has said who and where it is.
    pub fn note_peer(&self, peer: &Peer) {
        let address = peer
            .hello
            .address
            .clone()
            .unwrap_or_else(|| SocketAddr::new(peer.address.ip(), peer.hello.port).to_string());
        let (id, now) = (peer.hello.host.id, identity::now());
        let noted = self.change_hosts(|hosts| hosts.note(&peer.name, Some(id), &address, now));
        if let Err(error) = noted {
            tracing::warn!(peer = %peer.name, %error, "a host cannot be noted");
        }
    }

    /// Lets the stranger `peer` into the site, if its invitation is good.
    ///
    /// # Errors
    /// As [`identity::redeem`].
    pub async fn let_in(self: &Arc<Self>, peer: &Peer, join: Join) -> Result<Joined, Failure> {
        let (daemon, name) = (Arc::clone(self), peer.name.clone());
        let redeem = move || {
            let loaded = daemon.identity()?;
            let Join { secret, request } = join;
            identity::redeem(&daemon.dirs, &loaded, &secret, &request, &name)
        };
        let chain = blocking(redeem).await?;
        self.note_peer(peer);
        tracing::info!(host = %peer.name, address = %peer.address, "a host has joined the site");
        self.note_self();
        let loaded = self.identity()?;
        let authorities =
            loaded.authority.as_ref().map(|a| a.certificate_pem().to_owned()).unwrap_or_default();
        self.spread(&peer.name);
        Ok(Joined { chain, authorities, hosts: loaded.hosts })
    }

    /// Notes where this host itself is, if it knows that.
    pub fn note_self(&self) {
        let Ok(loaded) = self.identity() else { return };
        let Some(address) = self.hello().address else { return };
        let (id, now) = (self.id, identity::now());
        let noted = self.change_hosts(|h| h.note(loaded.name(), Some(id), &address, now));
        if let Err(error) = noted {
            tracing::warn!(%error, "this host's address cannot be noted");
        }
    }

    /// Tells all other hosts what is known of the site, except `but`.
    pub fn spread(self: &Arc<Self>, but: &HostName) {
        let Ok(loaded) = self.identity() else { return };
        let own = loaded.name().clone();
        let others = loaded.hosts.hosts.keys().filter(|n| **n != own && *n != but).cloned();
        for name in others {
            let daemon = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = daemon.exchange_hosts(&name).await {
                    tracing::debug!(host = %name, %error, "a host was not told of the site");
                }
            });
        }
    }

    /// Exchanges what is known of the site with the host `name`.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    pub async fn exchange_hosts(self: &Arc<Self>, name: &HostName) -> Result<(), Failure> {
        let peer = pool::peer(self, name).await?;
        let mine = self.identity()?.hosts;
        let said: Hosts = peer.ask(&Ask::Hosts(mine), super::peer::link::ANSWER_DEADLINE).await?;
        self.merge_hosts(&peer, &said)?;
        Ok(())
    }

    /// Takes over what `peer` says of the site, as far as it may say it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn merge_hosts(&self, peer: &Peer, said: &Hosts) -> Result<bool, Failure> {
        use migrate_engine::transport::identity::Right;
        let authority = self.identity()?.hosts.authority;
        let may_tell = authority.as_ref() == Some(&peer.name) || peer.rights.has(Right::Control);
        self.change_hosts(|hosts| hosts.merge(said, &peer.name, may_tell))
    }
}

/// Runs what blocks on files away from the reactor.
///
/// # Errors
/// Those of `work`.
pub async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Failure> + Send + 'static,
) -> Result<R, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        let message = format!("a task of the daemon failed: {e}");
        Err(Failure::new(ErrorCode::Unexpected, message, "see the daemon's log"))
    })
}
