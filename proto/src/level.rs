//! Consistency levels as words: what people type and what the catalog keeps.

use crate::v1::Consistency;

impl Consistency {
    /// `crash`, `filesystem` or `application`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified | Self::Crash => "crash",
            Self::Filesystem => "filesystem",
            Self::Application => "application",
        }
    }

    /// The level of a word; `None` for any other word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Crash, Self::Filesystem, Self::Application].into_iter().find(|level| level.word() == word)
    }

    /// Unspecified is crash, so that two levels compare as what they are good for.
    #[must_use]
    pub fn or_crash(self) -> Self {
        self.max(Self::Crash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_levels_are_one_to_one_and_ordered() {
        let words = ["crash", "filesystem", "application"];
        let levels = words.map(|word| Consistency::of_word(word).unwrap());
        assert_eq!(levels.map(Consistency::word), words);
        assert!(levels.is_sorted() && levels[0] == Consistency::Unspecified.or_crash());
        assert_eq!(Consistency::of_word(""), None);
        assert_eq!(Consistency::of_word("Crash"), None);
    }
}
