//! A stream of frames, and the slow model that says what every disk must hold at every LSN.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemark_journal::frame::{Body, Entry, EntryKind, Frame};
use tidemark_journal::storage::SimStorage;
use tidemark_journal::{AppendError, DiskRecord, Journal, Options, Position};
use tidemark_proto::ids::{CaptureId, ChainHash, DiskId, Generation, Lsn, VmId};
use uuid::Uuid;

pub(crate) const SECTOR: usize = 512;
/// Two chunks and a bit, so that writes cross chunk borders.
pub(crate) const DISK_SECTORS: usize = 300;
pub(crate) const KEY: [u8; 32] = [7; 32];

pub(crate) fn vm() -> VmId {
    VmId(Uuid::from_bytes([3; 16]))
}

pub(crate) fn options(segment_bytes: u64) -> Options {
    Options { segment_bytes, manifest_snapshot_bytes: 8 << 10, key: KEY, ..Options::default() }
}

pub(crate) fn disk(id: u32) -> DiskRecord {
    DiskRecord {
        id: DiskId(id),
        identity: format!("serial-{id}"),
        path: format!("/dev/vd{id}"),
        size_bytes: (DISK_SECTORS * SECTOR) as u64,
    }
}

pub(crate) fn checksums(payload: &[u8]) -> Vec<u32> {
    payload.chunks(4096).map(crc32c::crc32c).collect()
}

/// Bytes that differ by write and by sector.
pub(crate) fn pattern(seed: u64, sectors: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(sectors * SECTOR);
    for sector in 0..sectors as u64 {
        let word = (seed << 16 | sector).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..SECTOR / 8 {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// A frame that owns its parts.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    pub(crate) position: Position,
    pub(crate) time_us: u64,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Writes { first: u64, entries: Vec<Entry>, payload: Vec<u8> },
    Base { line: u64, entries: Vec<Entry>, payload: Vec<u8> },
    LineStart { lsn: u64, gap_from: u64, disks: Vec<DiskId> },
    LineEnd { lsn: u64, disks: Vec<DiskId> },
    Marker { lsn: u64, name: String },
    Heartbeat { lsn: u64, clean: bool },
    Resize { lsn: u64, disk: DiskId, size_bytes: u64 },
}

impl Owned {
    pub(crate) fn append(&self, journal: &Journal) -> Result<(), AppendError> {
        let crc32c;
        let body = match &self.content {
            Content::Writes { first, entries, payload } => {
                crc32c = checksums(payload);
                Body::Writes { first_lsn: Lsn(*first), entries, payload, crc32c: &crc32c }
            }
            Content::Base { line, entries, payload } => {
                crc32c = checksums(payload);
                Body::Base { line_lsn: Lsn(*line), entries, payload, crc32c: &crc32c }
            }
            Content::LineStart { lsn, gap_from, disks } => Body::LineStart {
                lsn: Lsn(*lsn),
                gap_from_lsn: Lsn(*gap_from),
                cause: 2,
                detail: "ring full",
                disks,
                dirty_bytes: 4096,
            },
            Content::LineEnd { lsn, disks } => Body::LineEnd { lsn: Lsn(*lsn), disks },
            Content::Marker { lsn, name } => {
                Body::Marker { lsn: Lsn(*lsn), bookmark_id: "b", name, request_id: 5 }
            }
            Content::Heartbeat { lsn, clean } => {
                Body::Heartbeat { lsn: Lsn(*lsn), time_us: self.time_us, clean: *clean }
            }
            Content::Resize { lsn, disk, size_bytes } => {
                Body::Resize { lsn: Lsn(*lsn), disk: *disk, size_bytes: *size_bytes }
            }
        };
        journal.append(&Frame {
            position: self.position,
            appliance_time_us: self.time_us,
            clock_error_us: 3,
            body,
        })
    }
}

pub(crate) fn entry(disk: u32, kind: EntryKind, start: usize, sectors: usize) -> Entry {
    Entry {
        disk: DiskId(disk),
        kind,
        start_sector: start as u64,
        sectors: u32::try_from(sectors).unwrap(),
        flags: 0,
        time_delta_us: 0,
    }
}

/// Numbers frames as a splitter does. Time goes on by 1 ms per frame.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stream {
    pub(crate) position: Position,
    pub(crate) frames: Vec<Owned>,
}

impl Stream {
    pub(crate) fn time_us(&self) -> u64 {
        1_000_000 + self.position.seq * 1000
    }

    fn push(&mut self, lsns: u64, content: impl FnOnce(u64) -> Content) -> Owned {
        let first = self.position.lsn.0 + 1;
        let position = &mut self.position;
        position.seq += 1;
        position.lsn = Lsn(position.lsn.0 + lsns);
        position.ring_position += 64;
        position.capture_id = CaptureId([9; 16]);
        position.generation = Generation(1);
        position.chain = ChainHash([u8::try_from(position.seq % 251).unwrap(); 32]);
        let frame = Owned { position: *position, time_us: self.time_us(), content: content(first) };
        self.frames.push(frame.clone());
        frame
    }

    pub(crate) fn writes(&mut self, entries: Vec<Entry>, seed: u64) -> Owned {
        let payload = payload(&entries, seed);
        self.push(entries.len() as u64, |first| Content::Writes { first, entries, payload })
    }

    pub(crate) fn base(&mut self, line: u64, entries: Vec<Entry>, seed: u64) -> Owned {
        let payload = payload(&entries, seed);
        self.push(0, |_| Content::Base { line, entries, payload })
    }

    /// Base blocks with a content of the caller's.
    pub(crate) fn base_of(&mut self, line: u64, entries: Vec<Entry>, payload: Vec<u8>) -> Owned {
        self.push(0, |_| Content::Base { line, entries, payload })
    }

    pub(crate) fn line_start(&mut self, disks: &[u32], back: u64) -> Owned {
        let disks = disks.iter().copied().map(DiskId).collect();
        self.push(1, |lsn| Content::LineStart { lsn, gap_from: lsn.saturating_sub(back).max(1), disks })
    }

    pub(crate) fn line_end(&mut self, disks: &[u32]) -> Owned {
        let disks = disks.iter().copied().map(DiskId).collect();
        self.push(1, |lsn| Content::LineEnd { lsn, disks })
    }

    pub(crate) fn marker(&mut self, name: &str) -> Owned {
        self.push(1, |lsn| Content::Marker { lsn, name: name.to_owned() })
    }

    pub(crate) fn resize(&mut self, disk: u32, sectors: usize) -> Owned {
        let size_bytes = (sectors * SECTOR) as u64;
        self.push(1, |lsn| Content::Resize { lsn, disk: DiskId(disk), size_bytes })
    }

    pub(crate) fn heartbeat(&mut self, clean: bool) -> Owned {
        self.push(0, |first| Content::Heartbeat { lsn: first - 1, clean })
    }

    /// Forgets what came after a position, as a splitter does that reconnects: those frames are sent anew.
    pub(crate) fn rewind(&mut self, position: Position) {
        self.frames.retain(|frame| frame.position.seq <= position.seq);
        self.position = position;
    }
}

fn payload(entries: &[Entry], seed: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if entry.kind == EntryKind::Data {
            payload.extend(pattern(seed * 64 + index as u64, entry.sectors as usize));
        }
    }
    payload
}

/// How the model orders base blocks: the rule, or one of the mistakes that the checker must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BaseRule {
    AtLine,
    AtArrival,
    BelowEverything,
    EarlierArrivalWins,
}

/// One version of a range: (LSN, arrival), disk, first sector, bytes.
type Version = ((u64, u64), u32, usize, Vec<u8>);

/// The slow model: all versions in a list; the state at an LSN is their replay in order.
#[derive(Debug, Default)]
pub(crate) struct Model {
    versions: Vec<Version>,
    pub(crate) gaps: Vec<(u64, Option<u64>, u32)>,
    pub(crate) first_line: BTreeMap<u32, u64>,
    pub(crate) horizon: u64,
    pub(crate) times: BTreeMap<u64, u64>,
}

impl Model {
    pub(crate) fn of(frames: &[Owned], rule: BaseRule) -> Self {
        let mut model = Self::default();
        let mut last_lsn = 0;
        for (arrival, frame) in frames.iter().enumerate() {
            let arrival = arrival as u64;
            match &frame.content {
                Content::Writes { first, entries, payload } => {
                    for (index, entry) in (*first..).zip(entries) {
                        model.times.insert(index, frame.time_us + u64::from(entry.time_delta_us));
                    }
                    model.add(entries, payload, |index| (first + index, arrival));
                }
                Content::Base { line, entries, payload } => model.add(entries, payload, |_| match rule {
                    BaseRule::AtLine => (*line, arrival),
                    BaseRule::AtArrival => (last_lsn, arrival),
                    BaseRule::BelowEverything => (0, arrival),
                    BaseRule::EarlierArrivalWins => (*line, u64::MAX - arrival),
                }),
                Content::LineStart { lsn, gap_from, disks } => {
                    for disk in disks {
                        model.first_line.entry(disk.0).or_insert(*lsn);
                        model.gaps.push((*gap_from, None, disk.0));
                    }
                }
                Content::LineEnd { lsn, disks } => {
                    let open = model.gaps.iter_mut().filter(|gap| gap.1.is_none());
                    for gap in open.filter(|gap| disks.contains(&DiskId(gap.2))) {
                        gap.1 = Some(*lsn);
                    }
                }
                Content::Heartbeat { lsn, clean: true } => model.horizon = *lsn,
                _ => {}
            }
            if frame.position.lsn.0 > last_lsn {
                model.times.entry(frame.position.lsn.0).or_insert(frame.time_us);
            }
            last_lsn = frame.position.lsn.0;
        }
        model.versions.sort_by_key(|version| version.0);
        model
    }

    fn add(&mut self, entries: &[Entry], payload: &[u8], order: impl Fn(u64) -> (u64, u64)) {
        let mut rest = payload;
        for (index, entry) in (0..).zip(entries) {
            let bytes = entry.sectors as usize * SECTOR;
            let start = usize::try_from(entry.start_sector).unwrap();
            match entry.kind {
                EntryKind::Flush => {}
                EntryKind::Data => {
                    let (data, next) = rest.split_at(bytes);
                    rest = next;
                    self.versions.push((order(index), entry.disk.0, start, data.to_vec()));
                }
                _ => self.versions.push((order(index), entry.disk.0, start, vec![0; bytes])),
            }
        }
    }

    pub(crate) fn image(&self, disk: u32, lsn: u64) -> Vec<u8> {
        let mut image = vec![0; DISK_SECTORS * SECTOR];
        for ((at, _), of, start, bytes) in &self.versions {
            if *of == disk && *at <= lsn {
                image[start * SECTOR..start * SECTOR + bytes.len()].copy_from_slice(bytes);
            }
        }
        image
    }

    pub(crate) fn exact(&self, disk: u32, lsn: u64) -> bool {
        let known = self.first_line.get(&disk).is_some_and(|line| *line <= lsn);
        let in_gap =
            |gap: &(u64, Option<u64>, u32)| gap.2 == disk && gap.0 <= lsn && gap.1.is_none_or(|to| lsn < to);
        known && lsn <= self.horizon && !self.gaps.iter().any(in_gap)
    }
}

/// The first difference between the journal and the model, at these LSNs.
pub(crate) fn difference(
    journal: &Journal,
    model: &Model,
    lsns: impl IntoIterator<Item = u64>,
) -> Option<String> {
    let timeline = journal.timeline();
    for lsn in lsns {
        for disk in [1, 2] {
            let exact = model.exact(disk, lsn);
            let checked = timeline.check(Lsn(lsn), &[DiskId(disk)]);
            if checked.is_ok() != exact {
                return Some(format!(
                    "disk-{disk} at {lsn}: exact is {exact}, the timeline says {checked:?}"
                ));
            }
            let view = journal.view(Lsn(lsn)).ok();
            let view = view.filter(|view| view.disks().iter().any(|found| found.id == DiskId(disk)));
            if view.is_some() != exact {
                return Some(format!(
                    "disk-{disk} at {lsn}: exact is {exact}, the view is {}",
                    view.is_some()
                ));
            }
            if let Some(view) = view {
                let mut image = vec![0xee; DISK_SECTORS * SECTOR];
                if let Err(error) = view.read_at(DiskId(disk), 0, &mut image) {
                    return Some(format!("disk-{disk} at {lsn}: {error}"));
                }
                let expected = model.image(disk, lsn);
                if let Some(at) = (0..image.len()).find(|at| image[*at] != expected[*at]) {
                    return Some(format!("disk-{disk} at {lsn} differs in sector {}", at / SECTOR));
                }
            }
        }
    }
    None
}

pub(crate) fn journal(storage: &SimStorage, segment_bytes: u64) -> Journal {
    let journal = Journal::create(Arc::new(storage.clone()), vm(), options(segment_bytes)).unwrap();
    journal.put_disk(disk(1)).unwrap();
    journal.put_disk(disk(2)).unwrap();
    journal
}

pub(crate) fn reopen(storage: &SimStorage, segment_bytes: u64) -> Journal {
    let (journal, report) = Journal::open(Arc::new(storage.clone()), options(segment_bytes)).unwrap();
    assert_eq!(report.damage, None);
    journal
}

/// A small stream with one of everything, for tests that look at every byte.
pub(crate) fn tiny(journal: &Journal) -> Stream {
    let mut stream = Stream::default();
    let data = EntryKind::Data;
    let frames = [
        stream.line_start(&[1, 2], 0),
        stream.writes(vec![entry(1, data, 127, 2), entry(1, EntryKind::Flush, 0, 0)], 1),
        stream.base(1, vec![entry(1, data, 126, 2), entry(2, EntryKind::Zeroes, 0, 300)], 2),
        stream.line_end(&[1, 2]),
        stream.marker("before the upgrade"),
        stream.heartbeat(true),
        stream.writes(vec![entry(2, data, 8, 10), entry(1, EntryKind::Discard, 128, 1)], 3),
        stream.heartbeat(true),
    ];
    for frame in &frames {
        frame.append(journal).unwrap();
        journal.sync().unwrap();
    }
    stream
}

/// A stream with one of everything, in several segments.
pub(crate) fn sample(journal: &Journal) -> Stream {
    let mut stream = Stream::default();
    let data = EntryKind::Data;
    let frames = [
        stream.line_start(&[1, 2], 0),
        stream.writes(vec![entry(1, data, 3, 9), entry(2, data, 120, 20)], 1),
        stream.base(1, vec![entry(1, data, 0, 16), entry(1, EntryKind::Zeroes, 16, 284)], 2),
        stream.base(1, vec![entry(2, EntryKind::Zeroes, 0, 300)], 3),
        stream.line_end(&[1, 2]),
        stream.marker("before the upgrade"),
        stream.heartbeat(true),
        stream.writes(vec![entry(1, data, 100, 40), entry(1, EntryKind::Flush, 0, 0)], 4),
        stream.writes(vec![entry(2, EntryKind::Discard, 8, 200), entry(1, data, 1, 1)], 5),
        stream.line_start(&[2], 1),
        stream.writes(vec![entry(2, data, 50, 5)], 6),
        stream.base(10, vec![entry(2, data, 49, 8)], 7),
        stream.line_end(&[2]),
        stream.writes(vec![entry(1, data, 200, 30)], 8),
        stream.heartbeat(true),
    ];
    for (index, frame) in frames.iter().enumerate() {
        frame.append(journal).unwrap();
        if index % 3 == 2 {
            journal.sync().unwrap();
        }
    }
    journal.sync().unwrap();
    stream
}
