//! What daemons say to each other: one request and one answer on a session, a JSON document each.
//! Types and checks only; [`peers`](super::peers) carries them.
//!
//! The document of a request names the versions that its sender speaks; the answer is in the best
//! one that both know, or says that there is none.

use migrate_engine::transport::identity::HostName;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::identity::Known;
use crate::api::host::HostInfo;
use crate::api::moving::{HostRef, MoveOptions, MoveReport, PeerGone, Words};
use crate::api::{ErrorBody, ErrorCode, Failure};
use crate::config::GuestDefinition;

/// Versions of this protocol that this program speaks.
pub const VERSIONS: &[u16] = &[1];
/// Longest document, in bytes.
pub const DOCUMENT_MAX: usize = 4 << 20;

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
    /// Keep this report.
    Report(Box<MoveReport>),
    /// Sign a new certificate for the host that asks.
    Renew {
        /// A certificate request, PEM.
        request: String,
    },
    /// What hosts do you know?
    Hosts,
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
    /// To [`Request::Prepare`]: the receiver waits.
    Prepared {
        /// Its ports: control, then each lane; none in a dry run.
        ports: Vec<u16>,
        /// Its certificate for data: SHA-256, hexadecimal; empty in a dry run.
        fingerprint: String,
        /// Memory that this host has left for guests, bytes.
        room_bytes: u64,
    },
    /// To [`Request::Words`]: what the other side has to say to it at once, if anything.
    Words(Option<Words>),
    /// To [`Request::Renew`]: certificate and issuers, PEM.
    Certificate(String),
    /// To [`Request::Hosts`].
    Hosts(Vec<Known>),
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn question(versions: Vec<u16>) -> Question {
        let from = HostRef { id: Uuid::nil(), name: "a".into() };
        Question { versions, from, address: ":1".into(), request: Request::Info }
    }

    #[test]
    fn the_best_common_version_is_taken() {
        assert_eq!(question(vec![3, 1, 2]).version().unwrap(), 1);
        let none = question(vec![7]).version().unwrap_err();
        assert_eq!(none.0.code, ErrorCode::NoCommonVersion);
        assert!(none.to_string().contains("[7]"));
    }

    proptest! {
        #[test]
        fn nothing_that_a_peer_says_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..256),
            at in 0usize..200,
            value: u8,
        ) {
            let _ = decode::<Question>(&bytes);
            let mut good = serde_json::to_vec(&question(vec![1])).unwrap();
            let at = at % good.len();
            good[at] = value;
            let _ = decode::<Question>(&good);
            let _ = decode::<Reply>(&good);
        }
    }
}
