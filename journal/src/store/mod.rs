//! The chunk store: content-addressed chunks of up to 64 KiB that all VMs share, compressed, encrypted, in packs.
//!
//! - A chunk's name is a keyed hash of its content ([`ChunkId`]); a chunk that is there is not stored again. Who shares
//!   with whom is the [`KeyDomain`]'s to say.
//! - Packs ([`pack`]) are written whole into a [`PackFolder`]: a local folder here, object storage by the caller. Their
//!   directories are the truth; the chunk index only repeats them.
//! - Keys ([`keys`]) lie in one file, wrapped under a master key that the store never keeps on disk.
//! - [`Session`] protects what it put until its root is durable; [`Collection`] frees what no root reaches.
//! - [`scrub`] checks every stored byte without any key.
//!
//! What a crash may leave is only this: packs that no root reaches (the next collection frees them), a chunk in two
//! packs (likewise), a pack half written under another name (the next opening removes it), an index that is behind
//! (the next opening brings it in line).

mod crypt;
mod error;
mod folder;
mod gc;
mod id;
mod index;
pub mod keys;
mod lru;
mod open;
pub mod pack;
mod put;
mod read;
mod rotate;
mod scrub;
mod session;
mod state;

pub(crate) use crypt::{Secret, TAG_BYTES, derive};
pub use error::StoreError;
pub use folder::{LocalFolder, PackFolder};
pub use gc::{Collection, CollectionReport, Mark, SweepOptions};
pub(crate) use id::from_hex;
pub use id::{CHUNK_BYTES, ChunkId, KeyDomain, PackId};
pub use keys::{KdfCost, MasterKey, MasterSecret};
pub use open::OpenReport;
pub use pack::PackError;
pub use scrub::{ChunkDamage, ScrubReport, scrub};
pub use session::Session;
pub use state::{ChunkStore, StoreOptions, StoreStatistics};

/// Limits of the store. Each says its unit, its reason and what happens beyond it.
pub mod limits {
    /// Bytes of a pack at which it is written. Large enough that its file and its sync vanish beside the content,
    /// small enough to be held in memory and repacked in a fraction of a second.
    pub const PACK_BYTES: usize = 16 << 20;

    /// Bytes of a pack at most, whatever the options say: a pack is held in memory. A larger option is refused.
    pub const PACK_MAX_BYTES: usize = 64 << 20;

    /// Bytes of packs in memory that are being filled or wait for space, over all domains, as a multiple of the pack
    /// size. Beyond it the fullest is written early.
    pub const OPEN_PACKS_MAX: usize = 4;

    /// Bytes that are left free beside a pack that is written, by default: what the index may need to note some packs and
    /// to forget others. Its B-tree must never meet a full disk, after which it takes nothing until it is opened again.
    /// Beyond it packs stay in memory and puts fail as on a full disk, while reads and collections go on.
    pub const FLOOR_BYTES: u64 = 64 << 20;

    /// Bytes of decoded chunks kept for readers by default. Least recently used go first.
    pub const CACHE_BYTES: usize = 16 << 20;

    /// Bytes of the chunk index kept in memory by default.
    pub const INDEX_CACHE_BYTES: usize = 8 << 20;

    /// Key domains at most; another is refused.
    pub const DOMAINS_MAX: usize = 65_536;

    /// Sessions at most: each holds a few bytes for each old pack that it relies on. Another is refused.
    pub const SESSIONS_MAX: usize = 1024;

    /// Packs that one step of a sweep repacks before the old ones are deleted: bounds the space a sweep takes.
    pub const REPACK_STEP_PACKS: usize = 16;

    /// Packs that a sweep deletes before what it did to the index is durable. The index takes new pages for what is not, so
    /// without this a large collection on a full disk would eat [`FLOOR_BYTES`] before it gives anything back.
    pub const DELETED_STEP_PACKS: usize = 16;

    /// Bytes that the index may need to note one chunk: a page, where chunks' ids lie apart from each other. Asked for beside
    /// each pack that is written.
    pub const INDEX_CHUNK_BYTES: u64 = 4096;

    /// Small packs of one domain that are merged: fewer are left alone, so that a store that is flushed often does
    /// not rewrite the same chunks at each collection.
    pub const SMALL_PACKS_MERGED: usize = 8;
}
