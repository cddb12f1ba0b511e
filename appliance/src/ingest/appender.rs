//! Checks frames and appends them to one VM's journal. Blocking; owned by one session at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use thiserror::Error;
use tidemark_journal::frame::{Body, Entry, Frame};
use tidemark_journal::{AppendError, Journal, Position};
use tidemark_proto::chain;
use tidemark_proto::ids::{CaptureId, ChainHash, DiskId, Generation, Lsn};
use tidemark_proto::limits::{DISKS_MAX, NAME_MAX_CHARS, SECTOR_BYTES, TEXT_MAX_BYTES};
use tidemark_proto::v1::{self, Consistency, frame};

use super::guest_clock::GuestClock;
use super::{entries, level};
use crate::templates::Source;

/// Characters of a bookmark's id at most: a UUID.
const BOOKMARK_ID_MAX_BYTES: usize = 64;

/// Why a frame ends the stream.
#[derive(Debug, Error)]
pub(super) enum Stop {
    /// It breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// It does not continue this VM's stream: another splitter shares its past.
    #[error("the stream forks: {0}")]
    Fork(String),
    /// No space.
    #[error("the appliance's disk is full")]
    Full,
    /// It names content of a template that is not to be had any more.
    #[error("content of a template was named that is not offered any more: it must be sent")]
    NotHere,
    /// The journal takes nothing more until it is opened again.
    #[error("the journal failed: {0}")]
    Journal(String),
}

/// A marker that was appended and is not yet durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MarkerPlaced {
    pub(super) lsn: Lsn,
    pub(super) time_us: u64,
    pub(super) name: String,
    pub(super) bookmark_id: String,
    pub(super) request_id: u64,
    pub(super) achieved: Consistency,
    pub(super) hold_us: u64,
    pub(super) reason: String,
}

/// A resize that was appended and is not yet durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resized {
    pub(super) lsn: Lsn,
    pub(super) disk: DiskId,
    pub(super) size_bytes: u64,
}

/// What a batch brought besides bytes.
#[derive(Debug, Default)]
pub(super) struct Appended {
    pub(super) frames: u64,
    pub(super) payload_bytes: u64,
    /// Bytes that were taken from templates.
    pub(super) template_bytes: u64,
    pub(super) heartbeat: Option<v1::Heartbeat>,
    /// What the newest frame says of the guest's spool.
    pub(super) backlog: Option<v1::Backlog>,
    pub(super) markers: Vec<MarkerPlaced>,
    pub(super) resizes: Vec<Resized>,
    /// What the newest frame says of the guest's clock.
    pub(super) clock_error_us: Option<u64>,
}

/// The writer of one VM's journal.
#[derive(Debug)]
pub(super) struct Appender {
    journal: Arc<Journal>,
    position: Position,
    capture_id: CaptureId,
    clock: GuestClock,
    sizes: HashMap<DiskId, u64>,
    /// The capture or its generation changed: only a line may come next.
    awaits_line: bool,
    first: bool,
    scratch: Vec<Entry>,
}

impl Appender {
    /// Continues at the end of the journal. `last_time_us` is the time of its last entry.
    pub(super) fn new(journal: Arc<Journal>, capture_id: CaptureId, last_time_us: u64) -> Self {
        let position = journal.appended();
        let sizes = journal.disks().into_iter().map(|disk| (disk.id, disk.size_bytes)).collect();
        Self {
            awaits_line: position.lsn > Lsn::ZERO && position.capture_id != capture_id,
            journal,
            position,
            capture_id,
            clock: GuestClock::new(last_time_us),
            sizes,
            first: true,
            scratch: Vec::new(),
        }
    }

    /// Checks one frame and appends it; `named` is where the content of blocks lies that it names by hashes. After an
    /// error the appender is of no more use.
    pub(super) fn append(
        &mut self,
        frame: &v1::Frame,
        named: &[Source],
        now_us: u64,
        out: &mut Appended,
    ) -> Result<(), Stop> {
        let position = self.next_position(frame)?;
        self.clock.set(frame.clock_offset_us, now_us);
        let Some(body) = &frame.body else { return Err(invalid("a frame without content")) };
        let raised = position.generation > self.position.generation && self.position.lsn > Lsn::ZERO;
        self.awaits_line |= raised;
        match body {
            frame::Body::LineStart(_) => self.awaits_line = false,
            frame::Body::Heartbeat(beat) if !beat.clean => {}
            _ if self.awaits_line => {
                return Err(invalid(
                    "a new capture or generation must begin with a line: what came between is unknown",
                ));
            }
            _ => {}
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let done = self.append_body(frame, named, position, &mut scratch, out);
        self.scratch = scratch;
        done?;
        out.frames += 1;
        out.clock_error_us = Some(frame.clock_error_us);
        out.backlog = frame.backlog;
        self.first = false;
        Ok(())
    }

    /// Sequence, generation, ring position and chain.
    fn next_position(&self, frame: &v1::Frame) -> Result<Position, Stop> {
        let last = &self.position;
        if frame.seq != last.seq.saturating_add(1) {
            return Err(invalid(format!(
                "frame {} came where {} was due",
                frame.seq,
                last.seq.saturating_add(1)
            )));
        }
        if frame.generation < last.generation.0 || frame.generation == 0 {
            return Err(invalid(format!("generation {} after {}", frame.generation, last.generation.0)));
        }
        if last.capture_id == self.capture_id && frame.ring_position < last.ring_position {
            return Err(invalid(format!(
                "ring position {} after {}",
                frame.ring_position, last.ring_position
            )));
        }
        let stated: [u8; 32] =
            frame.chain.as_ref().try_into().map_err(|_| invalid("a chain hash that has not 32 bytes"))?;
        if chain::next(&last.chain, frame).0 != stated {
            let text = format!("frame {} does not follow from what is durable here", frame.seq);
            return Err(if self.first { Stop::Fork(text) } else { Stop::Invalid(text) });
        }
        Ok(Position {
            seq: frame.seq,
            lsn: last.lsn,
            capture_id: self.capture_id,
            ring_position: frame.ring_position,
            chain: ChainHash(stated),
            generation: Generation(frame.generation),
        })
    }

    fn append_body(
        &mut self,
        frame: &v1::Frame,
        named: &[Source],
        mut position: Position,
        scratch: &mut Vec<Entry>,
        out: &mut Appended,
    ) -> Result<(), Stop> {
        let clock_error_us = frame.clock_error_us;
        let Some(body) = &frame.body else { return Err(invalid("a frame without content")) };
        let (time_us, body) = match body {
            frame::Body::Writes(writes) => {
                self.expect_lsn(writes.first_lsn)?;
                let time_us = self.clock.map(writes.boottime_us);
                let (clock, sizes) = (&mut self.clock, &self.sizes);
                let time =
                    |delta: u64| clock.map(writes.boottime_us.saturating_add(delta)).saturating_sub(time_us);
                let bytes =
                    entries::convert(&writes.entries, sizes, false, time, scratch).map_err(invalid)?;
                entries::verify_payload(&writes.payload, bytes, &writes.crc32c).map_err(invalid)?;
                position.lsn = position.lsn.plus(u64::try_from(scratch.len()).unwrap_or(u64::MAX));
                out.payload_bytes += bytes;
                let (payload, crc32c) = (&writes.payload[..], &writes.crc32c[..]);
                (
                    time_us,
                    Body::Writes { first_lsn: Lsn(writes.first_lsn), entries: scratch, payload, crc32c },
                )
            }
            frame::Body::Base(base) => {
                return self.append_base(base, named, (position, clock_error_us), scratch, out);
            }
            frame::Body::LineStart(line) => return self.line_start(line, position, clock_error_us),
            frame::Body::LineEnd(line) => {
                position.lsn = self.expect_lsn(line.lsn)?;
                let disks = self.disks(&line.disk_ids)?;
                let body = Body::LineEnd { lsn: position.lsn, disks: &disks };
                let time_us = self.clock.map(line.boottime_us);
                return self.store(Frame { position, appliance_time_us: time_us, clock_error_us, body });
            }
            frame::Body::Marker(marker) => {
                position.lsn = self.expect_lsn(marker.lsn)?;
                let time_us = self.clock.map(marker.boottime_us);
                let placed = placed(marker, position.lsn, time_us)?;
                let name = &marker.name[..];
                let identity = match name {
                    "" => String::new(),
                    _ => level::note(&placed.bookmark_id, placed.achieved),
                };
                let body = Body::Marker {
                    lsn: position.lsn,
                    bookmark_id: &identity,
                    name,
                    request_id: marker.request_id,
                };
                self.store(Frame { position, appliance_time_us: time_us, clock_error_us, body })?;
                out.markers.push(placed);
                return Ok(());
            }
            frame::Body::Heartbeat(beat) => {
                let long = |text: &String| text.len() > TEXT_MAX_BYTES;
                let missing_fits = beat.missing.len() <= DISKS_MAX
                    && beat
                        .missing
                        .iter()
                        .all(|disk| ![&disk.identity, &disk.path, &disk.reason].into_iter().any(long));
                if !missing_fits {
                    return Err(invalid("a heartbeat with too many or too long texts"));
                }
                if beat.lsn != position.lsn.0 || beat.disks.len() > DISKS_MAX {
                    return Err(invalid(format!(
                        "a heartbeat at LSN {} where {} is the last",
                        beat.lsn, position.lsn
                    )));
                }
                let time_us = self.clock.map(beat.boottime_us);
                out.heartbeat = Some(beat.clone());
                (time_us, Body::Heartbeat { lsn: position.lsn, time_us, clean: beat.clean })
            }
            frame::Body::Resize(resize) => {
                position.lsn = self.expect_lsn(resize.lsn)?;
                let time_us = self.clock.map(resize.boottime_us);
                let disk = DiskId(resize.disk_id);
                if !self.sizes.contains_key(&disk) || resize.size_bytes % SECTOR_BYTES != 0 {
                    return Err(invalid(format!("{disk} resized to {} bytes", resize.size_bytes)));
                }
                self.sizes.insert(disk, resize.size_bytes);
                out.resizes.push(Resized { lsn: position.lsn, disk, size_bytes: resize.size_bytes });
                (time_us, Body::Resize { lsn: position.lsn, disk, size_bytes: resize.size_bytes })
            }
        };
        self.store(Frame { position, appliance_time_us: time_us, clock_error_us, body })
    }

    /// Base blocks: as they came, or as a template has them.
    fn append_base(
        &mut self,
        base: &v1::BaseBlocks,
        named: &[Source],
        (position, clock_error_us): (Position, u64),
        scratch: &mut Vec<Entry>,
        out: &mut Appended,
    ) -> Result<(), Stop> {
        if base.line_lsn == 0 || base.line_lsn > position.lsn.0 {
            return Err(invalid(format!("base blocks of line {}, which is not open", base.line_lsn)));
        }
        let bytes = entries::convert(&base.entries, &self.sizes, true, |_| 0, scratch).map_err(invalid)?;
        let content;
        let payload = if base.hashes.is_empty() {
            out.payload_bytes += bytes;
            &base.payload[..]
        } else {
            content = contents(scratch, named)?;
            out.template_bytes += bytes;
            &content[..]
        };
        entries::verify_payload(payload, bytes, &base.crc32c).map_err(invalid)?;
        let crc32c = &base.crc32c[..];
        let body = Body::Base { line_lsn: Lsn(base.line_lsn), entries: scratch, payload, crc32c };
        self.store(Frame { position, appliance_time_us: self.clock.last(), clock_error_us, body })
    }

    fn line_start(
        &mut self,
        line: &v1::LineStart,
        mut position: Position,
        clock_error_us: u64,
    ) -> Result<(), Stop> {
        position.lsn = self.expect_lsn(line.lsn)?;
        let disks = self.disks(&line.disk_ids)?;
        if line.gap_from_lsn == 0 || line.gap_from_lsn > line.lsn {
            return Err(invalid(format!("line {} with a gap from {}", line.lsn, line.gap_from_lsn)));
        }
        let known = v1::GapCause::try_from(line.cause).is_ok_and(|cause| cause != v1::GapCause::Unspecified);
        let cause = u32::try_from(line.cause).ok().filter(|_| known);
        let cause = cause.ok_or_else(|| invalid(format!("a gap of unknown cause {}", line.cause)))?;
        if line.detail.len() > TEXT_MAX_BYTES {
            return Err(invalid(format!(
                "a detail of {} bytes; {TEXT_MAX_BYTES} are allowed",
                line.detail.len()
            )));
        }
        let time_us = self.clock.map(line.boottime_us);
        let body = Body::LineStart {
            lsn: position.lsn,
            gap_from_lsn: Lsn(line.gap_from_lsn),
            cause,
            detail: &line.detail,
            disks: &disks,
            dirty_bytes: line.dirty_bytes,
        };
        self.store(Frame { position, appliance_time_us: time_us, clock_error_us, body })
    }

    fn store(&mut self, frame: Frame<'_>) -> Result<(), Stop> {
        self.journal.append(&frame).map_err(|error| match error {
            AppendError::Invalid(problem) => Stop::Invalid(problem),
            AppendError::Full => Stop::Full,
            error => Stop::Journal(error.to_string()),
        })?;
        self.position = frame.position;
        Ok(())
    }

    fn expect_lsn(&self, lsn: u64) -> Result<Lsn, Stop> {
        let due = self.position.lsn.next();
        if lsn == due.0 { Ok(due) } else { Err(invalid(format!("LSN {lsn} came where {due} was due"))) }
    }

    fn disks(&self, ids: &[u32]) -> Result<Vec<DiskId>, Stop> {
        let disks: Vec<DiskId> = ids.iter().copied().map(DiskId).collect();
        let distinct = disks.iter().collect::<HashSet<_>>().len() == disks.len();
        if disks.is_empty() || !distinct || !disks.iter().all(|disk| self.sizes.contains_key(disk)) {
            return Err(invalid("a line for disks that are missing, repeated or not protected"));
        }
        Ok(disks)
    }
}

fn invalid(problem: impl Into<String>) -> Stop {
    Stop::Invalid(problem.into())
}

/// What the entries' sources hold, one after another, each verified by its hash.
fn contents(entries: &[Entry], named: &[Source]) -> Result<Vec<u8>, Stop> {
    let bytes: u64 = entries.iter().map(Entry::payload_bytes).sum();
    let mut content = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    let mut rest = content.as_mut_slice();
    if named.len() != entries.len() {
        return Err(Stop::NotHere);
    }
    for (entry, source) in entries.iter().zip(named) {
        let length = usize::try_from(entry.payload_bytes()).unwrap_or(usize::MAX).min(rest.len());
        let (here, after) = rest.split_at_mut(length);
        if !source.read(here) {
            return Err(Stop::NotHere);
        }
        rest = after;
    }
    Ok(content)
}

fn placed(marker: &v1::Marker, lsn: Lsn, time_us: u64) -> Result<MarkerPlaced, Stop> {
    let characters = marker.name.chars().count();
    // A place alone has neither name nor id, and only who asked for it knows it.
    let place = characters == 0 && marker.bookmark_id.is_empty() && marker.request_id != 0;
    if (characters == 0 && !place) || characters > NAME_MAX_CHARS || marker.name.chars().any(char::is_control)
    {
        return Err(invalid(format!("a marker's name has 1 to {NAME_MAX_CHARS} printable characters")));
    }
    if marker.bookmark_id.len() > BOOKMARK_ID_MAX_BYTES {
        return Err(invalid("a bookmark id that is no UUID"));
    }
    // A guest that gives no usable id gets one, so that one VM's bookmark can never stand for another's.
    let bookmark_id = match uuid::Uuid::parse_str(&marker.bookmark_id) {
        _ if place => String::new(),
        Ok(id) => id.to_string(),
        Err(_) => uuid::Uuid::new_v4().to_string(),
    };
    // A level of a version that this one does not know is no level that it could promise.
    let achieved = Consistency::try_from(marker.consistency)
        .map_err(|_| invalid(format!("a marker with the unknown level {}", marker.consistency)))?
        .or_crash();
    if marker.reason.len() > TEXT_MAX_BYTES {
        return Err(invalid(format!("the reason for a marker's level has at most {TEXT_MAX_BYTES} bytes")));
    }
    Ok(MarkerPlaced {
        lsn,
        time_us,
        name: marker.name.clone(),
        bookmark_id,
        request_id: marker.request_id,
        achieved,
        hold_us: marker.hold_us,
        reason: marker.reason.chars().filter(|c| !c.is_control()).collect(),
    })
}
