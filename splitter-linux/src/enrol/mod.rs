//! Enrolment: a one-time token becomes a certificate for one VM.

use rcgen::{CertificateParams, KeyPair};
use thiserror::Error;
use tidemark_proto::token::Token;
use tidemark_proto::v1::EnrolRequest;
use tidemark_proto::v1::enrolment_client::EnrolmentClient;

use crate::state::{Identity, StateDir, StateError};
use crate::transport::{TransportError, pinned};

/// Enrolment did not happen; the state folder is as before.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// No connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The appliance refused, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The key could not be made.
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
    /// The result could not be stored.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Makes a key, has the appliance sign it for the token's VM and stores the result. The key never leaves this machine.
///
/// # Errors
/// [`EnrolError`]. A running splitter on the folder is refused before the token is used.
pub async fn enrol(state: &StateDir, address: &str, token: &Token) -> Result<Identity, EnrolError> {
    state.create()?;
    let _lock = state.lock()?;
    let channel = pinned(address, token.ca_sha256).await?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let csr_pem = request_for(&key)?;
    let request = EnrolRequest {
        secret: token.secret.to_vec().into(),
        token_id: token.id.clone(),
        csr_pem,
        software: concat!("tidemark-splitter ", env!("CARGO_PKG_VERSION")).into(),
    };
    let reply = EnrolmentClient::new(channel)
        .enrol(request)
        .await
        .map_err(|status| EnrolError::Refused(status.message().to_owned()))?
        .into_inner();
    let identity = Identity {
        appliance: address.to_owned(),
        vm_id: reply.vm_id,
        vm_name: reply.vm_name,
        ca_pem: reply.ca_pem,
    };
    state.store_enrolment(&identity, &reply.certificate_pem, &key.serialize_pem())?;
    Ok(identity)
}

/// A certificate request for `key`. The appliance takes only the key from it.
///
/// # Errors
/// When the cryptographic library refuses.
pub fn request_for(key: &KeyPair) -> Result<String, rcgen::Error> {
    CertificateParams::new(Vec::<String>::new())?.serialize_request(key)?.pem()
}
