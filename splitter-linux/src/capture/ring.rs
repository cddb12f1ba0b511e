//! The reader of the ring: maps it, and moves the kernel's consumer position only when told to.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tidemark_proto::ids::CaptureId;
use tidemark_proto::v1::WriteKind;
use tidemark_splitter_core::capture::{Event, Issue, Parts, Piece, Ring, RingError, Slot, Unit};

use super::layout::{
    ControlPage, RECORD_BYTES, RECORD_COMPLETE, RECORD_ISSUE, RECORD_REQUEUE, RING_BUSY, RING_DISCARD,
    RING_HEADER_BYTES, STATE_FULL,
};
use super::sys::Mapping;

/// Bytes of a page; the ring's layout is in pages.
const PAGE_BYTES: usize = 4096;
const RING_HEADER_BYTES_USIZE: usize = 8;

/// The single reader of a capture's ring. It sees records in the order in which the kernel reserved them, and stops
/// at the first that is not complete. One record is one unit, so nothing is ever open or voided.
#[derive(Debug)]
pub struct TapRing {
    capture_id: CaptureId,
    consumer_page: Mapping,
    producer_page: Mapping,
    /// The ring's memory twice in a row, so that a record which wraps is contiguous.
    data: Mapping,
    control: Arc<Mapping>,
    size: u64,
    position: u64,
    piece: [Piece; 1],
}

/// A record's header, copied out of the ring.
struct Head {
    record_type: u8,
    kind: u8,
    slot: Slot,
    generation: u32,
    request: u64,
    start_sector: u64,
    sectors: u32,
    flags: u32,
    tail: u64,
}

impl Head {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_BYTES] = bytes.first_chunk()?;
        let word = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map(u64::from_le_bytes);
        let half = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map(u32::from_le_bytes);
        Some(Self {
            record_type: bytes[0],
            kind: bytes[1],
            slot: Slot(u16::from_le_bytes([bytes[2], bytes[3]])),
            generation: half(4)?,
            request: word(8)?,
            start_sector: word(16)?,
            sectors: half(24)?,
            flags: half(28)?,
            tail: word(32)?,
        })
    }

    fn kind(&self) -> Option<WriteKind> {
        match self.kind {
            1 => Some(WriteKind::Data),
            2 => Some(WriteKind::Zeroes),
            3 => Some(WriteKind::Discard),
            4 => Some(WriteKind::Flush),
            _ => None,
        }
    }
}

impl TapRing {
    /// Maps the ring. Reading starts at the consumer position.
    pub(crate) fn new(
        ring: impl AsFd,
        control: Arc<Mapping>,
        capture_id: CaptureId,
        size: u64,
    ) -> io::Result<Self> {
        let bytes = usize::try_from(size).map_err(io::Error::other)?;
        let consumer_page = Mapping::new(ring.as_fd(), PAGE_BYTES, 0, true)?;
        let producer_page = Mapping::new(ring.as_fd(), PAGE_BYTES, PAGE_BYTES as u64, false)?;
        let data = Mapping::new(ring.as_fd(), bytes * 2, 2 * PAGE_BYTES as u64, false)?;
        let piece = [Piece { offset: 0, length: 0 }];
        let mut ring =
            Self { capture_id, consumer_page, producer_page, data, control, size, position: 0, piece };
        ring.position = ring.consumer();
        Ok(ring)
    }

    fn counter(page: &Mapping) -> &AtomicU64 {
        static NONE: AtomicU64 = AtomicU64::new(0);
        page.at(0).unwrap_or(&NONE)
    }

    fn damaged(&self, detail: impl Into<String>) -> RingError {
        RingError::Damaged { position: self.position, detail: detail.into() }
    }

    fn offset(&self, position: u64) -> usize {
        // The size is a power of two that fits into memory.
        usize::try_from(position & (self.size - 1)).unwrap_or(0)
    }

    /// Length of the record at the position and whether it counts; `None` when it is not there or still being filled.
    fn header(&self) -> Result<Option<(u64, bool)>, RingError> {
        let producer = self.producer();
        if self.position >= producer {
            return Ok(None);
        }
        let word: &AtomicU32 =
            self.data.at(self.offset(self.position)).ok_or_else(|| self.damaged("not aligned to 8 bytes"))?;
        let header = word.load(Ordering::Acquire);
        if header & RING_BUSY != 0 {
            return Ok(None);
        }
        let length = u64::from(header & !(RING_BUSY | RING_DISCARD));
        if self.position + RING_HEADER_BYTES + length > producer {
            return Err(
                self.damaged(format!("a record of {length} bytes ends behind the producer {producer}"))
            );
        }
        Ok(Some((length, header & RING_DISCARD == 0)))
    }

    /// The generation that a record belongs to. A program may read the state just before a restart and reserve just
    /// after it: its record is in the new generation, whose whole range of positions it lies in.
    fn generation(&self, start: u64, recorded: u32) -> u32 {
        let Some(control) = self.control.at::<ControlPage>(0) else { return recorded };
        if start < control.generation_start.load(Ordering::Acquire) {
            return recorded;
        }
        let state = control.state.load(Ordering::Acquire);
        let running = u32::try_from(state >> 1).unwrap_or(u32::MAX);
        recorded.max(if state & STATE_FULL == 0 { running.saturating_sub(1) } else { running })
    }
}

impl Ring for TapRing {
    fn capture_id(&self) -> CaptureId {
        self.capture_id
    }

    fn producer(&self) -> u64 {
        Self::counter(&self.producer_page).load(Ordering::Acquire)
    }

    fn consumer(&self) -> u64 {
        Self::counter(&self.consumer_page).load(Ordering::Acquire)
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn oldest_open(&self) -> Option<u64> {
        None
    }

    fn abandon_open(&mut self) {}

    fn seek(&mut self, position: u64) -> Result<(), RingError> {
        let (consumer, producer) = (self.consumer(), self.producer());
        if position < consumer || position > producer || !position.is_multiple_of(RING_HEADER_BYTES) {
            return Err(RingError::Outside { position, consumer, producer });
        }
        self.position = position;
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Unit<'_>>, RingError> {
        let (start, length) = loop {
            let Some((length, counts)) = self.header()? else { return Ok(None) };
            let start = self.position;
            if counts {
                break (start, length);
            }
            self.position = record_end(start, length);
        };
        let offset = self.offset(start) + RING_HEADER_BYTES_USIZE;
        let length_bytes = usize::try_from(length).map_err(|_| self.damaged("too long"))?;
        // SAFETY: the kernel writes a record only while its busy bit is set, and reuses the memory only behind the
        // consumer position, which only `release` moves; it takes `&mut self` and so ends this borrow first.
        let bytes = unsafe { self.data.slice(offset, length_bytes) }
            .ok_or_else(|| self.damaged("outside the ring"))?;
        let head = Head::decode(bytes).ok_or_else(|| self.damaged(format!("only {length} bytes long")))?;
        let generation = self.generation(start, head.generation);
        let kind = head.kind().ok_or_else(|| self.damaged(format!("unknown kind {}", head.kind)))?;
        let content = if kind == WriteKind::Data { head.sectors as usize * 512 } else { 0 };
        let event = match head.record_type {
            RECORD_ISSUE => {
                if bytes.len() < RECORD_BYTES + content {
                    return Err(
                        self.damaged(format!("{} sectors in a record of {length} bytes", head.sectors))
                    );
                }
                self.piece = [Piece { offset: RECORD_BYTES, length: content }];
                Event::Issue(Issue {
                    request: head.request,
                    slot: head.slot,
                    kind,
                    start_sector: head.start_sector,
                    sectors: head.sectors,
                    flags: head.flags,
                    boottime_ns: head.tail,
                    parts: if content == 0 { Parts::EMPTY } else { Parts::new(bytes, &self.piece) },
                })
            }
            RECORD_COMPLETE => Event::Complete {
                request: head.request,
                slot: head.slot,
                kind,
                start_sector: head.start_sector,
                sectors: head.sectors,
                failed: head.tail >> 32 != 0,
                bytes: head.tail & u64::from(u32::MAX),
            },
            RECORD_REQUEUE => Event::Requeue { request: head.request },
            other => return Err(self.damaged(format!("unknown type {other}"))),
        };
        let end = record_end(start, length);
        self.position = end;
        Ok(Some(Unit { start, end, generation, event }))
    }

    fn release(&mut self, position: u64) {
        let counter = Self::counter(&self.consumer_page);
        if position > counter.load(Ordering::Relaxed) && position <= self.position {
            counter.store(position, Ordering::Release);
        }
    }
}

/// Records are padded to 8 bytes.
fn record_end(start: u64, length: u64) -> u64 {
    start + (length + RING_HEADER_BYTES).next_multiple_of(8)
}
