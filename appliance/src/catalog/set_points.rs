//! Points of consistency sets.

use serde::{Deserialize, Serialize};
use tidemark_proto::ids::{Lsn, VmId};
use uuid::Uuid;

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};

/// A member's place in a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointMemberRow {
    /// The VM's id.
    pub vm: String,
    /// The VM's name then.
    pub name: String,
    /// Its LSN.
    pub lsn: u64,
    /// Appliance time of that, microseconds since 1970.
    pub time_us: u64,
    /// `gate`, `suspend`, `freeze` or `clock`.
    pub method: String,
    /// The level achieved.
    pub consistency: String,
    /// How long its writers were held, microseconds.
    pub hold_us: u64,
    /// By how much its clock may have been wrong, microseconds; 0 if it was held.
    pub error_us: u64,
    /// Why it was not held, or why its level is lower than was asked for.
    pub reason: String,
}

impl PointMemberRow {
    /// The VM; `None` if the row was not written by this software.
    #[must_use]
    pub fn vm(&self) -> Option<VmId> {
        self.vm.parse().ok()
    }

    /// Its point.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        Lsn(self.lsn)
    }
}

/// A member that is not in a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRow {
    /// The VM's id.
    pub vm: String,
    /// The VM's name then.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What a point is, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSetPoint {
    /// The set.
    pub set: String,
    /// Of a bookmark; empty for an automatic point.
    pub name: String,
    /// Appliance time, microseconds since 1970.
    pub time_us: u64,
    /// The lowest level of its members.
    pub consistency: &'static str,
    /// `barrier`, `mixed` or `clock`.
    pub cut: &'static str,
    /// The longest hold of its members, microseconds.
    pub hold_us: u64,
    /// How far two members may be apart, microseconds.
    pub bound_us: u64,
    /// Who is in it.
    pub members: Vec<PointMemberRow>,
    /// Who is not.
    pub missing: Vec<MissingRow>,
}

/// A point's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct SetPointRow {
    /// UUID.
    pub id: String,
    /// The set.
    pub set_name: String,
    /// Of a bookmark; empty for an automatic point.
    pub name: String,
    time_us: i64,
    /// `automatic` or `bookmark`.
    pub kind: String,
    /// The lowest level of its members.
    pub consistency: String,
    /// `barrier`, `mixed` or `clock`.
    pub cut: String,
    hold_us: i64,
    bound_us: i64,
    members: String,
    missing: String,
}

impl SetPointRow {
    /// A point to be stored.
    #[must_use]
    pub fn new(point: NewSetPoint) -> Self {
        let kind = if point.name.is_empty() { "automatic" } else { "bookmark" };
        Self {
            id: Uuid::new_v4().to_string(),
            set_name: point.set,
            name: point.name,
            time_us: to_db(point.time_us),
            kind: kind.to_owned(),
            consistency: point.consistency.to_owned(),
            cut: point.cut.to_owned(),
            hold_us: to_db(point.hold_us),
            bound_us: to_db(point.bound_us),
            members: serde_json::json!(point.members).to_string(),
            missing: serde_json::json!(point.missing).to_string(),
        }
    }

    /// Appliance time, microseconds since 1970.
    #[must_use]
    pub fn time_us(&self) -> u64 {
        from_db(self.time_us)
    }

    /// The longest hold of its members, microseconds.
    #[must_use]
    pub fn hold_us(&self) -> u64 {
        from_db(self.hold_us)
    }

    /// How far two members may be apart, microseconds.
    #[must_use]
    pub fn bound_us(&self) -> u64 {
        from_db(self.bound_us)
    }

    /// Who is in it.
    #[must_use]
    pub fn members(&self) -> Vec<PointMemberRow> {
        serde_json::from_str(&self.members).unwrap_or_default()
    }

    /// Who is not.
    #[must_use]
    pub fn missing(&self) -> Vec<MissingRow> {
        serde_json::from_str(&self.missing).unwrap_or_default()
    }
}

impl Catalog {
    /// Stores a point.
    ///
    /// # Errors
    /// [`CatalogError::Taken`] when another bookmark of the set has the name.
    pub async fn add_set_point(&self, point: &SetPointRow) -> Result<(), CatalogError> {
        let sql = "INSERT INTO set_points \
                   (id, set_name, name, time_us, kind, consistency, cut, hold_us, bound_us, members, missing) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
        execute!(
            self.pool,
            sql,
            &point.id,
            &point.set_name,
            &point.name,
            point.time_us,
            &point.kind,
            &point.consistency,
            &point.cut,
            point.hold_us,
            point.bound_us,
            &point.members,
            &point.missing,
        )
        .map_err(|error| {
            let text =
                || format!("a bookmark named '{}' exists for the set '{}'", point.name, point.set_name);
            CatalogError::taken(error, text)
        })?;
        Ok(())
    }

    /// The newest points of a set between two times, both inside, the newest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn set_points(
        &self,
        set: &str,
        from_us: u64,
        to_us: u64,
        limit: u32,
    ) -> Result<Vec<SetPointRow>, CatalogError> {
        let sql = "SELECT * FROM set_points WHERE set_name = $1 AND time_us >= $2 AND time_us <= $3 \
                   ORDER BY time_us DESC, id LIMIT $4";
        let limit = i64::from(limit);
        Ok(fetch_all!(self.pool, SetPointRow, sql, set, to_db(from_us), to_db(to_us), limit)?)
    }

    /// One bookmark of a set by name.
    ///
    /// # Errors
    /// What the database says.
    pub async fn set_bookmark(&self, set: &str, name: &str) -> Result<Option<SetPointRow>, CatalogError> {
        let sql = "SELECT * FROM set_points WHERE set_name = $1 AND name = $2 AND name <> ''";
        Ok(fetch_all!(self.pool, SetPointRow, sql, set, name)?.into_iter().next())
    }

    /// The oldest automatic points of a set.
    ///
    /// # Errors
    /// What the database says.
    pub async fn oldest_set_points(&self, set: &str, limit: u32) -> Result<Vec<SetPointRow>, CatalogError> {
        let sql = "SELECT * FROM set_points WHERE set_name = $1 AND kind = 'automatic' \
                   ORDER BY time_us, id LIMIT $2";
        Ok(fetch_all!(self.pool, SetPointRow, sql, set, i64::from(limit))?)
    }

    /// Forgets a point; one that is not there is fine.
    ///
    /// # Errors
    /// What the database says.
    pub async fn remove_set_point(&self, id: &str) -> Result<(), CatalogError> {
        execute!(self.pool, "DELETE FROM set_points WHERE id = $1", id)?;
        Ok(())
    }

    /// Forgets the oldest automatic points of a set beyond so many. Returns how many went.
    ///
    /// # Errors
    /// What the database says.
    pub async fn cap_set_points(&self, set: &str, keep: u32) -> Result<u64, CatalogError> {
        let sql = "DELETE FROM set_points WHERE set_name = $1 AND kind = 'automatic' AND id NOT IN \
                   (SELECT id FROM set_points WHERE set_name = $1 AND kind = 'automatic' \
                   ORDER BY time_us DESC, id LIMIT $2)";
        Ok(execute!(self.pool, sql, set, i64::from(keep))?)
    }

    /// Forgets all points of a set. Returns how many there were.
    ///
    /// # Errors
    /// What the database says.
    pub async fn remove_set_points(&self, set: &str) -> Result<u64, CatalogError> {
        Ok(execute!(self.pool, "DELETE FROM set_points WHERE set_name = $1", set)?)
    }
}
