//! Certificates for one attempt to move one guest.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Fingerprint, IdentityError, pem::Claims};

/// DNS name in ephemeral certificates. It says nothing; the fingerprint does.
pub const NAME: &str = "data.migrate";

/// A key pair and its self-signed certificate, made for one attempt and never written down
/// to a disk.
///
/// Whoever accepts it does so by its [fingerprint](Self::fingerprint), which came over the
/// daemons' connection; names and dates in it mean nothing.
#[derive(Clone)]
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

    /// The certificate and its private key (PKCS#8), both DER, to be handed to the process that is
    /// to use them.
    pub fn to_der(&self) -> (&[u8], &[u8]) {
        (&self.certificate, &self.key)
    }

    /// What [`to_der`](Self::to_der) gave out.
    ///
    /// # Errors
    /// The key is none, or not that of the certificate.
    pub fn from_der(certificate: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let what = "the certificate for data connections";
        let unreadable = |detail| IdentityError::Certificate { what, detail };
        let claims = Claims::read(certificate).map_err(unreadable)?;
        let pair =
            KeyPair::try_from(key).map_err(|e| IdentityError::Key { detail: e.to_string() })?;
        if pair.public_key_raw() != claims.public_key {
            return Err(IdentityError::Mismatch { what });
        }
        Ok(Self { certificate: CertificateDer::from(certificate.to_vec()), key: key.to_vec() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_handed_over_whole_only() {
        let (one, other) = (Ephemeral::generate().unwrap(), Ephemeral::generate().unwrap());
        let (certificate, key) = one.to_der();
        let again = Ephemeral::from_der(certificate, key).unwrap();
        assert_eq!(again.fingerprint(), one.fingerprint());
        assert!(Ephemeral::from_der(certificate, other.to_der().1).is_err());
        assert!(Ephemeral::from_der(certificate, &key[1..]).is_err());
        assert!(Ephemeral::from_der(&certificate[1..], key).is_err());
    }
}
