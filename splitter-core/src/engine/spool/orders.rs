//! What passes between the engine and the driver of the spool: frames as they are kept, orders, and what came of them.

use tidemark_proto::chain;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::v1::{Frame, frame::Body};

use super::super::window::{End, frame_bytes};

/// A frame as the spool keeps it, with what is needed to go on after it.
#[derive(Debug, Clone, PartialEq)]
pub struct SpooledFrame {
    /// The frame, with its payload.
    pub frame: Frame,
    /// LSN of the last entry up to its end.
    pub lsn: u64,
    /// Ring position from which a reader without memory rebuilds the state at its end.
    pub floor: u64,
    /// The chain before it.
    pub before: ChainHash,
}

impl SpooledFrame {
    pub(super) fn end(&self) -> Option<End> {
        Some(End {
            seq: self.frame.seq,
            lsn: self.lsn,
            ring_position: self.frame.ring_position,
            chain: ChainHash(self.frame.chain.as_ref().try_into().ok()?),
            floor: self.floor,
        })
    }

    /// Whether the frame's chain is that of its content.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        chain::next(&self.before, &self.frame).0 == self.frame.chain.as_ref()
    }

    /// What a later process has to know of it before it is sent. `None` for a frame that no engine made.
    #[must_use]
    pub fn fact(&self) -> Option<SpoolFact> {
        let change = match &self.frame.body {
            Some(Body::Heartbeat(beat)) if beat.clean => Change::Clean(beat.lsn),
            Some(Body::LineStart(line)) => Change::Opened(line.disk_ids.clone()),
            Some(Body::LineEnd(line)) => Change::Closed(line.disk_ids.clone()),
            Some(Body::Resize(resize)) => Change::Resized(resize.disk_id, resize.size_bytes),
            _ => Change::Nothing,
        };
        Some(SpoolFact {
            end: self.end()?,
            before: self.before,
            generation: self.frame.generation,
            bytes: frame_bytes(self.frame.body.as_ref()),
            change,
        })
    }
}

/// What a frame in the spool means for the state after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolFact {
    pub(in super::super) end: End,
    pub(in super::super) before: ChainHash,
    pub(in super::super) generation: u64,
    pub(in super::super) bytes: u64,
    pub(in super::super) change: Change,
}

impl SpoolFact {
    /// Number of the frame.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.end.seq
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Change {
    Nothing,
    Clean(u64),
    Opened(Vec<u32>),
    Closed(Vec<u32>),
    Resized(u32, u64),
}

/// What an earlier process of the same capture left in the spool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolContent {
    /// Frames that can be read, numbered without a hole.
    pub facts: Vec<SpoolFact>,
    /// The ring may have been released on the strength of the spool.
    pub in_use: bool,
    /// What cannot be read any more, for people.
    pub damage: Option<String>,
}

/// How the spool may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolSettings {
    /// Bytes it may hold; 0: nothing is written.
    pub limit_bytes: u64,
    /// Why nothing is written, for people.
    pub refused: Option<String>,
}

/// What the driver is to do with the spool. Orders are carried out one after another.
#[derive(Debug, Clone, PartialEq)]
pub enum SpoolOrder {
    /// Append this frame; answered by [`SpoolEvent::Written`] or [`SpoolEvent::WriteFailed`].
    Write(Box<SpooledFrame>),
    /// Read the frames after this number, at least one and not many more than so many bytes of them; answered by
    /// [`SpoolEvent::Read`] or [`SpoolEvent::ReadFailed`].
    Read {
        /// Number of the frame before.
        after_seq: u64,
        /// Bytes wanted.
        max_bytes: u64,
    },
    /// Frames up to this number are not needed any more. If that is all of them, the spool is not in use any more.
    GiveUp {
        /// Number of the last of them.
        seq: u64,
    },
    /// What is in it is void. Whether it is in use stays as it is: that is settled by the next `GiveUp`.
    Clear,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum SpoolEvent {
    /// A frame is wholly written: it survives this process.
    Written {
        /// Its number.
        seq: u64,
    },
    /// A frame cannot be written. Further ones fail, too, until all that was written is given up.
    WriteFailed {
        /// Why, for people.
        detail: String,
    },
    /// What was void is gone: what comes from here on answers later orders.
    Cleared,
    /// Frames that were asked for, in order.
    Read(Vec<SpooledFrame>),
    /// They cannot be read.
    ReadFailed {
        /// Why, for people.
        detail: String,
    },
    /// How full it is.
    Space {
        /// Bytes on the disk.
        used_bytes: u64,
        /// Bytes that may be added.
        room_bytes: u64,
    },
}

/// Numbers for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolReport {
    /// Frames go to the spool, or wait there.
    pub in_use: bool,
    /// Bytes on the disk.
    pub used_bytes: u64,
    /// Bytes it may hold.
    pub limit_bytes: u64,
    /// Bytes of frames that only the spool holds.
    pub waiting_bytes: u64,
    /// Why nothing is written to it, for people.
    pub refused: Option<String>,
}
