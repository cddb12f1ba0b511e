//! Units of the ring become entries of the stream.

use tidemark_proto::limits::{FRAME_MAX_BYTES, SECTOR_BYTES};
use tidemark_proto::v1::{GapCause, WriteKind, frame::Body};

use super::core::{Engine, EngineError, Kernel};
use super::inflight::Request;
use super::lines::Miss;
use crate::capture::{BlockRange, DirtyMaps, Event, Issue, KernelStatus, Slot, Unit};

/// A unit without its content.
#[derive(Clone, Copy)]
struct Place {
    request: u64,
    slot: Slot,
    start_sector: u64,
    sectors: u64,
    position: u64,
}

impl Place {
    fn request(&self, lsn: u64, captured: bool) -> Request {
        Request {
            slot: self.slot,
            start_sector: self.start_sector,
            sectors: self.sectors,
            lsn,
            captured,
            position: self.position,
            requeued: false,
        }
    }

    fn range(&self) -> BlockRange {
        BlockRange::of_sectors(self.start_sector, self.sectors)
    }

    /// The place of an event that is bound to one.
    fn of(unit: &Unit<'_>) -> Option<Self> {
        let (request, slot, start_sector, sectors, kind) = match unit.event {
            Event::Issue(issue) => (issue.request, issue.slot, issue.start_sector, issue.sectors, issue.kind),
            Event::Complete { request, slot, kind, start_sector, sectors, .. } => {
                (request, slot, start_sector, sectors, kind)
            }
            Event::Voided { request, slot, start_sector, sectors } => {
                (request, slot, start_sector, sectors, WriteKind::Data)
            }
            Event::Requeue { .. } => return None,
        };
        let sectors = if kind == WriteKind::Flush { 0 } else { u64::from(sectors) };
        Some(Self { request, slot, start_sector, sectors, position: unit.start })
    }
}

impl Engine {
    /// Reads one unit. False when the ring has none.
    pub(super) fn read_unit(&mut self, kernel: &mut Kernel<'_>) -> Result<bool, EngineError> {
        self.look(kernel.ring);
        let status = kernel.control.status();
        let read = match kernel.ring.next() {
            Ok(None) => Ok(false),
            Ok(Some(unit)) => self.apply(&unit, kernel.dirty, &status).map(|()| true),
            Err(error) => {
                let detail = error.to_string();
                self.damaged(kernel, detail).map(|()| false)
            }
        };
        self.look(kernel.ring);
        read
    }

    /// What the journal has already: only the in-flight set is rebuilt from it.
    pub(super) fn rebuild(&mut self, unit: &Unit<'_>) {
        let Some(place) = Place::of(unit) else {
            if let Event::Requeue { request } = unit.event {
                self.inflight.requeued(request);
            }
            return;
        };
        match unit.event {
            Event::Complete { request, .. } => {
                self.inflight.remove(request);
            }
            _ if place.sectors == 0 || !self.disks.contains_key(&place.slot) => {}
            Event::Voided { request, .. } => self.inflight.insert(request, place.request(0, false)),
            _ => {
                if self.kernel_generation.is_some_and(|known| known < unit.generation) {
                    self.inflight.clear();
                }
                self.kernel_generation = self.kernel_generation.max(Some(unit.generation));
                self.inflight.insert(place.request, place.request(0, true));
            }
        }
    }

    pub(super) fn apply(
        &mut self,
        unit: &Unit<'_>,
        dirty: &mut dyn DirtyMaps,
        status: &KernelStatus,
    ) -> Result<(), EngineError> {
        let Some(place) = Place::of(unit) else {
            if let Event::Requeue { request } = unit.event {
                self.inflight.requeued(request);
            }
            return Ok(());
        };
        if place.sectors > 0 {
            self.verify.written(place.slot, place.range());
        }
        let missed = match &unit.event {
            Event::Issue(issue) => self.issue(unit, &place, issue, dirty, status)?,
            Event::Complete { failed, bytes, kind, .. } => self.complete(&place, *failed, *bytes, *kind),
            Event::Voided { .. } => self.unseen_issue(&place, GapCause::VoidedUnit),
            Event::Requeue { .. } => None,
        };
        // What follows comes after this unit.
        self.at.position = unit.end;
        match missed {
            Some(miss) => self.missed(dirty, &miss),
            None => Ok(()),
        }
    }

    fn issue(
        &mut self,
        unit: &Unit<'_>,
        place: &Place,
        issue: &Issue<'_>,
        dirty: &mut dyn DirtyMaps,
        status: &KernelStatus,
    ) -> Result<Option<Miss>, EngineError> {
        match self.kernel_generation {
            // Its program began before capture was restarted: the line is above it already.
            Some(known) if unit.generation < known => {
                return Ok(self.unseen_issue(place, GapCause::UnseenWrite));
            }
            // Only a splitter without memory finds a restart in the ring: its predecessor made it.
            Some(known) if unit.generation > known => {
                self.begin_generation(dirty, unit.generation, status.cause)?;
            }
            Some(_) => {}
            None => self.kernel_generation = Some(unit.generation),
        }
        let Some(disk) = self.disks.get(&place.slot) else { return Ok(None) };
        let (disk_id, size_bytes) = (disk.id.0, disk.size_bytes);
        let end_bytes = place.start_sector.saturating_add(place.sectors).saturating_mul(SECTOR_BYTES);
        if place.sectors > 0 && end_bytes > size_bytes {
            // The disk grew and nobody has said so yet: what was added is copied once it is known.
            return Ok(self.unseen_issue(place, GapCause::UnseenWrite));
        }
        let bytes = issue.parts.length();
        let expected =
            if issue.kind == WriteKind::Data { place.sectors.saturating_mul(SECTOR_BYTES) } else { 0 };
        if bytes as u64 != expected || bytes > FRAME_MAX_BYTES {
            return Ok(self.unseen_issue(place, GapCause::VoidedUnit));
        }
        if !self.batch.has_room(bytes) {
            let writes = self.batch.take();
            self.push_body(Body::Writes(writes));
        }
        let replaced = self.inflight.remove(place.request);
        let overlap = place.sectors > 0
            && self.inflight.touching(place.slot, place.start_sector, place.sectors).next().is_some();
        let lsn = self.next_lsn();
        self.batch.push(lsn, disk_id, issue);
        self.at.position = unit.end;
        if place.sectors > 0 {
            self.inflight.insert(place.request, place.request(lsn, true));
        }
        if let Some(old) = replaced.filter(|old| !old.requeued && old.range() != place.range()) {
            // The same address without a requeue in between: the older request ended unseen.
            let gap_from = self.clean_lsn.saturating_add(1);
            let old = Miss { slot: old.slot, range: old.range(), cause: GapCause::UnseenWrite, gap_from };
            self.missed(dirty, &old)?;
        }
        let (slot, range) = (place.slot, place.range());
        Ok(overlap.then_some(Miss { slot, range, cause: GapCause::OverlappingWrites, gap_from: lsn }))
    }

    /// A write that reached, or may reach, the disk without being in the stream.
    fn unseen_issue(&mut self, place: &Place, cause: GapCause) -> Option<Miss> {
        if place.sectors == 0 || !self.disks.contains_key(&place.slot) {
            return None;
        }
        self.inflight.insert(place.request, place.request(0, false));
        let gap_from = self.clean_lsn.saturating_add(1);
        Some(Miss { slot: place.slot, range: place.range(), cause, gap_from })
    }

    fn complete(&mut self, place: &Place, failed: bool, bytes: u64, kind: WriteKind) -> Option<Miss> {
        let request = self.inflight.remove(place.request);
        if !self.disks.contains_key(&place.slot) {
            return None;
        }
        let (range, cause) = match request {
            None if place.sectors == 0 => return None,
            None => (place.range(), GapCause::UnseenWrite),
            Some(request) if !request.captured => (request.range(), GapCause::UnseenWrite),
            Some(request) => {
                let short = kind == WriteKind::Data && bytes < request.sectors.saturating_mul(SECTOR_BYTES);
                if !failed && !short {
                    return None;
                }
                (request.range(), GapCause::IoError)
            }
        };
        Some(Miss { slot: place.slot, range, cause, gap_from: self.lsn.saturating_add(1) })
    }
}
