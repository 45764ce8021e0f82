//! Who a peer is, and every reason to send it away.
//!
//! A *site* is a certificate authority and the hosts it has signed. Each host has one key and one
//! certificate, whose subject alternative name is the DNS name `NAME.migrate`. Daemons meet with
//! these. Guest processes never hold them: for each attempt both sides make a throw-away
//! certificate, the daemons exchange the fingerprints, and each side accepts exactly the other's.
//!
//! # Where the check happens
//!
//! Inside the TLS handshake, in both directions, strictly: the verifiers of [`verify`] refuse
//! there, so no stream exists, and no byte of a stream is read, before both sides have accepted
//! each other. There is no second, lenient path that must not be forgotten.
//!
//! TLS alerts are too coarse for people (`unknown CA`, `certificate unknown`), but QUIC closes a
//! failed handshake with a `CONNECTION_CLOSE` frame that has a reason phrase (RFC 9000, 19.19). The
//! refusal travels there as text with a stable code, see [`Refusal::phrase`]. The phrase is all
//! that a refused peer learns, and what a peer's phrase says is shown as *its* words: it comes
//! from somebody who has not been accepted. It is cut, cleaned and never acted on.
//!
//! A dialler can be through its part of the handshake before the acceptor has seen its
//! certificate. Therefore a connection counts as made only when the acceptor's welcome has come;
//! the dialler sends nothing but its opening before that (see `transport::quic`).
//!
//! Session tickets, resumption and 0-RTT are off: every connection checks certificates, names,
//! time and removals anew.
//!
//! Everything here is a function of its arguments, `now` included, except the few functions whose
//! names begin with `generate`. Files are read and written elsewhere; here are PEM texts.

pub mod authority;
pub mod ephemeral;
pub mod fingerprint;
pub mod host;
pub mod invitation;
pub mod moment;
pub mod name;
pub mod refusal;
pub mod removal;
pub mod renewal;
pub mod site;
pub mod verify;

mod base32;
mod pem;

pub use authority::Authority;
pub use ephemeral::Ephemeral;
pub use fingerprint::Fingerprint;
pub use host::{HostIdentity, HostKey};
pub use invitation::Invitation;
pub use moment::Moment;
pub use name::HostName;
pub use refusal::Refusal;
pub use removal::Removal;
pub use site::{Right, Rights, Site};

use thiserror::Error;

/// Why a key, a certificate or a request cannot be used or made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The text is not the PEM that was expected.
    #[error("{what}: {detail}; expected PEM with a line `-----BEGIN {label}-----`")]
    Pem {
        /// What was being read.
        what: &'static str,
        /// The PEM label that should be there.
        label: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The certificate cannot be understood.
    #[error("{what} cannot be read: {detail}")]
    Certificate {
        /// Which certificate.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The private key cannot be used.
    #[error("the private key cannot be used: {detail}")]
    Key {
        /// What is wrong.
        detail: String,
    },
    /// Key and certificate belong to different pairs.
    #[error("{what} and its private key do not belong together; was one of the files replaced?")]
    Mismatch {
        /// Which certificate.
        what: &'static str,
    },
    /// A certificate without a name of the form `NAME.migrate`.
    #[error("the certificate names no host: a DNS name like `host2.migrate` is missing")]
    NoHostName,
    /// A request that asks for something else than one host's name.
    #[error("the certificate request is refused: {detail}")]
    Request {
        /// What is wrong.
        detail: String,
    },
    /// A key or certificate could not be made.
    #[error("cannot make {what}: {detail}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// The library's words.
        detail: String,
    },
}
