//! The bytes of a manifest. Takes anything, panics at nothing.

use thiserror::Error;
use tidemark_proto::ids::VmId;

use super::record::RESERVED_KINDS;
use super::{
    HASHED_RECORD_BYTES, HEADER_BYTES, MAGIC, MANIFEST_FILE, RECORD_HEADER_BYTES, RECORD_MAGIC, Record,
    State, VERSION,
};
use crate::options::limits::MANIFEST_RECORD_MAX_BYTES;
use crate::recovery::Damage;
use crate::segment::uuid_from;
use crate::wire::{Reader, same_hash, size};

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Nothing can be trusted.
    #[error("{0}")]
    Damaged(Damage),
    /// Written by a newer version.
    #[error("it holds records of a kind this program does not know (kind {0})")]
    Newer(u16),
    /// Written by a newer version.
    #[error("the manifest is of version {0}")]
    Version(u16),
}

/// A record as a tool shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRecord {
    /// Byte in the file.
    pub offset: u64,
    /// Its number over the journal's life.
    pub seq: u64,
    /// Its content, for people.
    pub text: String,
}

/// A manifest as read.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub vm: VmId,
    pub key: [u8; 32],
    pub state: State,
    /// Byte after the last valid record, its seq and hash.
    pub end: u64,
    pub seq: u64,
    pub hash: [u8; 32],
    /// Byte after the snapshot.
    pub snapshot_end: u64,
    /// Bytes after `end` that were never acknowledged.
    pub torn: Option<Damage>,
    /// Bytes after `end` that were: the state is older than what was acknowledged.
    pub damage: Option<Damage>,
    pub records: Vec<(u64, u64, Record)>,
}

fn damaged(offset: u64, bytes: u64, problem: &str) -> Damage {
    Damage { file: MANIFEST_FILE.to_owned(), offset, bytes, problem: problem.to_owned() }
}

struct Head {
    vm: VmId,
    key: [u8; 32],
    first_seq: u64,
    hash: [u8; 32],
    version: u16,
}

fn read_head(bytes: &[u8]) -> Option<Head> {
    let mut reader = Reader::new(bytes);
    if reader.array()? != MAGIC {
        return None;
    }
    let version = reader.u16()?;
    if reader.u16()? != 104 || reader.u32()? != 0 {
        return None;
    }
    let vm = VmId(uuid_from(reader.array()?));
    let (key, first_seq): ([u8; 32], u64) = (reader.array()?, reader.u64()?);
    let hash = *blake3::keyed_hash(&key, bytes.get(..HEADER_BYTES - 32)?).as_bytes();
    same_hash(&reader.array()?, &hash).then_some(Head { vm, key, first_seq, hash, version })
}

struct RawRecord<'a> {
    kind: u16,
    seq: u64,
    durable_seq: u64,
    body: &'a [u8],
    hash: [u8; 32],
    bytes: u64,
}

/// A record at the front of `bytes`, its hash not checked.
fn raw_record(bytes: &[u8]) -> Option<RawRecord<'_>> {
    let mut reader = Reader::new(bytes);
    if reader.array()? != RECORD_MAGIC {
        return None;
    }
    let kind = reader.u16()?;
    if reader.u16()? != 0 {
        return None;
    }
    let length = size(reader.u32()?.into());
    let (seq, durable_seq) = (reader.u64()?, reader.u64()?);
    let hash = reader.array()?;
    if length > MANIFEST_RECORD_MAX_BYTES {
        return None;
    }
    let body = reader.take(length)?;
    Some(RawRecord { kind, seq, durable_seq, body, hash, bytes: (RECORD_HEADER_BYTES + length) as u64 })
}

pub(crate) fn record_hash(key: &[u8; 32], previous: &[u8; 32], fixed: &[u8], body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(previous);
    hasher.update(fixed);
    hasher.update(body);
    *hasher.finalize().as_bytes()
}

/// Reads a whole manifest.
pub(crate) fn read(bytes: &[u8]) -> Result<Read, ManifestError> {
    let head = read_head(bytes).ok_or_else(|| {
        ManifestError::Damaged(damaged(0, HEADER_BYTES as u64, "the header is not as written"))
    })?;
    if !(1..=VERSION).contains(&head.version) {
        return Err(ManifestError::Version(head.version));
    }
    let mut read = Read {
        vm: head.vm,
        key: head.key,
        state: State::default(),
        end: HEADER_BYTES as u64,
        seq: head.first_seq.saturating_sub(1),
        hash: head.hash,
        snapshot_end: 0,
        torn: None,
        damage: None,
        records: Vec::new(),
    };
    let mut durable_seq = 0;
    loop {
        let rest = bytes.get(size(read.end)..).unwrap_or_default();
        let Some(raw) = raw_record(rest) else { break };
        let fixed = rest.get(..HASHED_RECORD_BYTES).unwrap_or_default();
        if raw.seq != read.seq.saturating_add(1)
            || !same_hash(&raw.hash, &record_hash(&read.key, &read.hash, fixed, raw.body))
        {
            break;
        }
        let Some(record) = Record::decode(raw.kind, raw.body) else {
            if raw.kind >= RESERVED_KINDS {
                return Err(ManifestError::Newer(raw.kind));
            }
            break;
        };
        read.state.apply(&record);
        durable_seq = durable_seq.max(raw.durable_seq);
        read.records.push((read.end, raw.seq, record.clone()));
        (read.seq, read.hash) = (raw.seq, raw.hash);
        read.end += raw.bytes;
        if record == Record::SnapshotEnd {
            read.snapshot_end = read.end;
        }
    }
    judge_tail(bytes, &mut read)?;
    Ok(read)
}

/// What the bytes after the last valid record mean.
fn judge_tail(bytes: &[u8], read: &mut Read) -> Result<(), ManifestError> {
    let rest = bytes.get(size(read.end)..).unwrap_or_default();
    if read.snapshot_end == 0 {
        // A snapshot got its name only after it was durable.
        return Err(ManifestError::Damaged(damaged(
            read.end,
            rest.len() as u64,
            "the snapshot is not as written",
        )));
    }
    if rest.is_empty() {
        return Ok(());
    }
    if claims_more(rest, read.seq) {
        read.damage =
            Some(damaged(read.end, rest.len() as u64, "a record that was acknowledged is not as written"));
    } else {
        read.torn =
            Some(damaged(read.end, rest.len() as u64, "records that were never acknowledged are torn"));
    }
    Ok(())
}

/// Whether a record behind the damage knew of a durable record after `seq`. Its own hash cannot be checked, because it
/// covers the one before; its seqs are bound by the form instead: a torn record can only make this too careful.
fn claims_more(rest: &[u8], seq: u64) -> bool {
    let starts = rest.windows(RECORD_MAGIC.len()).enumerate();
    starts.filter(|(_, window)| *window == RECORD_MAGIC).any(|(start, _)| {
        let raw = rest.get(start..).and_then(raw_record);
        raw.is_some_and(|raw| {
            raw.durable_seq > seq && raw.durable_seq < raw.seq && raw.seq - seq <= rest.len() as u64
        })
    })
}

/// Decodes a whole manifest for tools: whose it is, and its records.
///
/// # Errors
/// When its start is not as written, or it is of a newer version.
pub fn decode(bytes: &[u8]) -> Result<(VmId, Vec<ManifestRecord>), ManifestError> {
    let read = read(bytes)?;
    let show = |(offset, seq, record)| ManifestRecord { offset, seq, text: format!("{record:?}") };
    Ok((read.vm, read.records.into_iter().map(show).collect()))
}
