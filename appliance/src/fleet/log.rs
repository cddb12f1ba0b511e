//! One VM's journal as this process holds it: open, or down with the reason, and reopened after its disk failed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use thiserror::Error;
use tidemark_journal::attest::Signer;
use tidemark_journal::branch::{BranchPoint, ParentView};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::store::MasterKey;
use tidemark_journal::view::{BaseImages, Extent};
use tidemark_journal::{
    DiskRecord, Encryption, Journal, LiveImages, OpenError, Options, Position, SyncError,
};
use tidemark_proto::ids::{DiskId, VmId};
use tokio::sync::watch;

/// How long reopening waits for the last user of the old journal (a view being opened, say) before it gives up.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// The journal cannot be used now; the text says why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct LogDown(pub String);

/// What is durable, or that durability failed.
#[derive(Debug, Clone, Default)]
pub struct Durable {
    /// The end of what is durable.
    pub position: Position,
    /// The last sync failed, so the journal takes nothing more until it is opened again.
    pub failed: Option<Arc<str>>,
    /// The last sync found no space; the next may work.
    pub full: bool,
}

/// Keys that journals are opened with.
#[derive(Debug, Clone)]
pub struct LogKeys {
    /// Signs what the journals say of themselves.
    pub signer: Arc<dyn Signer>,
    /// Wraps the data keys of journals that are encrypted; without, new journals are not.
    pub master: Option<MasterKey>,
}

impl LogKeys {
    /// What a journal is opened or made with.
    pub(crate) fn options(&self) -> Options {
        let encryption = self.master.clone().map(|master| Encryption { master, seed: rand::random() });
        let signer = Some(Arc::clone(&self.signer));
        Options { key: rand::random(), signer, encryption, ..Options::default() }
    }
}

/// One VM's journal.
#[derive(Debug)]
pub struct VmLog {
    vm: VmId,
    dir: PathBuf,
    /// Reads what lies below the log.
    images: Arc<dyn BaseImages>,
    keys: LogKeys,
    slot: Mutex<Slot>,
    /// What views of journals that were closed may still read.
    past: Mutex<Vec<LiveImages>>,
    durable: watch::Sender<Durable>,
    /// In the committer's list of journals to sync.
    queued: AtomicBool,
    /// A call of [`VmLog::maintain`] is running.
    maintaining: AtomicBool,
    /// Something was committed that it may have missed.
    maintenance_due: AtomicBool,
    /// Of a clone of a VM or clone, the journal that it continues.
    below: OnceLock<Arc<VmLog>>,
    /// It is a clone's.
    of_clone: bool,
}

#[derive(Debug)]
enum Slot {
    Open { journal: Arc<Journal>, damage: Option<String> },
    Down(String),
}

/// What lies below a clone's log: the parent, or images in the chunk store.
#[derive(Debug)]
struct BelowBranch {
    parent: ParentView,
    images: Arc<dyn BaseImages>,
}

impl BelowBranch {
    fn of(&self, image: &[u8]) -> &dyn BaseImages {
        if BranchPoint::decode(image).is_some() { &self.parent } else { self.images.as_ref() }
    }
}

impl BaseImages for BelowBranch {
    fn read(
        &self,
        disk: DiskId,
        image: &[u8],
        sector: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.of(image).read(disk, image, sector, buffer)
    }

    fn extents(
        &self,
        disk: DiskId,
        image: &[u8],
        sector: u64,
        sectors: u64,
    ) -> Result<Vec<Extent>, Box<dyn std::error::Error + Send + Sync>> {
        self.of(image).extents(disk, image, sector, sectors)
    }

    fn let_go(&self) {
        self.parent.let_go();
        self.images.let_go();
    }
}

impl VmLog {
    /// The note under which a journal keeps its VM's name.
    pub(crate) const NAME_NOTE: &str = "vm.name";

    /// Opens the journal in `dir`, creating it when there is none. Blocks. A journal that cannot be opened is kept as
    /// down, so that one damaged VM does not stop the others.
    #[must_use]
    pub fn open(vm: VmId, dir: &Path, images: Arc<dyn BaseImages>, keys: LogKeys) -> Arc<Self> {
        let slot = open_slot(vm, dir, &images, &keys, true);
        Self::of(vm, dir, images, keys, slot, false)
    }

    /// Opens the journal of a clone, which is there. Blocks. One that continues another journal can be read once
    /// [`VmLog::continue_from`] was called.
    pub(crate) fn open_clone(id: VmId, dir: &Path, images: Arc<dyn BaseImages>, keys: LogKeys) -> Arc<Self> {
        let slot = open_slot(id, dir, &images, &keys, false);
        Self::of(id, dir, images, keys, slot, true)
    }

    fn of(
        vm: VmId,
        dir: &Path,
        images: Arc<dyn BaseImages>,
        keys: LogKeys,
        slot: Slot,
        of_clone: bool,
    ) -> Arc<Self> {
        let position = match &slot {
            Slot::Open { journal, .. } => journal.durable(),
            Slot::Down(_) => Position::default(),
        };
        let durable = watch::Sender::new(Durable { position, ..Durable::default() });
        Arc::new(Self {
            vm,
            dir: dir.to_path_buf(),
            images,
            keys,
            slot: Mutex::new(slot),
            past: Mutex::default(),
            durable,
            queued: AtomicBool::new(false),
            maintaining: AtomicBool::new(false),
            maintenance_due: AtomicBool::new(false),
            below: OnceLock::new(),
            of_clone,
        })
    }

    /// Who reads images for it.
    pub(crate) fn images(&self) -> Arc<dyn BaseImages> {
        Arc::clone(&self.images)
    }

    /// The journal that this clone continues, from now on also when it is opened again.
    pub(crate) fn continue_from(&self, parent: Arc<Self>) {
        let _ = self.below.set(parent);
        if let Ok(journal) = self.journal() {
            self.attach(&journal);
        }
    }

    fn attach(&self, journal: &Journal) {
        if let (Some(point), Some(below)) = (journal.branch_point(), self.below.get()) {
            let below = Arc::clone(below);
            let parent = ParentView::new(point, move |lsn| Ok(below.journal()?.view(lsn)?));
            // Once it is folded it has images of its own, and views from before still read the parent.
            journal.set_images(Arc::new(BelowBranch { parent, images: Arc::clone(&self.images) }));
        }
    }

    /// The journal, for reading and syncing. Do not keep it longer than one operation or one session.
    ///
    /// # Errors
    /// When it is down.
    pub fn journal(&self) -> Result<Arc<Journal>, LogDown> {
        match self.slot.lock().as_deref() {
            Ok(Slot::Open { journal, .. }) => Ok(Arc::clone(journal)),
            Ok(Slot::Down(reason)) => Err(LogDown(reason.clone())),
            Err(_) => Err(LogDown("its state was lost: restart the appliance".into())),
        }
    }

    /// What views of earlier openings may still read of images.
    #[must_use]
    pub fn past_images(&self) -> Vec<LiveImages> {
        self.past.lock().map(|past| past.clone()).unwrap_or_default()
    }

    /// The journal, for appending.
    ///
    /// # Errors
    /// When it is down or damaged.
    pub fn writable(&self) -> Result<Arc<Journal>, LogDown> {
        match self.problem() {
            Some(problem) => Err(LogDown(problem)),
            None => self.journal(),
        }
    }

    /// What keeps the journal from taking writes.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self.slot.lock().as_deref() {
            // A VM's session opens its journal again at once; of a clone nobody does.
            Ok(Slot::Open { journal, damage: None }) if self.of_clone && journal.is_poisoned() => Some(
                "its disk failed: what was written since the last flush may be lost; check the disk, then restart the \
                 appliance"
                    .to_owned(),
            ),
            Ok(Slot::Open { damage, .. }) => damage.clone(),
            Ok(Slot::Down(reason)) => Some(reason.clone()),
            Err(_) => Some("its state was lost: restart the appliance".into()),
        }
    }

    /// Keeps the VM's name in the journal, from which a lost catalog is rebuilt. Blocks.
    pub(crate) fn name_it(&self, name: &str) {
        let kept = self.writable().map_err(|down| down.0).and_then(|journal| {
            if journal.note(Self::NAME_NOTE).as_deref() == Some(name.as_bytes()) {
                return Ok(());
            }
            journal.put_note(Self::NAME_NOTE, name.as_bytes()).map_err(|error| error.to_string())
        });
        if let Err(problem) = kept {
            tracing::warn!(vm = name, problem, "cannot keep the VM's name in its journal");
        }
    }

    /// Notes the size that a durable resize gave a disk, for the next hello. Blocks. Until it is noted the splitter
    /// would only say it again.
    pub(crate) fn note_size(&self, disk: DiskId, size_bytes: u64) {
        let Ok(journal) = self.writable() else { return };
        let record = journal.disks().into_iter().find(|record| record.id == disk);
        if let Some(record) = record
            && let Err(error) = journal.put_disk(DiskRecord { size_bytes, ..record })
        {
            tracing::warn!(vm = %self.vm, %disk, %error, "cannot note a disk's new size");
        }
    }

    /// Builds and merges what the journal's indexes still need, beside the commits; one call at a time does it, also for
    /// those that come meanwhile. Blocks.
    pub(crate) fn maintain(&self) {
        self.maintenance_due.store(true, Ordering::SeqCst);
        while self.maintenance_due.load(Ordering::SeqCst) && !self.maintaining.swap(true, Ordering::SeqCst) {
            self.maintenance_due.store(false, Ordering::SeqCst);
            if let Ok(journal) = self.writable()
                && let Err(error) = journal.maintain()
            {
                tracing::warn!(vm = %self.vm, %error, "cannot index closed segments");
            }
            self.maintaining.store(false, Ordering::SeqCst);
        }
    }

    /// Signs where the journal stands, if it went on. Blocks.
    pub(crate) fn attest(&self) {
        if let Ok(journal) = self.writable()
            && let Err(error) = journal.attest()
        {
            tracing::warn!(vm = %self.vm, %error, "cannot sign the state of the journal");
        }
    }

    /// The VM's name as the journal has it.
    #[must_use]
    pub(crate) fn noted_name(&self) -> Option<String> {
        String::from_utf8(self.journal().ok()?.note(Self::NAME_NOTE)?).ok()
    }

    /// Follows what is durable.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Durable> {
        self.durable.subscribe()
    }

    /// Marks the journal as waiting for a sync; false when it already was.
    pub(crate) fn queue(&self) -> bool {
        !self.queued.swap(true, Ordering::AcqRel)
    }

    /// Makes everything appended so far durable and tells those who watch. Blocks.
    pub(crate) fn sync(&self) {
        // Cleared first: what is appended from here on may miss this sync and queues the journal again.
        self.queued.store(false, Ordering::Release);
        let Ok(journal) = self.journal() else { return };
        match journal.sync() {
            Ok(position) => {
                self.durable.send_replace(Durable { position, failed: None, full: false });
            }
            Err(SyncError::Full) => self.durable.send_modify(|durable| durable.full = true),
            Err(error) => {
                tracing::error!(vm = %self.vm, %error, "the journal's disk failed");
                self.durable.send_modify(|durable| durable.failed = Some(error.to_string().into()));
            }
        }
    }

    /// Closes the journal and opens it again, once nobody uses it: what reached the disk is then known. Blocks.
    pub(crate) fn reopen(&self) {
        let old = match self.slot.lock() {
            Ok(mut slot) => {
                std::mem::replace(&mut *slot, Slot::Down("the journal is being opened again".into()))
            }
            Err(_) => return,
        };
        if let Slot::Open { journal, .. } = old {
            if let Ok(mut past) = self.past.lock() {
                past.retain(|live| !live.images().is_empty());
                past.push(journal.live_images());
            }
            let weak = Arc::downgrade(&journal);
            drop(journal);
            let deadline = Instant::now() + RELEASE_TIMEOUT;
            while weak.strong_count() > 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let slot = open_slot(self.vm, &self.dir, &self.images, &self.keys, !self.of_clone);
        if let Slot::Open { journal, .. } = &slot {
            self.attach(journal);
            let position = journal.durable();
            self.durable.send_replace(Durable { position, ..Durable::default() });
        }
        if let Ok(mut current) = self.slot.lock() {
            *current = slot;
        }
    }

    /// Closes the journal for good, with a clean end when nobody else uses it. Blocks.
    pub(crate) fn close(&self, reason: &str) {
        let old = match self.slot.lock() {
            Ok(mut slot) => std::mem::replace(&mut *slot, Slot::Down(reason.to_owned())),
            Err(_) => return,
        };
        if let Slot::Open { journal, .. } = old
            && let Some(journal) = Arc::into_inner(journal)
            && let Err(error) = journal.close()
        {
            tracing::warn!(vm = %self.vm, %error, "the journal did not close cleanly");
        }
    }
}

fn open_slot(vm: VmId, dir: &Path, images: &Arc<dyn BaseImages>, keys: &LogKeys, create: bool) -> Slot {
    match open_journal(vm, dir, keys, create) {
        Ok((journal, damage)) => {
            journal.set_images(Arc::clone(images));
            Slot::Open { journal: Arc::new(journal), damage }
        }
        Err(error) => {
            tracing::error!(%vm, dir = %dir.display(), %error, "cannot open the journal");
            Slot::Down(format!("its journal cannot be opened: {error}"))
        }
    }
}

fn open_journal(
    vm: VmId,
    dir: &Path,
    keys: &LogKeys,
    create: bool,
) -> Result<(Journal, Option<String>), OpenError> {
    let options = keys.options();
    if dir.exists() {
        let storage = Arc::new(OsStorage::open(dir).map_err(OpenError::Storage)?);
        match Journal::open(storage, options.clone()) {
            Ok((journal, report)) => {
                if report.cut_bytes > 0 || !report.moved_aside.is_empty() {
                    tracing::info!(%vm, ?report, "journal recovered");
                }
                let damage = report.damage.map(|damage| {
                    tracing::error!(%vm, %damage, "the journal is damaged and now read-only");
                    format!("its journal is damaged ({damage}): points before the damage can be recovered")
                });
                return Ok((journal, damage));
            }
            Err(OpenError::Missing) if create => {}
            Err(error) => return Err(error),
        }
    } else if !create {
        return Err(OpenError::Missing);
    }
    std::fs::create_dir_all(dir).map_err(|error| {
        OpenError::Storage(tidemark_journal::storage::StorageError::os("create", "journal", error))
    })?;
    let storage = Arc::new(OsStorage::create(dir).map_err(OpenError::Storage)?);
    Ok((Journal::create(storage, vm, options)?, None))
}
