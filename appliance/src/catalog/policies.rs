//! Retention policies, and which VM has which.

use tidemark_proto::ids::VmId;

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, to_db};

/// A policy's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct PolicyRow {
    /// Unique.
    pub name: String,
    /// TOML.
    pub body: String,
}

/// Which policy a VM has.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AssignmentRow {
    vm_id: String,
    /// The policy's name.
    pub policy: String,
}

impl AssignmentRow {
    /// What a VM is given.
    #[must_use]
    pub fn new(vm: VmId, policy: String) -> Self {
        Self { vm_id: vm.to_string(), policy }
    }

    /// Whether it is this VM's.
    #[must_use]
    pub fn is_of(&self, vm: VmId) -> bool {
        self.vm_id == vm.to_string()
    }
}

impl Catalog {
    /// All policies, by name.
    ///
    /// # Errors
    /// What the database says.
    pub async fn policies(&self) -> Result<Vec<PolicyRow>, CatalogError> {
        Ok(fetch_all!(self.pool, PolicyRow, "SELECT name, body FROM policies ORDER BY name")?)
    }

    /// Stores a policy, or replaces the one of that name.
    ///
    /// # Errors
    /// What the database says.
    pub async fn put_policy(&self, name: &str, body: &str, now_us: u64) -> Result<(), CatalogError> {
        let sql = "INSERT INTO policies (name, body, updated_us) VALUES ($1, $2, $3) \
                   ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_us = excluded.updated_us";
        execute!(self.pool, sql, name, body, to_db(now_us))?;
        Ok(())
    }

    /// All assignments.
    ///
    /// # Errors
    /// What the database says.
    pub async fn assignments(&self) -> Result<Vec<AssignmentRow>, CatalogError> {
        Ok(fetch_all!(self.pool, AssignmentRow, "SELECT vm_id, policy FROM policy_assignments")?)
    }

    /// Gives a VM a policy.
    ///
    /// # Errors
    /// What the database says.
    pub async fn assign_policy(&self, vm: VmId, policy: &str) -> Result<(), CatalogError> {
        let sql = "INSERT INTO policy_assignments (vm_id, policy) VALUES ($1, $2) \
                   ON CONFLICT (vm_id) DO UPDATE SET policy = excluded.policy";
        execute!(self.pool, sql, vm.to_string(), policy)?;
        Ok(())
    }

    /// Takes back what policy a VM or clone was given; none is fine.
    ///
    /// # Errors
    /// What the database says.
    pub async fn unassign_policy(&self, vm: VmId) -> Result<(), CatalogError> {
        execute!(self.pool, "DELETE FROM policy_assignments WHERE vm_id = $1", vm.to_string())?;
        Ok(())
    }
}
