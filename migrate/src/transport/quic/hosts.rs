//! Sessions between daemons: hosts' certificates, one control stream each.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use quinn::{Connection, Endpoint, Incoming as Knock, RecvStream, SendStream, ServerConfig};
use tokio::{sync::mpsc, time::timeout};

use super::{
    data::{endpoint, open_error},
    error::ConnectError,
    paced::Budget,
    serve::{say_goodbye, serve},
    settings::Settings,
    socket::{self, Advice},
    stream::{self, OpenError, Role},
    tls,
};
use crate::transport::{
    identity::{
        Fingerprint, HostIdentity, HostName, Refusal, Site,
        invitation::AuthorityPrint,
        verify::{Admitted, Doorkeeper, Peer, Policy},
    },
    link::{
        Close, CloseCode, Control, Guard, LinkHandle, Shared, StreamLimits, incoming, outgoing,
    },
};

/// Handshakes at a time from addresses that have not proved that they can receive.
const MAX_UNPROVED: usize = 32;
/// Handshakes at a time.
const MAX_KNOCKS: usize = 128;
/// Longest frame that somebody without a certificate may send, in bytes: a secret and a
/// certificate request have about 1,000.
const STRANGER_FRAME: usize = 16 << 10;
/// Name that a host which does not know the other's uses in the handshake.
const ANY_NAME: &str = "host.migrate";

/// A session with another daemon.
#[derive(Debug)]
pub struct Session<P> {
    /// Who it is.
    pub peer: P,
    /// Its address.
    pub address: SocketAddr,
    /// Messages both ways.
    pub control: Control,
    /// Counters, close, end.
    pub handle: LinkHandle,
}

/// Somebody without a certificate, who may do nothing but redeem an invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger;

/// The CA's host of an invitation, proved by the CA's fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inviter {
    /// Its name.
    pub name: HostName,
    /// The CA whose certificate it must hand over.
    pub authority: Fingerprint,
}

/// Who came.
#[derive(Debug)]
pub enum Accepted {
    /// A host of the site.
    Host(Session<Peer>),
    /// A host that wants to join.
    Joining(Session<Stranger>),
}

/// What a daemon shows of itself and whom it trusts, at one moment.
#[derive(Debug, Clone)]
struct Own {
    identity: Arc<HostIdentity>,
    site: Arc<Site>,
}

/// A daemon's fixed UDP port: it accepts and dials sessions.
#[derive(Debug)]
pub struct HostEndpoint {
    dialler: Dialler,
    knocks: mpsc::Receiver<Result<Accepted, ConnectError>>,
    advice: Vec<Advice>,
}

impl HostEndpoint {
    /// Opens the port. Must be called on the runtime that is to serve it.
    ///
    /// # Errors
    /// The system's error.
    pub fn bind(
        address: SocketAddr,
        identity: Arc<HostIdentity>,
        site: Arc<Site>,
        settings: Settings,
    ) -> Result<Self, ConnectError> {
        let (socket, advice) =
            socket::bind(address).map_err(|e| ConnectError::here("bind the control port", &e))?;
        let own = Arc::new(RwLock::new(Own { identity, site }));
        let (server, _) = server_config(&read(&own), &settings)?;
        let endpoint = endpoint(socket, &settings, Budget::Free, Some(server))?;
        let dialler = Dialler { endpoint, own, settings };
        let (found, knocks) = mpsc::channel(16);
        tokio::spawn(answer(dialler.clone(), found));
        Ok(Self { dialler, knocks, advice })
    }

    /// The next who came, or the reason why one could not come in. `None` when closed.
    pub async fn accept(&mut self) -> Option<Result<Accepted, ConnectError>> {
        self.knocks.recv().await
    }

    /// What can dial from this port.
    pub fn dialler(&self) -> &Dialler {
        &self.dialler
    }

    /// The port's address.
    ///
    /// # Errors
    /// The system's error.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.dialler.endpoint.local_addr()
    }

    /// What could be better about the socket.
    pub fn advice(&self) -> &[Advice] {
        &self.advice
    }

    /// Puts a renewed certificate or a changed site in place, for connections from now on.
    /// Sessions with a host that was removed must be closed by whoever holds them.
    pub fn replace(&self, identity: Arc<HostIdentity>, site: Arc<Site>) {
        self.dialler.replace(identity, site);
    }

    /// Closes the port and every session, telling the peers why.
    pub async fn close(self, reason: &str) {
        let close = Close::new(CloseCode::Done, reason);
        self.dialler.endpoint.close(close.code.to_u32().into(), close.reason.as_bytes());
        say_goodbye(&self.dialler.endpoint).await;
    }
}

/// Dials from a daemon's port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dialler {
    endpoint: Endpoint,
    own: Arc<RwLock<Own>>,
    settings: Settings,
}

impl Dialler {
    /// See [`HostEndpoint::replace`], whose port this is.
    pub fn replace(&self, identity: Arc<HostIdentity>, site: Arc<Site>) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Own { identity, site };
    }

    /// Connects to the host called `name` at `address`.
    ///
    /// # Errors
    /// There is no session; the error says what to do about it.
    pub async fn dial(
        &self,
        address: SocketAddr,
        name: &HostName,
    ) -> Result<Session<Peer>, ConnectError> {
        let Own { identity, site } = read(&self.own);
        let policy = Policy::Site { site, expected: Some(name.clone()) };
        let doorkeeper = Doorkeeper::strict(policy, tls::algorithms());
        let show = tls::Own::Host(&identity);
        let client = client_config(show, &doorkeeper, tls::HOSTS, &self.settings)?;
        let call = Call { endpoint: &self.endpoint, address, doorkeeper: &doorkeeper };
        let made = call.dial(client, &name.dns(), &self.settings).await?;
        match doorkeeper.verdict() {
            Some(Ok(Admitted::Host(peer))) => Ok(made.into_session(peer, None, &self.settings)),
            _ => Err(made.give_up()),
        }
    }
}

/// Connects to the CA's host of an invitation, from a host that has no certificate yet. Nothing
/// secret may be sent before this has returned.
///
/// # Errors
/// There is no session; `unknown-ca` says that somebody else is at that address.
pub async fn dial_to_join(
    address: SocketAddr,
    authority: AuthorityPrint,
    settings: &Settings,
) -> Result<Session<Inviter>, ConnectError> {
    let (socket, _) = socket::bind(socket::any_port(address, None))
        .map_err(|e| ConnectError::here("bind a UDP socket", &e))?;
    let endpoint = endpoint(socket, settings, Budget::Free, None)?;
    let doorkeeper = Doorkeeper::strict(Policy::Invited(authority), tls::algorithms());
    let client = client_config(tls::Own::Nothing, &doorkeeper, tls::JOIN, settings)?;
    let call = Call { endpoint: &endpoint, address, doorkeeper: &doorkeeper };
    let made = call.dial(client, ANY_NAME, settings).await?;
    match doorkeeper.verdict() {
        Some(Ok(Admitted::Inviter { name, authority })) => {
            Ok(made.into_session(Inviter { name, authority }, Some(endpoint), settings))
        }
        _ => Err(made.give_up()),
    }
}

fn read(own: &RwLock<Own>) -> Own {
    own.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn server_config(
    own: &Own,
    settings: &Settings,
) -> Result<(ServerConfig, Arc<Doorkeeper>), ConnectError> {
    let policy = Policy::Site { site: Arc::clone(&own.site), expected: None };
    let doorkeeper = Doorkeeper::with_strangers(policy, tls::algorithms());
    let show = tls::Own::Host(&own.identity);
    let tls = tls::server(show, Arc::clone(&doorkeeper), &[tls::HOSTS, tls::JOIN])
        .map_err(|e| ConnectError::here("set up TLS", &e))?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(settings.transport(0)));
    Ok((config, doorkeeper))
}

fn client_config(
    own: tls::Own<'_>,
    doorkeeper: &Arc<Doorkeeper>,
    protocol: &[u8],
    settings: &Settings,
) -> Result<quinn::ClientConfig, ConnectError> {
    let tls = tls::client(own, Arc::clone(doorkeeper), protocol)
        .map_err(|e| ConnectError::here("set up TLS", &e))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(settings.transport(0)));
    Ok(config)
}

/// A connection to make.
struct Call<'a> {
    endpoint: &'a Endpoint,
    address: SocketAddr,
    doorkeeper: &'a Doorkeeper,
}

impl Call<'_> {
    async fn dial(
        &self,
        config: quinn::ClientConfig,
        name: &str,
        settings: &Settings,
    ) -> Result<Made, ConnectError> {
        let peer = self.address;
        let work = async {
            let connection = self
                .endpoint
                .connect_with(config, peer, name)
                .map_err(|e| ConnectError::here("connect", &e))?
                .await
                .map_err(|e| ConnectError::from_quic(peer, self.doorkeeper, &e))?;
            let opened = async {
                let (mut send, mut recv) = connection.open_bi().await?;
                send.write_all(&Role::Session.opening()).await?;
                stream::expect_welcome(&mut recv).await?;
                Ok((send, recv))
            };
            let (send, recv) =
                opened.await.map_err(|e: OpenError| open_error(peer, self.doorkeeper, e))?;
            Ok(Made { connection, send, recv })
        };
        timeout(settings.connect, work).await.unwrap_or(Err(ConnectError::Unreachable { peer }))
    }
}

/// A connection with its stream.
struct Made {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

impl Made {
    /// Serves the session in a task. `own` is an endpoint that nothing else uses.
    fn into_session<P>(self, peer: P, own: Option<Endpoint>, settings: &Settings) -> Session<P> {
        self.into_session_of(peer, own, settings, settings.limits.control)
    }

    /// The same, where the peer's frames have limits of their own.
    fn into_session_of<P>(
        self,
        peer: P,
        own: Option<Endpoint>,
        settings: &Settings,
        theirs: StreamLimits,
    ) -> Session<P> {
        let address = self.connection.remote_address();
        let link = Shared::new(0);
        let guard = Arc::new(Guard(Arc::clone(&link)));
        let (sender, out) = outgoing(&guard, settings.limits.control);
        let (into, receiver) = incoming(&guard, theirs);
        let Self { connection, send, recv } = self;
        tokio::spawn(async move {
            serve(connection, None, link, vec![(out, send)], vec![(into, recv)]).await;
            if let Some(endpoint) = own {
                say_goodbye(&endpoint).await;
            }
        });
        let control = Control { sender, receiver };
        Session { peer, address, control, handle: LinkHandle::new(guard) }
    }

    /// For a handshake that was completed without a decision, which cannot be.
    fn give_up(self) -> ConnectError {
        let detail = "the handshake ended without a decision";
        self.connection.close(CloseCode::Protocol.to_u32().into(), detail.as_bytes());
        ConnectError::Broken { peer: self.connection.remote_address(), detail: detail.into() }
    }
}

/// Answers everybody who knocks, until the endpoint is closed or nobody listens any more.
async fn answer(dialler: Dialler, found: mpsc::Sender<Result<Accepted, ConnectError>>) {
    let mut knocks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = found.closed() => return,
            Some(_) = knocks.join_next() => {}
            knock = dialler.endpoint.accept() => {
                let Some(knock) = knock else { return };
                if knocks.len() >= MAX_KNOCKS {
                    knock.refuse();
                } else if knocks.len() >= MAX_UNPROVED && knock.may_retry() {
                    // Costs the dialler a round trip, and a forged sender everything.
                    let _cannot_fail = knock.retry();
                } else {
                    let (dialler, found) = (dialler.clone(), found.clone());
                    knocks.spawn(async move {
                        let accepted = let_in(knock, &dialler).await;
                        let _nobody_listens = found.send(accepted).await;
                    });
                }
            }
        }
    }
}

async fn let_in(knock: Knock, dialler: &Dialler) -> Result<Accepted, ConnectError> {
    let (peer, settings) = (knock.remote_address(), &dialler.settings);
    let work = async {
        let (config, doorkeeper) = server_config(&read(&dialler.own), settings)?;
        let from_quic = |e| ConnectError::from_quic(peer, &doorkeeper, &e);
        let connection = knock.accept_with(Arc::new(config)).map_err(from_quic)?;
        let connection = connection.await.map_err(from_quic)?;
        let who = match (doorkeeper.verdict(), protocol(&connection).as_deref()) {
            (Some(Ok(Admitted::Host(host))), Some(tls::HOSTS)) => Some(host),
            (None, Some(tls::JOIN)) => None,
            _ => {
                let refusal = Refusal::NoCertificate;
                let code = CloseCode::Refused.to_u32();
                connection.close(code.into(), refusal.phrase().as_bytes());
                return Err(ConnectError::Refused { peer, refusal });
            }
        };
        let opened = async {
            let (mut send, mut recv) = connection.accept_bi().await?;
            Role::Session.expect(&mut recv).await?;
            send.write_all(&stream::welcome()).await?;
            Ok((send, recv))
        };
        let (send, recv) = opened.await.map_err(|e| open_error(peer, &doorkeeper, e))?;
        let made = Made { connection, send, recv };
        let limits = StreamLimits { frame: STRANGER_FRAME, depth: 1 };
        Ok(match who {
            Some(host) => Accepted::Host(made.into_session(host, None, settings)),
            None => Accepted::Joining(made.into_session_of(Stranger, None, settings, limits)),
        })
    };
    timeout(settings.connect, work).await.unwrap_or(Err(ConnectError::Unreachable { peer }))
}

/// The protocol that the handshake agreed on.
fn protocol(connection: &Connection) -> Option<Bytes> {
    let data = connection.handshake_data()?;
    let data = data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    data.protocol.map(Bytes::from)
}
