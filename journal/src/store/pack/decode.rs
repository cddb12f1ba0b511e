//! The bytes of a pack, in the parts in which they are read. Takes anything, panics at nothing.

use thiserror::Error;

use super::*;
use crate::store::crypt::TAG_BYTES;
use crate::store::{CHUNK_BYTES, ChunkId, KeyDomain, PackId};
use crate::wire::{Reader, same_hash, size};

/// Bytes are not (that part of) a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("byte {offset} ({bytes} bytes): {problem}")]
pub struct PackError {
    /// Where in the pack.
    pub offset: u64,
    /// Bytes concerned.
    pub bytes: u64,
    /// What is wrong.
    pub problem: &'static str,
}

fn error(offset: usize, bytes: usize, problem: &'static str) -> PackError {
    PackError { offset: offset as u64, bytes: bytes as u64, problem }
}

/// What a pack's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHeader {
    /// Whose keys.
    pub domain: KeyDomain,
    /// Which of them.
    pub key_ordinal: u32,
    pub(crate) salt: [u8; 32],
    pub(crate) hash: [u8; 32],
}

impl PackHeader {
    /// The pack's name.
    #[must_use]
    pub fn id(&self) -> PackId {
        pack_id(&self.salt)
    }
}

/// Decodes the header that `bytes` begins with.
///
/// # Errors
/// When it is none, is damaged, or is of a newer version.
pub fn decode_header(bytes: &[u8]) -> Result<PackHeader, PackError> {
    let fail = |problem| error(0, HEADER_BYTES, problem);
    let parse = || {
        let mut reader = Reader::new(bytes);
        let (magic, version, header_bytes, _) =
            (reader.array()?, reader.u16()?, reader.u16()?, reader.u32()?);
        let domain = KeyDomain(reader.array()?);
        let (key_ordinal, _) = (reader.u32()?, reader.u32()?);
        let (salt, hash) = (reader.array()?, reader.array()?);
        Some((magic, version, header_bytes, PackHeader { domain, key_ordinal, salt, hash }))
    };
    let (magic, version, header_bytes, header) = parse().ok_or(fail("the header is cut off"))?;
    let hashed = bytes.get(..HASHED_HEADER_BYTES).unwrap_or_default();
    if magic != MAGIC {
        return Err(fail("no pack begins here"));
    }
    if !same_hash(&header.hash, blake3::keyed_hash(&header.salt, hashed).as_bytes()) {
        return Err(fail("the header's hash does not match"));
    }
    if version != 1 || size(header_bytes.into()) != HEADER_BYTES {
        return Err(fail("the pack is of a newer version"));
    }
    Ok(header)
}

/// What a trailer says, not yet checked against the directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trailer {
    pub chunks: usize,
    pub directory_bytes: usize,
}

impl Trailer {
    /// Where the directory begins in a pack of so many bytes.
    pub(crate) fn directory_offset(&self, pack_bytes: u64) -> Option<u64> {
        pack_bytes.checked_sub((self.directory_bytes + TRAILER_BYTES) as u64)
    }
}

/// Decodes the last 64 bytes of a pack of `pack_bytes`.
pub(crate) fn decode_trailer(bytes: &[u8], pack_bytes: u64) -> Result<Trailer, PackError> {
    let fail = |problem| PackError {
        offset: pack_bytes.saturating_sub(TRAILER_BYTES as u64),
        bytes: TRAILER_BYTES as u64,
        problem,
    };
    let parse = || {
        let mut reader = Reader::new(bytes);
        let magic: [u8; 8] = reader.array()?;
        let trailer =
            Trailer { chunks: size(reader.u32()?.into()), directory_bytes: size(reader.u32()?.into()) };
        let (stated, reserved) = (reader.u64()?, reader.u64()?);
        let fits = trailer.chunks.checked_mul(DIRECTORY_ENTRY_BYTES)? == trailer.directory_bytes
            && trailer.directory_offset(pack_bytes)? >= HEADER_BYTES as u64
            && stated == pack_bytes;
        (magic == TRAILER_MAGIC && reserved == 0 && fits).then_some(trailer)
    };
    parse().ok_or(fail("the pack's end is not a trailer"))
}

/// Decodes a directory with the trailer behind it: the end of a pack of `pack_bytes`.
///
/// # Errors
/// When it is damaged.
pub fn decode_directory(header: &PackHeader, tail: &[u8], pack_bytes: u64) -> Result<Vec<Stored>, PackError> {
    let offset = size(pack_bytes).saturating_sub(tail.len());
    let fail = |problem| error(offset, tail.len(), problem);
    let (directory, trailer_bytes) =
        tail.split_at_checked(tail.len().saturating_sub(TRAILER_BYTES)).unwrap_or_default();
    let trailer = decode_trailer(trailer_bytes, pack_bytes)?;
    let (head, hash) = trailer_bytes.split_at_checked(HASHED_TRAILER_BYTES).unwrap_or_default();
    let computed = trailer_hash(&header.salt, &header.hash, directory, head);
    if trailer.directory_bytes != directory.len()
        || !hash.try_into().is_ok_and(|hash| same_hash(hash, &computed))
    {
        return Err(fail("the directory's hash does not match"));
    }
    let mut reader = Reader::new(directory);
    let mut chunks = Vec::with_capacity(trailer.chunks);
    let mut at = HEADER_BYTES;
    while reader.rest() > 0 {
        let chunk = entry(&mut reader, chunks.len()).ok_or(fail("the directory breaks the format"))?;
        if size(chunk.offset.into()) != at {
            return Err(fail("the directory's records do not follow each other"));
        }
        at = at.saturating_add(chunk.record_bytes());
        chunks.push(chunk);
    }
    if at != offset {
        return Err(fail("the directory does not begin where the records end"));
    }
    Ok(chunks)
}

fn entry(reader: &mut Reader<'_>, number: usize) -> Option<Stored> {
    let chunk = Stored {
        id: ChunkId(reader.array()?),
        number: u32::try_from(number).ok()?,
        offset: reader.u32()?,
        stored: reader.u32()?,
        content: reader.u32()?,
        flags: reader.u16()?,
    };
    reader.u16().filter(|reserved| *reserved == 0)?;
    is_sound(&chunk).then_some(chunk)
}

fn is_sound(chunk: &Stored) -> bool {
    let (stored, content) = (size(chunk.stored.into()), size(chunk.content.into()));
    let compressed = chunk.flags & FLAG_ZSTD != 0;
    let fits = if compressed { stored < content + TAG_BYTES } else { stored == content + TAG_BYTES };
    chunk.flags & !FLAG_ZSTD == 0 && (1..=CHUNK_BYTES).contains(&content) && stored >= TAG_BYTES && fits
}

/// Decodes the record that `bytes` begins with and checks it; its number and offset are as given. What is stored
/// follows its head.
///
/// # Errors
/// When it is damaged.
pub fn decode_record<'a>(
    header: &PackHeader,
    bytes: &'a [u8],
    offset: u64,
    number: u32,
) -> Result<(Stored, &'a [u8]), PackError> {
    let fail = |bytes: usize, problem| PackError { offset, bytes: bytes as u64, problem };
    let parse = || {
        let mut reader = Reader::new(bytes);
        let magic: [u8; 4] = reader.array()?;
        let (stored, content) = (reader.u32()?, reader.u32()?);
        let (flags, reserved) = (reader.u16()?, reader.u16()?);
        let (id, hash) = (ChunkId(reader.array()?), reader.array::<32>()?);
        let offset = u32::try_from(offset).ok()?;
        let chunk = Stored { id, number, offset, stored, content, flags };
        (magic == RECORD_MAGIC && reserved == 0 && is_sound(&chunk)).then_some((chunk, hash))
    };
    let (chunk, hash) = parse().ok_or(fail(RECORD_BYTES, "no chunk record begins here"))?;
    let stored = bytes.get(RECORD_BYTES..chunk.record_bytes());
    let stored = stored.ok_or(fail(chunk.record_bytes(), "a chunk is cut off"))?;
    let head = bytes.get(..HASHED_RECORD_BYTES).unwrap_or_default();
    if !same_hash(&hash, &record_hash(&header.salt, head, stored)) {
        return Err(fail(chunk.record_bytes(), "a chunk's hash does not match"));
    }
    Ok((chunk, stored))
}

/// Decodes a whole pack, every hash checked.
///
/// # Errors
/// The first thing that is not as written.
pub fn decode(bytes: &[u8]) -> Result<(PackHeader, Vec<Stored>), PackError> {
    let header = decode_header(bytes)?;
    let pack_bytes = bytes.len() as u64;
    let trailer_bytes = bytes.get(bytes.len().saturating_sub(TRAILER_BYTES)..).unwrap_or_default();
    let from = decode_trailer(trailer_bytes, pack_bytes)?.directory_offset(pack_bytes).unwrap_or_default();
    let chunks = decode_directory(&header, bytes.get(size(from)..).unwrap_or_default(), pack_bytes)?;
    for chunk in &chunks {
        let rest = bytes.get(size(chunk.offset.into())..).unwrap_or_default();
        let (record, _) = decode_record(&header, rest, chunk.offset.into(), chunk.number)?;
        if record != *chunk {
            return Err(error(
                size(chunk.offset.into()),
                RECORD_BYTES,
                "a record is not as the directory says",
            ));
        }
    }
    Ok((header, chunks))
}
