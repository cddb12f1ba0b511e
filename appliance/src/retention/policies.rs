//! Policies as people write them: TOML, one table for each.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use thiserror::Error;
use tidemark_journal::retention::{Policy, Schedule};
use tidemark_proto::limits::NAME_MAX_CHARS;

/// A policy with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPolicy {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// What it asks for.
    pub policy: Policy,
}

/// The text holds no policies.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidPolicy {
    /// Not TOML, or unknown keys.
    #[error("{0}")]
    Toml(String),
    /// A value makes no sense.
    #[error("policy '{name}': {problem}")]
    Policy {
        /// Which.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    policy: BTreeMap<String, Table>,
}

/// Unknown keys are refused: a misspelt one would silently keep less.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    window: String,
    window_min: Option<String>,
    window_size: Option<String>,
    #[serde(default)]
    hourly: u32,
    #[serde(default)]
    daily: u32,
    #[serde(default)]
    weekly: u32,
    #[serde(default)]
    monthly: u32,
    #[serde(default)]
    yearly: u32,
    lock: Option<String>,
}

/// Reads `[policy.NAME]` tables, by name.
///
/// # Errors
/// When the text is not TOML, has unknown keys, or a policy cannot be followed.
pub fn parse(text: &str) -> Result<Vec<NamedPolicy>, InvalidPolicy> {
    let file: File = toml::from_str(text).map_err(|error| {
        InvalidPolicy::Toml(error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    file.policy.into_iter().map(|(name, table)| policy(name, &table)).collect()
}

fn policy(name: String, table: &Table) -> Result<NamedPolicy, InvalidPolicy> {
    let fail = |problem: String| InvalidPolicy::Policy { name: name.clone(), problem };
    let characters = name.chars().count();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if characters == 0 || characters > NAME_MAX_CHARS || !name.chars().all(plain) {
        return Err(fail("a name has letters, digits, - and _".into()));
    }
    let window_us = duration(&table.window).map_err(fail)?;
    let window_min = table.window_min.as_deref().map(duration).transpose().map_err(fail)?;
    let policy = Policy {
        window_us,
        // What is not said to be negotiable is not given up for want of space.
        window_min_us: window_min.unwrap_or(window_us),
        window_bytes: table.window_size.as_deref().map(bytes).transpose().map_err(fail)?,
        schedule: Schedule {
            hourly: table.hourly,
            daily: table.daily,
            weekly: table.weekly,
            monthly: table.monthly,
            yearly: table.yearly,
        },
        lock_us: table.lock.as_deref().map(duration).transpose().map_err(fail)?.unwrap_or(0),
    };
    policy.check().map_err(|error| fail(error.to_string()))?;
    Ok(NamedPolicy { name, policy })
}

/// Units of time, the largest first.
const DURATIONS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// Microseconds of `90s`, `30m`, `72h`, `7d` or `4w`.
fn duration(text: &str) -> Result<u64, String> {
    let found = DURATIONS.iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*seconds)?.checked_mul(1_000_000)
    });
    found
        .filter(|us| *us > 0)
        .ok_or_else(|| format!("'{text}' is not a length of time: write 90s, 30m, 72h, 7d or 4w"))
}

/// Units of size, the largest first.
const SIZES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Bytes of `200GiB`, `2TiB` and so on.
fn bytes(text: &str) -> Result<u64, String> {
    let found = SIZES.iter().find_map(|(unit, bytes)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(*bytes)
    });
    found
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("'{text}' is not a size: write 500MiB, 200GiB or 2TiB"))
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().find(|(_, size)| value.is_multiple_of(*size)).or(units.last());
    whole.map_or_else(String::new, |(unit, size)| format!("{}{unit}", value / size))
}

impl NamedPolicy {
    /// The TOML that [`parse`] reads back as this policy.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let time = |us: u64| show(us / 1_000_000, &DURATIONS);
        let policy = &self.policy;
        let mut text = format!("[policy.{}]\nwindow = \"{}\"\n", self.name, time(policy.window_us));
        // Writing to a string does not fail.
        let _ = writeln!(text, "window-min = \"{}\"", time(policy.window_min_us));
        if let Some(bytes) = policy.window_bytes {
            let _ = writeln!(text, "window-size = \"{}\"", show(bytes, &SIZES));
        }
        let schedule = &policy.schedule;
        for (key, count) in [
            ("hourly", schedule.hourly),
            ("daily", schedule.daily),
            ("weekly", schedule.weekly),
            ("monthly", schedule.monthly),
            ("yearly", schedule.yearly),
        ] {
            let _ = writeln!(text, "{key} = {count}");
        }
        if policy.lock_us > 0 {
            let _ = writeln!(text, "lock = \"{}\"", time(policy.lock_us));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLD: &str = "[policy.gold]\nwindow = \"72h\"\nwindow-min = \"1d\"\nwindow-size = \"200GiB\"\n\
                        hourly = 24\ndaily = 14\nweekly = 8\nmonthly = 12\nyearly = 3\nlock = \"4w\"\n";

    #[test]
    fn policies_read_back_as_written() {
        let all = parse(&format!("{GOLD}[policy.short]\nwindow = \"90s\"\n")).unwrap();
        let [gold, short] = &all[..] else { panic!("{all:?}") };
        assert_eq!(gold.policy.window_us, 72 * 3600 * 1_000_000);
        assert_eq!(gold.policy.window_bytes, Some(200 << 30));
        assert_eq!((gold.policy.schedule.weekly, gold.policy.lock_us), (8, 28 * 86_400 * 1_000_000));
        assert_eq!(short.policy.window_min_us, short.policy.window_us, "nothing is negotiable unless said");
        for named in &all {
            assert_eq!(parse(&named.to_toml()).unwrap().as_slice(), std::slice::from_ref(named));
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_the_reason() {
        for (text, part) in [
            ("[policy.a]\nwindow = \"72\"\n", "length of time"),
            ("[policy.a]\nwindow = \"0s\"\n", "length of time"),
            ("[policy.a]\nwindow = \"99999999999999999w\"\n", "length of time"),
            ("[policy.a]\nwindow = \"1h\"\nwindow-size = \"2GB\"\n", "GiB"),
            ("[policy.a]\nwindow = \"1h\"\nwindow-min = \"2h\"\n", "longer than window"),
            ("[policy.a]\nwindow = \"1h\"\nlock = \"2h\"\n", "needs a schedule"),
            ("[policy.a]\nwindow = \"1h\"\ndayly = 2\n", "dayly"),
            ("[policy.\"a b\"]\nwindow = \"1h\"\n", "letters"),
            ("window = \"1h\"\n", "policy"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
