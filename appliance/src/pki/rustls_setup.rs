//! TLS as the appliance speaks it: version 1.3, HTTP/2, client certificates of our own authority.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::{Authority, AuthorityError, ServerCertificate};

/// The server's TLS settings. A client certificate is optional here, because enrolment comes without one; every other
/// service demands it per call.
///
/// # Errors
/// When the authority's certificate cannot serve as a root.
pub fn server_config(
    authority: &Authority,
    provider: Arc<CryptoProvider>,
    certificate: Arc<ServerCertificate>,
) -> Result<ServerConfig, AuthorityError> {
    let damaged = |error: String| AuthorityError::Damaged(error);
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).map_err(|error| damaged(error.to_string()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| damaged(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| damaged(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the check of the client certificate's validity.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
