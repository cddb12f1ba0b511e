//! The verify of a VM: what was asked for, and how far its splitter is.

use serde::{Deserialize, Serialize};
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::{DISKS_MAX, VERIFY_RANGES_MAX};
use tidemark_proto::v1::{JobDisk, JobInfo, JobRange, VerifyDisk, VerifyReport, VerifyState};

use super::Vm;

/// Characters of a splitter's reason that are kept.
const REASON_MAX_CHARS: usize = 200;

/// How a verify is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// It goes on, or waits for its splitter.
    Running,
    /// Every block was compared.
    Done,
    /// It will not be.
    Failed,
}

impl JobState {
    /// As the contract and the catalog have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    /// The reverse of [`JobState::word`]; what nobody wrote has failed.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "done" => Self::Done,
            _ => Self::Failed,
        }
    }
}

/// What a verify says of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedDisk {
    /// The disk's id.
    pub disk: u32,
    /// Its size.
    pub total_bytes: u64,
    /// Bytes that were as in the journal.
    pub equal_bytes: u64,
    /// Bytes that were not, and were read again.
    pub differing_bytes: u64,
    /// Bytes of which no moment was found to compare them.
    pub skipped_bytes: u64,
    /// LSN when it began.
    pub begin_lsn: u64,
    /// Offset and length of the first places that differed.
    pub differing: Vec<(u64, u64)>,
    /// Of `differing_bytes`, what was found before the splitter began this disk anew. A row without it has none.
    #[serde(default)]
    pub before_bytes: u64,
    /// Of `differing`, as many places as were found then.
    #[serde(default)]
    pub before_places: usize,
    /// Points of the disk that were in doubt when this was kept: the gaps that say so are given up before the snapshots in
    /// between are.
    #[serde(default)]
    pub doubts: Vec<KeptDoubt>,
}

/// A [`crate::recovery::Doubt`] of a disk, as the catalog keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDoubt {
    /// The first point.
    pub from: u64,
    /// The first LSN after them.
    pub to: u64,
    /// What was found.
    pub detail: String,
}

impl VerifiedDisk {
    fn of(disk: &VerifyDisk) -> Self {
        let places = disk.differing.iter().take(VERIFY_RANGES_MAX);
        Self {
            disk: disk.disk_id,
            total_bytes: disk.total_bytes,
            equal_bytes: disk.equal_bytes,
            differing_bytes: disk.differing_bytes,
            skipped_bytes: disk.skipped_bytes,
            begin_lsn: disk.begin_lsn,
            differing: places.map(|range| (range.offset, range.bytes)).collect(),
            before_bytes: 0,
            before_places: 0,
            doubts: Vec::new(),
        }
    }

    /// Bytes that differed since the splitter began this disk.
    fn own_bytes(&self) -> u64 {
        self.differing_bytes.saturating_sub(self.before_bytes)
    }

    /// Whether the report goes on where this one was: a splitter that was restarted, or whose VM was, begins anew at another
    /// LSN, and no count ever falls.
    fn goes_on_with(&self, report: &Self) -> bool {
        self.begin_lsn == report.begin_lsn
            && self.equal_bytes <= report.equal_bytes
            && self.own_bytes() <= report.differing_bytes
    }

    /// The report, with what was found before it began: that was read again, and is not found twice.
    fn followed_by(&self, mut report: Self) -> Self {
        let (bytes, places) = if self.goes_on_with(&report) {
            (self.before_bytes, self.before_places)
        } else {
            (self.differing_bytes, self.differing.len())
        };
        report.before_bytes = bytes;
        report.differing_bytes = report.differing_bytes.saturating_add(bytes);
        let mut differing: Vec<_> = self.differing.iter().take(places).copied().collect();
        report.before_places = differing.len();
        differing.append(&mut report.differing);
        differing.truncate(VERIFY_RANGES_MAX);
        report.differing = differing;
        report.doubts = self.doubts.clone();
        report
    }

    /// A disk that the splitter does not name any more: what it did not compare will not be.
    fn left(mut self) -> Self {
        let compared_bytes = self.equal_bytes.saturating_add(self.own_bytes());
        self.skipped_bytes = self.total_bytes.saturating_sub(compared_bytes);
        self
    }

    fn info(&self) -> JobDisk {
        JobDisk {
            id: DiskId(self.disk).to_string(),
            total_bytes: self.total_bytes,
            equal_bytes: self.equal_bytes,
            differing_bytes: self.differing_bytes,
            skipped_bytes: self.skipped_bytes,
            begin_lsn: self.begin_lsn,
            differing: self
                .differing
                .iter()
                .map(|(offset, bytes)| JobRange { offset: *offset, bytes: *bytes })
                .collect(),
        }
    }
}

/// A verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyJob {
    /// A UUID.
    pub id: String,
    /// The disks asked for; empty means all that are protected.
    pub disks: Vec<u32>,
    /// When it was asked for, microseconds since 1970.
    pub begun_us: u64,
    /// When it ended; 0 before.
    pub ended_us: u64,
    /// Last LSN of the journal when it ended.
    pub end_lsn: Lsn,
    /// How it is.
    pub state: JobState,
    /// Why it failed.
    pub reason: String,
    /// As the splitter has reported.
    pub results: Vec<VerifiedDisk>,
}

impl VerifyJob {
    /// A verify that is to begin.
    #[must_use]
    pub fn new(id: String, disks: Vec<u32>, begun_us: u64) -> Self {
        Self {
            id,
            disks,
            begun_us,
            ended_us: 0,
            end_lsn: Lsn::ZERO,
            state: JobState::Running,
            reason: String::new(),
            results: Vec::new(),
        }
    }

    /// Whether it goes on.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    /// Bytes compared so far.
    #[must_use]
    pub fn compared_bytes(&self) -> u64 {
        // What differed before a disk was begun anew is compared again.
        let of = |disk: &VerifiedDisk| disk.equal_bytes.saturating_add(disk.own_bytes());
        self.results.iter().map(of).fold(0, u64::saturating_add)
    }

    /// Of them, bytes that differed.
    #[must_use]
    pub fn differing_bytes(&self) -> u64 {
        self.results.iter().map(|disk| disk.differing_bytes).fold(0, u64::saturating_add)
    }

    /// As consoles see it.
    #[must_use]
    pub fn info(&self, vm: &str) -> JobInfo {
        JobInfo {
            id: self.id.clone(),
            kind: "verify".into(),
            vm: vm.to_owned(),
            state: self.state.word().into(),
            reason: self.reason.clone(),
            begun_us: self.begun_us,
            ended_us: self.ended_us,
            disks: self.results.iter().map(VerifiedDisk::info).collect(),
        }
    }

    fn follow(&mut self, report: &VerifyReport, end_lsn: Lsn, now_us: u64) {
        let asked = &self.disks;
        let wanted = |disk: &&VerifyDisk| asked.is_empty() || asked.contains(&disk.disk_id);
        let mut known = std::mem::take(&mut self.results);
        let mut results: Vec<VerifiedDisk> = Vec::with_capacity(report.disks.len().min(DISKS_MAX));
        for disk in report.disks.iter().filter(wanted) {
            if results.iter().any(|result| result.disk == disk.disk_id) {
                continue;
            }
            let reported = VerifiedDisk::of(disk);
            results.push(match known.iter().position(|result| result.disk == disk.disk_id) {
                Some(index) => known.swap_remove(index).followed_by(reported),
                None => reported,
            });
        }
        results.extend(known.into_iter().map(VerifiedDisk::left));
        results.truncate(DISKS_MAX);
        self.results = results;
        let state = match report.state() {
            VerifyState::Done => JobState::Done,
            VerifyState::Failed => JobState::Failed,
            VerifyState::Running | VerifyState::Unspecified => return,
        };
        let reason = report.reason.chars().filter(|c| !c.is_control()).take(REASON_MAX_CHARS).collect();
        self.end(state, reason, end_lsn, now_us);
    }

    /// The job, given up.
    #[must_use]
    pub(crate) fn failed(mut self, reason: &str, now_us: u64) -> Self {
        self.end(JobState::Failed, reason.to_owned(), Lsn::ZERO, now_us);
        self
    }

    fn end(&mut self, state: JobState, reason: String, end_lsn: Lsn, now_us: u64) {
        (self.state, self.reason, self.end_lsn, self.ended_us) = (state, reason, end_lsn, now_us);
    }
}

impl Vm {
    /// The verify that is running, or the last one since this process started.
    #[must_use]
    pub fn verify(&self) -> Option<VerifyJob> {
        self.verify.lock().ok()?.clone()
    }

    /// Takes a verify, unless one is running: its id is then the error.
    pub(crate) fn begin_verify(&self, job: VerifyJob) -> Result<(), String> {
        let Ok(mut verify) = self.verify.lock() else { return Err("whose state was lost".into()) };
        match &*verify {
            Some(running) if running.is_running() => Err(running.id.clone()),
            _ => {
                *verify = Some(job);
                Ok(())
            }
        }
    }

    /// Takes a report; the job, when it ends with it.
    pub(crate) fn follow_verify(
        &self,
        report: &VerifyReport,
        end_lsn: Lsn,
        now_us: u64,
    ) -> Option<VerifyJob> {
        self.change_verify(&report.job_id, |job| job.follow(report, end_lsn, now_us))
    }

    /// Gives the job up; the job, if it was running.
    pub(crate) fn fail_verify(&self, id: &str, reason: String, now_us: u64) -> Option<VerifyJob> {
        self.change_verify(id, |job| job.end(JobState::Failed, reason, Lsn::ZERO, now_us))
    }

    fn change_verify(&self, id: &str, change: impl FnOnce(&mut VerifyJob)) -> Option<VerifyJob> {
        let mut verify = self.verify.lock().ok()?;
        let job = verify.as_mut().filter(|job| job.is_running() && job.id == id)?;
        change(job);
        (!job.is_running()).then(|| job.clone())
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::v1::ByteRange;

    use super::*;

    fn report(state: VerifyState, disk_ids: &[u32]) -> VerifyReport {
        let disk = |id: &u32| VerifyDisk {
            disk_id: *id,
            equal_bytes: 1,
            differing_bytes: 2,
            ..VerifyDisk::default()
        };
        let disks = disk_ids.iter().map(disk).collect();
        VerifyReport { job_id: "a".into(), state: state.into(), reason: "b\nc".into(), disks }
    }

    #[test]
    fn a_job_follows_reports_of_its_disks_until_it_ends() {
        let mut job = VerifyJob::new("a".into(), vec![2], 5);
        job.follow(&report(VerifyState::Running, &[1, 2]), Lsn(7), 9);
        assert!(job.is_running() && job.ended_us == 0);
        assert_eq!((job.results.len(), job.compared_bytes(), job.differing_bytes()), (1, 3, 2));
        job.follow(&report(VerifyState::Done, &[2]), Lsn(8), 10);
        assert_eq!((job.state, job.end_lsn, job.ended_us), (JobState::Done, Lsn(8), 10));
        assert_eq!(job.reason, "bc");
    }

    /// Disk 1, begun at an LSN, with a differing place for each number of bytes.
    fn found(state: VerifyState, begin_lsn: u64, equal_bytes: u64, found: &[u64]) -> VerifyReport {
        let place = |bytes: &u64| ByteRange { offset: begin_lsn << 20, bytes: *bytes };
        let disk = VerifyDisk {
            disk_id: 1,
            total_bytes: 100,
            equal_bytes,
            differing_bytes: found.iter().sum(),
            skipped_bytes: 0,
            begin_lsn,
            differing: found.iter().map(place).collect(),
        };
        VerifyReport { job_id: "a".into(), state: state.into(), reason: String::new(), disks: vec![disk] }
    }

    fn outcome(job: &VerifyJob) -> (JobState, u64, usize, u64) {
        let disk = &job.results[0];
        (job.state, job.differing_bytes(), disk.differing.len(), disk.skipped_bytes)
    }

    #[test]
    fn what_was_found_stays_when_the_splitter_begins_anew() {
        use VerifyState::{Done, Running};
        let mut job = VerifyJob::new("a".into(), Vec::new(), 5);
        let mut follow = |report: &VerifyReport| {
            job.follow(report, Lsn(9), 9);
            outcome(&job)
        };
        assert_eq!(follow(&found(Running, 3, 10, &[4])), (JobState::Running, 4, 1, 0));
        assert_eq!(
            follow(&found(Running, 3, 20, &[4, 2])),
            (JobState::Running, 6, 2, 0),
            "not counted twice"
        );
        // A restart, at another LSN and at the same one.
        assert_eq!(follow(&found(Running, 7, 0, &[])), (JobState::Running, 6, 2, 0));
        assert_eq!(follow(&found(Running, 7, 50, &[1])), (JobState::Running, 7, 3, 0));
        assert_eq!(follow(&found(Running, 7, 60, &[1])), (JobState::Running, 7, 3, 0));
        assert_eq!(follow(&found(Running, 7, 0, &[])), (JobState::Running, 7, 3, 0));
        assert_eq!(follow(&found(Done, 7, 100, &[])), (JobState::Done, 7, 3, 0));
        assert_eq!(job.results[0].equal_bytes, 100);
        assert_eq!(job.compared_bytes(), 100, "what was compared again is not compared twice");
    }

    #[test]
    fn what_was_found_stays_when_the_splitter_names_the_disk_no_more() {
        for (state, end) in [(VerifyState::Failed, JobState::Failed), (VerifyState::Done, JobState::Done)] {
            let mut job = VerifyJob::new("a".into(), Vec::new(), 5);
            job.follow(&found(VerifyState::Running, 3, 10, &[4]), Lsn(9), 9);
            job.follow(&report(state, &[]), Lsn(9), 9);
            assert_eq!(outcome(&job), (end, 4, 1, 86), "and it was not compared to its end");
        }
    }

    #[test]
    fn places_and_disks_stay_bounded_whatever_is_reported() {
        let mut job = VerifyJob::new("a".into(), Vec::new(), 5);
        for begin in 1..100_u32 {
            let many = vec![1; VERIFY_RANGES_MAX + 1];
            job.follow(&found(VerifyState::Running, begin.into(), 1, &many), Lsn(9), 9);
            let ids: Vec<u32> = (begin * 60..begin * 60 + 60).collect();
            job.follow(&report(VerifyState::Running, &ids), Lsn(9), 9);
            assert!(job.results.len() <= DISKS_MAX);
            assert!(job.results.iter().all(|disk| disk.differing.len() <= VERIFY_RANGES_MAX));
        }
        let twice = report(VerifyState::Running, &[7, 7]);
        let mut job = VerifyJob::new("a".into(), Vec::new(), 5);
        job.follow(&twice, Lsn(9), 9);
        assert_eq!(job.results.len(), 1);
    }
}
