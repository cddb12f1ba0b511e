//! The objects service: the same callers and rights as the console's.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tidemark_journal::image::{ImageError, ImageReader};
use tidemark_proto::limits::OBJECT_PIECE_BYTES;
use tidemark_proto::v1::objects_server;
use tidemark_proto::v1::{
    ChangeObjectRequest, Empty, GetObjectReply, GetObjectRequest, ListObjectsReply, ListObjectsRequest,
    ObjectInfo, ObjectTag, PutObjectHead, PutObjectReply, PutObjectRequest, RemoveObjectRequest,
    get_object_reply, put_object_reply, put_object_request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{blocking, caller};
use crate::clones::names as clone_names;
use crate::core::Core;
use crate::images::SHARED_DOMAIN;
use crate::objects::{Attached, Change, NewObject, Object, ObjectError, ObjectKind, Objects, Piece, Uploads};

/// Messages ahead of the network at most: four of a MiB are nothing.
const MESSAGES_AHEAD: usize = 4;

/// Bytes between two reports of an upload's progress: a handful of messages per second.
const REPORT_BYTES: u64 = 16 << 20;

/// Zeroes in one message of an upload at most: a thread is not kept busy by one of them for long.
const ZEROES_MAX_BYTES: u64 = 1 << 30;

/// Bytes that tell a file from others at most.
const SOURCE_MAX_BYTES: usize = 64;

/// Bytes of records after which a message of a list is sent: far below what a message may have, with any record on top.
const LIST_BYTES: usize = 256 << 10;

/// Takes objects in and gives them out.
#[derive(Debug)]
pub struct ObjectsService {
    core: Arc<Core>,
    objects: Arc<Objects>,
    uploads: Arc<Uploads>,
}

impl ObjectsService {
    /// Serves the objects of `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        let objects = Arc::clone(&core.objects);
        let store = Arc::clone(core.images.store());
        let uploads = Arc::new(Uploads::new(store, SHARED_DOMAIN, Arc::clone(&objects)));
        Self { core, objects, uploads }
    }

    /// What clones were made from stays. The caller keeps others from being made.
    fn refuse_cloned(&self, name: &str) -> Result<(), Status> {
        let object = self.objects.get(name).map_err(|error| failed(&error))?;
        if object.kind != ObjectKind::Template {
            return Ok(());
        }
        let clones = self.core.fleet.clones_of_template(object.id);
        if clones.is_empty() {
            return Ok(());
        }
        let text = format!("'{name}' has clones: remove {} first", clone_names(&clones));
        Err(Status::failed_precondition(text))
    }

    /// Copies a record to the catalog. A failure is logged: the record is the authority, the next start copies it.
    async fn copied(&self, object: &Object) {
        if let Err(error) = self.core.catalog.put_object(object).await {
            tracing::error!(%error, name = object.name, "cannot copy an object to the catalog");
        }
    }
}

pub(super) fn failed(error: &ObjectError) -> Status {
    let text = error.to_string();
    match error {
        ObjectError::Invalid(_) => Status::invalid_argument(text),
        ObjectError::Taken(_) => Status::already_exists(text),
        ObjectError::Missing(_) => Status::not_found(text),
        ObjectError::Kept(_) => Status::failed_precondition(text),
        ObjectError::Busy(_) => Status::aborted(text),
        ObjectError::Mismatch(_) => Status::data_loss(text),
        ObjectError::Limit(_) => Status::resource_exhausted(text),
        error if error.is_full() => Status::resource_exhausted(text),
        _ => Status::internal(text),
    }
}

fn info(object: &Object) -> ObjectInfo {
    let tags = object.tags.iter().map(|(key, value)| ObjectTag { key: key.clone(), value: value.clone() });
    ObjectInfo {
        id: object.id.to_string(),
        name: object.name.clone(),
        kind: object.kind.word().to_owned(),
        size_bytes: object.size_bytes,
        hash: Bytes::copy_from_slice(&object.hash),
        tags: tags.collect(),
        created_us: object.created_us,
        published: object.published,
        hold: object.hold,
        locked_until_us: object.locked_until_us,
        new_bytes: object.new_bytes,
    }
}

fn tags(given: Vec<ObjectTag>) -> BTreeMap<String, String> {
    given.into_iter().map(|tag| (tag.key, tag.value)).collect()
}

fn new_object(head: &PutObjectHead) -> Result<NewObject, ObjectError> {
    Ok(NewObject {
        name: head.name.clone(),
        kind: ObjectKind::of_word(&head.kind)?,
        size_bytes: head.size_bytes,
        tags: tags(head.tags.clone()),
        published: head.published,
        hold: head.hold,
        locked_until_us: head.locked_until_us,
    })
}

type Sent<T> = mpsc::Sender<Result<T, Status>>;

#[tonic::async_trait]
impl objects_server::Objects for ObjectsService {
    type PutObjectStream = ReceiverStream<Result<PutObjectReply, Status>>;

    async fn put_object(
        &self,
        request: Request<Streaming<PutObjectRequest>>,
    ) -> Result<Response<Self::PutObjectStream>, Status> {
        let caller = caller(&request)?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.body);
        let Some(put_object_request::Body::Head(head)) = first else {
            return Err(Status::invalid_argument("an upload begins with a head"));
        };
        if head.source.len() > SOURCE_MAX_BYTES {
            return Err(Status::invalid_argument("what tells the file from others is too long"));
        }
        let space = *self.core.space.borrow();
        if space.full {
            return Err(Status::resource_exhausted(
                "the appliance's disk is full: free space there, or remove objects",
            ));
        }
        let new = new_object(&head).map_err(|error| failed(&error))?;
        let upload = self.uploads.attach(&new, &head.source).map_err(|error| failed(&error))?;
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
        let (core, uploads) = (Arc::clone(&self.core), Arc::clone(&self.uploads));
        let service = Self { core, objects: Arc::clone(&self.objects), uploads };
        self.core.tasks.spawn(async move {
            let done = tokio::select! {
                done = receive(upload, &mut messages, &sender) => done,
                () = caller.revoked.cancelled() => Err(Status::unauthenticated("the certificate was revoked")),
                () = service.core.stopping.cancelled() => Err(Status::unavailable("the appliance is shutting down")),
            };
            let reply = match done {
                Ok(object) => {
                    service.copied(&object).await;
                    if object.published {
                        service.core.templates_changed();
                    }
                    let detail = format!("{} bytes, {} new", object.size_bytes, object.new_bytes);
                    service.core.audit(&caller.role.uri(), "put object", &object.name, &detail).await;
                    Ok(PutObjectReply { body: Some(put_object_reply::Body::Done(info(&object))) })
                }
                Err(status) => Err(status),
            };
            // Who asked may have gone.
            let _ = sender.send(reply).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type GetObjectStream = ReceiverStream<Result<GetObjectReply, Status>>;

    async fn get_object(
        &self,
        request: Request<GetObjectRequest>,
    ) -> Result<Response<Self::GetObjectStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let object = self.objects.get(&request.name).map_err(|error| failed(&error))?;
        if request.offset > object.size_bytes {
            return Err(Status::out_of_range(format!("the object has {} bytes", object.size_bytes)));
        }
        if request.offset == 0 {
            self.core.audit(&caller.role.uri(), "get object", &object.name, "").await;
        }
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
        let store = Arc::clone(self.core.images.store());
        tokio::task::spawn_blocking(move || {
            let head = GetObjectReply { body: Some(get_object_reply::Body::Object(info(&object))) };
            if sender.blocking_send(Ok(head)).is_err() {
                return;
            }
            let reader = ImageReader::new(store, object.image.clone());
            if let Err(error) = send_content(&reader, request.offset, object.size_bytes, &sender) {
                tracing::error!(%error, name = object.name, "an object cannot be read");
                let _ = sender.blocking_send(Err(Status::data_loss(error.to_string())));
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type ListObjectsStream = ReceiverStream<Result<ListObjectsReply, Status>>;

    async fn list_objects(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<Self::ListObjectsStream>, Status> {
        let request = request.into_inner();
        let kind = match request.kind.as_str() {
            "" => None,
            word => Some(ObjectKind::of_word(word).map_err(|error| failed(&error))?),
        };
        let wanted = tags(request.tags);
        let search = request.search.to_lowercase();
        let matches = |object: &&Arc<Object>| {
            kind.is_none_or(|kind| kind == object.kind)
                && wanted.iter().all(|(key, value)| object.tags.get(key) == Some(value))
                && object.name.to_lowercase().contains(&search)
        };
        let found: Vec<Arc<Object>> = self.objects.list().iter().filter(matches).cloned().collect();
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
        // It ends with the caller.
        tokio::spawn(async move { send_list(&found, &sender).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn change_object(
        &self,
        request: Request<ChangeObjectRequest>,
    ) -> Result<Response<ObjectInfo>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let change = Change {
            published: request.published,
            hold: request.hold,
            locked_until_us: request.locked_until_us,
            set_tags: tags(request.set_tags),
            remove_tags: request.remove_tags.into_iter().collect(),
        };
        let detail = format!("{change:?}");
        let (objects, name) = (Arc::clone(&self.objects), request.name);
        let object = blocking(move || objects.change(&name, &change).map_err(|error| failed(&error))).await?;
        self.core.templates_changed();
        self.copied(&object).await;
        self.core.audit(&caller.role.uri(), "change object", &object.name, &detail).await;
        Ok(Response::new(info(&object)))
    }

    async fn remove_object(&self, request: Request<RemoveObjectRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        let name = request.into_inner().name;
        let _changing = self.core.clones.changing.lock().await;
        self.refuse_cloned(&name)?;
        let (objects, of) = (Arc::clone(&self.objects), name.clone());
        let locks_us = self.core.retention.now().locks_us;
        let id = blocking(move || objects.remove(&of, locks_us).map_err(|error| failed(&error))).await?;
        self.core.templates_changed();
        if let Err(error) = self.core.catalog.remove_object(id).await {
            tracing::error!(%error, name, "cannot remove an object from the catalog");
        }
        self.core.audit(&caller.role.uri(), "remove object", &name, "").await;
        Ok(Response::new(Empty {}))
    }
}

/// Sends records in as many messages as they need; stops early when the receiver goes.
async fn send_list(found: &[Arc<Object>], sender: &Sent<ListObjectsReply>) {
    let mut reply = ListObjectsReply::default();
    let mut bytes = 0;
    for object in found {
        let info = info(object);
        bytes += info.encoded_len();
        reply.objects.push(info);
        if bytes >= LIST_BYTES {
            bytes = 0;
            if sender.send(Ok(std::mem::take(&mut reply))).await.is_err() {
                return;
            }
        }
    }
    if !reply.objects.is_empty() || found.is_empty() {
        let _ = sender.send(Ok(reply)).await;
    }
}

/// Feeds an upload from its connection to the end.
async fn receive(
    mut upload: Attached,
    messages: &mut Streaming<PutObjectRequest>,
    replies: &Sent<PutObjectReply>,
) -> Result<Arc<Object>, Status> {
    let reply = |body| Ok(PutObjectReply { body: Some(body) });
    let gone = |_| Status::cancelled("the caller went");
    let mut reported = upload.begin_at();
    replies.send(reply(put_object_reply::Body::BeginAt(reported))).await.map_err(gone)?;
    while let Some(message) = messages.message().await? {
        let piece = match message.body {
            Some(put_object_request::Body::Data(data)) if data.len() <= OBJECT_PIECE_BYTES => {
                Piece::Data(data)
            }
            Some(put_object_request::Body::ZeroBytes(bytes)) if bytes <= ZEROES_MAX_BYTES => {
                Piece::Zeroes(bytes)
            }
            Some(put_object_request::Body::End(end)) => {
                let hash = <[u8; 32]>::try_from(end.hash.as_ref());
                let hash = hash.map_err(|_| Status::invalid_argument("a hash has 32 bytes"))?;
                return upload.finish(hash).await.map_err(|error| failed(&error));
            }
            _ => {
                upload.abandon();
                return Err(Status::invalid_argument(
                    "a message of an upload is of a wrong kind or too long",
                ));
            }
        };
        if let Err(error) = upload.take(piece).await {
            upload.abandon();
            return Err(failed(&error));
        }
        let taken = upload.taken_bytes();
        if taken.saturating_sub(reported) >= REPORT_BYTES {
            reported = taken;
            replies.send(reply(put_object_reply::Body::TakenBytes(taken))).await.map_err(gone)?;
        }
    }
    Err(Status::cancelled("the upload ended before its end"))
}

/// Sends `[offset, end)` in order; stops early when the receiver goes.
fn send_content(
    reader: &ImageReader,
    offset: u64,
    end: u64,
    sender: &Sent<GetObjectReply>,
) -> Result<(), ImageError> {
    let piece_bytes = u64::try_from(OBJECT_PIECE_BYTES).unwrap_or(u64::MAX);
    let send = |body| sender.blocking_send(Ok(GetObjectReply { body: Some(body) })).is_ok();
    let (mut at, mut zeroes) = (offset, 0);
    while at < end {
        let bytes = (end - at).min(piece_bytes);
        if reader.extents(at, bytes)?.iter().all(|extent| extent.zero) {
            zeroes += bytes;
        } else {
            if zeroes > 0 && !send(get_object_reply::Body::ZeroBytes(std::mem::take(&mut zeroes))) {
                return Ok(());
            }
            let mut data = vec![0; usize::try_from(bytes).unwrap_or(OBJECT_PIECE_BYTES)];
            reader.read_at(at, &mut data)?;
            if !send(get_object_reply::Body::Data(data.into())) {
                return Ok(());
            }
        }
        at += bytes;
    }
    if zeroes > 0 {
        send(get_object_reply::Body::ZeroBytes(zeroes));
    }
    Ok(())
}
