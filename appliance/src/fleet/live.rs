//! What is known of a VM's live stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_proto::ids::Lsn;
use tidemark_proto::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Progress;
use crate::clock::now_us;
use crate::recovery::rfc3339;

/// What others may ask of a live session.
#[derive(Debug)]
pub enum Command {
    /// End the stream with this Goodbye.
    Close {
        /// For people.
        reason: String,
        /// Whether the splitter should come back.
        retry: bool,
    },
    /// Ask the splitter for a marker.
    Marker(MarkerAsk),
    /// A step of a barrier.
    Barrier(v1::BarrierOrder),
    /// What came of a point that was asked for in the guest.
    SetBookmarkDone(v1::SetBookmarkDone),
    /// A verify is wanted: the VM has it.
    Verify,
    /// It is wanted no longer.
    CancelVerify,
}

/// A marker that the console asks for.
#[derive(Debug, Clone)]
pub struct MarkerAsk {
    /// Never 0.
    pub request_id: u64,
    /// The bookmark's name.
    pub name: String,
    /// The bookmark's id, a UUID.
    pub bookmark_id: String,
    /// The level that is asked for.
    pub wanted: v1::Consistency,
    /// A lower level will do.
    pub allow_lower: bool,
}

/// A marker that was asked for and is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedMarker {
    /// Its LSN.
    pub lsn: Lsn,
    /// Its time, microseconds since 1970.
    pub time_us: u64,
    /// The name that the bookmark got.
    pub name: String,
    /// The level achieved.
    pub achieved: v1::Consistency,
    /// How long writers were held.
    pub hold_us: u64,
    /// Why the level is lower than was asked for; empty otherwise.
    pub reason: String,
}

/// A live session as others see it.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    /// Unique in this process.
    pub id: u64,
    /// The guest's boot.
    pub boot_id: String,
    /// The tap's identity.
    pub capture_id: Vec<u8>,
    /// What the splitter calls itself, for people.
    pub software: String,
    /// Of the session.
    pub protocol: u32,
    /// To the session. It may be full or closed: the session is then ending.
    pub commands: mpsc::Sender<Command>,
    /// When the last message came in, microseconds since 1970.
    pub last_message_us: Arc<AtomicU64>,
    /// Cancelled once the session no longer touches the journal.
    pub done: CancellationToken,
}

impl SessionHandle {
    /// Notes that a message came in.
    pub(crate) fn touch(&self) {
        self.last_message_us.store(now_us(), Ordering::Relaxed);
    }
}

/// The newest heartbeat and counters of the live stream.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Whether a session is open.
    pub connected: bool,
    /// The newest heartbeat of this session, not necessarily durable.
    pub heartbeat: Option<v1::Heartbeat>,
    /// When it came in.
    pub heartbeat_at: Option<Instant>,
    /// What waits in the guest's spool, as the newest frame says; `None` while that is not in use.
    pub backlog: Option<v1::Backlog>,
    /// By how much the guest's clock may be wrong against ours, as its newest frame says, microseconds.
    pub clock_error_us: Option<u64>,
    /// How copies advance.
    pub progress: Progress,
    /// Volumes that are to be in synchronous mode. They outlive the session: a promise holds whatever became of the guest.
    pub sync: Vec<v1::VmSync>,
    /// Why the last session ended, for people.
    pub last_end: Option<String>,
    /// When a copy of the machine was refused last, and the name it gave itself.
    copy: Option<(u64, String)>,
}

/// How long the alarm of a refused copy is shown.
const COPY_SHOWN_US: u64 = 24 * 3600 * 1_000_000;

impl Live {
    /// A session begins: nothing is known of it yet but what outlives one.
    pub(crate) fn begin(&mut self) {
        let (sync, copy) = (std::mem::take(&mut self.sync), self.copy.take());
        *self = Self { connected: true, sync, copy, ..Self::default() };
    }

    /// A copy of the machine was refused.
    pub(crate) fn copy_refused(&mut self, now_us: u64, hostname: &str) {
        self.copy = Some((now_us, hostname.to_owned()));
    }

    /// What an operator should know of copies.
    #[must_use]
    pub fn copy_text(&self, now_us: u64) -> Option<String> {
        let (at_us, hostname) = self.copy.as_ref()?;
        let recent = now_us.saturating_sub(*at_us) < COPY_SHOWN_US;
        recent.then(|| {
            let at = rfc3339(*at_us);
            format!("a copy of this VM (host name '{hostname}') was refused at {at}: a clone, or a recovered copy, runs with a network")
        })
    }

    /// Takes the newest heartbeat.
    pub(crate) fn beat(&mut self, heartbeat: v1::Heartbeat, at: Instant) {
        self.progress.follow(&heartbeat, at);
        self.heartbeat = Some(heartbeat);
        self.heartbeat_at = Some(at);
    }
}
