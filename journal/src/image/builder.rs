//! A new image from the one before and the newest version of each sector that was written since.

use std::collections::BTreeSet;

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

use super::pending::{Entry, Run, Source};
use super::reader::compose;
use super::table::{Cursor, Table, TableWriter, merge_levels, pending};
use super::tree::{chunks_of, sector_bytes};
use super::{CHUNK_SECTORS, Image, ImageError, REWRITE_SECTORS};
use crate::store::{CHUNK_BYTES, ChunkId, Session};
use crate::wire::size;

/// Chunk edits that are held before they go into the tree: some megabytes of memory, and inner nodes are rewritten
/// once for so many.
const EDITS_MAX: usize = 65_536;

/// Table entries that are held before they become a table.
const ENTRIES_MAX: usize = 65_536;

/// Chunks of a wide range of zeroes that are looked up at a time.
const CLEAR_STEP: u64 = 65_536;

/// Bytes of a disk at most.
const SIZE_MAX: u64 = 1 << 62;

/// Builds an image. Ranges come in ascending order and apart; none of them lies beyond the new size. Memory is bounded
/// whatever the size of the disk and the number of ranges.
#[derive(Debug)]
pub struct ImageBuilder<'a> {
    session: &'a Session,
    image: Image,
    /// The size before, if it was larger.
    cut_from: Option<u64>,
    /// Tables of the image before, newest first: what is pending.
    before: Vec<Table>,
    chunk: Option<Touched>,
    next_sector: u64,
    edits: Vec<(u64, Option<ChunkId>)>,
    deltas: Deltas,
    new_tables: Vec<Table>,
}

/// What was written of one chunk.
#[derive(Debug)]
struct Touched {
    number: u64,
    content: Vec<u8>,
    sectors: [Sector; 128],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sector {
    Untouched,
    Zero,
    Data,
}

/// A run: first sector, sectors, and for data the number of its delta chunk and the sector in it.
type Placed = (u8, u8, Option<(usize, u16)>);

/// Entries whose delta chunks are not all stored yet.
#[derive(Debug, Default)]
struct Deltas {
    buffer: Vec<u8>,
    stored: Vec<ChunkId>,
    entries: Vec<(u64, bool, Vec<Placed>)>,
}

impl<'a> ImageBuilder<'a> {
    /// Begins an image of a disk at `lsn`, of `size_bytes` (whole sectors), over `previous`.
    ///
    /// # Errors
    /// [`ImageError::TooLarge`]; when the store fails.
    pub fn new(
        session: &'a Session,
        previous: Option<&Image>,
        disk: DiskId,
        lsn: Lsn,
        size_bytes: u64,
    ) -> Result<Self, ImageError> {
        if size_bytes > SIZE_MAX {
            return Err(ImageError::TooLarge(size_bytes));
        }
        let mut image = match previous {
            Some(previous) => previous.clone(),
            None => Image::empty(session.domain(), disk, lsn, size_bytes),
        };
        let cut_from = Some(image.size_bytes).filter(|before| *before > size_bytes);
        image.tree = image.tree.grow(session, chunks_of(size_bytes))?;
        (image.disk, image.lsn, image.size_bytes) = (disk, lsn, size_bytes);
        Ok(Self {
            session,
            cut_from,
            before: image.tables.clone(),
            image,
            chunk: None,
            next_sector: 0,
            edits: Vec::new(),
            deltas: Deltas::default(),
            new_tables: Vec::new(),
        })
    }

    /// The newest content from a sector on.
    ///
    /// # Errors
    /// [`ImageError::Range`], [`ImageError::Order`]; when the store fails: the image must be begun again then.
    pub fn write(&mut self, start_sector: u64, data: &[u8]) -> Result<(), ImageError> {
        let bytes = data.len() as u64;
        self.check(start_sector, bytes.div_ceil(SECTOR_BYTES), bytes)?;
        for (sector, piece) in (start_sector..).zip(data.chunks_exact(size(SECTOR_BYTES))) {
            self.touch(sector, Some(piece))?;
        }
        Ok(())
    }

    /// Sectors that read as zeroes now.
    ///
    /// # Errors
    /// As [`ImageBuilder::write`].
    pub fn zero(&mut self, start_sector: u64, sectors: u64) -> Result<(), ImageError> {
        self.check(start_sector, sectors, sectors.saturating_mul(SECTOR_BYTES))?;
        self.zero_range(start_sector, start_sector + sectors)
    }

    fn check(&mut self, start: u64, sectors: u64, bytes: u64) -> Result<(), ImageError> {
        let size = self.image.size_bytes;
        let offset = start.saturating_mul(SECTOR_BYTES);
        let end = offset.saturating_add(bytes);
        if end > size || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(ImageError::Range { offset, end, size });
        }
        if start < self.next_sector {
            return Err(ImageError::Order(start));
        }
        self.next_sector = start + sectors;
        Ok(())
    }

    fn zero_range(&mut self, from: u64, to: u64) -> Result<(), ImageError> {
        let mut at = from;
        while at < to {
            let whole = (to / CHUNK_SECTORS).saturating_sub(at / CHUNK_SECTORS);
            if at.is_multiple_of(CHUNK_SECTORS) && whole > 0 {
                self.clear(at / CHUNK_SECTORS, at / CHUNK_SECTORS + whole)?;
                at += whole * CHUNK_SECTORS;
            } else {
                self.touch(at, None)?;
                at += 1;
            }
        }
        Ok(())
    }

    /// Whole chunks become holes.
    fn clear(&mut self, from: u64, to: u64) -> Result<(), ImageError> {
        self.close_chunk()?;
        self.apply_edits()?;
        self.image.tree = self.image.tree.clear(self.session, from, to)?;
        let mut at = from;
        while at < to && !self.before.is_empty() {
            let until = at.saturating_add(CLEAR_STEP).min(to);
            let mut touched = BTreeSet::new();
            let mut next = u64::MAX;
            for table in &self.before {
                let mut cursor = Cursor::new(self.session.store(), table, at)?;
                while let Some(chunk) = cursor.peek().map(|entry| entry.chunk) {
                    if chunk >= until {
                        next = next.min(chunk);
                        break;
                    }
                    touched.insert(chunk);
                    cursor.take()?;
                }
            }
            for chunk in touched {
                self.push_entry(chunk, true, &[])?;
            }
            // Nothing is pending in between.
            at = until.max(next.min(to));
        }
        Ok(())
    }

    fn touch(&mut self, sector: u64, data: Option<&[u8]>) -> Result<(), ImageError> {
        let number = sector / CHUNK_SECTORS;
        if self.chunk.as_ref().is_none_or(|chunk| chunk.number != number) {
            self.close_chunk()?;
            let (content, sectors) = (vec![0; CHUNK_BYTES], [Sector::Untouched; 128]);
            self.chunk = Some(Touched { number, content, sectors });
        }
        let Some(chunk) = &mut self.chunk else { return Ok(()) };
        let data = data.filter(|data| data.iter().any(|byte| *byte != 0));
        let at = sector % CHUNK_SECTORS;
        if let Some(state) = chunk.sectors.get_mut(size(at)) {
            *state = if data.is_some() { Sector::Data } else { Sector::Zero };
        }
        if let (Some(data), Some(place)) =
            (data, chunk.content.get_mut(sector_bytes(at)..sector_bytes(at + 1)))
        {
            place.copy_from_slice(data);
        }
        Ok(())
    }

    /// Decides what becomes of a chunk that was written: a delta, or the chunk anew.
    fn close_chunk(&mut self) -> Result<(), ImageError> {
        let Some(chunk) = self.chunk.take() else { return Ok(()) };
        let store = self.session.store();
        let slots = pending(store, &self.before, chunk.number)?;
        let end = self.image.size_bytes.max(self.cut_from.unwrap_or(0)) / SECTOR_BYTES;
        let on_disk = size((end - chunk.number * CHUNK_SECTORS).min(CHUNK_SECTORS));
        let touched = |sector: &Sector| *sector != Sector::Untouched;
        let whole = chunk.sectors.iter().take(on_disk).all(touched);
        let both = chunk.sectors.iter().zip(slots.sectors());
        let covered = both.filter(|(new, old)| touched(new) || old.is_some()).count();
        if !whole && covered < REWRITE_SECTORS {
            return self.push_chunk(&chunk);
        }
        let mut content = vec![0; CHUNK_BYTES];
        if !whole {
            let base = self.image.tree.get(store, chunk.number)?;
            compose(store, base.as_ref(), &slots, &mut content)?;
        }
        for (at, state) in (0..).zip(&chunk.sectors) {
            let range = sector_bytes(at)..sector_bytes(at + 1);
            if let (true, Some(to), Some(from)) =
                (touched(state), content.get_mut(range.clone()), chunk.content.get(range))
            {
                to.copy_from_slice(from);
            }
        }
        let hole = content.iter().all(|byte| *byte == 0);
        let id = if hole { None } else { Some(self.session.put(&content)?) };
        if slots.sectors().any(Option::is_some) {
            self.push_entry(chunk.number, true, &[])?;
        }
        self.edits.push((chunk.number, id));
        if self.edits.len() >= EDITS_MAX { self.apply_edits() } else { Ok(()) }
    }

    fn apply_edits(&mut self) -> Result<(), ImageError> {
        let edits = std::mem::take(&mut self.edits);
        if !edits.is_empty() {
            self.image.tree = self.image.tree.edit(self.session, &edits)?;
        }
        Ok(())
    }

    /// The written sectors of a chunk as a delta.
    fn push_chunk(&mut self, chunk: &Touched) -> Result<(), ImageError> {
        let mut runs: Vec<(u8, u8, bool)> = Vec::new();
        for (at, state) in (0_u8..).zip(&chunk.sectors) {
            let data = match state {
                Sector::Untouched => continue,
                Sector::Zero => false,
                Sector::Data => true,
            };
            match runs.last_mut() {
                Some((start, sectors, kind)) if *start + *sectors == at && *kind == data => *sectors += 1,
                _ => runs.push((at, 1, data)),
            }
        }
        let mut with_bytes = Vec::with_capacity(runs.len());
        for (start, sectors, data) in runs {
            let range = sector_bytes(start.into())..sector_bytes(u64::from(start) + u64::from(sectors));
            with_bytes.push((start, sectors, chunk.content.get(range).filter(|_| data)));
        }
        self.push_entry(chunk.number, false, &with_bytes)
    }

    fn push_entry(
        &mut self,
        chunk: u64,
        reset: bool,
        runs: &[(u8, u8, Option<&[u8]>)],
    ) -> Result<(), ImageError> {
        let mut placed = Vec::with_capacity(runs.len());
        for (start, sectors, bytes) in runs {
            let place = match bytes {
                None => None,
                Some(bytes) => Some(self.deltas.place(self.session, bytes)?),
            };
            placed.push((*start, *sectors, place));
        }
        self.deltas.entries.push((chunk, reset, placed));
        if self.deltas.entries.len() >= ENTRIES_MAX { self.write_table() } else { Ok(()) }
    }

    fn write_table(&mut self) -> Result<(), ImageError> {
        let mut deltas = std::mem::take(&mut self.deltas);
        deltas.store(self.session)?;
        let mut writer = TableWriter::new(self.session);
        for (chunk, reset, runs) in deltas.entries {
            let mut entry = Entry { chunk, reset, runs: Vec::with_capacity(runs.len()) };
            for (start, sectors, place) in runs {
                let stored = place.and_then(|(number, offset)| Some((*deltas.stored.get(number)?, offset)));
                let source = stored.map_or(Source::Zero, |(id, offset)| Source::Data { id, offset });
                entry.runs.push(Run { start, sectors, source });
            }
            writer.add(&entry)?;
        }
        self.new_tables.extend(writer.finish(0)?);
        Ok(())
    }

    /// The image. Its chunks are durable once the store was flushed.
    ///
    /// # Errors
    /// When the store fails.
    pub fn finish(mut self) -> Result<Image, ImageError> {
        if let Some(before) = self.cut_from {
            let from = (self.image.size_bytes / SECTOR_BYTES).max(self.next_sector);
            self.zero_range(from, before.div_ceil(SECTOR_BYTES).next_multiple_of(CHUNK_SECTORS))?;
        }
        self.close_chunk()?;
        self.apply_edits()?;
        self.write_table()?;
        // Tables of one image do not overlap, so their order among each other is free.
        self.image.tables.splice(0..0, self.new_tables.iter().copied());
        merge_levels(self.session, &mut self.image.tables)?;
        Ok(self.image)
    }
}

impl Deltas {
    /// Number of the delta chunk that takes the bytes, and the sector in it.
    fn place(&mut self, session: &Session, bytes: &[u8]) -> Result<(usize, u16), ImageError> {
        if self.buffer.len() + bytes.len() > CHUNK_BYTES {
            self.store(session)?;
        }
        let offset = self.buffer.len() / size(SECTOR_BYTES);
        self.buffer.extend_from_slice(bytes);
        Ok((self.stored.len(), u16::try_from(offset).unwrap_or(u16::MAX)))
    }

    fn store(&mut self, session: &Session) -> Result<(), ImageError> {
        if !self.buffer.is_empty() {
            self.stored.push(session.put(&self.buffer)?);
            self.buffer.clear();
        }
        Ok(())
    }
}
