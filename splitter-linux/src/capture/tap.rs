//! The capture as a whole: loaded or found pinned, its disks, and what it hands to the engine.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidemark_proto::ids::CaptureId;
use tidemark_proto::v1::GapCause;
use tidemark_splitter_core::capture::{Ring, Slot};
use uuid::Uuid;

use super::calibrate::{self, Source};
use super::control::TapControl;
use super::dirty::TapMaps;
use super::error::CaptureError;
use super::layout::{
    IDENTITY_WORDS, LAYOUT_VERSION, META_MAGIC, MetaPage, SELF_TEST_SLOT, SLOT_FREE, SLOT_RETIRED, SLOT_USED,
    SlotMeta,
};
use super::pinned::{self, Found, Pinned};
use super::ring::TapRing;
use super::scratch::Scratch;
use super::spool_memory::SpoolMemory;
use super::witness::{self, Witnesses};
use super::{bpffs, self_test, sys};
use crate::disks::{self, Disk};

/// Smallest ring: two of the largest records fit.
pub const RING_BYTES_MIN: u64 = 16 << 20;
/// Largest ring: the kernel takes a 32-bit size that is a power of two.
pub const RING_BYTES_MAX: u64 = 1 << 31;

/// How capture is to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the pin folder below the root: see [`name_for`](super::name_for).
    pub name: String,
    /// Bytes of the ring, rounded up to a power of two between [`RING_BYTES_MIN`] and [`RING_BYTES_MAX`]. It holds
    /// everything that is not acknowledged yet, so it is sized in seconds of writing. A capture that runs keeps its.
    pub ring_bytes: u64,
    /// Only this way to the page-address constant, for tests.
    pub constant_from: Option<Source>,
}

/// Where the capture came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Loaded now: nothing was pinned, or the rest of a start that was killed.
    Loaded {
        /// How the page-address constant was found.
        constant_from: Source,
    },
    /// Found running: it captured on while no splitter ran.
    Reattached,
    /// Loaded now in place of a capture of another layout, whose unsent writes are lost.
    Replaced {
        /// What was wrong with it.
        reason: String,
    },
}

/// A disk that the capture holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedDisk {
    /// Its place in the kernel's tables.
    pub slot: Slot,
    /// What names it: see [`disks::Disk::identity`].
    pub identity: String,
    /// As `dev_t` in the kernel.
    pub device: u32,
    /// Counts every disk that appeared since boot: another number means another disk under the same name.
    pub disk_sequence: u64,
    /// Size of the dirty maps.
    pub sectors: u64,
}

/// The eBPF tap of one splitter.
///
/// The three parts are what the engine works with; they are public so that they can be borrowed apart. Dropping the
/// value stops nothing: programs, ring and maps are pinned, and the next [`LinuxCapture::open`] finds them running.
/// [`unload`] ends a capture.
#[derive(Debug)]
pub struct LinuxCapture {
    /// The ring's reader.
    pub ring: TapRing,
    /// Modes, generations and the witness.
    pub control: TapControl,
    /// The dirty maps.
    pub maps: TapMaps,
    pinned: Arc<Pinned>,
}

impl LinuxCapture {
    /// Opens the pinned capture, or loads one: finds the page-address constant, runs the self-test, and pins. A
    /// capture that was loaded now is in dirty-only mode and has no disk.
    ///
    /// # Errors
    /// When the machine is refused, another splitter holds the capture, the kernel refuses a program, or the
    /// self-test fails. Nothing is left behind then.
    pub fn open(settings: &Settings) -> Result<(Self, Origin), CaptureError> {
        disks::check_machine()?;
        let folder = bpffs::folder()?.join(&settings.name);
        match std::fs::create_dir(&folder) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CaptureError::Bpffs { path: folder, source });
            }
            _ => {}
        }
        let lock = take_lock(&folder)?;
        let (lock, reason) = match Pinned::open(lock, &folder)? {
            (Found::Capture(pinned), _) => {
                return Self::attach(Arc::new(*pinned)).map(|capture| (capture, Origin::Reattached));
            }
            (Found::Nothing, Some(lock)) => (lock, None),
            (Found::Incompatible(reason), Some(lock)) => (lock, Some(reason)),
            (_, None) => return Err(CaptureError::Locked(folder)),
        };
        pinned::remove_all(&folder)?;
        let (pinned, constant_from) = load(lock, &folder, settings).inspect_err(|_| {
            let _ = std::fs::remove_dir(&folder);
        })?;
        let capture = Self::from_parts(Arc::new(pinned))?;
        let origin = reason.map_or(Origin::Loaded { constant_from }, |reason| Origin::Replaced { reason });
        Ok((capture, origin))
    }

    fn from_parts(pinned: Arc<Pinned>) -> Result<Self, CaptureError> {
        let ring = new_ring(&pinned)?;
        Ok(Self {
            ring,
            control: TapControl { pinned: Arc::clone(&pinned), witnesses: Witnesses::default() },
            maps: TapMaps::new(Arc::clone(&pinned)),
            pinned,
        })
    }

    fn attach(pinned: Arc<Pinned>) -> Result<Self, CaptureError> {
        let mut capture = Self::from_parts(pinned)?;
        for disk in capture.disks() {
            capture.maps.attach(disk.slot.0, disk.sectors)?;
            capture.watch(&disk);
        }
        let pinned = Arc::clone(&capture.pinned);
        for slot in 0..SELF_TEST_SLOT {
            let Some(meta) = pinned.slot_meta(slot) else { continue };
            let device = u32::try_from(meta.device.load(Ordering::Acquire)).unwrap_or(0);
            let unfinished = match meta.state.load(Ordering::Acquire) {
                SLOT_FREE => device != 0,
                SLOT_RETIRED => meta.retired_at.load(Ordering::Acquire) == u64::MAX,
                _ => false,
            };
            if unfinished {
                capture.retire(slot, device, meta)?;
            }
        }
        Ok(capture)
    }

    fn watch(&mut self, disk: &CapturedDisk) {
        let (major, minor) = (disk.device >> 20, disk.device & 0xf_ffff);
        let sys_path = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        self.control.witnesses.add(disk.slot.0, sys_path);
    }

    /// Names this loaded capture.
    #[must_use]
    pub(crate) fn capture_words(&self) -> [u64; 2] {
        let id = self.capture_id().0;
        let word =
            |at: usize| id.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u64::from_le_bytes);
        [word(0), word(8)]
    }

    /// The identity of this capture: another one after every load.
    #[must_use]
    pub fn capture_id(&self) -> CaptureId {
        self.pinned.capture_id()
    }

    /// The spool's memory; `None` when this capture never had a spool.
    ///
    /// # Errors
    /// When it is not accessible.
    pub fn find_spool_memory(&self) -> io::Result<Option<SpoolMemory>> {
        SpoolMemory::find(&self.pinned.folder)
    }

    /// The spool's memory, made if need be.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn spool_memory(&self) -> io::Result<SpoolMemory> {
        SpoolMemory::find_or_make(&self.pinned.folder)
    }

    /// The disks it holds.
    #[must_use]
    pub fn disks(&self) -> Vec<CapturedDisk> {
        (0..SELF_TEST_SLOT).filter_map(|slot| captured(slot, self.pinned.slot_meta(slot)?)).collect()
    }

    /// Notes the page-address constant for a service with fewer rights: see
    /// [`note_page_constant`](super::note_page_constant).
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn note_page_constant(&self) -> io::Result<()> {
        let meta = self.pinned.meta_page();
        meta.map_or(Ok(()), |meta| calibrate::note(meta.page_constant.load(Ordering::Acquire)))
    }

    /// How often a change of that disk was marked in its dirty map instead of being captured whole, since the tap was
    /// loaded; all of a slot's disks together.
    #[must_use]
    pub fn marks(&self, slot: Slot) -> u64 {
        self.pinned.counters(slot.0).map_or(0, |counters| counters.marks.load(Ordering::Acquire))
    }

    /// Captures a disk from now on, and returns its slot with whether it is new here. A disk that is held already
    /// keeps its slot and its maps. Of a new one every block is pending.
    ///
    /// A disk of the same identity that came back as another device (see [`CapturedDisk::disk_sequence`]) was not
    /// captured meanwhile; remove it first and add it as new.
    ///
    /// # Errors
    /// When there is no free slot or no memory for the maps.
    pub fn add_disk(&mut self, disk: &Disk) -> Result<(Slot, bool), CaptureError> {
        let same =
            |held: &CapturedDisk| held.identity == disk.identity && held.disk_sequence == disk.disk_sequence;
        if let Some(held) = self.disks().into_iter().find(same) {
            return Ok((held.slot, false));
        }
        let slot = self.free_slot()?;
        let pinned = Arc::clone(&self.pinned);
        let (Some(meta), Some(counters)) = (pinned.slot_meta(slot), pinned.counters(slot)) else {
            return Err(CaptureError::NoDisk(slot));
        };
        for counter in
            [&counters.completed_write_sectors, &counters.completed_discard_sectors, &counters.whole]
        {
            counter.store(0, Ordering::Release);
        }
        store_identity(meta, &disk.identity)?;
        self.maps.create(slot, disk.sectors)?;
        self.maps.mark_all(Slot(slot));
        meta.device.store(u64::from(disk.device), Ordering::Release);
        meta.disk_sequence.store(disk.disk_sequence, Ordering::Release);
        meta.sectors.store(disk.sectors, Ordering::Release);
        // In this order, so that a slot which counts as used is captured and has its pending bits, killed or not.
        sys::map_set(pinned.objects.disks.as_fd(), disk.device, u32::from(slot))
            .map_err(CaptureError::io("register a disk with the tap"))?;
        meta.state.store(SLOT_USED, Ordering::Release);
        pinned.wait_for_programs().map_err(CaptureError::io("wait for running programs"))?;
        if let Some(held) = captured(slot, meta) {
            self.watch(&held);
        }
        let sys_path = disk.sys_path();
        witness::start(&sys_path, counters, meta).map_err(CaptureError::io("read the counters of a disk"))?;
        Ok((Slot(slot), true))
    }

    fn free_slot(&self) -> Result<u16, CaptureError> {
        let consumer = self.ring.consumer();
        let free = |slot: &u16| {
            self.pinned.slot_meta(*slot).is_some_and(|meta| match meta.state.load(Ordering::Acquire) {
                SLOT_FREE => true,
                SLOT_RETIRED => meta.retired_at.load(Ordering::Acquire) <= consumer,
                _ => false,
            })
        };
        (0..SELF_TEST_SLOT).find(free).ok_or(CaptureError::TooManyDisks { limit: SELF_TEST_SLOT })
    }

    /// Stops capturing a disk and frees its maps. Its slot is used again only when the ring was consumed beyond its
    /// last record.
    ///
    /// # Errors
    /// When the slot holds no disk, or the kernel refuses.
    pub fn remove_disk(&mut self, slot: Slot) -> Result<(), CaptureError> {
        let pinned = Arc::clone(&self.pinned);
        let meta = pinned.slot_meta(slot.0).ok_or(CaptureError::NoDisk(slot.0))?;
        let held = captured(slot.0, meta).ok_or(CaptureError::NoDisk(slot.0))?;
        meta.retired_at.store(u64::MAX, Ordering::Release);
        meta.state.store(SLOT_RETIRED, Ordering::Release);
        self.control.witnesses.remove(slot.0);
        self.retire(slot.0, held.device, meta)
    }

    /// Takes a slot that is not used any more from the kernel; also what a process killed on the way left to do.
    fn retire(&mut self, slot: u16, device: u32, meta: &SlotMeta) -> Result<(), CaptureError> {
        // Another disk may have taken the device number.
        let disks = self.pinned.objects.disks.as_fd();
        if sys::map_get(disks, device).map_err(CaptureError::io("find a disk"))? == Some(u32::from(slot)) {
            sys::map_delete(disks, device).map_err(CaptureError::io("remove a disk from the tap"))?;
        }
        self.maps.remove(slot)?;
        self.pinned.wait_for_programs().map_err(CaptureError::io("wait for running programs"))?;
        meta.retired_at.store(self.pinned.producer(), Ordering::Release);
        meta.state.store(SLOT_RETIRED, Ordering::Release);
        Ok(())
    }

    /// Gives a disk that changed its size new maps with the old bits.
    ///
    /// # Errors
    /// When the slot holds no disk or memory is short.
    pub fn resize_disk(&mut self, slot: Slot, sectors: u64) -> Result<(), CaptureError> {
        let pinned = Arc::clone(&self.pinned);
        let meta = pinned.slot_meta(slot.0).ok_or(CaptureError::NoDisk(slot.0))?;
        let before = meta.sectors.load(Ordering::Acquire);
        // The mapping must never be longer than the map: the smaller size while they change.
        meta.sectors.store(before.min(sectors), Ordering::Release);
        self.maps.resize(slot.0, sectors)?;
        meta.sectors.store(sectors, Ordering::Release);
        Ok(())
    }
}

fn captured(slot: u16, meta: &SlotMeta) -> Option<CapturedDisk> {
    (meta.state.load(Ordering::Acquire) == SLOT_USED).then(|| CapturedDisk {
        slot: Slot(slot),
        identity: load_identity(meta),
        device: u32::try_from(meta.device.load(Ordering::Acquire)).unwrap_or(0),
        disk_sequence: meta.disk_sequence.load(Ordering::Acquire),
        sectors: meta.sectors.load(Ordering::Acquire),
    })
}

fn store_identity(meta: &SlotMeta, identity: &str) -> Result<(), CaptureError> {
    if identity.len() > IDENTITY_WORDS * 8 {
        let source =
            io::Error::other(format!("the identity of the disk is longer than {} bytes", IDENTITY_WORDS * 8));
        return Err(CaptureError::Io { action: "note a disk".to_owned(), source });
    }
    meta.identity_length.store(identity.len() as u64, Ordering::Release);
    for (word, bytes) in meta.identity.iter().zip(identity.as_bytes().chunks(8)) {
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(bytes) {
            *to = *from;
        }
        word.store(u64::from_le_bytes(value), Ordering::Release);
    }
    Ok(())
}

fn load_identity(meta: &SlotMeta) -> String {
    let length = usize::try_from(meta.identity_length.load(Ordering::Acquire)).unwrap_or(0);
    let bytes: Vec<u8> = meta
        .identity
        .iter()
        .flat_map(|word| word.load(Ordering::Acquire).to_le_bytes())
        .take(length)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn take_lock(folder: &Path) -> Result<std::fs::File, CaptureError> {
    sys::lock(folder).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => CaptureError::Locked(folder.to_owned()),
        _ => CaptureError::Bpffs { path: folder.to_owned(), source },
    })
}

fn new_ring(pinned: &Arc<Pinned>) -> Result<TapRing, CaptureError> {
    let size = pinned.meta_page().map_or(0, |meta| meta.ring_bytes.load(Ordering::Acquire));
    TapRing::new(&pinned.objects.ring, Arc::clone(&pinned.control), pinned.capture_id(), size)
        .map_err(CaptureError::io("map the ring"))
}

/// Loads, tests and pins.
fn load(lock: std::fs::File, folder: &Path, settings: &Settings) -> Result<(Pinned, Source), CaptureError> {
    let ring_bytes = settings.ring_bytes.clamp(RING_BYTES_MIN, RING_BYTES_MAX).next_power_of_two();
    let scratch = Scratch::new().map_err(CaptureError::io("make a scratch loop device for the self-test"))?;
    let (page_constant, constant_from) = calibrate::page_constant(&scratch, settings.constant_from)?;
    let meta_bytes = u32::try_from(size_of::<MetaPage>()).unwrap_or(u32::MAX);
    let meta = sys::create_array("tide_meta", meta_bytes, 1, false)
        .map_err(CaptureError::io("allocate the metadata"))?;
    let objects = super::load::tap(page_constant, ring_bytes, meta)?;
    let pinned = Arc::new(Pinned::new(lock, folder, objects)?);
    if let Some(page) = pinned.meta_page() {
        let id = Uuid::new_v4().into_bytes();
        for (word, bytes) in page.capture_id.iter().zip(id.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Release);
        }
        page.ring_bytes.store(ring_bytes, Ordering::Release);
        page.page_constant.store(page_constant, Ordering::Release);
        page.layout_version.store(LAYOUT_VERSION, Ordering::Release);
        page.magic.store(META_MAGIC, Ordering::Release);
    }
    pinned
        .control_page()
        .cause
        .store(u64::from((GapCause::CaptureRestarted as i32).unsigned_abs()), Ordering::Release);
    let mut ring = new_ring(&pinned)?;
    self_test::run(&pinned, &mut ring, &scratch)?;
    drop(ring);
    pinned.control_page().generation_start.store(pinned.producer(), Ordering::Release);
    let mut pinned =
        Arc::into_inner(pinned).ok_or_else(|| CaptureError::SelfTest("still in use".to_owned()))?;
    if let Err(error) = pinned.pin_all() {
        let _ = pinned::remove_all(folder);
        return Err(error);
    }
    Ok((pinned, constant_from))
}

/// Ends the capture of that name: detaches the programs and frees ring and maps. What was not sent is lost. Returns
/// whether there was one.
///
/// # Errors
/// When a splitter is using it, or a pin cannot be removed.
pub fn unload(name: &str) -> Result<bool, CaptureError> {
    let folder = bpffs::folder()?.join(name);
    if !folder.exists() {
        return Ok(false);
    }
    let lock = take_lock(&folder)?;
    pinned::remove_all(&folder)?;
    std::fs::remove_dir(&folder).map_err(|source| CaptureError::Bpffs { path: folder.clone(), source })?;
    drop(lock);
    // Only succeeds where no other splitter has a capture.
    let _ = folder.parent().map(std::fs::remove_dir);
    Ok(true)
}
