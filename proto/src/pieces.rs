//! Hashes of pieces of a disk, by which a splitter asks what need not be sent.
//!
//! A hash is BLAKE3 keyed with 32 bytes that the appliance draws for each session, so hashes of two VMs, or of one VM
//! at two times, cannot be compared by whoever sees them. Sessions that may use what templates have share the key of
//! the appliance's index of them. A piece that reads as zeroes has no hash; [`ZEROES`] stands for it.

use thiserror::Error;

use crate::limits::{PIECE_BYTES, QUESTION_MAX_BYTES, QUESTION_MAX_PIECES, SECTOR_BYTES};
use crate::v1::{HashAnswer, HashQuestion};

/// Bytes of a piece's hash.
pub const HASH_BYTES: usize = 32;

/// In place of the hash of a piece that reads as zeroes.
pub const ZEROES: [u8; HASH_BYTES] = [0; HASH_BYTES];

/// The key of a session's hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 32]);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey")
    }
}

impl HashKey {
    /// The key in a welcome, if it has one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// What stands for a piece in a question: its hash, or [`ZEROES`].
    #[must_use]
    pub fn stand_in(&self, content: &[u8]) -> [u8; HASH_BYTES] {
        if is_zero(content) { ZEROES } else { self.hash(content) }
    }

    /// The hash of a piece's content, whatever it is.
    #[must_use]
    pub fn hash(&self, content: &[u8]) -> [u8; HASH_BYTES] {
        *blake3::keyed_hash(&self.0, content).as_bytes()
    }
}

/// Sectors of a disk and the hash of what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First sector.
    pub start_sector: u64,
    /// Number of sectors, at least 1.
    pub sectors: u32,
    /// Keyed hash of the content, or [`ZEROES`].
    pub hash: [u8; HASH_BYTES],
}

impl Piece {
    /// The sector after its last.
    #[must_use]
    pub fn end_sector(&self) -> u64 {
        self.start_sector.saturating_add(self.sectors.into())
    }

    /// Bytes of its content.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.sectors) * SECTOR_BYTES
    }
}

/// A question breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a question {0}")]
pub struct QuestionError(&'static str);

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Lines, not bytes: this runs over every block of a disk. Data is dismissed at its first line.
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(|line| *line == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// Cuts what was read from `start_sector` on at multiples of `piece_bytes` of the disk and hashes each piece. Neighbours
/// that read as zeroes become one piece.
#[must_use]
pub fn cut(key: &HashKey, start_sector: u64, content: &[u8], piece_bytes: u64) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut at, mut rest) = (start_sector.saturating_mul(SECTOR_BYTES), content);
    while !rest.is_empty() {
        let until = (at / piece_bytes.max(SECTOR_BYTES) + 1).saturating_mul(piece_bytes.max(SECTOR_BYTES));
        let length = usize::try_from(until.saturating_sub(at)).unwrap_or(usize::MAX).min(rest.len());
        let (head, tail) = rest.split_at(length);
        let sectors = u32::try_from(length as u64 / SECTOR_BYTES).unwrap_or(u32::MAX);
        let hash = key.stand_in(head);
        match pieces.last_mut() {
            Some(last) if hash == ZEROES && last.hash == ZEROES => last.sectors += sectors,
            _ => pieces.push(Piece { start_sector: at / SECTOR_BYTES, sectors, hash }),
        }
        (at, rest) = (until, tail);
    }
    pieces
}

/// Puts a question.
#[must_use]
pub fn ask(id: u64, disk_id: u32, line_lsn: u64, pieces: &[Piece]) -> HashQuestion {
    let mut hashes = Vec::with_capacity(pieces.len() * HASH_BYTES);
    for piece in pieces {
        hashes.extend_from_slice(&piece.hash);
    }
    HashQuestion {
        id,
        disk_id,
        line_lsn,
        start_sectors: pieces.iter().map(|piece| piece.start_sector).collect(),
        sectors: pieces.iter().map(|piece| piece.sectors).collect(),
        hashes: hashes.into(),
    }
}

/// The pieces of a question.
///
/// # Errors
/// When it has none or too many, they overlap or do not rise, are longer than allowed, or lack their hashes.
pub fn read(question: &HashQuestion) -> Result<Vec<Piece>, QuestionError> {
    let count = question.start_sectors.len();
    if count == 0 || count > QUESTION_MAX_PIECES {
        return Err(QuestionError("without pieces or with too many"));
    }
    let (hashes, rest) = question.hashes.as_chunks::<HASH_BYTES>();
    if question.sectors.len() != count || hashes.len() != count || !rest.is_empty() {
        return Err(QuestionError("whose pieces lack their length or hash"));
    }
    let (mut pieces, mut end, mut bytes) = (Vec::with_capacity(count), 0, 0_u64);
    for ((start_sector, sectors), hash) in question.start_sectors.iter().zip(&question.sectors).zip(hashes) {
        let piece = Piece { start_sector: *start_sector, sectors: *sectors, hash: *hash };
        if piece.start_sector < end || piece.start_sector.checked_add(piece.sectors.into()).is_none() {
            return Err(QuestionError("whose pieces overlap or do not rise"));
        }
        if piece.sectors == 0 || (piece.hash != ZEROES && piece.bytes() > PIECE_BYTES) {
            return Err(QuestionError("with an empty piece or one that is too long"));
        }
        end = piece.end_sector();
        bytes = bytes.saturating_add(piece.bytes());
        pieces.push(piece);
    }
    // Whoever asks has read one range. Pieces far apart would each cost the reading of a chunk.
    let from = pieces.first().map_or(0, |piece| piece.start_sector);
    let span = (end - from).saturating_mul(SECTOR_BYTES);
    if bytes > QUESTION_MAX_BYTES || span > QUESTION_MAX_BYTES {
        return Err(QuestionError("about too much of a disk"));
    }
    Ok(pieces)
}

/// Gives an answer: whether each piece is known, in the question's order.
#[must_use]
pub fn answer(id: u64, known: &[bool]) -> HashAnswer {
    HashAnswer { id, known: pack(known).into(), ..HashAnswer::default() }
}

/// The answer that also says whether each piece is offered.
#[must_use]
pub fn offer(answer: HashAnswer, offered: &[bool]) -> HashAnswer {
    if offered.contains(&true) { HashAnswer { offered: pack(offered).into(), ..answer } } else { answer }
}

/// Bit `i % 8` of byte `i / 8` is bit i.
#[must_use]
pub fn pack(bits: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| bits.iter().rev().fold(0_u8, |byte, bit| byte << 1 | u8::from(*bit));
    bits.chunks(8).map(byte).collect()
}

/// Bit `index` of what [`pack`] packed; what it does not name is not set.
#[must_use]
pub fn is_set(packed: &[u8], index: usize) -> bool {
    packed.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

/// Whether piece `index` is known. What the answer does not name is not.
#[must_use]
pub fn is_known(answer: &HashAnswer, index: usize) -> bool {
    is_set(&answer.known, index)
}

/// Whether piece `index` is offered. What the answer does not name is not.
#[must_use]
pub fn is_offered(answer: &HashAnswer, index: usize) -> bool {
    is_set(&answer.offered, index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HashKey = HashKey([7; 32]);

    #[test]
    fn content_is_cut_at_places_of_the_disk_and_zeroes_run_together() {
        let mut content = vec![0; 5 * (64 << 10) + 512];
        content[17] = 1;
        content[3 * (64 << 10)] = 2;
        // From 60 KiB on: the first piece ends at 64 KiB.
        let pieces = cut(&KEY, 120, &content, PIECE_BYTES);
        let shape: Vec<_> =
            pieces.iter().map(|piece| (piece.start_sector, piece.sectors, piece.hash == ZEROES)).collect();
        assert_eq!(shape, [(120, 8, false), (128, 256, true), (384, 128, false), (512, 249, true)]);
        assert_eq!(pieces[0].hash, KEY.hash(&content[..4096]));
        assert_ne!(pieces[0].hash, HashKey([8; 32]).hash(&content[..4096]), "another session, another hash");
        assert!(cut(&KEY, 0, &[], PIECE_BYTES).is_empty());
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        assert!(is_zero(&[]) && is_zero(&[0; 4096]) && is_zero(&[0; 65]));
        for at in [0, 63, 64, 4095, 4096] {
            let mut bytes = [0; 4097];
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
    }

    #[test]
    fn questions_and_answers_come_back_as_they_were() {
        let mut content = vec![3; 128 << 10];
        content[4096..8192].fill(0);
        let pieces = cut(&KEY, 8, &content, 4096);
        let question = ask(5, 1, 9, &pieces);
        assert_eq!(read(&question), Ok(pieces.clone()));
        let known: Vec<bool> = (0..pieces.len()).map(|index| index % 3 == 0).collect();
        let answer = answer(5, &known);
        let told: Vec<bool> = (0..pieces.len()).map(|index| is_known(&answer, index)).collect();
        assert_eq!(told, known);
        assert!(!is_known(&answer, pieces.len() + 100), "what is not answered is not known");
        assert!(!(0..pieces.len()).any(|index| is_offered(&answer, index)));
        let unknown: Vec<bool> = known.iter().map(|known| !known).collect();
        let answer = offer(answer, &unknown);
        let offered: Vec<bool> = (0..pieces.len()).map(|index| is_offered(&answer, index)).collect();
        assert_eq!(offered, unknown);
    }

    #[test]
    fn questions_that_break_a_rule_are_refused() {
        let good = ask(5, 1, 9, &cut(&KEY, 0, &vec![3; 1 << 20], PIECE_BYTES));
        assert!(read(&good).is_ok());
        let bad: [fn(&mut HashQuestion); 9] = [
            |question| question.start_sectors.clear(),
            |question| question.start_sectors = vec![0; QUESTION_MAX_PIECES + 1],
            |question| question.sectors.truncate(3),
            |question| question.hashes.truncate(33),
            |question| question.start_sectors[1] = 127,
            |question| question.start_sectors[15] = u64::MAX,
            |question| question.sectors[15] = 0,
            |question| question.sectors[15] = 129,
            |question| {
                question.hashes = vec![0; 16 * HASH_BYTES].into();
                question.sectors[15] = 256;
            },
        ];
        for (index, change) in bad.into_iter().enumerate() {
            let mut question = good.clone();
            change(&mut question);
            assert!(read(&question).is_err(), "case {index}");
        }
    }
}
