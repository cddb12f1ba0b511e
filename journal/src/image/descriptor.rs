//! An image's descriptor, to bytes and back. Takes anything, panics at nothing.

use std::fmt;

use tidemark_proto::ids::{DiskId, Lsn};

use super::ImageError;
use super::table::{self, Table};
use super::tree::{self, Tree};
use crate::store::{ChunkId, KeyDomain};
use crate::wire::{Put, Reader, length, same_hash};

const MAGIC: [u8; 8] = *b"TMIMAGE1";
const FIXED_BYTES: usize = 88;
const TABLE_BYTES: usize = 40;
const HASH_BYTES: usize = 32;

/// Tables at most, as decoded: 8 of each of 32 levels. More are refused.
const TABLES_MAX: usize = 256;

/// The identity of an image: two with the same one have the same content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub [u8; 32]);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One disk as of one LSN. What it says lies in a chunk store; this is the way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub(crate) domain: KeyDomain,
    pub(crate) disk: DiskId,
    pub(crate) lsn: Lsn,
    pub(crate) size_bytes: u64,
    pub(crate) tree: Tree,
    /// Newest first; levels do not descend.
    pub(crate) tables: Vec<Table>,
}

impl Image {
    /// A disk on which nothing was ever written.
    #[must_use]
    pub fn empty(domain: KeyDomain, disk: DiskId, lsn: Lsn, size_bytes: u64) -> Self {
        let tree = Tree::empty(tree::chunks_of(size_bytes));
        Self { domain, disk, lsn, size_bytes, tree, tables: Vec::new() }
    }

    /// Whose keys its chunks have.
    #[must_use]
    pub fn domain(&self) -> KeyDomain {
        self.domain
    }

    /// Which disk.
    #[must_use]
    pub fn disk(&self) -> DiskId {
        self.disk
    }

    /// As of when.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The disk's size then.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> ImageId {
        ImageId(*blake3::hash(&self.body()).as_bytes())
    }

    fn body(&self) -> Vec<u8> {
        let bytes = FIXED_BYTES + TABLE_BYTES * self.tables.len() + HASH_BYTES;
        let mut out = Vec::with_capacity(bytes);
        out.put(&MAGIC);
        out.u16(1);
        out.u16(0);
        out.u32(length(bytes));
        out.put(&self.domain.0);
        out.u32(self.disk.0);
        out.u8(self.tree.height);
        out.u8(self.tree.root.is_some().into());
        out.u16(u16::try_from(self.tables.len()).unwrap_or(u16::MAX));
        out.u64(self.lsn.0);
        out.u64(self.size_bytes);
        out.put(&self.tree.root.map_or([0; 32], |root| root.0));
        for table in &self.tables {
            out.u8(table.level);
            out.u8(table.height);
            out.u16(0);
            out.u32(0);
            out.put(&table.root.0);
        }
        out
    }

    /// Its descriptor: a hundred bytes to some kilobytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.body();
        let hash = blake3::hash(&out);
        out.put(hash.as_bytes());
        out
    }

    /// Decodes a descriptor.
    ///
    /// # Errors
    /// When it is damaged or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let short = ImageError::Descriptor("it is cut off");
        let Some((body, hash)) = bytes.split_last_chunk::<HASH_BYTES>() else { return Err(short) };
        if !body.starts_with(&MAGIC) {
            return Err(ImageError::Descriptor("it does not begin as an image"));
        }
        if !same_hash(hash, blake3::hash(body).as_bytes()) {
            return Err(ImageError::Descriptor("its hash does not match"));
        }
        let mut reader = Reader::new(body);
        reader.take(MAGIC.len());
        if reader.u16() != Some(1) {
            return Err(ImageError::Newer);
        }
        parse(&mut reader, bytes.len()).ok_or(ImageError::Descriptor("it breaks the format"))
    }
}

fn parse(reader: &mut Reader<'_>, bytes: usize) -> Option<Image> {
    reader.u16().filter(|reserved| *reserved == 0)?;
    reader.u32().filter(|stated| *stated == length(bytes))?;
    let (domain, disk) = (KeyDomain(reader.array()?), DiskId(reader.u32()?));
    let (height, present, count) = (reader.u8()?, reader.u8()?, usize::from(reader.u16()?));
    let (lsn, size_bytes) = (Lsn(reader.u64()?), reader.u64()?);
    let root = ChunkId(reader.array()?);
    let root = match present {
        0 if root.0 == [0; 32] => None,
        1 => Some(root),
        _ => return None,
    };
    if height > tree::HEIGHT_MAX || count > TABLES_MAX || size_bytes > i64::MAX.unsigned_abs() {
        return None;
    }
    let mut tables: Vec<Table> = Vec::with_capacity(count);
    for _ in 0..count {
        let (level, height) = (reader.u8()?, reader.u8()?);
        reader.array::<6>().filter(|reserved| *reserved == [0; 6])?;
        let table = Table { level, height, root: ChunkId(reader.array()?) };
        if height > table::HEIGHT_MAX || tables.last().is_some_and(|newer| newer.level > level) {
            return None;
        }
        tables.push(table);
    }
    reader.end()?;
    Some(Image { domain, disk, lsn, size_bytes, tree: Tree { root, height }, tables })
}
