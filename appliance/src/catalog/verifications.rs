//! Verifies: those that run, for the next start, and the last outcomes of each VM.

use tidemark_proto::ids::{DiskId, Lsn, VmId};

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};
use crate::fleet::{JobState, VerifiedDisk, VerifyJob};
use crate::recovery::Verified;

/// Verifies kept of each VM; older ones are forgotten. A forgotten one makes doubt reach back further, never less.
const KEPT_MAX: i64 = 100;

/// Verifies in one answer at most; older ones are left out.
const LISTED_MAX: i64 = 1000;

/// A verify's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct VerifyRow {
    /// A UUID.
    pub id: String,
    vm_id: String,
    disks: String,
    begun_us: i64,
    ended_us: i64,
    end_lsn: i64,
    state: String,
    reason: String,
    results: String,
}

impl VerifyRow {
    /// Whose disks.
    #[must_use]
    pub fn vm(&self) -> Option<VmId> {
        self.vm_id.parse().ok()
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> VerifyJob {
        VerifyJob {
            id: self.id.clone(),
            disks: self.disks.split(',').filter_map(|disk| disk.parse().ok()).collect(),
            begun_us: from_db(self.begun_us),
            ended_us: from_db(self.ended_us),
            end_lsn: Lsn(from_db(self.end_lsn)),
            state: JobState::from_word(&self.state),
            reason: self.reason.clone(),
            // What another version wrote says nothing, which makes doubt reach back further.
            results: serde_json::from_str(&self.results).unwrap_or_default(),
        }
    }

    /// The disks that it compared to the end.
    #[must_use]
    pub fn verified(&self) -> Vec<Verified> {
        let job = self.job();
        let whole = |disk: &&VerifiedDisk| job.state == JobState::Done && disk.skipped_bytes == 0;
        let verified = |disk: &VerifiedDisk| Verified {
            disk: DiskId(disk.disk),
            begin: Lsn(disk.begin_lsn),
            end: job.end_lsn,
        };
        job.results.iter().filter(whole).map(verified).collect()
    }
}

/// A query for whole rows.
macro_rules! rows {
    ($which:literal) => {
        concat!(
            "SELECT id, vm_id, disks, begun_us, ended_us, end_lsn, state, reason, results FROM verifications ",
            $which
        )
    };
}

impl Catalog {
    /// Keeps a verify that begins, and forgets the VM's oldest.
    ///
    /// # Errors
    /// What the database says.
    pub async fn begin_verify(&self, vm: VmId, job: &VerifyJob) -> Result<(), CatalogError> {
        let disks: Vec<String> = job.disks.iter().map(ToString::to_string).collect();
        let sql = "INSERT INTO verifications \
                   (id, vm_id, disks, begun_us, ended_us, end_lsn, state, reason, results, differing_bytes) \
                   VALUES ($1, $2, $3, $4, 0, 0, $5, '', '[]', 0)";
        let begun_us = to_db(job.begun_us);
        execute!(self.pool, sql, &job.id, vm.to_string(), disks.join(","), begun_us, job.state.word())?;
        let sql = "DELETE FROM verifications WHERE vm_id = $1 AND state <> 'running' AND id NOT IN \
                   (SELECT id FROM verifications WHERE vm_id = $1 ORDER BY begun_us DESC LIMIT $2)";
        execute!(self.pool, sql, vm.to_string(), KEPT_MAX)?;
        Ok(())
    }

    /// Keeps the outcome of a verify.
    ///
    /// # Errors
    /// What the database says.
    pub async fn end_verify(&self, job: &VerifyJob) -> Result<(), CatalogError> {
        let results = serde_json::to_string(&job.results).unwrap_or_default();
        let sql = "UPDATE verifications SET ended_us = $2, end_lsn = $3, state = $4, reason = $5, results = $6, \
                   differing_bytes = $7 WHERE id = $1";
        let (ended_us, end_lsn) = (to_db(job.ended_us), to_db(job.end_lsn.0));
        let differing_bytes = to_db(job.differing_bytes());
        let word = job.state.word();
        execute!(self.pool, sql, &job.id, ended_us, end_lsn, word, &job.reason, results, differing_bytes)?;
        Ok(())
    }

    /// Those that have not ended.
    ///
    /// # Errors
    /// What the database says.
    pub async fn running_verifies(&self) -> Result<Vec<VerifyRow>, CatalogError> {
        let sql = rows!("WHERE state = 'running' ORDER BY begun_us");
        Ok(fetch_all!(self.pool, VerifyRow, sql)?)
    }

    /// The newest of all VMs first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn verifies(&self) -> Result<Vec<VerifyRow>, CatalogError> {
        let sql = rows!("ORDER BY begun_us DESC, id LIMIT $1");
        Ok(fetch_all!(self.pool, VerifyRow, sql, LISTED_MAX)?)
    }

    /// The newest of a VM first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn verifies_of(&self, vm: VmId) -> Result<Vec<VerifyRow>, CatalogError> {
        let sql = rows!("WHERE vm_id = $1 ORDER BY begun_us DESC, id");
        Ok(fetch_all!(self.pool, VerifyRow, sql, vm.to_string())?)
    }

    /// The last verify of each VM that came to its end, if it found a difference.
    ///
    /// # Errors
    /// What the database says.
    pub async fn verifies_that_found(&self) -> Result<Vec<VerifyRow>, CatalogError> {
        let sql = rows!(
            "AS found WHERE state = 'done' AND differing_bytes > 0 AND NOT EXISTS \
             (SELECT 1 FROM verifications AS later WHERE later.vm_id = found.vm_id AND later.state = 'done' \
             AND later.begun_us > found.begun_us)"
        );
        Ok(fetch_all!(self.pool, VerifyRow, sql)?)
    }
}
