//! One upload: a thread that turns content into chunks, in order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tidemark_journal::image::{Image, ImageBuilder};
use tidemark_journal::store::{ChunkStore, KeyDomain, Session};
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{Object, ObjectError, ObjectKind, Objects, limits};
use crate::clock::now_us;

/// Sector and chunk of a disk, bytes.
const SECTOR: usize = 512;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What an upload will be.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Unique among the objects.
    pub name: String,
    /// What it is for.
    pub kind: ObjectKind,
    /// Bytes of content.
    pub size_bytes: u64,
    /// For searches.
    pub tags: BTreeMap<String, String>,
    /// See [`Object::published`].
    pub published: bool,
    /// See [`Object::hold`].
    pub hold: bool,
    /// See [`Object::locked_until_us`].
    pub locked_until_us: u64,
}

impl NewObject {
    fn object(self, hash: [u8; 32], new_bytes: u64, image: Image) -> Object {
        Object {
            id: Uuid::new_v4(),
            name: self.name,
            kind: self.kind,
            size_bytes: self.size_bytes,
            hash,
            tags: self.tags,
            created_us: now_us(),
            published: self.published,
            hold: self.hold,
            locked_until_us: self.locked_until_us,
            new_bytes,
            image,
        }
    }

    /// Refuses what cannot be, before anything is sent.
    pub(super) fn check(&self) -> Result<(), ObjectError> {
        if self.size_bytes > limits::OBJECT_MAX_BYTES {
            return Err(ObjectError::Limit(format!(
                "an object has {} bytes at most",
                limits::OBJECT_MAX_BYTES
            )));
        }
        let empty = Image::empty(KeyDomain::default(), DiskId(1), Lsn(0), 0);
        self.clone().object([0; 32], 0, empty).check()
    }
}

/// Content, in order.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// So many zeroes.
    Zeroes(u64),
}

impl Piece {
    /// Bytes of content.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => u64::try_from(data.len()).unwrap_or(u64::MAX),
            Self::Zeroes(bytes) => *bytes,
        }
    }
}

/// What goes to an upload's thread.
#[derive(Debug)]
pub(super) enum Order {
    Take(Piece),
    /// All was sent, and has this hash: keep it.
    Finish(Box<NewObject>, [u8; 32], oneshot::Sender<Result<Arc<Object>, ObjectError>>),
}

/// How far an upload's thread is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes made into chunks.
    pub taken: AtomicU64,
    failure: Mutex<Option<ObjectError>>,
}

impl Progress {
    /// Why the thread ended, for the first who asks.
    pub(super) fn failure(&self) -> ObjectError {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(ObjectError::Ended)
    }
}

/// Begins an upload on a thread of its own. It ends when the sender goes, or after a finish.
pub(super) fn begin(
    store: Arc<ChunkStore>,
    domain: KeyDomain,
    objects: Arc<Objects>,
    size_bytes: u64,
    progress: Arc<Progress>,
) -> mpsc::Sender<Order> {
    let (sender, receiver) = mpsc::channel(limits::PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = run(&store, domain, &objects, size_bytes, &progress.taken, receiver) {
            *progress.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    sender
}

/// Takes orders until the end. A failure ends the upload: whoever feeds it finds the way closed.
fn run(
    store: &Arc<ChunkStore>,
    domain: KeyDomain,
    objects: &Objects,
    size_bytes: u64,
    taken: &AtomicU64,
    mut orders: mpsc::Receiver<Order>,
) -> Result<(), ObjectError> {
    // It keeps the chunks from collections until the record is durable.
    let session = store.session(domain)?;
    let mut content = Content::new(&session, size_bytes)?;
    while let Some(order) = orders.blocking_recv() {
        match order {
            Order::Take(piece) => {
                content.take(&piece)?;
                taken.store(content.taken, Ordering::Release);
            }
            Order::Finish(new, hash, answer) => {
                // The asker may have gone; the object is there all the same.
                let _ = answer.send(finish(content, &session, objects, *new, hash));
                return Ok(());
            }
        }
    }
    Ok(())
}

fn finish(
    content: Content<'_>,
    session: &Session,
    objects: &Objects,
    new: NewObject,
    hash: [u8; 32],
) -> Result<Arc<Object>, ObjectError> {
    objects.check_free(&new.name)?;
    let (image, found) = content.finish()?;
    if found != hash {
        return Err(ObjectError::Mismatch("its hash is another".to_owned()));
    }
    // Chunks first, then the record that keeps them.
    session.store().flush()?;
    objects.add(new.object(hash, session.new_bytes(), image))
}

/// Content becoming an image.
struct Content<'a> {
    builder: ImageBuilder<'a>,
    hasher: blake3::Hasher,
    size_bytes: u64,
    taken: u64,
    /// What does not fill a sector yet.
    rest: Vec<u8>,
}

impl<'a> Content<'a> {
    fn new(session: &'a Session, size_bytes: u64) -> Result<Self, ObjectError> {
        let padded = size_bytes.next_multiple_of(SECTOR_BYTES);
        let builder = ImageBuilder::new(session, None, DiskId(1), Lsn(0), padded)?;
        Ok(Self { builder, hasher: blake3::Hasher::new(), size_bytes, taken: 0, rest: Vec::new() })
    }

    /// First sector that the builder has not seen.
    fn sector(&self) -> u64 {
        (self.taken - u64::try_from(self.rest.len()).unwrap_or(0)) / SECTOR_BYTES
    }

    fn take(&mut self, piece: &Piece) -> Result<(), ObjectError> {
        if piece.bytes() > self.size_bytes - self.taken {
            return Err(ObjectError::Mismatch("more bytes than announced".to_owned()));
        }
        match piece {
            Piece::Data(data) => self.take_data(data),
            Piece::Zeroes(bytes) => self.take_zeroes(*bytes),
        }
    }

    fn take_data(&mut self, data: &[u8]) -> Result<(), ObjectError> {
        self.hasher.update(data);
        let mut data = data;
        if !self.rest.is_empty() {
            let (head, more) = data.split_at(data.len().min(SECTOR - self.rest.len()));
            self.rest.extend_from_slice(head);
            self.taken += u64::try_from(head.len()).unwrap_or(0);
            data = more;
            if self.rest.len() < SECTOR {
                return Ok(());
            }
            let at = self.sector();
            self.builder.write(at, &std::mem::take(&mut self.rest))?;
        }
        let (whole, rest) = data.split_at(data.len() / SECTOR * SECTOR);
        if !whole.is_empty() {
            self.builder.write(self.sector(), whole)?;
            self.taken += u64::try_from(whole.len()).unwrap_or(0);
        }
        self.rest.extend_from_slice(rest);
        self.taken += u64::try_from(rest.len()).unwrap_or(0);
        Ok(())
    }

    fn take_zeroes(&mut self, bytes: u64) -> Result<(), ObjectError> {
        let mut left = bytes;
        if !self.rest.is_empty() {
            let fill = left.min(u64::try_from(SECTOR - self.rest.len()).unwrap_or(0));
            self.take_data(ZEROES.get(..usize::try_from(fill).unwrap_or(0)).unwrap_or_default())?;
            left -= fill;
        }
        let sectors = left / SECTOR_BYTES;
        if sectors > 0 {
            self.builder.zero(self.sector(), sectors)?;
            let mut unhashed = sectors * SECTOR_BYTES;
            self.taken += unhashed;
            while unhashed > 0 {
                let some = usize::try_from(unhashed).unwrap_or(usize::MAX).min(ZEROES.len());
                self.hasher.update(ZEROES.get(..some).unwrap_or_default());
                unhashed -= u64::try_from(some).unwrap_or(unhashed);
            }
        }
        let tail = usize::try_from(left % SECTOR_BYTES).unwrap_or(0);
        self.take_data(ZEROES.get(..tail).unwrap_or_default())
    }

    fn finish(mut self) -> Result<(Image, [u8; 32]), ObjectError> {
        if self.taken != self.size_bytes {
            return Err(ObjectError::Mismatch(format!("{} of {} bytes came", self.taken, self.size_bytes)));
        }
        if !self.rest.is_empty() {
            let at = self.sector();
            let mut last = std::mem::take(&mut self.rest);
            last.resize(SECTOR, 0);
            self.builder.write(at, &last)?;
        }
        Ok((self.builder.finish()?, *self.hasher.finalize().as_bytes()))
    }
}
