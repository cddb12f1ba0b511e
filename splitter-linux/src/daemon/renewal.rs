//! Renewal of the splitter's certificate, long before it expires.

use anyhow::{Context as _, Result, anyhow};
use rcgen::KeyPair;
use tidemark_proto::v1::RenewRequest;
use tidemark_proto::v1::splitter_client::SplitterClient;
use tonic::transport::Channel;
use x509_parser::pem::parse_x509_pem;

use crate::enrol::request_for;
use crate::state::StateDir;

/// Part of the validity (one in this many) that may remain before a certificate is renewed: ten days of thirty are
/// enough to mend an appliance that was away.
const RENEW_AT_REMAINING: i64 = 3;

/// Renews the certificate when it is due. The new one counts from the next connection on.
///
/// # Errors
/// When the stored certificate is damaged, the appliance refuses or the result cannot be stored.
pub(super) async fn renew_if_due(state: &StateDir, channel: Channel) -> Result<()> {
    let (certificate, _) = state.credentials()?;
    if !due(&certificate, now_seconds())? {
        return Ok(());
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
    let csr_pem = request_for(&key).context("cannot make a certificate request")?;
    let reply = SplitterClient::new(channel)
        .renew(RenewRequest { csr_pem })
        .await
        .map_err(|status| anyhow!("the appliance refused: {}", status.message()))?
        .into_inner();
    state.store_credentials(&reply.certificate_pem, &key.serialize_pem())?;
    tracing::info!("certificate renewed");
    Ok(())
}

fn now_seconds() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn due(certificate_pem: &str, now: i64) -> Result<bool> {
    let (_, pem) = parse_x509_pem(certificate_pem.as_bytes()).context("the stored certificate is damaged")?;
    let certificate = pem.parse_x509().context("the stored certificate is damaged")?;
    let (from, until) =
        (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    Ok(until.saturating_sub(now) <= until.saturating_sub(from) / RENEW_AT_REMAINING)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, date_time_ymd};

    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_its_last_third_and_not_before() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 1, 31);
        let pem = params.self_signed(&key).unwrap().pem();
        let day = 86_400;
        let start = params.not_before.unix_timestamp();
        assert!(!due(&pem, start + 19 * day).unwrap());
        assert!(due(&pem, start + 20 * day).unwrap());
        assert!(due(&pem, start + 40 * day).unwrap());
        assert!(due("not a certificate", start).is_err());
    }
}
