//! The engine that moves a guest: it finds what changed, sends it, and decides when to switch.
//!
//! It knows nothing of KVM, of processes or of files: what it needs of a guest, its memory and its
//! journal it asks for through [`port`]. A whole move is a [`session`] on either side. Modules
//! outside the session, the pumps and the transport are functions of their arguments: no clock,
//! no socket, no file and no randomness inside.

#![forbid(unsafe_code)]

pub mod codec;
pub mod converge;
pub mod failpoint;
pub mod handover;
pub mod port;
pub mod precopy;
pub mod pump;
pub mod session;
pub mod track;
pub mod transport;
pub mod unit;
pub mod wire;
