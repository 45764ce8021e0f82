//! Times, sizes and windows of connections, and QUIC's configuration made from them.

use std::{sync::Arc, time::Duration};

use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::{
    congestion::TolerantConfig,
    limiter::Limiter,
    socket::{ETHERNET_PAYLOAD, MAX_PAYLOAD, MIN_PAYLOAD},
};
use crate::transport::{
    link::LinkLimits,
    meter::{MAX_WINDOW, MIN_WINDOW},
};

/// Bytes that a connection may have in flight before rate and round trip are known.
pub(super) const FIRST_WINDOW: u64 = 2 * MIN_WINDOW;

/// How connections are made and kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Longest time until a connection is made, in both roles.
    pub connect: Duration,
    /// A connection on which nothing was heard for this long is lost.
    pub idle: Duration,
    /// A silent connection is asked for a sign of life this often. Well below `idle`.
    pub keep_alive: Duration,
    /// Largest UDP payload, see [`path_payload`](super::socket::path_payload). Raising it costs
    /// the receiving socket about 2048 times as much memory.
    pub payload: u16,
    /// Frames and queues.
    pub limits: LinkLimits,
    /// Budget for what is sent.
    pub limiter: Option<Arc<Limiter>>,
}

impl Default for Settings {
    /// Connect within 5 s, lost after 30 s of silence, Ethernet of 1500 bytes, no budget.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            keep_alive: Duration::from_secs(1),
            payload: ETHERNET_PAYLOAD,
            limits: LinkLimits::default(),
            limiter: None,
        }
    }
}

impl Settings {
    /// The payload, within what QUIC can use.
    pub(super) fn payload(&self) -> u16 {
        self.payload.clamp(MIN_PAYLOAD, MAX_PAYLOAD)
    }

    /// QUIC's settings for a connection with at most `uni` streams that the peer opens in one
    /// direction, besides one in both.
    pub(super) fn transport(&self, uni: u32) -> TransportConfig {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.payload());
        let millis = u32::try_from(self.idle.as_millis()).unwrap_or(u32::MAX);
        let mut transport = TransportConfig::default();
        transport
            .congestion_controller_factory(Arc::new(TolerantConfig::default()))
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            .max_concurrent_uni_streams(VarInt::from_u32(uni))
            .datagram_receive_buffer_size(None)
            .stream_receive_window(varint(MAX_WINDOW))
            .receive_window(varint(FIRST_WINDOW))
            .send_window(FIRST_WINDOW)
            .initial_mtu(MIN_PAYLOAD)
            .mtu_discovery_config(Some(discovery))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(millis))))
            .keep_alive_interval(Some(self.keep_alive))
            // A spin bit tells the network our round trips, which nobody here needs.
            .allow_spin(false);
        transport
    }

    /// QUIC's settings for a socket.
    pub(super) fn endpoint(&self) -> EndpointConfig {
        let mut endpoint = EndpointConfig::default();
        // Fails below 1200 only, which `payload` rules out.
        let _within_limits = endpoint.max_udp_payload_size(self.payload());
        endpoint
    }
}

/// A window as QUIC writes it.
pub(super) fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}
