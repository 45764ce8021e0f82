//! Every reason to send a peer away, in words for the people on both sides.

use thiserror::Error;

use super::{Fingerprint, HostName, Moment, site::Right};
use crate::transport::link::printable;

/// Begins the reason phrase of a refusal.
const MARK: &str = "migrate-refusal/";

/// Why a peer is refused. The texts are read on both hosts, so they say "the host that checked
/// it" and never "this host".
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Signed by nobody whom the site trusts.
    #[error(
        "the certificate of {host} is not signed by the CA of this site (trusted: {trusted}): \
         join that host with `migrate host invite` and `migrate host join`, or give both hosts \
         the same CA"
    )]
    UnknownAuthority {
        /// Whom the certificate claims to be.
        host: String,
        /// Short fingerprints of the trusted authorities.
        trusted: String,
    },
    /// Past its end.
    #[error(
        "the certificate of {host} expired on {not_after}; the clock of the host that checked it \
         says {now}: if that is wrong, set the clock (`timedatectl` on both hosts); if it is \
         right, renew the certificate with `migrate host join`"
    )]
    Expired {
        /// Whom the certificate claims to be.
        host: String,
        /// Its last second.
        not_after: Moment,
        /// The checking host's clock.
        now: Moment,
    },
    /// Before its beginning.
    #[error(
        "the certificate of {host} is valid from {not_before} on; the clock of the host that \
         checked it says {now}: one of the two hosts' clocks is wrong, check them with \
         `timedatectl`"
    )]
    NotYetValid {
        /// Whom the certificate claims to be.
        host: String,
        /// Its first second.
        not_before: Moment,
        /// The checking host's clock.
        now: Moment,
    },
    /// A good certificate of another host.
    #[error(
        "expected {expected}, but the host that answered is {found}: check the address of \
         {expected} in the host list"
    )]
    WrongName {
        /// Whom the dialler wanted.
        expected: HostName,
        /// Who answered.
        found: String,
    },
    /// A certificate of the site that does not name exactly one host.
    #[error("the certificate names no host of this site (found: {found})")]
    NoHostName {
        /// The names in it.
        found: String,
    },
    /// Removed from the site.
    #[error(
        "{host} was removed from this site on {removed}: to let it in again, `migrate host \
         invite` on the CA's host, then `migrate host join` on {host}"
    )]
    Removed {
        /// Which host.
        host: HostName,
        /// When.
        removed: Moment,
    },
    /// The peer of a data connection is not the one the daemons introduced.
    #[error(
        "the data connection came from somebody else: certificate {found}…, but the daemons \
         agreed on {expected}… for this attempt"
    )]
    WrongFingerprint {
        /// First digits of the agreed one.
        expected: String,
        /// First digits of the one shown.
        found: String,
    },
    /// No certificate at all.
    #[error("no certificate was shown: only hosts that have joined this site may connect")]
    NoCertificate,
    /// A certificate that cannot be read, or is not meant for hosts.
    #[error("the certificate cannot be used: {detail}")]
    Unusable {
        /// What is wrong.
        detail: String,
    },
    /// A host of the site that may not do this here.
    #[error(
        "{host} does not have the right to {right} here: grant it in the host list of the host \
         that refused"
    )]
    NoRight {
        /// Which host.
        host: HostName,
        /// What it lacks.
        right: Right,
    },
}

impl Refusal {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownAuthority { .. } => "unknown-ca",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::WrongName { .. } => "wrong-name",
            Self::NoHostName { .. } => "no-host-name",
            Self::Removed { .. } => "removed",
            Self::WrongFingerprint { .. } => "wrong-fingerprint",
            Self::NoCertificate => "no-certificate",
            Self::Unusable { .. } => "unusable-certificate",
            Self::NoRight { .. } => "no-right",
        }
    }

    /// The refusal that somebody without `right` gets.
    ///
    /// # Errors
    /// The host does not have the right.
    pub fn unless(has: super::Rights, right: Right, host: &HostName) -> Result<(), Self> {
        if has.has(right) { Ok(()) } else { Err(Self::NoRight { host: host.clone(), right }) }
    }

    /// What the refused peer is told: mark, code, text.
    pub fn phrase(&self) -> String {
        printable(&format!("{MARK}{}: {self}", self.code()))
    }

    /// What a data connection between strangers says.
    pub(crate) fn wrong_fingerprint(expected: &Fingerprint, found: &Fingerprint) -> Self {
        Self::WrongFingerprint { expected: expected.short(), found: found.short() }
    }
}

/// A refusal as the refused side hears it. Nothing in it is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct Heard {
    /// The word from [`Refusal::code`], or what the peer sent in its place.
    pub code: String,
    /// The peer's words.
    pub text: String,
}

impl Heard {
    /// Reads a reason phrase; `None` if it is not a refusal of ours. TLS puts words of its own
    /// before the mark.
    pub fn from_phrase(phrase: &[u8]) -> Option<Self> {
        let phrase = printable(&String::from_utf8_lossy(phrase));
        let (_, refusal) = phrase.split_once(MARK)?;
        let (code, text) = refusal.split_once(": ")?;
        let word = |b: u8| b.is_ascii_lowercase() || b == b'-';
        (!code.is_empty() && code.len() <= 32 && code.bytes().all(word))
            .then(|| Self { code: code.to_owned(), text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_phrase_comes_back_as_code_and_text() {
        let refusal = Refusal::Expired {
            host: "host2".into(),
            not_after: Moment(951_782_400),
            now: Moment(4_107_542_400),
        };
        let phrase = format!("invalid peer certificate: {}", refusal.phrase());
        let heard = Heard::from_phrase(phrase.as_bytes()).unwrap();
        assert_eq!(heard.code, "expired");
        assert_eq!(heard.text, refusal.to_string());
        assert!(heard.text.contains("expired on 2000-02-29 00:00:00 UTC"));
        assert!(heard.text.contains("says 2100-03-01"));
        assert!(heard.text.contains("timedatectl"));
    }

    proptest! {
        #[test]
        fn what_a_peer_says_is_fit_to_print(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut phrase = b"migrate-refusal/expired: ".to_vec();
            phrase.extend(bytes);
            if let Some(heard) = Heard::from_phrase(&phrase) {
                prop_assert!(!heard.text.chars().any(char::is_control));
                prop_assert!(heard.text.len() <= crate::transport::link::REASON_LIMIT);
            }
        }
    }
}
