//! Certificates: what was recovered, from what, and what it hashes to.
//!
//! ## What is signed (Ed25519), version 1; integers are little-endian, a text or bytes are length u32 and bytes
//! `tidemark recovery certificate 1` and a zero byte, VM id 16, name of the VM, disk u32, LSN u64, its time u64, time of
//! issue u64, size in bytes u64, BLAKE3 of the content 32, then the head that covers the point {segment, frames, seq, LSN,
//! time u64 each, hash 32}, segment count u32 and segments {ordinal u64, hash 32}, and a byte: 0 no image, 1 an image
//! {LSN u64, root 32}.

use tidemark_proto::ids::{DiskId, Lsn, VmId};

use super::key::{AttestError, PublicKey, SIGNATURE_BYTES, Signer};
use super::statement::Head;
use crate::wire::{Put, length};

const PURPOSE: &[u8] = b"tidemark recovery certificate 1\0";

/// Segments that a certificate names at most: of 64 MiB, 512 GiB of log. Of more, the newest: each hash covers all before.
pub const CERTIFICATE_SEGMENTS_MAX: usize = 8192;

/// What a point is read from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provenance {
    /// A durable head at or after the point.
    pub head: Head,
    /// Segments up to the point, oldest first, each with the hash of its end, or of the head when it is still open. The
    /// newest [`CERTIFICATE_SEGMENTS_MAX`] of them.
    pub segments: Vec<(u64, [u8; 32])>,
    /// LSN and identity of the image below them.
    pub image: Option<(Lsn, [u8; 32])>,
}

/// A disk as it was recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose disk.
    pub vm: VmId,
    /// The VM's name then.
    pub vm_name: String,
    /// Which disk.
    pub disk: DiskId,
    /// The point.
    pub lsn: Lsn,
    /// Appliance time of the point, microseconds since the epoch.
    pub time_us: u64,
    /// When this was said, microseconds since the epoch.
    pub issued_us: u64,
    /// Bytes of the disk then.
    pub size_bytes: u64,
    /// BLAKE3 of these bytes.
    pub content: [u8; 32],
    /// What they were read from.
    pub provenance: Provenance,
}

impl Certificate {
    fn message(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + 40 * self.provenance.segments.len());
        out.put(PURPOSE);
        out.put(self.vm.0.as_bytes());
        out.text(&self.vm_name);
        out.u32(self.disk.0);
        out.u64(self.lsn.0);
        out.u64(self.time_us);
        out.u64(self.issued_us);
        out.u64(self.size_bytes);
        out.put(&self.content);
        let head = &self.provenance.head;
        for number in [head.segment, head.frames, head.seq, head.lsn.0, head.time_us] {
            out.u64(number);
        }
        out.put(&head.hash);
        out.u32(length(self.provenance.segments.len()));
        for (segment, hash) in &self.provenance.segments {
            out.u64(*segment);
            out.put(hash);
        }
        match &self.provenance.image {
            None => out.u8(0),
            Some((lsn, root)) => {
                out.u8(1);
                out.u64(lsn.0);
                out.put(root);
            }
        }
        out
    }

    /// Signs it.
    ///
    /// # Errors
    /// As [`Signer::sign`].
    pub fn sign(&self, signer: &dyn Signer) -> Result<[u8; SIGNATURE_BYTES], AttestError> {
        signer.sign(&self.message())
    }

    /// Whether that key signed it as it is.
    #[must_use]
    pub fn is_signed(&self, public_key: &PublicKey, signature: &[u8]) -> bool {
        public_key.has_signed(&self.message(), signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::SigningKey;

    #[test]
    fn a_signature_holds_for_every_field_and_no_other() {
        let head = Head { segment: 3, frames: 4, seq: 5, lsn: Lsn(6), time_us: 7, hash: [8; 32] };
        let right = Certificate {
            vm: VmId(uuid::Uuid::from_bytes([1; 16])),
            vm_name: "web-1".to_owned(),
            disk: DiskId(1),
            lsn: Lsn(2),
            time_us: 3,
            issued_us: 4,
            size_bytes: 5,
            content: [6; 32],
            provenance: Provenance {
                head,
                segments: vec![(1, [1; 32]), (2, [2; 32])],
                image: Some((Lsn(1), [3; 32])),
            },
        };
        let key = SigningKey::from_seed(&[5; 32]).unwrap();
        let signature = right.sign(&key).unwrap();
        assert!(right.is_signed(&key.public_key(), &signature));
        let changes: [fn(&mut Certificate); 14] = [
            |one| one.vm = VmId(uuid::Uuid::from_bytes([2; 16])),
            |one| one.vm_name.push('x'),
            |one| one.disk = DiskId(2),
            |one| one.lsn = Lsn(3),
            |one| one.time_us += 1,
            |one| one.issued_us += 1,
            |one| one.size_bytes += 1,
            |one| one.content = [7; 32],
            |one| one.provenance.head.hash = [9; 32],
            |one| one.provenance.head.frames += 1,
            |one| one.provenance.segments.swap(0, 1),
            |one| one.provenance.segments.truncate(1),
            |one| one.provenance.image = None,
            |one| one.provenance.image = Some((Lsn(2), [3; 32])),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut changed = right.clone();
            change(&mut changed);
            assert!(!changed.is_signed(&key.public_key(), &signature), "change {number}");
        }
        let other = SigningKey::from_seed(&[6; 32]).unwrap().public_key();
        assert!(!right.is_signed(&other, &signature) && !right.is_signed(&key.public_key(), &[0; 64]));
    }
}
