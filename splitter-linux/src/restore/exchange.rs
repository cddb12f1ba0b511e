//! Questions to the appliance and its answers.

use std::future::Future;

use tidemark_proto::limits::{MESSAGE_MAX_BYTES, RESTORE_QUESTIONS_MAX};
use tidemark_proto::pieces::HashKey;
use tidemark_proto::token::Token;
use tidemark_proto::v1::restore_client::RestoreClient;
use tidemark_proto::v1::restore_reply::Reply;
use tidemark_proto::v1::restore_request::Request;
use tidemark_proto::v1::{RestoreAnswer, RestoreBegin, RestoreOpened, RestoreQuestion, RestoreRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::RestoreError;

/// What is restored.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    pub(super) vm: String,
    pub(super) disk: String,
    pub(super) lsn: u64,
    pub(super) time_us: u64,
    pub(super) size_bytes: u64,
    pub(super) warnings: Vec<String>,
    pub(super) key: HashKey,
}

impl Opened {
    fn of(reply: RestoreOpened) -> Result<Self, RestoreError> {
        let key = HashKey::from_bytes(&reply.hash_key).ok_or(RestoreError::Answer("without a key"))?;
        if reply.size_bytes == 0 || !reply.size_bytes.is_multiple_of(512) {
            return Err(RestoreError::Answer("with a disk of no size"));
        }
        Ok(Self {
            vm: printable(&reply.vm),
            disk: printable(&reply.disk),
            lsn: reply.lsn,
            time_us: reply.time_us,
            size_bytes: reply.size_bytes,
            warnings: reply.warnings.iter().map(|warning| printable(warning)).collect(),
            key,
        })
    }
}

/// What comes from the network goes to a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Who answers questions, in their order.
pub(super) trait Answers {
    /// Puts a question; no more than [`RESTORE_QUESTIONS_MAX`] may wait for their answers.
    fn ask(&mut self, question: RestoreQuestion) -> impl Future<Output = Result<(), RestoreError>>;

    /// The answer to the oldest question that has none yet.
    fn answer(&mut self) -> impl Future<Output = Result<RestoreAnswer, RestoreError>>;
}

/// A restore's connection.
#[derive(Debug)]
pub(super) struct Exchange {
    questions: mpsc::Sender<RestoreRequest>,
    replies: Streaming<tidemark_proto::v1::RestoreReply>,
}

impl Exchange {
    /// Shows the grant; the appliance says what it is for.
    pub(super) async fn begin(channel: Channel, grant: &Token) -> Result<(Self, Opened), RestoreError> {
        let (questions, sent) = mpsc::channel(RESTORE_QUESTIONS_MAX);
        let begin = RestoreBegin {
            grant_id: grant.id.clone(),
            secret: grant.secret.to_vec().into(),
            software: concat!("tidemark-splitter ", env!("CARGO_PKG_VERSION")).into(),
        };
        let begin = RestoreRequest { request: Some(Request::Begin(begin)) };
        questions.send(begin).await.map_err(|_| RestoreError::Interrupted("at its beginning".into()))?;
        let mut client = RestoreClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES);
        let replies = client.restore(ReceiverStream::new(sent)).await.map_err(|status| failed(&status))?;
        let mut exchange = Self { questions, replies: replies.into_inner() };
        match exchange.reply().await? {
            Reply::Opened(opened) => Ok((exchange, Opened::of(opened)?)),
            Reply::Answer(_) => Err(RestoreError::Answer("before it was asked")),
        }
    }

    async fn reply(&mut self) -> Result<Reply, RestoreError> {
        match self.replies.message().await {
            Ok(Some(reply)) => reply.reply.ok_or(RestoreError::Answer("nothing")),
            Ok(None) => Err(RestoreError::Interrupted("the appliance ended it".into())),
            Err(status) => Err(failed(&status)),
        }
    }
}

impl Answers for Exchange {
    async fn ask(&mut self, question: RestoreQuestion) -> Result<(), RestoreError> {
        let question = RestoreRequest { request: Some(Request::Question(question)) };
        if self.questions.send(question).await.is_ok() {
            return Ok(());
        }
        // The call has ended: its last word says why.
        match self.reply().await {
            Err(error) => Err(error),
            Ok(_) => Err(RestoreError::Interrupted("the connection ended".into())),
        }
    }

    async fn answer(&mut self) -> Result<RestoreAnswer, RestoreError> {
        match self.reply().await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Opened(_) => Err(RestoreError::Answer("twice with what it opened")),
        }
    }
}

/// A transport that breaks off has no words of the appliance.
fn failed(status: &Status) -> RestoreError {
    let text = printable(status.message());
    match status.code() {
        Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::DataLoss
        | Code::OutOfRange => RestoreError::Refused(text),
        Code::Unimplemented => RestoreError::Answer("that it knows no grants"),
        _ => RestoreError::Interrupted(text),
    }
}
