//! Uploads under way, and interrupted ones that wait to be continued.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemark_journal::store::{ChunkStore, KeyDomain};
use tokio::sync::{mpsc, oneshot};

use super::upload::{Order, Progress, begin};
use super::{NewObject, Object, ObjectError, Objects, Piece, limits};

/// Takes objects in.
#[derive(Debug)]
pub struct Uploads {
    store: Arc<ChunkStore>,
    domain: KeyDomain,
    objects: Arc<Objects>,
    waiting: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the object's name.
    uploads: HashMap<String, Upload>,
    last: u64,
}

#[derive(Debug)]
struct Upload {
    /// Changes whenever somebody takes it over or lets it go.
    turn: u64,
    /// Which file it is of.
    source: Vec<u8>,
    size_bytes: u64,
    /// `None` while somebody feeds it.
    idle: Option<Idle>,
}

#[derive(Debug)]
struct Idle {
    orders: mpsc::Sender<Order>,
    progress: Arc<Progress>,
    sent: u64,
}

/// An upload that its holder feeds. Dropping it leaves it to be continued.
#[derive(Debug)]
pub struct Attached {
    uploads: Arc<Uploads>,
    /// As the one who feeds it now wants it.
    new: NewObject,
    turn: u64,
    orders: Option<mpsc::Sender<Order>>,
    progress: Arc<Progress>,
    sent: u64,
}

impl Uploads {
    /// Uploads into a domain of a store.
    #[must_use]
    pub fn new(store: Arc<ChunkStore>, domain: KeyDomain, objects: Arc<Objects>) -> Self {
        Self { store, domain, objects, waiting: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an upload, or goes on with an interrupted one of the same `source` and size. From within a run time.
    ///
    /// # Errors
    /// When the object cannot be, its name is taken, an upload of it is under way, or there are too many.
    pub fn attach(self: &Arc<Self>, new: &NewObject, source: &[u8]) -> Result<Attached, ObjectError> {
        new.check()?;
        self.objects.check_free(&new.name)?;
        let mut state = self.state();
        state.last += 1;
        let turn = state.last;
        if let Some(upload) = state.uploads.get_mut(&new.name) {
            let Some(idle) = upload.idle.take() else { return Err(ObjectError::Busy(new.name.clone())) };
            let same =
                upload.source == source && upload.size_bytes == new.size_bytes && !idle.orders.is_closed();
            if same {
                upload.turn = turn;
                return Ok(self.attached(new, turn, idle));
            }
            // Of another file, or failed: its thread ends with the sender.
            state.uploads.remove(&new.name);
        }
        if state.uploads.len() >= limits::UPLOADS_MAX {
            return Err(ObjectError::Limit(format!(
                "{} uploads are under way or were interrupted less than {} minutes ago: try again later",
                limits::UPLOADS_MAX,
                limits::UPLOAD_KEEP.as_secs() / 60
            )));
        }
        let progress = Arc::new(Progress::default());
        let objects = Arc::clone(&self.objects);
        let orders =
            begin(Arc::clone(&self.store), self.domain, objects, new.size_bytes, Arc::clone(&progress));
        let upload = Upload { turn, source: source.to_vec(), size_bytes: new.size_bytes, idle: None };
        state.uploads.insert(new.name.clone(), upload);
        Ok(self.attached(new, turn, Idle { orders, progress, sent: 0 }))
    }

    fn attached(self: &Arc<Self>, new: &NewObject, turn: u64, idle: Idle) -> Attached {
        Attached {
            uploads: Arc::clone(self),
            new: new.clone(),
            turn,
            orders: Some(idle.orders),
            progress: idle.progress,
            sent: idle.sent,
        }
    }

    /// Forgets an upload unless somebody took it over.
    fn forget(&self, name: &str, turn: u64) {
        let mut state = self.state();
        if state.uploads.get(name).is_some_and(|upload| upload.turn == turn) {
            state.uploads.remove(name);
        }
    }
}

impl Attached {
    /// Bytes that came so far: content goes on from here.
    #[must_use]
    pub fn begin_at(&self) -> u64 {
        self.sent
    }

    /// Bytes that were made into chunks.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.progress.taken.load(Ordering::Acquire)
    }

    /// Sends content on; waits while much is under way.
    ///
    /// # Errors
    /// What ended the upload.
    pub async fn take(&mut self, piece: Piece) -> Result<(), ObjectError> {
        let bytes = piece.bytes();
        let orders = self.orders.as_ref().ok_or(ObjectError::Ended)?;
        // One step: either it is on its way and counted, or neither.
        let place = orders.reserve().await.map_err(|_| self.progress.failure())?;
        place.send(Order::Take(piece));
        self.sent = self.sent.saturating_add(bytes);
        Ok(())
    }

    /// Verifies and keeps the object. Whatever comes of it, the upload is over.
    ///
    /// # Errors
    /// [`ObjectError::Mismatch`]; when the store or the record fails.
    pub async fn finish(mut self, hash: [u8; 32]) -> Result<Arc<Object>, ObjectError> {
        let (answer, done) = oneshot::channel();
        let orders = self.orders.take().ok_or(ObjectError::Ended)?;
        let done = match orders.send(Order::Finish(Box::new(self.new.clone()), hash, answer)).await {
            Ok(()) => done.await.unwrap_or_else(|_| Err(self.progress.failure())),
            Err(_) => Err(self.progress.failure()),
        };
        self.uploads.forget(&self.new.name, self.turn);
        done
    }

    /// Gives the upload up: nothing of it can be continued.
    pub fn abandon(mut self) {
        self.orders = None;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Some(orders) = self.orders.take() else {
            self.uploads.forget(&self.new.name, self.turn);
            return;
        };
        let turn = {
            let mut state = self.uploads.state();
            state.last += 1;
            let turn = state.last;
            let Some(upload) =
                state.uploads.get_mut(&self.new.name).filter(|upload| upload.turn == self.turn)
            else {
                return;
            };
            upload.turn = turn;
            upload.idle = Some(Idle { orders, progress: Arc::clone(&self.progress), sent: self.sent });
            turn
        };
        // Not kept alive by what waits to end it.
        let (uploads, name) = (Arc::downgrade(&self.uploads), std::mem::take(&mut self.new.name));
        // Without a run time everything ends anyway.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(limits::UPLOAD_KEEP).await;
                if let Some(uploads) = uploads.upgrade() {
                    uploads.forget(&name, turn);
                }
            });
        }
    }
}
