//! Folding: what lies below the cutoff goes into images, then leaves the journal.
//!
//! The steps, each durable before the next, and each repeatable after a crash: the cutoff is published
//! ([`Journal::advance_cutoff`]); the caller builds images from [`Journal::plan_fold`]; [`Journal::set_base`] names them in
//! the manifest, and views read them below the log; [`Journal::drop_folded`] takes the segments out of the manifest, and
//! only then removes their files, once no view has them any more.

use std::sync::{Arc, PoisonError};

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

use super::{Journal, Run, lock};
use crate::error::{AppendError, RetentionError, SyncError, ViewError};
use crate::leaf::leaf_name;
use crate::manifest::{Base, Record, Sealed};
use crate::options::limits::IMAGES_MAX_BYTES;
use crate::records::ImageNames;
use crate::segment::segment_name;
use crate::timeline::{Event, History, Horizon, Point, What};
use crate::view::{BaseImages, Extent, ExtentKind, View, ViewDisk};

/// What a fold is made from: the last versions up to an LSN, of every disk, above the present base.
#[derive(Debug, Clone)]
pub struct Fold {
    view: View,
}

/// Sectors that were written since the present base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub sectors: u64,
    /// Bytes to read with [`Fold::read_at`], or zeroes.
    pub kind: ExtentKind,
}

impl Fold {
    /// Bytes of a disk that are looked at in one step.
    const STEP_BYTES: u64 = 1 << 20;

    /// The LSN up to which it goes: the LSN of the images.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.view.lsn()
    }

    /// The disks that need an image, with their sizes then.
    #[must_use]
    pub fn disks(&self) -> &[ViewDisk] {
        self.view.disks()
    }

    /// What was written of a disk since the present base, in order, apart from each other.
    ///
    /// # Errors
    /// Each item as [`View::read_at`].
    pub fn changes(&self, disk: DiskId) -> impl Iterator<Item = Result<Change, ViewError>> {
        let size = self.disks().iter().find(|found| found.id == disk).map_or(0, |found| found.size_bytes);
        let step = usize::try_from(Self::STEP_BYTES).unwrap_or(usize::MAX);
        (0..size).step_by(step).flat_map(move |offset| {
            match self.view.changes(disk, offset, Self::STEP_BYTES.min(size - offset)) {
                Ok(changes) => changes.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        })
    }

    /// All that a disk holds and that is not zero, the base's content too, in order: for images that need no others.
    ///
    /// # Errors
    /// Each item as [`View::read_at`].
    pub fn everything(&self, disk: DiskId) -> impl Iterator<Item = Result<Change, ViewError>> {
        let size = self.disks().iter().find(|found| found.id == disk).map_or(0, |found| found.size_bytes);
        let step = usize::try_from(Self::STEP_BYTES).unwrap_or(usize::MAX);
        (0..size).step_by(step).flat_map(move |offset| {
            let whole = |extent: &Extent| Change {
                start: extent.offset / SECTOR_BYTES,
                sectors: extent.bytes / SECTOR_BYTES,
                kind: extent.kind,
            };
            match self.view.extents(disk, offset, Self::STEP_BYTES.min(size - offset)) {
                Ok(extents) => extents
                    .iter()
                    .filter(|extent| extent.kind == ExtentKind::Data)
                    .map(|extent| Ok(whole(extent)))
                    .collect(),
                Err(error) => vec![Err(error)],
            }
        })
    }

    /// The bytes of a change, from its first on.
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn read_at(&self, disk: DiskId, sector: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        self.view.read_at(disk, sector.saturating_mul(SECTOR_BYTES), buffer)
    }
}

impl Journal {
    /// Who reads the images that [`Journal::set_base`] named. Without it, views fail where only an image has the content.
    pub fn set_images(&self, images: Arc<dyn BaseImages>) {
        self.source.set_images(images);
    }

    /// Lets go of what is kept of the parent's files for the next read below a branch. Until then the parent cannot
    /// remove them, folded or not: whoever folds a parent calls this on its branches.
    pub fn let_go_below(&self) {
        self.source.let_go_below();
    }

    /// LSN of the images below the log, and what they are to their keeper, by disk.
    #[must_use]
    pub fn base(&self) -> Option<(Lsn, ImageNames)> {
        lock(&self.manifest).state().base.as_ref().map(|base| (base.lsn, base.images.clone()))
    }

    /// What is to be folded now: up to the last LSN not above the cutoff at which no line is open, since base blocks of a
    /// line may still arrive below writes that are in the journal already. `None`: nothing beyond the present base.
    #[must_use]
    pub fn plan_fold(&self) -> Option<Fold> {
        let history = self.published().history;
        let lsn = fold_point(&history, self.cutoff().min(self.durable().lsn));
        if lsn <= history.floor.map_or(Lsn::ZERO, |floor| floor.lsn) {
            return None;
        }
        Some(Fold { view: self.view_unjudged(&history, lsn) })
    }

    fn view_unjudged(&self, history: &History, lsn: Lsn) -> View {
        let known = history.disks.iter().filter(|(_, disk)| disk.first_line.is_some_and(|line| line <= lsn));
        let disks = known.map(|(id, disk)| ViewDisk { id: *id, size_bytes: disk.size_at(lsn) }).collect();
        View::new(Arc::clone(&self.source), &self.runs(), lsn, disks)
    }

    /// Names the images that hold everything up to an LSN, durably; `images` says by disk what its keeper reads it by.
    /// They must be durable. From then on that LSN is the oldest point.
    ///
    /// # Errors
    /// [`RetentionError::Invalid`] when the LSN is not that of a plan, or a disk has no image.
    pub fn set_base(&self, lsn: Lsn, images: ImageNames) -> Result<(), RetentionError> {
        let time_us = self.timeline().time_of(lsn)?;
        let history = self.published().history;
        let invalid = |problem: &str| Err(RetentionError::Invalid(problem.to_owned()));
        if fold_point(&history, lsn) != lsn || lsn > self.cutoff() {
            return invalid("images cannot begin there: above the cutoff, or a line is open");
        }
        let mut disks = history.disks.iter();
        if !disks.all(|(id, disk)| {
            disk.first_line.is_none_or(|line| line > lsn) || images.iter().any(|(of, _)| of == id)
        }) {
            return invalid("a disk has no image");
        }
        if images.iter().map(|(_, image)| image.len() + 8).sum::<usize>() > IMAGES_MAX_BYTES {
            return invalid("the images' descriptions are too long");
        }
        let _syncing = lock(&self.syncing);
        let before = lock(&self.manifest).state().base.clone();
        if before.as_ref().is_some_and(|base| base.lsn >= lsn) {
            return invalid("the present images are newer");
        }
        let kept = before.as_deref().cloned().unwrap_or_default();
        self.put_base(Base { lsn, time_us, images, ..kept })?;
        Ok(())
    }

    /// Makes a base durable, then what views and timelines go by. The caller holds `syncing`.
    fn put_base(&self, base: Base) -> Result<(), AppendError> {
        let base = Arc::new(base);
        self.live.add([&base]);
        self.put_record(&Record::Base(Arc::clone(&base)))?;
        let floor = Some(Point { lsn: base.lsn, time_us: base.time_us });
        Arc::make_mut(&mut lock(&self.log).history).floor = floor;
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut published.history).floor = floor;
        drop(published);
        self.set_runs(|runs| runs.set_base(base));
        Ok(())
    }

    /// Takes what the images hold out of the journal, durably, and removes the files that no view has any more. What it
    /// leaves for a view is removed by a later call, or when the journal is opened again. Returns the segments dropped.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn drop_folded(&self) -> Result<u64, SyncError> {
        let _merging = self.stop_merging();
        let _sealing = lock(&self.sealing);
        let dropped = {
            let _syncing = lock(&self.syncing);
            self.forget_folded().map_err(super::sync::as_sync_error)?
        };
        self.remove_dropped()?;
        Ok(dropped)
    }

    /// Takes folded segments and what was merged from them out of the manifest and the runs.
    fn forget_folded(&self) -> Result<u64, AppendError> {
        let (base, sealed) = {
            let manifest = lock(&self.manifest);
            let state = manifest.state();
            let Some(base) = state.base.clone() else { return Ok(0) };
            (base, state.sealed.values().cloned().collect::<Vec<_>>())
        };
        // The last sealed segment stays: where the log stands is read from it.
        let Some((_, sealed)) = sealed.split_last() else { return Ok(0) };
        let folded = sealed.partition_point(|sealed| sealed.position.lsn <= base.lsn);
        let folded = sealed.get(..folded).unwrap_or_default();
        let Some(last) = folded.last() else { return Ok(0) };
        let before = self.runs();
        self.put_base(without(&base, folded, last))?;
        let mut dropped = lock(&self.dropped);
        let gone = |run: &&Run| run.ordinal() <= last.ordinal;
        dropped.segments.extend(before.segments.iter().take_while(gone).cloned());
        dropped
            .nodes
            .extend(before.nodes.values().filter(|node| node.record.span.first <= last.ordinal).cloned());
        Ok(folded.len() as u64)
    }

    /// Removes the files of dropped runs that nobody else has.
    fn remove_dropped(&self) -> Result<(), SyncError> {
        let mut dropped = lock(&self.dropped);
        let mut names = Vec::new();
        // Nodes hold their children: the higher ones go first.
        dropped.nodes.sort_by_key(|node| std::cmp::Reverse(node.record.span));
        dropped.nodes.retain(|node| {
            let used = Arc::strong_count(node) > 1;
            if !used {
                names.push(node.record.span.name());
            }
            used
        });
        dropped.segments.retain(|run| {
            let Run::Sealed(sealed) = run else { return false };
            let used = Arc::strong_count(sealed) > 1;
            if !used {
                names.push(segment_name(sealed.ordinal));
                names.push(leaf_name(sealed.ordinal));
                self.source.forget(crate::view::FileKey::Segment(sealed.ordinal));
                self.source.forget(crate::view::FileKey::Leaf(sealed.ordinal));
            }
            used
        });
        for name in names {
            self.remove_file(&name).map_err(SyncError::Failed)?;
        }
        Ok(())
    }
}

/// The last LSN up to `most` at which no line is open: of none that began up to there, base blocks can still come.
fn fold_point(history: &History, most: Lsn) -> Lsn {
    let mut point = most;
    while let Some(line) = history
        .gaps
        .iter()
        .filter(|gap| gap.line <= point && gap.to.is_none_or(|to| point < to))
        .map(|gap| gap.line)
        .min()
    {
        point = Lsn(line.0.saturating_sub(1));
    }
    point
}

/// The base once these segments are dropped: it keeps what later events and views need of them.
fn without(base: &Base, folded: &[Arc<Sealed>], last: &Sealed) -> Base {
    let mut history = History::default();
    let mut horizon: Option<Horizon> = None;
    let mut resizes: Vec<Event> = Vec::new();
    for event in base.events.iter().chain(folded.iter().flat_map(|sealed| &sealed.events)) {
        horizon = history.apply(event).or(horizon);
        if let What::Resize { disk, .. } = event.what {
            resizes.retain(|known| !matches!(known.what, What::Resize { disk: of, .. } if of == disk));
            resizes.push(event.clone());
        }
    }
    let mut first_lines = base.first_lines.clone();
    for (id, disk) in &history.disks {
        if let Some(line) = disk.first_line
            && !first_lines.iter().any(|(known, _)| known == id)
        {
            first_lines.push((*id, line));
        }
    }
    let mut events = resizes;
    events.extend(history.gaps.into_iter().filter(|gap| gap.to.is_none()).map(|gap| Event {
        lsn: gap.line,
        time_us: gap.from_time_us,
        what: What::LineStart {
            gap_from: gap.from,
            time_before_us: gap.from_time_us,
            cause: gap.cause,
            detail: gap.detail,
            disks: gap.disks,
        },
    }));
    events.extend(horizon.map(|horizon| Event {
        lsn: horizon.lsn,
        time_us: horizon.time_us,
        what: What::Horizon,
    }));
    Base {
        first_ordinal: last.ordinal + 1,
        last_hash: last.last_hash,
        floor_us: base.floor_us.max(last.summary.last_time_us),
        first_lines,
        events,
        ..base.clone()
    }
}
