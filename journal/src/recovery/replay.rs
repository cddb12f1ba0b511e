//! Reads the segments that have no leaf yet, and judges where the log ends.

use std::sync::Arc;

use tidemark_proto::ids::Lsn;

use super::{Damage, Decision, End, decide};
use crate::attest::WHOLE_SEGMENT;
use crate::error::OpenError;
use crate::frame::DecodedFrame;
use crate::index::MemoryIndex;
use crate::journal::{MemorySegment, Run, push_event};
use crate::leaf::leaf_name;
use crate::manifest::{FIRST_OF_BRANCH, State};
use crate::position::Position;
use crate::segment::{Scanner, Stop, newest_claim, segment_name};
use crate::storage::{Storage, StorageError, StorageErrorKind, StorageFile};
use crate::timeline::{Event, History, Horizon, Point};

/// The log as far as it is intact.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub runs: Vec<Run>,
    pub history: History,
    pub horizon: Option<Horizon>,
    pub position: Position,
    pub floor_us: u64,
    pub last_hash: [u8; 32],
    /// What `last_hash` is over: a segment, and how many of its frames.
    pub place: (u64, u64),
    pub tail: Tail,
    /// Bytes after the end that are to be cut, in the open segment.
    pub cut_bytes: u64,
    /// Listed segments that held nothing acknowledged.
    pub drop: Vec<u64>,
    pub damage: Option<Damage>,
    pub frames: u64,
}

/// Where the next frame goes.
#[derive(Debug)]
pub(crate) enum Tail {
    /// To a new segment.
    New,
    /// To this one.
    Open(OpenTail),
}

/// A segment that can be appended to.
#[derive(Debug)]
pub(crate) struct OpenTail {
    pub file: Arc<dyn StorageFile>,
    pub segment: Arc<MemorySegment>,
    pub length: u64,
    pub next_ordinal: u64,
    /// Which data key its frames are encrypted with; 0: none.
    pub data_key: u32,
}

/// Replays `state` over the files; changes nothing.
pub(crate) fn replay(storage: &dyn Storage, key: &[u8; 32], state: &State) -> Result<Recovered, OpenError> {
    let mut log = Recovered {
        runs: Vec::new(),
        history: History::default(),
        horizon: None,
        position: Position::default(),
        floor_us: 0,
        last_hash: [0; 32],
        place: (0, WHOLE_SEGMENT),
        tail: Tail::New,
        cut_bytes: 0,
        drop: Vec::new(),
        damage: None,
        frames: 0,
    };
    for (id, disk) in &state.disks {
        log.history.disks.entry(tidemark_proto::ids::DiskId(*id)).or_default().sizes.clone_from(&disk.sizes);
    }
    if let Some(base) = &state.base {
        for event in &base.events {
            log.take(event);
        }
        for (disk, line) in &base.first_lines {
            log.history.disks.entry(*disk).or_default().first_line = Some(*line);
        }
        log.history.floor = Some(Point { lsn: base.lsn, time_us: base.time_us });
        (log.last_hash, log.floor_us) = (base.last_hash, base.floor_us);
        if base.first_ordinal == FIRST_OF_BRANCH {
            // LSNs go on where the parent stood; of any other journal a segment says it.
            log.position.lsn = base.lsn;
        }
        log.place = (base.first_ordinal.saturating_sub(1), WHOLE_SEGMENT);
    }
    for sealed in state.sealed.values() {
        for event in &sealed.events {
            log.take(event);
        }
        log.position = sealed.position;
        log.floor_us = log.floor_us.max(sealed.summary.last_time_us);
        log.last_hash = sealed.last_hash;
        log.place = (sealed.ordinal, WHOLE_SEGMENT);
        log.runs.push(Run::Sealed(Arc::clone(sealed)));
        for (name, bytes) in
            [(segment_name(sealed.ordinal), sealed.bytes), (leaf_name(sealed.ordinal), sealed.leaf_bytes)]
        {
            if log.damage.is_none() {
                log.damage = length_damage(storage, &name, bytes)?;
            }
        }
    }
    let open: Vec<u64> = state.open.keys().copied().collect();
    let mut rest = open.as_slice();
    while let Some((ordinal, later)) = rest.split_first() {
        if !log.segment(storage, key, state, *ordinal, later)? {
            break;
        }
        rest = later;
    }
    // Damage in a sealed segment does not end the log, but nothing may be added to a journal that needs help.
    if open.is_empty() && log.position.seq < state.durable_seq && log.damage.is_none() {
        log.damage = Some(Damage {
            file: crate::manifest::MANIFEST_FILE.to_owned(),
            offset: 0,
            bytes: 0,
            problem: format!("frames after seq {} were acknowledged and are missing", log.position.seq),
        });
    }
    Ok(log)
}

fn length_damage(storage: &dyn Storage, name: &str, bytes: u64) -> Result<Option<Damage>, StorageError> {
    let found = match storage.open(name) {
        Ok(file) => file.len()?,
        Err(error) if error.kind() == StorageErrorKind::Missing => 0,
        Err(error) => return Err(error),
    };
    Ok((found != bytes).then(|| Damage {
        file: name.to_owned(),
        offset: found.min(bytes),
        bytes: found.abs_diff(bytes),
        problem: format!("the file has {found} bytes, sealed with {bytes}"),
    }))
}

impl Recovered {
    fn take(&mut self, event: &Event) {
        if let Some(horizon) = self.history.apply(event) {
            self.horizon = Some(horizon);
        }
    }

    /// Reads one listed segment; whether the log goes on in the next.
    fn segment(
        &mut self,
        storage: &dyn Storage,
        key: &[u8; 32],
        state: &State,
        ordinal: u64,
        later: &[u64],
    ) -> Result<bool, OpenError> {
        let scanner = open_segment(storage, ordinal, key, self.last_hash)?;
        let (end, scanned, mut damage) = match scanner {
            None => {
                let damage = Damage {
                    file: segment_name(ordinal),
                    offset: 0,
                    bytes: crate::segment::SEGMENT_HEADER_BYTES as u64,
                    problem: "the file is missing or its header is not as written".to_owned(),
                };
                (End::NotBegun, None, damage)
            }
            Some((file, scanner)) => self.scan(ordinal, file, scanner)?,
        };
        let beyond = end != End::Footer || later.is_empty();
        let beyond =
            beyond && self.acknowledged_beyond(storage, key, state, ordinal, scanned.as_ref(), later)?;
        let decision = decide(end, !later.is_empty(), beyond);
        match decision {
            Decision::Next => return Ok(true),
            Decision::Begin => {}
            Decision::Append | Decision::Cut => {
                self.drop.extend_from_slice(later);
                if let Some(tail) = scanned {
                    self.cut_bytes = tail.file.len()?.saturating_sub(tail.length);
                    self.tail = Tail::Open(tail);
                }
            }
            Decision::Drop => {
                self.drop.push(ordinal);
                self.drop.extend_from_slice(later);
            }
            Decision::Damaged => {
                damage.problem =
                    format!("{}; frames after seq {} were acknowledged", damage.problem, self.position.seq);
                self.damage = Some(damage);
            }
        }
        Ok(false)
    }

    fn scan(
        &mut self,
        ordinal: u64,
        file: Arc<dyn StorageFile>,
        mut scanner: Scanner,
    ) -> Result<(End, Option<OpenTail>, Damage), OpenError> {
        let mut index = MemoryIndex::new(self.floor_us);
        let mut events = Vec::new();
        let stop = loop {
            match scanner.next()? {
                Ok(scan) => {
                    index.add_decoded(&scan.frame, scan.offset);
                    self.frames += 1;
                    if let Some(event) = self.frame(&scan.frame, &index) {
                        push_event(&mut events, event);
                    }
                }
                Err(stop) => break stop,
            }
        };
        self.floor_us = index.floor_us();
        let (next_ordinal, last_hash) = scanner.tail();
        self.last_hash = last_hash;
        let length = scanner.offset();
        let segment = Arc::new(MemorySegment::new(ordinal, index, events));
        self.runs.push(Run::Open(Arc::clone(&segment)));
        let at = |offset, bytes, problem: &str| Damage {
            file: segment_name(ordinal),
            offset,
            bytes,
            problem: problem.to_owned(),
        };
        let (end, damage) = match stop {
            Stop::Clean => (End::Clean, at(length, 0, "the file ends early")),
            Stop::Footer => (End::Footer, at(length, 0, "the next segment is missing")),
            Stop::Invalid { offset, bytes, problem } => (End::Invalid, at(offset, bytes, &problem)),
        };
        self.place = (ordinal, if end == End::Footer { WHOLE_SEGMENT } else { next_ordinal });
        if end == End::Footer {
            segment.close(length, last_hash, self.position);
        }
        let data_key = scanner.data_key();
        Ok((end, Some(OpenTail { file, segment, length, next_ordinal, data_key }), damage))
    }

    fn frame(&mut self, frame: &DecodedFrame, index: &MemoryIndex) -> Option<Event> {
        self.position = frame.header.position;
        let horizon = self.horizon;
        let event = Event::of(frame, index.floor_us(), |lsn| time_before(index, horizon, lsn))?;
        self.take(&event);
        Some(event)
    }

    /// Whether anything says that a frame after the last intact one was durable.
    fn acknowledged_beyond(
        &self,
        storage: &dyn Storage,
        key: &[u8; 32],
        state: &State,
        ordinal: u64,
        tail: Option<&OpenTail>,
        later: &[u64],
    ) -> Result<bool, OpenError> {
        let last = self.position.seq;
        if state.durable_seq > last {
            return Ok(true);
        }
        let here = tail.map_or(0, |tail| tail.length);
        for (ordinal, from) in [(ordinal, here)].into_iter().chain(later.iter().map(|later| (*later, 0))) {
            let file = match storage.open(&segment_name(ordinal)) {
                Ok(file) => file,
                Err(error) if error.kind() == StorageErrorKind::Missing => continue,
                Err(error) => return Err(error.into()),
            };
            if newest_claim(file.as_ref(), from, key)? > last {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The time of an LSN, as far as the segment at hand or the last horizon tells; 0 when neither does.
pub(crate) fn time_before(index: &MemoryIndex, horizon: Option<Horizon>, lsn: Lsn) -> u64 {
    let first = index.summary().first_lsn;
    let own = lsn.0.checked_sub(first).filter(|_| first > 0).and_then(|at| usize::try_from(at).ok());
    own.and_then(|at| index.times().get(at).copied())
        .or_else(|| horizon.filter(|horizon| horizon.lsn <= lsn).map(|horizon| horizon.time_us))
        .unwrap_or(0)
}

type Opened = Option<(Arc<dyn StorageFile>, Scanner)>;

fn open_segment(
    storage: &dyn Storage,
    ordinal: u64,
    key: &[u8; 32],
    previous: [u8; 32],
) -> Result<Opened, StorageError> {
    let file = match storage.open(&segment_name(ordinal)) {
        Ok(file) => file,
        Err(error) if error.kind() == StorageErrorKind::Missing => return Ok(None),
        Err(error) => return Err(error),
    };
    let scanner = Scanner::open(Arc::clone(&file), ordinal, key, Some(previous))?;
    Ok(scanner.map(|scanner| (file, scanner)))
}
