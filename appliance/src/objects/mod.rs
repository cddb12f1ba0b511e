//! Objects: ISOs, OVAs, templates and any other file, kept in the chunk store beside the images of disks and
//! deduplicated against them.
//!
//! An object's content is an image (the tree of its 64 KiB chunks), so everything that holds for images holds for it:
//! each byte is verified when it is read, a scrub checks it, a template can become a disk. Its record is a file in
//! `DIR/objects`, written whole or not at all: that file is the authority and keeps the chunks from collections. The
//! catalog has a copy, to be searched.
//!
//! - [`Object`] is the record, [`Objects`] all of them.
//! - [`Uploads`] takes content in; nothing is visible until it is whole, verified and durable.

mod error;
mod files;
mod record;
mod registry;
mod roots;
mod upload;
mod uploads;

pub use error::ObjectError;
pub use record::{Object, ObjectKind, RecordError};
pub use registry::{Change, Objects};
pub use roots::ObjectRoots;
pub use upload::{NewObject, Piece};
pub use uploads::{Attached, Uploads};

/// Limits of objects. Each says its unit, its reason and what happens beyond it.
pub mod limits {
    use std::time::Duration;

    /// Objects at most: their records are in memory, some hundred bytes each. Another is refused.
    pub const OBJECTS_MAX: usize = 65_536;

    /// Bytes of one object at most: far beyond any disk. A larger one is refused.
    pub const OBJECT_MAX_BYTES: u64 = 1 << 50;

    /// Characters of a tag's key at most. Longer ones are refused.
    pub const TAG_KEY_MAX_CHARS: usize = 64;

    /// Characters of a tag's value at most. Longer ones are refused.
    pub const TAG_VALUE_MAX_CHARS: usize = 256;

    /// Bytes of a record at most: names, tags and the descriptor of its image. A longer file is no record.
    pub const RECORD_MAX_BYTES: usize = 256 << 10;

    /// Uploads at a time at most, interrupted ones included: each has a thread and some megabytes. Another is refused.
    pub const UPLOADS_MAX: usize = 16;

    /// Messages of content between the network and an upload's thread at most; then the sender waits.
    pub const PIECES_AHEAD: usize = 8;

    /// How long an interrupted upload can be continued. Afterwards it begins anew; what was stored is found again by
    /// its content until a collection frees it.
    pub const UPLOAD_KEEP: Duration = Duration::from_secs(600);
}
