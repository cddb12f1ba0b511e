//! Encryption at rest: the payload of frames, under data keys of one journal that lie wrapped in its folder.
//!
//! ## What is encrypted, and how
//! Each payload is cut into blocks of 4 KiB, which are also the units of checksums: a read of 4 KiB decrypts 4 KiB. A block
//! is encrypted with AES-256-GCM; ciphertext takes the place of plaintext byte for byte, so that indexes stay as they
//! are, and tags lie in the frame's head ([`crate::frame`]). Checksums and hashes are over bytes as stored: `verify` and
//! `prove` need no keys.
//!
//! ## Why no nonce meets a key twice
//! A frame's key is BLAKE3 keyed with the data key, over the frame's salt and the segment's ordinal; the nonce is the
//! block's number in the frame, so within a frame no nonce repeats. Two frames have the same key only if they have the
//! same salt. Salts are 32 bytes of BLAKE3 keyed with the seed of this opening, over the writer generation, the segment,
//! the frame's ordinal and a count of attempts of this opening. Therefore:
//! - a frame that did not fit on a full disk, and is appended again, has another salt: the count went on;
//! - a torn tail that is cut and written anew has another: every opening has a new seed, and a new generation as well;
//! - a folder that is put back from a copy, with its generations, has another: the seed is new. The caller owes 32
//!   random bytes for each opening ([`Encryption`]); should one come twice, the generation still differs unless the folder
//!   was put back too;
//! - replicas, copies and clones have other data keys, or the same bytes.
//!
//! ## What a folder reveals without its keys
//! Which ranges of which disks were written when, how long each write was and of which kind, sizes and identities of
//! disks, bookmarks and notes by name. Never content: nothing but payload holds any.
//!
//! ## Keys
//! File `keys`: as `chunk-keys` of the store ([`crate::store::keys`]), with one domain, the VM's id. A segment's header
//! names the data key of its frames by ordinal; 0 is none. A new data key holds for new segments; a new master key wraps
//! the same data keys again and touches nothing else ([`rewrap`], of a journal that nobody has open). Who deletes the file has deleted the content.

mod cipher;
mod keys;

pub(crate) use cipher::{Attempt, FrameCipher, SegmentCipher};
pub(crate) use keys::{DataKeys, KEY_FILE, KEY_NEW_FILE, key_file_bytes, key_file_damage};
pub use keys::{Encryption, check, rewrap};
