//! WHEN: how people name a recovery point. Parsing resolves what depends on this machine (the local time zone); what
//! depends on the appliance (its clock, its history) stays symbolic.

use std::str::FromStr;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, tz};
use thiserror::Error;
use tidemark_proto::limits::NAME_MAX_CHARS;
use tidemark_proto::v1;

/// A recovery point as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum When {
    /// The newest recoverable point.
    Latest,
    /// The last write at or before this time of the appliance's clock.
    Time(Timestamp),
    /// This long before now, by the appliance's clock.
    Ago(Duration),
    /// Exactly this write.
    Lsn(u64),
    /// A named point.
    Bookmark(String),
}

/// A text that names no recovery point. The text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum InvalidWhen {
    #[error(
        "'{0}' is no recovery point: write latest, 2026-11-21T19:04:05Z, -90s, -15m, -2h, lsn:1234 or bookmark:NAME"
    )]
    Unknown(String),
    #[error("'{0}' is no time: write it as 2026-11-21T19:04:05Z, or without Z for local time ({1})")]
    Time(String, String),
    #[error("'{0}' names a day: add the time of day, such as {0}T19:04:05")]
    DayOnly(String),
    #[error(
        "the local time '{0}' happened twice when the clocks were set back: add the zone, {0}{1} or {0}{2}"
    )]
    Ambiguous(String, tz::Offset, tz::Offset),
    #[error(
        "the local time '{0}' never was, the clocks were set forward: name another time, or add the zone"
    )]
    Nonexistent(String),
    #[error("'{0}' lies before 1970: no history reaches back so far")]
    BeforeEpoch(String),
    #[error("'{0}' is no relative time: write a whole number and s, m or h, such as -90s, -15m or -2h")]
    Relative(String),
    #[error("'{0}' names a branch, but there are no branches: write lsn:NUMBER")]
    Branch(String),
    #[error("'{0}' is no LSN: write lsn: and a whole number, such as lsn:1234")]
    Lsn(String),
    #[error("'{0}' names no bookmark: write bookmark: and a name of 1 to {NAME_MAX_CHARS} characters")]
    Bookmark(String),
}

impl When {
    /// Reads WHEN; times without a zone are taken in `zone`.
    pub(crate) fn parse(text: &str, zone: &TimeZone) -> Result<Self, InvalidWhen> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Some(number) = text.strip_prefix("lsn:") {
            return parse_lsn(text, number);
        }
        if let Some(name) = text.strip_prefix("bookmark:") {
            let fits = !name.is_empty() && name.chars().count() <= NAME_MAX_CHARS;
            return if fits {
                Ok(Self::Bookmark(name.to_owned()))
            } else {
                Err(InvalidWhen::Bookmark(text.to_owned()))
            };
        }
        if let Some(ago) = text.strip_prefix('-') {
            return parse_ago(text, ago);
        }
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            return parse_time(text, zone);
        }
        Err(InvalidWhen::Unknown(text.to_owned()))
    }

    /// The same in the protocol's words.
    pub(crate) fn to_proto(&self) -> v1::When {
        use v1::when::Point;
        let point = match self {
            Self::Latest => Point::Latest(true),
            // Parsing refuses times before 1970.
            Self::Time(time) => Point::TimeUs(u64::try_from(time.as_microsecond()).unwrap_or(0)),
            Self::Ago(ago) => Point::AgoUs(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)),
            Self::Lsn(lsn) => Point::Lsn(*lsn),
            Self::Bookmark(name) => Point::Bookmark(name.clone()),
        };
        v1::When { point: Some(point) }
    }
}

impl FromStr for When {
    type Err = InvalidWhen;

    fn from_str(text: &str) -> Result<Self, InvalidWhen> {
        Self::parse(text, &TimeZone::system())
    }
}

fn parse_lsn(text: &str, number: &str) -> Result<When, InvalidWhen> {
    if number.contains('/') {
        return Err(InvalidWhen::Branch(text.to_owned()));
    }
    digits(number).map(When::Lsn).ok_or_else(|| InvalidWhen::Lsn(text.to_owned()))
}

fn parse_ago(text: &str, ago: &str) -> Result<When, InvalidWhen> {
    let wrong = || InvalidWhen::Relative(text.to_owned());
    let unit = ago.chars().last().ok_or_else(wrong)?;
    let seconds_per_unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number = ago.strip_suffix(unit).and_then(digits).ok_or_else(wrong)?;
    let seconds = number.checked_mul(seconds_per_unit).ok_or_else(wrong)?;
    Ok(When::Ago(Duration::from_secs(seconds)))
}

/// Decimal digits and nothing else: `parse` alone would take `+5`.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn parse_time(text: &str, zone: &TimeZone) -> Result<When, InvalidWhen> {
    let Some((_, clock)) = text.split_once(['T', 't', ' ']) else {
        return Err(match text.parse::<jiff::civil::Date>() {
            Ok(_) => InvalidWhen::DayOnly(text.to_owned()),
            Err(_) => InvalidWhen::Unknown(text.to_owned()),
        });
    };
    let wrong = |error: jiff::Error| InvalidWhen::Time(text.to_owned(), error.to_string());
    let time = if clock.contains(['Z', 'z', '+', '-', '[']) {
        text.parse::<Timestamp>().map_err(wrong)?
    } else {
        let local = text.parse::<DateTime>().map_err(wrong)?;
        let ambiguous = zone.to_ambiguous_timestamp(local);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => ambiguous.unambiguous().map_err(wrong)?,
            AmbiguousOffset::Gap { .. } => return Err(InvalidWhen::Nonexistent(text.to_owned())),
            AmbiguousOffset::Fold { before, after } => {
                return Err(InvalidWhen::Ambiguous(text.to_owned(), before, after));
            }
        }
    };
    if time < Timestamp::UNIX_EPOCH {
        Err(InvalidWhen::BeforeEpoch(text.to_owned()))
    } else {
        Ok(When::Time(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central Europe: clocks go forward on 2026-03-29 at 02:00 and back on 2026-10-25 at 03:00.
    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn parse(text: &str) -> Result<When, InvalidWhen> {
        When::parse(text, &berlin())
    }

    fn at(text: &str) -> When {
        When::Time(text.parse().unwrap())
    }

    #[test]
    fn latest_is_a_word_of_its_own() {
        assert_eq!(parse("latest"), Ok(When::Latest));
        for bad in ["Latest", "late", "latest ", ""] {
            assert!(matches!(parse(bad), Err(InvalidWhen::Unknown(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_time_with_a_zone_is_taken_at_its_word() {
        for (text, means) in [
            ("2026-11-21T19:04:05.123Z", "2026-11-21T19:04:05.123Z"),
            ("2026-11-21t19:04:05z", "2026-11-21T19:04:05Z"),
            ("2026-11-21T19:04:05+01:00", "2026-11-21T18:04:05Z"),
            ("2026-11-21 19:04:05-08:00", "2026-11-22T03:04:05Z"),
            ("2026-11-21T19:04:05.123456789Z", "2026-11-21T19:04:05.123456789Z"),
            // The hour that exists twice is no riddle with its offset.
            ("2026-10-25T02:30:00+02:00", "2026-10-25T00:30:00Z"),
            ("2026-10-25T02:30:00+01:00", "2026-10-25T01:30:00Z"),
        ] {
            assert_eq!(parse(text), Ok(at(means)), "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_local() {
        assert_eq!(parse("2026-11-21T19:04:05"), Ok(at("2026-11-21T18:04:05Z")));
        assert_eq!(parse("2026-07-01 19:04:05.5"), Ok(at("2026-07-01T17:04:05.5Z")));
        assert_eq!(parse("2026-07-01T19:04"), Ok(at("2026-07-01T17:04:00Z")));
        assert_eq!(When::parse("2026-07-01T19:04:05", &TimeZone::UTC), Ok(at("2026-07-01T19:04:05Z")));
    }

    #[test]
    fn a_local_time_that_was_twice_or_never_is_refused() {
        let twice = parse("2026-10-25T02:30:00").unwrap_err();
        assert!(matches!(twice, InvalidWhen::Ambiguous(..)), "{twice}");
        assert!(twice.to_string().contains("2026-10-25T02:30:00+02"), "{twice}");
        assert!(twice.to_string().contains("2026-10-25T02:30:00+01"), "{twice}");
        assert!(matches!(parse("2026-03-29T02:30:00"), Err(InvalidWhen::Nonexistent(_))));
        // The edges are plain times.
        assert_eq!(parse("2026-03-29T01:59:59"), Ok(at("2026-03-29T00:59:59Z")));
        assert_eq!(parse("2026-03-29T03:00:00"), Ok(at("2026-03-29T01:00:00Z")));
        assert_eq!(parse("2026-10-25T01:59:59"), Ok(at("2026-10-24T23:59:59Z")));
        assert_eq!(parse("2026-10-25T03:00:00"), Ok(at("2026-10-25T02:00:00Z")));
    }

    #[test]
    fn a_suggestion_for_an_ambiguous_time_parses() {
        let InvalidWhen::Ambiguous(text, before, after) = parse("2026-10-25T02:30:00").unwrap_err() else {
            panic!()
        };
        assert_eq!(parse(&format!("{text}{before}")), Ok(at("2026-10-25T00:30:00Z")));
        assert_eq!(parse(&format!("{text}{after}")), Ok(at("2026-10-25T01:30:00Z")));
    }

    #[test]
    fn broken_times_are_refused() {
        for bad in [
            "2026-11-21T25:00:00Z",
            "2026-02-30T10:00:00Z",
            "2026-11-21T",
            "2026-11-21Tnoon",
            "21.11.2026 10:00",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(matches!(parse("2026-11-21"), Err(InvalidWhen::DayOnly(_))));
        assert!(matches!(parse("19:04"), Err(InvalidWhen::Unknown(_))));
        assert!(matches!(parse("1969-12-31T23:59:59Z"), Err(InvalidWhen::BeforeEpoch(_))));
        assert_eq!(parse("1970-01-01T00:00:00Z"), Ok(at("1970-01-01T00:00:00Z")));
    }

    #[test]
    fn relative_times_count_back() {
        assert_eq!(parse("-90s"), Ok(When::Ago(Duration::from_secs(90))));
        assert_eq!(parse("-15m"), Ok(When::Ago(Duration::from_secs(900))));
        assert_eq!(parse("-2h"), Ok(When::Ago(Duration::from_secs(7200))));
        assert_eq!(parse("-0s"), Ok(When::Ago(Duration::ZERO)));
        for bad in [
            "-",
            "-s",
            "-90",
            "-90x",
            "--90s",
            "-+9s",
            "-1.5h",
            "-1h30m",
            "-99999999999999999999s",
            "-9999999999999999h",
            "- 5s",
            "-5µ",
        ] {
            assert!(matches!(parse(bad), Err(InvalidWhen::Relative(_))), "{bad}");
        }
        assert!(parse("90s").is_err(), "a time to come is no recovery point");
    }

    #[test]
    fn lsns_are_whole_numbers() {
        assert_eq!(parse("lsn:1234"), Ok(When::Lsn(1234)));
        // Where the clone of a template begins.
        assert_eq!(parse("lsn:0"), Ok(When::Lsn(0)));
        assert_eq!(parse("lsn:18446744073709551615"), Ok(When::Lsn(u64::MAX)));
        for bad in ["lsn:", "lsn:-1", "lsn:+1", "lsn:1x", "lsn: 1", "lsn:18446744073709551616"] {
            assert!(matches!(parse(bad), Err(InvalidWhen::Lsn(_))), "{bad}");
        }
        let branch = parse("lsn:main/12").unwrap_err();
        assert!(branch.to_string().contains("no branches"), "{branch}");
    }

    #[test]
    fn bookmarks_keep_their_name() {
        assert_eq!(parse("bookmark:before upgrade: 2"), Ok(When::Bookmark("before upgrade: 2".to_owned())));
        assert_eq!(parse("bookmark:latest"), Ok(When::Bookmark("latest".to_owned())));
        assert!(matches!(parse("bookmark:"), Err(InvalidWhen::Bookmark(_))));
        let long = format!("bookmark:{}", "ä".repeat(NAME_MAX_CHARS + 1));
        assert!(matches!(parse(&long), Err(InvalidWhen::Bookmark(_))));
        assert!(parse(&format!("bookmark:{}", "ä".repeat(NAME_MAX_CHARS))).is_ok());
    }

    #[test]
    fn the_protocol_says_the_same() {
        use v1::when::Point;
        for (text, point) in [
            ("latest", Point::Latest(true)),
            ("1970-01-01T00:00:01.5Z", Point::TimeUs(1_500_000)),
            ("-90s", Point::AgoUs(90_000_000)),
            ("lsn:7", Point::Lsn(7)),
            ("bookmark:x", Point::Bookmark("x".to_owned())),
        ] {
            assert_eq!(parse(text).unwrap().to_proto().point, Some(point), "{text}");
        }
    }
}
