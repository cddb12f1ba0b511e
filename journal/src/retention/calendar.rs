//! Hours, days, weeks, months and years, in UTC. A clock change of a time zone thus never makes or loses a snapshot.

const SECOND_US: u64 = 1_000_000;
const HOUR_US: u64 = 3600 * SECOND_US;
const DAY_US: u64 = 24 * HOUR_US;

/// How often a snapshot is kept: the last point of each of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Every {
    /// From minute 0 on.
    Hour,
    /// From midnight UTC on.
    Day,
    /// From Monday on, as ISO 8601 has it.
    Week,
    /// From the first on.
    Month,
    /// From the first of January on.
    Year,
}

impl Every {
    /// All of them, the shortest first.
    pub const ALL: [Self; 5] = [Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    /// When the period that a time lies in began, microseconds since 1970.
    #[must_use]
    pub fn start_of(self, time_us: u64) -> u64 {
        let day = time_us / DAY_US;
        match self {
            Self::Hour => time_us / HOUR_US * HOUR_US,
            Self::Day => day * DAY_US,
            // 1970-01-01 was a Thursday: three days into its week.
            Self::Week => ((day + 3) / 7 * 7).saturating_sub(3) * DAY_US,
            Self::Month => {
                let (_, _, day_of_month) = civil(day);
                (day + 1).saturating_sub(day_of_month) * DAY_US
            }
            Self::Year => {
                let (year, _, _) = civil(day);
                days_to(year) * DAY_US
            }
        }
    }
}

/// Year, month and day of month of a day since 1970, as in Howard Hinnant's `civil_from_days`.
fn civil(day: u64) -> (u64, u64, u64) {
    let z = day + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day_of_month)
}

/// Days from 1970 to the first of January of a year, of 1970 at least.
fn days_to(year: u64) -> u64 {
    let before = year.saturating_sub(1);
    // Leap days up to the end of 1969: 477.
    let leap_days = (before / 4 - before / 100 + before / 400).saturating_sub(477);
    year.saturating_sub(1970) * 365 + leap_days
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each with the microsecond of its start.
    fn starts(time_us: u64) -> [u64; 5] {
        Every::ALL.map(|every| every.start_of(time_us) / SECOND_US)
    }

    #[test]
    fn periods_begin_where_calendars_say() {
        // 2026-11-27T20:15:00.5Z, a Friday; its Monday is the 23rd.
        let at = 1_795_810_500_500_000;
        assert_eq!(starts(at), [1_795_809_600, 1_795_737_600, 1_795_392_000, 1_793_491_200, 1_767_225_600]);
        // 2024-02-29T23:59:59Z, a leap day, and the second after it.
        assert_eq!(starts(1_709_251_199_000_000)[3..], [1_706_745_600, 1_704_067_200]);
        assert_eq!(starts(1_709_251_200_000_000)[3..], [1_709_251_200, 1_704_067_200]);
        // 2000-01-01T00:00:00Z and 2100-03-01T00:00:00Z: the two century rules.
        assert_eq!(starts(946_684_800_000_000)[3..], [946_684_800, 946_684_800]);
        assert_eq!(starts(4_107_542_400_000_000)[3..], [4_107_542_400, 4_102_444_800]);
        assert_eq!(starts(0), [0; 5]);
    }

    #[test]
    fn a_period_begins_at_or_before_its_times_and_holds_the_shorter_ones() {
        let mut at = 0;
        while at < 200 * 366 * DAY_US {
            let [hour, day, week, month, year] = Every::ALL.map(|every| every.start_of(at));
            assert!(hour <= at && day <= hour && month <= day && year <= month && week <= day);
            for (every, start) in Every::ALL.into_iter().zip([hour, day, week, month, year]) {
                assert_eq!(every.start_of(start), start);
                assert!(start == 0 || every.start_of(start - 1) < start);
            }
            assert!(at - week < 7 * DAY_US && at - month < 31 * DAY_US && at - year < 366 * DAY_US);
            at += 17 * HOUR_US + 11;
        }
    }
}
