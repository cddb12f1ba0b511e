//! The splitter's state folder: who it is, what it protects, and the nonce of its last session.
//!
//! Files are written whole or not at all (new file, `fsync`, rename, `fsync` of the folder) and are readable by root
//! only. Nothing here grows: the journal of writes is at the appliance.

mod files;
mod folder;

pub use files::{All, Disks, GatesFile, Identity, ProtectedDisk, Quarantine, SyncVolumeConfig};
pub use folder::{DEFAULT_STATE, StateDir, StateError, StateLock};
