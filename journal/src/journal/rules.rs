//! What a frame must fulfil to be appended: the rules of the stream, as far as the journal depends on them.

use std::fmt::Display;

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, FRAME_MAX_BYTES, FRAME_MAX_ENTRIES, SECTOR_BYTES};

use crate::Position;
use crate::error::AppendError;
use crate::frame::{Body, Entry, EntryKind, Frame};
use crate::manifest::State;
use crate::options::limits::TEXT_MAX_BYTES;
use crate::timeline::History;

fn refuse<T>(problem: impl Display) -> Result<T, AppendError> {
    Err(AppendError::Invalid(problem.to_string()))
}

/// What the frame must follow.
pub(super) struct Before<'a> {
    pub position: Position,
    pub state: &'a State,
    pub history: &'a History,
}

impl Before<'_> {
    /// Whether the frame may come next.
    pub(super) fn check(&self, frame: &Frame<'_>) -> Result<(), AppendError> {
        let (before, after) = (&self.position, &frame.position);
        if after.seq != before.seq.saturating_add(1) {
            return refuse(format!("seq {} does not follow {}", after.seq, before.seq));
        }
        if after.generation < before.generation {
            return refuse("its capture generation is older than the journal's");
        }
        if after.capture_id == before.capture_id && after.ring_position < before.ring_position {
            return refuse("its ring position goes back");
        }
        let taken = self.check_body(&frame.body)?;
        if after.lsn != before.lsn.plus(taken) {
            return refuse(format!("LSN {} does not follow {} by {taken}", after.lsn, before.lsn));
        }
        Ok(())
    }

    /// Checks the content and returns how many LSNs it takes.
    fn check_body(&self, body: &Body<'_>) -> Result<u64, AppendError> {
        match *body {
            Body::Writes { first_lsn, entries, payload, crc32c } => {
                self.own(first_lsn)?;
                self.entries(entries, payload, crc32c, None)?;
                Ok(entries.len() as u64)
            }
            Body::Base { line_lsn, entries, payload, crc32c } => {
                self.entries(entries, payload, crc32c, Some(line_lsn)).map(|()| 0)
            }
            Body::LineStart { lsn, gap_from_lsn, detail, disks, .. } => {
                if gap_from_lsn > lsn || gap_from_lsn == Lsn::ZERO || detail.len() > TEXT_MAX_BYTES {
                    return refuse("the line's gap begins after it, or its text is too long");
                }
                self.disks(disks)?;
                self.own(lsn)
            }
            Body::LineEnd { lsn, disks } => {
                self.disks(disks)?;
                self.own(lsn)
            }
            Body::Marker { lsn, bookmark_id, name, .. } => {
                if bookmark_id.len().max(name.len()) > TEXT_MAX_BYTES {
                    return refuse("the marker's text is too long");
                }
                self.own(lsn)
            }
            Body::Heartbeat { lsn, .. } if lsn != self.position.lsn => {
                refuse("the heartbeat speaks of another LSN than the last")
            }
            Body::Heartbeat { .. } => Ok(0),
            Body::Resize { lsn, disk, .. } => {
                self.disks(&[disk])?;
                self.own(lsn)
            }
        }
    }

    fn own(&self, lsn: Lsn) -> Result<u64, AppendError> {
        if lsn == self.position.lsn.next() {
            return Ok(1);
        }
        refuse(format!("LSN {lsn} does not follow {}", self.position.lsn))
    }

    fn disks(&self, disks: &[DiskId]) -> Result<(), AppendError> {
        if disks.is_empty() || disks.len() > tidemark_proto::limits::DISKS_MAX {
            return refuse("it names no disk, or too many");
        }
        match disks.iter().find(|disk| !self.state.disks.contains_key(&disk.0)) {
            Some(disk) => refuse(format!("{disk} is unknown")),
            None => Ok(()),
        }
    }

    fn entries(
        &self,
        entries: &[Entry],
        payload: &[u8],
        checksums: &[u32],
        line: Option<Lsn>,
    ) -> Result<(), AppendError> {
        if entries.is_empty() || entries.len() > FRAME_MAX_ENTRIES || payload.len() > FRAME_MAX_BYTES {
            return refuse("it has no entries, or is too large");
        }
        if checksums.len() != payload.len().div_ceil(CHECKSUM_PIECE_BYTES) {
            return refuse("it has not one checksum per 4 KiB of payload");
        }
        let mut expected = 0_u64;
        let mut last_disk = None;
        for entry in entries {
            expected = expected.saturating_add(entry.payload_bytes());
            if entry.kind == EntryKind::Flush {
                if entry.sectors != 0 || line.is_some() {
                    return refuse("a flush has sectors or is a base block");
                }
                continue;
            }
            let end = entry.start_sector.checked_add(entry.sectors.into());
            if entry.sectors == 0 || end.and_then(|end| end.checked_mul(SECTOR_BYTES)).is_none() {
                return refuse("an entry has no sectors, or ends beyond the last address");
            }
            if last_disk != Some(entry.disk) {
                self.disks(&[entry.disk])?;
                if let Some(line) = line.filter(|line| !self.history.line_open(*line, entry.disk)) {
                    return refuse(format!("no line is open at LSN {line} for {}", entry.disk));
                }
                last_disk = Some(entry.disk);
            }
        }
        if expected != payload.len() as u64 {
            return refuse("the payload is not as long as its entries");
        }
        Ok(())
    }
}
