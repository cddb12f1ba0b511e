//! What differs between a target and the point that is restored.

use thiserror::Error;
use tidemark_journal::ViewError;
use tidemark_proto::limits::{PIECE_BYTES, RESTORE_PIECES_MAX};
use tidemark_proto::pieces::{HASH_BYTES, HashKey, ZEROES, pack};
use tidemark_proto::v1::{RestoreAnswer, RestoreQuestion};

/// A question has no answer.
#[derive(Debug, Error)]
pub(super) enum Unanswered {
    /// It breaks a rule.
    #[error("a question {0}")]
    Rule(&'static str),
    /// What it is about cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
}

/// Compares the pieces of a question with a disk of `size_bytes`, whose content `read` gives.
pub(super) fn answer(
    question: &RestoreQuestion,
    size_bytes: u64,
    key: &HashKey,
    read: impl Fn(u64, &mut [u8]) -> Result<(), ViewError>,
) -> Result<RestoreAnswer, Unanswered> {
    let (hashes, rest) = question.hashes.as_chunks::<HASH_BYTES>();
    if hashes.is_empty() || hashes.len() > RESTORE_PIECES_MAX || !rest.is_empty() {
        return Err(Unanswered::Rule("without pieces, with too many, or with half a hash"));
    }
    if !question.offset.is_multiple_of(PIECE_BYTES) {
        return Err(Unanswered::Rule("that begins within a piece"));
    }
    let left = size_bytes.saturating_sub(question.offset);
    if hashes.len() as u64 > left.div_ceil(PIECE_BYTES) {
        return Err(Unanswered::Rule("beyond the end of the disk"));
    }
    let mut data = vec![0; usize::try_from(left.min(hashes.len() as u64 * PIECE_BYTES)).unwrap_or(0)];
    read(question.offset, &mut data)?;
    let (mut differs, mut zero) = (Vec::new(), Vec::new());
    let mut found = Vec::new();
    for (piece, hash) in data.chunks(usize::try_from(PIECE_BYTES).unwrap_or(1)).zip(hashes) {
        let ours = key.stand_in(piece);
        differs.push(ours != *hash);
        zero.push(ours != *hash && ours == ZEROES);
        if ours != *hash && ours != ZEROES && !question.compare_only {
            found.extend_from_slice(piece);
        }
    }
    Ok(RestoreAnswer {
        offset: question.offset,
        differs: pack(&differs).into(),
        zero: pack(&zero).into(),
        data: found.into(),
    })
}

#[cfg(test)]
mod tests {
    use tidemark_proto::pieces::is_set;

    use super::*;

    const KEY: HashKey = HashKey([5; 32]);
    const PIECE: usize = 64 << 10;

    /// A disk of two pieces and a half: data, zeroes, data.
    fn disk() -> Vec<u8> {
        let mut disk = vec![7; 2 * PIECE + 1024];
        disk[PIECE..2 * PIECE].fill(0);
        disk
    }

    fn asked(offset: u64, target: &[u8], compare_only: bool) -> Result<RestoreAnswer, Unanswered> {
        let hashes: Vec<u8> = target.chunks(PIECE).flat_map(|piece| KEY.stand_in(piece)).collect();
        let question = RestoreQuestion { offset, hashes: hashes.into(), compare_only };
        let disk = disk();
        answer(&question, disk.len() as u64, &KEY, |at, buffer| {
            let at = usize::try_from(at).unwrap();
            buffer.copy_from_slice(&disk[at..at + buffer.len()]);
            Ok(())
        })
    }

    #[test]
    fn only_what_differs_comes_back() {
        let same = asked(0, &disk(), false).unwrap();
        assert!((0..3).all(|piece| !is_set(&same.differs, piece)) && same.data.is_empty());
        // A byte in the short last piece, and one in the zeroes.
        let mut target = disk();
        target[PIECE] = 1;
        target[2 * PIECE + 1023] = 1;
        let answer = asked(0, &target, false).unwrap();
        let bits = |packed: &[u8]| (0..3).map(|piece| is_set(packed, piece)).collect::<Vec<_>>();
        assert_eq!(
            (bits(&answer.differs), bits(&answer.zero)),
            (vec![false, true, true], vec![false, true, false])
        );
        assert!(answer.data == disk()[2 * PIECE..]);
        let compared = asked(0, &target, true).unwrap();
        assert_eq!(bits(&compared.differs), [false, true, true]);
        assert!(compared.data.is_empty());
        let second = asked(PIECE as u64, &disk()[PIECE..], false).unwrap();
        assert_eq!(bits(&second.differs), [false, false, false]);
    }

    #[test]
    fn questions_that_break_a_rule_are_refused() {
        assert!(asked(512, &disk()[..PIECE], false).is_err());
        assert!(asked(0, &[], false).is_err());
        assert!(asked(2 * PIECE as u64, &disk(), false).is_err(), "beyond the end");
        assert!(asked(1 << 40, &disk(), false).is_err());
        let hashes = vec![0; HASH_BYTES * (RESTORE_PIECES_MAX + 1)];
        let question = RestoreQuestion { offset: 0, hashes: hashes.into(), compare_only: true };
        assert!(answer(&question, 1 << 40, &KEY, |_, _| Ok(())).is_err());
        let question = RestoreQuestion { hashes: vec![0; 33].into(), ..question };
        assert!(answer(&question, 1 << 40, &KEY, |_, _| Ok(())).is_err());
    }
}
