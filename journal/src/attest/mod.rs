//! Statements: a key outside the journal says that the log, up to a head, is as it was written.
//!
//! A frame's hash covers its head, its payload and, through the hash of the frame before, every frame of the log up to
//! it, gaps and all (`crate::frame`). The keys of these hashes lie in the journal, so whoever can write the folder can
//! write another log. A statement signs one such hash, the *head*, and with it a digest of what the manifest says and no
//! frame repeats: disks and their sizes, images, snapshots and what was dropped below them, hashes of segments of older formats.
//! [`prove`] finds out, from the files and the public key alone, up to which LSN the log is as it was signed.
//!
//! Statements are made at each bookmark, when a segment is closed, when disks or images change, at a clean end, and when
//! the caller asks ([`crate::Journal::attest`]). What comes after the last one is not proven yet. An older copy of the
//! whole folder is proof of its own time and no more: compare its head with one that was noted elsewhere.
//!
//! ## What is signed (Ed25519), version 1; integers are little-endian
//! `tidemark journal statement 1` and a zero byte, VM id 16, journal key 32, then the statement as the manifest holds it
//! but for public key and signature: kind u8 (1 checkpoint, 2 bookmark, 3 the end of a segment), segment u64, frames u64
//! (read of it; all ones: its footer too), seq u64, LSN u64, time of the LSN u64, head 32, digest of the state 32.

mod certificate;
mod key;
mod proof;
mod statement;

pub use certificate::{CERTIFICATE_SEGMENTS_MAX, Certificate, Provenance};
pub use key::{AttestError, PublicKey, Signer, SigningKey};
pub(crate) use proof::Trail;
pub use proof::{Proof, prove};
pub use statement::{Head, Statement, StatementKind};
pub(crate) use statement::{WHOLE_SEGMENT, state_digest};
