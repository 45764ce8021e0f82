//! PEM texts, with errors that say what was expected.

use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{HostName, IdentityError, Moment, renewal::BACKDATED};

/// All certificates in `text`, at least one.
pub(super) fn certificates(
    what: &'static str,
    text: &str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let error = |detail: String| IdentityError::Pem { what, label: "CERTIFICATE", detail };
    let found = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| error(e.to_string()))?;
    if found.is_empty() { Err(error("no certificate found".into())) } else { Ok(found) }
}

/// What matters in a host's certificate, as it says of itself: nothing here is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) not_before: Moment,
    pub(super) not_after: Moment,
    /// DNS names, in the certificate's order.
    pub(super) names: Vec<String>,
    /// The public key's bits.
    pub(super) public_key: Vec<u8>,
}

impl Claims {
    /// Reads a certificate. The bytes are untrusted.
    pub(super) fn read(der: &[u8]) -> Result<Self, String> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        if !rest.is_empty() {
            return Err("bytes after its end".into());
        }
        let moment = |seconds: i64| Moment(u64::try_from(seconds).unwrap_or(0));
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| e.to_string())?
            .map(|san| {
                let names = san.value.general_names.iter();
                names
                    .filter_map(|name| match name {
                        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
                        _ => None,
                    })
                    .collect()
            })
            .unwrap_or_default();
        Ok(Self {
            not_before: moment(certificate.validity.not_before.timestamp()),
            not_after: moment(certificate.validity.not_after.timestamp()),
            names,
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// When its CA signed it, if that was one of ours.
    pub(super) fn signed(&self) -> Moment {
        self.not_before.plus(BACKDATED)
    }

    /// The one host that it names.
    pub(super) fn host(&self) -> Option<HostName> {
        let mut hosts = self.names.iter().filter_map(|dns| HostName::from_dns(dns));
        hosts.next().filter(|_| hosts.next().is_none())
    }
}
