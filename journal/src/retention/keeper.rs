//! Reads images of the chunk store for views below the log.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::SECTOR_BYTES;

use crate::image::{Image, ImageError, ImageReader};
use crate::store::ChunkStore;
use crate::view::{BaseImages, Extent, ExtentKind};
use crate::wire::size;

/// Decoded descriptors kept: as many as views are open at once, times some disks. Beyond it the oldest is decoded again
/// when it is needed.
const READERS_MAX: usize = 256;

/// Reads the images that journals name by their descriptors. One for all journals of a store.
#[derive(Debug)]
pub struct ImageKeeper {
    store: Arc<ChunkStore>,
    readers: Mutex<VecDeque<(Vec<u8>, ImageReader)>>,
}

impl ImageKeeper {
    /// Reads from `store`.
    #[must_use]
    pub fn new(store: Arc<ChunkStore>) -> Self {
        Self { store, readers: Mutex::default() }
    }

    fn reader(&self, descriptor: &[u8]) -> Result<ImageReader, ImageError> {
        let readers = || self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reader)) = readers().iter().find(|(known, _)| known == descriptor) {
            return Ok(reader.clone());
        }
        let reader = ImageReader::new(Arc::clone(&self.store), Image::decode(descriptor)?);
        let mut readers = readers();
        if readers.len() >= READERS_MAX {
            readers.pop_front();
        }
        readers.push_back((descriptor.to_vec(), reader.clone()));
        Ok(reader)
    }
}

impl BaseImages for ImageKeeper {
    fn read(
        &self,
        _: DiskId,
        image: &[u8],
        sector: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let reader = self.reader(image)?;
        let offset = sector.saturating_mul(SECTOR_BYTES);
        let inside = reader.image().size_bytes().saturating_sub(offset).min(buffer.len() as u64);
        let (content, beyond) = buffer.split_at_mut_checked(size(inside)).unwrap_or_default();
        beyond.fill(0);
        if content.is_empty() { Ok(()) } else { Ok(reader.read_at(offset, content)?) }
    }

    fn extents(
        &self,
        _: DiskId,
        image: &[u8],
        sector: u64,
        sectors: u64,
    ) -> Result<Vec<Extent>, Box<dyn Error + Send + Sync>> {
        let reader = self.reader(image)?;
        let (offset, bytes) = (sector.saturating_mul(SECTOR_BYTES), sectors.saturating_mul(SECTOR_BYTES));
        let inside = reader.image().size_bytes().saturating_sub(offset).min(bytes);
        let found = if inside > 0 { reader.extents(offset, inside)? } else { Vec::new() };
        let mut extents: Vec<Extent> = found
            .iter()
            .map(|extent| {
                let kind = if extent.zero { ExtentKind::Zero } else { ExtentKind::Data };
                Extent { offset: extent.offset, bytes: extent.bytes, kind }
            })
            .collect();
        extents.extend(Extent::zeroes_beyond(offset, inside, bytes));
        Ok(extents)
    }
}
