//! Random streams with crashes, failing disks and reopenings against the slow model.

use crate::support::*;
use proptest::prelude::*;
use tidemark_journal::frame::EntryKind;
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::{AppendError, Journal, Position, verify};
use tidemark_proto::ids::Lsn;

#[derive(Debug, Clone)]
enum Op {
    Write { disk: u32, kind: EntryKind, start: usize, sectors: usize, count: usize },
    Base { pick: usize, kind: EntryKind, start: usize, sectors: usize },
    LineStart { disks: usize, back: u64 },
    LineEnd { disks: usize },
    Marker,
    Heartbeat { clean: bool },
    Sync,
    Maintain,
    Reopen,
    Close,
    Crash,
    Halt { after: u64 },
    FailSync { after: u64 },
    FullDisk { free: u64 },
}

fn kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![4 => Just(EntryKind::Data), 1 => Just(EntryKind::Zeroes), 1 => Just(EntryKind::Discard)]
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    let short = (0..DISK_SECTORS - 12, 1..12_usize);
    let long = (0..100_usize, 12..200_usize);
    prop_oneof![4 => short, 1 => long]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (1..=2_u32, kind(), range(), 1..4_usize).prop_map(|(disk, kind, (start, sectors), count)| {
            Op::Write { disk, kind, start, sectors, count }
        }),
        8 => (any::<usize>(), kind(), range()).prop_map(|(pick, kind, (start, sectors))| {
            Op::Base { pick, kind, start, sectors }
        }),
        3 => (0..3_usize, 0..4_u64).prop_map(|(disks, back)| Op::LineStart { disks, back }),
        4 => (0..3_usize).prop_map(|disks| Op::LineEnd { disks }),
        1 => Just(Op::Marker),
        6 => any::<bool>().prop_map(|clean| Op::Heartbeat { clean }),
        6 => Just(Op::Sync),
        2 => Just(Op::Maintain),
        1 => Just(Op::Reopen),
        1 => Just(Op::Close),
        2 => Just(Op::Crash),
        1 => (0..40_u64).prop_map(|after| Op::Halt { after }),
        1 => (0..4_u64).prop_map(|after| Op::FailSync { after }),
        1 => (0..3000_u64).prop_map(|free| Op::FullDisk { free }),
    ]
}

const DISKS: [&[u32]; 3] = [&[1], &[2], &[1, 2]];

struct Run {
    storage: SimStorage,
    journal: Option<Journal>,
    stream: Stream,
    acked: Position,
    seed: u64,
    segment_bytes: u64,
}

impl Run {
    fn new(seed: u64, segment_bytes: u64) -> Self {
        let storage = SimStorage::new(seed);
        let journal = Some(journal(&storage, segment_bytes));
        Self {
            storage,
            journal,
            stream: Stream::default(),
            acked: Position::default(),
            seed: 1,
            segment_bytes,
        }
    }

    fn journal(&self) -> &Journal {
        self.journal.as_ref().unwrap()
    }

    /// Lines that are open, with their disks.
    fn open_lines(&self) -> Vec<(u64, u32)> {
        let gaps = self.journal().appended();
        let mut lines = Vec::new();
        for frame in self.stream.frames.iter().filter(|frame| frame.position.seq <= gaps.seq) {
            match &frame.content {
                Content::LineStart { lsn, disks, .. } => {
                    lines.extend(disks.iter().map(|disk| (*lsn, disk.0)))
                }
                Content::LineEnd { disks, .. } => {
                    lines.retain(|(_, disk)| !disks.iter().any(|ended| ended.0 == *disk));
                }
                _ => {}
            }
        }
        lines
    }

    fn append(&mut self, frame: &Owned) {
        let before = self.journal().appended();
        match frame.append(self.journal()) {
            Ok(()) => {}
            Err(AppendError::Full) => {
                assert_eq!(self.journal().appended(), before);
                self.storage.set_faults(Faults::default());
                frame.append(self.journal()).unwrap();
            }
            Err(AppendError::Invalid(problem)) => panic!("{problem}"),
            Err(_) => self.crash(),
        }
    }

    fn reopen(&mut self) {
        self.journal = None;
        self.journal = Some(reopen(&self.storage, self.segment_bytes));
        let found = self.journal().durable();
        assert!(found.seq >= self.acked.seq, "{} acknowledged, {} found", self.acked.seq, found.seq);
        let known = self.stream.frames.iter().any(|frame| frame.position == found);
        assert!(known || found == Position::default(), "{found:?} is no prefix of the stream");
        self.stream.rewind(found);
        self.acked = found;
        self.compare();
    }

    fn crash(&mut self) {
        self.storage.crash();
        self.reopen();
    }

    fn compare(&self) {
        let durable = self.journal().durable();
        let frames: Vec<_> =
            self.stream.frames.iter().filter(|frame| frame.position.seq <= durable.seq).cloned().collect();
        let model = Model::of(&frames, BaseRule::AtLine);
        assert_eq!(difference(self.journal(), &model, 0..=durable.lsn.0 + 1), None);
        for (lsn, time) in &model.times {
            assert_eq!(self.journal().timeline().time_of(Lsn(*lsn)).unwrap(), *time, "time of {lsn}");
        }
    }

    fn apply(&mut self, op: &Op) {
        self.seed += 1;
        let seed = self.seed;
        match op {
            Op::Write { disk, kind, start, sectors, count } => {
                let one = |index: usize| {
                    entry(*disk, *kind, (start + 3 * index) % (DISK_SECTORS - sectors), *sectors)
                };
                let frame = self.stream.writes((0..*count).map(one).collect(), seed);
                self.append(&frame);
            }
            Op::Base { pick, kind, start, sectors } => {
                let lines = self.open_lines();
                if let Some((line, disk)) = lines.get(pick % lines.len().max(1)) {
                    let frame = self.stream.base(*line, vec![entry(*disk, *kind, *start, *sectors)], seed);
                    self.append(&frame);
                }
            }
            Op::LineStart { disks, back } => {
                let frame = self.stream.line_start(DISKS[*disks], *back);
                self.append(&frame);
            }
            Op::LineEnd { disks } => {
                let frame = self.stream.line_end(DISKS[*disks]);
                self.append(&frame);
            }
            Op::Marker => {
                let frame = self.stream.marker("m");
                self.append(&frame);
            }
            Op::Heartbeat { clean } => {
                let frame = self.stream.heartbeat(*clean);
                self.append(&frame);
            }
            Op::Sync => self.sync(),
            Op::Maintain => {
                if self.journal().maintain().is_err() {
                    self.crash();
                }
            }
            Op::Reopen => {
                self.storage.set_faults(Faults::default());
                self.reopen();
            }
            Op::Close => {
                let appended = self.journal().appended();
                let journal = self.journal.take().unwrap();
                if let Ok(position) = journal.close() {
                    assert_eq!(position, appended);
                    self.acked = position;
                    self.storage.set_faults(Faults::default());
                    assert!(verify(&self.storage).unwrap().is_clean());
                }
                self.crash();
            }
            Op::Crash => self.crash(),
            Op::Halt { after } => self.fault(Faults { halt_after: Some(*after), ..Faults::default() }),
            Op::FailSync { after } => {
                self.fault(Faults { fail_sync_after: Some(*after), ..Faults::default() })
            }
            Op::FullDisk { free } => {
                let used: usize = self.storage.files().values().map(Vec::len).sum();
                let capacity_bytes = Some(used as u64 + free);
                self.fault(Faults { capacity_bytes, ..Faults::default() });
            }
        }
    }

    fn fault(&self, faults: Faults) {
        self.storage.set_faults(faults);
    }

    fn sync(&mut self) {
        let before = self.journal().appended();
        match self.journal().sync() {
            Ok(position) => {
                assert_eq!(position, before);
                self.acked = position;
            }
            Err(tidemark_journal::SyncError::Full) => self.storage.set_faults(Faults::default()),
            Err(_) => {
                let refused = self.stream.clone().heartbeat(true).append(self.journal());
                assert!(refused.is_err(), "appends must stop after a failed sync");
                // The process may start again without the machine: what it finds then must survive a crash later.
                if self.seed.is_multiple_of(2) {
                    self.storage.set_faults(Faults::default());
                    self.reopen();
                } else {
                    self.crash();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_point_equals_the_model_and_nothing_acknowledged_is_lost(
        seed in any::<u64>(),
        segment_bytes in prop_oneof![Just(400_u64), Just(2 << 10), Just(12 << 10), Just(1 << 20)],
        ops in proptest::collection::vec(op(), 1..110),
    ) {
        let mut run = Run::new(seed, segment_bytes);
        for op in &ops {
            run.apply(op);
        }
        run.storage.set_faults(Faults::default());
        run.sync();
        run.compare();
        run.reopen();
    }
}
