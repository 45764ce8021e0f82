//! Tries the path that guests' data would take: each port, the largest datagram, the round trip,
//! and for a moment the speed, with ephemeral certificates as a move has them.
//!
//! The listening side answers one prober on each port, then gives the port back. The dialling
//! side sends what the other throws away, and is told how much of it came. Neither reads or sends
//! anything of a guest.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    data::{Call, endpoint, let_in, open_error, pinned},
    error::ConnectError,
    paced::Budget,
    serve::say_goodbye,
    settings::{Settings, varint},
    socket,
    stream::{self, OpenError, Role},
};
use crate::transport::{
    identity::{Ephemeral, Fingerprint, ephemeral},
    meter::MAX_WINDOW,
};

/// Most bytes of a sample; the listening side reads no more.
const SAMPLE_LIMIT: u64 = 1 << 30;
/// Longest sample. A prober that asks for more time is cut off.
pub const SAMPLE_MAX: Duration = Duration::from_secs(1);
/// How long the largest datagram is looked for.
const MTU_SEARCH: Duration = Duration::from_secs(2);
/// Bytes that are written at a time.
const PIECE: usize = 64 << 10;

/// Ports that wait for a prober.
#[derive(Debug)]
pub struct ProbeListener {
    sockets: Vec<UdpSocket>,
    busy: Vec<u16>,
}

impl ProbeListener {
    /// Binds those of `ports` that nobody has.
    ///
    /// # Errors
    /// The system's error, other than that a port is in use.
    pub fn bind(
        address: IpAddr,
        ports: impl IntoIterator<Item = u16>,
    ) -> Result<Self, ConnectError> {
        let (mut sockets, mut busy) = (Vec::new(), Vec::new());
        for port in ports {
            match socket::bind(SocketAddr::new(address, port)) {
                Ok((socket, _)) => sockets.push(socket),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => busy.push(port),
                Err(e) => return Err(ConnectError::here("bind a UDP socket", &e)),
            }
        }
        Ok(Self { sockets, busy })
    }

    /// The ports that wait.
    pub fn ports(&self) -> Vec<u16> {
        self.sockets.iter().filter_map(|s| s.local_addr().ok()).map(|a| a.port()).collect()
    }

    /// The ports that somebody else has.
    pub fn busy(&self) -> &[u16] {
        &self.busy
    }

    /// Answers the holder of the certificate `peer`, once on each port, for at most `wait`. Only
    /// the first port takes datagrams as large as the settings say: it is the one to sample.
    pub async fn serve(
        self,
        own: &Ephemeral,
        peer: Fingerprint,
        settings: &Settings,
        wait: Duration,
    ) {
        let mut ports = JoinSet::new();
        for (index, socket) in self.sockets.into_iter().enumerate() {
            let (own, mut settings) = (own.clone(), settings.clone());
            if index > 0 {
                settings.payload = settings.payload.min(socket::ETHERNET_PAYLOAD);
            }
            ports.spawn(async move {
                // Whoever probes hears of a failure by its own.
                let _ = serve_port(socket, &own, peer, &settings).await;
            });
        }
        let all = async { while ports.join_next().await.is_some() {} };
        let _too_late = timeout(wait, all).await;
    }
}

async fn serve_port(
    socket: UdpSocket,
    own: &Ephemeral,
    peer: Fingerprint,
    settings: &Settings,
) -> Result<(), ConnectError> {
    let (config, _) = pinned(own, peer, settings)?;
    let endpoint = endpoint(socket, settings, Budget::Free, Some(config))?;
    while let Some(knock) = endpoint.accept().await {
        let (config, doorkeeper) = pinned(own, peer, settings)?;
        let let_in = let_in(knock, config, doorkeeper, Role::Session, settings.connect);
        // Strangers are sent away one after the other: nothing hangs on a quick answer to them.
        let Ok((connection, send, recv)) = let_in.await else { continue };
        connection.set_receive_window(varint(MAX_WINDOW));
        let _cut_off = timeout(SAMPLE_MAX * 2 + MTU_SEARCH, swallow(send, recv)).await;
        let _prober_is_done = timeout(settings.connect, connection.closed()).await;
        break;
    }
    endpoint.close(varint(0), b"");
    say_goodbye(&endpoint).await;
    Ok(())
}

/// Counts and forgets what comes, and says how much it was.
async fn swallow(mut send: SendStream, mut recv: RecvStream) -> Result<(), OpenError> {
    let mut count: u64 = 0;
    while let Ok(Some(chunk)) = recv.read_chunk(PIECE, true).await {
        count += chunk.bytes.len() as u64;
        if count > SAMPLE_LIMIT {
            break;
        }
    }
    send.write_all(&count.to_le_bytes()).await?;
    let _closed = send.finish();
    Ok(())
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// Round trip.
    pub round_trip: Duration,
    /// Largest UDP payload that got across.
    pub payload: u16,
    /// Bytes that arrived in the sample.
    pub arrived: u64,
    /// Time until the last of them was there.
    pub took: Duration,
}

/// Connects to a port of a [`ProbeListener`] whose side holds the certificate `peer`. With a
/// `sample` it sends for that long, at most [`SAMPLE_MAX`], and looks for the largest datagram.
///
/// # Errors
/// The port cannot be reached, or somebody else is there.
pub async fn probe(
    address: SocketAddr,
    local: Option<IpAddr>,
    own: &Ephemeral,
    peer: Fingerprint,
    settings: &Settings,
    sample: Option<Duration>,
) -> Result<Probed, ConnectError> {
    let (socket, _) = socket::bind(socket::any_port(address, local))
        .map_err(|e| ConnectError::here("bind a UDP socket", &e))?;
    let endpoint = endpoint(socket, settings, Budget::Free, None)?;
    let call = Call::new(own, peer, settings, Role::Session, address)?;
    let (config, doorkeeper) = (call.config, Arc::clone(&call.doorkeeper));
    let meet = async {
        let connection = endpoint
            .connect_with(config, address, ephemeral::NAME)
            .map_err(|e| ConnectError::here("connect", &e))?
            .await
            .map_err(|e| ConnectError::from_quic(address, &doorkeeper, &e))?;
        let opened = async {
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&Role::Session.opening()).await?;
            stream::expect_welcome(&mut recv).await?;
            Ok((send, recv))
        };
        let (send, recv) = opened.await.map_err(|e| open_error(address, &doorkeeper, e))?;
        Ok((connection, send, recv))
    };
    let opened = timeout(settings.connect, meet).await;
    let (connection, send, recv) =
        opened.unwrap_or(Err(ConnectError::Unreachable { peer: address }))?;
    let found = look(&connection, (send, recv), sample, settings.payload()).await;
    let found = found.map_err(|e| open_error(address, &doorkeeper, e))?;
    leave(connection, &endpoint).await;
    Ok(found)
}

async fn leave(connection: Connection, endpoint: &Endpoint) {
    connection.close(varint(0), b"");
    say_goodbye(endpoint).await;
}

async fn look(
    connection: &Connection,
    (mut send, mut recv): (SendStream, RecvStream),
    sample: Option<Duration>,
    largest: u16,
) -> Result<Probed, OpenError> {
    let begun = Instant::now();
    if let Some(sample) = sample {
        connection.set_send_window(MAX_WINDOW);
        let piece = vec![0; PIECE];
        let mut left = SAMPLE_LIMIT;
        while begun.elapsed() < sample.min(SAMPLE_MAX) && left >= PIECE as u64 {
            send.write_all(&piece).await?;
            left -= PIECE as u64;
        }
    }
    let _still_open = send.finish();
    let mut count = [0; 8];
    // What is under way comes in a round trip or so; more means that it does not.
    let counted = timeout(SAMPLE_MAX * 2, recv.read_exact(&mut count)).await;
    counted.map_err(|_| OpenError::Rules("what was sent did not arrive in time".into()))??;
    let took = begun.elapsed();
    let mut path = connection.stats().path;
    if sample.is_some() {
        let (end, mut last) = (Instant::now() + MTU_SEARCH, Instant::now());
        while path.current_mtu < largest && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
            let now = connection.stats().path;
            if now.current_mtu != path.current_mtu {
                last = Instant::now();
            }
            path = now;
            // A datagram that is too large is missed after a few round trips.
            if last.elapsed() > Duration::from_millis(300).max(path.rtt * 12) {
                break;
            }
        }
    }
    Ok(Probed {
        round_trip: path.rtt,
        payload: path.current_mtu,
        arrived: u64::from_le_bytes(count),
        took,
    })
}
