//! Prints a journal, record by record.

use std::io::{self, Write};

use thiserror::Error;

use crate::error::OpenError;
use crate::frame::{DecodedFrame, EntryKind, Table};
use crate::journal::read_manifest;
use crate::segment::{Scanner, Stop, segment_name};
use crate::storage::{Storage, StorageError};

/// A dump did not come to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The journal cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The output takes no more.
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
}

impl From<StorageError> for DumpError {
    fn from(error: StorageError) -> Self {
        Self::Open(error.into())
    }
}

/// Prints the manifest's records, then every frame in order, for people. Changes nothing and needs no lock.
///
/// # Errors
/// When the journal cannot be read or the output not be written.
pub fn dump(storage: &dyn Storage, out: &mut dyn Write) -> Result<(), DumpError> {
    let read = read_manifest(storage)?;
    writeln!(out, "journal of VM {}", read.vm)?;
    for (offset, seq, record) in &read.records {
        writeln!(out, "manifest {offset:>10}  record {seq}: {record:?}")?;
    }
    for (what, found) in [("torn", &read.torn), ("DAMAGED", &read.damage)] {
        if let Some(found) = found {
            writeln!(out, "manifest {:>10}  {what}: {}", found.offset, found.problem)?;
        }
    }
    let mut ordinals: Vec<u64> = read.state.sealed.keys().chain(read.state.open.keys()).copied().collect();
    ordinals.sort_unstable();
    for ordinal in ordinals {
        segment(storage, ordinal, &read.key, out)?;
    }
    Ok(())
}

fn segment(
    storage: &dyn Storage,
    ordinal: u64,
    key: &[u8; 32],
    out: &mut dyn Write,
) -> Result<(), DumpError> {
    let name = segment_name(ordinal);
    let scanner = match storage.open(&name) {
        Ok(file) => Scanner::open(file, ordinal, key, None)?,
        Err(error) => {
            writeln!(out, "{name}: {error}")?;
            return Ok(());
        }
    };
    let Some(mut scanner) = scanner else {
        writeln!(out, "{name}: the header is not as written")?;
        return Ok(());
    };
    writeln!(out, "{name}: {} bytes", scanner.length())?;
    loop {
        match scanner.next()? {
            Ok(scan) => frame(&scan.frame, scan.offset, out)?,
            Err(Stop::Footer) => return Ok(()),
            Err(Stop::Clean) => return Ok(writeln!(out, "  {:>10}  end, open", scanner.offset())?),
            Err(Stop::Invalid { offset, bytes, problem }) => {
                return Ok(writeln!(out, "  {offset:>10}  {bytes} bytes are no frame: {problem}")?);
            }
        }
    }
}

fn frame(frame: &DecodedFrame, offset: u64, out: &mut dyn Write) -> io::Result<()> {
    let header = &frame.header;
    write!(
        out,
        "  {offset:>10}  seq {} lsn {} generation {} time {} durable {} ",
        header.position.seq,
        header.position.lsn,
        header.position.generation.0,
        header.appliance_time_us,
        header.durable_lsn
    )?;
    let Table::Entries(entries) = &frame.table else { return writeln!(out, "{:?}", frame.table) };
    writeln!(out, "{:?} at lsn {}, {} bytes", header.kind, header.first_lsn, header.payload_bytes)?;
    for entry in entries {
        match entry.kind {
            EntryKind::Flush => writeln!(out, "              flush")?,
            kind => writeln!(
                out,
                "              {} sector {} + {} {kind:?} flags {:#x} +{} us",
                entry.disk, entry.start_sector, entry.sectors, entry.flags, entry.time_delta_us
            )?,
        }
    }
    Ok(())
}
