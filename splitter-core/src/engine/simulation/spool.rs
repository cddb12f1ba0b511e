//! The spool's file: it outlives the splitter, and fails, is torn and forgets as a file does.

use std::collections::VecDeque;

use super::random::Random;
use super::world::Broken;
use crate::engine::{SpoolContent, SpoolEvent, SpoolOrder, SpoolSettings, SpooledFrame};

#[derive(Debug)]
pub(super) struct FakeSpool {
    random: Random,
    /// As a file has it: what was written, in order.
    file: Vec<SpooledFrame>,
    in_use: bool,
    /// A write failed: no other succeeds until it is emptied.
    failed: bool,
    limit_bytes: u64,
    /// Per mille of the orders that fail.
    faults: u64,
    broken: Broken,
    // Of the running process.
    orders: VecDeque<SpoolOrder>,
    events: VecDeque<SpoolEvent>,
    pub(super) written: u64,
    pub(super) read: u64,
    pub(super) write_failures: u64,
    pub(super) read_failures: u64,
    pub(super) torn: u64,
    pub(super) full: u64,
    pub(super) taken_over: u64,
}

fn bytes(frames: &[SpooledFrame]) -> u64 {
    frames.iter().filter_map(SpooledFrame::fact).map(|fact| fact.bytes).sum()
}

impl FakeSpool {
    pub(super) fn new(seed: u64, broken: Broken, faults: u64) -> Self {
        let mut random = Random::new(seed ^ 0x7370_6f6f);
        let limit_bytes = [20_000, 100_000, 1 << 20][random.index(3)];
        Self {
            random,
            file: Vec::new(),
            in_use: false,
            failed: false,
            limit_bytes,
            faults,
            broken,
            orders: VecDeque::new(),
            events: VecDeque::new(),
            written: 0,
            read: 0,
            write_failures: 0,
            read_failures: 0,
            torn: 0,
            full: 0,
            taken_over: 0,
        }
    }

    pub(super) fn settings(&self) -> SpoolSettings {
        SpoolSettings { limit_bytes: self.limit_bytes, refused: None }
    }

    /// A new process opens what the last one left; what that had not been told is forgotten.
    pub(super) fn open(&mut self) -> SpoolContent {
        self.orders.clear();
        self.events.clear();
        self.failed = false;
        let mut damage = None;
        if !self.file.is_empty() && self.random.chance(self.faults * 30) {
            // More than what a crash of the process can tear.
            self.torn += 1;
            let keep = self.random.index(self.file.len());
            self.file.truncate(keep);
            damage = Some("simulated".to_owned());
        }
        self.taken_over += u64::from(!self.file.is_empty());
        if self.broken == Broken::SpoolForgets {
            self.file.clear();
            self.in_use = false;
        }
        self.space();
        let facts = self.file.iter().filter_map(SpooledFrame::fact).collect();
        SpoolContent { facts, in_use: self.in_use, damage }
    }

    /// The machine is restarted: another capture. The old spool means nothing to it.
    pub(super) fn destroy(&mut self) {
        self.file.clear();
        self.in_use = false;
    }

    pub(super) fn order(&mut self, order: SpoolOrder) {
        self.orders.push_back(order);
    }

    pub(super) fn next_event(&mut self) -> Option<SpoolEvent> {
        if self.random.chance(700) { self.events.pop_front() } else { None }
    }

    fn space(&mut self) {
        let used_bytes = bytes(&self.file);
        let room_bytes = self.limit_bytes.saturating_sub(used_bytes);
        self.full += u64::from(room_bytes < 5000);
        self.events.push_back(SpoolEvent::Space { used_bytes, room_bytes });
    }

    pub(super) fn work(&mut self) {
        while self.random.chance(700) {
            let Some(order) = self.orders.pop_front() else { return };
            let fault = self.random.chance(self.faults);
            match order {
                SpoolOrder::Write(_) if self.failed || fault => {
                    self.write_failures += u64::from(!self.failed);
                    self.failed = true;
                    self.events.push_back(SpoolEvent::WriteFailed { detail: "simulated".into() });
                }
                SpoolOrder::Write(frame) => self.write(*frame),
                SpoolOrder::Read { .. } if fault || self.random.chance(self.faults) => {
                    self.read_failures += 1;
                    self.events.push_back(SpoolEvent::ReadFailed { detail: "simulated".into() });
                }
                SpoolOrder::Read { after_seq, max_bytes } => self.read(after_seq, max_bytes),
                SpoolOrder::GiveUp { seq } => {
                    let all = self.file.last().is_none_or(|last| last.frame.seq <= seq);
                    if all || self.random.chance(500) {
                        self.file.retain(|frame| frame.frame.seq > seq);
                    }
                    if self.file.is_empty() {
                        self.in_use = false;
                        self.failed = false;
                    }
                    self.space();
                }
                SpoolOrder::Clear => {
                    self.file.clear();
                    self.failed = false;
                    self.events.push_back(SpoolEvent::Cleared);
                    self.space();
                }
            }
        }
    }

    fn write(&mut self, frame: SpooledFrame) {
        let seq = frame.frame.seq;
        if let Some(last) = self.file.last() {
            assert_eq!(last.frame.seq + 1, seq, "frames are spooled without a hole");
        }
        self.in_use = true;
        self.file.push(frame);
        self.written += 1;
        self.events.push_back(SpoolEvent::Written { seq });
        if self.random.chance(300) {
            self.space();
        }
    }

    fn read(&mut self, after_seq: u64, max_bytes: u64) {
        let mut got = Vec::new();
        for frame in self.file.iter().filter(|frame| frame.frame.seq > after_seq) {
            if !got.is_empty() && bytes(&got) >= max_bytes {
                break;
            }
            got.push(frame.clone());
        }
        assert!(!got.is_empty(), "nothing after {after_seq} was ever written");
        self.read += got.len() as u64;
        match self.broken {
            Broken::SpoolLoses if got.len() > 1 && self.random.chance(300) => drop(got.remove(0)),
            Broken::SpoolSwaps if self.random.chance(300) => {
                if let [first, second, ..] = got.as_mut_slice() {
                    std::mem::swap(&mut first.frame.body, &mut second.frame.body);
                }
            }
            _ => {}
        }
        self.events.push_back(SpoolEvent::Read(got));
    }
}
