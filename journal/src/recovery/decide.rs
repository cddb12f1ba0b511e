//! The decision table: what the end of a listed segment means. Pure, and tested row by row.
//!
//! "Acknowledged beyond" is true when any evidence (the manifest, an intact frame before, behind or in later segments)
//! says that a frame was durable which comes after the last intact one. Unsynced writes may survive in any order, so
//! intact bytes behind a hole prove nothing by themselves; only such a claim does.
//!
//! | segment ends | next listed | acknowledged beyond | decision |
//! |---|---|---|---|
//! | with its footer | yes | any | go on with the next |
//! | with its footer | no | no | begin a new segment |
//! | with its footer | no | yes | damaged |
//! | cleanly, no footer | any | no | append here, drop what is listed after |
//! | cleanly, no footer | any | yes | damaged |
//! | with invalid bytes | any | no | cut them, append here, drop what is listed after |
//! | with invalid bytes | any | yes | damaged |
//! | before it began (no file or header) | any | no | drop it and what is listed after, begin a new segment |
//! | before it began | any | yes | damaged |

/// How a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Intact to the end of the file, its footer last.
    Footer,
    /// Intact to the end of the file, no footer.
    Clean,
    /// Bytes follow that are no intact frame in its place.
    Invalid,
    /// There is no file, or its header is not as written.
    NotBegun,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The log goes on in the next listed segment.
    Next,
    /// The log ends here; the next frame begins a new segment.
    Begin,
    /// The log ends here; the next frame follows. Later segments held nothing acknowledged.
    Append,
    /// The same, once the invalid bytes are cut.
    Cut,
    /// The log ended before this segment, which held nothing acknowledged, nor did later ones.
    Drop,
    /// Something acknowledged is missing: nothing may be changed, nothing after this point is served.
    Damaged,
}

/// The table.
#[must_use]
pub fn decide(end: End, next_listed: bool, acknowledged_beyond: bool) -> Decision {
    match (end, next_listed, acknowledged_beyond) {
        (End::Footer, true, _) => Decision::Next,
        (_, _, true) => Decision::Damaged,
        (End::Footer, false, false) => Decision::Begin,
        (End::Clean, _, false) => Decision::Append,
        (End::Invalid, _, false) => Decision::Cut,
        (End::NotBegun, _, false) => Decision::Drop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_decides_as_documented() {
        use Decision::{Append, Begin, Cut, Damaged, Drop, Next};
        let table = [
            (End::Footer, false, false, Begin),
            (End::Footer, false, true, Damaged),
            (End::Footer, true, false, Next),
            (End::Footer, true, true, Next),
            (End::Clean, false, false, Append),
            (End::Clean, false, true, Damaged),
            (End::Clean, true, false, Append),
            (End::Clean, true, true, Damaged),
            (End::Invalid, false, false, Cut),
            (End::Invalid, false, true, Damaged),
            (End::Invalid, true, false, Cut),
            (End::Invalid, true, true, Damaged),
            (End::NotBegun, false, false, Drop),
            (End::NotBegun, false, true, Damaged),
            (End::NotBegun, true, false, Drop),
            (End::NotBegun, true, true, Damaged),
        ];
        for (end, next, beyond, decision) in table {
            assert_eq!(decide(end, next, beyond), decision, "{end:?} next={next} beyond={beyond}");
        }
    }

    #[test]
    fn nothing_acknowledged_is_ever_cut_or_dropped() {
        for end in [End::Footer, End::Clean, End::Invalid, End::NotBegun] {
            for next in [false, true] {
                let decision = decide(end, next, true);
                assert!(
                    matches!(decision, Decision::Damaged | Decision::Next),
                    "{end:?} {next} {decision:?}"
                );
            }
        }
    }
}
