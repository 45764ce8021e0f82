//! The certificate authority of a site.

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType, SerialNumber, date_time_ymd,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    Fingerprint, HostName, IdentityError, Moment,
    pem::{self, Claims},
    renewal::{self, AUTHORITY_LIFETIME, BACKDATED, HOST_LIFETIME, Renewal},
};

/// What this certificate is called in errors.
const WHAT: &str = "the site's CA certificate";
/// Begins the name of a CA that was made here, and not given.
const MADE_HERE: &str = "migrate CA of ";
/// Longest certificate request in bytes of PEM; ours have about 500.
const REQUEST_LIMIT: usize = 8 << 10;

/// A CA with its private key: the host that holds it can let others join.
pub struct Authority {
    certificate_pem: String,
    der: Vec<u8>,
    not_before: Moment,
    not_after: Moment,
    /// What the site is called, if its CA was made here.
    made_for: Option<String>,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new CA for the site called `site`. Takes randomness from the operating system.
    ///
    /// # Errors
    /// The crypto library could not make it.
    pub fn generate(site: &str, now: Moment) -> Result<Self, IdentityError> {
        let make = |e: rcgen::Error| IdentityError::Make { what: "a CA", detail: e.to_string() };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        Self::certify(site, &key, now)
    }

    /// The certificate of a CA, signed by itself.
    fn certify(site: &str, key: &KeyPair, now: Moment) -> Result<Self, IdentityError> {
        let make = |e: rcgen::Error| IdentityError::Make { what: "a CA", detail: e.to_string() };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{MADE_HERE}{site}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now.minus(BACKDATED), now.plus(AUTHORITY_LIFETIME));
        params.serial_number = Some(generate_serial()?);
        let certificate = params.self_signed(key).map_err(make)?;
        Self::from_pem(&certificate.pem(), &key.serialize_pem())
    }

    /// A CA from its PEM texts; also one that was not made by us.
    ///
    /// # Errors
    /// A text is not what it should be, the certificate is not a CA's, or the two do not belong
    /// together.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let unreadable = |detail: String| IdentityError::Certificate { what: WHAT, detail };
        let certificates = pem::certificates(WHAT, certificate_pem)?;
        let der = certificates.first().ok_or_else(|| unreadable("none found".into()))?.to_vec();
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| unreadable(e.to_string()))?;
        if !parsed.is_ca() {
            return Err(unreadable("it is not a CA certificate (basic constraints)".into()));
        }
        let claims = Claims::read(&der).map_err(unreadable)?;
        let key = key_from_pem(key_pem)?;
        if key.public_key_raw() != claims.public_key {
            return Err(IdentityError::Mismatch { what: WHAT });
        }
        let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), key)
            .map_err(|e| unreadable(e.to_string()))?;
        let common_name = parsed.subject().iter_common_name().next();
        let made_for = common_name
            .and_then(|name| name.as_str().ok()?.strip_prefix(MADE_HERE).map(str::to_owned))
            .filter(|_| parsed.subject() == parsed.issuer());
        let (not_before, not_after) = (claims.not_before, claims.not_after);
        let (certificate_pem, key_pem) = (certificate_pem.to_owned(), key_pem.to_owned());
        Ok(Self { certificate_pem, der, not_before, not_after, made_for, key_pem, issuer })
    }

    /// The same CA, name and key, with a certificate that is valid from `now` on. Hosts that
    /// trust the old certificate accept what is signed under the new one, and the other way
    /// round: trust is in name and key. `None` for a CA that was given: its certificate is not
    /// ours to make.
    ///
    /// # Errors
    /// The crypto library could not make it.
    pub fn reissue(&self, now: Moment) -> Result<Option<Self>, IdentityError> {
        let Some(site) = &self.made_for else { return Ok(None) };
        Self::certify(site, self.key(), now).map(Some)
    }

    /// What to do about the age of its certificate.
    pub fn renewal(&self, now: Moment) -> Renewal {
        renewal::decide(self.not_before, self.not_after, now)
    }

    /// Last second of its certificate; nothing that it signs is valid for longer.
    pub fn not_after(&self) -> Moment {
        self.not_after
    }

    /// The private key.
    pub(super) fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    /// The certificate, for every host of the site.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key. Its file must have mode 0600.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// What an invitation names.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.der)
    }

    /// Signs a host's request: the host's certificate, then the CA's, in PEM. Takes randomness
    /// from the operating system.
    ///
    /// Only the key is taken from the request; that its sender has the private key is proved by
    /// the request's signature. Name, dates and uses are the CA's decision.
    ///
    /// # Errors
    /// The request cannot be read, its signature is wrong, or it asks for another name.
    pub fn sign(
        &self,
        request_pem: &str,
        name: &HostName,
        now: Moment,
    ) -> Result<String, IdentityError> {
        let refuse = |detail: String| IdentityError::Request { detail };
        if request_pem.len() > REQUEST_LIMIT {
            return Err(refuse(format!("it is longer than {REQUEST_LIMIT} bytes")));
        }
        let request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|e| refuse(e.to_string()))?;
        let wanted = name.dns();
        let asks_for_it =
            |san: &SanType| matches!(san, SanType::DnsName(d) if d.as_str() == wanted);
        if request.params.subject_alt_names.iter().any(|san| !asks_for_it(san)) {
            return Err(refuse(format!("it asks for a name that is not {wanted}")));
        }
        let make = |e: rcgen::Error| IdentityError::Make {
            what: "the host's certificate",
            detail: e.to_string(),
        };
        let mut params = CertificateParams::new(vec![wanted]).map_err(make)?;
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let not_after = now.plus(HOST_LIFETIME).min(self.not_after);
        set_validity(&mut params, now.minus(BACKDATED), not_after);
        params.serial_number = Some(generate_serial()?);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(make)?;
        Ok(format!("{}{}", certificate.pem(), self.certificate_pem))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.fingerprint().short())
    }
}

/// A key pair from PKCS#8 PEM.
pub(super) fn key_from_pem(key_pem: &str) -> Result<KeyPair, IdentityError> {
    KeyPair::from_pem(key_pem).map_err(|e| IdentityError::Key {
        detail: format!("{e}; expected PKCS#8 PEM with a line `-----BEGIN PRIVATE KEY-----`"),
    })
}

fn set_validity(params: &mut CertificateParams, not_before: Moment, not_after: Moment) {
    // X.509 dates end with the year 9999.
    let moment = |m: Moment| {
        date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(m.0.min(253_402_300_799))
    };
    params.not_before = moment(not_before);
    params.not_after = moment(not_after);
}

/// 127 random bits: unique without a counter (RFC 5280, 4.1.2.2).
fn generate_serial() -> Result<SerialNumber, IdentityError> {
    let mut serial = [0u8; 16];
    rand::fill(&mut serial).map_err(|_| IdentityError::Make {
        what: "a serial number",
        detail: "the operating system gives no randomness".into(),
    })?;
    // A positive number whose first byte is not zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(SerialNumber::from(serial.to_vec()))
}
