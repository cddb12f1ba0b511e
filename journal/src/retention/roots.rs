//! What journals need of the chunk store.

use std::collections::BTreeSet;

use crate::branch::BranchPoint;
use crate::image::{Image, ImageError, mark};
use crate::store::{ChunkStore, Collection};
use crate::{ImageNames, Journal, LiveImages};

/// Marks everything that a journal or a view of it reads. List nothing before the collection began.
///
/// # Errors
/// When a descriptor is damaged or the store fails: the collection must not be swept then.
pub fn mark_images(
    store: &ChunkStore,
    journal: &Journal,
    collection: &Collection,
) -> Result<u64, ImageError> {
    let mut images: Vec<ImageNames> = journal.base().into_iter().map(|(_, images)| images).collect();
    images.extend(journal.snapshots().iter().map(|kept| {
        let disks = kept.disks.iter();
        disks.map(|disk| (disk.id, disk.image.clone())).collect()
    }));
    Ok(mark_names(store, &images, collection)? + mark_all(store, &journal.live_images(), collection)?)
}

/// Marks what views still read, of a journal that may be closed by now. How many chunks are missing.
///
/// # Errors
/// As [`mark_images`].
pub fn mark_all(store: &ChunkStore, live: &LiveImages, collection: &Collection) -> Result<u64, ImageError> {
    mark_names(store, &live.images(), collection)
}

fn mark_names(store: &ChunkStore, images: &[ImageNames], collection: &Collection) -> Result<u64, ImageError> {
    let descriptors = images.iter().flatten().map(|(_, descriptor)| descriptor.as_slice());
    // What continues another journal has nothing in the store: its parent keeps what it reads.
    let descriptors: BTreeSet<&[u8]> =
        descriptors.filter(|descriptor| BranchPoint::decode(descriptor).is_none()).collect();
    let mut missing = 0;
    // What a branch begins with is its parent's to keep.
    for descriptor in descriptors.into_iter().filter(|descriptor| BranchPoint::decode(descriptor).is_none()) {
        missing += mark(store, &Image::decode(descriptor)?, collection)?;
    }
    Ok(missing)
}
