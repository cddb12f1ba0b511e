//! When frames of a VM waited in its guest's spool.

use tidemark_proto::ids::{Lsn, VmId};
use uuid::Uuid;

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};

/// Times kept of each VM; older ones are forgotten.
const KEPT: i64 = 1000;

/// One such time.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct SpoolRow {
    from_lsn: i64,
    from_us: i64,
    to_us: Option<i64>,
}

impl SpoolRow {
    /// The last LSN that was durable when it began.
    #[must_use]
    pub fn from_lsn(&self) -> Lsn {
        Lsn(from_db(self.from_lsn))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn from_us(&self) -> u64 {
        from_db(self.from_us)
    }

    /// Microseconds since 1970; `None` while it goes on.
    #[must_use]
    pub fn to_us(&self) -> Option<u64> {
        self.to_us.map(from_db)
    }
}

impl Catalog {
    /// Frames wait from here on; if they do already, nothing changes.
    ///
    /// # Errors
    /// What the database says.
    pub async fn spool_began(&self, vm: VmId, lsn: Lsn, now_us: u64) -> Result<(), CatalogError> {
        let open = "SELECT from_lsn, from_us, to_us FROM spools WHERE vm_id = $1 AND to_us IS NULL";
        if !fetch_all!(self.pool, SpoolRow, open, vm.to_string())?.is_empty() {
            return Ok(());
        }
        let (id, vm) = (Uuid::new_v4().to_string(), vm.to_string());
        let insert = "INSERT INTO spools (id, vm_id, from_lsn, from_us) VALUES ($1, $2, $3, $4)";
        execute!(self.pool, insert, &id, &vm, to_db(lsn.0), to_db(now_us))?;
        let surplus = "DELETE FROM spools WHERE vm_id = $1 AND id NOT IN \
                       (SELECT id FROM spools WHERE vm_id = $1 ORDER BY from_us DESC LIMIT $2)";
        execute!(self.pool, surplus, &vm, KEPT)?;
        Ok(())
    }

    /// No frame waits any more.
    ///
    /// # Errors
    /// What the database says.
    pub async fn spool_ended(&self, vm: VmId, now_us: u64) -> Result<(), CatalogError> {
        let end = "UPDATE spools SET to_us = $2 WHERE vm_id = $1 AND to_us IS NULL";
        execute!(self.pool, end, vm.to_string(), to_db(now_us))?;
        Ok(())
    }

    /// All that are kept, the oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn spools(&self, vm: VmId) -> Result<Vec<SpoolRow>, CatalogError> {
        let sql = "SELECT from_lsn, from_us, to_us FROM spools WHERE vm_id = $1 ORDER BY from_us";
        Ok(fetch_all!(self.pool, SpoolRow, sql, vm.to_string())?)
    }
}
