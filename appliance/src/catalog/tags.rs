//! Tags of VMs: what searches and, later, sets match on. Only administrators change them.

use tidemark_proto::ids::VmId;

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError};

/// A tag's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct TagRow {
    /// Unique in the VM.
    pub key: String,
    /// Never empty.
    pub value: String,
}

impl Catalog {
    /// Sets a tag of a VM; one of that key is replaced.
    ///
    /// # Errors
    /// What the database says.
    pub async fn set_tag(&self, vm: VmId, key: &str, value: &str) -> Result<(), CatalogError> {
        let sql = "INSERT INTO vm_tags (vm_id, key, value) VALUES ($1, $2, $3) \
                   ON CONFLICT (vm_id, key) DO UPDATE SET value = excluded.value";
        execute!(self.pool, sql, vm.to_string(), key, value)?;
        Ok(())
    }

    /// Removes a tag of a VM. Returns whether it was there.
    ///
    /// # Errors
    /// What the database says.
    pub async fn remove_tag(&self, vm: VmId, key: &str) -> Result<bool, CatalogError> {
        let sql = "DELETE FROM vm_tags WHERE vm_id = $1 AND key = $2";
        Ok(execute!(self.pool, sql, vm.to_string(), key)? == 1)
    }

    /// All tags of a VM, by key.
    ///
    /// # Errors
    /// What the database says.
    pub async fn tags(&self, vm: VmId) -> Result<Vec<TagRow>, CatalogError> {
        let sql = "SELECT key, value FROM vm_tags WHERE vm_id = $1 ORDER BY key";
        Ok(fetch_all!(self.pool, TagRow, sql, vm.to_string())?)
    }
}
