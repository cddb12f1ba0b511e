//! Grants to restore a disk. Only the hash of the secret is stored.

use tidemark_proto::ids::{DiskId, Lsn, VmId};

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};

/// A grant's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct GrantRow {
    /// Not secret.
    pub id: String,
    /// Hash of the secret.
    pub secret_hash: String,
    vm_id: String,
    disk: i64,
    lsn: i64,
    time_us: i64,
    size_bytes: i64,
    created_us: i64,
    expires_us: i64,
    revoked_us: Option<i64>,
    used_us: Option<i64>,
}

/// What a grant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantedPoint {
    /// The VM, or clone.
    pub vm: VmId,
    /// The disk.
    pub disk: DiskId,
    /// The point.
    pub lsn: Lsn,
    /// Its time, microseconds since 1970.
    pub time_us: u64,
    /// The disk's size at the point.
    pub size_bytes: u64,
}

/// Whether a grant can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantState {
    /// It can.
    Valid,
    /// An administrator revoked it.
    Revoked,
    /// Its time is over.
    Expired,
}

impl GrantState {
    /// The state in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

impl GrantRow {
    /// A grant to be stored.
    #[must_use]
    pub fn new(id: String, secret_hash: String, of: GrantedPoint, created_us: u64, expires_us: u64) -> Self {
        Self {
            id,
            secret_hash,
            vm_id: of.vm.to_string(),
            disk: i64::from(of.disk.0),
            lsn: to_db(of.lsn.0),
            time_us: to_db(of.time_us),
            size_bytes: to_db(of.size_bytes),
            created_us: to_db(created_us),
            expires_us: to_db(expires_us),
            revoked_us: None,
            used_us: None,
        }
    }

    /// What it is for; `None` if the row was not written by this software.
    #[must_use]
    pub fn of(&self) -> Option<GrantedPoint> {
        Some(GrantedPoint {
            vm: self.vm_id.parse().ok()?,
            disk: DiskId(u32::try_from(self.disk).ok()?),
            lsn: Lsn(from_db(self.lsn)),
            time_us: from_db(self.time_us),
            size_bytes: from_db(self.size_bytes),
        })
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn created_us(&self) -> u64 {
        from_db(self.created_us)
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn expires_us(&self) -> u64 {
        from_db(self.expires_us)
    }

    /// When it was last begun with, microseconds since 1970; 0: never.
    #[must_use]
    pub fn used_us(&self) -> u64 {
        self.used_us.map_or(0, from_db)
    }

    /// Whether it can be used now.
    #[must_use]
    pub fn state(&self, now_us: u64) -> GrantState {
        if self.revoked_us.is_some() {
            GrantState::Revoked
        } else if now_us >= self.expires_us() {
            GrantState::Expired
        } else {
            GrantState::Valid
        }
    }
}

impl Catalog {
    /// Stores a grant, and forgets those that ended more than `keep_us` ago, so that the table stays bounded.
    ///
    /// # Errors
    /// What the database says.
    pub async fn add_grant(&self, grant: &GrantRow, keep_us: u64) -> Result<(), CatalogError> {
        let oldest = from_db(grant.created_us).saturating_sub(keep_us);
        execute!(self.pool, "DELETE FROM grants WHERE expires_us < $1", to_db(oldest))?;
        execute!(
            self.pool,
            "INSERT INTO grants (id, secret_hash, vm_id, disk, lsn, time_us, size_bytes, created_us, expires_us) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &grant.id,
            &grant.secret_hash,
            &grant.vm_id,
            grant.disk,
            grant.lsn,
            grant.time_us,
            grant.size_bytes,
            grant.created_us,
            grant.expires_us,
        )?;
        Ok(())
    }

    /// One grant.
    ///
    /// # Errors
    /// What the database says.
    pub async fn grant(&self, id: &str) -> Result<Option<GrantRow>, CatalogError> {
        Ok(fetch_all!(self.pool, GrantRow, "SELECT * FROM grants WHERE id = $1", id)?.into_iter().next())
    }

    /// All grants, newest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn grants(&self) -> Result<Vec<GrantRow>, CatalogError> {
        Ok(fetch_all!(self.pool, GrantRow, "SELECT * FROM grants ORDER BY created_us DESC, id")?)
    }

    /// Notes that a restore begins with it. Returns whether it was not revoked meanwhile.
    ///
    /// # Errors
    /// What the database says.
    pub async fn use_grant(&self, id: &str, now_us: u64) -> Result<bool, CatalogError> {
        let sql = "UPDATE grants SET used_us = $1 WHERE id = $2 AND revoked_us IS NULL";
        Ok(execute!(self.pool, sql, to_db(now_us), id)? == 1)
    }

    /// Revokes a grant. Returns whether there was one that could be used.
    ///
    /// # Errors
    /// What the database says.
    pub async fn revoke_grant(&self, id: &str, now_us: u64) -> Result<bool, CatalogError> {
        let sql =
            "UPDATE grants SET revoked_us = $1 WHERE id = $2 AND revoked_us IS NULL AND expires_us > $1";
        Ok(execute!(self.pool, sql, to_db(now_us), id)? == 1)
    }
}
