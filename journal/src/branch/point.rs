//! Where a branch begins.

use tidemark_proto::ids::{DiskId, Lsn, VmId};
use uuid::Uuid;

use crate::image::Image;
use crate::records::DiskRecord;
use crate::wire::{Put, Reader};

/// See the module's table.
const MAGIC: [u8; 8] = *b"TMBRNCH1";

/// What the fields end with: room for a later field, and a length of its own that no other descriptor has.
const PADDING: [u8; 6] = [0; 6];

/// A point of another journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BranchPoint {
    /// Whose journal.
    pub parent: VmId,
    /// The point.
    pub lsn: Lsn,
}

/// Everything a branch begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchStart {
    /// The point that it continues.
    pub point: BranchPoint,
    /// Time of that point, microseconds since the epoch.
    pub time_us: u64,
    /// The parent's disks that are exact there, by their ids in the parent, with their sizes as of the point.
    pub disks: Vec<DiskRecord>,
}

/// Everything a branch of images begins with, that is a clone of something that has no journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageStart {
    /// Time of its first point, microseconds since the epoch.
    pub time_us: u64,
    /// The disks and what each holds.
    pub disks: Vec<(DiskRecord, Image)>,
}

impl BranchPoint {
    /// What a disk of a branch has below its log, as its manifest says it.
    pub(crate) fn encode(&self, disk: DiskId) -> Vec<u8> {
        let mut out = Vec::with_capacity(42);
        out.put(&MAGIC);
        out.put(self.parent.0.as_bytes());
        out.u64(self.lsn.0);
        out.u32(disk.0);
        out.put(&PADDING);
        out
    }

    /// `None`: the descriptor is of something else, an image say.
    #[must_use]
    pub fn decode(descriptor: &[u8]) -> Option<(Self, DiskId)> {
        let mut reader = Reader::new(descriptor);
        let magic: [u8; 8] = reader.array()?;
        let parent = VmId(Uuid::from_bytes(reader.array()?));
        let (lsn, disk) = (Lsn(reader.u64()?), DiskId(reader.u32()?));
        let padding: [u8; 6] = reader.array()?;
        reader.end()?;
        (magic == MAGIC && padding == PADDING).then_some((Self { parent, lsn }, disk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let point = BranchPoint { parent: VmId(Uuid::from_bytes([3; 16])), lsn: Lsn(0x0102) };
        let bytes = point.encode(DiskId(7));
        let golden = b"TMBRNCH1\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x02\x01\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0";
        assert_eq!(bytes, golden);
        assert_eq!(BranchPoint::decode(&bytes), Some((point, DiskId(7))));
        for length in 0..bytes.len() {
            assert_eq!(BranchPoint::decode(bytes.get(..length).unwrap()), None, "{length}");
        }
        let mut other = bytes.clone();
        other.push(0);
        assert_eq!(BranchPoint::decode(&other), None);
        let mut other = bytes;
        *other.last_mut().unwrap() = 1;
        assert_eq!(BranchPoint::decode(&other), None, "a later version says more");
    }
}
