//! Reading a segment frame by frame, with everything checked that a frame must fulfil in its place.

use std::sync::Arc;

use tidemark_proto::limits::FRAME_MAX_BYTES;

use super::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::frame::{
    DecodedFrame, FRAME_HEADER_BYTES, FRAME_MAGIC, FrameError, TABLE_MAX_BYTES, Table, decode, frame_lengths,
    payload_damage,
};
use crate::storage::{StorageError, StorageFile};
use crate::wire::size;

/// A frame in its place.
#[derive(Debug)]
pub(crate) struct Scan {
    pub frame: DecodedFrame,
    pub offset: u64,
}

/// Why there is no next frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The file ends where a frame ends, without a footer.
    Clean,
    /// The footer was read; the file ends there.
    Footer,
    /// What follows is no frame, or not the one that belongs here.
    Invalid { offset: u64, bytes: u64, problem: String },
}

/// Walks over one segment.
#[derive(Debug)]
pub(crate) struct Scanner {
    file: Arc<dyn StorageFile>,
    length: u64,
    header: SegmentHeader,
    offset: u64,
    next_ordinal: u64,
    previous: [u8; 32],
    seq: u64,
    writer_generation: u64,
    payload_bytes: u64,
    footer: bool,
    buffer: Vec<u8>,
}

impl Scanner {
    /// Reads the header. `Ok(None)`: it is not what was written, or of another segment or journal.
    pub(crate) fn open(
        file: Arc<dyn StorageFile>,
        ordinal: u64,
        key: &[u8; 32],
        previous: Option<[u8; 32]>,
    ) -> Result<Option<Self>, StorageError> {
        let length = file.len()?;
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES.min(size(length))];
        file.read_at(0, &mut bytes)?;
        let Some((header, hash)) = SegmentHeader::decode(&bytes) else { return Ok(None) };
        if header.ordinal != ordinal
            || header.key != *key
            || previous.is_some_and(|previous| previous != header.previous)
        {
            return Ok(None);
        }
        Ok(Some(Self {
            file,
            length,
            header,
            offset: SEGMENT_HEADER_BYTES as u64,
            next_ordinal: 0,
            previous: hash,
            seq: header.seq_before,
            writer_generation: header.writer_generation,
            payload_bytes: 0,
            footer: false,
            buffer: Vec::new(),
        }))
    }

    /// Byte after the last valid frame.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Which data key the frames are encrypted with; 0: none.
    pub(crate) fn data_key(&self) -> u32 {
        self.header.data_key
    }

    /// Ordinal of the next frame, hash of the last.
    pub(crate) fn tail(&self) -> (u64, [u8; 32]) {
        (self.next_ordinal, self.previous)
    }

    /// Bytes in the file.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The last payload read.
    pub(crate) fn payload(&self, frame: &DecodedFrame) -> &[u8] {
        self.buffer.get(frame.header.head_bytes()..).unwrap_or_default()
    }

    fn invalid(&self, from: u64, bytes: u64, problem: impl ToString) -> Stop {
        Stop::Invalid { offset: self.offset + from, bytes, problem: problem.to_string() }
    }

    /// The next frame, or why there is none.
    pub(crate) fn next(&mut self) -> Result<Result<Scan, Stop>, StorageError> {
        let left = self.length.saturating_sub(self.offset);
        if left == 0 {
            return Ok(Err(if self.footer { Stop::Footer } else { Stop::Clean }));
        }
        if self.footer {
            return Ok(Err(self.invalid(0, left, "bytes follow the footer")));
        }
        if let Err(error) = self.load(left)? {
            return Ok(Err(self.invalid(0, left, error)));
        }
        let frame = match decode(&self.buffer, &self.header.key) {
            Ok(frame) => frame,
            Err(error) => return Ok(Err(self.invalid(0, left, error))),
        };
        if let Some(problem) = self.misplaced(&frame) {
            return Ok(Err(self.invalid(0, left, problem)));
        }
        let payload = self.payload(&frame);
        if let Some(piece) = payload_damage(payload, &frame.crc32c) {
            let from = (frame.header.head_bytes() + piece) as u64;
            let bytes = (payload.len() - piece).min(tidemark_proto::limits::CHECKSUM_PIECE_BYTES);
            return Ok(Err(self.invalid(from, bytes as u64, "a checksum of the payload does not match")));
        }
        if !frame.has_payload(payload, &self.header.key) {
            let problem = "the payload is not what its hash is over, though its checksums match";
            return Ok(Err(self.invalid(frame.header.head_bytes() as u64, payload.len() as u64, problem)));
        }
        let offset = self.offset;
        self.offset += frame.header.frame_bytes();
        self.next_ordinal += 1;
        self.previous = frame.hash;
        self.seq = frame.header.position.seq;
        self.writer_generation = frame.header.writer_generation;
        self.payload_bytes += u64::from(frame.header.payload_bytes);
        self.footer = matches!(frame.table, Table::Footer { .. });
        Ok(Ok(Scan { frame, offset }))
    }

    /// Fills the buffer with the whole frame.
    fn load(&mut self, left: u64) -> Result<Result<(), FrameError>, StorageError> {
        if left < FRAME_HEADER_BYTES as u64 {
            return Ok(Err(FrameError::Short));
        }
        self.buffer.resize(FRAME_HEADER_BYTES, 0);
        self.file.read_at(self.offset, &mut self.buffer)?;
        let Some(lengths) = frame_lengths(&self.buffer) else { return Ok(Err(FrameError::NoFrame)) };
        let bytes = lengths.head() + lengths.payload;
        if (bytes as u64) > left {
            return Ok(Err(FrameError::Short));
        }
        self.buffer.resize(bytes, 0);
        let rest = self.buffer.get_mut(FRAME_HEADER_BYTES..).unwrap_or_default();
        self.file.read_at(self.offset + FRAME_HEADER_BYTES as u64, rest)?;
        Ok(Ok(()))
    }

    /// What is wrong with an intact frame in this place.
    fn misplaced(&self, frame: &DecodedFrame) -> Option<&'static str> {
        let header = &frame.header;
        if header.segment != self.header.ordinal || header.ordinal != self.next_ordinal {
            return Some("the frame belongs elsewhere");
        }
        if header.previous != self.previous {
            return Some("the frame does not follow the one before it");
        }
        let expected = match frame.table {
            Table::Footer { frames, payload_bytes } => {
                if frames != self.next_ordinal || payload_bytes != self.payload_bytes {
                    return Some("the footer counts other frames");
                }
                self.seq
            }
            _ => self.seq + 1,
        };
        if header.position.seq != expected {
            return Some("the frame's seq is not the next");
        }
        (header.writer_generation < self.writer_generation).then_some("the frame is of an older writer")
    }
}

/// The highest durable seq that any intact frame from byte `from` on knew of. Frames behind a damaged one may still
/// say that it was acknowledged; bytes of guests cannot, because they cannot know the key.
pub(crate) fn newest_claim(file: &dyn StorageFile, from: u64, key: &[u8; 32]) -> Result<u64, StorageError> {
    /// Bytes read at once; a head that begins in one piece must fit in what is read beyond it.
    const PIECE: u64 = 8 << 20;
    const OVERLAP: u64 =
        (FRAME_HEADER_BYTES + TABLE_MAX_BYTES + FRAME_MAX_BYTES / 1024 + FRAME_MAX_BYTES / 128) as u64;
    let length = file.len()?;
    let mut claim = 0;
    let mut at = from;
    while at < length {
        let mut bytes = vec![0; size((PIECE + OVERLAP).min(length - at))];
        file.read_at(at, &mut bytes)?;
        let starts = bytes.windows(FRAME_MAGIC.len()).take(size(PIECE)).enumerate();
        for (start, _) in starts.filter(|(_, window)| *window == FRAME_MAGIC) {
            if let Ok(frame) = decode(bytes.get(start..).unwrap_or_default(), key) {
                claim = claim.max(frame.header.durable_seq);
            }
        }
        at = at.saturating_add(PIECE);
    }
    Ok(claim)
}
