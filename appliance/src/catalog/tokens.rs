//! One-time enrolment tokens. Only the hash of the secret is stored.

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};

/// A token's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct TokenRow {
    /// Not secret.
    pub id: String,
    /// Hash of the secret.
    pub secret_hash: String,
    /// The VM it enrols.
    pub vm_name: String,
    replaces: i64,
    created_us: i64,
    expires_us: i64,
    used_us: Option<i64>,
    revoked_us: Option<i64>,
}

/// Whether a token can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// It can.
    Valid,
    /// It has been.
    Used,
    /// An administrator revoked it.
    Revoked,
    /// Its time is over.
    Expired,
}

impl TokenState {
    /// The state in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Used => "used",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

impl TokenRow {
    /// A token to be stored.
    #[must_use]
    pub fn new(
        id: String,
        secret_hash: String,
        vm_name: String,
        replaces: bool,
        created_us: u64,
        expires_us: u64,
    ) -> Self {
        Self {
            id,
            secret_hash,
            vm_name,
            replaces: i64::from(replaces),
            created_us: to_db(created_us),
            expires_us: to_db(expires_us),
            used_us: None,
            revoked_us: None,
        }
    }

    /// Whether it replaces the credentials of a VM that is enrolled.
    #[must_use]
    pub fn replaces(&self) -> bool {
        self.replaces != 0
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

    /// Whether it can be used now.
    #[must_use]
    pub fn state(&self, now_us: u64) -> TokenState {
        if self.used_us.is_some() {
            TokenState::Used
        } else if self.revoked_us.is_some() {
            TokenState::Revoked
        } else if now_us >= self.expires_us() {
            TokenState::Expired
        } else {
            TokenState::Valid
        }
    }
}

impl Catalog {
    /// Stores a token, and forgets those that ended more than `keep_us` ago, so that the table stays bounded.
    ///
    /// # Errors
    /// What the database says.
    pub async fn add_token(&self, token: &TokenRow, keep_us: u64) -> Result<(), CatalogError> {
        let oldest = from_db(token.created_us).saturating_sub(keep_us);
        execute!(self.pool, "DELETE FROM tokens WHERE expires_us < $1", to_db(oldest))?;
        execute!(
            self.pool,
            "INSERT INTO tokens (id, secret_hash, vm_name, replaces, created_us, expires_us) \
             VALUES ($1, $2, $3, $4, $5, $6)",
            &token.id,
            &token.secret_hash,
            &token.vm_name,
            token.replaces,
            token.created_us,
            token.expires_us,
        )?;
        Ok(())
    }

    /// One token.
    ///
    /// # Errors
    /// What the database says.
    pub async fn token(&self, id: &str) -> Result<Option<TokenRow>, CatalogError> {
        Ok(fetch_all!(self.pool, TokenRow, "SELECT * FROM tokens WHERE id = $1", id)?.into_iter().next())
    }

    /// All tokens, newest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, CatalogError> {
        Ok(fetch_all!(self.pool, TokenRow, "SELECT * FROM tokens ORDER BY created_us DESC, id")?)
    }

    /// Revokes a token that has not been used. Returns whether there was one.
    ///
    /// # Errors
    /// What the database says.
    pub async fn revoke_token(&self, id: &str, now_us: u64) -> Result<bool, CatalogError> {
        let sql =
            "UPDATE tokens SET revoked_us = $1 WHERE id = $2 AND used_us IS NULL AND revoked_us IS NULL";
        Ok(execute!(self.pool, sql, to_db(now_us), id)? == 1)
    }
}
