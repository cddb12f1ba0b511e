//! What persons may do who are no administrators.

use tidemark_proto::ids::VmId;

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};

/// A right's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct RightRow {
    /// Who has it.
    pub person: String,
    /// `bookmark`, `recover` or `mount`.
    pub word: String,
    set_name: String,
    vm_id: String,
    granted_us: i64,
    /// The role that granted it.
    pub granted_by: String,
}

impl RightRow {
    /// A right of a set.
    #[must_use]
    pub fn of_set(person: &str, word: &str, set: &str, granted_us: u64, granted_by: String) -> Self {
        Self {
            person: person.to_owned(),
            word: word.to_owned(),
            set_name: set.to_owned(),
            vm_id: String::new(),
            granted_us: to_db(granted_us),
            granted_by,
        }
    }

    /// A right of a VM.
    #[must_use]
    pub fn of_vm(person: &str, word: &str, vm: VmId, granted_us: u64, granted_by: String) -> Self {
        Self {
            set_name: String::new(),
            vm_id: vm.to_string(),
            ..Self::of_set(person, word, "", granted_us, granted_by)
        }
    }

    /// The set that it is of.
    #[must_use]
    pub fn set(&self) -> Option<&str> {
        Some(self.set_name.as_str()).filter(|name| !name.is_empty())
    }

    /// The VM that it is of.
    #[must_use]
    pub fn vm(&self) -> Option<VmId> {
        self.vm_id.parse().ok()
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn granted_us(&self) -> u64 {
        from_db(self.granted_us)
    }
}

impl Catalog {
    /// Stores a right. Returns whether it is new.
    ///
    /// # Errors
    /// What the database says.
    pub async fn grant_right(&self, right: &RightRow) -> Result<bool, CatalogError> {
        let sql = "INSERT INTO rights (person, word, set_name, vm_id, granted_us, granted_by) \
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (person, word, set_name, vm_id) DO NOTHING";
        let rows = execute!(
            self.pool,
            sql,
            &right.person,
            &right.word,
            &right.set_name,
            &right.vm_id,
            right.granted_us,
            &right.granted_by,
        )?;
        Ok(rows == 1)
    }

    /// Forgets a right. Returns whether there was one.
    ///
    /// # Errors
    /// What the database says.
    pub async fn revoke_right(&self, right: &RightRow) -> Result<bool, CatalogError> {
        let sql = "DELETE FROM rights WHERE person = $1 AND word = $2 AND set_name = $3 AND vm_id = $4";
        Ok(execute!(self.pool, sql, &right.person, &right.word, &right.set_name, &right.vm_id)? == 1)
    }

    /// All rights, by person.
    ///
    /// # Errors
    /// What the database says.
    pub async fn rights(&self) -> Result<Vec<RightRow>, CatalogError> {
        let sql = "SELECT * FROM rights ORDER BY person, set_name, vm_id, word";
        Ok(fetch_all!(self.pool, RightRow, sql)?)
    }

    /// The rights of one person.
    ///
    /// # Errors
    /// What the database says.
    pub async fn rights_of(&self, person: &str) -> Result<Vec<RightRow>, CatalogError> {
        let sql = "SELECT * FROM rights WHERE person = $1 ORDER BY set_name, vm_id, word";
        Ok(fetch_all!(self.pool, RightRow, sql, person)?)
    }

    /// Forgets the rights of a set, so that one of its name that comes later is nobody's.
    ///
    /// # Errors
    /// What the database says.
    pub async fn forget_rights_of_set(&self, set: &str) -> Result<u64, CatalogError> {
        Ok(execute!(self.pool, "DELETE FROM rights WHERE set_name = $1 AND set_name <> ''", set)?)
    }

    /// Forgets the rights of a VM or clone.
    ///
    /// # Errors
    /// What the database says.
    pub async fn forget_rights_of_vm(&self, vm: VmId) -> Result<u64, CatalogError> {
        Ok(execute!(self.pool, "DELETE FROM rights WHERE vm_id = $1", vm.to_string())?)
    }
}
