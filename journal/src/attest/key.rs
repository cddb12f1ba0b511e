//! Who signs.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use thiserror::Error;

use crate::store::from_hex;

/// Bytes of a signature.
pub(crate) const SIGNATURE_BYTES: usize = 64;

/// A key cannot be made, read or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AttestError {
    /// The text is no public key.
    #[error("not a public key: it is written ed25519:<64 hexadecimal digits>")]
    PublicKey,
    /// The bytes are no signing key.
    #[error("not a signing key: an Ed25519 key in PKCS#8 is wanted")]
    SigningKey,
    /// The cryptographic library refused.
    #[error("the key cannot be used")]
    Refused,
}

/// Checks statements and certificates. As text: `ed25519:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    const PREFIX: &str = "ed25519:";

    /// Whether that key signed these bytes.
    #[must_use]
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = AttestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().strip_prefix(Self::PREFIX);
        digits.and_then(from_hex).map(Self).ok_or(AttestError::PublicKey)
    }
}

/// Signs what the journal says of itself. The journal holds no key: whoever opens it passes one in.
pub trait Signer: fmt::Debug + Send + Sync {
    /// Checks what [`Signer::sign`] made.
    fn public_key(&self) -> PublicKey;

    /// Signs bytes with Ed25519. Called while a commit of the journal waits: no slow work.
    ///
    /// # Errors
    /// The statement is not made then; the next one covers what it would have.
    fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], AttestError>;
}

/// An Ed25519 key in memory.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public_key()).finish()
    }
}

impl SigningKey {
    /// A new key and its PKCS#8 document, which is to be kept secret.
    ///
    /// # Errors
    /// [`AttestError::Refused`].
    pub fn generate() -> Result<(Self, Vec<u8>), AttestError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| AttestError::Refused)?;
        let document = pair.to_pkcs8().map_err(|_| AttestError::Refused)?;
        Ok((Self(pair), document.as_ref().to_vec()))
    }

    /// From a PKCS#8 document.
    ///
    /// # Errors
    /// [`AttestError::SigningKey`].
    pub fn from_pkcs8(document: &[u8]) -> Result<Self, AttestError> {
        Ed25519KeyPair::from_pkcs8(document).map(Self).map_err(|_| AttestError::SigningKey)
    }

    /// From 32 secret bytes; the same bytes give the same key.
    ///
    /// # Errors
    /// [`AttestError::SigningKey`].
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, AttestError> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|_| AttestError::SigningKey)
    }
}

impl Signer for SigningKey {
    fn public_key(&self) -> PublicKey {
        PublicKey(self.0.public_key().as_ref().try_into().unwrap_or_default())
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], AttestError> {
        let signature = self.0.try_sign(message).map_err(|_| AttestError::Refused)?;
        signature.as_ref().try_into().map_err(|_| AttestError::Refused)
    }
}
