//! The server's certificate: lives in memory only, replaced while running before it expires.

use std::fmt;
use std::sync::{Arc, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tidemark_proto::tls::SERVER_NAME;

use super::{Authority, AuthorityError, SERVER_VALIDITY};

struct Current {
    key: Arc<CertifiedKey>,
    renew_at_us: u64,
}

/// Resolves to the newest certificate; running connections keep theirs.
pub struct ServerCertificate {
    names: Vec<String>,
    current: RwLock<Current>,
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ServerCertificate {
    /// Makes the first certificate of this process.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate, or the cryptographic library refuses.
    pub fn new(
        authority: &Authority,
        provider: &CryptoProvider,
        names: Vec<String>,
        now_us: u64,
    ) -> Result<Self, AuthorityError> {
        let current = RwLock::new(make(authority, provider, &names, now_us)?);
        Ok(Self { names, current })
    }

    /// Replaces the certificate when a third of its validity is left. Returns whether it did.
    ///
    /// # Errors
    /// As [`ServerCertificate::new`]; the old certificate then stays.
    pub fn renew_if_due(
        &self,
        authority: &Authority,
        provider: &CryptoProvider,
        now_us: u64,
    ) -> Result<bool, AuthorityError> {
        let due = self.current.read().map_or(true, |current| now_us >= current.renew_at_us);
        if !due {
            return Ok(false);
        }
        let fresh = make(authority, provider, &self.names, now_us)?;
        if let Ok(mut current) = self.current.write() {
            *current = fresh;
        }
        Ok(true)
    }
}

fn make(
    authority: &Authority,
    provider: &CryptoProvider,
    names: &[String],
    now_us: u64,
) -> Result<Current, AuthorityError> {
    let mut names = names.to_vec();
    names.push(SERVER_NAME.to_owned());
    let (certificate, key, not_after_us) = authority.make_server(&names, SERVER_VALIDITY, now_us)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let signer = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| AuthorityError::Damaged(format!("new server key: {error}")))?;
    // The authority's certificate goes along: an enrolling splitter knows only its hash.
    let key = Arc::new(CertifiedKey::new(vec![certificate, authority.der().clone()], signer));
    let renew_at_us = not_after_us.saturating_sub((not_after_us.saturating_sub(now_us)) / 3);
    Ok(Current { key, renew_at_us })
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().ok().map(|current| Arc::clone(&current.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_renews_at_two_thirds_of_its_validity_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path(), 1_000_000_000_000_000).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let start = 1_000_000_000_000_000;
        let server = ServerCertificate::new(&authority, &provider, vec!["localhost".into()], start).unwrap();
        let validity = u64::try_from(SERVER_VALIDITY.as_micros()).unwrap();
        assert!(!server.renew_if_due(&authority, &provider, start + validity / 2).unwrap());
        assert!(server.renew_if_due(&authority, &provider, start + validity * 2 / 3 + 1).unwrap());
        assert!(!server.renew_if_due(&authority, &provider, start + validity * 2 / 3 + 2).unwrap());
    }
}
