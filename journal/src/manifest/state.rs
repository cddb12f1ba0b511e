//! What the records of a manifest add up to.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemark_proto::ids::Lsn;

use super::{Base, Keep, Keeping, NodeRecord, Record, Sealed, SegmentOpen};
use crate::attest::{Statement, StatementKind};
use crate::node::Span;
use crate::records::{DiskRecord, Kept, Pin};

/// A disk and the sizes it was told to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskState {
    pub record: DiskRecord,
    /// Sizes by `put_disk`, from an LSN on.
    pub sizes: Vec<(Lsn, u64)>,
}

/// The state of a journal, but for the content of its segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub writer_generation: u64,
    pub disks: BTreeMap<u32, DiskState>,
    pub notes: BTreeMap<String, Vec<u8>>,
    /// By ordinal, which is log order.
    pub sealed: BTreeMap<u64, Arc<Sealed>>,
    pub open: BTreeMap<u64, SegmentOpen>,
    /// Merged nodes, lower levels first.
    pub nodes: BTreeMap<Span, NodeRecord>,
    /// The images below the log.
    pub base: Option<Arc<Base>>,
    /// Pins that were not revoked, by name; they may have ended.
    pub pins: BTreeMap<String, Pin>,
    /// Snapshots.
    pub kept: BTreeMap<Lsn, Arc<Kept>>,
    /// Points below are given up.
    pub cutoff: Lsn,
    /// The latest time of a change of pins or cutoff: the clock never goes back behind it.
    pub clock_us: u64,
    /// Signed heads, by place in the log: of live segments those at bookmarks and at ends, and the newest of all.
    pub statements: BTreeMap<(u64, u64), Statement>,
    /// In segments from this ordinal on, hashes cover every payload; `None`: in none.
    pub hashed_from: Option<u64>,
    /// Of live segments below, the hash of the file, as far as it is known.
    pub contents: BTreeMap<u64, [u8; 32]>,
    /// Highest ordinal ever given.
    pub last_ordinal: u64,
    /// Acknowledged at least up to here.
    pub durable_seq: u64,
    pub durable_lsn: Lsn,
    /// The last record says that the journal was closed.
    pub closed: bool,
}

impl State {
    pub(crate) fn apply(&mut self, record: &Record) {
        self.closed = matches!(record, Record::Closed { .. });
        match record {
            Record::Writer(generation) => self.writer_generation = *generation,
            Record::Disk(disk) => {
                self.disks.insert(disk.record.id.0, disk.clone());
            }
            Record::Note(key, value) if value.is_empty() => {
                self.notes.remove(key);
            }
            Record::Note(key, value) => {
                self.notes.insert(key.clone(), value.clone());
            }
            Record::Open(open) => {
                self.last_ordinal = self.last_ordinal.max(open.ordinal);
                self.open.insert(open.ordinal, *open);
            }
            Record::Sealed(sealed) => {
                self.last_ordinal = self.last_ordinal.max(sealed.ordinal);
                self.open.remove(&sealed.ordinal);
                self.durable(sealed.position.seq, sealed.position.lsn);
                self.sealed.insert(sealed.ordinal, Arc::clone(sealed));
            }
            Record::Dropped(ordinal) => {
                self.last_ordinal = self.last_ordinal.max(*ordinal);
                self.open.remove(ordinal);
            }
            Record::Durable { seq, lsn } | Record::Closed { seq, lsn } => self.durable(*seq, *lsn),
            Record::SnapshotEnd => {}
            Record::Base(base) => {
                self.last_ordinal = self.last_ordinal.max(base.first_ordinal.saturating_sub(1));
                self.sealed = self.sealed.split_off(&base.first_ordinal);
                self.nodes.retain(|span, _| span.first >= base.first_ordinal);
                self.contents = self.contents.split_off(&base.first_ordinal);
                self.statements.retain(|(segment, _), _| *segment >= base.first_ordinal);
                self.base = Some(Arc::clone(base));
            }
            Record::Keep(time_us, keep) => {
                self.clock_us = self.clock_us.max(*time_us);
                match keep {
                    Keep::Pin(pin) => {
                        self.pins.insert(pin.name.clone(), pin.clone());
                    }
                    Keep::Revoked(name) => {
                        self.pins.remove(name);
                    }
                    Keep::Cutoff(lsn) => self.cutoff = self.cutoff.max(*lsn),
                }
            }
            Record::Keeping(Keeping::Kept(kept)) => {
                self.kept.insert(kept.lsn, Arc::clone(kept));
            }
            Record::Keeping(Keeping::Dropped(lsn)) => {
                self.kept.remove(lsn);
            }
            Record::Statement(statement) => self.take_statement(statement),
            Record::Content(ordinal, hash) => {
                self.contents.insert(*ordinal, *hash);
            }
            Record::HashedFrom(ordinal) => self.hashed_from = Some(*ordinal),
            Record::Node(node) if node.bytes == 0 => {
                self.nodes.remove(&node.span);
            }
            Record::Node(node) => {
                self.nodes.insert(node.span, *node);
            }
        }
    }

    fn durable(&mut self, seq: u64, lsn: Lsn) {
        self.durable_seq = self.durable_seq.max(seq);
        self.durable_lsn = self.durable_lsn.max(lsn);
    }

    /// Heads come in the order of the log; a checkpoint's place is taken by whatever comes after it.
    fn take_statement(&mut self, statement: &Statement) {
        if let Some(last) = self.statements.last_entry()
            && last.get().kind == StatementKind::Checkpoint
        {
            last.remove();
        }
        self.statements.insert(statement.head.place(), *statement);
    }

    /// Records that rebuild this state.
    pub(crate) fn snapshot(&self) -> Vec<Record> {
        let mut records = vec![Record::Writer(self.writer_generation)];
        records.extend(self.disks.values().cloned().map(Record::Disk));
        records.extend(self.notes.iter().map(|(key, value)| Record::Note(key.clone(), value.clone())));
        records.extend(self.base.iter().cloned().map(Record::Base));
        if self.cutoff > Lsn::ZERO || self.clock_us > 0 {
            records.push(Record::Keep(self.clock_us, Keep::Cutoff(self.cutoff)));
        }
        let pins = self.pins.values().cloned();
        records.extend(pins.map(|pin| Record::Keep(self.clock_us, Keep::Pin(pin))));
        let kept = self.kept.values().cloned();
        records.extend(kept.map(|kept| Record::Keeping(Keeping::Kept(kept))));
        records.extend(self.sealed.values().cloned().map(Record::Sealed));
        records.extend(self.open.values().copied().map(Record::Open));
        records.extend(self.nodes.values().copied().map(Record::Node));
        records.extend(self.hashed_from.map(Record::HashedFrom));
        records.extend(self.contents.iter().map(|(ordinal, hash)| Record::Content(*ordinal, *hash)));
        records.extend(self.statements.values().copied().map(Record::Statement));
        // Keeps the highest ordinal when its segment was dropped, so that it is not given again.
        if self.last_ordinal > 0 && !self.open.contains_key(&self.last_ordinal) {
            records.push(Record::Dropped(self.last_ordinal));
        }
        records.push(Record::Durable { seq: self.durable_seq, lsn: self.durable_lsn });
        records.push(Record::SnapshotEnd);
        records
    }
}
