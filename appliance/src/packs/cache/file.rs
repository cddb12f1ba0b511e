//! One piece as a file: encoding, and reading with verification.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use tidemark_journal::store::PackId;

/// Bytes that one hash covers.
const BLOCK_BYTES: usize = 64 << 10;

const MAGIC: [u8; 8] = *b"TMPIECE1";
const VERSION: u16 = 1;
const FIXED_BYTES: usize = 40;
const HASH_BYTES: usize = 32;

/// Which piece of which pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PieceKey {
    pub(super) pack: PackId,
    pub(super) piece: u32,
}

impl PieceKey {
    pub(super) fn name(&self) -> String {
        format!("piece-{}-{:08x}", self.pack, self.piece)
    }

    /// `None`: no name of a piece.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        let (pack, piece) = name.strip_prefix("piece-")?.split_once('-')?;
        let key = Self {
            pack: PackId::of_name(&format!("pack-{pack}"))?,
            piece: u32::from_str_radix(piece, 16).ok()?,
        };
        (key.name() == name).then_some(key)
    }
}

fn blocks_of(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES)
}

fn head_bytes(blocks: usize) -> usize {
    FIXED_BYTES + HASH_BYTES * (blocks + 1)
}

/// The head of the file of a piece; the bytes follow it.
pub(super) fn encode_head(key: &PieceKey, bytes: &[u8]) -> Vec<u8> {
    let blocks = blocks_of(bytes.len());
    let mut head = Vec::with_capacity(head_bytes(blocks));
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&u16::try_from(blocks).unwrap_or(u16::MAX).to_le_bytes());
    head.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&key.pack.0);
    head.extend_from_slice(&key.piece.to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    for block in bytes.chunks(BLOCK_BYTES) {
        head.extend_from_slice(blake3::hash(block).as_bytes());
    }
    let hash = blake3::hash(&head);
    head.extend_from_slice(hash.as_bytes());
    head
}

/// What reading a piece gave.
pub(super) enum Found {
    /// The bytes asked for are in the buffer.
    Read,
    /// The piece is intact as far as was looked, and ends before.
    Ends,
    /// Something is not as written.
    Damaged,
}

/// Fills `out` from `offset` of the piece.
pub(super) fn read(file: &File, key: &PieceKey, offset: usize, out: &mut [u8]) -> io::Result<Found> {
    let Some((bytes, hashes)) = read_head(file, key)? else { return Ok(Found::Damaged) };
    let Some(end) = offset.checked_add(out.len()).filter(|end| *end <= bytes) else { return Ok(Found::Ends) };
    let base = head_bytes(hashes.len());
    let mut block = vec![0; BLOCK_BYTES];
    for (number, hash) in hashes.iter().enumerate() {
        let (from, to) = (number * BLOCK_BYTES, ((number + 1) * BLOCK_BYTES).min(bytes));
        let wanted = overlap(&(offset..end), &(from..to));
        if wanted.is_empty() {
            continue;
        }
        let Some(block) = block.get_mut(..to - from) else { return Ok(Found::Damaged) };
        match file.read_exact_at(block, u64::try_from(base + from).unwrap_or(u64::MAX)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Found::Damaged),
            other => other?,
        }
        if blake3::hash(block) != *hash {
            return Ok(Found::Damaged);
        }
        let to = out.get_mut(wanted.start - offset..wanted.end - offset);
        let (Some(to), Some(found)) = (to, block.get(wanted.start - from..wanted.end - from)) else {
            return Ok(Found::Damaged);
        };
        to.copy_from_slice(found);
    }
    Ok(Found::Read)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// Bytes of the piece and the hashes of its blocks; `None` when the head is not as written.
fn read_head(file: &File, key: &PieceKey) -> io::Result<Option<(usize, Vec<blake3::Hash>)>> {
    let most = head_bytes(blocks_of(super::super::limits::PIECE_BYTES));
    let mut head = vec![0; most];
    let mut read = 0;
    while read < most {
        let Some(rest) = head.get_mut(read..) else { break };
        match file.read_at(rest, u64::try_from(read).unwrap_or(u64::MAX))? {
            0 => break,
            more => read += more,
        }
    }
    head.truncate(read);
    Ok(parse_head(&head, key))
}

fn parse_head(head: &[u8], key: &PieceKey) -> Option<(usize, Vec<blake3::Hash>)> {
    let blocks = usize::from(u16::from_le_bytes(*head.get(10..)?.first_chunk()?));
    let (content, hash) = head.get(..head_bytes(blocks))?.split_last_chunk::<HASH_BYTES>()?;
    // The hash before any field is used.
    if blake3::hash(content).as_bytes() != hash {
        return None;
    }
    let bytes = usize::try_from(u32::from_le_bytes(*content.get(12..)?.first_chunk()?)).ok()?;
    let sound = content.starts_with(&MAGIC)
        && u16::from_le_bytes(*content.get(8..)?.first_chunk()?) == VERSION
        && content.get(16..32)? == key.pack.0
        && u32::from_le_bytes(*content.get(32..)?.first_chunk()?) == key.piece
        && blocks == blocks_of(bytes);
    if !sound {
        return None;
    }
    let (hashes, _) = content.get(FIXED_BYTES..)?.as_chunks::<HASH_BYTES>();
    Some((bytes, hashes.iter().copied().map(blake3::Hash::from_bytes).collect()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn piece(bytes: &[u8], key: &PieceKey) -> Vec<u8> {
        let mut file = encode_head(key, bytes);
        file.extend_from_slice(bytes);
        file
    }

    fn read_back(content: &[u8], key: &PieceKey, offset: usize, bytes: usize) -> Option<Vec<u8>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let mut out = vec![0; bytes];
        matches!(read(&file, key, offset, &mut out).unwrap(), Found::Read).then_some(out)
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let key = PieceKey { pack: PackId([7; 16]), piece: 3 };
        let bytes: Vec<u8> = (0..BLOCK_BYTES + 900).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let file = piece(&bytes, &key);
        assert_eq!(read_back(&file, &key, 0, bytes.len()).unwrap(), bytes);
        let over_the_edge = BLOCK_BYTES - 5;
        assert_eq!(
            read_back(&file, &key, over_the_edge, 50).unwrap(),
            bytes[over_the_edge..over_the_edge + 50]
        );
        assert!(read_back(&file, &key, 900, bytes.len()).is_none(), "beyond its end");
        for at in (0..file.len()).step_by(61).chain(0..150) {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(read_back(&damaged, &key, 0, bytes.len()).is_none(), "byte {at}");
        }
        for cut in [0, 9, 39, 60, 135, 136, file.len() - 1] {
            assert!(read_back(&file[..cut], &key, 0, bytes.len()).is_none(), "cut at {cut}");
        }
        let other = PieceKey { piece: 4, ..key };
        assert!(read_back(&file, &other, 0, 10).is_none(), "a file under the name of another");
    }

    #[test]
    fn the_golden_head_stays_readable() {
        let key = PieceKey { pack: PackId(*b"0123456789abcdef"), piece: 0x0102 };
        let file = piece(b"golden", &key);
        assert_eq!(&file[..40], b"TMPIECE1\x01\0\x01\0\x06\0\0\x000123456789abcdef\x02\x01\0\0\0\0\0\0");
        assert_eq!(file.len(), 40 + 64 + 6);
        assert_eq!(blake3::hash(&file).to_hex()[..16], *GOLDEN);
        assert_eq!(PieceKey::of_name(&key.name()), Some(key));
        for bad in ["piece-00-1", "pack-1", &format!("{}x", key.name()), &key.name().to_uppercase()] {
            assert_eq!(PieceKey::of_name(bad), None);
        }
    }

    const GOLDEN: &str = "b5839ead70a5842e";
}
