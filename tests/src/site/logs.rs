//! Logs must be quiet: a warning or an error that no test expected is a failure.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::process::tail;

/// What marks a line, in both formats of the log, and a panic's message.
const ALARMS: [&str; 5] = [" WARN ", " ERROR ", "\"level\":\"WARN\"", "\"level\":\"ERROR\"", "panicked at"];
/// Words of lines that go with gates whose guests or splitters are killed, or whose appliance stands still.
pub const GATES_DISTURBED: [&str; 14] = [
    "connect",
    "reset",
    "closed",
    "session",
    "stream",
    "heartbeat",
    "synchronous mode",
    "gate",
    "lapse",
    "gap",
    "error",
    "resync",
    "silent",
    "clock",
];
/// Enough to see a failure's cause in the test's output.
const SHOWN_LINES: usize = 40;

/// The lines of a log that alarm and contain none of `expected`. A panic is never expected.
///
/// # Errors
/// When the log cannot be read.
pub fn unexpected_lines(log: &Path, expected: &[&str]) -> Result<Vec<String>> {
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    Ok(unexpected_in(&String::from_utf8_lossy(&text), &name, expected))
}

/// The same of a log that is at hand, as `name`.
pub fn unexpected_in(text: &str, name: &str, expected: &[&str]) -> Vec<String> {
    text.lines()
        .filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm)))
        .filter(|line| line.contains("panicked at") || !expected.iter().any(|words| line.contains(words)))
        .map(|line| format!("{name}: {line}"))
        .collect()
}

/// Prints the end of every log of a failed test.
#[expect(clippy::print_stderr, reason = "the output of a failed test")]
pub(super) fn print_ends(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            eprintln!("--- the end of {}:\n{}", path.display(), tail(&path, SHOWN_LINES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_found_unless_expected() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = "2026-11-21T19:04:05Z  INFO appliance: listening\n\
                     2026-11-21T19:04:05Z  WARN appliance: the disk is slow\n\
                     {\"level\":\"ERROR\",\"message\":\"connection reset\"}\n\
                     thread 'main' panicked at src/main.rs: connection reset\n";
        fs::write(file.path(), lines).unwrap();
        assert_eq!(unexpected_lines(file.path(), &[]).unwrap().len(), 3);
        let left = unexpected_lines(file.path(), &["the disk is slow", "connection reset"]).unwrap();
        assert_eq!(left.len(), 1);
        assert!(left[0].contains("panicked"));
    }
}
