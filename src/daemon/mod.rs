//! `migrate daemon`: the service of a host. It knows the host's guests, talks to commands over a
//! Unix socket and to other daemons over QUIC, brings moves together and keeps their reports. It
//! is not needed for a guest to live: guests go on when it stops, crashes or is upgraded, and a
//! restarted one goes on where it was.
//!
//! | module | what it does |
//! |---|---|
//! | [`settings`] | `host.toml` |
//! | [`identity`] | key, certificate, CA, hosts of the site; [`identity::init`], [`identity::join`] |
//! | [`service`] | the process: lock, signals, readiness, the work that recurs |
//! | [`state`] | what the parts share |
//! | [`api`] | the local API |
//! | [`net`], [`peer`], [`answers`] | other daemons: port, protocol, sessions, what they may ask |
//! | [`moves`] | moves in both directions, their events and reports |
//! | [`inbound`], [`launcher`] | guests that arrive: room, receivers |
//! | [`check`], [`facts`], [`metrics`] | what `host check` tests, what the host is like, counters |
//!
//! It never touches a guest's memory, never decides whose a guest is, and holds no guest's keys
//! longer than it takes to hand them over.

pub mod answers;
pub mod api;
pub mod check;
pub mod facts;
pub mod identity;
pub mod inbound;
pub mod launcher;
pub mod metrics;
pub mod moves;
pub mod net;
pub mod peer;
pub mod service;
pub mod settings;
pub mod state;

pub use service::{Options, run};

/// Program and release, as other hosts hear it.
pub const PROGRAM: &str = concat!("migrate ", env!("CARGO_PKG_VERSION"));
