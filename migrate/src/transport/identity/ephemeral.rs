//! Certificates for one attempt to move one guest.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Fingerprint, IdentityError};

/// DNS name in ephemeral certificates. It says nothing; the fingerprint does.
pub const NAME: &str = "data.migrate";

/// A key pair and its self-signed certificate, made for one attempt and never written down.
///
/// Whoever accepts it does so by its [fingerprint](Self::fingerprint), which came over the
/// daemons' connection; names and dates in it mean nothing.
pub struct Ephemeral {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Ephemeral {
    /// Makes one. Takes randomness from the operating system.
    ///
    /// # Errors
    /// The crypto library could not make a key.
    pub fn generate() -> Result<Self, IdentityError> {
        let make = |e: rcgen::Error| IdentityError::Make {
            what: "a certificate for data connections",
            detail: e.to_string(),
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let params = CertificateParams::new(vec![NAME.to_owned()]).map_err(make)?;
        let certificate = params.self_signed(&key).map_err(make)?.der().clone();
        Ok(Self { certificate, key: key.serialize_der() })
    }

    /// What the peer must be told, over a connection that is already trusted.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// The certificate.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// The private key.
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

impl std::fmt::Debug for Ephemeral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ephemeral({})", self.fingerprint().short())
    }
}
