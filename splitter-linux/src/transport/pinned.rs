//! The first connection: the token names the authority by the SHA-256 of its certificate, and the server presents that
//! certificate with its own. Only then is anything sent, the token's secret included.

use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tidemark_proto::tls::SERVER_NAME;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::{CONNECT_TIMEOUT, TransportError};

/// Connects to an appliance whose authority has this hash, without a certificate of our own.
///
/// # Errors
/// [`TransportError`].
pub async fn pinned(address: &str, ca_sha256: [u8; 32]) -> Result<Channel, TransportError> {
    let config = config(ca_sha256).map_err(|error| TransportError::Credentials(error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(config));
    let target = address.to_owned();
    let connect = tower::service_fn(move |_| {
        let (connector, target) = (connector.clone(), target.clone());
        async move {
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            let tcp = TcpStream::connect(&target).await?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    // The scheme says that the transport adds no TLS of its own: the connector has done it.
    Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| TransportError::Address(address.to_owned()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector(connect)
        .await
        .map_err(|error| TransportError::from_transport(address, &error))
}

fn config(ca_sha256: [u8; 32]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(PinVerifier { ca_sha256, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Finds the pinned authority in what the server presents, then verifies the server against it as usual.
#[derive(Debug)]
struct PinVerifier {
    ca_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.ca_sha256)
            .ok_or_else(|| Error::General("its certificate authority is not the one of this token".into()))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn sha256(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, certificate).as_ref());
    hash
}
