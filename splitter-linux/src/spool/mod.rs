//! The spool: frames that wait for a slow or absent appliance, in files of a folder, encrypted.
//!
//! What it is for, and when it is used, is in `tidemark_splitter_core::engine` (the ladder of overload). Here is the file.
//!
//! **Life.** A spool belongs to one loaded capture and one boot: after a reboot, ring and spool are void alike. So nothing
//! is ever synchronised; the page cache keeps what a killed process wrote. The key lies in a pinned map of the capture, in
//! kernel memory, and is gone with it: files of another capture cannot be read by anybody and are removed.
//!
//! **Files.** `00000001.spool`, `00000002.spool`, …: appended to until [`limits::SEGMENT_BYTES`], removed when the last frame
//! in them is acknowledged. Integers are little-endian.
//!
//! Header of a file, 64 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `TMSPOOL\0` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | bytes of this header, 64 |
//! | 16 | 16 | capture id |
//! | 32 | 8 | number of the file |
//! | 40 | 8 | number of its first frame |
//! | 48 | 12 | zero |
//! | 60 | 4 | CRC-32C of the 60 bytes before |
//!
//! Record, one frame:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `TMSR` |
//! | 4 | 4 | bytes of what is encrypted, with its tag of 16 |
//! | 8 | 8 | number of the frame |
//! | 16 | 32 | salt, random |
//! | 48 | 4 | CRC-32C of the 48 bytes before |
//! | 52 | 4 | zero |
//! | 56 | | AES-256-GCM of: LSN at the end of the frame (8), ring floor (8), chain before it (32), the `Frame` as protobuf |
//!
//! A record's key is BLAKE3, keyed with the spool's key, of its salt, and is used for nothing else: so the nonce is zero,
//! also where a torn record is written once more after a crash. Authenticated with it are the header of the file and the
//! record's first 56 bytes: a record in another place, file or capture does not open.
//!
//! **Torn records.** A record counts if all of it is there and opens. At the first that does not, the spool ends; what was
//! behind is cut off. That is what a killed process leaves, and harmless: the ring still has these writes, because it is
//! released only when a write has returned. Whether more is missing than that, the engine sees by the ring's position.

pub mod format;
pub mod limits;
mod segment;
mod store;

pub use store::{Room, Store, StoreError, destroy};
