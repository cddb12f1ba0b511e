//! What automatic points of a set may do to its members' writers.

/// The words are those of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HoldMode {
    /// Gates and suspended volumes hold for some milliseconds; who has neither takes part by its clock.
    #[default]
    Free,
    /// File systems may be frozen, too.
    Freeze,
    /// Nobody is held: clocks alone.
    Clock,
}

impl HoldMode {
    /// `free`, `freeze` or `clock`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Freeze => "freeze",
            Self::Clock => "clock",
        }
    }

    /// The mode of a word; `None` for any other word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Free, Self::Freeze, Self::Clock].into_iter().find(|mode| mode.word() == word)
    }
}
