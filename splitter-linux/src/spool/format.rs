//! Encoding of files and records; the layout is in the module above.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use prost::Message;
use thiserror::Error;
use tidemark_proto::ids::{CaptureId, ChainHash};
use tidemark_proto::v1::Frame;
use tidemark_splitter_core::engine::SpooledFrame;

use super::limits::RECORD_MAX_BYTES;

const FILE_MAGIC: [u8; 8] = *b"TMSPOOL\0";
const VERSION: u32 = 1;
/// Bytes of a file's header.
pub const FILE_HEADER_BYTES: usize = 64;
const RECORD_MAGIC: [u8; 4] = *b"TMSR";
/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 56;
const TAG_BYTES: usize = 16;
/// LSN, floor, chain.
const FIXED_BYTES: usize = 48;

/// The spool's key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A file or record that is not as one was written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// No header of this version, or a damaged one.
    #[error("not a spool file of this version")]
    File,
    /// No record, or a damaged one.
    #[error("no whole record")]
    Record,
    /// It was not written with this key, or not here.
    #[error("a record that does not open")]
    Sealed,
}

/// The header of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// The capture whose frames it holds.
    pub capture_id: CaptureId,
    /// Its number.
    pub number: u64,
    /// Number of its first frame.
    pub first_seq: u64,
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn checked(bytes: &[u8], upto: usize) -> bool {
    bytes.get(..upto).map(crc32c::crc32c) == half(bytes, upto)
}

impl FileHeader {
    /// As it lies in the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FILE_HEADER_BYTES);
        bytes.extend(FILE_MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(64_u32.to_le_bytes());
        bytes.extend(self.capture_id.0);
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.first_seq.to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`FormatError::File`].
    pub fn decode(bytes: &[u8; FILE_HEADER_BYTES]) -> Result<Self, FormatError> {
        let read = || {
            let known = bytes.starts_with(&FILE_MAGIC) && half(bytes, 8)? == VERSION && checked(bytes, 60);
            let capture_id = CaptureId(bytes.get(16..32)?.try_into().ok()?);
            known.then_some(Self { capture_id, number: word(bytes, 32)?, first_seq: word(bytes, 40)? })
        };
        read().ok_or(FormatError::File)
    }
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of what is encrypted, with its tag.
    pub sealed_bytes: u32,
    /// Number of the frame.
    pub seq: u64,
    salt: [u8; 32],
}

impl RecordHeader {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES);
        bytes.extend(RECORD_MAGIC);
        bytes.extend(self.sealed_bytes.to_le_bytes());
        bytes.extend(self.seq.to_le_bytes());
        bytes.extend(self.salt);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`FormatError::Record`].
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<Self, FormatError> {
        let read = || {
            let sealed_bytes = half(bytes, 4)?;
            let known = bytes.starts_with(&RECORD_MAGIC)
                && checked(bytes, 48)
                && u64::from(sealed_bytes) <= RECORD_MAX_BYTES
                && sealed_bytes as usize >= FIXED_BYTES + TAG_BYTES;
            let salt = bytes.get(16..48)?.try_into().ok()?;
            known.then_some(Self { sealed_bytes, seq: word(bytes, 8)?, salt })
        };
        read().ok_or(FormatError::Record)
    }

    /// Bytes of the whole record.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.sealed_bytes)
    }

    fn key(&self, key: &Key) -> Result<LessSafeKey, FormatError> {
        let derived = blake3::keyed_hash(&key.0, &self.salt);
        UnboundKey::new(&AES_256_GCM, derived.as_bytes())
            .map(LessSafeKey::new)
            .map_err(|_| FormatError::Sealed)
    }
}

/// A record, as it lies in the file.
///
/// # Errors
/// When the frame is longer than any message may be.
pub fn seal(
    key: &Key,
    file: &FileHeader,
    frame: &SpooledFrame,
    salt: [u8; 32],
) -> Result<Vec<u8>, FormatError> {
    let sealed_bytes = frame.frame.encoded_len() + FIXED_BYTES + TAG_BYTES;
    let sealed_bytes = u32::try_from(sealed_bytes).map_err(|_| FormatError::Record)?;
    if u64::from(sealed_bytes) > RECORD_MAX_BYTES {
        return Err(FormatError::Record);
    }
    let header = RecordHeader { sealed_bytes, seq: frame.frame.seq, salt };
    let mut record = header.encode();
    let authenticated = [file.encode().as_slice(), record.as_slice()].concat();
    record.reserve(sealed_bytes as usize);
    record.extend(frame.lsn.to_le_bytes());
    record.extend(frame.floor.to_le_bytes());
    record.extend(frame.before.0);
    frame.frame.encode(&mut record).map_err(|_| FormatError::Record)?;
    let plain = record.get_mut(RECORD_HEADER_BYTES..).ok_or(FormatError::Record)?;
    let tag = header
        .key(key)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(&authenticated), plain)
        .map_err(|_| FormatError::Sealed)?;
    record.extend(tag.as_ref());
    Ok(record)
}

/// The frame of a record; `sealed` is what follows its header.
///
/// # Errors
/// [`FormatError::Sealed`] when it is not what was written there.
pub fn open(
    key: &Key,
    file: &FileHeader,
    header: &RecordHeader,
    mut sealed: Vec<u8>,
) -> Result<SpooledFrame, FormatError> {
    let authenticated = [file.encode(), header.encode()].concat();
    let plain = header
        .key(key)?
        .open_in_place(Nonce::assume_unique_for_key([0; 12]), Aad::from(&authenticated), &mut sealed)
        .map_err(|_| FormatError::Sealed)?;
    let read = || {
        let frame = Frame::decode(bytes::Bytes::copy_from_slice(plain.get(FIXED_BYTES..)?)).ok()?;
        let before = ChainHash(plain.get(16..48)?.try_into().ok()?);
        let frame = SpooledFrame { frame, lsn: word(plain, 0)?, floor: word(plain, 8)?, before };
        (frame.frame.seq == header.seq && frame.is_whole()).then_some(frame)
    };
    read().ok_or(FormatError::Sealed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_proto::chain;
    use tidemark_proto::v1::{Heartbeat, frame::Body};

    fn frame() -> SpooledFrame {
        let before = ChainHash([7; 32]);
        let body = Body::Heartbeat(Heartbeat { lsn: 41, clean: true, ..Heartbeat::default() });
        let mut frame =
            Frame { seq: 9, generation: 2, ring_position: 4096, body: Some(body), ..Frame::default() };
        frame.chain = chain::next(&before, &frame).0.to_vec().into();
        SpooledFrame { frame, lsn: 41, floor: 4000, before }
    }

    const FILE: FileHeader = FileHeader { capture_id: CaptureId([5; 16]), number: 3, first_seq: 9 };
    const KEY: Key = Key([1; 32]);

    fn parts(record: &[u8]) -> (RecordHeader, Vec<u8>) {
        let (header, sealed) = record.split_first_chunk().unwrap();
        (RecordHeader::decode(header).unwrap(), sealed.to_vec())
    }

    #[test]
    fn a_record_opens_where_it_was_written_and_nowhere_else() {
        let record = seal(&KEY, &FILE, &frame(), [2; 32]).unwrap();
        let (header, sealed) = parts(&record);
        assert_eq!(open(&KEY, &FILE, &header, sealed.clone()).unwrap(), frame());
        let refused = |key: &Key, file: &FileHeader, header: &RecordHeader, sealed: Vec<u8>| {
            open(key, file, header, sealed) == Err(FormatError::Sealed)
        };
        assert!(refused(&Key([3; 32]), &FILE, &header, sealed.clone()));
        assert!(refused(&KEY, &FileHeader { number: 4, ..FILE }, &header, sealed.clone()));
        let other = FileHeader { capture_id: CaptureId([6; 16]), ..FILE };
        assert!(refused(&KEY, &other, &header, sealed.clone()));
        assert!(refused(&KEY, &FILE, &RecordHeader { seq: 10, ..header }, sealed.clone()));
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(refused(&KEY, &FILE, &header, damaged), "byte {at}");
        }
    }

    #[test]
    fn damaged_headers_are_none() {
        let bytes: [u8; FILE_HEADER_BYTES] = FILE.encode().try_into().unwrap();
        assert_eq!(FileHeader::decode(&bytes), Ok(FILE));
        let record = seal(&KEY, &FILE, &frame(), [2; 32]).unwrap();
        let head: [u8; RECORD_HEADER_BYTES] = *record.first_chunk().unwrap();
        for at in 0..60 {
            let mut damaged = bytes;
            damaged[at] ^= 4;
            assert_eq!(FileHeader::decode(&damaged), Err(FormatError::File), "byte {at}");
        }
        for at in 0..52 {
            let mut damaged = head;
            damaged[at] ^= 4;
            assert_eq!(RecordHeader::decode(&damaged), Err(FormatError::Record), "byte {at}");
        }
    }
}
