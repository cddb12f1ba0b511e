//! Issued and revoked certificates.

use tidemark_proto::ids::VmId;

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, NewCertificate, from_db, to_db};

/// A certificate's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct CertificateRow {
    /// Hexadecimal serial number.
    pub serial: String,
    /// "vm", "admin" or "person".
    pub role: String,
    vm_id: Option<String>,
    /// Name of the VM, the administrator or the person.
    pub subject: String,
    issued_us: i64,
    not_after_us: i64,
    revoked_us: Option<i64>,
}

impl CertificateRow {
    /// The VM whose splitter holds it.
    #[must_use]
    pub fn vm(&self) -> Option<VmId> {
        self.vm_id.as_deref()?.parse().ok()
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn issued_us(&self) -> u64 {
        from_db(self.issued_us)
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn not_after_us(&self) -> u64 {
        from_db(self.not_after_us)
    }

    /// Whether it has been revoked.
    #[must_use]
    pub fn revoked(&self) -> bool {
        self.revoked_us.is_some()
    }
}

impl Catalog {
    /// Lists a certificate as issued: from then on it is accepted.
    ///
    /// # Errors
    /// What the database says.
    pub async fn add_certificate(&self, certificate: &NewCertificate) -> Result<(), CatalogError> {
        execute!(
            self.pool,
            "INSERT INTO certificates (serial, role, vm_id, subject, issued_us, not_after_us) \
             VALUES ($1, $2, $3, $4, $5, $6)",
            &certificate.serial,
            certificate.role,
            certificate.vm.map(|vm| vm.to_string()),
            &certificate.subject,
            to_db(certificate.issued_us),
            to_db(certificate.not_after_us),
        )?;
        Ok(())
    }

    /// All certificates, newest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn certificates(&self) -> Result<Vec<CertificateRow>, CatalogError> {
        let sql = "SELECT * FROM certificates ORDER BY issued_us DESC, serial";
        Ok(fetch_all!(self.pool, CertificateRow, sql)?)
    }

    /// Revokes a certificate. Returns whether it was listed.
    ///
    /// # Errors
    /// What the database says.
    pub async fn revoke_certificate(&self, serial: &str, now_us: u64) -> Result<bool, CatalogError> {
        let sql = "UPDATE certificates SET revoked_us = COALESCE(revoked_us, $1) WHERE serial = $2";
        Ok(execute!(self.pool, sql, to_db(now_us), serial)? == 1)
    }

    /// Forgets certificates that expired before `before_us`: TLS refuses them by their date. Keeps the table bounded.
    ///
    /// # Errors
    /// What the database says.
    pub async fn forget_expired_certificates(&self, before_us: u64) -> Result<u64, CatalogError> {
        Ok(execute!(self.pool, "DELETE FROM certificates WHERE not_after_us < $1", to_db(before_us))?)
    }
}
