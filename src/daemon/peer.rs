//! What daemons say to each other: one request and one answer on a session, a JSON document each.
//! Types and checks only; [`peers`](super::peers) carries them.
//!
//! The document of a request names the versions that its sender speaks; the answer is in the best
//! one that both know, or says that there is none.

use std::path::PathBuf;

use migrate_engine::transport::identity::{HostName, Removal, Right, Rights};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm::cpu::Shown;

use super::identity::Known;
use super::identity::roster::Gossip;
use crate::api::cpu::HostCpu;
use crate::api::host::HostInfo;
use crate::api::moving::{HostRef, MoveOptions, MoveReport, PeerGone, Words};
use crate::api::resolve::Word;
use crate::api::{ErrorBody, ErrorCode, Failure};
use crate::config::GuestDefinition;

/// Versions of this protocol that this program speaks.
pub const VERSIONS: &[u16] = &[1];
/// Longest document, in bytes.
pub const DOCUMENT_MAX: usize = 4 << 20;
/// Most paths that are looked at in one request.
pub const PATHS_MAX: usize = 4096;

/// A request with who asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    /// Versions its sender speaks.
    pub versions: Vec<u16>,
    /// Its host.
    pub from: HostRef,
    /// Where its daemon listens, if it says so: `HOST:PORT`, or `:PORT` of the address that is
    /// seen.
    pub address: String,
    /// What is asked.
    pub request: Request,
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Describe yourself.
    Info,
    /// Describe your CPU.
    Cpu,
    /// A guest is to come.
    Prepare(Box<Prepare>),
    /// It does not come.
    Abandon {
        /// The attempt.
        attempt: Uuid,
    },
    /// A word of the hand-over, for the process of this guest or whoever acts for it.
    Words {
        /// The guest.
        guest: Uuid,
        /// The word.
        words: Words,
    },
    /// The sender's process of this guest is dead, proved by its journal's lock.
    ProcessGone {
        /// The guest.
        guest: Uuid,
        /// The move.
        move_id: Uuid,
        /// Why.
        gone: PeerGone,
    },
    /// What do you know of this guest?
    Word {
        /// The guest.
        guest: Uuid,
    },
    /// Keep this report.
    Report(Box<MoveReport>),
    /// Sign a new certificate for the host that asks.
    Renew {
        /// A certificate request, PEM.
        request: String,
    },
    /// This is what I know of the site: what do you know?
    Gossip(Box<Gossip>),
    /// Remove this host from the site. For the host that has the CA.
    Remove {
        /// The host.
        host: HostName,
    },
    /// Which of these paths, that guests of the host that asks have, are nowhere on yours?
    Paths {
        /// The paths; at most [`PATHS_MAX`] are looked at.
        paths: Vec<PathBuf>,
    },
    /// Open the data ports for a moment, so that they can be tried.
    Probe(Probe),
    /// Try the data ports of the host that asks, and its control port.
    ProbeBack,
    /// Let a new host in. The only request of a stranger.
    Join {
        /// Secret of the invitation, hexadecimal.
        secret: String,
        /// Name that it wants.
        name: HostName,
        /// A certificate request, PEM.
        request: String,
    },
}

/// A guest that is to come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// The move.
    pub move_id: Uuid,
    /// This attempt of it.
    pub attempt: Uuid,
    /// The guest.
    pub definition: GuestDefinition,
    /// The source's certificate for data: SHA-256, hexadecimal.
    pub fingerprint: String,
    /// Lanes.
    pub lanes: u8,
    /// Largest UDP payload that the source's path may carry.
    pub payload: u16,
    /// Only look whether it could come.
    pub dry_run: bool,
    /// When and how the move was asked for, for those who watch it at the destination.
    #[serde(default)]
    pub asked: Option<(jiff::Timestamp, MoveOptions)>,
    /// The CPU that it is shown, if its process tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Shown>,
    /// The arbiter that the source's host has, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arbiter: Option<Uuid>,
}

/// Data ports are to be tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// The certificate of whoever tries them: SHA-256, hexadecimal.
    pub fingerprint: String,
    /// Largest UDP payload that its path may carry.
    pub payload: u16,
    /// Which half of the ports, 0 or 1.
    pub part: u8,
}

/// Data ports wait to be tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probing {
    /// Ports that wait; the first for larger datagrams than the others.
    pub ports: Vec<u16>,
    /// Ports of the range that are in use, by guests that arrive or by others.
    pub busy: Vec<u16>,
    /// The certificate there: SHA-256, hexadecimal.
    pub fingerprint: String,
    /// Largest UDP payload that the path may carry, as both ends know it.
    pub payload: u16,
}

/// What was found by trying the ports of a host from another one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tried {
    /// Where it was dialled.
    pub address: String,
    /// Round trip of the control session, milliseconds; or why there was none.
    pub control: Result<f64, ErrorBody>,
    /// What the data ports did; or why they were not tried.
    pub data: Result<Path, ErrorBody>,
}

/// What the data ports did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Path {
    /// Ports that answered.
    pub open: Vec<u16>,
    /// Ports that did not, each with the reason.
    pub closed: Vec<(u16, String)>,
    /// Ports that were in use and so not tried.
    pub busy: Vec<u16>,
    /// Largest UDP payload that got across.
    pub payload: u16,
    /// Largest that both ends believed in.
    pub promised: u16,
    /// Round trip, milliseconds.
    pub rtt_ms: f64,
    /// Bytes per second in the sample.
    pub bytes_per_s: u64,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The version of what follows.
    pub version: u16,
    /// The host that answers.
    pub host: HostRef,
    /// The answer, or why there is none.
    pub answer: Result<Answer, ErrorBody>,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Info`].
    Info(Box<HostInfo>),
    /// To [`Request::Cpu`].
    Cpu(Box<HostCpu>),
    /// To [`Request::Prepare`]: the receiver waits.
    Prepared {
        /// Its ports: control, then each lane; none in a dry run.
        ports: Vec<u16>,
        /// Its certificate for data: SHA-256, hexadecimal; empty in a dry run.
        fingerprint: String,
        /// Memory that this host has left for guests, bytes.
        room_bytes: u64,
        /// The arbiter that this host has, if any. One that knows of none says nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arbiter: Option<Uuid>,
    },
    /// To [`Request::Words`]: what the other side has to say to it at once, if anything.
    Words(Option<Words>),
    /// To [`Request::Word`].
    Word(Word),
    /// To [`Request::Renew`]: certificate and issuers, PEM.
    Certificate(String),
    /// To [`Request::Gossip`].
    Gossip(Box<Gossip>),
    /// To [`Request::Remove`]: the CA's word.
    Removed(Removal),
    /// To [`Request::Paths`]: those that are not there.
    Absent(Vec<PathBuf>),
    /// To [`Request::Probe`].
    Probing(Probing),
    /// To [`Request::ProbeBack`].
    Tried(Box<Tried>),
    /// To [`Request::Join`].
    Joined {
        /// Certificate and issuers, PEM.
        chain: String,
        /// The site's CA, PEM.
        authorities: String,
        /// The hosts there are, the answering one included.
        hosts: Vec<Known>,
    },
    /// It was done.
    Done,
}

impl Request {
    /// What kind of question it is, for logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::Cpu => "Cpu",
            Self::Prepare(_) => "Prepare",
            Self::Abandon { .. } => "Abandon",
            Self::Words { .. } => "Words",
            Self::Word { .. } => "Word",
            Self::ProcessGone { .. } => "ProcessGone",
            Self::Report(_) => "Report",
            Self::Renew { .. } => "Renew",
            Self::Gossip(_) => "Gossip",
            Self::Remove { .. } => "Remove",
            Self::Probe(_) => "Probe",
            Self::ProbeBack => "ProbeBack",
            Self::Paths { .. } => "Paths",
            Self::Join { .. } => "Join",
        }
    }

    /// The rights of which a host needs one to ask this; `None` for what no host of the site may
    /// ask.
    pub fn needs(&self) -> Option<&'static [Right]> {
        match self {
            Self::Info | Self::Cpu | Self::Gossip(_) | Self::Word { .. } => Some(&[Right::Observe]),
            Self::Prepare(_) | Self::Abandon { .. } | Self::Paths { .. } => Some(&[Right::Send]),
            // They go both ways, whichever side the guest is on.
            Self::Words { .. }
            | Self::ProcessGone { .. }
            | Self::Report(_)
            | Self::Probe(_)
            | Self::ProbeBack => Some(&[Right::Send, Right::Receive]),
            // Whoever may do nothing here needs no certificate from here.
            Self::Renew { .. } => Some(&Right::ALL),
            Self::Remove { .. } => Some(&[Right::Control]),
            Self::Join { .. } => None,
        }
    }

    /// Whether a host with these rights may ask this.
    pub fn is_allowed(&self, rights: Rights) -> bool {
        self.needs().is_some_and(|needs| needs.iter().any(|right| rights.has(*right)))
    }
}

impl Question {
    /// The best version that both sides know.
    ///
    /// # Errors
    /// `no-common-version`.
    pub fn version(&self) -> Result<u16, Failure> {
        let common = VERSIONS.iter().filter(|v| self.versions.contains(v)).max().copied();
        common.ok_or_else(|| {
            Failure::new(
                ErrorCode::NoCommonVersion,
                format!(
                    "the daemons have no protocol version in common: one speaks {:?}, the other \
                     {VERSIONS:?}",
                    self.versions
                ),
                "upgrade the older one",
            )
        })
    }
}

/// A document of at most [`DOCUMENT_MAX`] bytes.
///
/// # Errors
/// It is longer, or not what was expected.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let wrong = |why: String| {
        let message = format!("the other daemon said what cannot be understood: {why}");
        Failure::new(ErrorCode::NoCommonVersion, message, "use neighbouring releases of migrate")
    };
    if bytes.len() > DOCUMENT_MAX {
        return Err(wrong(format!("a document of {} bytes", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests;
