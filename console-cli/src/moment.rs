//! Times as people and as programs read them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

fn timestamp(time_us: u64) -> Option<Timestamp> {
    (time_us > 0)
        .then(|| i64::try_from(time_us).ok().and_then(|us| Timestamp::from_microsecond(us).ok()))
        .flatten()
}

/// Microseconds since 1970 in local time with its offset, exact to the microsecond: pasted back as WHEN it names the same
/// write. 0 means "unknown" throughout the protocol.
pub(crate) fn local(time_us: u64) -> String {
    local_in(time_us, TimeZone::system())
}

fn local_in(time_us: u64, zone: TimeZone) -> String {
    let Some(time) = timestamp(time_us) else { return "-".to_owned() };
    let time = time.to_zoned(zone);
    // UTC has a shorter name than an offset of nothing.
    let format = if time.offset().is_zero() { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%S%.6f%:z" };
    time.strftime(format).to_string()
}

/// RFC 3339 in UTC for JSON; absent when unknown.
pub(crate) fn json(time_us: u64) -> Option<String> {
    timestamp(time_us).map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

/// A length of time to two digits that matter: `0.7 s`, `12 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn length(milliseconds: u64) -> String {
    match milliseconds {
        ..10_000 => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        10_000..120_000 => format!("{} s", milliseconds / 1000),
        120_000..7_200_000 => format!("{} min", milliseconds / 60_000),
        7_200_000..172_800_000 => format!("{} h", milliseconds / 3_600_000),
        _ => format!("{} d", milliseconds / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::when::When;

    #[test]
    fn what_is_shown_names_the_same_moment_when_pasted_back() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        for time_us in [1, 1_792_895_400_000_001, 1_792_899_000_123_456] {
            let means = When::Time(Timestamp::from_microsecond(time_us).unwrap());
            let time_us = u64::try_from(time_us).unwrap();
            assert_eq!(When::parse(&local_in(time_us, zone.clone()), &zone), Ok(means.clone()));
            assert_eq!(When::parse(&json(time_us).unwrap(), &zone), Ok(means));
        }
        assert_eq!(local_in(1_500_000, TimeZone::UTC), "1970-01-01T00:00:01.500000Z");
        assert_eq!((local(0), json(0)), ("-".to_owned(), None));
        assert_eq!(json(u64::MAX), None);
    }

    #[test]
    fn lengths_read_well() {
        let shown: Vec<_> = [0, 749, 9_999, 12_345, 180_000, 7_200_000, 200_000_000].map(length).into();
        assert_eq!(shown, ["0.0 s", "0.7 s", "9.9 s", "12 s", "3 min", "2 h", "2 d"]);
    }
}
