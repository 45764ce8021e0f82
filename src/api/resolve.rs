//! What is known of a guest whose owner is in doubt, and what an operator may say about it.
//!
//! | method and path (daemon) | body | answer |
//! |---|---|---|
//! | `GET /v1/doubts/{guest}` | – | [`Standing`]: every joined host was asked |
//! | `POST /v1/doubts/{guest}` | [`ResolveRequest`] | [`Resolved`], when it is done |
//!
//! The same body goes to a guest process that still holds the memory, as [`Claim`]
//! (`POST /v1/claim`, answered with [`Claimed`]).

use migrate_engine::handover::term::{HostId, Stamp, Term};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::moving::HostRef;
use super::{ErrorBody, GuestInfo};

/// What an operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// The guest shall run on this host.
    RunHere,
    /// This host shall let go of its claim.
    GiveUp,
}

/// An operator's word.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolveRequest {
    /// What shall be.
    pub wish: Wish,
    /// Name of the host that the operator states to be fenced: it does not run, and will not
    /// touch the guest's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<String>,
    /// Go back to the moment of the switch, although the other host may have run the guest since.
    #[serde(default)]
    pub lose_later_work: bool,
    /// Who says so, for the record.
    pub by: String,
}

/// How a guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// It was offered to the other host.
    Offered,
    /// It was given to the other host, which has not confirmed.
    Ceded,
    /// It was to come from the other host.
    Receiving,
}

/// A guest whose owner is in doubt, as this host alone knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Doubtful {
    /// Version of this document.
    pub schema: u32,
    /// Name of the guest.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// How it stands; nothing if it is settled, for this host.
    pub doubt: Option<Doubt>,
    /// The other host, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<HostRef>,
    /// Since when.
    pub since: jiff::Timestamp,
    /// The highest term that this host knows.
    pub term: u64,
    /// What is known, in a sentence.
    pub known: String,
    /// What will happen next, in a sentence.
    pub next: String,
}

/// What a host says of a guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Word {
    /// The highest term that it knows; 0 if it knows nothing of the guest.
    pub term: u64,
    /// The term under which it owns the guest, running or stopped, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owns: Option<u64>,
    /// In a sentence.
    pub says: String,
}

/// What came of asking a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// The host.
    pub host: String,
    /// Its word, or why there is none.
    pub answer: Result<Word, ErrorBody>,
}

/// Everything that is known of a guest, by this host and by all that answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// Version of this document.
    pub schema: u32,
    /// By this host.
    pub here: Doubtful,
    /// A process here still holds the guest's memory.
    pub memory: bool,
    /// By the others.
    pub hosts: Vec<Asked>,
}

/// What was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// Version of this document.
    pub schema: u32,
    /// What was known before.
    pub before: Standing,
    /// The guest that runs here now; nothing if the claim was given up.
    pub guest: Option<Box<GuestInfo>>,
}

/// The right to start a guest that an operator gives, for a new guest process: what the daemon
/// has heard. The process decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// What shall be.
    pub wish: Wish,
    /// The highest term that any host knows which answered.
    pub elsewhere: u64,
    /// The highest right under which a host owns the guest that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owned_by: Option<Right>,
    /// A host that did not answer, and is not the one that is fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<Uuid>,
    /// See [`ResolveRequest::lose_later_work`].
    pub lose_later_work: bool,
    /// What is kept in the journal: who said what, and when.
    pub note: String,
    /// Identity of the host that is stated to be fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced: Option<Uuid>,
}

/// A host's right to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Right {
    /// Its term.
    pub term: u64,
    /// The host.
    pub host: Uuid,
}

impl Claim {
    /// The right of another host, in the terms of the hand-over.
    pub fn owner(&self) -> Option<Stamp> {
        let Right { term, host } = self.owned_by?;
        Some(Stamp { term: Term::new(term), host: HostId(host.as_u128()) })
    }

    /// The fenced host, in the terms of the hand-over.
    pub fn fenced(&self) -> Option<HostId> {
        self.fenced.map(|id| HostId(id.as_u128()))
    }

    /// The host that did not answer, in the terms of the hand-over.
    pub fn silent(&self) -> Option<HostId> {
        self.silent.map(|id| HostId(id.as_u128()))
    }
}

/// What a guest process did on a [`Claim`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Claimed {
    /// Version of this document.
    pub schema: u32,
    /// The term under which the guest runs here now; nothing if it was given up.
    pub term: Option<u64>,
}
