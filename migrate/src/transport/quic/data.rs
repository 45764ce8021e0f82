//! Links between guest processes: ephemeral certificates, one socket and thread per connection.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{
    Connection, Endpoint, EndpointConfig, Incoming as Knock, RecvStream, Runtime, SendStream,
    ServerConfig, TokioRuntime,
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{
    error::ConnectError,
    limiter::Limiter,
    paced::{Budget, Paced},
    settings::Settings,
    socket::{self, Advice},
    stream::{self, OpenError, Role},
    thread::{Made, all_ready, on_thread, run, unless_ended},
    tls::{self, Own},
};
use crate::transport::{
    identity::{
        Ephemeral, Fingerprint, ephemeral,
        verify::{Admitted, Doorkeeper, Policy},
    },
    link::{
        Close, CloseCode, Control, FrameReceiver, FrameSender, Guard, Incoming, Link, LinkHandle,
        Outgoing, Shared, SourceLink, TargetLink, incoming, outgoing,
    },
};

/// Most bulk lanes of a link.
pub const MAX_LANES: usize = 64;
/// Most strangers on a listener's doorstep at a time.
const MAX_KNOCKS: usize = 16;

/// The sockets of a link that is to be accepted: the first for control, one for each bulk lane.
#[derive(Debug)]
pub struct DataListener {
    sockets: Vec<UdpSocket>,
    advice: Vec<Advice>,
}

impl DataListener {
    /// Binds a socket for control and `lanes` more, each to a port of `ports` or, if that is
    /// empty, to one of the system's choice.
    ///
    /// # Errors
    /// The system's error, or not enough free ports.
    pub fn bind(
        address: IpAddr,
        ports: std::ops::Range<u16>,
        lanes: usize,
    ) -> Result<Self, ConnectError> {
        let (mut sockets, mut advice) = (Vec::new(), Vec::new());
        let mut ports = ports.into_iter().peekable();
        let any = ports.peek().is_none();
        while sockets.len() <= check_lanes(lanes)? {
            let port = match ports.next() {
                Some(port) => port,
                None if any => 0,
                None => {
                    return Err(ConnectError::here(
                        "listen for data",
                        &format!("{} UDP ports are needed; widen `data_ports`", lanes + 1),
                    ));
                }
            };
            match socket::bind(SocketAddr::new(address, port)) {
                Ok((socket, more)) => {
                    sockets.push(socket);
                    advice = more;
                }
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && !any => {}
                Err(e) => return Err(ConnectError::here("bind a UDP socket", &e)),
            }
        }
        Ok(Self { sockets, advice })
    }

    /// Takes sockets that somebody else has bound, as for a confined process.
    pub fn from_sockets(sockets: Vec<UdpSocket>) -> Self {
        Self { sockets, advice: Vec::new() }
    }

    /// Where the dialler must connect: control, then each lane.
    ///
    /// # Errors
    /// The system's error.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(UdpSocket::local_addr).collect()
    }

    /// What could be better about the sockets.
    pub fn advice(&self) -> &[Advice] {
        &self.advice
    }

    /// Waits at most `wait` for the holder of the certificate `peer` to connect to all sockets.
    /// Others are refused, and do not end the waiting.
    ///
    /// # Errors
    /// Nobody came; the error has what became of the last one who tried.
    pub async fn accept(
        self,
        own: &Ephemeral,
        peer: Fingerprint,
        settings: &Settings,
        wait: Duration,
    ) -> Result<TargetLink, ConnectError> {
        let lanes = self.sockets.len().saturating_sub(1);
        let count = lane_number(check_lanes(lanes)?);
        let (link, guard) = shared(lanes);
        let limits = settings.limits;
        let (control_tx, control_out) = outgoing(&guard, limits.control);
        let (control_in, control_rx) = incoming(&guard, limits.control);
        let (urgent_in, urgent_rx) = incoming(&guard, limits.urgent);
        let control =
            TargetStreams::Control { out: control_out, into: control_in, urgent: urgent_in };
        let mut parts = vec![(Role::Control { lanes: count }, None, control)];
        let mut lane_rx = Vec::<FrameReceiver>::new();
        for index in 0..lanes {
            let (into, rx) = incoming(&guard, limits.bulk);
            lane_rx.push(rx);
            let role = Role::Bulk { index: lane_number(index), lanes: count };
            parts.push((role, Some(index), TargetStreams::Bulk(into)));
        }
        let deadline = Instant::now() + wait;
        let mut started = Vec::new();
        for (socket, (role, lane, streams)) in self.sockets.into_iter().zip(parts) {
            let (settings, own) = (settings.clone(), own.clone());
            let budget = budget_of(&settings, lane);
            let doors = Doors { settings, role, deadline, own, peer };
            let link = Arc::clone(&link);
            started.push(on_thread(lane, move |ready| async move {
                let made = async {
                    let (config, _) = doors.config()?;
                    let endpoint = endpoint(socket, &doors.settings, budget, Some(config))?;
                    doors.accept(endpoint, streams).await
                };
                run(unless_ended(made, &link).await, ready, lane, link).await;
            })?);
        }
        all_ready(started, &link).await?;
        let control = Control { sender: control_tx, receiver: control_rx };
        Ok(Link { control, urgent: urgent_rx, lanes: lane_rx, handle: LinkHandle::new(guard) })
    }
}

/// Connects to all `addresses` of a listener, control first, from the local address `local` if
/// one is given. The other side must hold the certificate `peer`.
///
/// # Errors
/// A connection could not be made within the time in the settings; the others are closed.
pub async fn dial(
    addresses: &[SocketAddr],
    local: Option<IpAddr>,
    own: &Ephemeral,
    peer: Fingerprint,
    settings: &Settings,
) -> Result<(SourceLink, Vec<Advice>), ConnectError> {
    let lanes = check_lanes(addresses.len().saturating_sub(1))?;
    let count = lane_number(lanes);
    let (link, guard) = shared(lanes);
    let limits = settings.limits;
    let (control_tx, control_out) = outgoing(&guard, limits.control);
    let (control_in, control_rx) = incoming(&guard, limits.control);
    let (urgent_tx, urgent_out) = outgoing(&guard, limits.urgent);
    let control = SourceStreams::Control { out: control_out, into: control_in, urgent: urgent_out };
    let mut parts = vec![(Role::Control { lanes: count }, None, control)];
    let mut lane_tx = Vec::<FrameSender>::new();
    for index in 0..lanes {
        let (tx, out) = outgoing(&guard, limits.bulk);
        lane_tx.push(tx);
        let role = Role::Bulk { index: lane_number(index), lanes: count };
        parts.push((role, Some(index), SourceStreams::Bulk(out)));
    }
    let (mut advice, mut started) = (Vec::new(), Vec::new());
    for (address, (role, lane, streams)) in addresses.iter().copied().zip(parts) {
        let (socket, more) = socket::bind(socket::any_port(address, local))
            .map_err(|e| ConnectError::here("bind a UDP socket", &e))?;
        advice = more;
        let call = Call::new(own, peer, settings, role, address)?;
        let (budget, link) = (budget_of(settings, lane), Arc::clone(&link));
        started.push(on_thread(lane, move |ready| async move {
            let made = async {
                let endpoint = endpoint(socket, &call.settings, budget, None)?;
                call.dial(endpoint, streams).await
            };
            run(unless_ended(made, &link).await, ready, lane, link).await;
        })?);
    }
    all_ready(started, &link).await?;
    let control = Control { sender: control_tx, receiver: control_rx };
    let link = Link { control, urgent: urgent_tx, lanes: lane_tx, handle: LinkHandle::new(guard) };
    Ok((link, advice))
}

/// The ends that wait for streams on the accepting side.
enum TargetStreams {
    Control { out: Outgoing, into: Incoming, urgent: Incoming },
    Bulk(Incoming),
}

/// The ends that wait for streams on the dialling side.
enum SourceStreams {
    Control { out: Outgoing, into: Incoming, urgent: Outgoing },
    Bulk(Outgoing),
}

/// A connection to make.
pub(super) struct Call {
    settings: Settings,
    role: Role,
    address: SocketAddr,
    pub(super) doorkeeper: Arc<Doorkeeper>,
    pub(super) config: quinn::ClientConfig,
}

impl Call {
    pub(super) fn new(
        own: &Ephemeral,
        peer: Fingerprint,
        settings: &Settings,
        role: Role,
        address: SocketAddr,
    ) -> Result<Self, ConnectError> {
        let doorkeeper = Doorkeeper::strict(Policy::Pinned(peer), tls::algorithms());
        let tls = tls::client(Own::Ephemeral(own), Arc::clone(&doorkeeper), tls::DATA)
            .map_err(|e| ConnectError::here("set up TLS", &e))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(settings.transport(0)));
        Ok(Self { settings: settings.clone(), role, address, doorkeeper, config })
    }

    async fn dial(self, endpoint: Endpoint, streams: SourceStreams) -> Result<Made, ConnectError> {
        let peer = self.address;
        let work = async {
            let connection = endpoint
                .connect_with(self.config, peer, ephemeral::NAME)
                .map_err(|e| ConnectError::here("connect", &e))?
                .await
                .map_err(|e| ConnectError::from_quic(peer, &self.doorkeeper, &e))?;
            let opened = open(&connection, self.role, streams).await;
            let (outs, ins) = opened.map_err(|e| open_error(peer, &self.doorkeeper, e))?;
            Ok((connection, outs, ins))
        };
        let (connection, outs, ins) = timeout(self.settings.connect, work)
            .await
            .unwrap_or(Err(ConnectError::Unreachable { peer }))?;
        Ok(Made { endpoint, connection, outs, ins })
    }
}

type Streams = (Vec<(Outgoing, SendStream)>, Vec<(Incoming, RecvStream)>);

async fn open(
    connection: &Connection,
    role: Role,
    streams: SourceStreams,
) -> Result<Streams, OpenError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&role.opening()).await?;
    stream::expect_welcome(&mut recv).await?;
    match streams {
        SourceStreams::Control { out, into, urgent } => {
            let mut send_urgent = connection.open_uni().await?;
            set_priority(&send, stream::CONTROL);
            set_priority(&send_urgent, stream::URGENT);
            send_urgent.write_all(&Role::Urgent.opening()).await?;
            Ok((vec![(out, send), (urgent, send_urgent)], vec![(into, recv)]))
        }
        SourceStreams::Bulk(out) => {
            set_priority(&send, stream::BULK);
            Ok((vec![(out, send)], Vec::new()))
        }
    }
}

/// The only place where priorities are given.
fn set_priority(stream: &SendStream, priority: i32) {
    let _stream_is_open = stream.set_priority(priority);
}

/// What a listening socket lets in.
struct Doors {
    settings: Settings,
    role: Role,
    deadline: Instant,
    own: Ephemeral,
    peer: Fingerprint,
}

impl Doors {
    /// A configuration with a doorkeeper of its own.
    fn config(&self) -> Result<(ServerConfig, Arc<Doorkeeper>), ConnectError> {
        pinned(&self.own, self.peer, &self.settings)
    }

    /// Waits for the peer, and sends others away.
    async fn accept(
        self,
        endpoint: Endpoint,
        streams: TargetStreams,
    ) -> Result<Made, ConnectError> {
        let mut knocks = JoinSet::new();
        let mut last = None;
        let wait = async {
            loop {
                tokio::select! {
                    Some(done) = knocks.join_next() => match done {
                        Ok(Ok(made)) => return Ok(made),
                        Ok(Err(e)) => last = Some(Box::new(e)),
                        Err(e) => return Err(ConnectError::here("accept a connection", &e)),
                    },
                    knock = endpoint.accept() => match knock {
                        None => return Err(ConnectError::here("accept", "the socket is closed")),
                        Some(knock) if knocks.len() >= MAX_KNOCKS => knock.refuse(),
                        Some(knock) => {
                            let (config, doorkeeper) = self.config()?;
                            let (role, patience) = (self.role, self.settings.connect);
                            knocks.spawn(let_in(knock, config, doorkeeper, role, patience));
                        }
                    },
                }
            }
        };
        let (connection, send, recv) = match timeout_at(self.deadline, wait).await {
            Ok(made) => made?,
            Err(_) => return Err(ConnectError::NobodyCame { last }),
        };
        let (outs, ins) = match streams {
            TargetStreams::Bulk(into) => (Vec::new(), vec![(into, recv)]),
            TargetStreams::Control { out, into, urgent } => {
                let peer = connection.remote_address();
                let recv_urgent = timeout(self.settings.connect, accept_urgent(&connection))
                    .await
                    .unwrap_or_else(|_| Err(OpenError::Rules("no urgent stream".into())))
                    .map_err(|e| match e {
                        OpenError::Lost(e) => broken(peer, e.to_string()),
                        OpenError::Rules(e) => broken(peer, e),
                    })?;
                set_priority(&send, stream::CONTROL);
                (vec![(out, send)], vec![(into, recv), (urgent, recv_urgent)])
            }
        };
        Ok(Made { endpoint, connection, outs, ins })
    }
}

async fn accept_urgent(connection: &Connection) -> Result<RecvStream, OpenError> {
    let mut stream = connection.accept_uni().await?;
    Role::Urgent.expect(&mut stream).await?;
    Ok(stream)
}

/// A configuration that lets in the holder of the certificate `peer`.
pub(super) fn pinned(
    own: &Ephemeral,
    peer: Fingerprint,
    settings: &Settings,
) -> Result<(ServerConfig, Arc<Doorkeeper>), ConnectError> {
    let doorkeeper = Doorkeeper::strict(Policy::Pinned(peer), tls::algorithms());
    let tls = tls::server(Own::Ephemeral(own), Arc::clone(&doorkeeper), &[tls::DATA])
        .map_err(|e| ConnectError::here("set up TLS", &e))?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(settings.transport(1))).migration(false);
    Ok((config, doorkeeper))
}

/// One knock on the door: handshake, opening, welcome.
pub(super) async fn let_in(
    knock: Knock,
    config: ServerConfig,
    doorkeeper: Arc<Doorkeeper>,
    role: Role,
    patience: Duration,
) -> Result<(Connection, SendStream, RecvStream), ConnectError> {
    let peer = knock.remote_address();
    let work = async {
        let from_quic = |e| ConnectError::from_quic(peer, &doorkeeper, &e);
        let connection = knock.accept_with(Arc::new(config)).map_err(from_quic)?;
        let connection = connection.await.map_err(from_quic)?;
        if doorkeeper.verdict() != Some(Ok(Admitted::Pinned)) {
            return Err(broken(peer, "the handshake ended without a decision".into()));
        }
        let opened = async {
            let (mut send, mut recv) = connection.accept_bi().await?;
            role.expect(&mut recv).await?;
            send.write_all(&stream::welcome()).await?;
            Ok((send, recv))
        };
        match opened.await {
            Ok((send, recv)) => Ok((connection, send, recv)),
            Err(e) => {
                if let OpenError::Rules(detail) = &e {
                    let close = Close::new(CloseCode::Protocol, detail);
                    connection.close(close.code.to_u32().into(), close.reason.as_bytes());
                }
                Err(open_error(peer, &doorkeeper, e))
            }
        }
    };
    timeout(patience, work).await.unwrap_or(Err(ConnectError::Unreachable { peer }))
}

/// What a stream that did not open means.
pub(super) fn open_error(
    peer: SocketAddr,
    doorkeeper: &Doorkeeper,
    error: OpenError,
) -> ConnectError {
    match error {
        OpenError::Lost(e) => ConnectError::from_quic(peer, doorkeeper, &e),
        OpenError::Rules(detail) => broken(peer, detail),
    }
}

fn broken(peer: SocketAddr, detail: String) -> ConnectError {
    ConnectError::Broken { peer, detail }
}

/// Makes QUIC's endpoint on a socket. Must run on the runtime that will serve it.
pub(super) fn endpoint(
    socket: UdpSocket,
    settings: &Settings,
    budget: Budget,
    server: Option<ServerConfig>,
) -> Result<Endpoint, ConnectError> {
    let here = |e| ConnectError::here("set up a UDP socket", &e);
    let socket = TokioRuntime.wrap_udp_socket(socket).map_err(here)?;
    let socket = Arc::new(Paced::new(socket, budget, settings.payload()));
    let config: EndpointConfig = settings.endpoint();
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime)).map_err(here)
}

fn budget_of(settings: &Settings, lane: Option<usize>) -> Budget {
    match (&settings.limiter, lane) {
        (None, _) => Budget::Free,
        (Some(limiter), None) => Budget::Urgent(Arc::<Limiter>::clone(limiter)),
        (Some(limiter), Some(_)) => Budget::Bulk(Arc::clone(limiter)),
    }
}

fn check_lanes(lanes: usize) -> Result<usize, ConnectError> {
    if (1..=MAX_LANES).contains(&lanes) {
        Ok(lanes)
    } else {
        let detail = format!("{lanes} bulk lanes where 1 to {MAX_LANES} are possible");
        Err(ConnectError::here("make a link", &detail))
    }
}

/// A number that `check_lanes` has seen.
fn lane_number(lane: usize) -> u16 {
    u16::try_from(lane).unwrap_or(u16::MAX)
}

fn shared(lanes: usize) -> (Arc<Shared>, Arc<Guard>) {
    let link = Shared::new(lanes);
    (Arc::clone(&link), Arc::new(Guard(link)))
}
