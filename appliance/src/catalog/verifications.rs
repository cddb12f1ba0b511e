//! Verifies: those that run, for the next start, and the last outcomes of each VM.

use std::collections::BTreeMap;

use tidemark_journal::timeline::Timeline;
use tidemark_proto::ids::{DiskId, Lsn, VmId};

use super::pool::{execute, fetch_all};
use super::{Catalog, CatalogError, from_db, to_db};
use crate::fleet::{JobState, KeptDoubt, VerifiedDisk, VerifyJob};
use crate::recovery::{Doubt, Verified, doubts, with_kept};

/// Verifies kept of each VM; older ones are forgotten. A forgotten one makes doubt reach back further, never less.
const KEPT_MAX: i64 = 100;

/// Verifies kept besides that found something: their doubt outlives the gaps that it comes from, as bookmarks and snapshots
/// do. Older ones are forgotten, and with them the doubt of points from before their gaps.
const FOUND_KEPT_MAX: i64 = 100;

/// Doubts noted with a disk of a verify at most, about 100 bytes each: the newest.
const DOUBTS_MAX: usize = 64;

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

    /// What was in doubt when it was kept.
    fn doubts(&self) -> Vec<Doubt> {
        let doubt = |disk: DiskId, kept: KeptDoubt| Doubt {
            disk,
            from: Lsn(kept.from),
            to: Lsn(kept.to),
            detail: kept.detail,
        };
        let results = self.job().results.into_iter();
        results
            .flat_map(|result| result.doubts.into_iter().map(move |kept| doubt(DiskId(result.disk), kept)))
            .collect()
    }
}

/// Points of a VM that are in doubt, by where doubt ends; `rows` are its verifies.
#[must_use]
pub fn doubts_of(timeline: &Timeline, rows: &[VerifyRow]) -> Vec<Doubt> {
    let verified: Vec<_> = rows.iter().flat_map(VerifyRow::verified).collect();
    let derived = doubts(timeline.gaps(), |disk| timeline.first_line(disk), &verified);
    with_kept(derived, rows.iter().flat_map(VerifyRow::doubts))
}

/// Notes what is in doubt with each disk of the verify that found something on it.
fn note_doubts(job: &mut VerifyJob, doubts: &[Doubt]) {
    for disk in job.results.iter_mut().filter(|disk| disk.differing_bytes > 0) {
        let own = doubts.iter().rev().filter(|doubt| doubt.disk.0 == disk.disk).take(DOUBTS_MAX);
        disk.doubts = own
            .map(|doubt| KeptDoubt { from: doubt.from.0, to: doubt.to.0, detail: doubt.detail.clone() })
            .collect();
    }
}

/// What the oldest to the newest rows found and no later row cleared. A disk is cleared by a verify that compared all of
/// it and found nothing: not by one of another disk, nor by one that failed or passed over blocks.
fn standing(rows: &[VerifyRow]) -> Vec<(VmId, u64)> {
    let mut found: BTreeMap<(VmId, u32), u64> = BTreeMap::new();
    for row in rows {
        let (Some(vm), job) = (row.vm(), row.job()) else { continue };
        for disk in &job.results {
            let bytes = found.entry((vm, disk.disk)).or_default();
            if disk.differing_bytes == 0 && disk.skipped_bytes == 0 && job.state == JobState::Done {
                *bytes = 0;
            }
            *bytes = bytes.saturating_add(disk.differing_bytes);
        }
    }
    let mut vms: BTreeMap<VmId, u64> = BTreeMap::new();
    for ((vm, _), bytes) in found.into_iter().filter(|(_, bytes)| *bytes > 0) {
        let sum = vms.entry(vm).or_default();
        *sum = sum.saturating_add(bytes);
    }
    vms.into_iter().collect()
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
                   (SELECT id FROM verifications WHERE vm_id = $1 ORDER BY begun_us DESC LIMIT $2) AND id NOT IN \
                   (SELECT id FROM verifications WHERE vm_id = $1 AND differing_bytes > 0 \
                   ORDER BY begun_us DESC LIMIT $3)";
        execute!(self.pool, sql, vm.to_string(), KEPT_MAX, FOUND_KEPT_MAX)?;
        Ok(())
    }

    /// Keeps what a verify has found so far, or its outcome. What comes late changes nothing: neither a verify that has ended
    /// nor one that had found more.
    ///
    /// # Errors
    /// What the database says.
    pub async fn keep_verify(&self, job: &VerifyJob) -> Result<(), CatalogError> {
        let results = serde_json::to_string(&job.results).unwrap_or_default();
        let sql = "UPDATE verifications SET ended_us = $2, end_lsn = $3, state = $4, reason = $5, results = $6, \
                   differing_bytes = $7 WHERE id = $1 AND state = 'running' AND differing_bytes <= $7";
        let (ended_us, end_lsn) = (to_db(job.ended_us), to_db(job.end_lsn.0));
        let differing_bytes = to_db(job.differing_bytes());
        let word = job.state.word();
        execute!(self.pool, sql, &job.id, ended_us, end_lsn, word, &job.reason, results, differing_bytes)?;
        Ok(())
    }

    /// As [`Catalog::keep_verify`], with what is in doubt because of what it found.
    ///
    /// # Errors
    /// What the database says.
    pub async fn keep_found(
        &self,
        vm: VmId,
        timeline: &Timeline,
        mut job: VerifyJob,
    ) -> Result<(), CatalogError> {
        if job.differing_bytes() > 0 {
            let rows = self.verifies_of(vm).await?;
            note_doubts(&mut job, &doubts_of(timeline, &rows));
        }
        self.keep_verify(&job).await
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

    /// The VMs of which a verify found something, however it ended, that no later one has found to be right again: with the
    /// bytes that differed.
    ///
    /// # Errors
    /// What the database says.
    pub async fn verifies_that_found(&self) -> Result<Vec<(VmId, u64)>, CatalogError> {
        let sql = rows!(
            "WHERE vm_id IN (SELECT vm_id FROM verifications WHERE differing_bytes > 0) ORDER BY begun_us, id"
        );
        Ok(standing(&fetch_all!(self.pool, VerifyRow, sql)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(vm: VmId, state: JobState, results: &[(u32, u64, u64)]) -> VerifyRow {
        let result = |(disk, differing_bytes, skipped_bytes): &(u32, u64, u64)| VerifiedDisk {
            disk: *disk,
            differing_bytes: *differing_bytes,
            skipped_bytes: *skipped_bytes,
            ..VerifiedDisk::default()
        };
        VerifyRow {
            id: "a".into(),
            vm_id: vm.to_string(),
            disks: String::new(),
            begun_us: 0,
            ended_us: 0,
            end_lsn: 0,
            state: state.word().into(),
            reason: String::new(),
            results: serde_json::to_string(&results.iter().map(result).collect::<Vec<_>>()).unwrap(),
        }
    }

    #[test]
    fn only_a_whole_verify_of_the_same_disk_clears_what_was_found() {
        use JobState::{Done, Failed, Running};
        let vm = VmId::random();
        for state in [Done, Failed, Running] {
            assert_eq!(standing(&[row(vm, state, &[(1, 5, 0), (2, 0, 0)])]), [(vm, 5)], "{state:?}");
        }
        let found = row(vm, Done, &[(1, 5, 0), (2, 3, 0)]);
        for (later, left) in [
            (row(vm, Done, &[(1, 0, 0), (2, 0, 0)]), 0),
            (row(vm, Done, &[(2, 0, 0)]), 5),
            (row(vm, Done, &[(1, 0, 4096), (2, 0, 0)]), 5),
            (row(vm, Failed, &[(1, 0, 0), (2, 0, 0)]), 8),
            (row(vm, Running, &[(1, 0, 0), (2, 0, 0)]), 8),
            (row(VmId::random(), Done, &[(1, 0, 0), (2, 0, 0)]), 8),
            (row(vm, Done, &[(1, 2, 0), (2, 0, 0)]), 7),
        ] {
            let left: Vec<_> = Some((vm, left)).filter(|(_, left)| *left > 0).into_iter().collect();
            assert_eq!(standing(&[found.clone(), later.clone()]), left, "{later:?}");
        }
    }

    #[test]
    fn doubt_is_noted_with_what_was_found() {
        let doubt = |disk, to| Doubt { disk: DiskId(disk), from: Lsn(3), to: Lsn(to), detail: "a".into() };
        let all: Vec<_> = (10..100).map(|to| doubt(1, to)).chain([doubt(2, 100)]).collect();
        let mut job = row(VmId::random(), JobState::Done, &[(1, 5, 0), (2, 0, 0)]).job();
        note_doubts(&mut job, &all);
        let results = serde_json::to_string(&job.results).unwrap();
        let kept = VerifyRow { results, ..row(VmId::random(), JobState::Done, &[]) }.doubts();
        assert_eq!(kept.len(), DOUBTS_MAX, "the newest of the disk on which something was found");
        assert_eq!(kept[0], doubt(1, 99));
    }

    #[test]
    fn a_row_of_an_earlier_version_is_read() {
        let text = r#"[{"disk":1,"total_bytes":2,"equal_bytes":1,"differing_bytes":1,"skipped_bytes":0,
            "begin_lsn":7,"differing":[[0,1]]}]"#;
        let row = VerifyRow { results: text.into(), ..row(VmId::random(), JobState::Done, &[]) };
        assert_eq!((row.job().differing_bytes(), row.job().results[0].before_bytes), (1, 0));
    }
}
