//! Links over QUIC.
//!
//! ```text
//!  source                                                         target
//!  control ═╗ connection 0: streams by priority                 ╔═ control
//!  urgent  ═╩═══════════════ socket, thread ════════════════════╩═ urgent
//!  bulk 0  ═════ connection 1, its own socket and thread ═════════ bulk 0
//!  bulk 1  ═════ connection 2, its own socket and thread ═════════ bulk 1
//! ```
//!
//! Order and priority come from streams, speed from connections: a connection is one core's work
//! at each end, so each bulk lane has its own, with an OS thread, a runtime of one thread and a
//! UDP socket. Control and urgent share a connection that carries no bulk: what bulk has
//! buffered, lost or used of a window is never in their way.
//!
//! | module | what it does |
//! |---|---|
//! | [`socket`] | UDP sockets with large buffers, the path's MTU, and advice when the system grants less |
//! | [`limiter`] | one bandwidth budget in UDP payload for all sockets of a process |
//! | `paced` | the socket that QUIC sees: capped segmentation offload, the limiter |
//! | [`settings`] | times, sizes, windows; QUIC's configuration made from them |
//! | `congestion` | Cubic that tells a lossy wire from a full queue |
//! | [`tls`] | TLS 1.3 with aws-lc-rs; the doorkeepers of [`identity`](super::identity) in it |
//! | [`error`] | why a connection was not made, for people on both sides |
//! | `stream` | opening and welcome; frames onto streams and back |
//! | `thread` | a link's threads |
//! | `serve` | one connection from its making to its end |
//! | [`data`] | links between guest processes, with ephemeral certificates |
//! | [`probe`] | tries a path before a guest goes along it |
//! | [`hosts`] | sessions between daemons, with hosts' certificates; joining |
//!
//! # Making a connection
//!
//! After the TLS handshake the dialler opens a stream in both directions and sends an *opening*:
//! `MIGLINK`, version 1, role (0 control, 1 urgent, 2 bulk, 3 session), number of the lane (2
//! bytes), number of lanes (2 bytes). The acceptor answers `MIGLINK`, version 1, 255: the
//! *welcome*. It is sent only when the acceptor has accepted the dialler's certificate, and the
//! dialler counts as connected only when it has come. The urgent stream, which has one direction
//! and comes later on a connection that was welcomed, has an opening and no welcome.
//!
//! # Decisions
//!
//! Cubic: BBR of this library lost 48 % in one of two runs on a narrow link, a fixed window 66 %.
//! But Cubic alone used 11 % of 200 Mbit/s at 20 ms with 0.1 % of the packets lost at random, and
//! 3 % with 1 %; `congestion` tells such losses from a full queue: 92 % and 91 %. GSO on, with as many segments as fit a UDP datagram at the path's MTU: the library
//! always takes ten, and ten of a jumbo frame are too long, which it takes for a lost probe.
//! MTU discovery starts at 1200: a first MTU above the initial window never sends at all.
//! Windows follow rate × round trip, as oversized ones only fill queues.

pub mod data;
pub mod error;
pub mod hosts;
pub mod limiter;
pub mod probe;
pub mod settings;
pub mod socket;
pub mod tls;

mod congestion;
mod paced;
mod serve;
mod stream;
mod thread;

pub use data::{DataListener, dial};
pub use error::ConnectError;
pub use hosts::{Accepted, Dialler, HostEndpoint, Session, dial_to_join};
pub use limiter::Limiter;
pub use probe::{ProbeListener, Probed, probe};
pub use settings::Settings;
pub use socket::Advice;

#[cfg(test)]
mod tests;
