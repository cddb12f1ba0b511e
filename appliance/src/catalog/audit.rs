//! The audit trail: who did what to what.

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};

/// An entry of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AuditEntry {
    at_us: i64,
    /// The role that acted, or "appliance".
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub target: String,
    /// More, for people.
    pub detail: String,
}

impl AuditEntry {
    /// Microseconds since 1970.
    #[must_use]
    pub fn at_us(&self) -> u64 {
        from_db(self.at_us)
    }
}

/// Entries that one call of [`Catalog::audit_trail`] gives at most.
const AUDIT_PAGE: i64 = 1000;

impl Catalog {
    /// Appends to the audit trail.
    ///
    /// # Errors
    /// What the database says.
    pub async fn audit(
        &self,
        at_us: u64,
        actor: &str,
        action: &str,
        target: &str,
        detail: &str,
    ) -> Result<(), CatalogError> {
        execute!(
            self.pool,
            "INSERT INTO audit (id, at_us, actor, action, target, detail) VALUES ($1, $2, $3, $4, $5, $6)",
            uuid::Uuid::new_v4().to_string(),
            to_db(at_us),
            actor,
            action,
            target,
            detail,
        )?;
        Ok(())
    }

    /// The newest entries, newest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn audit_trail(&self) -> Result<Vec<AuditEntry>, CatalogError> {
        let sql = "SELECT at_us, actor, action, target, detail FROM audit ORDER BY at_us DESC, id LIMIT $1";
        Ok(fetch_all!(self.pool, AuditEntry, sql, AUDIT_PAGE)?)
    }
}
