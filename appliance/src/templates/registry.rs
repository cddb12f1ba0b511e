//! All published templates whose content is known.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};

use tidemark_journal::image::ImageReader;
use tidemark_journal::store::ChunkStore;
use tidemark_proto::limits::PIECE_BYTES;
use tidemark_proto::pieces::HashKey;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Source, TemplateIndex, limits};
use crate::data_dir::{FileError, read_bytes, write_private};
use crate::objects::{Object, Objects};

/// The file of the key, beside the indexes.
const KEY_FILE: &str = "key";

/// One template whose content is known. Holding it keeps the content from collections.
#[derive(Debug)]
pub struct Template {
    object: Arc<Object>,
    objects: Arc<Objects>,
    reader: ImageReader,
    index: TemplateIndex,
    /// That it cannot be read was said already.
    complained: AtomicBool,
}

impl Template {
    /// Which object it is.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.object.id
    }

    /// Whether splitters may still be told of it.
    fn is_published(&self) -> bool {
        self.objects.is_published(&self.object)
    }

    /// Fills the buffer from an offset on, with zeroes beyond the end. False when nothing of it may be told any more, or it
    /// cannot be read. Blocks.
    #[must_use]
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let size = self.reader.image().size_bytes();
        if offset >= size || !self.is_published() {
            return false;
        }
        let inside = usize::try_from(size - offset).unwrap_or(usize::MAX).min(buffer.len());
        let (content, beyond) = buffer.split_at_mut(inside);
        beyond.fill(0);
        match self.reader.read_at(offset, content) {
            Ok(()) => true,
            Err(error) => {
                if !self.complained.swap(true, Ordering::Relaxed) {
                    let name = &self.object.name;
                    tracing::error!(%error, name, "a template cannot be read: what is damaged of it travels");
                }
                false
            }
        }
    }
}

/// What published templates have.
#[derive(Debug)]
pub struct Templates {
    folder: PathBuf,
    store: Arc<ChunkStore>,
    objects: Arc<Objects>,
    key: HashKey,
    known: RwLock<Vec<Arc<Template>>>,
    /// One at a time reads templates, also for those that come meanwhile.
    building: Mutex<()>,
    due: AtomicBool,
    stopping: CancellationToken,
}

impl Templates {
    /// Opens the folder of the indexes. Nothing is known before [`Templates::build`].
    ///
    /// # Errors
    /// When the key cannot be read or made.
    pub fn open(
        folder: &Path,
        store: Arc<ChunkStore>,
        objects: Arc<Objects>,
        stopping: CancellationToken,
    ) -> Result<Self, FileError> {
        let path = folder.join(KEY_FILE);
        let kept = if path.exists() { HashKey::from_bytes(&read_bytes(&path)?) } else { None };
        let key = match kept {
            Some(key) => key,
            None => {
                // Indexes under a lost key are made anew.
                let key = HashKey(rand::random());
                write_private(&path, &key.0)?;
                key
            }
        };
        let folder = folder.to_path_buf();
        let (known, building) = (RwLock::default(), Mutex::default());
        Ok(Self { folder, store, objects, key, known, building, due: AtomicBool::new(false), stopping })
    }

    /// The key of hashes by which content is found. It is no secret to those who may ask.
    #[must_use]
    pub fn key(&self) -> HashKey {
        self.key
    }

    /// Whether there is anything to be told.
    #[must_use]
    pub fn any(&self) -> bool {
        self.objects.any_published()
    }

    /// All that are known now, those published first before others.
    #[must_use]
    pub fn known(&self) -> Vec<Arc<Template>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Published templates that are not known yet.
    #[must_use]
    pub fn missing(&self) -> usize {
        let known = self.known();
        let published = self.objects.published_templates();
        published.iter().filter(|object| known.iter().all(|template| template.id() != object.id)).count()
    }

    /// Finds a whole chunk by its hash, and verifies it. Blocks.
    #[must_use]
    pub fn find(&self, hash: &[u8; 32]) -> Option<Source> {
        let mut content = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX)];
        self.known().into_iter().find_map(|template| {
            let offset = u64::from(template.index.find(hash)?).saturating_mul(PIECE_BYTES);
            Some(self.source(&template, offset, hash)).filter(|source| source.read(&mut content))
        })
    }

    /// What would lie at a place of a template, not verified.
    pub(crate) fn source(&self, template: &Arc<Template>, offset: u64, hash: &[u8; 32]) -> Source {
        Source::new(template, offset, self.key, *hash)
    }

    /// Lets go of what is not published any more. That nobody is told of it does not wait for this.
    pub fn forget_unpublished(&self) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|template| template.is_published());
    }

    /// Makes known what is published: from the file of its index, or by reading it. Blocks, for as long as that takes; while
    /// another call is at it, that one does this one's work.
    pub fn build(&self) {
        self.due.store(true, Ordering::SeqCst);
        while self.due.load(Ordering::SeqCst) {
            let _building = match self.building.try_lock() {
                Ok(building) => building,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            self.due.store(false, Ordering::SeqCst);
            self.build_once();
        }
    }

    fn build_once(&self) {
        self.forget_unpublished();
        for object in self.objects.published_templates() {
            let known = self.known();
            if self.stopping.is_cancelled() {
                return;
            }
            if known.iter().any(|template| template.id() == object.id) {
                continue;
            }
            let chunks: usize = known.iter().map(|template| template.index.chunks()).sum();
            let most = limits::CHUNKS_MAX.saturating_sub(chunks);
            if known.len() >= limits::TEMPLATES_MAX || most == 0 {
                tracing::warn!(
                    name = object.name,
                    "too many templates are published: this one is not known to splitters"
                );
                continue;
            }
            if let Some(template) = self.learn(object, most) {
                self.known.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(template));
                self.forget_unpublished();
            }
        }
        self.remove_stale();
    }

    fn learn(&self, object: Arc<Object>, most: usize) -> Option<Template> {
        let reader = ImageReader::new(Arc::clone(&self.store), object.image.clone());
        let path = self.folder.join(object.id.to_string());
        let kept =
            fs::read(&path).ok().and_then(|bytes| TemplateIndex::decode(&bytes, &object, &self.key).ok());
        let index = match kept.filter(|index| index.chunks() <= most) {
            Some(index) => index,
            None => {
                let stop = || self.stopping.is_cancelled() || !self.objects.is_published(&object);
                let built =
                    TemplateIndex::build(&reader, &self.key, most, &stop).unwrap_or_else(|error| {
                        tracing::error!(%error, name = object.name, "a published template cannot be read");
                        None
                    })?;
                self.keep(&built, &object, &path);
                built
            }
        };
        tracing::info!(
            name = object.name,
            chunks = index.chunks(),
            "a published template is known to splitters"
        );
        let objects = Arc::clone(&self.objects);
        Some(Template { object, objects, reader, index, complained: AtomicBool::new(false) })
    }

    /// Keeps an index for the next start. Without it that reads the template again.
    fn keep(&self, index: &TemplateIndex, object: &Object, path: &Path) {
        if !index.is_complete() {
            tracing::warn!(
                name = object.name,
                "a published template is too large to be known as a whole: the rest travels"
            );
            return;
        }
        if let Err(error) = write_private(path, &index.encode(object, &self.key)) {
            tracing::warn!(%error, name = object.name, "cannot keep the index of a template");
        }
    }

    /// Removes the files of templates that are not published any more, and what a killed process half wrote.
    fn remove_stale(&self) {
        let published = self.objects.published_templates();
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let wanted = published.iter().any(|object| *name == object.id.to_string());
            if !wanted
                && name != KEY_FILE
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(%error, path = %entry.path().display(), "cannot remove the index of a template");
            }
        }
    }
}
