//! Extents, in order, to the bytes of a node; no more than a page of them is in memory, and the directory.

use super::extent::Extent;
use super::pack::pack;
use super::{HASHED_TRAILER_BYTES, MAGIC, PAGE_EXTENTS, Span, TRAILER_BYTES};
use crate::index::Place;
use crate::leaf::part_hash;
use crate::storage::StorageError;
use crate::wire::{Put, length};

/// Takes the bytes of a node, in order.
pub(crate) trait Sink {
    /// Takes the next bytes.
    fn put(&mut self, bytes: &[u8]) -> Result<(), StorageError>;
}

/// A node that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub bytes: u64,
    pub extents: u64,
    /// The hash in the trailer, which the manifest keeps.
    pub hash: [u8; 32],
}

pub(crate) struct Encoder<'a> {
    span: Span,
    key: [u8; 32],
    sink: &'a mut dyn Sink,
    /// At most a page, all of one disk.
    page: Vec<Extent>,
    directory: Vec<u8>,
    pages: usize,
    page_bytes: u64,
    extents: u64,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(span: Span, key: [u8; 32], sink: &'a mut dyn Sink) -> Self {
        let page = Vec::with_capacity(PAGE_EXTENTS);
        Self { span, key, sink, page, directory: Vec::new(), pages: 0, page_bytes: 0, extents: 0 }
    }

    /// Takes the next extent: of a later disk, or of the same and not before the end of the last.
    pub(crate) fn push(&mut self, extent: Extent) -> Result<(), StorageError> {
        // Among the extents of a node nothing is left to decide by arrival, and base blocks of one frame join.
        let extent = Extent { arrival: 0, ..extent };
        let full = self.page.len() == PAGE_EXTENTS;
        if let Some(last) = self.page.last_mut() {
            if last.join(&extent) {
                return Ok(());
            }
            if full || last.disk != extent.disk {
                self.end_page()?;
            }
        }
        self.page.push(extent);
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), StorageError> {
        let Some(first) = self.page.first() else { return Ok(()) };
        let mut out = Vec::new();
        out.u16(u16::try_from(self.page.len()).unwrap_or(u16::MAX));
        let mut end = 0;
        let gap = |extent: &Extent| {
            let gap = extent.start.saturating_sub(end);
            end = extent.end;
            gap
        };
        pack(&self.page.iter().map(gap).collect::<Vec<_>>(), &mut out);
        let columns: [fn(&Extent) -> u64; 6] = [
            |extent| extent.end - extent.start,
            |extent| extent.lsn.0,
            |extent| extent.segment,
            |extent| place(extent).0,
            |extent| place(extent).1,
            |extent| place(extent).2,
        ];
        for column in columns {
            pack(&self.page.iter().map(column).collect::<Vec<_>>(), &mut out);
        }
        self.directory.u32(first.disk.0);
        self.directory.u64(first.start);
        self.directory.u32(length(out.len()));
        self.directory.u32(length(self.page.len()));
        self.directory.put(&part_hash(&self.key, &out));
        self.pages += 1;
        self.page_bytes += out.len() as u64;
        self.extents += self.page.len() as u64;
        self.page.clear();
        self.sink.put(&out)
    }

    pub(crate) fn finish(mut self) -> Result<Written, StorageError> {
        self.end_page()?;
        let mut trailer = Vec::with_capacity(TRAILER_BYTES);
        trailer.put(&MAGIC);
        trailer.u16(1);
        trailer.u16(self.span.level);
        trailer.u32(length(self.pages));
        trailer.u64(self.span.first);
        trailer.u64(self.extents);
        trailer.u64(self.page_bytes);
        trailer.u64(0);
        debug_assert_eq!(trailer.len(), HASHED_TRAILER_BYTES);
        let hash = trailer_hash(&self.key, &trailer, &self.directory);
        trailer.put(&hash);
        self.sink.put(&self.directory)?;
        self.sink.put(&trailer)?;
        let bytes = self.page_bytes + (self.directory.len() + trailer.len()) as u64;
        Ok(Written { bytes, extents: self.extents, hash })
    }
}

pub(super) fn trailer_hash(key: &[u8; 32], fixed: &[u8], directory: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(fixed);
    hasher.update(directory);
    *hasher.finalize().as_bytes()
}

fn place(extent: &Extent) -> (u64, u64, u64) {
    match extent.place {
        Place::Zero { discard } => (discard.into(), 0, 0),
        Place::Payload { payload_start, payload_sectors, offset_sectors } => {
            (payload_start.into(), payload_sectors.into(), offset_sectors.into())
        }
    }
}
