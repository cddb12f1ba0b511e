//! A statement, to bytes and back, and what it is about.

use tidemark_proto::ids::{Lsn, VmId};

use super::key::{AttestError, PublicKey, SIGNATURE_BYTES, Signer};
use crate::manifest::{Keeping, Record, State};
use crate::wire::{Put, Reader};

const PURPOSE: &[u8] = b"tidemark journal statement 1\0";

/// As frames read of a segment: all, and its footer.
pub(crate) const WHOLE_SEGMENT: u64 = u64::MAX;

/// Where a log stood: a hash that stands for every byte up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// The segment; 0: nothing was ever appended.
    pub segment: u64,
    /// Frames of it that are covered; `u64::MAX`: all, and its footer.
    pub frames: u64,
    /// Seq of the last frame.
    pub seq: u64,
    /// The last LSN.
    pub lsn: Lsn,
    /// Appliance time of that LSN, microseconds since the epoch.
    pub time_us: u64,
    /// Hash of the last frame; of the segment's header before its first.
    pub hash: [u8; 32],
}

impl Head {
    /// Its place in the log.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.segment, self.frames)
    }
}

/// Why a statement was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StatementKind {
    /// From time to time; the next one takes its place.
    Checkpoint = 1,
    /// At a bookmark.
    Bookmark = 2,
    /// At the end of a segment.
    Segment = 3,
}

impl StatementKind {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Checkpoint, Self::Bookmark, Self::Segment].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A signed head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// Why it was made.
    pub kind: StatementKind,
    /// Where the log stood.
    pub head: Head,
    /// Digest of what no frame says.
    pub state: [u8; 32],
    /// Who signed.
    pub public_key: PublicKey,
    /// Ed25519.
    pub signature: [u8; SIGNATURE_BYTES],
}

impl Statement {
    pub(crate) fn sign(
        kind: StatementKind,
        head: Head,
        state: [u8; 32],
        (vm, key): (VmId, &[u8; 32]),
        signer: &dyn Signer,
    ) -> Result<Self, AttestError> {
        let public_key = signer.public_key();
        let mut statement = Self { kind, head, state, public_key, signature: [0; SIGNATURE_BYTES] };
        statement.signature = signer.sign(&statement.message(vm, key))?;
        Ok(statement)
    }

    /// Whether its key signed it, for that journal.
    pub(crate) fn is_signed(&self, vm: VmId, key: &[u8; 32]) -> bool {
        self.public_key.has_signed(&self.message(vm, key), &self.signature)
    }

    fn message(&self, vm: VmId, key: &[u8; 32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.put(PURPOSE);
        out.put(vm.0.as_bytes());
        out.put(key);
        self.encode_said(&mut out);
        out
    }

    fn encode_said(&self, out: &mut Vec<u8>) {
        out.u8(self.kind as u8);
        out.u64(self.head.segment);
        out.u64(self.head.frames);
        out.u64(self.head.seq);
        out.u64(self.head.lsn.0);
        out.u64(self.head.time_us);
        out.put(&self.head.hash);
        out.put(&self.state);
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.encode_said(out);
        out.put(&self.public_key.0);
        out.put(&self.signature);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            kind: StatementKind::from_number(reader.u8()?)?,
            head: Head {
                segment: reader.u64()?,
                frames: reader.u64()?,
                seq: reader.u64()?,
                lsn: Lsn(reader.u64()?),
                time_us: reader.u64()?,
                hash: reader.array()?,
            },
            state: reader.array()?,
            public_key: PublicKey(reader.array()?),
            signature: reader.array()?,
        })
    }
}

/// Digest of what the manifest says, what recovery points depend on, and no frame repeats: disks, the base, snapshots, and
/// hashes of segments of older formats. Each part is a manifest record's body after its length.
pub(crate) fn state_digest(state: &State) -> [u8; 32] {
    let disks = state.disks.values().cloned().map(Record::Disk);
    let base = state.base.iter().cloned().map(Record::Base);
    let kept = state.kept.values().cloned().map(|kept| Record::Keeping(Keeping::Kept(kept)));
    let hashed = state.hashed_from.map(Record::HashedFrom);
    let contents = state.contents.iter().map(|(ordinal, hash)| Record::Content(*ordinal, *hash));
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"tidemark journal state 1\0");
    let mut body = Vec::new();
    for record in disks.chain(base).chain(kept).chain(hashed).chain(contents) {
        body.clear();
        record.encode(&mut body);
        hasher.update(&record.kind().to_le_bytes());
        hasher.update(&(body.len() as u64).to_le_bytes());
        hasher.update(&body);
    }
    *hasher.finalize().as_bytes()
}
