//! The chunk index: which pack has which chunk, in an embedded B-tree. It only repeats the packs' directories, so it may
//! lose its newest changes in a crash: each opening brings it in line with the packs that are there.
//!
//! Table `chunks`: key {chunk id 32, pack id 16}, value {number, offset, stored bytes, content bytes u32, flags u16},
//! little-endian. Table `packs`: key pack id, value {salt 32, domain 16, key ordinal u32, chunks u32, bytes u64}.

use std::io::{self, IoSlice};
use std::sync::Arc;

use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    TableError, WriteTransaction,
};

use super::pack::{PackHeader, Stored};
use super::{ChunkId, KeyDomain, PackId, StoreError};
use crate::storage::{Storage, StorageError, StorageErrorKind, StorageFile};
use crate::wire::{Put, Reader, length, size};

/// The index's file.
pub(crate) const INDEX_FILE: &str = "chunk-index";

const KEY_BYTES: usize = 48;
const PLACE_BYTES: usize = 18;
const PACK_BYTES: usize = 64;
const CHUNKS: TableDefinition<'_, &[u8; KEY_BYTES], &[u8; PLACE_BYTES]> = TableDefinition::new("chunks");
const PACKS: TableDefinition<'_, &[u8; 16], &[u8; PACK_BYTES]> = TableDefinition::new("packs");

/// What the store knows of a pack without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackInfo {
    pub salt: [u8; 32],
    pub domain: KeyDomain,
    pub key_ordinal: u32,
    pub chunks: u32,
    pub bytes: u64,
}

impl PackInfo {
    pub(crate) fn of(header: &PackHeader, chunks: usize, bytes: u64) -> Self {
        Self {
            salt: header.salt,
            domain: header.domain,
            key_ordinal: header.key_ordinal,
            chunks: length(chunks),
            bytes,
        }
    }

    fn encode(&self) -> [u8; PACK_BYTES] {
        let mut out = Vec::with_capacity(PACK_BYTES);
        out.put(&self.salt);
        out.put(&self.domain.0);
        out.u32(self.key_ordinal);
        out.u32(self.chunks);
        out.u64(self.bytes);
        out.try_into().unwrap_or([0; PACK_BYTES])
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        Some(Self {
            salt: reader.array()?,
            domain: KeyDomain(reader.array()?),
            key_ordinal: reader.u32()?,
            chunks: reader.u32()?,
            bytes: reader.u64()?,
        })
    }
}

fn key(chunk: &ChunkId, pack: &PackId) -> [u8; KEY_BYTES] {
    let mut out = Vec::with_capacity(KEY_BYTES);
    out.put(&chunk.0);
    out.put(&pack.0);
    out.try_into().unwrap_or([0; KEY_BYTES])
}

fn place(chunk: &Stored) -> [u8; PLACE_BYTES] {
    let mut out = Vec::with_capacity(PLACE_BYTES);
    for value in [chunk.number, chunk.offset, chunk.stored, chunk.content] {
        out.u32(value);
    }
    out.u16(chunk.flags);
    out.try_into().unwrap_or([0; PLACE_BYTES])
}

fn decode_row(key: &[u8], value: &[u8]) -> Option<(PackId, Stored)> {
    let mut key = Reader::new(key);
    let (id, pack) = (ChunkId(key.array()?), PackId(key.array()?));
    let mut value = Reader::new(value);
    let (number, offset, stored, content) = (value.u32()?, value.u32()?, value.u32()?, value.u32()?);
    Some((pack, Stored { id, number, offset, stored, content, flags: value.u16()? }))
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    let error: redb::Error = error.into();
    match &error {
        redb::Error::Io(io) if io.kind() == io::ErrorKind::StorageFull => StoreError::Full,
        _ => StoreError::Index(error.to_string()),
    }
}

/// The index, open.
#[derive(Debug)]
pub(crate) struct ChunkIndex {
    database: Database,
}

impl ChunkIndex {
    /// The index in `storage`; a new, empty one when there is none or it cannot be read.
    pub(crate) fn open(storage: &dyn Storage, cache_bytes: usize) -> Result<Self, StoreError> {
        match storage.open(INDEX_FILE) {
            Ok(file) => {
                if let Ok(index) = Self::over(file, cache_bytes)
                    && index.packs().is_ok()
                {
                    return Ok(index);
                }
            }
            Err(error) if error.kind() == StorageErrorKind::Missing => {}
            Err(error) => return Err(error.into()),
        }
        Self::create(storage, cache_bytes)
    }

    /// A new, empty index in place of any other.
    pub(crate) fn create(storage: &dyn Storage, cache_bytes: usize) -> Result<Self, StoreError> {
        match storage.remove(INDEX_FILE) {
            Err(error) if error.kind() != StorageErrorKind::Missing => return Err(error.into()),
            _ => {}
        }
        Self::over(storage.create(INDEX_FILE)?, cache_bytes)
    }

    fn over(file: Arc<dyn StorageFile>, cache_bytes: usize) -> Result<Self, StoreError> {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        let database = builder.create_with_backend(Backend { file }).map_err(failed)?;
        Ok(Self { database })
    }

    /// All copies of a chunk, by pack.
    pub(crate) fn find(&self, id: &ChunkId) -> Result<Vec<(PackId, Stored)>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let table = match read.open_table(CHUNKS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let (from, to) = (key(id, &PackId([0; 16])), key(id, &PackId([0xff; 16])));
        let mut found = Vec::new();
        for row in table.range::<&[u8; KEY_BYTES]>(&from..=&to).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            found.extend(decode_row(key.value(), value.value()));
        }
        Ok(found)
    }

    /// All packs.
    pub(crate) fn packs(&self) -> Result<Vec<(PackId, PackInfo)>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let table = match read.open_table(PACKS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut packs = Vec::new();
        for row in table.iter().map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            packs.extend(PackInfo::decode(value.value()).map(|info| (PackId(*key.value()), info)));
        }
        Ok(packs)
    }

    /// Every row of the chunks, in order: for comparisons.
    pub(crate) fn rows(&self) -> Result<Vec<(PackId, Stored)>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let table = match read.open_table(CHUNKS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut rows = Vec::new();
        for row in table.iter().map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            rows.extend(decode_row(key.value(), value.value()));
        }
        Ok(rows)
    }

    /// Adds a pack with its chunks, not durably.
    pub(crate) fn add(&self, pack: &PackId, info: &PackInfo, chunks: &[Stored]) -> Result<(), StoreError> {
        self.write(Durability::None, |write| {
            let mut table = write.open_table(CHUNKS).map_err(failed)?;
            for chunk in chunks {
                table.insert(&key(&chunk.id, pack), &place(chunk)).map_err(failed)?;
            }
            let mut packs = write.open_table(PACKS).map_err(failed)?;
            packs.insert(&pack.0, &info.encode()).map_err(failed)?;
            Ok(())
        })
    }

    /// Removes a pack and its chunks, not durably.
    pub(crate) fn remove(&self, pack: &PackId, chunks: &[Stored]) -> Result<(), StoreError> {
        self.write(Durability::None, |write| {
            let mut table = write.open_table(CHUNKS).map_err(failed)?;
            for chunk in chunks {
                table.remove(&key(&chunk.id, pack)).map_err(failed)?;
            }
            let mut packs = write.open_table(PACKS).map_err(failed)?;
            packs.remove(&pack.0).map_err(failed)?;
            Ok(())
        })
    }

    /// Removes packs whose directories are gone, by a walk over all rows.
    pub(crate) fn forget(&self, gone: impl Fn(&PackId) -> bool) -> Result<(), StoreError> {
        self.write(Durability::None, |write| {
            let mut table = write.open_table(CHUNKS).map_err(failed)?;
            let of = |key: &[u8; KEY_BYTES]| key.last_chunk().copied().map(PackId);
            table.retain(|key, _| of(key).is_some_and(|pack| !gone(&pack))).map_err(failed)?;
            let mut packs = write.open_table(PACKS).map_err(failed)?;
            packs.retain(|key, _| !gone(&PackId(*key))).map_err(failed)?;
            Ok(())
        })
    }

    /// Makes all changes durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |_| Ok(()))
    }

    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut write = self.database.begin_write().map_err(failed)?;
        write.set_durability(durability).map_err(|error| StoreError::Index(error.to_string()))?;
        change(&write)?;
        write.commit().map_err(failed)
    }
}

/// The index's file on the storage layer. Unlike other files it is written anywhere and in any order: the B-tree never
/// overwrites what its last durable state needs, and checks all of itself after an unclean end.
#[derive(Debug)]
struct Backend {
    file: Arc<dyn StorageFile>,
}

fn io_error(error: StorageError) -> io::Error {
    let kind = match error.kind() {
        StorageErrorKind::Full => io::ErrorKind::StorageFull,
        StorageErrorKind::Short => io::ErrorKind::UnexpectedEof,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len().map_err(io_error)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read_at(offset, out).map_err(io_error)
    }

    fn set_len(&self, bytes: u64) -> Result<(), io::Error> {
        self.file.truncate(bytes).map_err(io_error)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.file.sync().map_err(io_error)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.file.write_at(offset, &mut [IoSlice::new(data)]).map_err(io_error)
    }
}

/// The directory of a pack in a folder, with its header, as read and checked from there.
pub(crate) fn read_directory(
    folder: &dyn super::PackFolder,
    pack: &PackId,
    bytes: u64,
) -> Result<(PackHeader, Vec<Stored>), StoreError> {
    use super::pack::{HEADER_BYTES, TRAILER_BYTES, decode_directory, decode_header, decode_trailer};
    let name = pack.name();
    let broken = |error: super::PackError| StoreError::Pack { pack: *pack, problem: error.problem };
    if bytes < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(StoreError::Pack { pack: *pack, problem: "it is cut off" });
    }
    let mut head = [0; HEADER_BYTES];
    folder.read(&name, 0, &mut head)?;
    let header = decode_header(&head).map_err(broken)?;
    if header.id() != *pack {
        return Err(StoreError::Pack { pack: *pack, problem: "it has the name of another pack" });
    }
    let mut trailer = [0; TRAILER_BYTES];
    folder.read(&name, bytes - TRAILER_BYTES as u64, &mut trailer)?;
    let from = decode_trailer(&trailer, bytes).map_err(broken)?.directory_offset(bytes).unwrap_or(bytes);
    let mut tail = vec![0; size(bytes - from)];
    folder.read(&name, from, &mut tail)?;
    Ok((header, decode_directory(&header, &tail, bytes).map_err(broken)?))
}
