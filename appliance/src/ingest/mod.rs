//! The splitters' streams: admission, validation, journaling, group commit, acknowledgement.

mod appender;
mod bookmarks;
mod commit;
mod compare;
mod entries;
mod finder;
mod guest_clock;
mod hello;
mod level;
mod offers;
mod reader;
mod service;
mod session;
mod verify;

pub(crate) use bookmarks::CRASH;
pub use bookmarks::{NewBookmark, is_bookmark_name, rebuild_bookmarks, store_bookmark};
pub use commit::Committer;
pub use service::SplitterService;

/// Milliseconds between commits: far below the RPO goal, long enough that many frames share one `fdatasync`.
pub const COMMIT_TICK_MS: u64 = 10;

/// Journals synced at the same time at most: enough to keep an NVMe queue busy, few enough to leave threads to others.
pub const COMMIT_PARALLEL: usize = 8;

/// VMs whose questions by hashes are answered at the same time at most: comparing takes a processor each and must leave
/// some to ingest. Others wait, and with them only their own copies.
pub const COMPARE_PARALLEL: usize = 2;
