//! Markers: asked for, reserved while writers are held, placed where the reader of the ring comes to them.

use tidemark_proto::v1::{Marker, frame::Body};

use super::barrier::{Barrier, BarrierKind, MarkerRequest, Place};
use super::core::{Engine, EngineError, Kernel, Notice};
use super::limits::{MARKERS_WAITING_MAX, PLACE_MAX_US};
use crate::capture::Mode;

impl Engine {
    /// Asks for a marker at the present end of the ring. The outcome comes as a notice.
    pub fn request_marker(&mut self, kernel: &Kernel<'_>, now_us: u64, request: MarkerRequest) {
        if let Some(reason) = request.problem().or_else(|| self.crowded()) {
            self.notices.push_back(Notice::MarkerFailed { request, reason: reason.to_owned() });
            return;
        }
        self.push_barrier(kernel, now_us, BarrierKind::Marker(request));
    }

    /// Reserves the present end of the ring for a marker whose level is not known yet: nothing beyond it is read until
    /// [`Engine::settle_place`], and for [`PLACE_MAX_US`] at most. To be called while writers are held: every write
    /// before the hold then has a lower LSN than the marker, every later one a higher.
    ///
    /// # Errors
    /// Why no marker could be placed there.
    pub fn reserve_place(&mut self, kernel: &Kernel<'_>, now_us: u64) -> Result<Place, &'static str> {
        if let Some(reason) = self.crowded().or_else(|| self.unrecoverable(kernel)) {
            return Err(reason);
        }
        self.next_place = self.next_place.saturating_add(1);
        let place = Place(self.next_place);
        self.push_barrier(kernel, now_us, BarrierKind::Place(place));
        Ok(place)
    }

    /// Puts a marker at a reserved place, or gives the place up. The outcome comes as a notice.
    pub fn settle_place(&mut self, place: Place, request: Option<MarkerRequest>) {
        let reserved = |barrier: &Barrier| matches!(barrier.kind, BarrierKind::Place(here) if here == place);
        let index = self.barriers.iter().position(reserved);
        let problem = request.as_ref().and_then(MarkerRequest::problem);
        match (index, request) {
            (Some(index), Some(request)) if problem.is_none() => {
                if let Some(barrier) = self.barriers.get_mut(index) {
                    barrier.kind = BarrierKind::Marker(request);
                }
            }
            (index, request) => {
                if let Some(index) = index {
                    self.barriers.remove(index);
                }
                if let Some(request) = request {
                    let lost = "the stream began anew while writers were held: try again";
                    let reason = problem.unwrap_or(lost).to_owned();
                    self.notices.push_back(Notice::MarkerFailed { request, reason });
                }
            }
        }
    }

    /// Why a marker placed now could not be recovered, if so.
    #[must_use]
    pub fn unrecoverable(&self, kernel: &Kernel<'_>) -> Option<&'static str> {
        if self.attached && !self.absent.is_empty() {
            return Some(
                "a protected disk is missing in the machine: attach it again, or end its protection with \
                 'tidemark-splitter unprotect'",
            );
        }
        if !self.attached || self.disks.is_empty() {
            return Some("no disk is protected");
        }
        let missed = kernel.control.status().mode != Mode::Full;
        (missed || self.disks.values().any(|disk| disk.gap_from.is_some())).then_some(
            "this moment is not recoverable, an initial copy or resync is running: try again when `status` says \
             protected",
        )
    }

    /// Why no further marker is taken, if so.
    fn crowded(&self) -> Option<&'static str> {
        let waits =
            |barrier: &&Barrier| matches!(barrier.kind, BarrierKind::Marker(_) | BarrierKind::Place(_));
        if !self.attached {
            Some("no disk is protected yet")
        } else if self.barriers.iter().filter(waits).count() >= MARKERS_WAITING_MAX {
            Some("too many bookmarks are waiting already")
        } else {
            None
        }
    }

    pub(super) fn push_barrier(&mut self, kernel: &Kernel<'_>, now_us: u64, kind: BarrierKind) {
        let position = kernel.ring.producer();
        self.barriers.push_back(Barrier { position, boottime_us: now_us, kind });
    }

    /// The reader stands at a place that is not settled.
    pub(super) fn place_waits(&self, kernel: &Kernel<'_>) -> bool {
        self.barriers.front().is_some_and(|barrier| {
            matches!(barrier.kind, BarrierKind::Place(_)) && barrier.position <= kernel.ring.position()
        })
    }

    pub(super) fn pass_barriers(&mut self, kernel: &mut Kernel<'_>) -> Result<(), EngineError> {
        while self.barriers.front().is_some_and(|barrier| barrier.position <= kernel.ring.position()) {
            if self.place_waits(kernel) && !self.place_expired() {
                break;
            }
            let Some(barrier) = self.barriers.pop_front() else { break };
            match barrier.kind {
                BarrierKind::Heartbeat => self.heartbeat(kernel, barrier.boottime_us)?,
                BarrierKind::Marker(request) => self.place_marker(kernel, barrier.boottime_us, request),
                // Its holder is gone; whoever settles it later is told.
                BarrierKind::Place(_) => {}
            }
        }
        Ok(())
    }

    fn place_expired(&self) -> bool {
        let since = self.barriers.front().map_or(0, |barrier| barrier.boottime_us);
        self.now_us.saturating_sub(since) > PLACE_MAX_US
    }

    fn place_marker(&mut self, kernel: &Kernel<'_>, boottime_us: u64, request: MarkerRequest) {
        if let Some(reason) = self.unrecoverable(kernel) {
            self.notices.push_back(Notice::MarkerFailed { request, reason: reason.to_owned() });
            return;
        }
        self.close_batch();
        let lsn = self.next_lsn();
        let MarkerRequest { request_id, bookmark_id, name, achieved } = request.clone();
        self.push_frame(Body::Marker(Marker {
            lsn,
            boottime_us,
            bookmark_id,
            name,
            request_id,
            consistency: achieved.consistency.into(),
            hold_us: achieved.hold_us,
            reason: achieved.reason,
        }));
        self.notices.push_back(Notice::MarkerPlaced { request, lsn });
    }
}
