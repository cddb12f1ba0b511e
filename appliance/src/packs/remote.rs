//! The calls that packs need of an object storage, for threads that may wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tidemark_journal::storage::{StorageError, StorageErrorKind};
use tokio::runtime::Handle;
use tokio_stream::StreamExt;

use super::error::{failed, refused};
use super::{ObjectPlace, limits};

/// Objects below one prefix. Calls block: not from a task of the run time that does the work.
#[derive(Debug)]
pub struct Remote {
    objects: Arc<dyn ObjectStore>,
    runtime: Handle,
    prefix: Path,
    place: String,
}

impl Remote {
    /// Objects of `place` through `objects`, with the work done on `runtime`.
    #[must_use]
    pub fn new(objects: Arc<dyn ObjectStore>, runtime: Handle, place: &ObjectPlace) -> Self {
        Self { objects, runtime, prefix: Path::from(place.prefix.as_str()), place: place.to_string() }
    }

    /// Bucket and prefix, for messages.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Runs a call to its end on the run time.
    fn wait<T: Send + 'static>(
        &self,
        operation: &'static str,
        name: &str,
        call: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let done = tokio::time::timeout(limits::CALL_TIMEOUT, call).await;
            // Whoever waited has gone only if its thread has.
            let _ = sender.send(done);
        });
        let gone = |text: &str| {
            refused(StorageErrorKind::Failed, operation, name, format!("{}: {text}", self.place))
        };
        match receiver.recv() {
            Ok(Ok(done)) => done.map_err(|error| failed(operation, name, &self.place, &error)),
            Ok(Err(_)) => Err(gone("the object storage did not answer in time: check it, then try again")),
            Err(_) => Err(gone("the appliance is shutting down")),
        }
    }

    /// Writes an object under a name that is free.
    ///
    /// # Errors
    /// [`StorageErrorKind::Exists`] when it is not, or when an earlier try was done and its answer lost.
    pub(super) fn put_new(&self, name: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.put(name, bytes, PutMode::Create)
    }

    /// Writes an object over what is there.
    ///
    /// # Errors
    /// When the storage fails.
    pub(super) fn put_over(&self, name: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.put(name, bytes, PutMode::Overwrite)
    }

    fn put(&self, name: &str, bytes: Bytes, mode: PutMode) -> Result<(), StorageError> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(name));
        let put = async move { objects.put_opts(&path, bytes.into(), PutOptions::from(mode)).await };
        self.wait("put", name, put).map(|_| ())
    }

    /// A whole object.
    ///
    /// # Errors
    /// [`StorageErrorKind::Missing`] when there is none.
    pub(super) fn get(&self, name: &str) -> Result<Bytes, StorageError> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(name));
        self.wait("read", name, async move { objects.get(&path).await?.bytes().await })
    }

    /// The part of a range that the object has.
    ///
    /// # Errors
    /// [`StorageErrorKind::Missing`]; [`StorageErrorKind::Short`] when it has none of it.
    pub(super) fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(name));
        self.wait("read", name, async move { objects.get_range(&path, range).await })
    }

    /// All objects of a folder, page by page: the last part of their names, and their bytes.
    ///
    /// # Errors
    /// When the storage fails.
    pub(super) fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>, StorageError> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(folder));
        let list = async move {
            let found = objects.list(Some(&path)).collect::<Result<Vec<_>, _>>().await?;
            let named = found
                .into_iter()
                .filter_map(|object| Some((object.location.filename()?.to_owned(), object.size)));
            Ok(named.collect())
        };
        self.wait("list", folder, list)
    }

    /// Removes an object; no error when it is gone.
    ///
    /// # Errors
    /// When the storage fails.
    pub(super) fn delete(&self, name: &str) -> Result<(), StorageError> {
        let (objects, path) = (Arc::clone(&self.objects), self.path(name));
        match self.wait("delete", name, async move { objects.delete(&path).await }) {
            Err(error) if error.kind() == StorageErrorKind::Missing => Ok(()),
            other => other,
        }
    }
}
