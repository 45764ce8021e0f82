//! Why a connection was not made.

use std::net::SocketAddr;

use quinn::ConnectionError;
use thiserror::Error;

use crate::transport::{
    identity::{Refusal, refusal::Heard, verify::Doorkeeper},
    link::{Close, Ended, printable},
};

/// TLS alert `certificate_required` (RFC 8446, 6.2) as a QUIC error code (RFC 9001, 4.8).
const ALERT_CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
/// TLS alert `no_application_protocol` (RFC 7301).
const ALERT_NO_PROTOCOL: u64 = 0x100 + 120;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// This side refused the peer.
    #[error("{peer} was refused here: {refusal}")]
    Refused {
        /// Its address.
        peer: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// The peer refused this side. The words are the peer's.
    #[error("{peer} refused us: {heard}")]
    RefusedByPeer {
        /// Its address.
        peer: SocketAddr,
        /// What it said.
        heard: Heard,
    },
    /// Nothing was heard.
    #[error(
        "no answer from {peer}: is `migrate daemon` running there, and does a firewall let UDP \
         port {port} through?",
        port = peer.port()
    )]
    Unreachable {
        /// The address that was tried.
        peer: SocketAddr,
    },
    /// The peer speaks another protocol, or another version of it.
    #[error(
        "{peer} does not speak this protocol: it is another service, or another release of \
         migrate"
    )]
    NoCommonProtocol {
        /// Its address.
        peer: SocketAddr,
    },
    /// The peer closed the connection while it was being made.
    #[error("{peer} closed the connection: {close}")]
    Closed {
        /// Its address.
        peer: SocketAddr,
        /// Its reason.
        close: Close,
    },
    /// The peer did something that is not allowed.
    #[error("{peer} broke the protocol while connecting: {detail}")]
    Broken {
        /// Its address.
        peer: SocketAddr,
        /// What.
        detail: String,
    },
    /// Nobody came in time.
    #[error("nobody connected in time{}", .last.as_ref().map(|l| format!("; the last attempt failed: {l}")).unwrap_or_default())]
    NobodyCame {
        /// What became of the last one who tried.
        last: Option<Box<ConnectError>>,
    },
    /// A socket, thread or configuration could not be made here.
    #[error("cannot {what}: {detail}")]
    Here {
        /// What was to be done.
        what: &'static str,
        /// The system's words.
        detail: String,
    },
}

impl ConnectError {
    /// An error on this side.
    pub(super) fn here(what: &'static str, detail: &(impl ToString + ?Sized)) -> Self {
        Self::Here { what, detail: detail.to_string() }
    }

    /// What a failed handshake or a connection that ended before the welcome means.
    pub(super) fn from_quic(
        peer: SocketAddr,
        doorkeeper: &Doorkeeper,
        error: &ConnectionError,
    ) -> Self {
        if let Some(Err(refusal)) = doorkeeper.verdict() {
            return Self::Refused { peer, refusal };
        }
        match error {
            ConnectionError::TimedOut => Self::Unreachable { peer },
            ConnectionError::ConnectionClosed(frame) => {
                let code = u64::from(frame.error_code);
                if let Some(heard) = Heard::from_phrase(&frame.reason) {
                    Self::RefusedByPeer { peer, heard }
                } else if code == ALERT_CERTIFICATE_REQUIRED {
                    let none = Refusal::NoCertificate;
                    let heard = Heard { code: none.code().into(), text: none.to_string() };
                    Self::RefusedByPeer { peer, heard }
                } else if code == ALERT_NO_PROTOCOL {
                    Self::NoCommonProtocol { peer }
                } else {
                    let detail = printable(&frame.to_string());
                    Self::Broken { peer, detail }
                }
            }
            ConnectionError::ApplicationClosed(frame) => {
                if let Some(heard) = Heard::from_phrase(&frame.reason) {
                    Self::RefusedByPeer { peer, heard }
                } else {
                    let code = frame.error_code.into_inner();
                    Self::Closed { peer, close: Close::from_peer(code, &frame.reason) }
                }
            }
            ConnectionError::TransportError(e) => {
                let code = u64::from(e.code);
                if code == ALERT_CERTIFICATE_REQUIRED {
                    Self::Refused { peer, refusal: Refusal::NoCertificate }
                } else if code == ALERT_NO_PROTOCOL {
                    Self::NoCommonProtocol { peer }
                } else {
                    Self::Broken { peer, detail: printable(&e.to_string()) }
                }
            }
            ConnectionError::VersionMismatch => Self::NoCommonProtocol { peer },
            other => Self::Broken { peer, detail: other.to_string() },
        }
    }
}

/// What the end of a made connection means for its link.
pub(super) fn ended(error: ConnectionError) -> Ended {
    match error {
        ConnectionError::ApplicationClosed(frame) => {
            Ended::Peer(Close::from_peer(frame.error_code.into_inner(), &frame.reason))
        }
        ConnectionError::TimedOut => {
            Ended::Lost("nothing was heard from the peer for the idle time".into())
        }
        ConnectionError::Reset => {
            Ended::Lost("the peer does not know this connection any more; was it restarted?".into())
        }
        ConnectionError::TransportError(e) => Ended::Broken(printable(&e.to_string())),
        ConnectionError::ConnectionClosed(frame) => {
            Ended::Lost(printable(&format!("the peer's transport gave up: {frame}")))
        }
        other => Ended::Lost(other.to_string()),
    }
}
