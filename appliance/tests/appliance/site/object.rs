//! Objects put, changed and removed as a console does.

use bytes::Bytes;
use tidemark_proto::limits::OBJECT_PIECE_BYTES;
use tidemark_proto::v1::objects_client::ObjectsClient;
use tidemark_proto::v1::put_object_request::Body;
use tidemark_proto::v1::{
    ChangeObjectRequest, ObjectInfo, PutObjectEnd, PutObjectHead, PutObjectRequest, RemoveObjectRequest,
    put_object_reply,
};
use tonic::Status;
use tonic::transport::Channel;

use super::Site;

impl Site {
    pub(crate) async fn objects(&self) -> ObjectsClient<Channel> {
        let context = self.context();
        let channel = self.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
        ObjectsClient::new(channel).max_decoding_message_size(8 << 20)
    }

    /// Keeps content as an object of a kind.
    pub(crate) async fn put_object(
        &self,
        name: &str,
        kind: &str,
        published: bool,
        content: &[u8],
    ) -> ObjectInfo {
        let head = PutObjectHead {
            name: name.to_owned(),
            kind: kind.to_owned(),
            size_bytes: content.len() as u64,
            source: Bytes::from_static(b"a file of a test"),
            published,
            ..PutObjectHead::default()
        };
        let mut bodies = vec![Body::Head(head)];
        bodies.extend(
            content.chunks(OBJECT_PIECE_BYTES).map(|piece| Body::Data(Bytes::copy_from_slice(piece))),
        );
        bodies
            .push(Body::End(PutObjectEnd { hash: Bytes::copy_from_slice(blake3::hash(content).as_bytes()) }));
        let messages: Vec<_> = bodies.into_iter().map(|body| PutObjectRequest { body: Some(body) }).collect();
        let mut replies =
            self.objects().await.put_object(tokio_stream::iter(messages)).await.unwrap().into_inner();
        loop {
            if let Some(put_object_reply::Body::Done(object)) = replies.message().await.unwrap().unwrap().body
            {
                return object;
            }
        }
    }

    pub(crate) async fn publish(&self, name: &str, published: bool) -> ObjectInfo {
        let request = ChangeObjectRequest {
            name: name.to_owned(),
            published: Some(published),
            ..ChangeObjectRequest::default()
        };
        self.objects().await.change_object(request).await.unwrap().into_inner()
    }

    pub(crate) async fn remove_object(&self, name: &str) -> Result<(), Status> {
        let request = RemoveObjectRequest { name: name.to_owned() };
        self.objects().await.remove_object(request).await.map(drop)
    }
}
