//! What a saved file says about its guest, as JSON: fields are only added.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::GuestDefinition;
use crate::guest::fingerprint::Fingerprint;
use crate::guest::journal::rules::SavedIdentity;

/// The metadata section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The guest.
    pub definition: GuestDefinition,
    /// Term in which it was saved.
    pub term: u64,
    /// Identity of the save; the header's.
    pub save: Uuid,
    /// When its vCPUs were stopped.
    pub created: Timestamp,
    /// Version of the program that wrote the file.
    pub program: String,
    /// Host that wrote the file.
    pub host: String,
    /// The disks as the guest left them, in the definition's order.
    pub disks: Vec<Fingerprint>,
    /// The guest ran on after the save.
    pub kept_running: bool,
}

impl Metadata {
    /// What the journal's rules need.
    pub fn identity(&self) -> SavedIdentity {
        SavedIdentity { uuid: self.definition.uuid, term: self.term, save: self.save }
    }
}
