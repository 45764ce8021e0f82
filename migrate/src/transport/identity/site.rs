//! What a host knows of its site: the authorities it trusts, the hosts and their rights, and the
//! hosts that were removed. Plain data, replaced as a whole when it changes.

use std::{collections::BTreeMap, fmt, sync::Arc};

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{
    Fingerprint, HostIdentity, HostName, IdentityError, Moment, Refusal,
    pem::{self, Claims},
    verify::Policy,
};
use crate::transport::quic::tls;

/// One thing that a host may do to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Send guests here.
    Send,
    /// Receive guests from here.
    Receive,
    /// See guests, moves and the host's state.
    Observe,
    /// Start moves, cancel them, change the site.
    Control,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Send, Self::Receive, Self::Observe, Self::Control];
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Observe => "observe",
            Self::Control => "control",
        })
    }
}

/// A set of rights. As data: a list of words, in any order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Right>", into = "Vec<Right>")]
pub struct Rights(u8);

impl Rights {
    /// No right at all.
    pub const NONE: Self = Self(0);

    /// What a host has unless the list says otherwise: to send, to receive, to observe.
    pub fn usual() -> Self {
        [Right::Send, Right::Receive, Right::Observe].into_iter().collect()
    }

    /// Whether `right` is among them.
    pub fn has(self, right: Right) -> bool {
        self.0 & (1 << right as u8) != 0
    }

    /// These and `right`.
    #[must_use]
    pub fn with(self, right: Right) -> Self {
        Self(self.0 | 1 << right as u8)
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        rights.into_iter().fold(Self::NONE, Self::with)
    }
}

impl From<Vec<Right>> for Rights {
    fn from(rights: Vec<Right>) -> Self {
        rights.into_iter().collect()
    }
}

impl From<Rights> for Vec<Right> {
    fn from(rights: Rights) -> Self {
        Right::ALL.into_iter().filter(|right| rights.has(*right)).collect()
    }
}

/// The hosts of a site, as they are kept in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    /// Rights that differ from the [usual](Rights::usual) ones.
    #[serde(default)]
    pub rights: BTreeMap<HostName, Rights>,
    /// Hosts that were removed, and when: certificates signed until then are refused. One that
    /// joins again gets a newer certificate and is accepted.
    #[serde(default)]
    pub removed: BTreeMap<HostName, Moment>,
}

/// Everything that a decision about a peer needs.
#[derive(Debug, Clone)]
pub struct Site {
    authorities: Vec<CertificateDer<'static>>,
    /// Hosts, rights, removals.
    pub hosts: Hosts,
}

impl Site {
    /// A site that trusts the authorities in `authorities_pem` (one or more certificates).
    ///
    /// # Errors
    /// No certificate in the text, or one that cannot be read.
    pub fn from_pem(authorities_pem: &str, hosts: Hosts) -> Result<Self, IdentityError> {
        let authorities = pem::certificates("the site's CA certificate", authorities_pem)?;
        for authority in &authorities {
            webpki::anchor_from_trusted_cert(authority).map_err(|e| {
                IdentityError::Certificate {
                    what: "the site's CA certificate",
                    detail: e.to_string(),
                }
            })?;
        }
        Ok(Self { authorities, hosts })
    }

    /// The certificates of the trusted authorities.
    pub(crate) fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// Whether `other` trusts nobody whom this site does not: the same names and keys, the dates
    /// of the certificates aside.
    pub fn has_authorities_of(&self, other: &Self) -> bool {
        let anchors = |site: &Self| {
            let anchors = site.authorities.iter().map(|der| {
                let anchor = webpki::anchor_from_trusted_cert(der).ok()?;
                Some((anchor.subject.to_vec(), anchor.subject_public_key_info.to_vec()))
            });
            anchors.collect::<Vec<_>>()
        };
        let ours = anchors(self);
        anchors(other).iter().all(|anchor| anchor.is_some() && ours.contains(anchor))
    }

    /// Whether the site accepts a host, itself included, with the certificates that it shows.
    ///
    /// # Errors
    /// Why not.
    pub fn accept(self: &Arc<Self>, host: &HostIdentity, now: Moment) -> Result<(), Refusal> {
        let expected = Some(host.name().clone());
        let policy = Policy::Site { site: Arc::clone(self), expected };
        policy.decide(&tls::algorithms(), &host.chain(), now).map(|_| ())
    }

    /// Fingerprints of the trusted authorities, for people to compare.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.authorities.iter().map(|der| Fingerprint::of(der))
    }

    /// The last second of the longest-lived certificate among the authorities.
    pub fn not_after(&self) -> Moment {
        let ends = self.authorities.iter().filter_map(|der| Claims::read(der).ok());
        ends.map(|claims| claims.not_after).max().unwrap_or(Moment(0))
    }

    /// What `host` may do here.
    pub fn rights(&self, host: &HostName) -> Rights {
        self.hosts.rights.get(host).copied().unwrap_or_else(Rights::usual)
    }

    /// When `host` was last removed, if ever.
    pub fn removed(&self, host: &HostName) -> Option<Moment> {
        self.hosts.removed.get(host).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_words() {
        let rights: Rights = serde_json::from_str(r#"["observe","send"]"#).unwrap();
        assert!(rights.has(Right::Send) && rights.has(Right::Observe));
        assert!(!rights.has(Right::Control) && !rights.has(Right::Receive));
        assert_eq!(serde_json::to_string(&rights).unwrap(), r#"["send","observe"]"#);
        assert!(serde_json::from_str::<Rights>(r#"["root"]"#).is_err());
    }
}
