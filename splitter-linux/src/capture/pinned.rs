//! The pinned objects of one capture: what outlives the process, opened and mapped.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_proto::ids::CaptureId;

use super::error::CaptureError;
use super::layout::{
    ControlPage, DIRTY_PAGE_BYTES, LAYOUT_VERSION, META_MAGIC, MetaPage, SLOTS, SlotCounters, SlotMeta,
};
use super::sys::{self, Mapping};

/// Names in the pin folder. `meta` is pinned last: without it the folder is the rest of a start that was killed.
const RING: &str = "ring";
const CONTROL: &str = "control";
const COUNTERS: &str = "slots";
const DISKS: &str = "disks";
const DIRTY: &str = "dirty";
const META: &str = "meta";
const COMPLETE_PROGRAMS: [&str; 2] = ["prog_complete", "prog_complete2"];

/// Maps and programs of a capture, pinned or about to be.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// Locked for the life of this value: a single consumer.
    _lock: File,
    pub(crate) folder: PathBuf,
    pub(crate) objects: Objects,
    pub(crate) control: Arc<Mapping>,
    producer: Mapping,
    counters: Mapping,
    meta: Mapping,
}

/// The descriptors.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) ring: OwnedFd,
    pub(crate) control: OwnedFd,
    pub(crate) counters: OwnedFd,
    pub(crate) disks: OwnedFd,
    pub(crate) dirty: OwnedFd,
    pub(crate) meta: OwnedFd,
    /// The two that handle completions.
    pub(crate) complete_programs: Vec<OwnedFd>,
    /// Name and descriptor of each program and link, to be pinned; empty when they are already.
    pub(crate) programs: Vec<(String, OwnedFd)>,
}

/// What lies in a pin folder.
pub(crate) enum Found {
    /// Nothing, or the rest of a start that was killed.
    Nothing,
    /// A whole capture of this layout.
    Capture(Box<Pinned>),
    /// A capture of another layout.
    Incompatible(String),
}

impl Pinned {
    pub(crate) fn new(lock: File, folder: &Path, objects: Objects) -> Result<Self, CaptureError> {
        let map = |fd: &OwnedFd, bytes: usize, offset: u64, writable| {
            Mapping::new(fd.as_fd(), bytes.next_multiple_of(4096), offset, writable)
                .map_err(CaptureError::io("map the memory of the tap"))
        };
        Ok(Self {
            _lock: lock,
            folder: folder.to_owned(),
            control: Arc::new(map(&objects.control, size_of::<ControlPage>(), 0, true)?),
            producer: map(&objects.ring, 4096, 4096, false)?,
            counters: map(&objects.counters, size_of::<SlotCounters>() * usize::from(SLOTS), 0, true)?,
            meta: map(&objects.meta, size_of::<MetaPage>(), 0, true)?,
            objects,
        })
    }

    /// Opens what is pinned in a folder whose lock is held.
    pub(crate) fn open(lock: File, folder: &Path) -> Result<(Found, Option<File>), CaptureError> {
        let meta_fd = match sys::open_pinned(&folder.join(META)) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Found::Nothing, Some(lock))),
            Err(source) => return Err(CaptureError::Bpffs { path: folder.join(META), source }),
        };
        // The first two words are the same in every layout.
        let words = Mapping::new(meta_fd.as_fd(), 4096, 0, false)
            .map_err(CaptureError::io("map the pinned metadata"))?;
        let word = |at: usize| words.at::<AtomicU64>(at).map_or(0, |word| word.load(Ordering::Acquire));
        if word(0) != META_MAGIC || word(8) != LAYOUT_VERSION {
            let text = format!("layout {} instead of {LAYOUT_VERSION}", word(8));
            return Ok((Found::Incompatible(text), Some(lock)));
        }
        let open = |name: &str| {
            let path = folder.join(name);
            sys::open_pinned(&path).map_err(|source| CaptureError::Bpffs { path, source })
        };
        let objects = Objects {
            ring: open(RING)?,
            control: open(CONTROL)?,
            counters: open(COUNTERS)?,
            disks: open(DISKS)?,
            dirty: open(DIRTY)?,
            meta: meta_fd,
            complete_programs: COMPLETE_PROGRAMS.iter().map(|name| open(name)).collect::<Result<_, _>>()?,
            programs: Vec::new(),
        };
        Ok((Found::Capture(Box::new(Self::new(lock, folder, objects)?)), None))
    }

    /// Pins everything, the metadata last.
    pub(crate) fn pin_all(&mut self) -> Result<(), CaptureError> {
        let objects = &self.objects;
        let mut all: Vec<(&str, &OwnedFd)> = vec![
            (RING, &objects.ring),
            (CONTROL, &objects.control),
            (COUNTERS, &objects.counters),
            (DISKS, &objects.disks),
            (DIRTY, &objects.dirty),
        ];
        all.extend(objects.programs.iter().map(|(name, fd)| (name.as_str(), fd)));
        all.push((META, &objects.meta));
        for (name, fd) in all {
            let path = self.folder.join(name);
            sys::pin(fd.as_fd(), &path).map_err(|source| CaptureError::Bpffs { path, source })?;
        }
        self.objects.programs.clear();
        Ok(())
    }

    pub(crate) fn dirty_path(&self, slot: u16) -> PathBuf {
        self.folder.join(format!("dirty_{slot}"))
    }

    pub(crate) fn pending_path(&self, slot: u16) -> PathBuf {
        self.folder.join(format!("pending_{slot}"))
    }

    pub(crate) fn producer(&self) -> u64 {
        self.producer.at::<AtomicU64>(0).map_or(0, |position| position.load(Ordering::Acquire))
    }

    pub(crate) fn control_page(&self) -> &ControlPage {
        static NONE: ControlPage = ControlPage {
            state: AtomicU64::new(0),
            cause: AtomicU64::new(0),
            generation_start: AtomicU64::new(0),
            doubts: AtomicU64::new(0),
            misses: [const { AtomicU64::new(0) }; super::layout::CAUSES],
        };
        self.control.at(0).unwrap_or(&NONE)
    }

    pub(crate) fn meta_page(&self) -> Option<&MetaPage> {
        self.meta.at(0)
    }

    pub(crate) fn slot_meta(&self, slot: u16) -> Option<&SlotMeta> {
        self.meta_page()?.slots.get(usize::from(slot))
    }

    pub(crate) fn counters(&self, slot: u16) -> Option<&SlotCounters> {
        self.counters.at(usize::from(slot) * size_of::<SlotCounters>())
    }

    pub(crate) fn capture_id(&self) -> CaptureId {
        let mut id = [0; 16];
        if let Some(meta) = self.meta_page() {
            for (to, from) in id.chunks_exact_mut(8).zip(&meta.capture_id) {
                to.copy_from_slice(&from.load(Ordering::Acquire).to_le_bytes());
            }
        }
        CaptureId(id)
    }

    /// Returns when every program that began before the call has ended: the kernel waits for them when a map of maps
    /// changes (`maybe_wait_bpf_programs`), here an entry that nobody uses.
    pub(crate) fn wait_for_programs(&self) -> io::Result<()> {
        let unused = u32::from(super::layout::SELF_TEST_SLOT);
        let probe =
            sys::create_array("tide_barrier", u32::try_from(DIRTY_PAGE_BYTES).unwrap_or(4096), 1, true)?;
        use std::os::fd::AsRawFd;
        sys::map_set(self.objects.dirty.as_fd(), unused, probe.as_raw_fd().cast_unsigned())?;
        sys::map_delete(self.objects.dirty.as_fd(), unused)
    }
}

/// Removes every pin in a folder whose lock is held, then the folder. With the last link the programs detach.
pub(crate) fn remove_all(folder: &Path) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::Bpffs { path: folder.to_owned(), source };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    // The metadata first: a kill in between leaves "nothing", not half a capture.
    paths.sort_by_key(|path| path.file_name().is_none_or(|name| name != META));
    for path in paths {
        std::fs::remove_file(&path).map_err(|source| CaptureError::Bpffs { path, source })?;
    }
    Ok(())
}
