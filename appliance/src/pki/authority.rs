//! The certificate authority and what it signs.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use thiserror::Error;

use super::{CA_VALIDITY, CLOCK_SKEW, Role};
use crate::clock::micros;
use crate::data_dir::{self, write_private};

/// Bytes of a certificate request at most: a P-384 request with a few names is below 2 KiB. Longer ones are refused.
const CSR_MAX_BYTES: usize = 16 << 10;

/// What the authority could not do.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// Reading or writing its files failed.
    #[error("certificate authority: {0}")]
    Io(#[from] data_dir::FileError),
    /// A file of the authority is damaged.
    #[error("certificate authority: {0}; restore DIR/ca from a backup")]
    Damaged(String),
    /// The request is not a certificate request this appliance signs.
    #[error("this is not a certificate request that can be signed: {0}")]
    Request(String),
    /// The cryptographic library refused.
    #[error("signing a certificate: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Lower-case hexadecimal, unique.
    pub serial: String,
    /// The certificate, PEM.
    pub pem: String,
    /// Start of validity, microseconds since 1970.
    pub not_before_us: u64,
    /// End of validity, microseconds since 1970.
    pub not_after_us: u64,
}

/// The appliance's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    sha256: [u8; 32],
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Loads the authority in `dir`, creating it when `dir` holds none.
    ///
    /// # Errors
    /// When the files cannot be read or written, or are damaged: a new authority is never made over a damaged one,
    /// because every enrolled splitter pins the old.
    pub fn load_or_create(dir: &Path, now_us: u64) -> Result<Self, AuthorityError> {
        let key_path = dir.join("ca.key");
        let certificate_path = dir.join("ca.pem");
        if !certificate_path.exists() {
            // The certificate is written last: without it nobody has pinned the key, which may be replaced.
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
            let pem = ca_params(now_us)?.self_signed(&key)?.pem();
            write_private(&key_path, key.serialize_pem().as_bytes())?;
            write_private(&certificate_path, pem.as_bytes())?;
        }
        let pem = data_dir::read_text(&certificate_path)?;
        let key = KeyPair::from_pem(&data_dir::read_text(&key_path)?)
            .map_err(|error| AuthorityError::Damaged(format!("{}: {error}", key_path.display())))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| AuthorityError::Damaged(format!("{}: {error}", certificate_path.display())))?
            .into_owned();
        let belongs = x509_parser::parse_x509_certificate(&der)
            .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data == key.public_key_raw());
        if !belongs {
            return Err(AuthorityError::Damaged("ca.key does not belong to ca.pem".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(&pem, key)?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der).as_ref());
        Ok(Self { issuer, pem, der, sha256 })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the certificate in DER: the pin in every token.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Signs a client certificate for the public key of `csr_pem`. Only the key is taken from the request.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] when the request is malformed, too long or its signature does not verify.
    pub fn sign_client(
        &self,
        csr_pem: &str,
        role: &Role,
        validity: Duration,
        now_us: u64,
    ) -> Result<Issued, AuthorityError> {
        let mut request = parse_csr(csr_pem)?;
        let (params, serial, not_before_us, not_after_us) = client_params(role, validity, now_us)?;
        request.params = params;
        let certificate = request.signed_by(&self.issuer)?;
        Ok(Issued { serial, pem: certificate.pem(), not_before_us, not_after_us })
    }

    /// Makes a key and signs a client certificate for it. Returns the certificate and the key, PEM.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn make_client(
        &self,
        role: &Role,
        validity: Duration,
        now_us: u64,
    ) -> Result<(Issued, String), AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let (params, serial, not_before_us, not_after_us) = client_params(role, validity, now_us)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((Issued { serial, pem: certificate.pem(), not_before_us, not_after_us }, key.serialize_pem()))
    }

    /// Makes a key and signs a server certificate for `names` (host names and addresses).
    /// Returns the certificate (DER), its key (PKCS#8 DER) and the end of validity in microseconds.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate, or the cryptographic library refuses.
    pub fn make_server(
        &self,
        names: &[String],
        validity: Duration,
        now_us: u64,
    ) -> Result<(CertificateDer<'static>, Vec<u8>, u64), AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names.to_vec())?;
        let (_, _, not_after_us) = stamp(&mut params, validity, now_us);
        params.distinguished_name = name("tidemark appliance");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.der().clone(), key.serialize_der(), not_after_us))
    }
}

/// The public key of a certificate request, as raw bytes, after its signature has been verified.
///
/// # Errors
/// [`AuthorityError::Request`] as for signing.
pub fn public_key_of_csr(csr_pem: &str) -> Result<Vec<u8>, AuthorityError> {
    use rcgen::PublicKeyData;
    Ok(parse_csr(csr_pem)?.public_key.der_bytes().to_vec())
}

fn parse_csr(csr_pem: &str) -> Result<CertificateSigningRequestParams, AuthorityError> {
    if csr_pem.len() > CSR_MAX_BYTES {
        return Err(AuthorityError::Request(format!("it has more than {CSR_MAX_BYTES} bytes")));
    }
    CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|error| AuthorityError::Request(error.to_string()))
}

fn ca_params(now_us: u64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    stamp(&mut params, CA_VALIDITY, now_us);
    params.distinguished_name = name("tidemark CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn client_params(
    role: &Role,
    validity: Duration,
    now_us: u64,
) -> Result<(CertificateParams, String, u64, u64), AuthorityError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let (serial, not_before_us, not_after_us) = stamp(&mut params, validity, now_us);
    params.distinguished_name = name(role.word());
    params.subject_alt_names = vec![SanType::URI(role.uri().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok((params, serial, not_before_us, not_after_us))
}

fn name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// Sets a random serial and the validity; returns the serial and both ends.
fn stamp(params: &mut CertificateParams, validity: Duration, now_us: u64) -> (String, u64, u64) {
    let now = Duration::from_micros(now_us);
    let (before, after) = (now.saturating_sub(CLOCK_SKEW), now.saturating_add(validity));
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + before;
    params.not_after = epoch + after;
    // 127 random bits: positive in DER, and never zero in the first byte so that hexadecimal has one length.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let text = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    (text, micros(before), micros(after))
}
