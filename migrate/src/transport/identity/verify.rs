//! The decision about a peer's certificate, and its place in the TLS handshake.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage};

use super::{
    Fingerprint, HostName, Moment, Refusal, Rights, Site, invitation::AuthorityPrint, pem::Claims,
};
use crate::transport::link::printable;

/// A host that was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name, from its certificate.
    pub name: HostName,
    /// What it may do here.
    pub rights: Rights,
    /// Its certificate.
    pub fingerprint: Fingerprint,
    /// When its certificate was signed.
    pub signed: Moment,
    /// Last second of its certificate.
    pub not_after: Moment,
}

/// Whom to accept at the other end.
#[derive(Debug, Clone)]
pub enum Policy {
    /// A host of the site; when dialling, exactly the one named.
    Site {
        /// CA, rights, removals at this moment.
        site: Arc<Site>,
        /// The host that was dialled.
        expected: Option<HostName>,
    },
    /// A host whose chain ends in the CA that an invitation names.
    Invited(AuthorityPrint),
    /// One certificate, by its fingerprint.
    Pinned(Fingerprint),
}

/// Who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admitted {
    /// A host of the site.
    Host(Peer),
    /// The CA's host of an invitation.
    Inviter {
        /// Its name.
        name: HostName,
        /// Its CA's certificate: the joining host trusts it from now on.
        authority: Fingerprint,
    },
    /// The holder of the pinned certificate.
    Pinned,
}

impl Policy {
    /// Decides about the certificates that a peer shows, its own first.
    ///
    /// # Errors
    /// The reason to refuse it.
    pub fn decide(
        &self,
        algorithms: &WebPkiSupportedAlgorithms,
        presented: &[CertificateDer<'_>],
        now: Moment,
    ) -> Result<Admitted, Refusal> {
        let (leaf, issuers) = presented.split_first().ok_or(Refusal::NoCertificate)?;
        match self {
            Self::Pinned(expected) => {
                let found = Fingerprint::of(leaf);
                if found == *expected {
                    Ok(Admitted::Pinned)
                } else {
                    Err(Refusal::wrong_fingerprint(expected, &found))
                }
            }
            Self::Site { site, expected } => {
                let anchors = site.authorities();
                let (name, claims) = check_host(algorithms, leaf, issuers, anchors, now)?;
                if let Some(removed) = site.removed(&name)
                    && claims.signed() <= removed
                {
                    return Err(Refusal::Removed { host: name, removed });
                }
                if let Some(expected) = expected
                    && *expected != name
                {
                    let (expected, found) = (expected.clone(), name.to_string());
                    return Err(Refusal::WrongName { expected, found });
                }
                Ok(Admitted::Host(Peer {
                    rights: site.rights(&name),
                    name,
                    fingerprint: Fingerprint::of(leaf),
                    signed: claims.signed(),
                    not_after: claims.not_after,
                }))
            }
            Self::Invited(print) => {
                let authority = issuers.iter().find(|der| print.matches(der)).ok_or_else(|| {
                    let host = Claims::read(leaf).map_or_else(|_| "a host".into(), |c| claimed(&c));
                    Refusal::UnknownAuthority { host, trusted: "the invitation's CA".into() }
                })?;
                let anchors = std::slice::from_ref(authority);
                let (name, _) = check_host(algorithms, leaf, issuers, anchors, now)?;
                Ok(Admitted::Inviter { name, authority: Fingerprint::of(authority) })
            }
        }
    }
}

/// Checks chain, dates and use of a host's certificate, and that it names one host.
fn check_host(
    algorithms: &WebPkiSupportedAlgorithms,
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    authorities: &[CertificateDer<'_>],
    now: Moment,
) -> Result<(HostName, Claims), Refusal> {
    let unusable = |detail: String| Refusal::Unusable { detail };
    let claims = Claims::read(leaf).map_err(unusable)?;
    let host = claimed(&claims);
    let anchors = authorities
        .iter()
        .map(webpki::anchor_from_trusted_cert)
        .collect::<Result<Vec<TrustAnchor<'_>>, _>>()
        .map_err(|e| unusable(format!("the checking host's own CA certificate: {e}")))?;
    let certificate = EndEntityCert::try_from(leaf).map_err(|e| unusable(e.to_string()))?;
    let at = |moment: Moment| {
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(moment.0));
        // Hosts dial and are dialled with the same certificate, so it must be good for both.
        [KeyUsage::server_auth(), KeyUsage::client_auth()].into_iter().try_for_each(|usage| {
            let all = algorithms.all;
            certificate
                .verify_for_usage(all, &anchors, issuers, time, usage, None, None)
                .map(|_path| ())
        })
    };
    let Err(error) = at(now) else {
        let names = claims.names.join(", ");
        let name = claims.host().ok_or(Refusal::NoHostName { found: printable(&names) })?;
        return Ok((name, claims));
    };
    let unknown = || {
        let prints = authorities.iter().map(|der| Fingerprint::of(der).short());
        let trusted = prints.collect::<Vec<_>>().join(", ");
        Refusal::UnknownAuthority { host: host.clone(), trusted }
    };
    let (not_before, not_after) = (claims.not_before, claims.not_after);
    match error {
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            Err(unknown())
        }
        // The date is looked at first. If nobody here signed it, that is the better reason.
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }
            if matches!(at(not_after), Err(webpki::Error::UnknownIssuer)) =>
        {
            Err(unknown())
        }
        webpki::Error::CertExpired { .. } if now > not_after => {
            Err(Refusal::Expired { host, not_after, now })
        }
        webpki::Error::CertNotValidYet { .. } if now < not_before => {
            Err(Refusal::NotYetValid { host, not_before, now })
        }
        webpki::Error::CertExpired { not_after, .. } => Err(Refusal::Expired {
            host: format!("an issuer of {host}"),
            not_after: Moment(not_after.as_secs()),
            now,
        }),
        webpki::Error::CertNotValidYet { not_before, .. } => Err(Refusal::NotYetValid {
            host: format!("an issuer of {host}"),
            not_before: Moment(not_before.as_secs()),
            now,
        }),
        other => Err(unusable(other.to_string())),
    }
}

/// Whom a certificate claims to be, fit to print.
fn claimed(claims: &Claims) -> String {
    match claims.host() {
        Some(name) => name.to_string(),
        None => match claims.names.first() {
            Some(dns) => printable(dns).chars().take(80).collect(),
            None => "a host without a name".into(),
        },
    }
}

/// The error that TLS carries out of the handshake: its text becomes the reason phrase.
#[derive(Debug, Error)]
#[error("{0}")]
struct Phrase(String);

/// Puts a [`Policy`] into one TLS handshake, and keeps what it decided.
///
/// One for each connection, never shared.
#[derive(Debug)]
pub struct Doorkeeper {
    policy: Policy,
    /// Lets a client in that shows no certificate. It is *not* admitted: [`Doorkeeper::verdict`]
    /// stays `None`.
    strangers: bool,
    algorithms: WebPkiSupportedAlgorithms,
    verdict: Mutex<Option<Result<Admitted, Refusal>>>,
}

impl Doorkeeper {
    /// One who asks everybody for a certificate.
    pub fn strict(policy: Policy, algorithms: WebPkiSupportedAlgorithms) -> Arc<Self> {
        Arc::new(Self { policy, strangers: false, algorithms, verdict: Mutex::new(None) })
    }

    /// One who lets clients without a certificate through the handshake, for joining.
    pub fn with_strangers(policy: Policy, algorithms: WebPkiSupportedAlgorithms) -> Arc<Self> {
        Arc::new(Self { policy, strangers: true, algorithms, verdict: Mutex::new(None) })
    }

    /// What was decided; `None` if no certificate was shown.
    pub fn verdict(&self) -> Option<Result<Admitted, Refusal>> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let presented = [std::slice::from_ref(leaf), issuers].concat();
        let decided = self.policy.decide(&self.algorithms, &presented, Moment(now.as_secs()));
        let result = decided.as_ref().map(|_| ()).map_err(|refusal| {
            rustls::Error::Other(OtherError(Arc::new(Phrase(refusal.phrase()))))
        });
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(decided);
        result
    }
}

/// TLS 1.2 is not compiled in; the traits still ask.
fn no_tls12() -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::BadSignature)
}

impl ServerCertVerifier for Doorkeeper {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, issuers, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Doorkeeper {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        !self.strangers
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(leaf, issuers, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[expect(clippy::similar_names, reason = "host2 is one of the hosts")]
mod tests;
