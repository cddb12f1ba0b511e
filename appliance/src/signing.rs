//! The key that signs what this appliance says of its journals, apart from the keys of connections: whoever checks a
//! copy of a journal years later needs its public half and nothing else.

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;
use tidemark_journal::attest::{AttestError, Signer, SigningKey};

use crate::data_dir::{self, FileError, write_private};

/// The signing key cannot be had.
#[derive(Debug, Error)]
pub enum SigningError {
    /// Reading or writing its files failed.
    #[error("signing key: {0}")]
    File(#[from] FileError),
    /// The key is not as written.
    #[error(
        "signing key: {0} is damaged: put the copy back; a new key would prove nothing that the old one signed"
    )]
    Damaged(String),
    /// The cryptographic library refused.
    #[error("signing key: {0}")]
    Key(#[from] AttestError),
}

/// Loads the key in `dir`, making it when there is none: `signing.key` (PKCS#8, secret) and `signing.pub`.
///
/// # Errors
/// When the files cannot be read or written, or the key is damaged: a new one is never made over it.
pub fn load_or_create(dir: &Path) -> Result<Arc<SigningKey>, SigningError> {
    let (secret, public) = (dir.join("signing.key"), dir.join("signing.pub"));
    if !secret.exists() {
        if public.exists() {
            return Err(SigningError::Damaged(secret.display().to_string()));
        }
        let (_, document) = SigningKey::generate()?;
        write_private(&secret, &document)?;
    }
    let document = data_dir::read_bytes(&secret)?;
    let key =
        SigningKey::from_pkcs8(&document).map_err(|_| SigningError::Damaged(secret.display().to_string()))?;
    let text = format!("{}\n", key.public_key());
    if data_dir::read_text(&public).ok().as_ref() != Some(&text) {
        write_private(&public, text.as_bytes())?;
    }
    Ok(Arc::new(key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_kept_private_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap().public_key();
        assert_eq!(load_or_create(dir.path()).unwrap().public_key(), first);
        let path = dir.path().join("signing.key");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(dir.path().join("signing.pub")).unwrap();
        assert_eq!(text.trim().parse(), Ok(first));
        std::fs::write(&path, "no key").unwrap();
        let error = load_or_create(dir.path()).unwrap_err().to_string();
        assert!(error.contains("put the copy back"), "{error}");
    }
}
