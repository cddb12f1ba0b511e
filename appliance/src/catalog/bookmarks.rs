//! Bookmarks, copied from the journals' markers.

use tidemark_proto::ids::{Lsn, VmId};

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};

/// A bookmark's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct BookmarkRow {
    /// UUID.
    pub id: String,
    vm_id: String,
    /// Unique per VM.
    pub name: String,
    lsn: i64,
    time_us: i64,
    /// The level achieved.
    pub consistency: String,
}

impl BookmarkRow {
    /// A bookmark to be stored.
    #[must_use]
    pub fn new(id: String, vm: VmId, name: String, lsn: Lsn, time_us: u64, consistency: &str) -> Self {
        let (lsn, time_us) = (to_db(lsn.0), to_db(time_us));
        Self { id, vm_id: vm.to_string(), name, lsn, time_us, consistency: consistency.to_owned() }
    }

    /// The point it names.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        Lsn(from_db(self.lsn))
    }

    /// Appliance time, microseconds since 1970.
    #[must_use]
    pub fn time_us(&self) -> u64 {
        from_db(self.time_us)
    }
}

impl Catalog {
    /// Stores a bookmark; storing the same id again changes nothing.
    ///
    /// # Errors
    /// [`CatalogError::Taken`] when another bookmark of the VM has the name.
    pub async fn add_bookmark(&self, bookmark: &BookmarkRow) -> Result<(), CatalogError> {
        let sql = "INSERT INTO bookmarks (id, vm_id, name, lsn, time_us, consistency, folded) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7) \
                   ON CONFLICT (id) DO NOTHING";
        execute!(
            self.pool,
            sql,
            &bookmark.id,
            &bookmark.vm_id,
            &bookmark.name,
            bookmark.lsn,
            bookmark.time_us,
            &bookmark.consistency,
            bookmark.name.to_lowercase(),
        )
        .map_err(|error| {
            CatalogError::taken(error, || format!("a bookmark named '{}' exists", bookmark.name))
        })?;
        Ok(())
    }

    /// Forgets a bookmark; one that is not there is fine.
    ///
    /// # Errors
    /// What the database says.
    pub async fn remove_bookmark(&self, id: &str) -> Result<(), CatalogError> {
        execute!(self.pool, "DELETE FROM bookmarks WHERE id = $1", id)?;
        Ok(())
    }

    /// All bookmarks of a VM in LSN order.
    ///
    /// # Errors
    /// What the database says.
    pub async fn bookmarks(&self, vm: VmId) -> Result<Vec<BookmarkRow>, CatalogError> {
        let sql = "SELECT * FROM bookmarks WHERE vm_id = $1 ORDER BY lsn, name";
        Ok(fetch_all!(self.pool, BookmarkRow, sql, vm.to_string())?)
    }

    /// One bookmark by name.
    ///
    /// # Errors
    /// What the database says.
    pub async fn bookmark(&self, vm: VmId, name: &str) -> Result<Option<BookmarkRow>, CatalogError> {
        let sql = "SELECT * FROM bookmarks WHERE vm_id = $1 AND name = $2";
        Ok(fetch_all!(self.pool, BookmarkRow, sql, vm.to_string(), name)?.into_iter().next())
    }
}
