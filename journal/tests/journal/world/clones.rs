//! Clones of the world's VM, each with what its disks must hold after every write.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemark_journal::branch::{BranchPoint, BranchStart, BranchWriter, ParentView};
use tidemark_journal::frame::EntryKind;
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::{Journal, Pin, PinKind};
use tidemark_proto::ids::{DiskId, Lsn, VmId};
use uuid::Uuid;

use super::{Life, SEGMENT_BYTES};
use crate::store_support::Random;
use crate::support::{DISK_SECTORS, SECTOR, options, pattern, reopen, vm};

/// Clones at once; then one goes.
const CLONES_MAX: usize = 4;
const DISK_BYTES: usize = DISK_SECTORS * SECTOR;

type Disks = [Vec<u8>; 2];

/// One clone.
struct Known {
    storage: SimStorage,
    point: Lsn,
    writer: BranchWriter,
    /// The disks after each LSN, from the point on.
    images: BTreeMap<u64, Disks>,
    /// What must survive.
    flushed: u64,
}

/// All clones; what the test knows of them survives every crash.
pub(crate) struct Clones {
    random: Random,
    known: BTreeMap<VmId, Known>,
    made: u64,
}

fn disks(read: impl Fn(DiskId, &mut [u8]) -> Result<(), String>) -> Result<Disks, String> {
    let mut found = [1, 2].map(|_| vec![0xee; DISK_BYTES]);
    for (disk, bytes) in (1..).zip(&mut found) {
        read(DiskId(disk), bytes)?;
    }
    Ok(found)
}

fn connect(journal: &Arc<Journal>, parent: &Arc<Journal>) {
    if let Some(point) = journal.branch_point() {
        let parent = Arc::clone(parent);
        journal.set_images(Arc::new(ParentView::new(point, move |lsn| Ok(parent.view(lsn)?))));
    }
}

impl Clones {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random(seed ^ 0xC10E), known: BTreeMap::new(), made: 0 }
    }

    pub(crate) fn set_faults(&self, faults: &Faults) {
        self.known.values().for_each(|clone| clone.storage.set_faults(faults.clone()));
    }

    pub(crate) fn crash(&self) {
        self.known.values().for_each(|clone| clone.storage.crash());
    }

    /// Opens what is known, and gives up the pins of what was not made to its end.
    pub(crate) fn open(&mut self, parent: &Arc<Journal>, now_us: u64) -> BTreeMap<VmId, Arc<Journal>> {
        for pin in parent.pins().iter().filter(|pin| pin.kind == PinKind::Clone) {
            if !self.known.keys().any(|vm| vm.to_string() == pin.name) {
                parent.revoke_pin(&pin.name, now_us).unwrap();
            }
        }
        let mut opened = BTreeMap::new();
        for (vm, clone) in &mut self.known {
            let journal = Arc::new(reopen(&clone.storage, SEGMENT_BYTES));
            connect(&journal, parent);
            let survived = journal.appended().lsn.0;
            assert!(survived >= clone.flushed, "{} was flushed, {survived} survived", clone.flushed);
            clone.images.retain(|lsn, _| *lsn <= survived);
            assert_eq!(clone.images.last_key_value().map(|(lsn, _)| *lsn), Some(survived));
            clone.writer = BranchWriter::default();
            opened.insert(*vm, journal);
        }
        opened
    }

    /// Makes, writes, flushes or removes one; an error is the machine's.
    pub(crate) fn act(&mut self, life: &mut Life, now_us: u64) -> Result<(), String> {
        let number = usize::try_from(self.random.below(CLONES_MAX as u64)).unwrap();
        match self.known.keys().nth(number).copied() {
            None => self.make(life, now_us),
            Some(vm) => match self.random.below(12) {
                0 => self.remove(vm, life, now_us),
                1..4 => self.flush(vm, life, now_us),
                4 => life.clones[&vm].maintain().map_err(|error| error.to_string()),
                _ => self.write(vm, life, now_us),
            },
        }
    }

    /// Of a point anywhere in what is offered, snapshots included.
    fn make(&mut self, life: &mut Life, now_us: u64) -> Result<(), String> {
        let timeline = life.journal.timeline();
        let Some(horizon) = timeline.horizon() else { return Ok(()) };
        let base = life.journal.base().map_or(1, |(lsn, _)| lsn.0);
        let kept = life.journal.snapshots();
        let place = usize::try_from(self.random.below(2 * kept.len() as u64 + 1)).unwrap();
        let lsn = kept.get(place).map_or_else(
            || Lsn(base + self.random.below(horizon.lsn.0.saturating_sub(base) + 1)),
            |kept| kept.lsn,
        );
        if timeline.check(lsn, &[DiskId(1), DiskId(2)]).is_err() {
            return Ok(());
        }
        let view = life.journal.view(lsn).map_err(|error| error.to_string())?;
        if view.disks().len() < 2 {
            return Ok(());
        }
        let images = disks(|disk, bytes| view.read_at(disk, 0, bytes).map_err(|error| error.to_string()))?;
        self.made += 1;
        let id = VmId(Uuid::from_u128(u128::from(self.made)));
        let pin = Pin { name: id.to_string(), kind: PinKind::Clone, lsn, until_us: None };
        life.journal.put_pin(pin, now_us).map_err(|error| error.to_string())?;
        let storage = SimStorage::new(self.random.below(1 << 20));
        let start = BranchStart {
            point: BranchPoint { parent: vm(), lsn },
            time_us: timeline.time_of(lsn).map_err(|error| error.to_string())?,
            disks: life.journal.disks(),
        };
        let journal =
            Journal::create_branch(Arc::new(storage.clone()), id, options(SEGMENT_BYTES), &start).unwrap();
        let journal = Arc::new(journal);
        connect(&journal, &life.journal);
        life.clones.insert(id, journal);
        let known = Known {
            storage,
            point: lsn,
            writer: BranchWriter::default(),
            images: BTreeMap::from([(lsn.0, images)]),
            flushed: lsn.0,
        };
        self.known.insert(id, known);
        Ok(())
    }

    /// Whole sectors: a write is one LSN.
    fn write(&mut self, vm: VmId, life: &Life, now_us: u64) -> Result<(), String> {
        let (journal, clone) = (&life.clones[&vm], self.known.get_mut(&vm).unwrap());
        let mut now = clone.images.last_key_value().unwrap().1.clone();
        let (disk, sectors) = (self.random.below(2), 1 + self.random.below(20));
        let start = self.random.below(DISK_SECTORS as u64 - sectors);
        let (from, bytes) =
            (usize::try_from(start).unwrap() * SECTOR, usize::try_from(sectors).unwrap() * SECTOR);
        let range = &mut now[usize::from(disk == 1)][from..from + bytes];
        let id = DiskId(u32::try_from(disk).unwrap() + 1);
        let written = if self.random.below(4) == 0 {
            range.fill(0);
            let zeroed = (from as u64, bytes as u64);
            clone.writer.zero(journal, id, zeroed, EntryKind::Discard, now_us)
        } else {
            let data = pattern(self.random.next() >> 20, usize::try_from(sectors).unwrap());
            range.copy_from_slice(&data);
            clone.writer.write_at(journal, id, from as u64, &data, now_us)
        };
        let after = journal.appended().lsn.0;
        if after > *clone.images.last_key_value().unwrap().0 {
            clone.images.insert(after, now);
        }
        written.map(|_| ()).map_err(|error| error.to_string())
    }

    fn flush(&mut self, vm: VmId, life: &Life, now_us: u64) -> Result<(), String> {
        let clone = self.known.get_mut(&vm).unwrap();
        let position = clone.writer.flush(&life.clones[&vm], now_us).map_err(|error| error.to_string())?;
        clone.flushed = position.lsn.0;
        Ok(())
    }

    /// First the clone, then the pin: a crash between leaves a pin that the next life gives up.
    fn remove(&mut self, vm: VmId, life: &mut Life, now_us: u64) -> Result<(), String> {
        self.known.remove(&vm);
        life.clones.remove(&vm);
        life.journal.revoke_pin(&vm.to_string(), now_us).map_err(|error| error.to_string())
    }

    /// Compares every point that a clone offers. How many.
    pub(crate) fn compare(&self, life: &Life) -> Result<u64, String> {
        let mut points = 0;
        for (vm, clone) in &self.known {
            let journal = &life.clones[vm];
            let horizon = journal.timeline().horizon().map_or(clone.point, |horizon| horizon.lsn);
            if horizon.0 < clone.flushed {
                return Err(format!("clone {vm}: {} was flushed, {horizon} is offered", clone.flushed));
            }
            if journal.view(Lsn(clone.point.0 - 1)).is_ok() || journal.view(horizon.next()).is_ok() {
                return Err(format!("clone {vm} offers more than it has"));
            }
            for (lsn, expected) in clone.images.range(..=horizon.0) {
                let view =
                    journal.view(Lsn(*lsn)).map_err(|error| format!("clone {vm} at {lsn}: {error}"))?;
                let found = disks(|disk, bytes| {
                    view.read_at(disk, 0, bytes).map_err(|error| format!("clone {vm} at {lsn}: {error}"))
                })?;
                if found != *expected {
                    return Err(format!("clone {vm} differs at {lsn}"));
                }
                points += 2;
            }
        }
        Ok(points)
    }
}
