//! Credentials of one export: an authority that exists for it alone, in memory, and signs one server and one client
//! certificate. They are worthless for every other export, and for this one when it ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;

/// How long the credentials are good. An export that is needed longer is started again.
const VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// Clients' clocks may be behind by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Credentials could not be made.
#[derive(Debug, Error)]
#[error("cannot make the export's credentials: {0}")]
pub(super) struct CredentialsError(String);

impl From<rcgen::Error> for CredentialsError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustls::Error> for CredentialsError {
    fn from(error: rustls::Error) -> Self {
        Self(error.to_string())
    }
}

/// What the client gets, PEM.
#[derive(Clone)]
pub(super) struct ClientCredentials {
    /// `ca-cert.pem`
    pub(super) ca_pem: String,
    /// `client-cert.pem`
    pub(super) certificate_pem: String,
    /// `client-key.pem`
    pub(super) key_pem: String,
}

impl std::fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCredentials").finish_non_exhaustive()
    }
}

/// Makes credentials for an export reachable as `host` and under `addresses`.
///
/// # Errors
/// When `host` cannot stand in a certificate, or the cryptographic library refuses.
pub(super) fn make(
    host: &str,
    addresses: &[IpAddr],
    now: SystemTime,
) -> Result<(TlsAcceptor, ClientCredentials), CredentialsError> {
    let ca_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut ca = params(Vec::new(), "tidemark export", now)?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    let mut names = vec![host.to_owned()];
    names.extend(addresses.iter().map(ToString::to_string).filter(|address| address != host));
    let (server, server_key) =
        sign(&issuer, names, "tidemark export server", ExtendedKeyUsagePurpose::ServerAuth, now)?;
    let client_purpose = ExtendedKeyUsagePurpose::ClientAuth;
    let (client, client_key) = sign(&issuer, Vec::new(), "tidemark export client", client_purpose, now)?;

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca_certificate.der().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| CredentialsError(error.to_string()))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.der().clone()], key)?;
    // A resumed session would skip the check of the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let client = ClientCredentials {
        ca_pem: ca_certificate.pem(),
        certificate_pem: client.pem(),
        key_pem: client_key.serialize_pem(),
    };
    Ok((TlsAcceptor::from(Arc::new(config)), client))
}

fn sign(
    issuer: &Issuer<'_, KeyPair>,
    names: Vec<String>,
    common_name: &str,
    purpose: ExtendedKeyUsagePurpose,
    now: SystemTime,
) -> Result<(rcgen::Certificate, KeyPair), CredentialsError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(names, common_name, now)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    Ok((params.signed_by(&key, issuer)?, key))
}

fn params(
    names: Vec<String>,
    common_name: &str,
    now: SystemTime,
) -> Result<CertificateParams, CredentialsError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + since_epoch.saturating_add(VALIDITY);
    Ok(params)
}
