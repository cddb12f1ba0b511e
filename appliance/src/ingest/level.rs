//! The level of a bookmark in the journal, which keeps it without knowing what it means: behind the bookmark's id.

use tidemark_proto::v1::Consistency;

/// What the journal keeps as a bookmark's identity: its UUID, and behind a space the level if it is above crash.
pub(super) fn note(bookmark_id: &str, level: Consistency) -> String {
    match level.or_crash() {
        Consistency::Crash => bookmark_id.to_owned(),
        level => format!("{bookmark_id} {}", level.word()),
    }
}

/// A bookmark's id and level from what the journal keeps. A word that is no level is none.
pub(super) fn read(identity: &str) -> (&str, Consistency) {
    match identity.split_once(' ') {
        Some((id, word)) => (id, Consistency::of_word(word).unwrap_or(Consistency::Crash)),
        None => (identity, Consistency::Crash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_come_back_and_older_identities_are_crash() {
        for level in [Consistency::Crash, Consistency::Filesystem, Consistency::Application] {
            assert_eq!(read(&note("5d1a8a0e", level)), ("5d1a8a0e", level));
        }
        assert_eq!(note("5d1a8a0e", Consistency::Unspecified), "5d1a8a0e", "as before there were levels");
        assert_eq!(read("5d1a8a0e perfect"), ("5d1a8a0e", Consistency::Crash));
    }
}
