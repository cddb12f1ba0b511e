//! Points that a verify has cast doubt on.

use std::collections::BTreeMap;

use tidemark_journal::timeline::Gap;
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::v1::GapCause;

/// A disk that was verified: compared as a whole between two LSNs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The disk.
    pub disk: DiskId,
    /// The last LSN when it began: what differs from there on it may have missed.
    pub begin: Lsn,
    /// The last LSN when it ended.
    pub end: Lsn,
}

/// Points in which a disk may hold wrong what a later verify found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The disk.
    pub disk: DiskId,
    /// The first point.
    pub from: Lsn,
    /// The first LSN after them.
    pub to: Lsn,
    /// What was found.
    pub detail: String,
}

/// Whether each block of the disk was read, or compared, in this gap. Of copies only the first one is known to be of the
/// whole disk: when a disk grows, what was added is copied.
fn is_whole(gap: &Gap, first_line: Option<Lsn>) -> bool {
    let whole = [GapCause::CaptureRestarted, GapCause::WitnessMismatch];
    let first = gap.cause == GapCause::InitialCopy as u32 && first_line == Some(gap.line);
    first || whole.iter().any(|whole| *whole as u32 == gap.cause)
}

/// What is in doubt: from the last time that the whole disk was known to be right up to the gap in which it was read
/// again. Without such a time, from the beginning. `first_line` says where a disk's first copy began.
#[must_use]
pub fn doubts(gaps: &[Gap], first_line: impl Fn(DiskId) -> Option<Lsn>, verified: &[Verified]) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    for gap in gaps.iter().filter(|gap| gap.cause == GapCause::VerifyDifference as u32) {
        for disk in &gap.disks {
            let copied = gaps
                .iter()
                .filter(|other| is_whole(other, first_line(*disk)) && other.disks.contains(disk))
                .filter_map(|other| other.to.filter(|to| *to <= gap.from));
            let compared =
                verified.iter().filter(|run| run.disk == *disk && run.end <= gap.from).map(|run| run.begin);
            let from = copied.chain(compared).max().unwrap_or(Lsn::ZERO);
            if from < gap.from {
                doubts.push(Doubt { disk: *disk, from, to: gap.from, detail: gap.detail.clone() });
            }
        }
    }
    doubts
}

/// What is in doubt, with what was noted of it while the gaps that tell of it were still there. Of the same gap the later
/// beginning counts: what was forgotten makes doubt longer, never shorter.
#[must_use]
pub fn with_kept(derived: Vec<Doubt>, kept: impl Iterator<Item = Doubt>) -> Vec<Doubt> {
    let mut all: BTreeMap<(Lsn, DiskId), Doubt> = BTreeMap::new();
    for doubt in derived.into_iter().chain(kept) {
        let known = all.entry((doubt.to, doubt.disk)).or_insert_with(|| doubt.clone());
        known.from = known.from.max(doubt.from);
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from: u64, to: u64, cause: GapCause, disks: &[u32]) -> Gap {
        Gap {
            from: Lsn(from),
            to: Some(Lsn(to)).filter(|to| to.0 > 0),
            from_time_us: 0,
            to_time_us: None,
            line: Lsn(from),
            cause: cause as u32,
            detail: String::new(),
            disks: disks.iter().copied().map(DiskId).collect(),
        }
    }

    fn spans(gaps: &[Gap], verified: &[(u32, u64, u64)]) -> Vec<(u32, u64, u64)> {
        let verified: Vec<_> = verified
            .iter()
            .map(|(disk, begin, end)| Verified { disk: DiskId(*disk), begin: Lsn(*begin), end: Lsn(*end) })
            .collect();
        let first = |_| Some(Lsn(1));
        doubts(gaps, first, &verified).iter().map(|doubt| (doubt.disk.0, doubt.from.0, doubt.to.0)).collect()
    }

    #[test]
    fn doubt_reaches_back_to_when_the_disk_was_last_known_to_be_right() {
        let mut gaps = vec![
            gap(1, 10, GapCause::InitialCopy, &[1, 2]),
            gap(20, 30, GapCause::RingFull, &[1, 2]),
            gap(50, 60, GapCause::VerifyDifference, &[1]),
        ];
        assert_eq!(spans(&gaps, &[]), [(1, 10, 50)]);
        assert_eq!(spans(&gaps, &[(1, 25, 32), (2, 40, 45)]), [(1, 25, 50)], "another disk's says nothing");
        assert_eq!(spans(&gaps, &[(1, 35, 61)]), [(1, 10, 50)], "nor does the one that found it");
        // The disk grew: nothing was read but what was added.
        gaps.insert(1, gap(41, 44, GapCause::InitialCopy, &[1]));
        assert_eq!(spans(&gaps, &[]), [(1, 10, 50)]);
        gaps.push(gap(70, 80, GapCause::WitnessMismatch, &[1]));
        gaps.push(gap(90, 0, GapCause::VerifyDifference, &[1, 2]));
        assert_eq!(spans(&gaps, &[]), [(1, 10, 50), (1, 80, 90), (2, 10, 90)]);
        gaps.remove(0);
        assert_eq!(spans(&gaps, &[])[0], (1, 0, 50), "what was forgotten makes it longer, never shorter");
    }

    #[test]
    fn doubt_that_was_noted_outlives_its_gap() {
        let doubt = |disk, from, to| Doubt {
            disk: DiskId(disk),
            from: Lsn(from),
            to: Lsn(to),
            detail: "8192 bytes".into(),
        };
        let noted = [doubt(1, 10, 50), doubt(2, 20, 50)];
        assert_eq!(with_kept(Vec::new(), noted.clone().into_iter()), noted, "the gaps are gone");
        let derived = vec![doubt(1, 0, 50), doubt(1, 60, 70)];
        let all = [doubt(1, 10, 50), doubt(2, 20, 50), doubt(1, 60, 70)];
        assert_eq!(with_kept(derived, noted.into_iter().chain([doubt(1, 5, 50)])), all);
    }
}
