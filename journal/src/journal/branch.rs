//! A journal as a branch of another, and its content as it is being written.

use std::sync::Arc;

use tidemark_proto::ids::{Lsn, VmId};

use super::open::{check_options, keys_for_writing, take_lock};
use super::{Journal, Manifest, lock};
use crate::branch::{BranchPoint, BranchStart, ImageStart};
use crate::error::OpenError;
use crate::manifest::{Base, DiskState, FIRST_OF_BRANCH, MANIFEST_FILE, ManifestLog, Record};
use crate::recovery::replay;
use crate::storage::Storage;
use crate::timeline::{Event, Horizon, What};
use crate::view::{View, ViewDisk};
use crate::{DiskRecord, ImageNames, Options};

/// What a journal is made with: its first point, and what lies below its empty log there.
struct Beginning<'a> {
    lsn: Lsn,
    time_us: u64,
    disks: &'a [DiskRecord],
    images: ImageNames,
}

impl Journal {
    /// A new branch in an empty directory, durable when this returns: its first point is `start`, its log is empty. What
    /// it reads below comes through [`Journal::set_images`], from a [`crate::branch::ParentView`].
    ///
    /// # Errors
    /// [`OpenError::Exists`] when a journal is there; see [`OpenError`].
    pub fn create_branch(
        storage: Arc<dyn Storage>,
        vm: VmId,
        options: Options,
        start: &BranchStart,
    ) -> Result<Self, OpenError> {
        let (lsn, time_us) = (start.point.lsn, start.time_us);
        let images = start.disks.iter().map(|disk| (disk.id, start.point.encode(disk.id))).collect();
        Self::create_above(storage, vm, options, Beginning { lsn, time_us, disks: &start.disks, images })
    }

    /// A new journal in an empty directory whose disks begin as images of the chunk store, durable when this returns: its
    /// first point is LSN 0, its log is empty. The images come through [`Journal::set_images`]; until this returned somebody
    /// else must keep their chunks.
    ///
    /// # Errors
    /// [`OpenError::Exists`] when a journal is there; see [`OpenError`].
    pub fn create_from_images(
        storage: Arc<dyn Storage>,
        vm: VmId,
        options: Options,
        start: &ImageStart,
    ) -> Result<Self, OpenError> {
        let disks: Vec<_> = start.disks.iter().map(|(disk, _)| disk.clone()).collect();
        let images = start.disks.iter().map(|(disk, image)| (disk.id, image.encode())).collect();
        let beginning = Beginning { lsn: Lsn::ZERO, time_us: start.time_us, disks: &disks, images };
        Self::create_above(storage, vm, options, beginning)
    }

    fn create_above(
        storage: Arc<dyn Storage>,
        vm: VmId,
        options: Options,
        start: Beginning<'_>,
    ) -> Result<Self, OpenError> {
        check_options(&options)?;
        let held = take_lock(storage.as_ref())?;
        if storage.list()?.iter().any(|name| name == MANIFEST_FILE) {
            return Err(OpenError::Exists);
        }
        let Beginning { lsn, time_us, disks, images } = start;
        let key = options.key;
        let keys = keys_for_writing(storage.as_ref(), vm, &options)?;
        let mut manifest = ManifestLog::create(storage.as_ref(), vm, key)?;
        manifest.append(&Record::Writer(1))?;
        manifest.append(&Record::HashedFrom(1))?;
        for disk in disks {
            let sizes = vec![(Lsn::ZERO, disk.size_bytes)];
            manifest.append(&Record::Disk(DiskState { record: disk.clone(), sizes }))?;
        }
        manifest.append(&Record::Base(Arc::new(Base {
            lsn,
            time_us,
            first_ordinal: FIRST_OF_BRANCH,
            last_hash: [0; 32],
            floor_us: time_us,
            first_lines: disks.iter().map(|disk| (disk.id, lsn)).collect(),
            events: vec![Event { lsn, time_us, what: What::Horizon }],
            images,
        })))?;
        manifest.sync()?;
        storage.sync_dir()?;
        let recovered = replay(storage.as_ref(), &key, manifest.state())?;
        let manifest = Manifest::Writer(Box::new(manifest));
        Ok(Self::assemble(storage, options, (vm, key, keys), manifest, recovered, None, Some(held)))
    }

    /// The point of another journal that lies below this one; `None` when it needs no other, as after its base was folded
    /// into images.
    #[must_use]
    pub fn branch_point(&self) -> Option<BranchPoint> {
        let (_, images) = self.base()?;
        images.iter().find_map(|(_, image)| BranchPoint::decode(image)).map(|(point, _)| point)
    }

    /// Whether anything of this journal still reads what the branch began with: its base, or a view opened before that was
    /// folded. Without, the parent's point may go.
    #[must_use]
    pub fn needs_parent(&self) -> bool {
        let live = self.live_images().images();
        let needed = live.iter().flatten().any(|(_, image)| BranchPoint::decode(image).is_some());
        needed || self.branch_point().is_some()
    }

    /// Everything appended so far, durable or not, and what is appended while the view is current. `last` is given back
    /// while it is: until a segment begins or is sealed. It shows no single moment, and gaps do not matter to it.
    #[must_use]
    pub fn live(&self, last: Option<View>) -> View {
        let runs = self.runs();
        if let Some(view) = last.filter(|view| view.generation() == runs.generation) {
            return view;
        }
        let lsn = Lsn(u64::MAX);
        let history = Arc::clone(&lock(&self.log).history);
        let known = history.disks.iter().filter(|(_, disk)| disk.first_line.is_some());
        let disks = known.map(|(id, disk)| ViewDisk { id: *id, size_bytes: disk.size_at(lsn) }).collect();
        View::new(Arc::clone(&self.source), &runs, lsn, disks)
    }

    /// The newest point that will be offered once what was appended is durable.
    pub(crate) fn appended_horizon(&self) -> Option<Horizon> {
        lock(&self.log).horizon
    }
}
