//! Places reserved while writers are held: the marker comes exactly there, whatever is written and read meanwhile.

use tidemark_proto::v1::frame::Body;

use super::{Broken, World};
use crate::engine::{Achieved, MarkerRequest, Place};

/// A place and the end of the ring when it was reserved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reserved {
    place: Place,
    position: u64,
}

impl World {
    pub(super) fn hold(&mut self) {
        let now_us = self.now_us;
        if let Some(reserved) = self.reserved {
            if self.holds.chance(150) {
                self.reserved = None;
                self.settle(reserved);
            }
        } else if self.slow.is_none() && self.holds.chance(20) {
            // While writers are held no request is being captured.
            self.reserved = self.with_engine(|engine, kernel| {
                let position = kernel.ring.producer();
                engine.reserve_place(kernel, now_us).ok().map(|place| Reserved { place, position })
            });
        }
    }

    fn settle(&mut self, Reserved { place, position }: Reserved) {
        // The number tells the marker's place to the check below; 0 is a marker without one.
        let name = if self.holds.chance(500) { "held" } else { "" };
        let request = MarkerRequest {
            request_id: position + 1,
            bookmark_id: name.into(),
            name: name.into(),
            achieved: Achieved::default(),
        };
        let (now_us, given_up) = (self.now_us, self.holds.chance(200));
        let late = self.broken == Broken::LateMarkers;
        self.with_engine(|engine, kernel| {
            engine.settle_place(place, (!given_up && !late).then(|| request.clone()));
            if late {
                engine.request_marker(kernel, now_us, request);
            }
        });
    }

    /// Every marker of a reserved place covers the ring exactly up to it. How many there are.
    pub(super) fn check_places(&self) -> Result<u64, String> {
        let mut count = 0;
        for (frame, _) in &self.appliance.frames {
            let Some(Body::Marker(marker)) = &frame.body else { continue };
            let Some(position) = marker.request_id.checked_sub(1) else { continue };
            if frame.ring_position != position {
                return Err(format!("a marker of place {position} is at {}", frame.ring_position));
            }
            count += 1;
        }
        Ok(count)
    }
}
