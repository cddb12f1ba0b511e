//! The world around the engine: guest, disks, network, and everything that goes wrong.

use std::collections::{HashMap, VecDeque};

use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::{DiskState, Frame, GapCause, StreamPosition, WriteKind, frame::Body};

use super::appliance::Appliance;
use super::checker::{Image, Moment, check};
use super::kernel::{BLOCKS, DISKS, FakeControl, FakeMaps, FakeRing, Pinned, Record, SECTORS, Shared, Write};
use super::random::Random;
use crate::capture::{Mode, Slot};
use crate::engine::{DiskConfig, Engine, Kernel, MarkerRequest, Notice, ReadRequest};

/// Deliberately broken variants: the checker must fail on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    /// Base blocks carry the LSN current when their read began.
    BaseAtReadLsn,
    /// Two neighbouring writes change places.
    SwappedWrites,
    /// A write is missed and no counter shows it.
    SilentMiss,
    /// Pending bits do not survive the splitter.
    ForgottenBits,
}

/// How often the interesting things happened.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) points: u64,
    drops: u64,
    overlaps: u64,
    splitter_restarts: u64,
    reboots: u64,
    disconnects: u64,
    appliance_crashes: u64,
    failed_writes: u64,
    requeues: u64,
    silent_misses: u64,
    late_units: u64,
    markers: u64,
    lines: u64,
    growths: u64,
}

impl Totals {
    pub(super) fn counts(&self) -> [(&'static str, u64); 14] {
        [
            ("points", self.points),
            ("drops", self.drops),
            ("overlaps", self.overlaps),
            ("splitter restarts", self.splitter_restarts),
            ("reboots", self.reboots),
            ("disconnects", self.disconnects),
            ("appliance crashes", self.appliance_crashes),
            ("failed writes", self.failed_writes),
            ("requeues", self.requeues),
            ("silent misses", self.silent_misses),
            ("late units", self.late_units),
            ("markers", self.markers),
            ("lines", self.lines),
            ("growths", self.growths),
        ]
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.drops += other.drops;
        self.overlaps += other.overlaps;
        self.splitter_restarts += other.splitter_restarts;
        self.reboots += other.reboots;
        self.disconnects += other.disconnects;
        self.appliance_crashes += other.appliance_crashes;
        self.failed_writes += other.failed_writes;
        self.requeues += other.requeues;
        self.silent_misses += other.silent_misses;
        self.late_units += other.late_units;
        self.markers += other.markers;
        self.lines += other.lines;
        self.growths += other.growths;
    }
}

#[derive(Debug, Clone)]
struct Flying {
    write: Write,
    silent: bool,
    /// Issued in dirty-only mode: its completion marks again.
    unseen: bool,
    requeued: bool,
}

#[derive(Debug)]
struct Splitter {
    engine: Engine,
    ring: FakeRing,
    reads: Vec<(ReadRequest, Option<Vec<u8>>)>,
    /// LSN when the read of a place began, for the broken variant.
    read_lsn: HashMap<(Slot, u64), u64>,
    connected: bool,
}

pub(super) struct World {
    random: Random,
    broken: Broken,
    now_us: u64,
    disks: Image,
    flying: Vec<Flying>,
    /// A unit of the slow CPU whose program has begun: its write and the generation it saw.
    slow: Option<(Write, u32, bool)>,
    pinned: Shared,
    /// Blocks of each disk now, and at the beginning: disks grow once.
    blocks: usize,
    first_blocks: usize,
    captures: u8,
    ring_bytes: u64,
    /// Misses are ten times as rare: more points outside gaps.
    calm: bool,
    splitter: Splitter,
    appliance: Appliance,
    to_appliance: VecDeque<Frame>,
    to_splitter: VecDeque<StreamPosition>,
    moments: HashMap<u64, Moment>,
    next_id: u64,
    next_index: u64,
    totals: Totals,
}

impl World {
    pub(super) fn new(seed: u64, broken: Broken) -> Self {
        let mut random = Random::new(seed);
        let calm = random.chance(500);
        let ring_bytes = if calm { 64 << 10 } else { [4 << 10, 8 << 10, 64 << 10][random.index(3)] };
        let first_blocks = if random.chance(500) { BLOCKS } else { BLOCKS - 3 };
        let pinned = Pinned::new(1, ring_bytes, first_blocks);
        let mut disks: Image = vec![vec![0; SECTORS]; DISKS];
        for sector in disks.iter_mut().flatten() {
            *sector = if random.chance(500) { random.below(1000) + 1 } else { 0 };
        }
        Self {
            broken,
            now_us: 1_000_000,
            disks,
            flying: Vec::new(),
            slow: None,
            splitter: Splitter::new(&pinned),
            pinned,
            captures: 1,
            calm,
            ring_bytes,
            appliance: Appliance::new(broken == Broken::Nothing, first_blocks as u64 * 4096),
            blocks: first_blocks,
            first_blocks,
            to_appliance: VecDeque::new(),
            to_splitter: VecDeque::new(),
            moments: HashMap::new(),
            next_id: 1,
            next_index: 1,
            totals: Totals::default(),
            random,
        }
    }

    pub(super) fn run(mut self) -> Result<Totals, String> {
        let ticks = 200 + self.random.below(400);
        let (trouble, busy) = (self.random.below(12), 200 + self.random.below(500));
        for _ in 0..ticks {
            self.guest(busy);
            self.pump()?;
            if self.random.chance(trouble) {
                self.trouble();
            }
            if self.random.chance(5) {
                self.blocks = BLOCKS;
            }
            if self.random.chance(30) {
                self.notice_growth()?;
            }
        }
        self.quiesce()?;
        self.totals.points =
            check(&self.appliance.frames, &self.moments, &self.disks, self.first_blocks * 8)?;
        self.totals.drops += self.pinned.borrow().status.drops;
        Ok(self.totals)
    }

    /// Causes of the lines of a first protection of quiet disks, until it is done.
    pub(super) fn first_lines(mut self) -> Result<Vec<GapCause>, String> {
        self.quiesce()?;
        let causes = self.appliance.frames.iter().filter_map(|(frame, _)| match &frame.body {
            Some(Body::LineStart(line)) => Some(line.cause()),
            _ => None,
        });
        Ok(causes.collect())
    }

    /// The daemon finds that the disks have another size than it knew.
    fn notice_growth(&mut self) -> Result<(), String> {
        if !self.splitter.engine.attached || !self.splitter.connected {
            return Ok(());
        }
        self.pinned.borrow_mut().blocks = self.blocks;
        for disk in 0..DISKS as u16 {
            let size_bytes = self.blocks as u64 * 4096;
            if self.splitter.engine.disks.get(&Slot(disk)).is_some_and(|known| known.size_bytes != size_bytes)
            {
                self.totals.growths += 1;
                self.with_engine(|engine, kernel| engine.resize_disk(kernel, Slot(disk), size_bytes))
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    // ---- the guest -------------------------------------------------------------------------------------------

    fn guest(&mut self, busy: u64) {
        for _ in 0..4 {
            if self.random.chance(busy) && self.flying.len() < 6 {
                self.new_write();
            }
            if self.random.chance(350) && !self.flying.is_empty() {
                let index = self.random.index(self.flying.len());
                self.complete(index);
            }
            if self.slow.is_some() && self.random.chance(300) {
                self.finish_slow();
            }
        }
    }

    /// A chance of a miss.
    fn mishap(&mut self, per_mille: u64) -> bool {
        self.random.chance(per_mille) && (!self.calm || self.random.chance(100))
    }

    fn make_write(&mut self) -> Write {
        let id = self.next_id;
        self.next_id += 1;
        // Few addresses: they are used again at once.
        let request = (1..).find(|request| self.request_free(*request)).unwrap_or(0);
        let kind = match self.random.below(20) {
            0 => WriteKind::Zeroes,
            1 => WriteKind::Discard,
            2 => WriteKind::Flush,
            _ => WriteKind::Data,
        };
        let sectors = if kind == WriteKind::Flush { 0 } else { 1 + self.random.index(10) };
        // Overlaps happen, but not all the time.
        let mut start = self.random.index(self.blocks * 8 - 10);
        let slot = self.random.index(DISKS);
        for _ in 0..8 {
            let clash = self.flying.iter().any(|other| {
                other.write.slot == slot
                    && other.write.start < start + sectors
                    && start < other.write.start + other.write.sectors
            });
            if !clash || self.mishap(60) {
                self.totals.overlaps += u64::from(clash);
                break;
            }
            start = self.random.index(self.blocks * 8 - 10);
        }
        Write { id, request, slot, kind, start, sectors }
    }

    fn request_free(&self, request: u64) -> bool {
        self.flying.iter().all(|other| other.write.request != request)
            && self.slow.as_ref().is_none_or(|(write, _, _)| write.request != request)
    }

    fn new_write(&mut self) {
        let write = self.make_write();
        let requeued: Vec<usize> =
            (0..self.flying.len()).filter(|index| self.flying[*index].requeued).collect();
        if let Some(index) = requeued.first() {
            // The driver takes the request back: same address and place, issued once more.
            let old = self.flying.swap_remove(*index);
            return self.issue(Write { id: write.id, ..old.write });
        }
        if self.mishap(4) {
            self.totals.silent_misses += 1;
            self.pinned.borrow_mut().missed[0] += u64::from(self.broken != Broken::SilentMiss);
            self.flying.push(Flying { write, silent: true, unseen: true, requeued: false });
            return;
        }
        let status = self.pinned.borrow().status;
        if self.slow.is_none() && status.mode == Mode::Full && self.random.chance(60) {
            let two_parts = self.random.chance(600);
            if two_parts && !self.pinned.borrow_mut().append(status.generation, Record::Begin) {
                return self.issue(write);
            }
            self.slow = Some((write, status.generation, two_parts));
            return;
        }
        self.issue(write);
    }

    fn issue(&mut self, write: Write) {
        let status = self.pinned.borrow().status;
        if status.mode == Mode::Full {
            self.append_issue(write, status.generation, false);
        } else {
            self.pinned.borrow_mut().mark_dirty(&write);
            self.flying.push(Flying { write, silent: false, unseen: true, requeued: false });
        }
    }

    fn append_issue(&mut self, write: Write, generation: u32, two_parts: bool) {
        let record = Record::Issue { write: write.clone(), two_parts };
        let captured = self.pinned.borrow_mut().append(generation, record);
        if !captured {
            self.pinned.borrow_mut().mark_dirty(&write);
        }
        self.flying.push(Flying { write: write.clone(), silent: false, unseen: !captured, requeued: false });
        if captured {
            let moment = Moment {
                index: self.next_index,
                disks: self.disks.clone(),
                in_flight: self.flying.iter().map(|other| other.write.clone()).collect(),
            };
            self.next_index += 1;
            self.moments.insert(write.id, moment);
        }
    }

    fn finish_slow(&mut self) {
        let Some((mut write, generation, two_parts)) = self.slow.take() else { return };
        // Ids are the time stamps: they follow the ring.
        write.id = self.next_id;
        self.next_id += 1;
        if generation != self.pinned.borrow().status.generation {
            self.totals.late_units += 1;
        }
        self.append_issue(write, generation, two_parts);
    }

    fn complete(&mut self, index: usize) {
        let Flying { write, silent, unseen, requeued } = self.flying[index].clone();
        if requeued {
            return;
        }
        let full = self.pinned.borrow().status.mode == Mode::Full;
        if !silent && !unseen && full && self.random.chance(15) {
            let generation = self.pinned.borrow().status.generation;
            self.pinned.borrow_mut().append(generation, Record::Requeue(write.request));
            self.flying[index].requeued = true;
            self.totals.requeues += 1;
            return;
        }
        self.flying.swap_remove(index);
        let failed = !silent && self.mishap(15);
        let short =
            !silent && !failed && write.sectors > 0 && write.kind == WriteKind::Data && self.mishap(10);
        self.totals.failed_writes += u64::from(failed || short);
        if !failed || self.random.chance(500) {
            let sectors = write.sectors - usize::from(short);
            for sector in write.start..write.start + sectors {
                self.disks[write.slot][sector] = write.value();
            }
        }
        if silent {
            // The witness counts completions: a write missed at both ends shows at each.
            self.pinned.borrow_mut().missed[0] += u64::from(self.broken != Broken::SilentMiss);
            return;
        }
        let mut pinned = self.pinned.borrow_mut();
        let status = pinned.status;
        if unseen && write.sectors > 0 || status.mode == Mode::DirtyOnly {
            pinned.mark_dirty(&write);
        }
        if status.mode == Mode::Full
            && !pinned.append(status.generation, Record::Complete { write: write.clone(), failed, short })
        {
            pinned.mark_dirty(&write);
        }
    }

    // ---- splitter, network, appliance --------------------------------------------------------------------------

    fn pump(&mut self) -> Result<(), String> {
        self.now_us += 1000;
        if !self.splitter.connected {
            if self.random.chance(150) {
                self.connect()?;
            } else {
                self.step_engine()?;
            }
            return Ok(());
        }
        if self.random.chance(600) {
            self.step_engine()?;
        }
        self.read_disks()?;
        for _ in 0..self.random.below(6) {
            self.deliver()?;
        }
        if self.random.chance(300) {
            let position = self.appliance.commit();
            self.to_splitter.push_back(position);
        }
        if self.random.chance(500)
            && let Some(position) = self.to_splitter.pop_front()
        {
            self.splitter.engine.acknowledged(&position).map_err(|error| error.to_string())?;
        }
        if self.random.chance(10) {
            let request = MarkerRequest { request_id: 0, bookmark_id: "id".into(), name: "before".into() };
            let now_us = self.now_us;
            self.with_engine(|engine, kernel| engine.request_marker(kernel, now_us, request));
        }
        Ok(())
    }

    fn with_engine<T>(&mut self, act: impl FnOnce(&mut Engine, &mut Kernel<'_>) -> T) -> T {
        let mut control = FakeControl(self.pinned.clone());
        let mut dirty = FakeMaps(self.pinned.clone());
        let Splitter { engine, ring, .. } = &mut self.splitter;
        act(engine, &mut Kernel { ring, control: &mut control, dirty: &mut dirty })
    }

    fn step_engine(&mut self) -> Result<(), String> {
        let now_us = self.now_us;
        self.with_engine(|engine, kernel| engine.step(kernel, now_us)).map_err(|error| error.to_string())?;
        while let Some(notice) = self.splitter.engine.next_notice() {
            match notice {
                Notice::MarkerPlaced { .. } => self.totals.markers += 1,
                Notice::LineStarted { .. } => self.totals.lines += 1,
                _ => {}
            }
        }
        while self.random.chance(900)
            && let Some(frame) = self.splitter.engine.next_frame()
        {
            self.to_appliance.push_back(frame);
        }
        Ok(())
    }

    fn read_disks(&mut self) -> Result<(), String> {
        let now_us = self.now_us;
        if self.random.chance(300) {
            let lsn = self.splitter.engine.lsn;
            let request = self.with_engine(|engine, kernel| engine.next_read(kernel, now_us));
            if let Some(request) = request.map_err(|error| error.to_string())? {
                self.splitter.read_lsn.insert((request.slot, request.start_sector), lsn);
                self.splitter.reads.push((request, None));
            }
        }
        if self.splitter.reads.is_empty() || !self.random.chance(500) {
            return Ok(());
        }
        let index = self.random.index(self.splitter.reads.len());
        let (request, data) = &mut self.splitter.reads[index];
        if data.is_none() {
            // Reads are fast and see the disk as it is at this moment, with none of the writes still flying.
            let start = request.start_sector as usize;
            let mut bytes = vec![0; request.length_bytes];
            for (offset, sector) in bytes.chunks_mut(512).enumerate() {
                let value = self.disks[request.slot.0 as usize][start + offset];
                sector[..8].copy_from_slice(&value.to_le_bytes());
            }
            *data = Some(bytes);
            return Ok(());
        }
        let (request, mut data) = self.splitter.reads.swap_remove(index);
        if self.random.chance(20) {
            data = None;
        }
        self.with_engine(|engine, kernel| engine.read_done(kernel, request.token, data, now_us));
        Ok(())
    }

    fn deliver(&mut self) -> Result<(), String> {
        let Some(mut frame) = self.to_appliance.pop_front() else { return Ok(()) };
        match (self.broken, &mut frame.body) {
            (Broken::BaseAtReadLsn, Some(Body::Base(base))) => {
                let slot = Slot(u16::try_from(base.entries[0].disk_id).unwrap() - 1);
                let key = (slot, base.entries[0].start_sector);
                base.line_lsn = self.splitter.read_lsn.get(&key).copied().unwrap_or(base.line_lsn);
            }
            (Broken::SwappedWrites, Some(Body::Writes(writes))) => swap(writes),
            _ => {}
        }
        let capture = self.pinned.borrow().id.0;
        self.appliance.receive(frame, &capture)
    }

    fn connect(&mut self) -> Result<(), String> {
        let now_us = self.now_us;
        let window = [3000, 20_000, 1 << 20][self.random.index(3)];
        if self.random.chance(500) {
            self.appliance.commit();
        }
        let welcome = self.appliance.welcome(window);
        self.pinned.borrow_mut().blocks = self.blocks;
        let known = welcome.durable.as_ref().is_some_and(|durable| durable.seq > 0);
        let cause = if known { GapCause::CaptureRestarted } else { GapCause::InitialCopy };
        let configs: Vec<DiskConfig> = (0..DISKS as u16)
            .map(|slot| DiskConfig {
                slot: Slot(slot),
                id: DiskId(u32::from(slot) + 1),
                size_bytes: self.blocks as u64 * 4096,
                fresh: false,
                cause,
            })
            .collect();
        self.with_engine(|engine, kernel| engine.welcomed(kernel, &welcome, &configs, now_us))
            .map_err(|error| error.to_string())?;
        self.splitter.connected = true;
        Ok(())
    }

    // ---- what goes wrong ---------------------------------------------------------------------------------------

    fn trouble(&mut self) {
        match self.random.below(10) {
            0..4 => {
                self.totals.disconnects += 1;
                self.disconnect();
            }
            4..7 => {
                self.totals.splitter_restarts += 1;
                self.kill_splitter();
            }
            7 | 8 => {
                self.totals.appliance_crashes += 1;
                self.disconnect();
                self.appliance.crash();
            }
            _ => {
                self.totals.reboots += 1;
                self.reboot();
            }
        }
    }

    fn disconnect(&mut self) {
        self.to_appliance.clear();
        self.to_splitter.clear();
        self.splitter.connected = false;
        self.splitter.engine.disconnected();
    }

    fn kill_splitter(&mut self) {
        self.disconnect();
        if self.broken == Broken::ForgottenBits {
            self.pinned.borrow_mut().pending = vec![vec![false; BLOCKS]; DISKS];
        }
        self.splitter = Splitter::new(&self.pinned);
    }

    fn reboot(&mut self) {
        // A lost write may have reached the disk, wholly or not at all, without any record of it.
        for flying in std::mem::take(&mut self.flying) {
            let write = flying.write;
            if self.random.chance(500) {
                for sector in write.start..write.start + write.sectors {
                    self.disks[write.slot][sector] = write.value();
                }
            }
        }
        self.slow = None;
        self.totals.drops += self.pinned.borrow().status.drops;
        for _ in 0..self.random.below(5) {
            let (slot, sector) = (self.random.index(DISKS), self.random.index(self.blocks * 8));
            self.disks[slot][sector] = self.random.below(1000) + 1;
        }
        self.captures += 1;
        self.pinned = Pinned::new(self.captures, self.ring_bytes, self.blocks);
        self.kill_splitter();
    }

    // ---- the end -----------------------------------------------------------------------------------------------

    fn quiesce(&mut self) -> Result<(), String> {
        if self.slow.is_some() {
            self.finish_slow();
        }
        while let Some(index) = (0..self.flying.len()).next() {
            if self.flying[index].requeued {
                let old = self.flying.swap_remove(index);
                let id = self.next_id;
                self.next_id += 1;
                self.issue(Write { id, ..old.write });
            } else {
                self.complete(index);
            }
        }
        self.blocks = BLOCKS;
        for _ in 0..20_000 {
            self.pump()?;
            self.notice_growth()?;
            self.now_us += 10_000;
            if self.quiet() {
                self.appliance.commit();
                return Ok(());
            }
        }
        let report = self.with_engine(|engine, kernel| engine.report(kernel));
        Err(format!("never became quiet: {report:?} {:?}", self.splitter.engine))
    }

    fn quiet(&mut self) -> bool {
        let connected = self.splitter.connected;
        let report = self.with_engine(|engine, kernel| engine.report(kernel));
        let (produced, mismatch) = {
            let pinned = self.pinned.borrow();
            (pinned.producer, pinned.missed[0] != pinned.missed[2])
        };
        let clean = self.appliance.clean_lsn() == report.captured_lsn;
        connected
            && !mismatch
            && clean
            && report.acked_lsn == report.captured_lsn
            && self.splitter.engine.at.position == produced
            && report.disks.iter().all(|disk| disk.state == DiskState::Protected && disk.dirty_bytes == 0)
    }
}

fn swap(writes: &mut tidemark_proto::v1::Writes) {
    // Same length only, so that the payload's cut stays right.
    let pair = (1..writes.entries.len()).find(|index| {
        let (a, b) = (&writes.entries[index - 1], &writes.entries[*index]);
        a.kind == 1 && b.kind == 1 && a.sectors == b.sectors
    });
    let Some(second) = pair else { return };
    let start: usize = writes.entries[..second - 1]
        .iter()
        .filter(|entry| entry.kind == 1)
        .map(|entry| entry.sectors as usize * 512)
        .sum();
    let length = writes.entries[second].sectors as usize * 512;
    let mut payload = writes.payload.to_vec();
    let (head, tail) = payload[start..].split_at_mut(length);
    head.swap_with_slice(&mut tail[..length]);
    writes.entries.swap(second - 1, second);
    writes.crc32c = payload.chunks(4096).map(crc32c::crc32c).collect();
    writes.payload = payload.into();
}

impl Splitter {
    fn new(pinned: &Shared) -> Self {
        Self {
            engine: Engine::new(),
            ring: FakeRing::new(pinned.clone()),
            reads: Vec::new(),
            read_lsn: HashMap::new(),
            connected: false,
        }
    }
}
