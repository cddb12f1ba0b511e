//! Where the packs of the chunk store lie: in the data folder, or in S3-compatible object storage by URL.
//!
//! - [`PackLocation`] is the URL, [`Access`] the endpoint and the credentials.
//! - [`ObjectFolder`] keeps packs as objects; [`PieceCache`] keeps what was read of them on the local disk.
//! - [`open`] puts them together: it refuses a server that ignores conditional writes, and a place that another
//!   appliance owns.
//!
//! ## Objects below the prefix
//! | name | content | changes |
//! |---|---|---|
//! | `owner` | JSON: `version` = 1, `appliance` (SHA-256 of its CA), `session`, `host`, `claimed_us` | replaced at each start of its appliance |
//! | `packs/pack-<32 digits>` | a pack, as `journal/FORMAT.md` says | written once with `If-None-Match: *`; deleted by collections |
//! | `probes/<32 digits>` | what the start's self-test writes | deleted by it, or by the next start |

mod access;
mod cache;
mod error;
mod folder;
mod location;
mod open;
mod owner;
mod remote;
mod self_test;
mod whole;

pub use access::{Access, AccessError};
pub use cache::{CacheStatistics, PieceCache};
pub use error::PacksError;
pub use folder::ObjectFolder;
pub use location::{InvalidPackLocation, ObjectPlace, PackLocation};
pub use open::{PackSettings, Packs, open};
pub use remote::Remote;
pub use whole::WholePacks;

/// Limits of packs in object storage. Each says its unit, its reason and what happens beyond it.
pub mod limits {
    use std::time::Duration;

    /// Bytes that one call moves at most without retries counting as failed: two minutes for the largest pack is half
    /// a megabyte per second. Slower links fail the call, which is tried again.
    pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

    /// How long a connection may take. Beyond it the call is tried again.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

    /// Tries after the first of one call, with growing pauses. Beyond them the caller is told; nothing is lost.
    pub const RETRIES_MAX: usize = 4;

    /// From the first try of a call; none begins later than this.
    pub const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

    /// All tries of one call together, so that a blocked thread comes back whatever the server does.
    pub const CALL_TIMEOUT: Duration = Duration::from_secs(300);

    /// Bytes of a pack that are fetched and cached together: a read of one chunk of 64 KiB costs at most 16 times its
    /// size, a sequential reader one request per MiB or less.
    pub const PIECE_BYTES: usize = 1 << 20;

    /// Pieces fetched at once when the piece before is in the cache: a sequential reader waits once per 4 MiB.
    pub const AHEAD_PIECES: u32 = 4;

    /// Bytes of pieces kept on the local disk by default. Least recently used go first.
    pub const CACHE_BYTES: u64 = 1 << 30;

    /// How old the last look at the owner object may be before a write or a deletion looks again.
    pub const OWNER_CHECK: Duration = Duration::from_secs(10);

    /// Deletions that wait for the server at most. Beyond it a deletion fails, which the collection reports.
    pub const DELETIONS_MAX: usize = 65_536;
}
