//! Snapshots: images of points below the log that are kept, and everything that still reads images.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tidemark_proto::ids::Lsn;

use super::pins::keeper;
use super::{Journal, Run, Snapshot, lock};
use crate::error::RetentionError;
use crate::manifest::{Base, Keeping, Record};
use crate::options::limits::KEPT_MAX;
use crate::records::{ImageNames, Kept, KeptDisk, LogPart, PinKind};
use crate::view::{View, ViewDisk};

/// The images that the journal or any view of it reads. It outlives the journal: so do views.
#[derive(Debug, Clone, Default)]
pub struct LiveImages(Arc<Mutex<Vec<Weak<Base>>>>);

impl LiveImages {
    pub(super) fn add<'a>(&self, bases: impl IntoIterator<Item = &'a Arc<Base>>) {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|base| base.strong_count() > 0);
        live.extend(bases.into_iter().map(Arc::downgrade));
    }

    /// What they are to their keeper: of the present base, of all snapshots, and of what open views still read. Each of
    /// them must stay.
    #[must_use]
    pub fn images(&self) -> Vec<ImageNames> {
        let live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().filter_map(Weak::upgrade).map(|base| base.images.clone()).collect()
    }
}

impl Journal {
    /// Keeps the images of the present base, durably: its point is a snapshot from then on, whatever the base becomes.
    /// The same point again changes nothing.
    ///
    /// # Errors
    /// [`RetentionError::Invalid`] without a base, or with [`KEPT_MAX`] snapshots.
    pub fn keep_base(&self) -> Result<Arc<Kept>, RetentionError> {
        let invalid = |problem: String| RetentionError::Invalid(problem);
        let history = self.published().history;
        let _syncing = lock(&self.syncing);
        let (base, known, count) = {
            let manifest = lock(&self.manifest);
            let state = manifest.state();
            let base = state.base.clone().ok_or_else(|| invalid("there are no images to keep".to_owned()))?;
            let known = state.kept.get(&base.lsn).cloned();
            (base, known, state.kept.len())
        };
        if let Some(known) = known {
            return Ok(known);
        }
        if count >= KEPT_MAX {
            return Err(invalid(format!("the journal has {KEPT_MAX} snapshots already")));
        }
        let disks = base.images.iter().map(|(id, image)| KeptDisk {
            id: *id,
            size_bytes: history.disks.get(id).map_or(0, |disk| disk.size_at(base.lsn)),
            image: image.clone(),
        });
        // Of an LSN that is not taken yet nothing is known, so the snapshot stands for its very moment only.
        let next_us = self.timeline().time_of(base.lsn.next())?;
        let kept = Arc::new(Kept {
            lsn: base.lsn,
            time_us: base.time_us,
            until_us: next_us.max(base.time_us.saturating_add(1)),
            disks: disks.collect(),
        });
        let snapshot = Snapshot::new(Arc::clone(&kept));
        self.live.add([&snapshot.base]);
        self.put_record(&Record::Keeping(Keeping::Kept(Arc::clone(&kept))))?;
        self.set_runs(|runs| {
            runs.kept.insert(kept.lsn, snapshot);
        });
        Ok(kept)
    }

    /// Gives a snapshot up, durably. Its images may go once no view reads them. One that is not there is no error.
    ///
    /// # Errors
    /// [`RetentionError::Locked`] or [`RetentionError::Held`] while a lock or a bookmark keeps it; `now_us` counts only
    /// as far as it does not go back.
    pub fn drop_snapshot(&self, lsn: Lsn, now_us: u64) -> Result<(), RetentionError> {
        let _syncing = lock(&self.syncing);
        {
            let manifest = lock(&self.manifest);
            let state = manifest.state();
            if !state.kept.contains_key(&lsn) {
                return Ok(());
            }
            if let Some(pin) = keeper(state, lsn, now_us.max(state.clock_us)) {
                let name = pin.name.clone();
                return Err(match pin.kind {
                    PinKind::Lock => RetentionError::Locked { name, until_us: pin.until_us.unwrap_or(0) },
                    _ => RetentionError::Held { name },
                });
            }
        }
        self.put_record(&Record::Keeping(Keeping::Dropped(lsn)))?;
        self.set_runs(|runs| {
            runs.kept.remove(&lsn);
        });
        Ok(())
    }

    /// All snapshots, by LSN.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Arc<Kept>> {
        lock(&self.manifest).state().kept.values().cloned().collect()
    }

    /// The images that must stay as long as this journal or a view of it reads them.
    #[must_use]
    pub fn live_images(&self) -> LiveImages {
        self.live.clone()
    }

    /// The latest time that a change of what is kept was made at, microseconds; no lock ends by an earlier clock.
    #[must_use]
    pub fn retention_clock(&self) -> u64 {
        lock(&self.manifest).state().clock_us
    }

    /// The live segments, oldest first.
    #[must_use]
    pub fn log_parts(&self) -> Vec<LogPart> {
        let part = |run: &Run| {
            let (bytes, sealed) = match run {
                Run::Sealed(sealed) => (sealed.bytes.saturating_add(sealed.leaf_bytes), true),
                Run::Open(segment) => (segment.closed().map_or(0, |closed| closed.bytes), false),
                Run::Node(_) => (0, false),
            };
            LogPart { bytes, last_lsn: run.end_lsn(), first_time_us: run.summary().first_time_us, sealed }
        };
        self.runs().segments.iter().map(part).collect()
    }

    /// The view of a snapshot.
    pub(super) fn kept_view(&self, lsn: Lsn) -> Option<View> {
        let runs = self.runs();
        if runs.base.as_ref().is_none_or(|base| lsn >= base.lsn) {
            return None;
        }
        let snapshot = runs.kept.get(&lsn)?;
        let disks = snapshot.kept.disks.iter().filter(|disk| disk.size_bytes > 0);
        let disks = disks.map(|disk| ViewDisk { id: disk.id, size_bytes: disk.size_bytes }).collect();
        Some(View::of_images(Arc::clone(&self.source), Arc::clone(&snapshot.base), disks, runs.generation))
    }
}
