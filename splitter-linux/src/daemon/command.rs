//! What the other threads ask of the worker.

use std::path::PathBuf;

use tidemark_proto::v1::{
    BarrierOrder, Consistency, Disk, HashAnswer, HoldMethod, SetBookmarkDone, SetBookmarkRequest,
    StreamPosition, VerifyAnswer, VerifyRequest, Welcome,
};
use tidemark_splitter_core::engine::{ClockEstimate, MarkerRequest, Place, ReadContent, SpoolEvent};
use tokio::sync::oneshot;

use super::outbound::Outbound;
use crate::control::{Bookmark, Status};
use crate::hold::Taken;

/// The answer to a command: done, or one line that says what to do.
pub(super) type Answer<T> = oneshot::Sender<Result<T, String>>;

/// What a hello says of the capture.
#[derive(Debug)]
pub(super) struct HelloFacts {
    pub(super) capture_id: Vec<u8>,
    pub(super) disks: Vec<Disk>,
    pub(super) last_acked: StreamPosition,
}

/// A bookmark that is asked for.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) request: MarkerRequest,
    pub(super) wanted: Consistency,
    /// A lower level will do.
    pub(super) allow_lower: bool,
}

/// A command to the worker.
#[derive(Debug)]
pub(super) enum Command {
    /// What to say in a hello; `None` while no disk is protected.
    Hello { reply: oneshot::Sender<Option<HelloFacts>> },
    /// A session begins; messages go to `outbound` until [`Command::Disconnected`].
    Welcome { welcome: Box<Welcome>, outbound: Outbound, reply: Answer<()> },
    /// The session ended.
    Disconnected,
    /// The appliance acknowledged.
    Ack(StreamPosition),
    /// A better estimate of the clocks.
    Clock(ClockEstimate),
    /// The appliance asks for a marker.
    Marker(Ask),
    /// Somebody in the guest asks for a bookmark.
    Bookmark { name: String, wanted: Consistency, allow_lower: bool, reply: Answer<Bookmark> },
    /// Writers are held: the marker's place is here.
    Reserve { reply: std::sync::mpsc::SyncSender<Result<Place, String>> },
    /// Writers are held no longer; what came of it.
    Held { ask: Ask, taken: Taken },
    /// The thaw hooks have run, too; what of them failed.
    HoldOver { failed: Vec<String> },
    /// The appliance orders a step of a barrier.
    Barrier(BarrierOrder),
    /// A barrier's freeze hooks ran; what of them failed.
    Quiesced { request_id: u64, problem: Option<String> },
    /// Everything stands still for a barrier.
    StandsStill { request_id: u64, method: HoldMethod },
    /// Somebody in the guest asks for a point of a set; the request's id is given here.
    SetBookmark { request: SetBookmarkRequest, reply: Answer<Bookmark> },
    /// What came of it.
    SetBookmarkDone(SetBookmarkDone),
    /// A barrier's hold came to its end.
    BarrierHeld { request_id: u64, taken: Taken },
    /// A disk read came back; `None` when it failed.
    ReadDone { token: u64, content: Option<ReadContent> },
    /// The appliance answered a question.
    Answer(HashAnswer),
    /// The spool's thread did something.
    Spool(SpoolEvent),
    /// The appliance asks for a verify.
    Verify(VerifyRequest),
    /// The appliance compared pieces of a verify.
    VerifyAnswer(VerifyAnswer),
    /// Protect these disks.
    Protect { paths: Vec<PathBuf>, reply: Answer<()> },
    /// Protect every disk, but those that match.
    ProtectAll { except: Vec<String>, reply: Answer<()> },
    /// Protect this disk no longer.
    Unprotect { path: PathBuf, reply: Answer<()> },
    /// Protect no disk any longer.
    UnprotectAll { reply: Answer<()> },
    /// Report.
    Status { reply: oneshot::Sender<Status> },
    /// End the thread.
    Stop,
}
