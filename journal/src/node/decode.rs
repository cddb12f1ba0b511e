//! The bytes of a node, in the parts in which they are read. Takes anything, panics at nothing.

use thiserror::Error;
use tidemark_proto::ids::{DiskId, Lsn};

use super::encode::trailer_hash;
use super::extent::Extent;
use super::pack::unpack;
use super::{DIRECTORY_ROW_BYTES, HASHED_TRAILER_BYTES, MAGIC, PAGE_EXTENTS, Span, TRAILER_BYTES};
use crate::index::Place;
use crate::leaf::{PART_HASH_BYTES, part_hash};
use crate::wire::{Reader, same_hash, size};

/// Bytes are not (that part of) a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{problem}")]
pub struct NodeError {
    /// Where in the file.
    pub offset: u64,
    /// Bytes concerned.
    pub bytes: u64,
    /// What is wrong.
    pub problem: &'static str,
}

/// What a node's trailer says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trailer {
    pub span: Span,
    pub extents: u64,
    pub hash: [u8; 32],
    pages: usize,
    page_bytes: u64,
    fixed: [u8; HASHED_TRAILER_BYTES],
}

impl Trailer {
    pub(crate) fn directory_offset(&self) -> u64 {
        self.page_bytes
    }

    pub(crate) fn directory_bytes(&self) -> usize {
        self.pages.saturating_mul(DIRECTORY_ROW_BYTES)
    }
}

/// The pages of a node and what they begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDirectory {
    /// Level, from 1.
    pub level: u16,
    /// Ordinal of the first segment it covers.
    pub first_ordinal: u64,
    /// Extents in all pages.
    pub extents: u64,
    pub(crate) pages: Vec<NodePage>,
}

/// One page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodePage {
    pub disk: DiskId,
    pub start: u64,
    pub offset: u64,
    pub bytes: usize,
    extents: usize,
    hash: [u8; PART_HASH_BYTES],
}

impl NodePage {
    fn error(&self, problem: &'static str) -> NodeError {
        NodeError { offset: self.offset, bytes: self.bytes as u64, problem }
    }
}

/// Decodes the last [`TRAILER_BYTES`] of a file of `file_bytes`; the hash is checked with the directory.
pub(crate) fn decode_trailer(bytes: &[u8], file_bytes: u64) -> Result<Trailer, NodeError> {
    let offset = file_bytes.saturating_sub(TRAILER_BYTES as u64);
    let error = NodeError { offset, bytes: TRAILER_BYTES as u64, problem: "no node ends here" };
    let trailer = parse_trailer(bytes).ok_or(error)?;
    let directory = trailer.directory_bytes() as u64;
    let expected =
        trailer.page_bytes.checked_add(directory).and_then(|sum| sum.checked_add(TRAILER_BYTES as u64));
    if expected == Some(file_bytes) { Ok(trailer) } else { Err(error) }
}

fn parse_trailer(bytes: &[u8]) -> Option<Trailer> {
    let fixed = *bytes.first_chunk()?;
    let mut reader = Reader::new(bytes);
    if reader.array()? != MAGIC || reader.u16()? != 1 {
        return None;
    }
    let (level, pages, first) = (reader.u16()?, size(reader.u32()?.into()), reader.u64()?);
    let (extents, page_bytes) = (reader.u64()?, reader.u64()?);
    if reader.u64()? != 0 {
        return None;
    }
    let hash = reader.array()?;
    reader.end()?;
    let span = Span { level, first };
    span.is_aligned().then_some(Trailer { span, extents, hash, pages, page_bytes, fixed })
}

/// Decodes the directory that belongs to a trailer.
pub(crate) fn parse_directory(
    trailer: &Trailer,
    bytes: &[u8],
    key: &[u8; 32],
) -> Result<NodeDirectory, NodeError> {
    let concerned = (bytes.len() + TRAILER_BYTES) as u64;
    let error = |problem| NodeError { offset: trailer.page_bytes, bytes: concerned, problem };
    if !same_hash(&trailer.hash, &trailer_hash(key, &trailer.fixed, bytes)) {
        return Err(error("the directory's hash does not match"));
    }
    let mut pages = Vec::with_capacity(trailer.pages);
    let mut offset = 0_u64;
    let mut extents = 0_u64;
    for row in bytes.chunks(DIRECTORY_ROW_BYTES) {
        let page = parse_row(row, offset).ok_or(error("the directory breaks the format"))?;
        offset = offset.saturating_add(page.bytes as u64);
        extents = extents.saturating_add(page.extents as u64);
        pages.push(page);
    }
    let sorted = pages.is_sorted_by_key(|page| (page.disk, page.start));
    if !sorted || offset != trailer.page_bytes || extents != trailer.extents {
        return Err(error("the directory breaks the format"));
    }
    let Span { level, first } = trailer.span;
    Ok(NodeDirectory { level, first_ordinal: first, extents, pages })
}

fn parse_row(row: &[u8], offset: u64) -> Option<NodePage> {
    let mut reader = Reader::new(row);
    let (disk, start) = (DiskId(reader.u32()?), reader.u64()?);
    let (bytes, extents) = (size(reader.u32()?.into()), size(reader.u32()?.into()));
    let page = NodePage { disk, start, offset, bytes, extents, hash: reader.array()? };
    (1..=PAGE_EXTENTS).contains(&extents).then_some(page)
}

/// Decodes one page of the node that covers `span`.
pub(crate) fn decode_page(
    page: &NodePage,
    span: Span,
    bytes: &[u8],
    key: &[u8; 32],
) -> Result<Vec<Extent>, NodeError> {
    if !same_hash(&page.hash, &part_hash(key, bytes)) {
        return Err(page.error("a page's hash does not match"));
    }
    parse_page(page, span, bytes).ok_or(page.error("a page breaks the format"))
}

fn parse_page(page: &NodePage, span: Span, bytes: &[u8]) -> Option<Vec<Extent>> {
    let mut reader = Reader::new(bytes);
    if usize::from(reader.u16()?) != page.extents {
        return None;
    }
    let mut column = || unpack(&mut reader, page.extents);
    let (gaps, sectors, lsns, segments) = (column()?, column()?, column()?, column()?);
    let (starts, totals, offsets) = (column()?, column()?, column()?);
    reader.end()?;
    let mut end = 0_u64;
    let mut extents = Vec::with_capacity(page.extents);
    let spans = gaps.iter().zip(&sectors).zip(lsns.iter().zip(&segments));
    for (((gap, sectors), (lsn, segment)), ((payload, total), offset)) in
        spans.zip(starts.iter().zip(&totals).zip(&offsets))
    {
        let start = end.checked_add(*gap)?;
        end = start.checked_add(*sectors)?;
        let place = parse_place(*payload, *total, *offset, *sectors)?;
        if *sectors == 0 || !span.contains(*segment) {
            return None;
        }
        extents.push(Extent {
            disk: page.disk,
            start,
            end,
            lsn: Lsn(*lsn),
            segment: *segment,
            arrival: 0,
            place,
        });
    }
    (extents.first()?.start == page.start).then_some(extents)
}

fn parse_place(payload: u64, total: u64, offset: u64, sectors: u64) -> Option<Place> {
    match (total, payload) {
        (0, 0 | 1) => Some(Place::Zero { discard: payload == 1 }),
        (0, _) => None,
        _ => (offset.checked_add(sectors)? <= total).then_some(Place::Payload {
            payload_start: u32::try_from(payload).ok()?,
            payload_sectors: u16::try_from(total).ok()?,
            offset_sectors: u16::try_from(offset).ok()?,
        }),
    }
}

/// Decodes a whole node: every page, checked; `key` is that of its journal.
///
/// # Errors
/// The first part that is not as written.
pub fn decode(bytes: &[u8], key: &[u8; 32]) -> Result<NodeDirectory, NodeError> {
    let file_bytes = bytes.len() as u64;
    let cut = NodeError { offset: file_bytes, bytes: 0, problem: "the file is too short for a node" };
    let (rest, trailer) = bytes.split_last_chunk::<TRAILER_BYTES>().ok_or(cut)?;
    let trailer = decode_trailer(trailer, file_bytes)?;
    let (pages, directory) = rest.split_at_checked(size(trailer.page_bytes)).ok_or(cut)?;
    let directory = parse_directory(&trailer, directory, key)?;
    let mut end = None;
    for page in &directory.pages {
        let from = size(page.offset);
        let bytes = pages.get(from..from.saturating_add(page.bytes)).ok_or(cut)?;
        let extents = decode_page(page, trailer.span, bytes, key)?;
        if end.is_some_and(|end| end > (page.disk, page.start)) {
            return Err(page.error("the extents of two pages overlap"));
        }
        end = extents.last().map(|last| (page.disk, last.end));
    }
    Ok(directory)
}
