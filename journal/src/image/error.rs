//! What can go wrong with images.

use thiserror::Error;

use crate::store::{ChunkId, StoreError};

/// An image cannot be built or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The store failed, or lacks a chunk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A chunk of the store is intact but not what the image takes it for.
    #[error("chunk {chunk} is no part of an image: {problem}")]
    Broken {
        /// The chunk.
        chunk: ChunkId,
        /// What is wrong.
        problem: &'static str,
    },
    /// The descriptor is not as written.
    #[error("the image's descriptor is damaged: {0}")]
    Descriptor(&'static str),
    /// Written by a newer version.
    #[error("the image needs a newer version of tidemark")]
    Newer,
    /// The range ends beyond the disk, or is no whole number of sectors.
    #[error("bytes {offset} to {end} lie beyond the end of the disk at {size}")]
    Range {
        /// First byte asked for.
        offset: u64,
        /// Byte after the last one asked for.
        end: u64,
        /// Size of the disk, bytes.
        size: u64,
    },
    /// Ranges do not come in ascending order without overlaps.
    #[error("a range at sector {0} comes after a later one")]
    Order(u64),
    /// A disk is larger than images can be.
    #[error("a disk of {0} bytes is too large for an image")]
    TooLarge(u64),
}
