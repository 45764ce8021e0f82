//! A host's key and certificate.

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{
    Fingerprint, HostName, IdentityError, Moment,
    authority::key_from_pem,
    pem::{self, Claims},
    renewal::{self, Renewal},
};

/// What this certificate is called in errors.
const WHAT: &str = "the host's certificate";

/// A host's private key. It never leaves the host; requests carry its public half.
pub struct HostKey(KeyPair);

impl HostKey {
    /// Makes a new key. Takes randomness from the operating system.
    ///
    /// # Errors
    /// The crypto library could not make it.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|e| IdentityError::Make { what: "a key", detail: e.to_string() })
    }

    /// A key from PKCS#8 PEM.
    ///
    /// # Errors
    /// The text is not a private key.
    pub fn from_pem(key_pem: &str) -> Result<Self, IdentityError> {
        key_from_pem(key_pem).map(Self)
    }

    /// The private key in PKCS#8 PEM. Its file must have mode 0600.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A certificate request (PKCS#10, PEM) for `name`, for [`Authority::sign`] or any other CA.
    ///
    /// # Errors
    /// The crypto library could not make it.
    ///
    /// [`Authority::sign`]: super::Authority::sign
    pub fn request_pem(&self, name: &HostName) -> Result<String, IdentityError> {
        let make = |e: rcgen::Error| IdentityError::Make {
            what: "a certificate request",
            detail: e.to_string(),
        };
        let mut params = CertificateParams::new(vec![name.dns()]).map_err(make)?;
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.serialize_request(&self.0).and_then(|request| request.pem()).map_err(make)
    }
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostKey")
    }
}

/// A key with the certificate that names its host.
pub struct HostIdentity {
    name: HostName,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    not_before: Moment,
    not_after: Moment,
}

impl HostIdentity {
    /// An identity from PEM texts: the private key, and the certificate followed by those of its
    /// issuers up to the site's CA.
    ///
    /// # Errors
    /// A text is not what it should be, the two do not belong together, or the certificate does
    /// not name exactly one host.
    pub fn from_pem(key_pem: &str, chain_pem: &str) -> Result<Self, IdentityError> {
        let chain = pem::certificates(WHAT, chain_pem)?;
        let unreadable = |detail: String| IdentityError::Certificate { what: WHAT, detail };
        let leaf = chain.first().ok_or_else(|| unreadable("none found".into()))?;
        let claims = Claims::read(leaf).map_err(unreadable)?;
        let key = key_from_pem(key_pem)?;
        if key.public_key_raw() != claims.public_key {
            return Err(IdentityError::Mismatch { what: WHAT });
        }
        let name = claims.host().ok_or(IdentityError::NoHostName)?;
        let (not_before, not_after) = (claims.not_before, claims.not_after);
        Ok(Self { name, chain, key: key.serialize_der(), not_before, not_after })
    }

    /// The host it names.
    pub fn name(&self) -> &HostName {
        &self.name
    }

    /// When the certificate was signed.
    pub fn signed(&self) -> Moment {
        self.not_before.plus(renewal::BACKDATED)
    }

    /// Last second of the certificate.
    pub fn not_after(&self) -> Moment {
        self.not_after
    }

    /// Fingerprint of the certificate.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.chain.first().map(|der| Fingerprint::of(der))
    }

    /// What to do about its age.
    pub fn renewal(&self, now: Moment) -> Renewal {
        renewal::decide(self.not_before, self.not_after, now)
    }

    /// The certificates to show.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The private key.
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

impl std::fmt::Debug for HostIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostIdentity({}, until {})", self.name, self.not_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::identity::Authority;

    const NOW: Moment = Moment(1_800_000_000);

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn made_signed_written_and_read() {
        let made = Authority::generate("test", NOW).unwrap();
        let authority = Authority::from_pem(made.certificate_pem(), made.key_pem()).unwrap();
        assert_eq!(authority.fingerprint(), made.fingerprint());
        let key = HostKey::generate().unwrap();
        let request = key.request_pem(&name("host2")).unwrap();
        let chain = authority.sign(&request, &name("host2"), NOW).unwrap();
        let identity = HostIdentity::from_pem(&key.pem(), &chain).unwrap();
        assert_eq!(identity.name(), &name("host2"));
        assert_eq!(identity.not_after(), NOW.plus(renewal::HOST_LIFETIME));
        assert!(matches!(identity.renewal(NOW), Renewal::At(_)));
        let again = authority.sign(&request, &name("host2"), NOW).unwrap();
        assert_ne!(again, chain, "serial numbers must differ");
    }

    #[test]
    fn a_ca_never_signs_beyond_its_own_end() {
        let authority = Authority::generate("test", NOW).unwrap();
        let key = HostKey::generate().unwrap();
        let late = NOW.plus(renewal::AUTHORITY_LIFETIME).minus(std::time::Duration::from_hours(1));
        let request = key.request_pem(&name("a")).unwrap();
        let chain = authority.sign(&request, &name("a"), late).unwrap();
        let identity = HostIdentity::from_pem(&key.pem(), &chain).unwrap();
        assert_eq!(identity.not_after(), NOW.plus(renewal::AUTHORITY_LIFETIME));
    }

    #[test]
    fn requests_for_something_else_are_refused() {
        let authority = Authority::generate("test", NOW).unwrap();
        let key = HostKey::generate().unwrap();
        let request = key.request_pem(&name("host3")).unwrap();
        let error = authority.sign(&request, &name("host2"), NOW).unwrap_err();
        assert!(error.to_string().contains("host2.migrate"), "{error}");
        // A request whose signature was made over something else.
        let body = request.lines().filter(|l| !l.starts_with('-')).collect::<String>();
        let tampered = request.replace(&body[20..40], &body[40..60]);
        for bad in ["", "no PEM", &tampered, &key.pem(), authority.certificate_pem()] {
            assert!(authority.sign(bad, &name("host3"), NOW).is_err(), "{bad}");
        }
        assert!(authority.sign(&" ".repeat(9000), &name("host3"), NOW).is_err());
    }

    #[test]
    fn wrong_files_are_named() {
        let authority = Authority::generate("test", NOW).unwrap();
        let (key, other) = (HostKey::generate().unwrap(), HostKey::generate().unwrap());
        let request = key.request_pem(&name("a")).unwrap();
        let chain = authority.sign(&request, &name("a"), NOW).unwrap();
        let error =
            |key: &str, chain: &str| HostIdentity::from_pem(key, chain).unwrap_err().to_string();
        assert!(error(&other.pem(), &chain).contains("do not belong together"));
        assert!(error(&key.pem(), &key.pem()).contains("BEGIN CERTIFICATE"));
        assert!(error(&chain, &chain).contains("BEGIN PRIVATE KEY"));
        assert!(error(authority.key_pem(), authority.certificate_pem()).contains("names no host"));
        assert!(Authority::from_pem(&chain, &key.pem()).unwrap_err().to_string().contains("CA"));
        assert!(Authority::from_pem(authority.certificate_pem(), &key.pem()).is_err());
        assert!(!format!("{key:?}{authority:?}").contains("PRIVATE"));
    }
}
