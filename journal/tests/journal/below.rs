//! What lies below an open line: base blocks that only repeat it need not be appended.

use crate::support::*;
use tidemark_journal::Journal;
use tidemark_journal::frame::{Entry, EntryKind};
use tidemark_journal::storage::SimStorage;
use tidemark_proto::ids::{DiskId, Lsn};

/// Sectors of a piece that is compared and then left out or sent.
const PIECE: usize = 10;

/// How it is decided that a piece need not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// It is what lies below the line.
    BelowLine,
    /// Its place held it once.
    InHistory,
    /// It is not sent, whatever it is.
    Always,
}

/// A small generator, the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// A disk, its stream, and what was on it at each LSN outside gaps.
struct World {
    random: Random,
    journal: Journal,
    stream: Stream,
    disk: Vec<u8>,
    truths: Vec<(u64, Vec<u8>)>,
    /// What each place held, for the broken rule.
    past: Vec<Vec<u8>>,
    left_out: usize,
    sent: usize,
    seeds: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            journal: journal(&SimStorage::new(seed), 24 << 10),
            stream: Stream::default(),
            disk: vec![0; DISK_SECTORS * SECTOR],
            truths: Vec::new(),
            past: Vec::new(),
            left_out: 0,
            sent: 0,
            seeds: 0,
        }
    }

    fn entry(&mut self) -> Entry {
        let sectors = 1 + self.random.below(24);
        let start = self.random.below(DISK_SECTORS - sectors + 1);
        let kind = if self.random.below(6) == 0 { EntryKind::Zeroes } else { EntryKind::Data };
        entry(1, kind, start, sectors)
    }

    fn apply(&mut self, entry: &Entry, seed: u64) {
        let from = usize::try_from(entry.start_sector).unwrap() * SECTOR;
        let sectors = entry.sectors as usize;
        let data = match entry.kind {
            EntryKind::Data => pattern(seed * 64, sectors),
            _ => vec![0; sectors * SECTOR],
        };
        self.disk[from..from + data.len()].copy_from_slice(&data);
    }

    fn append(&mut self, frame: &Owned) {
        frame.append(&self.journal).unwrap();
        if self.random.below(4) == 0 {
            self.journal.sync().unwrap();
        }
        if self.random.below(12) == 0 {
            self.journal.maintain().unwrap();
        }
    }

    /// The guest writes. Contents come again: a place gets back what it once held.
    fn write(&mut self, captured: bool) {
        let (entry, seed) = (self.entry(), 1 + self.random.below(4) as u64);
        self.seeds = self.seeds.max(seed);
        self.apply(&entry, seed);
        if captured {
            let frame = self.stream.writes(vec![entry], seed);
            self.append(&frame);
        }
        self.past.push(self.disk.clone());
    }

    fn is_known(&self, line: u64, start: usize, content: &[u8], rule: Rule) -> bool {
        let place = start * SECTOR..start * SECTOR + content.len();
        match rule {
            Rule::Always => true,
            Rule::InHistory => self.past.iter().any(|past| past[place.clone()] == *content),
            Rule::BelowLine => {
                let view = self.journal.below_line(DiskId(1), Lsn(line)).unwrap();
                let mut found = vec![0xee; content.len()];
                view.read_at(DiskId(1), place.start as u64, &mut found).unwrap();
                found == content
            }
        }
    }

    /// Reads the whole disk again under a new line while the guest goes on.
    fn resync(&mut self, rule: Rule) {
        let frame = self.stream.line_start(&[1], 0);
        let line = self.stream.position.lsn.0;
        self.append(&frame);
        let mut pieces: Vec<usize> = (0..DISK_SECTORS / PIECE).collect();
        while !pieces.is_empty() {
            let index = self.random.below(pieces.len());
            let start = pieces.swap_remove(index) * PIECE;
            let content = self.disk[start * SECTOR..(start + PIECE) * SECTOR].to_vec();
            // Between the read and the question, and between the question and the next read.
            for _ in 0..self.random.below(3) {
                self.write(true);
            }
            if self.is_known(line, start, &content, rule) {
                self.left_out += 1;
                continue;
            }
            self.sent += 1;
            let frame = self.stream.base_of(line, vec![entry(1, EntryKind::Data, start, PIECE)], content);
            self.append(&frame);
        }
        let frame = self.stream.line_end(&[1]);
        self.append(&frame);
        self.note();
    }

    fn note(&mut self) {
        self.truths.push((self.stream.position.lsn.0, self.disk.clone()));
    }

    /// Whether every point outside gaps is what was on the disk.
    fn is_exact(&mut self) -> bool {
        let frame = self.stream.heartbeat(true);
        frame.append(&self.journal).unwrap();
        self.journal.sync().unwrap();
        self.truths.iter().all(|(lsn, truth)| {
            let mut found = vec![0; truth.len()];
            self.journal.view(Lsn(*lsn)).unwrap().read_at(DiskId(1), 0, &mut found).unwrap();
            found == *truth
        })
    }
}

fn run(seed: u64, rule: Rule) -> (bool, usize, usize) {
    let mut world = World::new(seed);
    world.past.push(world.disk.clone());
    // The first copy sends everything.
    world.resync(Rule::BelowLine);
    for _ in 0..3 {
        for _ in 0..world.random.below(12) {
            world.write(true);
            world.note();
        }
        for _ in 0..world.random.below(4) {
            world.write(false);
        }
        world.resync(rule);
    }
    let exact = world.is_exact();
    (exact, world.left_out, world.sent)
}

#[test]
fn blocks_that_repeat_what_lies_below_their_line_change_no_view() {
    let (mut left_out, mut sent) = (0, 0);
    for seed in 0..60 {
        let (exact, out, in_) = run(seed, Rule::BelowLine);
        assert!(exact, "seed {seed}");
        left_out += out;
        sent += in_;
    }
    println!("{left_out} pieces left out, {sent} sent");
    assert!(left_out > 1000 && sent > 200, "{left_out} left out, {sent} sent");
    for wrong in [Rule::InHistory, Rule::Always] {
        let caught = (0..60).filter(|seed| !run(*seed, wrong).0).count();
        assert!(caught > 10, "{wrong:?} is caught in {caught} of 60 runs");
    }
}

#[test]
fn only_what_lies_below_an_open_line_is_shown() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 1 << 20);
    let mut stream = Stream::default();
    let data = EntryKind::Data;
    for frame in [
        stream.line_start(&[1], 0),
        stream.base(1, vec![entry(1, EntryKind::Zeroes, 0, 300)], 1),
        stream.writes(vec![entry(1, data, 8, 8)], 2),
        stream.line_end(&[1]),
        stream.line_start(&[1], 0),
        stream.writes(vec![entry(1, data, 12, 8)], 3),
    ] {
        frame.append(&journal).unwrap();
    }
    // Nothing is synced: what was appended counts.
    let view = journal.below_line(DiskId(1), Lsn(4)).unwrap();
    let mut found = vec![0xee; 24 * SECTOR];
    view.read_at(DiskId(1), 0, &mut found).unwrap();
    let mut expected = vec![0; 24 * SECTOR];
    expected[8 * SECTOR..16 * SECTOR].copy_from_slice(&pattern(2 * 64, 8));
    assert!(found == expected, "the write at LSN 5 lies above the line");
    for (disk, line) in [(1, 1), (1, 3), (1, 5), (2, 4), (3, 4)] {
        assert!(journal.below_line(DiskId(disk), Lsn(line)).is_err(), "disk {disk}, line {line}");
    }
}

/// What a shrink cut off is still in the log, and a fold to between the shrink and a later growth loses it: a piece there
/// must be sent, although the log has the same bytes at its place.
#[test]
fn nothing_is_compared_with_what_a_shrink_cut_off() {
    let storage = SimStorage::new(2);
    let journal = journal(&storage, 1 << 20);
    let mut stream = Stream::default();
    let write = vec![entry(1, EntryKind::Data, 200, 8)];
    for frame in [
        stream.line_start(&[1], 0),
        stream.base(1, vec![entry(1, EntryKind::Zeroes, 0, DISK_SECTORS)], 1),
        stream.line_end(&[1]),
        stream.writes(write, 2),
        stream.resize(1, 100),
        stream.resize(1, DISK_SECTORS),
        stream.line_start(&[1], 0),
    ] {
        frame.append(&journal).unwrap();
    }
    let view = journal.below_line(DiskId(1), stream.position.lsn).unwrap();
    assert_eq!(view.disks().first().unwrap().size_bytes, (100 * SECTOR) as u64);
    assert!(view.read_at(DiskId(1), (200 * SECTOR) as u64, &mut [0; SECTOR]).is_err());
}
