//! The kernel side and its pinned memory, shared by all processes of one boot.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use tidemark_proto::ids::CaptureId;
use tidemark_proto::v1::{GapCause, WriteKind};

use crate::capture::*;

pub(super) const BLOCKS: usize = 12;
pub(super) const SECTORS: usize = BLOCKS * 8;
pub(super) const DISKS: usize = 2;
const HEADER: u64 = 64;

#[derive(Debug, Clone)]
pub(super) struct Write {
    pub(super) id: u64,
    pub(super) request: u64,
    pub(super) slot: usize,
    pub(super) kind: WriteKind,
    pub(super) start: usize,
    pub(super) sectors: usize,
}

impl Write {
    /// What a sector holds after this write.
    pub(super) fn value(&self) -> u64 {
        if self.kind == WriteKind::Data { self.id + 1_000_000 } else { 0 }
    }

    fn range(&self) -> BlockRange {
        BlockRange::of_sectors(self.start as u64, self.sectors as u64)
    }
}

#[derive(Debug, Clone)]
pub(super) enum Record {
    /// A unit's first part, when it has two; the CPU is 1.
    Begin,
    Issue {
        write: Write,
        two_parts: bool,
    },
    Complete {
        write: Write,
        failed: bool,
        short: bool,
    },
    Requeue(u64),
}

#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) id: CaptureId,
    records: VecDeque<(u64, u64, u32, Record)>,
    pub(super) producer: u64,
    consumer: u64,
    size: u64,
    pub(super) status: KernelStatus,
    /// Blocks of each disk as its maps have them.
    pub(super) blocks: usize,
    pub(super) dirty: Vec<Vec<bool>>,
    pub(super) pending: Vec<Vec<bool>>,
    /// Silent misses: all, as last reported, and as accepted.
    pub(super) missed: [u64; 3],
}

pub(super) type Shared = Rc<RefCell<Pinned>>;

impl Pinned {
    pub(super) fn new(number: u8, size: u64, blocks: usize) -> Shared {
        Rc::new(RefCell::new(Self {
            id: CaptureId([number; 16]),
            records: VecDeque::new(),
            producer: 0,
            consumer: 0,
            size,
            status: KernelStatus {
                // As the tap is when it was loaded.
                mode: Mode::DirtyOnly,
                generation: 1,
                generation_start: 0,
                cause: GapCause::Unspecified,
                drops: 0,
            },
            blocks,
            dirty: vec![vec![false; BLOCKS]; DISKS],
            pending: vec![vec![false; BLOCKS]; DISKS],
            missed: [0; 3],
        }))
    }

    pub(super) fn mark_dirty(&mut self, write: &Write) {
        for block in write.range().start..write.range().end.min(self.blocks as u64) {
            self.dirty[write.slot][block as usize] = true;
        }
    }

    /// Appends a record; a full ring is a drop.
    pub(super) fn append(&mut self, generation: u32, record: Record) -> bool {
        let data = match &record {
            Record::Issue { write, .. } if write.kind == WriteKind::Data => write.sectors as u64 * 64,
            _ => 0,
        };
        let length = HEADER + data;
        if self.producer + length > self.consumer + self.size {
            self.drop_one();
            return false;
        }
        self.records.push_back((self.producer, self.producer + length, generation, record));
        self.producer += length;
        true
    }

    pub(super) fn drop_one(&mut self) {
        self.status.drops += 1;
        if self.status.mode == Mode::Full {
            self.status.mode = Mode::DirtyOnly;
            self.status.generation += 1;
            self.status.cause = GapCause::RingFull;
        }
    }
}

/// One process's reader.
#[derive(Debug)]
pub(super) struct FakeRing {
    shared: Shared,
    position: u64,
    open: Option<u64>,
    memory: Vec<u8>,
    pieces: Vec<Piece>,
    index_hint: HashMap<u64, usize>,
}

impl FakeRing {
    pub(super) fn new(shared: Shared) -> Self {
        let position = shared.borrow().consumer;
        Self {
            shared,
            position,
            open: None,
            memory: Vec::new(),
            pieces: Vec::new(),
            index_hint: HashMap::new(),
        }
    }
}

impl Ring for FakeRing {
    fn capture_id(&self) -> CaptureId {
        self.shared.borrow().id
    }
    fn producer(&self) -> u64 {
        self.shared.borrow().producer
    }
    fn consumer(&self) -> u64 {
        self.shared.borrow().consumer
    }
    fn position(&self) -> u64 {
        self.position
    }
    fn size(&self) -> u64 {
        self.shared.borrow().size
    }
    fn oldest_open(&self) -> Option<u64> {
        self.open
    }
    fn abandon_open(&mut self) {
        self.open = None;
    }
    fn seek(&mut self, position: u64) -> Result<(), RingError> {
        let pinned = self.shared.borrow();
        let known = position == pinned.producer || pinned.records.iter().any(|record| record.0 == position);
        assert!(known, "seek into the middle of a record");
        self.position = position;
        self.open = None;
        Ok(())
    }
    fn next(&mut self) -> Result<Option<Unit<'_>>, RingError> {
        loop {
            let found = {
                let pinned = self.shared.borrow();
                let index = pinned.records.partition_point(|record| record.0 < self.position);
                pinned.records.get(index).cloned()
            };
            let Some((start, end, generation, record)) = found else { return Ok(None) };
            self.position = end;
            self.index_hint.clear();
            let slot = |write: &Write| Slot(write.slot as u16);
            let (start, event) = match record {
                Record::Begin => {
                    self.open = Some(start);
                    continue;
                }
                Record::Issue { write, two_parts } => {
                    let start = if two_parts {
                        let Some(begin) = self.open.take() else {
                            // Its first part was given up with its generation.
                            let (slot, sectors) = (slot(&write), write.sectors as u32);
                            let event = Event::Voided {
                                request: write.request,
                                slot,
                                start_sector: write.start as u64,
                                sectors,
                            };
                            return Ok(Some(Unit { start, end, generation, event }));
                        };
                        begin
                    } else {
                        start
                    };
                    self.memory.clear();
                    self.pieces.clear();
                    if write.kind == WriteKind::Data {
                        self.memory.resize(write.sectors * 512, 0);
                        for sector in self.memory.chunks_mut(512) {
                            sector[..8].copy_from_slice(&write.value().to_le_bytes());
                        }
                        let half = write.sectors / 2 * 512;
                        self.pieces.push(Piece { offset: 0, length: half });
                        self.pieces.push(Piece { offset: half, length: write.sectors * 512 - half });
                    }
                    (
                        start,
                        Event::Issue(Issue {
                            request: write.request,
                            slot: slot(&write),
                            kind: write.kind,
                            start_sector: write.start as u64,
                            sectors: write.sectors as u32,
                            flags: 0,
                            boottime_ns: write.id * 1000,
                            parts: Parts::new(&self.memory, &self.pieces),
                        }),
                    )
                }
                Record::Complete { write, failed, short } => (
                    start,
                    Event::Complete {
                        request: write.request,
                        slot: slot(&write),
                        kind: write.kind,
                        start_sector: write.start as u64,
                        sectors: write.sectors as u32,
                        failed,
                        bytes: write.sectors as u64 * 512 - if short { 512 } else { 0 },
                    },
                ),
                Record::Requeue(request) => (start, Event::Requeue { request }),
            };
            return Ok(Some(Unit { start, end, generation, event }));
        }
    }
    fn release(&mut self, position: u64) {
        let mut pinned = self.shared.borrow_mut();
        assert!(position <= self.position && self.open.is_none_or(|open| position <= open));
        pinned.consumer = pinned.consumer.max(position);
        while pinned.records.front().is_some_and(|record| record.1 <= position) {
            pinned.records.pop_front();
        }
    }
}

#[derive(Debug)]
pub(super) struct FakeControl(pub(super) Shared);

impl Control for FakeControl {
    fn status(&self) -> KernelStatus {
        self.0.borrow().status
    }
    fn restart(&mut self) -> Result<u32, ControlError> {
        let mut pinned = self.0.borrow_mut();
        pinned.status.mode = Mode::Full;
        pinned.status.generation += 1;
        pinned.status.generation_start = pinned.producer;
        Ok(pinned.status.generation)
    }
    fn force_miss(&mut self, _cause: GapCause) -> Result<(), ControlError> {
        self.0.borrow_mut().drop_one();
        Ok(())
    }
    fn witness(&mut self) -> Result<Witness, ControlError> {
        let mut pinned = self.0.borrow_mut();
        if pinned.missed[0] != pinned.missed[2] {
            pinned.missed[1] = pinned.missed[0];
            let slots = (0..DISKS as u16).map(Slot).collect();
            return Ok(Witness::Mismatch { slots, detail: "simulated".into() });
        }
        Ok(Witness::Clean)
    }
    fn accept_witness(&mut self) -> Result<(), ControlError> {
        let mut pinned = self.0.borrow_mut();
        pinned.missed[2] = pinned.missed[1];
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct FakeMaps(pub(super) Shared);

impl DirtyMaps for FakeMaps {
    fn take(&mut self, slot: Slot, moved: &mut dyn FnMut(BlockRange)) -> Result<(), MapError> {
        let mut pinned = self.0.borrow_mut();
        for block in 0..BLOCKS {
            if std::mem::take(&mut pinned.dirty[slot.0 as usize][block]) {
                pinned.pending[slot.0 as usize][block] = true;
                moved(BlockRange { start: block as u64, end: block as u64 + 1 });
            }
        }
        Ok(())
    }
    fn mark(&mut self, slot: Slot, range: BlockRange) -> Result<(), MapError> {
        let blocks = self.blocks(slot);
        for block in range.start..range.end.min(blocks) {
            self.0.borrow_mut().pending[slot.0 as usize][block as usize] = true;
        }
        Ok(())
    }
    fn clear(&mut self, slot: Slot, range: BlockRange) -> Result<(), MapError> {
        for block in range.start..range.end {
            self.0.borrow_mut().pending[slot.0 as usize][block as usize] = false;
        }
        Ok(())
    }
    fn next_pending(&self, slot: Slot, from: u64, limit: u64) -> Option<BlockRange> {
        // Short ranges: many reads, many races.
        let limit = limit.min(3);
        let pinned = self.0.borrow();
        let bits = &pinned.pending[slot.0 as usize];
        let start = (from as usize..BLOCKS).find(|block| bits[*block])?;
        let end = (start..BLOCKS).take(limit as usize).take_while(|block| bits[*block]).last()? + 1;
        Some(BlockRange { start: start as u64, end: end as u64 })
    }
    fn pending_blocks(&self, slot: Slot) -> u64 {
        self.0.borrow().pending[slot.0 as usize].iter().filter(|bit| **bit).count() as u64
    }
    fn blocks(&self, _slot: Slot) -> u64 {
        self.0.borrow().blocks as u64
    }
}
