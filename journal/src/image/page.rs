//! Pages of delta tables, to bytes and back. Takes anything, panics at nothing.

use super::CHUNK_SECTORS;
use super::pending::{Entry, Run, Source};
use crate::store::{CHUNK_BYTES, ChunkId};
use crate::wire::{Put, Reader, length, size};

const LEAF_MAGIC: [u8; 4] = *b"TMDL";
const INNER_MAGIC: [u8; 4] = *b"TMDI";
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const RUN_BYTES: usize = 6;
const ZEROES: u16 = u16::MAX;
const RESET: u8 = 1;

/// Children of an inner page at most.
pub(crate) const INNER_MAX: usize = (CHUNK_BYTES - HEADER_BYTES) / 40;

/// A decoded page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Page {
    Leaf(Leaf),
    Inner(Inner),
}

/// Pages below: the first chunk number that each may hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inner {
    pub height: u8,
    pub children: Vec<(u64, ChunkId)>,
}

/// Entries of chunks, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub sources: Vec<ChunkId>,
    pub entries: Vec<Entry>,
    bytes: usize,
}

impl Leaf {
    /// Adds an entry if there is room for it.
    pub(crate) fn add(&mut self, entry: &Entry) -> bool {
        let new: Vec<ChunkId> = entry
            .sources()
            .filter(|id| !self.sources.contains(id))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let more = ENTRY_BYTES + RUN_BYTES * entry.runs.len() + 32 * new.len();
        if HEADER_BYTES + self.bytes + more > CHUNK_BYTES {
            return false;
        }
        self.bytes += more;
        self.sources.extend(new);
        self.entries.push(entry.clone());
        true
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let runs: usize = self.entries.iter().map(|entry| entry.runs.len()).sum();
        let mut out = Vec::with_capacity(HEADER_BYTES + self.bytes);
        out.put(&LEAF_MAGIC);
        out.u8(1);
        out.u8(0);
        out.u16(u16::try_from(self.sources.len()).unwrap_or(ZEROES));
        out.u32(length(self.entries.len()));
        out.u32(length(runs));
        for id in &self.sources {
            out.put(&id.0);
        }
        let mut first_run = 0;
        for entry in &self.entries {
            out.u64(entry.chunk);
            out.u32(length(first_run));
            out.u8(u8::try_from(entry.runs.len()).unwrap_or(u8::MAX));
            out.u8(if entry.reset { RESET } else { 0 });
            out.u16(0);
            first_run += entry.runs.len();
        }
        for run in self.entries.iter().flat_map(|entry| &entry.runs) {
            out.u8(run.start);
            out.u8(run.sectors);
            let (source, offset) = match &run.source {
                Source::Zero => (ZEROES, 0),
                Source::Data { id, offset } => {
                    let at = self.sources.iter().position(|source| source == id);
                    (at.and_then(|at| u16::try_from(at).ok()).unwrap_or(ZEROES), *offset)
                }
            };
            out.u16(source);
            out.u16(offset);
        }
        out
    }
}

impl Inner {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + 40 * self.children.len());
        out.put(&INNER_MAGIC);
        out.u8(1);
        out.u8(self.height);
        out.u16(0);
        out.u32(length(self.children.len()));
        out.u32(0);
        for (first, id) in &self.children {
            out.u64(*first);
            out.put(&id.0);
        }
        out
    }
}

/// Whether bytes are a page of a delta table. Each entry that is decoded is found by a look-up too.
#[must_use]
pub fn decode_page(bytes: &[u8]) -> bool {
    let page = decode(bytes);
    if let Some(Page::Leaf(leaf)) = &page {
        let found = |entry: &Entry| find(bytes, 0, entry.chunk) == Some(Found::Entry(entry.clone()));
        debug_assert!(leaf.entries.iter().all(found), "a look-up sees what decoding sees");
    }
    page.is_some()
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Page> {
    let mut reader = Reader::new(bytes);
    let magic: [u8; 4] = reader.array()?;
    reader.u8().filter(|version| *version == 1)?;
    match magic {
        INNER_MAGIC => inner(&mut reader).map(Page::Inner),
        LEAF_MAGIC => leaf(&mut reader, bytes.len()).map(Page::Leaf),
        _ => None,
    }
}

/// What a page says about a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Entry(Entry),
    /// This page may.
    Below(ChunkId),
    Nothing,
}

/// Looks up a chunk in a page without decoding the rest of it: a fold does so for each chunk it touches and each table.
/// `None`: the bytes are no page of that height.
pub(crate) fn find(bytes: &[u8], height: u8, chunk: u64) -> Option<Found> {
    let mut reader = Reader::new(bytes);
    let magic: [u8; 4] = reader.array()?;
    reader.u8().filter(|version| *version == 1)?;
    match magic {
        INNER_MAGIC if height > 0 => find_below(&mut reader, height, chunk),
        LEAF_MAGIC if height == 0 => find_entry(&mut reader, chunk),
        _ => None,
    }
}

/// The number of leading items of `width` bytes whose first field is at most `chunk`.
fn up_to(items: &[u8], width: usize, chunk: u64) -> Option<usize> {
    let (mut low, mut high) = (0, items.len() / width);
    while low < high {
        let middle = low.midpoint(high);
        let first = Reader::new(items.get(middle * width..)?).u64()?;
        (low, high) = if first <= chunk { (middle + 1, high) } else { (low, middle) };
    }
    Some(low)
}

fn find_below(reader: &mut Reader<'_>, height: u8, chunk: u64) -> Option<Found> {
    reader.u8().filter(|found| *found == height)?;
    reader.take(10)?;
    let children = reader.take(reader.rest())?;
    let Some(at) = up_to(children, 40, chunk)?.checked_sub(1) else { return Some(Found::Nothing) };
    let mut child = Reader::new(children.get(at * 40 + 8..)?);
    Some(Found::Below(ChunkId(child.array()?)))
}

fn find_entry(reader: &mut Reader<'_>, chunk: u64) -> Option<Found> {
    reader.u8()?;
    let sources = usize::from(reader.u16()?);
    let (entries, runs) = (size(reader.u32()?.into()), size(reader.u32()?.into()));
    let sources = reader.take(sources.checked_mul(32)?)?;
    let entries = reader.take(entries.checked_mul(ENTRY_BYTES)?)?;
    let runs = reader.take(runs.checked_mul(RUN_BYTES)?)?;
    reader.end()?;
    let Some(at) = up_to(entries, ENTRY_BYTES, chunk)?.checked_sub(1) else { return Some(Found::Nothing) };
    let mut entry = Reader::new(entries.get(at * ENTRY_BYTES..)?);
    let (found, first, count, flags) = (entry.u64()?, size(entry.u32()?.into()), entry.u8()?, entry.u8()?);
    if found != chunk {
        return Some(Found::Nothing);
    }
    let mut reader = Reader::new(runs.get(first.checked_mul(RUN_BYTES)?..)?);
    let source = |number: usize| Reader::new(sources.get(number * 32..)?).array().map(ChunkId);
    let runs: Option<Vec<Run>> = (0..count).map(|_| run(&mut reader, &source)).collect();
    Some(Found::Entry(Entry { chunk, reset: flags & RESET != 0, runs: runs? }))
}

fn inner(reader: &mut Reader<'_>) -> Option<Inner> {
    let height = reader.u8().filter(|height| *height > 0)?;
    reader.u16().filter(|reserved| *reserved == 0)?;
    // The count lies before a reserved field.
    let stated = reader.u32()?;
    reader.u32().filter(|reserved| *reserved == 0)?;
    let count = size(stated.into());
    if count == 0 || count.checked_mul(40)? != reader.rest() {
        return None;
    }
    let mut children: Vec<(u64, ChunkId)> = Vec::with_capacity(count);
    for _ in 0..count {
        let child = (reader.u64()?, ChunkId(reader.array()?));
        if children.last().is_some_and(|last| last.0 >= child.0) {
            return None;
        }
        children.push(child);
    }
    Some(Inner { height, children })
}

fn leaf(reader: &mut Reader<'_>, bytes: usize) -> Option<Leaf> {
    reader.u8().filter(|reserved| *reserved == 0)?;
    let sources = usize::from(reader.u16()?);
    let (entries, runs) = (size(reader.u32()?.into()), size(reader.u32()?.into()));
    let expected = sources
        .checked_mul(32)?
        .checked_add(entries.checked_mul(ENTRY_BYTES)?)?
        .checked_add(runs.checked_mul(RUN_BYTES)?)?;
    if expected != reader.rest() {
        return None;
    }
    let sources: Option<Vec<ChunkId>> = (0..sources).map(|_| reader.array().map(ChunkId)).collect();
    let sources = sources?;
    let mut heads = Vec::with_capacity(entries);
    let mut next_run = 0;
    let mut last = None;
    for _ in 0..entries {
        let (chunk, first, count) = (reader.u64()?, reader.u32()?, reader.u8()?);
        let flags = reader.u8()?;
        reader.u16().filter(|reserved| *reserved == 0)?;
        let ascends = last.is_none_or(|last| last < chunk);
        if !ascends || size(first.into()) != next_run || flags & !RESET != 0 {
            return None;
        }
        last = Some(chunk);
        next_run += usize::from(count);
        heads.push((chunk, count, flags & RESET != 0));
    }
    if next_run != runs {
        return None;
    }
    let mut out = Vec::with_capacity(entries);
    for (chunk, count, reset) in heads {
        let mut end = 0;
        let mut of_entry = Vec::with_capacity(count.into());
        for _ in 0..count {
            let run = run(reader, &|number| sources.get(number).copied())?;
            if run.start < end {
                return None;
            }
            end = run.start.checked_add(run.sectors)?;
            of_entry.push(run);
        }
        out.push(Entry { chunk, reset, runs: of_entry });
    }
    Some(Leaf { sources, entries: out, bytes: bytes.saturating_sub(HEADER_BYTES) })
}

fn run(reader: &mut Reader<'_>, sources: &dyn Fn(usize) -> Option<ChunkId>) -> Option<Run> {
    let (start, sectors, source, offset) = (reader.u8()?, reader.u8()?, reader.u16()?, reader.u16()?);
    let fits = |from: u64| sectors > 0 && from + u64::from(sectors) <= CHUNK_SECTORS;
    let source = match source {
        ZEROES => Source::Zero,
        number => Source::Data { id: sources(usize::from(number))?, offset },
    };
    (fits(start.into()) && fits(offset.into())).then_some(Run { start, sectors, source })
}
