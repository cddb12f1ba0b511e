//! Consistency sets: their rules, who was in them when they were last looked at, and who came and went.

use tidemark_proto::ids::VmId;
use uuid::Uuid;

use super::pool::{execute, fetch_all, transaction};
use super::{Catalog, CatalogError, from_db, to_db};

/// Changes kept of each set; older ones are forgotten.
const CHANGES_KEPT: i64 = 1000;

/// A set's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct SetRow {
    /// Unique.
    pub name: String,
    rules: String,
    policy: String,
    created_us: i64,
    every_us: i64,
    hold: String,
    hooks: String,
}

/// How points of a set are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointing {
    /// Microseconds between automatic points; 0 for none.
    pub every_us: u64,
    /// `free`, `freeze` or `clock`.
    pub hold: String,
    /// Patterns of members' names, in which order freeze hooks run.
    pub order: Vec<String>,
}

impl SetRow {
    /// A set to be stored.
    #[must_use]
    pub fn new(name: String, rules: &[String], policy: String, created_us: u64, pointing: &Pointing) -> Self {
        Self {
            name,
            rules: serde_json::json!(rules).to_string(),
            policy,
            created_us: to_db(created_us),
            every_us: to_db(pointing.every_us),
            hold: pointing.hold.clone(),
            hooks: serde_json::json!(pointing.order).to_string(),
        }
    }

    /// How its points are taken.
    #[must_use]
    pub fn pointing(&self) -> Pointing {
        Pointing {
            every_us: from_db(self.every_us),
            hold: self.hold.clone(),
            order: serde_json::from_str(&self.hooks).unwrap_or_default(),
        }
    }

    /// Its rules as they were written.
    #[must_use]
    pub fn rules(&self) -> Vec<String> {
        serde_json::from_str(&self.rules).unwrap_or_default()
    }

    /// The retention policy of its members.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        Some(self.policy.as_str()).filter(|policy| !policy.is_empty())
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn created_us(&self) -> u64 {
        from_db(self.created_us)
    }
}

/// Who was in a set.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct MemberRow {
    /// The set.
    pub set_name: String,
    vm_id: String,
    /// The VM's name then.
    pub vm_name: String,
    since_us: i64,
}

impl MemberRow {
    /// The VM; `None` if the row was not written by this software.
    #[must_use]
    pub fn vm(&self) -> Option<VmId> {
        self.vm_id.parse().ok()
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn since_us(&self) -> u64 {
        from_db(self.since_us)
    }
}

/// A VM joined a set or left it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ChangeRow {
    id: String,
    /// The set.
    pub set_name: String,
    /// The VM's name then.
    pub vm_name: String,
    at_us: i64,
    joined: i64,
    /// Why.
    pub cause: String,
}

impl ChangeRow {
    /// A change to be stored.
    #[must_use]
    pub fn new(set_name: &str, vm_name: &str, at_us: u64, joined: bool, cause: &str) -> Self {
        Self {
            id: Uuid::new_v4().to_string(),
            set_name: set_name.to_owned(),
            vm_name: vm_name.to_owned(),
            at_us: to_db(at_us),
            joined: i64::from(joined),
            cause: cause.to_owned(),
        }
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn at_us(&self) -> u64 {
        from_db(self.at_us)
    }

    /// Whether it joined; otherwise it left.
    #[must_use]
    pub fn joined(&self) -> bool {
        self.joined != 0
    }
}

/// A tag of some VM.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct VmTagRow {
    vm_id: String,
    /// Unique in the VM.
    pub key: String,
    /// Never empty.
    pub value: String,
}

impl VmTagRow {
    /// The VM; `None` if the row was not written by this software.
    #[must_use]
    pub fn vm(&self) -> Option<VmId> {
        self.vm_id.parse().ok()
    }
}

impl Catalog {
    /// Stores a set, or replaces the rules, the policy and the pointing of the one of that name.
    ///
    /// # Errors
    /// What the database says.
    pub async fn put_set(&self, set: &SetRow) -> Result<(), CatalogError> {
        let sql = "INSERT INTO sets (name, rules, policy, created_us, every_us, hold, hooks) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7) \
                   ON CONFLICT (name) DO UPDATE SET rules = excluded.rules, policy = excluded.policy, \
                   every_us = excluded.every_us, hold = excluded.hold, hooks = excluded.hooks";
        execute!(
            self.pool,
            sql,
            &set.name,
            &set.rules,
            &set.policy,
            set.created_us,
            set.every_us,
            &set.hold,
            &set.hooks
        )?;
        Ok(())
    }

    /// All sets, the oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn sets(&self) -> Result<Vec<SetRow>, CatalogError> {
        Ok(fetch_all!(self.pool, SetRow, "SELECT * FROM sets ORDER BY created_us, name")?)
    }

    /// Forgets a set and all rights to it; its history stays. Returns whether there was one.
    ///
    /// # Errors
    /// What the database says.
    pub async fn remove_set(&self, name: &str) -> Result<bool, CatalogError> {
        let removed = transaction!(self.pool, tx, {
            // No name is that of rights to VMs.
            let sql = "DELETE FROM rights WHERE set_name = $1 AND set_name <> ''";
            sqlx::query(sql).bind(name).execute(&mut *tx).await?;
            let done = sqlx::query("DELETE FROM sets WHERE name = $1").bind(name).execute(&mut *tx).await?;
            done.rows_affected()
        });
        Ok(removed == 1)
    }

    /// Who was in which set when they were last looked at.
    ///
    /// # Errors
    /// What the database says.
    pub async fn set_members(&self) -> Result<Vec<MemberRow>, CatalogError> {
        Ok(fetch_all!(self.pool, MemberRow, "SELECT * FROM set_members ORDER BY set_name, vm_name")?)
    }

    /// Notes that a VM joined or left a set, and that it is there now or not.
    ///
    /// # Errors
    /// What the database says.
    pub async fn change_member(&self, vm: VmId, change: &ChangeRow) -> Result<(), CatalogError> {
        transaction!(self.pool, tx, {
            let (set, vm) = (&change.set_name, vm.to_string());
            if change.joined() {
                let sql = "INSERT INTO set_members (set_name, vm_id, vm_name, since_us) VALUES ($1, $2, $3, $4) \
                           ON CONFLICT (set_name, vm_id) DO NOTHING";
                sqlx::query(sql)
                    .bind(set)
                    .bind(&vm)
                    .bind(&change.vm_name)
                    .bind(change.at_us)
                    .execute(&mut *tx)
                    .await?;
            } else {
                let sql = "DELETE FROM set_members WHERE set_name = $1 AND vm_id = $2";
                sqlx::query(sql).bind(set).bind(&vm).execute(&mut *tx).await?;
            }
            let sql = "INSERT INTO set_changes (id, set_name, vm_name, at_us, joined, cause) \
                       VALUES ($1, $2, $3, $4, $5, $6)";
            sqlx::query(sql)
                .bind(&change.id)
                .bind(set)
                .bind(&change.vm_name)
                .bind(change.at_us)
                .bind(change.joined)
                .bind(&change.cause)
                .execute(&mut *tx)
                .await?;
            let sql = "DELETE FROM set_changes WHERE set_name = $1 AND id NOT IN \
                       (SELECT id FROM set_changes WHERE set_name = $1 ORDER BY at_us DESC, id LIMIT $2)";
            sqlx::query(sql).bind(set).bind(CHANGES_KEPT).execute(&mut *tx).await?;
        });
        Ok(())
    }

    /// Who came to a set and left it, the newest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn set_changes(&self, set: &str, limit: u32) -> Result<Vec<ChangeRow>, CatalogError> {
        let sql = "SELECT * FROM set_changes WHERE set_name = $1 ORDER BY at_us DESC, id LIMIT $2";
        Ok(fetch_all!(self.pool, ChangeRow, sql, set, i64::from(limit))?)
    }

    /// The tags of all VMs.
    ///
    /// # Errors
    /// What the database says.
    pub async fn all_tags(&self) -> Result<Vec<VmTagRow>, CatalogError> {
        Ok(fetch_all!(self.pool, VmTagRow, "SELECT vm_id, key, value FROM vm_tags ORDER BY vm_id, key")?)
    }
}
