//! WHEN: from a point as a person names it to an LSN, or a refusal that names the nearest points on both sides.

use std::fmt;

use thiserror::Error;
use tidemark_journal::timeline::{Point, Refused, RefusedCause, Timeline, TimelineError};
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::v1::{self, GapCause, when};

use crate::catalog::BookmarkRow;

/// A recovery point that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryPoint {
    /// Where.
    pub lsn: Lsn,
    /// When it was captured, appliance time, microseconds since 1970.
    pub time_us: u64,
}

/// The named point does not exist.
#[derive(Debug, Error)]
pub enum PointRefused {
    /// The message names no point.
    #[error("no point is named: use latest, a time, -15m, lsn:N or bookmark:NAME")]
    Unnamed,
    /// No bookmark of that name.
    #[error("there is no bookmark named '{0}'; `tidemark point list` shows those there are")]
    NoBookmark(String),
    /// Nothing can be recovered yet.
    #[error("nothing can be recovered yet: the first copy of the disks is not complete")]
    NoHistory,
    /// The point is in a gap or outside the history.
    #[error("{0}")]
    Refused(String),
    /// The journal cannot be read.
    #[error("the journal cannot be read: {0}")]
    Journal(String),
}

/// Finds the LSN of `when`. `disks` empty means every disk known by then. `now_us` is the appliance's clock.
///
/// # Errors
/// When no such point exists.
pub fn resolve(
    timeline: &Timeline,
    bookmarks: &[BookmarkRow],
    when: Option<&v1::When>,
    disks: &[DiskId],
    now_us: u64,
) -> Result<RecoveryPoint, PointRefused> {
    let point = when.and_then(|when| when.point.as_ref()).ok_or(PointRefused::Unnamed)?;
    let lsn = match point {
        when::Point::Latest(_) => {
            let horizon = timeline.horizon().ok_or(PointRefused::NoHistory)?;
            // The newest point: the horizon itself, or the last point before the gap it lies in.
            match timeline.check(horizon.lsn, disks) {
                Ok(()) => horizon.lsn,
                Err(error) => nearest_before(error)?,
            }
        }
        when::Point::TimeUs(time_us) => at_time(timeline, *time_us, disks)?,
        when::Point::AgoUs(ago_us) => at_time(timeline, now_us.saturating_sub(*ago_us), disks)?,
        when::Point::Lsn(lsn) => Lsn(*lsn),
        when::Point::Bookmark(name) => bookmarks
            .iter()
            .find(|bookmark| bookmark.name == *name)
            .map(BookmarkRow::lsn)
            .ok_or_else(|| PointRefused::NoBookmark(name.clone()))?,
    };
    if timeline.horizon().is_none() {
        return Err(PointRefused::NoHistory);
    }
    timeline.check(lsn, disks).map_err(refused)?;
    let time_us = timeline.time_of(lsn).map_err(|error| PointRefused::Journal(error.to_string()))?;
    Ok(RecoveryPoint { lsn, time_us })
}

fn at_time(timeline: &Timeline, time_us: u64, disks: &[DiskId]) -> Result<Lsn, PointRefused> {
    if timeline.horizon().is_none() {
        return Err(PointRefused::NoHistory);
    }
    timeline.at_time(time_us, disks).map_err(refused)
}

fn nearest_before(error: TimelineError) -> Result<Lsn, PointRefused> {
    match error {
        TimelineError::Refused(refusal) => match refusal.before {
            Some(point) => Ok(point.lsn),
            None => Err(PointRefused::NoHistory),
        },
        TimelineError::Read(error) => Err(PointRefused::Journal(error.to_string())),
        error => Err(PointRefused::Journal(error.to_string())),
    }
}

fn refused(error: TimelineError) -> PointRefused {
    match error {
        TimelineError::Refused(refusal) => PointRefused::Refused(refusal_text(&refusal)),
        error => PointRefused::Journal(error.to_string()),
    }
}

/// A refusal in words, with the nearest points as LSN and time.
fn refusal_text(refusal: &Refused) -> String {
    let problem = match refusal.cause {
        RefusedCause::Gap(cause) => {
            format!("no point exists there: it lies in a gap ({})", cause_text(cause))
        }
        RefusedCause::BeforeHistory => "no point exists there: it lies before the history".to_owned(),
        RefusedCause::Folded => {
            "no point exists there any more: only snapshots are kept of that time".to_owned()
        }
        RefusedCause::AfterLatest => "no point exists there: it lies after the latest".to_owned(),
        _ => "no point exists there".to_owned(),
    };
    match (&refusal.before, &refusal.after) {
        (Some(before), Some(after)) => {
            format!("{problem}; the nearest points are {} before and {} after", Shown(before), Shown(after))
        }
        (Some(before), None) => format!("{problem}; the nearest point is {} before", Shown(before)),
        (None, Some(after)) => format!("{problem}; the nearest point is {} after", Shown(after)),
        (None, None) => format!("{problem}, and there is none at all yet"),
    }
}

struct Shown<'a>(&'a Point);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lsn:{} ({})", self.0.lsn, rfc3339(self.0.time_us))
    }
}

/// A gap's cause in words.
#[must_use]
pub fn cause_text(cause: u32) -> &'static str {
    let cause = i32::try_from(cause).ok().and_then(|cause| GapCause::try_from(cause).ok());
    match cause.unwrap_or_default() {
        GapCause::Unspecified => "unknown cause",
        GapCause::InitialCopy => "initial copy",
        GapCause::RingFull => "ring full",
        GapCause::ProbeFault => "probe fault",
        GapCause::VoidedUnit => "voided unit",
        GapCause::WriteTooLarge => "write too large",
        GapCause::OverlappingWrites => "overlapping writes",
        GapCause::IoError => "I/O error",
        GapCause::UnseenWrite => "unseen write",
        GapCause::WitnessMismatch => "witness mismatch",
        GapCause::CaptureRestarted => "capture restarted",
        GapCause::SplitterRestarted => "splitter restarted",
        GapCause::UnsupportedRequest => "unsupported request",
        GapCause::VerifyDifference => "found by a verify",
    }
}

/// A time in RFC 3339, UTC, microseconds. Days from the civil calendar as in Howard Hinnant's `civil_from_days`.
#[must_use]
pub fn rfc3339(time_us: u64) -> String {
    let (seconds, micros) = (time_us / 1_000_000, time_us % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(rfc3339(1_795_287_845_123_000), "2026-11-21T19:04:05.123000Z");
    }

    #[test]
    fn refusals_name_the_nearest_points_on_both_sides_and_the_cause() {
        let point = |lsn| Some(Point { lsn: Lsn(lsn), time_us: lsn * 1_000_000 });
        let refusal = Refused { cause: RefusedCause::Gap(2), before: point(7), after: point(9) };
        let text = refusal_text(&refusal);
        assert!(text.contains("ring full") && text.contains("lsn:7") && text.contains("lsn:9"), "{text}");
        assert!(text.contains("1970-01-01T00:00:07"), "{text}");
    }
}
