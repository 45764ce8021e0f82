//! The removal of a host from its site, signed with the CA's key: whoever carries the news, it
//! cannot be made up, and a host that was off learns it later from anybody.
//!
//! What is signed is the text `migrate-removal/1`, the host's name and the moment in seconds since
//! 1970, a line each. No certificate begins with these bytes, so that neither signature can pass
//! for the other.
//!
//! Of two removals of one host the later counts. It refuses the certificates signed until its
//! moment, and none signed later: a host that has joined again is not removed by old news, and old
//! lists do not bring back one that was removed.

use rcgen::SigningKey as _;
use serde::{Deserialize, Serialize};
use webpki::EndEntityCert;

use super::{Authority, HostName, IdentityError, Moment, Site, base32};
use crate::transport::quic::tls;

/// Longest signature in bytes, that of an RSA key of 8192 bits.
const SIGNATURE_LIMIT: usize = 1024;

/// A host that was removed, and the CA's word for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removal {
    /// The host.
    pub host: HostName,
    /// Certificates signed until then are refused.
    pub at: Moment,
    /// The signature in base 32.
    signature: String,
}

fn text(host: &HostName, at: Moment) -> Vec<u8> {
    format!("migrate-removal/1\n{host}\n{}\n", at.0).into_bytes()
}

impl Removal {
    /// Whether a CA of the site has signed it. The removal is untrusted until then.
    pub fn is_signed(&self, site: &Site) -> bool {
        if self.signature.len() > SIGNATURE_LIMIT * 2 {
            return false;
        }
        let Some(signature) = base32::decode(&self.signature) else { return false };
        let text = text(&self.host, self.at);
        let algorithms = tls::algorithms();
        site.authorities().iter().any(|der| {
            let Ok(authority) = EndEntityCert::try_from(der) else { return false };
            // Which algorithm goes with the key is the library's business.
            algorithms.all.iter().any(|a| authority.verify_signature(*a, &text, &signature).is_ok())
        })
    }
}

impl Authority {
    /// Removes a host from the site: the certificates signed for it until `at` are refused.
    ///
    /// # Errors
    /// The crypto library could not sign.
    pub fn remove(&self, host: &HostName, at: Moment) -> Result<Removal, IdentityError> {
        let signature = self.key().sign(&text(host, at)).map_err(|e| IdentityError::Make {
            what: "the signature of a removal",
            detail: e.to_string(),
        })?;
        Ok(Removal { host: host.clone(), at, signature: base32::encode(&signature) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::identity::site::Hosts;

    const NOW: Moment = Moment(1_800_000_000);

    #[test]
    fn only_the_site_s_ca_removes() {
        let ours = Authority::generate("ours", NOW).unwrap();
        let theirs = Authority::generate("theirs", NOW).unwrap();
        let site = Site::from_pem(ours.certificate_pem(), Hosts::default()).unwrap();
        let host: HostName = "host2".parse().unwrap();
        let removal = ours.remove(&host, NOW).unwrap();
        assert!(removal.is_signed(&site));
        assert!(!theirs.remove(&host, NOW).unwrap().is_signed(&site));

        let other_host = Removal { host: "host3".parse().unwrap(), ..removal.clone() };
        let other_time = Removal { at: Moment(NOW.0 + 1), ..removal.clone() };
        let unsigned = Removal { signature: String::new(), ..removal.clone() };
        let nonsense = Removal { signature: "0189!".into(), ..removal.clone() };
        let long = Removal { signature: "a".repeat(1 << 20), ..removal.clone() };
        for bad in [other_host, other_time, unsigned, nonsense, long] {
            assert!(!bad.is_signed(&site));
        }

        let text = serde_json::to_string(&removal).unwrap();
        assert_eq!(serde_json::from_str::<Removal>(&text).unwrap(), removal);
    }

    #[test]
    fn a_reissued_ca_certificate_still_vouches() {
        let old = Authority::generate("ours", NOW).unwrap();
        let new = old.reissue(Moment(NOW.0 + 1_000_000)).unwrap().unwrap();
        let host: HostName = "host2".parse().unwrap();
        for (signer, known) in [(&old, &new), (&new, &old)] {
            let site = Site::from_pem(known.certificate_pem(), Hosts::default()).unwrap();
            assert!(signer.remove(&host, NOW).unwrap().is_signed(&site));
        }
    }
}
