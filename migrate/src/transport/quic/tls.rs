//! TLS 1.3 for both roles: aws-lc-rs, AES-128-GCM first, no resumption, no early data.

use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer},
    server::NoServerSessionStorage,
};

use crate::transport::identity::{Ephemeral, HostIdentity, verify::Doorkeeper};

/// Protocol names (ALPN). A different one is a different port, as it were.
pub(super) const HOSTS: &[u8] = b"migrate/1";
/// Hosts that want to join; they have no certificate yet.
pub(super) const JOIN: &[u8] = b"migrate-join/1";
/// Guest processes.
pub(super) const DATA: &[u8] = b"migrate-data/1";

/// The crypto provider of all connections: aws-lc-rs with AES-128-GCM before AES-256-GCM.
/// `ChaCha20`, which halves the rate, only where the CPU has no AES.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut suites = vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ];
        if !cpu_has_aes() {
            suites.insert(0, aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256);
        }
        Arc::new(CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() })
    }))
}

fn cpu_has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

/// Makes this provider the process's default, for libraries that ask for one. First thing in
/// `main`; calling it again has no effect. Connections made here do not need it.
pub fn install_default() {
    let _already_there = CryptoProvider::clone(&provider()).install_default();
}

/// Signature algorithms that certificates may use.
pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// What this side shows of itself.
#[derive(Clone, Copy)]
pub(super) enum Own<'a> {
    Host(&'a HostIdentity),
    Ephemeral(&'a Ephemeral),
    /// A host that is about to join.
    Nothing,
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Own<'_> {
    fn pair(self) -> Option<Pair> {
        match self {
            Self::Host(host) => Some((host.chain(), host.key())),
            Self::Ephemeral(ephemeral) => Some((vec![ephemeral.certificate()], ephemeral.key())),
            Self::Nothing => None,
        }
    }
}

/// The dialling side.
pub(super) fn client(
    own: Own<'_>,
    doorkeeper: Arc<Doorkeeper>,
    protocol: &[u8],
) -> Result<QuicClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(doorkeeper);
    let mut config = match own.pair() {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    QuicClientConfig::try_from(config).map_err(|e| e.to_string())
}

/// The accepting side.
pub(super) fn server(
    own: Own<'_>,
    doorkeeper: Arc<Doorkeeper>,
    protocols: &[&[u8]],
) -> Result<QuicServerConfig, String> {
    let (chain, key) = own.pair().ok_or("a server must have a certificate")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .with_client_cert_verifier(doorkeeper)
        .with_single_cert(chain, key)
        .map_err(|e| e.to_string())?;
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|e| e.to_string())
}
