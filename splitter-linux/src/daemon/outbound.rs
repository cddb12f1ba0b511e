//! What a session sends, in this order: answers that somebody waits for, before frames.

use std::pin::Pin;
use std::task::{Context, Poll};

use tidemark_proto::v1::SplitterMessage;
use tokio::sync::mpsc;
use tokio_stream::Stream;

/// Messages between worker and transport: with frames of 1 MiB enough to keep the transport busy while the worker
/// sleeps; beyond it they wait in the engine's window.
const MESSAGES: usize = 8;
/// Answers that wait for the transport; beyond it they wait in the worker, and whoever asked gives up.
const URGENT: usize = 64;

/// Where a session's messages are put.
#[derive(Debug, Clone)]
pub(super) struct Outbound {
    /// In the order of the stream.
    pub(super) frames: mpsc::Sender<SplitterMessage>,
    /// Before whatever waits there: other machines stand still until they arrive.
    pub(super) urgent: mpsc::Sender<SplitterMessage>,
}

/// All of them, for the transport.
#[derive(Debug)]
pub(super) struct Messages {
    frames: mpsc::Receiver<SplitterMessage>,
    urgent: mpsc::Receiver<SplitterMessage>,
}

pub(super) fn channel() -> (Outbound, Messages) {
    let (frames, next_frames) = mpsc::channel(MESSAGES);
    let (urgent, next_urgent) = mpsc::channel(URGENT);
    (Outbound { frames, urgent }, Messages { frames: next_frames, urgent: next_urgent })
}

impl Stream for Messages {
    type Item = SplitterMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SplitterMessage>> {
        match self.urgent.poll_recv(context) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(message)),
            Poll::Ready(None) | Poll::Pending => self.frames.poll_recv(context),
        }
    }
}
