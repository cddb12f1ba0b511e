//! What a session was offered of templates and may name in a frame.

use std::collections::{HashMap, VecDeque};

use tidemark_proto::limits::{FRAME_MAX_BYTES, QUESTION_MAX_PIECES, QUESTIONS_MAX, SECTOR_BYTES};
use tidemark_proto::pieces::{HASH_BYTES, Piece};
use tidemark_proto::v1::{BaseBlocks, WriteKind};

use crate::templates::Source;

/// Offers of one session that are remembered at most: those of all questions that it may have open, some 2 MB. A splitter names
/// what it was offered at once; of more the oldest is forgotten, and naming it ends the stream.
const OFFERS_MAX: usize = QUESTIONS_MAX * QUESTION_MAX_PIECES;

/// A place of a disk: disk, first sector, sectors.
type Place = (u32, u64, u32);

/// Why blocks that are named by hashes are not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// A rule of the protocol is broken.
    Broken(&'static str),
    /// Nothing such was offered, or not any more: it must be sent.
    NotOffered,
}

/// Each offer can be used once: what it makes the journal grow by was paid for with a question.
#[derive(Debug, Default)]
pub(super) struct Offers {
    /// Each with its number.
    sources: HashMap<Place, (u64, Source)>,
    /// The oldest first; those that were used since are still in it.
    order: VecDeque<(u64, Place)>,
    last: u64,
}

impl Offers {
    pub(super) fn add(&mut self, disk: u32, piece: &Piece, source: Source) {
        let place = (disk, piece.start_sector, piece.sectors);
        self.last += 1;
        self.sources.insert(place, (self.last, source));
        self.order.push_back((self.last, place));
        while self.order.len() > OFFERS_MAX {
            let Some((number, oldest)) = self.order.pop_front() else { break };
            // The place may have been offered anew since.
            if self.sources.get(&oldest).is_some_and(|(now, _)| *now == number) {
                self.sources.remove(&oldest);
            }
        }
    }

    /// The content of blocks that are named by hashes; empty for blocks that are sent.
    pub(super) fn take(&mut self, base: &BaseBlocks) -> Result<Vec<Source>, NotTaken> {
        if base.hashes.is_empty() {
            return Ok(Vec::new());
        }
        let (hashes, rest) = base.hashes.as_chunks::<HASH_BYTES>();
        if hashes.len() != base.entries.len() || !rest.is_empty() || !base.payload.is_empty() {
            return Err(NotTaken::Broken("blocks named by hashes that do not fit their table"));
        }
        let bytes: u64 = base.entries.iter().map(|entry| u64::from(entry.sectors) * SECTOR_BYTES).sum();
        if usize::try_from(bytes).is_ok_and(|bytes| bytes > FRAME_MAX_BYTES) {
            return Err(NotTaken::Broken("a frame that names more than a frame may hold"));
        }
        let mut sources = Vec::with_capacity(hashes.len());
        for (entry, hash) in base.entries.iter().zip(hashes) {
            if entry.kind != i32::from(WriteKind::Data) {
                return Err(NotTaken::Broken("blocks named by hashes that are no data"));
            }
            let offer = self.sources.remove(&(entry.disk_id, entry.start_sector, entry.sectors));
            let source = offer.map(|(_, source)| source).filter(|source| source.hash() == hash);
            sources.push(source.ok_or(NotTaken::NotOffered)?);
        }
        Ok(sources)
    }
}
