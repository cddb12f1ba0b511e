//! Keys: the master key and where it comes from, the keys of each domain, and the file in which they lie wrapped.
//!
//! ## Key file, version 1; integers are little-endian
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TMKEYS01` |
//! | 8 | 2 | version = 1 |
//! | 10 | 2 | derivation: 0 the master key is used as given, 1 Argon2id of a passphrase |
//! | 12 | 4 | Argon2id memory, KiB |
//! | 16 | 4 | Argon2id passes |
//! | 20 | 4 | Argon2id lanes |
//! | 24 | 4 | bytes of the body as stored |
//! | 28 | 4 | reserved = 0 |
//! | 32 | 32 | salt of the derivation |
//! | 64 | 32 | salt of the wrapping |
//! | 96 | 32 | BLAKE3 of the body, keyed from the master key |
//! | 128 | 32 | BLAKE3 over bytes 0..128 and the stored body |
//! | 160 | | body: AES-256-GCM, bytes 0..128 authenticated with it |
//!
//! Body: domain count u32, then each {domain 16, id key 32, key count u32, data keys {ordinal u32, key 32}}, both
//! ascending. The wrapping key comes from the master key, the salt and the hash of the body, so a salt that comes
//! twice repeats nothing but the same file.
//!
//! ## History
//! Version 1: first light.

mod change;
mod file;
mod master;
mod ring;

pub use change::{MasterChange, Rewrapped};
pub(crate) use file::KEY_FILE_MAX_BYTES;
pub use file::{KeyFile, KeyFileError};
pub use master::{KdfCost, MasterKey, MasterSecret};
pub(crate) use ring::{DomainKeys, KeyRing};
