//! The world around the engine: guest, disks, network, and everything that goes wrong.

mod guest;
mod holds;
mod spooling;
mod trouble;
mod verify;

use std::collections::{HashMap, VecDeque};

use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::{
    DiskState, Frame, GapCause, HashAnswer, HashQuestion, StreamPosition, VerifyAnswer, VerifyQuestion,
    VerifyReport, VerifyRequest, frame::Body,
};

use super::appliance::Appliance;
use super::checker::{Image, Moment, check};
use super::kernel::{BLOCKS, DISKS, FakeControl, FakeMaps, FakeRing, Pinned, SECTORS, Shared, Write};
use super::random::Random;
use super::spool::FakeSpool;
use crate::capture::Slot;
use crate::engine::copy::PieceBytes;
use crate::engine::{DiskConfig, Engine, Kernel, MarkerRequest, Notice, ReadContent, ReadRequest, Synced};
use verify::Verifies;

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
    /// The appliance calls a piece known that its place held at some earlier time.
    KnownFromHistory,
    /// The network turns an answer over: what is unknown is called known.
    WrongAnswers,
    /// A verify compares with the newest LSN whatever was written since its read began.
    VerifyUnordered,
    /// The appliance finds everything as it should be.
    VerifyBlind,
    /// The appliance takes other content from a template than was named.
    WrongTemplate,
    /// Markers are placed where the ring ends when their hold is over.
    LateMarkers,
    /// A frame is missing in what is read from the spool, and nobody looks.
    SpoolLoses,
    /// Two frames have changed places there.
    SpoolSwaps,
    /// A new process finds an empty spool that seems never to have been used.
    SpoolForgets,
    /// The gates are told that what the spool has written is acknowledged.
    SpoolAcknowledges,
    /// A map that grows has no marks of what it gained.
    GrowthUnmarked,
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
    held_markers: u64,
    lines: u64,
    growths: u64,
    shrinks: u64,
    pieces_asked: u64,
    pieces_known: u64,
    questions_lost: u64,
    pub(super) verifies: u64,
    pub(super) corruptions: u64,
    pub(super) found_blocks: u64,
    pub(super) cancelled: u64,
    pub(super) verify_lines: u64,
    pieces_offered: u64,
    pieces_named: u64,
    offers_withdrawn: u64,
    /// Times the gates were told that everything up to a place is acknowledged.
    pub(super) synced: u64,
    /// Of the spool: frames written, read, processes that went on from it, times entered, full, failed writes, failed
    /// reads, torn.
    pub(super) spool: [u64; 8],
    exchanges: u64,
}

impl Totals {
    pub(super) fn counts(&self) -> [(&'static str, u64); 23] {
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
            ("markers of holds", self.held_markers),
            ("lines", self.lines),
            ("growths", self.growths),
            ("shrinks", self.shrinks),
            ("pieces asked about", self.pieces_asked),
            ("pieces known", self.pieces_known),
            ("questions lost with their connection", self.questions_lost),
            ("pieces offered", self.pieces_offered),
            ("pieces named", self.pieces_named),
            ("offers withdrawn after they were made", self.offers_withdrawn),
            ("disks that were gone for a while", self.exchanges),
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
        self.held_markers += other.held_markers;
        self.lines += other.lines;
        self.growths += other.growths;
        self.shrinks += other.shrinks;
        self.pieces_asked += other.pieces_asked;
        self.pieces_known += other.pieces_known;
        self.questions_lost += other.questions_lost;
        self.verifies += other.verifies;
        self.corruptions += other.corruptions;
        self.found_blocks += other.found_blocks;
        self.cancelled += other.cancelled;
        self.verify_lines += other.verify_lines;
        self.pieces_offered += other.pieces_offered;
        self.pieces_named += other.pieces_named;
        self.offers_withdrawn += other.offers_withdrawn;
        self.synced += other.synced;
        for (sum, count) in self.spool.iter_mut().zip(other.spool) {
            *sum += count;
        }
        self.exchanges += other.exchanges;
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
    reads: Vec<(ReadRequest, Option<ReadContent>)>,
    /// LSN when the read of a place began, for the broken variant.
    read_lsn: HashMap<(Slot, u64), u64>,
    connected: bool,
}

/// Messages on their way.
#[derive(Debug)]
enum ToAppliance {
    Frame(Frame),
    Question(HashQuestion),
    VerifyQuestion(VerifyQuestion),
    VerifyReport(VerifyReport),
}

#[derive(Debug)]
enum ToSplitter {
    Ack(StreamPosition),
    Answer(HashAnswer),
    Verify(VerifyRequest),
    VerifyAnswer(VerifyAnswer),
}

pub(super) struct World {
    random: Random,
    broken: Broken,
    now_us: u64,
    disks: Image,
    /// The disks as if nothing had been corrupted.
    believed: Image,
    /// Verifies are asked for; `None` leaves a world as it was before there were any.
    verify: Option<Verifies>,
    /// No further writes come.
    quieting: bool,
    /// The spool, if there is one.
    spool: Option<FakeSpool>,
    /// What the gates were told last.
    synced: Option<Synced>,
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
    /// The tap discards what it reserved after its generation had ended. One that does not is still in use where an older
    /// splitter loaded it: its late units are in the ring, and there a write may stand without one that was missed and
    /// completed after the other was submitted.
    looks_again: bool,
    splitter: Splitter,
    appliance: Appliance,
    /// When the template is published and when it is not.
    templates: Random,
    /// When writers are held, and the place reserved meanwhile.
    holds: Random,
    reserved: Option<holds::Reserved>,
    /// When a disk goes and comes back, and what happens to it meanwhile.
    exchanges: Random,
    /// Disks that came back and were in no hello since.
    returned: [bool; DISKS],
    to_appliance: VecDeque<ToAppliance>,
    to_splitter: VecDeque<ToSplitter>,
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
        let templates = Random::new(seed ^ 0x7465_6d70);
        let mut disks: Image = vec![vec![0; SECTORS]; DISKS];
        for sector in disks.iter_mut().flatten() {
            *sector = if random.chance(500) { random.below(1000) + 1 } else { 0 };
        }
        let appliance = Appliance::new(broken, first_blocks as u64 * 4096, &disks);
        Self {
            broken,
            now_us: 1_000_000,
            believed: disks.clone(),
            disks,
            verify: None,
            spool: None,
            synced: None,
            quieting: false,
            flying: Vec::new(),
            slow: None,
            splitter: Splitter::new(&pinned, broken),
            pinned,
            captures: 1,
            calm,
            looks_again: false,
            ring_bytes,
            appliance,
            templates,
            holds: Random::new(seed ^ 0x686f_6c64),
            reserved: None,
            exchanges: Random::new(seed ^ 0x676f_6e65),
            returned: [false; DISKS],
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
        if self.spool.is_some() {
            // Where the first copy is still running, nothing is spooled.
            self.quiesce()?;
            self.quieting = false;
        }
        let ticks = 200 + self.random.below(400);
        let (trouble, busy) = (self.random.below(12), 200 + self.random.below(500));
        for _ in 0..ticks {
            self.guest(busy);
            self.pump()?;
            self.disturb();
            if self.random.chance(trouble) {
                self.trouble();
            }
            if self.random.chance(5) {
                self.blocks = BLOCKS;
            }
            if self.random.chance(3) {
                self.shrink();
            }
            if self.random.chance(30) {
                self.notice_sizes()?;
            }
            if self.exchanges.chance(3) {
                self.exchange();
            }
        }
        self.quiesce()?;
        self.last_verify()?;
        self.totals.held_markers += self.check_places()?;
        self.totals.points =
            check(&self.appliance.frames, &self.moments, &self.disks, self.first_blocks * 8)?;
        self.totals.drops += self.pinned.borrow().status.drops;
        self.totals.pieces_asked += self.appliance.asked;
        self.totals.pieces_known += self.appliance.known;
        self.totals.pieces_offered += self.appliance.offered;
        self.totals.pieces_named += self.appliance.named;
        self.count_spool();
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

    /// The disks lose their last blocks, where no write is going on.
    fn shrink(&mut self) {
        let blocks = self.blocks - 2;
        let clear = |write: &Write| write.start + write.sectors <= blocks * 8;
        let waiting = self.slow.as_ref().map(|(write, _, _)| write);
        if blocks >= BLOCKS - 4 && self.flying.iter().map(|flying| &flying.write).chain(waiting).all(clear) {
            self.blocks = blocks;
        }
    }

    /// The maps follow the size of the disks.
    fn resize_maps(&mut self) {
        let mut pinned = self.pinned.borrow_mut();
        let pinned = &mut *pinned;
        let before = std::mem::replace(&mut pinned.blocks, self.blocks);
        for bits in pinned.pending.iter_mut().chain(&mut pinned.dirty) {
            bits[self.blocks..].fill(false);
        }
        if before < self.blocks && self.broken != Broken::GrowthUnmarked {
            for bits in &mut pinned.pending {
                bits[before - 1..self.blocks].fill(true);
            }
        }
    }

    /// The daemon finds that the disks have another size than it knew.
    fn notice_sizes(&mut self) -> Result<(), String> {
        if !self.splitter.engine.attached || !self.splitter.connected {
            return Ok(());
        }
        self.resize_maps();
        for disk in 0..DISKS as u16 {
            let size_bytes = self.blocks as u64 * 4096;
            let known = self.splitter.engine.disks.get(&Slot(disk)).map(|known| known.size_bytes);
            if let Some(known) = known.filter(|known| *known != size_bytes) {
                self.totals.growths += u64::from(known < size_bytes);
                self.totals.shrinks += u64::from(known > size_bytes);
                self.with_engine(|engine, kernel| engine.resize_disk(kernel, Slot(disk), size_bytes))
                    .map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    // ---- splitter, network, appliance --------------------------------------------------------------------------

    fn pump(&mut self) -> Result<(), String> {
        self.now_us += 1000;
        self.work_spool();
        self.check_synced()?;
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
        // Where there is a spool the link is slow, so that it is used.
        let slow = self.spool.is_some() && !self.quieting && !self.random.chance(150);
        for _ in 0..if slow { 0 } else { self.random.below(6) } {
            self.deliver()?;
        }
        if self.random.chance(300) {
            let position = self.appliance.commit();
            self.to_splitter.push_back(ToSplitter::Ack(position));
        }
        if self.random.chance(500)
            && let Some(message) = self.to_splitter.pop_front()
        {
            self.told(message)?;
        }
        if self.random.chance(10) {
            let request = MarkerRequest {
                request_id: 0,
                bookmark_id: "id".into(),
                name: "before".into(),
                achieved: crate::engine::Achieved::default(),
            };
            let now_us = self.now_us;
            self.with_engine(|engine, kernel| engine.request_marker(kernel, now_us, request));
        }
        self.hold();
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
                Notice::Spooling { begins } => self.totals.spool[3] += u64::from(begins),
                Notice::SpoolLost { .. } => self.disconnect(),
                Notice::MarkerPlaced { .. } => self.totals.markers += 1,
                Notice::LineStarted { cause, .. } => {
                    self.totals.lines += 1;
                    self.totals.verify_lines += u64::from(cause == GapCause::VerifyDifference);
                }
                _ => {}
            }
        }
        while self.random.chance(900) {
            let question = self.splitter.engine.next_question().map(ToAppliance::Question);
            let next = question
                .or_else(|| self.splitter.engine.next_verify_question().map(ToAppliance::VerifyQuestion))
                .or_else(|| self.splitter.engine.next_verify_report(now_us).map(ToAppliance::VerifyReport))
                .or_else(|| self.splitter.engine.next_frame().map(ToAppliance::Frame));
            let Some(message) = next else { break };
            self.to_appliance.push_back(message);
        }
        Ok(())
    }

    /// A message reaches the splitter.
    fn told(&mut self, message: ToSplitter) -> Result<(), String> {
        let now_us = self.now_us;
        let answer = match message {
            ToSplitter::Ack(position) => {
                return self.splitter.engine.acknowledged(&position).map_err(|error| error.to_string());
            }
            ToSplitter::Answer(answer) => answer,
            ToSplitter::Verify(request) => {
                self.splitter.engine.verify(&request, now_us);
                return Ok(());
            }
            ToSplitter::VerifyAnswer(answer) => {
                let done = self.with_engine(|engine, kernel| engine.verify_answered(kernel, &answer, now_us));
                return done.map_err(|error| error.to_string());
            }
        };
        self.with_engine(|engine, kernel| engine.answered(kernel, &answer, now_us));
        Ok(())
    }

    /// A question reaches the appliance, behind every frame sent before it.
    fn asked(&mut self, question: &HashQuestion) -> Result<(), String> {
        let waiting = self.to_splitter.iter().filter(|message| matches!(message, ToSplitter::Answer(_)));
        let mut answer = self.appliance.answer(question, waiting.count() + 1)?;
        if self.broken == Broken::WrongAnswers && self.random.chance(200) {
            answer.known = vec![0xff; answer.known.len()].into();
        }
        self.to_splitter.push_back(ToSplitter::Answer(answer));
        Ok(())
    }

    fn read_disks(&mut self) -> Result<(), String> {
        let now_us = self.now_us;
        if self.random.chance(300) {
            if self.random.chance(900) {
                // Whether it pays or not: questions about anything, at any time.
                self.splitter.engine.disks.values_mut().for_each(|disk| disk.asking.hope());
            }
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
            // Beyond the end of a disk that shrank meanwhile, a read fails.
            if start + bytes.len() / 512 <= self.blocks * 8 {
                *data = Some(request.content(&mut bytes));
                return Ok(());
            }
        }
        let (request, mut data) = self.splitter.reads.swap_remove(index);
        if self.random.chance(20) {
            data = None;
        }
        self.with_engine(|engine, kernel| engine.read_done(kernel, request.token, data, now_us));
        Ok(())
    }

    fn deliver(&mut self) -> Result<(), String> {
        let mut frame = match self.to_appliance.pop_front() {
            None => return Ok(()),
            Some(ToAppliance::Question(question)) => return self.asked(&question),
            Some(ToAppliance::VerifyQuestion(question)) => return self.verify_asked(&question),
            Some(ToAppliance::VerifyReport(report)) => return self.verify_reported(&report),
            Some(ToAppliance::Frame(frame)) => frame,
        };
        match (self.broken, &mut frame.body) {
            (Broken::BaseAtReadLsn, Some(Body::Base(base))) => {
                let slot = Slot(u16::try_from(base.entries[0].disk_id).unwrap() - 1);
                let key = (slot, base.entries[0].start_sector);
                base.line_lsn = self.splitter.read_lsn.get(&key).copied().unwrap_or(base.line_lsn);
            }
            (Broken::SwappedWrites, Some(Body::Writes(writes))) => swap(writes),
            _ => {}
        }
        if self.templates.chance(5) {
            self.appliance.published = !self.appliance.published;
        }
        if !self.appliance.redeem(&mut frame)? {
            // The appliance says goodbye: to its next session everything travels.
            self.totals.offers_withdrawn += 1;
            self.disconnect();
            return Ok(());
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
        self.resize_maps();
        let known = welcome.durable.as_ref().is_some_and(|durable| durable.seq > 0);
        let cause = if known { GapCause::CaptureRestarted } else { GapCause::InitialCopy };
        let configs: Vec<DiskConfig> = (0..DISKS as u16)
            .map(|slot| DiskConfig {
                slot: Slot(slot),
                id: DiskId(u32::from(slot) + 1),
                size_bytes: self.blocks as u64 * 4096,
                fresh: self.returned[usize::from(slot)],
                cause,
            })
            .collect();
        self.with_engine(|engine, kernel| engine.welcomed(kernel, &welcome, &configs, now_us))
            .map_err(|error| error.to_string())?;
        self.splitter.connected = true;
        self.returned = [false; DISKS];
        self.verify_again();
        Ok(())
    }

    // ---- the end -----------------------------------------------------------------------------------------------

    fn quiesce(&mut self) -> Result<(), String> {
        self.quieting = true;
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
            self.notice_sizes()?;
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
            && self.verify.as_ref().is_none_or(|verify| verify.running.is_none())
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
    fn new(pinned: &Shared, broken: Broken) -> Self {
        let mut engine = Engine { piece_bytes: PieceBytes(8192), ..Engine::new() };
        engine.verify.ordered = broken != Broken::VerifyUnordered;
        // Short ranges, and no block is passed over.
        engine.verify.read_blocks = 4;
        engine.verify.tries_max = u32::MAX;
        // Soon a disk is in doubt as a whole.
        engine.verify.whole_bytes = 8192;
        Self {
            engine,
            ring: FakeRing::new(pinned.clone()),
            reads: Vec::new(),
            read_lsn: HashMap::new(),
            connected: false,
        }
    }
}
