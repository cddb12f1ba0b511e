//! Renewal of the administrator's certificate, long before it expires.
//!
//! Whoever uses the console now and then never has to think of it. It is done beside the command that was asked for: a
//! failure is a line on standard error, and the command goes on.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tidemark_proto::v1::AdminRenewRequest;
use tokio::time::timeout;
use x509_parser::pem::parse_x509_pem;

use crate::appliance::{Client, refused};
use crate::context::Context;
use crate::output;

/// Part of the validity (one in this many) that may remain before a certificate is renewed: four months of a year are
/// enough for somebody who comes by seldom.
const RENEW_AT_REMAINING: i64 = 3;
/// How long the command that was asked for waits for a renewal. Beyond it the next command tries again.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Renews the context's certificate when it is due, and says on standard error when that fails.
pub(crate) async fn renew_if_due(client: &Client, context: &Context) {
    // A certificate that this cannot read is the connection's business: it has just been accepted.
    if !due(&context.certificate_pem, now_seconds()).unwrap_or(false) {
        return;
    }
    if let Err(error) = renew(client, context).await {
        output::warning(&format!("your certificate expires within months and cannot be renewed: {error:#}"));
    }
}

async fn renew(client: &Client, context: &Context) -> Result<()> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")?;
    // The appliance takes nothing but the key from a request; who this is it knows from the connection.
    let request = CertificateParams::default().serialize_request(&key).context("make a request")?;
    let csr_pem = request.pem().context("make a request")?;
    let mut client = client.clone();
    let reply = timeout(RENEW_TIMEOUT, client.renew_admin(AdminRenewRequest { csr_pem }))
        .await
        .map_err(|_| anyhow!("the appliance did not answer in time; the next command tries again"))?
        .map_err(|status| refused(&status))?
        .into_inner();
    if due(&reply.certificate_pem, now_seconds())? {
        return Err(anyhow!("the appliance's certificate is no newer: compare the clocks of both machines"));
    }
    store(&context.path, &reply.certificate_pem, &key.serialize_pem())
        .with_context(|| format!("write {}", context.path.display()))
}

/// Puts a new pair of certificate and key into the context. Everything else in the file stays, its owner too; whoever
/// reads it meanwhile finds the old pair or the new one.
fn store(path: &Path, certificate_pem: &str, key_pem: &str) -> Result<()> {
    // A link stays a link: what it points to is replaced.
    let path = path.canonicalize()?;
    let mut table: toml::Table = toml::from_str(&fs::read_to_string(&path)?)
        .map_err(|error| anyhow!("{}", error.message().replace('\n', " ")))?;
    table.insert("certificate_pem".to_owned(), certificate_pem.into());
    table.insert("key_pem".to_owned(), key_pem.into());
    let folder = path.parent().context("a file lies in a folder")?;
    // Its mode is 0600 from the beginning.
    let mut new = tempfile::Builder::new().prefix(".context-").tempfile_in(folder)?;
    new.write_all(toml::to_string(&table)?.as_bytes())?;
    let (old, now) = (fs::metadata(&path)?, new.as_file().metadata()?);
    if (old.uid(), old.gid()) != (now.uid(), now.gid()) {
        chown(new.path(), Some(old.uid()), Some(old.gid()))?;
    }
    new.as_file().sync_all()?;
    new.persist(&path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

fn now_seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Whether a third of the validity or less is left at `now`, in seconds since 1970.
fn due(certificate_pem: &str, now: i64) -> Result<bool> {
    let (_, pem) = parse_x509_pem(certificate_pem.as_bytes()).context("the certificate is damaged")?;
    let certificate = pem.parse_x509().context("the certificate is damaged")?;
    let (from, until) =
        (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    Ok(until.saturating_sub(now) <= until.saturating_sub(from) / RENEW_AT_REMAINING)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::date_time_ymd;

    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_its_last_third_and_not_before() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 12, 27);
        let pem = params.self_signed(&key).unwrap().pem();
        let (day, start) = (86_400, params.not_before.unix_timestamp());
        assert!(!due(&pem, start + 239 * day).unwrap());
        assert!(due(&pem, start + 240 * day).unwrap());
        assert!(due("not a certificate", start).is_err());
    }

    #[test]
    fn a_stored_pair_replaces_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("real"), folder.path().join("context"));
        fs::write(&path, "address='a:1'\nca_pem='c'\ncertificate_pem='old'\nkey_pem='old'\nlater='kept'\n")
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        store(&link, "new certificate\nof two lines\n", "new key").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let table: toml::Table = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let field = |name: &str| table[name].as_str().unwrap().to_owned();
        assert_eq!(field("certificate_pem"), "new certificate\nof two lines\n");
        assert_eq!((field("key_pem"), field("later")), ("new key".to_owned(), "kept".to_owned()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }
}
