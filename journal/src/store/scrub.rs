//! Checks every stored byte, without any key.

use super::pack::{
    HEADER_BYTES, PackHeader, RECORD_BYTES, Stored, TRAILER_BYTES, decode_directory, decode_header,
    decode_record, decode_trailer,
};
use super::{ChunkId, PackError, PackFolder, PackId};
use crate::storage::StorageError;
use crate::wire::size;

/// Something in a pack is not as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkDamage {
    /// The pack.
    pub pack: PackId,
    /// First byte that cannot be trusted.
    pub offset: u64,
    /// Bytes that cannot be trusted.
    pub bytes: u64,
    /// The chunk that is lost, if its name can still be told.
    pub chunk: Option<ChunkId>,
    /// What is wrong.
    pub problem: &'static str,
}

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Packs read.
    pub packs: u64,
    /// Chunks checked.
    pub chunks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is not as written, by pack and offset.
    pub damage: Vec<ChunkDamage>,
}

impl ScrubReport {
    /// The chunks that are damaged, each once.
    #[must_use]
    pub fn damaged_chunks(&self) -> std::collections::BTreeSet<ChunkId> {
        self.damage.iter().filter_map(|damage| damage.chunk).collect()
    }
}

/// Checks every byte of every pack of a folder. Packs that vanish meanwhile are skipped.
///
/// # Errors
/// When the storage fails. Damage is no error but a finding.
pub fn scrub(folder: &dyn PackFolder) -> Result<ScrubReport, StorageError> {
    let mut report = ScrubReport::default();
    for (name, bytes) in folder.list()? {
        let Some(pack) = PackId::of_name(&name) else { continue };
        match scrub_pack(folder, &pack, bytes, &mut report) {
            Err(error) if error.kind() == crate::storage::StorageErrorKind::Missing => continue,
            other => other?,
        }
        report.packs += 1;
        report.bytes += bytes;
    }
    Ok(report)
}

fn scrub_pack(
    folder: &dyn PackFolder,
    pack: &PackId,
    bytes: u64,
    report: &mut ScrubReport,
) -> Result<(), StorageError> {
    let name = pack.name();
    let found = |error: PackError, chunk| ChunkDamage {
        pack: *pack,
        offset: error.offset,
        bytes: error.bytes,
        chunk,
        problem: error.problem,
    };
    let whole = |problem| found(PackError { offset: 0, bytes, problem }, None);
    if bytes < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        report.damage.push(whole("the pack is cut off"));
        return Ok(());
    }
    let mut head = [0; HEADER_BYTES];
    folder.read(&name, 0, &mut head)?;
    let header = match decode_header(&head) {
        Ok(header) if header.id() == *pack => header,
        Ok(_) => {
            report.damage.push(whole("the pack has the name of another"));
            return Ok(());
        }
        Err(error) => {
            report.damage.push(found(error, None));
            return Ok(());
        }
    };
    match directory(folder, &name, &header, bytes)? {
        Ok(chunks) => {
            for chunk in &chunks {
                let mut record = vec![0; chunk.record_bytes()];
                folder.read(&name, chunk.offset.into(), &mut record)?;
                let checked = decode_record(&header, &record, chunk.offset.into(), chunk.number);
                let problem = match checked {
                    Ok((stored, _)) if stored == *chunk => None,
                    Ok(_) => Some("the record is of another chunk"),
                    Err(error) => Some(error.problem),
                };
                if let Some(problem) = problem {
                    let (offset, bytes) = (chunk.offset.into(), chunk.record_bytes() as u64);
                    report.damage.push(found(PackError { offset, bytes, problem }, Some(chunk.id)));
                }
                report.chunks += 1;
            }
        }
        // Without a directory the records are still walked: what they hold is named as far as they follow each other.
        Err(error) => {
            report.damage.push(found(error, None));
            walk(folder, pack, &header, bytes, report)?;
        }
    }
    Ok(())
}

fn directory(
    folder: &dyn PackFolder,
    name: &str,
    header: &PackHeader,
    bytes: u64,
) -> Result<Result<Vec<Stored>, PackError>, StorageError> {
    let mut trailer = [0; TRAILER_BYTES];
    folder.read(name, bytes - TRAILER_BYTES as u64, &mut trailer)?;
    let from = match decode_trailer(&trailer, bytes) {
        Ok(trailer) => trailer.directory_offset(bytes).unwrap_or(bytes),
        Err(error) => return Ok(Err(error)),
    };
    let mut tail = vec![0; size(bytes.saturating_sub(from))];
    folder.read(name, from, &mut tail)?;
    Ok(decode_directory(header, &tail, bytes))
}

/// Names the chunks of a pack whose directory is lost: they are all unreachable until the directory is.
fn walk(
    folder: &dyn PackFolder,
    pack: &PackId,
    header: &PackHeader,
    bytes: u64,
    report: &mut ScrubReport,
) -> Result<(), StorageError> {
    let name = pack.name();
    let mut at = HEADER_BYTES as u64;
    let most = (RECORD_BYTES + super::CHUNK_BYTES + super::crypt::TAG_BYTES) as u64;
    while at < bytes {
        let mut record = vec![0; size(most.min(bytes - at))];
        folder.read(&name, at, &mut record)?;
        let Ok((chunk, _)) = decode_record(header, &record, at, 0) else { break };
        report.damage.push(ChunkDamage {
            pack: *pack,
            offset: at,
            bytes: chunk.record_bytes() as u64,
            chunk: Some(chunk.id),
            problem: "the directory that leads to it is damaged",
        });
        report.chunks += 1;
        at += chunk.record_bytes() as u64;
    }
    Ok(())
}
