//! Links between hosts, and who may use them.
//!
//! | module | what it does |
//! |---|---|
//! | [`link`] | what the pumps see: frames in order on a control stream and on data lanes |
//! | [`frame`] | length-prefixed frames with a hard limit, checked before memory is taken |
//! | [`meter`] | rates, bandwidth and windows from counters; no clock of its own |
//! | [`mem`] | a link inside one process, with seeded delays, cuts and reordering between lanes |
//! | [`identity`] | the site's CA, certificates of hosts, invitations, and every reason to refuse |
//! | [`quic`] | links over QUIC: sockets, MTU, pacing, threads, mutual TLS |
//!
//! The pumps are written against [`link`] alone: whether QUIC, memory or one day TLS over TCP
//! carries the frames does not show there. Priorities are set in this module and nowhere else.

pub mod frame;
pub mod identity;
pub mod link;
pub mod mem;
pub mod meter;
