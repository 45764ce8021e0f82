//! What daemons say to each other: frames of JSON on the control stream of a session. Types and
//! their decoding only; nothing here has a socket or a clock.
//!
//! Each side says [`Hello`] first, with the versions that it speaks; the best common one holds,
//! and without one both sides end the session with words for their people. Then either side may
//! ask at any time; an answer or a refusal carries the number of its question. A question that
//! this release does not know is refused, not fatal; anything else that cannot be read is.

use std::net::SocketAddr;

use migrate_engine::transport::identity::{HostName, Right, Rights};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::super::identity::hosts::Hosts;
use crate::api::moving::{HostRef, MoveReport, Words};
use crate::api::{ErrorBody, ErrorCode, Failure};
use crate::config::GuestDefinition;

/// Versions of this protocol that this release speaks, the best first.
pub const VERSIONS: &[u32] = &[1];
/// Longest frame, in bytes.
pub const FRAME_MAX: usize = 1 << 20;
/// Most versions that a peer may offer.
const VERSIONS_MAX: usize = 64;
/// Most addresses of a receiver.
pub const ADDRESSES_MAX: usize = 32;

/// One frame.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Frame {
    /// First of all, once.
    Hello(Box<Hello>),
    /// A question.
    Ask {
        /// Chosen by who asks.
        id: u64,
        /// An [`Ask`].
        ask: Box<RawValue>,
    },
    /// Its answer.
    Answer {
        /// That of the question.
        id: u64,
        /// As the question calls for.
        answer: Box<RawValue>,
    },
    /// There is no answer.
    Refusal {
        /// That of the question.
        id: u64,
        /// Why.
        error: Box<ErrorBody>,
    },
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions, the best first.
    pub versions: Vec<u32>,
    /// Program and release, for people.
    pub program: String,
    /// The host. A host that joins says the name that it wants.
    pub host: HostRef,
    /// `HOST:PORT` at which its daemon can be reached, if it knows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Port at which its daemon listens.
    pub port: u16,
}

/// A question.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Let me join: [`Joined`]. The only one that a stranger may ask.
    Join(Join),
    /// A guest wants to come: [`Prepared`].
    Prepare(Box<Prepare>),
    /// It does not come after all: `{}`.
    Abandon(Attempt),
    /// Words of one guest process for the other: `{}`.
    Words(Carried),
    /// How a move ended, to keep: `{}`.
    KeepReport(Box<MoveReport>),
    /// What became of a move there: [`Whereabouts`].
    Whereabouts(Attempt),
    /// What you are: [`HostInfo`](crate::api::host::HostInfo).
    Info,
    /// A new certificate for my key: [`Renewed`].
    Renew(Renew),
    /// The hosts I know: those that you know.
    Hosts(Hosts),
    /// Listen for a test of the data path: [`Listening`].
    Probe(Probe),
    /// Test the data path from you to me: [`Tested`].
    ProbeBack,
    /// Remove a host from the site: the hosts that are left.
    Remove(HostName),
}

/// See [`Ask::Join`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Join {
    /// The invitation's secret, hexadecimal.
    pub secret: String,
    /// Certificate request, PEM.
    pub request: String,
}

/// Answer to [`Ask::Join`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The certificate, then its issuers', PEM.
    pub chain: String,
    /// Certificates of the authorities that the site trusts, PEM.
    pub authorities: String,
    /// The hosts of the site.
    pub hosts: Hosts,
}

/// See [`Ask::Prepare`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// The move.
    pub move_id: Uuid,
    /// This attempt of it.
    pub attempt: Uuid,
    /// Where it comes from.
    pub from: HostRef,
    /// The guest.
    pub guest: GuestDefinition,
    /// Its present term.
    pub term: u64,
    /// SHA-256 of the source's certificate for the data link, hexadecimal.
    pub fingerprint: String,
    /// Data lanes.
    pub lanes: u8,
    /// Largest UDP payload of the source's path.
    pub payload: u16,
    /// Only look whether it could come.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to [`Ask::Prepare`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// The destination.
    pub to: HostRef,
    /// Where the receiver listens: control, then each lane. An unspecified address stands for
    /// the one of the daemon. Empty for a dry run.
    pub addresses: Vec<SocketAddr>,
    /// SHA-256 of the receiver's certificate, hexadecimal. Empty for a dry run.
    pub fingerprint: String,
    /// Largest UDP payload.
    pub payload: u16,
    /// Memory that is left for guests there, this one not counted.
    pub room_bytes: u64,
    /// What is in the way; of a dry run only, else it is a refusal.
    #[serde(default)]
    pub problems: Vec<ErrorBody>,
}

/// An attempt of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The move.
    pub move_id: Uuid,
    /// The attempt.
    pub attempt: Uuid,
}

/// See [`Ask::Words`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Carried {
    /// The guest.
    pub guest: Uuid,
    /// The move.
    pub move_id: Uuid,
    /// What it says.
    pub words: Words,
}

/// Answer to [`Ask::Whereabouts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whereabouts {
    /// Nothing of it is here.
    Nothing,
    /// Its receiver lives, and the guest has not come.
    Arriving,
    /// The guest is here.
    Here,
}

/// See [`Ask::Renew`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renew {
    /// Certificate request, PEM.
    pub request: String,
}

/// Answer to [`Ask::Renew`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renewed {
    /// The certificate, then its issuers', PEM.
    pub chain: String,
}

/// See [`Ask::Probe`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// SHA-256 of the certificate of who will dial, hexadecimal.
    pub fingerprint: String,
    /// Largest UDP payload of its path.
    pub payload: u16,
}

/// Answer to [`Ask::Probe`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listening {
    /// Where: control, then a lane.
    pub addresses: Vec<SocketAddr>,
    /// SHA-256 of the certificate there, hexadecimal.
    pub fingerprint: String,
    /// Largest UDP payload of the path back.
    pub payload: u16,
}

/// Answer to [`Ask::ProbeBack`]: what a test of the data path found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// Where to.
    pub addresses: Vec<SocketAddr>,
    /// UDP payload that got through.
    pub payload: u16,
    /// UDP payload that the route promises.
    pub expected: u16,
    /// Round trip.
    pub rtt_ms: f64,
    /// What could be better about the sockets.
    pub advice: Vec<String>,
}

/// An answer without content.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Nothing {}

/// Why a frame cannot be read. It ends the session.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// Too long.
    #[error("a frame of {0} bytes; at most {FRAME_MAX} are allowed")]
    TooLong(usize),
    /// No JSON, or not of this form.
    #[error("a frame that cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

impl Frame {
    /// The frame in `bytes`.
    ///
    /// # Errors
    /// It is too long or cannot be read.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadFrame> {
        if bytes.len() > FRAME_MAX {
            return Err(BadFrame::TooLong(bytes.len()));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The bytes of the frame.
    ///
    /// # Errors
    /// It is too long.
    pub fn encode(&self) -> Result<Vec<u8>, BadFrame> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > FRAME_MAX { Err(BadFrame::TooLong(bytes.len())) } else { Ok(bytes) }
    }
}

/// Content of a frame.
///
/// # Errors
/// It has no JSON form.
pub fn raw(content: &impl Serialize) -> Result<Box<RawValue>, Failure> {
    serde_json::value::to_raw_value(content).map_err(|e| {
        Failure::new(ErrorCode::Unexpected, format!("a message cannot be written: {e}"), "")
    })
}

/// Reads content of a frame.
///
/// # Errors
/// A sentence.
pub fn unraw<T: DeserializeOwned>(content: &RawValue) -> Result<T, String> {
    serde_json::from_str(content.get()).map_err(|e| e.to_string())
}

/// The best version that both sides speak.
///
/// # Errors
/// `no-common-version`, for people on both sides.
pub fn common_version(ours: &[u32], theirs: &Hello) -> Result<u32, Failure> {
    let offered = theirs.versions.get(..VERSIONS_MAX).unwrap_or(&theirs.versions);
    let best = ours.iter().copied().filter(|version| offered.contains(version)).max();
    best.ok_or_else(|| {
        Failure::new(
            ErrorCode::NoCommonVersion,
            format!(
                "the daemons have no protocol version in common: this one speaks {ours:?}, that of \
                 {} ({}) speaks {offered:?}",
                shown(&theirs.host.name),
                shown(&theirs.program)
            ),
            "bring both hosts to the same or to neighbouring releases of migrate",
        )
    })
}

/// A peer's words, fit to be shown: without control characters, and short.
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// What a host needs to be allowed to ask `ask`: one of these rights, or none at all.
pub fn needs(ask: &Ask) -> &'static [Right] {
    match ask {
        Ask::Prepare(_) | Ask::Abandon(_) => &[Right::Send],
        // Both ends of a move have something to say.
        Ask::Words(_) | Ask::KeepReport(_) | Ask::Whereabouts(_) => &[Right::Send, Right::Receive],
        Ask::Info | Ask::Probe(_) | Ask::ProbeBack => &[Right::Observe],
        Ask::Remove(_) => &[Right::Control],
        Ask::Renew(_) | Ask::Hosts(_) | Ask::Join(_) => &[],
    }
}

/// Whether `rights` suffice for `ask`; else the right that is missing.
///
/// # Errors
/// The missing right.
pub fn allowed(ask: &Ask, rights: Rights) -> Result<(), Right> {
    match needs(ask) {
        [] => Ok(()),
        any if any.iter().any(|right| rights.has(*right)) => Ok(()),
        [first, ..] => Err(*first),
    }
}

#[cfg(test)]
#[path = "proto/tests.rs"]
mod tests;
