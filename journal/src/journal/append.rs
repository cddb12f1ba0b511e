//! Appending frames: one writev per frame, nothing copied but the head.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::rules::Before;
use super::{Journal, Log, Manifest, MemorySegment, OpenSegment, Run, lock};
use crate::attest::{StatementKind, WHOLE_SEGMENT};
use crate::encryption::Attempt;
use crate::error::AppendError;
use crate::frame::{self, Body, Context, Cover, FRAME_HEADER_BYTES, Frame, Stored};
use crate::index::MemoryIndex;
use crate::manifest::{Record, SegmentOpen};
use crate::options::limits::SEGMENT_MAX_BYTES;
use crate::recovery::time_before;
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};
use crate::storage::{StorageError, StorageErrorKind};
use crate::timeline::{Event, What, as_decoded};

impl Journal {
    /// Appends a frame to what the operating system holds, not durably. The payload's checksums are stored as given:
    /// whoever received the frame has verified them.
    ///
    /// # Errors
    /// Nothing of the frame is in the journal then. After [`AppendError::Full`] the same frame may be appended again.
    pub fn append(&self, frame: &Frame<'_>) -> Result<(), AppendError> {
        self.writable()?;
        let mut log = lock(&self.log);
        let log = &mut *log;
        {
            let manifest = lock(&self.manifest);
            let (position, history) = (log.position, log.history.as_ref());
            Before { position, state: manifest.state(), history }.check(frame)?;
        }
        self.make_room(log, frame)?;
        let durable = self.durable();
        let Some(open) = log.open.as_mut() else {
            return Err(AppendError::ReadOnly("no segment is open".to_owned()));
        };
        let context = Context {
            key: &self.key,
            segment: open.segment.ordinal,
            ordinal: open.next_ordinal,
            writer_generation: log.writer_generation,
            durable,
            previous: log.last_hash,
        };
        let (payload, crc32c) = frame.body.payload();
        let seal = match (open.data_key, payload) {
            (0, _) | (_, []) => None,
            (data_key, payload) => {
                let attempt = Attempt {
                    writer_generation: log.writer_generation,
                    segment: open.segment.ordinal,
                    frame: open.next_ordinal,
                    number: log.attempts,
                };
                log.attempts += 1;
                Some(self.encrypt(data_key, payload, &attempt, &mut log.sealed)?)
            }
        };
        let stored = match &seal {
            Some(seal) => Stored { bytes: &log.sealed.0, crc32c: &log.sealed.1, seal: Some(seal) },
            None => Stored { bytes: payload, crc32c, seal: None },
        };
        let (header, hash) = frame::encode(frame, &stored, &context, &mut log.head);
        write(open, &log.head, stored.bytes)?;
        let offset = open.length;
        open.length += header.frame_bytes();
        open.next_ordinal += 1;
        open.unsynced = true;
        log.last_hash = hash;
        log.place.1 = open.next_ordinal;
        log.position = frame.position;
        let segment = Arc::clone(&open.segment);
        self.index(log, &segment, frame, header, hash, offset);
        if matches!(frame.body, Body::Marker { name, .. } if !name.is_empty()) {
            log.mark(StatementKind::Bookmark);
        }
        self.written(header.frame_bytes());
        self.frames.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Adds an appended frame to the index and the history.
    fn index(
        &self,
        log: &mut Log,
        segment: &MemorySegment,
        frame: &Frame<'_>,
        header: frame::FrameHeader,
        hash: [u8; 32],
        offset: u64,
    ) {
        let mut content = segment.write();
        let (index, events) = &mut *content;
        match frame.body {
            Body::Writes { entries, .. } | Body::Base { entries, .. } => {
                index.add_entries(&header, entries, offset);
            }
            _ => {
                let decoded = as_decoded(frame, header, hash);
                index.add_decoded(&decoded, offset);
                let horizon = log.horizon;
                let event = Event::of(&decoded, index.floor_us(), |lsn| time_before(index, horizon, lsn));
                if let Some(event) = event {
                    match event.what {
                        What::Horizon => log.horizon = log_horizon(&event),
                        _ => {
                            Arc::make_mut(&mut log.history).apply(&event);
                        }
                    }
                    push_event(events, event);
                }
            }
        }
        log.floor_us = index.floor_us();
    }

    /// Sees to it that a segment is open which can take the frame.
    fn make_room(&self, log: &mut Log, frame: &Frame<'_>) -> Result<(), AppendError> {
        if let Some(open) = &log.open {
            let payload = frame.body.payload().0.len();
            let cover = Cover::Encrypted.bytes(payload);
            let most = (frame::TABLE_MAX_BYTES + 2 * FRAME_HEADER_BYTES + cover + payload) as u64;
            let full = open.data_key != self.data_key()
                || open.length >= self.options.segment_bytes
                || open.length + most > SEGMENT_MAX_BYTES;
            if !full {
                return Ok(());
            }
            self.close_segment(log)?;
        }
        self.open_segment(log)
    }

    /// Writes the footer. Its leaf is built later, from memory.
    pub(super) fn close_segment(&self, log: &mut Log) -> Result<(), AppendError> {
        let durable = self.durable();
        let Some(open) = log.open.as_mut() else { return Ok(()) };
        let context = Context {
            key: &self.key,
            segment: open.segment.ordinal,
            ordinal: open.next_ordinal,
            writer_generation: log.writer_generation,
            durable,
            previous: log.last_hash,
        };
        let payload_bytes = open.segment.index().summary().payload_bytes;
        let hash = frame::encode_footer(log.position, &context, payload_bytes, &mut log.head);
        write(open, &log.head, &[])?;
        open.length += log.head.len() as u64;
        self.written(log.head.len() as u64);
        log.last_hash = hash;
        log.place.1 = WHOLE_SEGMENT;
        open.segment.close(open.length, hash, log.position);
        log.unsynced.push((Arc::clone(&open.file), Arc::clone(&open.segment)));
        log.open = None;
        log.mark(StatementKind::Segment);
        Ok(())
    }

    fn open_segment(&self, log: &mut Log) -> Result<(), AppendError> {
        let mut manifest = lock(&self.manifest);
        let Manifest::Writer(manifest) = &mut *manifest else {
            return Err(AppendError::ReadOnly("no manifest is open".to_owned()));
        };
        let ordinal = manifest.state().last_ordinal + 1;
        let header = SegmentHeader {
            vm: self.vm,
            ordinal,
            seq_before: log.position.seq,
            lsn_before: log.position.lsn,
            writer_generation: log.writer_generation,
            data_key: self.data_key(),
            key: self.key,
            previous: log.last_hash,
        };
        let (bytes, hash) = header.encode();
        let name = segment_name(ordinal);
        // An earlier attempt may have been cut short by a full disk; the manifest does not name it.
        match self.storage.remove(&name) {
            Err(error) if error.kind() != StorageErrorKind::Missing => return Err(error.into()),
            _ => {}
        }
        let file = self.storage.create(&name)?;
        let record = SegmentOpen {
            ordinal,
            seq_before: log.position.seq,
            lsn_before: log.position.lsn,
            previous: log.last_hash,
        };
        let begun: Result<(), StorageError> = file
            .write_at(0, &mut [IoSlice::new(&bytes)])
            .and_then(|()| manifest.append(&Record::Open(record)));
        if let Err(error) = begun {
            let _ = self.storage.remove(&name);
            return Err(error.into());
        }
        self.written(SEGMENT_HEADER_BYTES as u64);
        log.last_hash = hash;
        log.place = (ordinal, 0);
        log.names_unsynced = true;
        let segment = Arc::new(MemorySegment::new(ordinal, MemoryIndex::new(log.floor_us), Vec::new()));
        self.set_runs(|runs| runs.segments.push(Run::Open(Arc::clone(&segment))));
        log.open = Some(OpenSegment {
            file,
            segment,
            length: SEGMENT_HEADER_BYTES as u64,
            next_ordinal: 0,
            unsynced: true,
            data_key: header.data_key,
        });
        Ok(())
    }
}

/// Keeps events, of clean heartbeats only the last of each run of them.
pub(crate) fn push_event(events: &mut Vec<Event>, event: Event) {
    match events.last_mut() {
        Some(last) if last.what == What::Horizon && event.what == What::Horizon => *last = event,
        _ => events.push(event),
    }
}

fn log_horizon(event: &Event) -> Option<crate::timeline::Horizon> {
    Some(crate::timeline::Horizon { lsn: event.lsn, time_us: event.time_us })
}

/// Writes a frame at the end of the open segment; after an error the segment is as before.
fn write(open: &OpenSegment, head: &[u8], payload: &[u8]) -> Result<(), AppendError> {
    let mut slices = [IoSlice::new(head), IoSlice::new(payload)];
    let slices = if payload.is_empty() { slices.split_at_mut(1).0 } else { &mut slices };
    if let Err(error) = open.file.write_at(open.length, slices) {
        // What was written is no frame by its hash and is overwritten by the next; cutting it only frees its space.
        let _ = open.file.truncate(open.length);
        return Err(error.into());
    }
    Ok(())
}
