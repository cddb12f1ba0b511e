//! What the ring tells: units, each a write about to reach the hardware, its completion, or what became of it.

use tidemark_proto::v1::WriteKind;

/// A protected disk in the kernel's tables. A slot is not given to another disk while the ring still holds a record
/// of the disk that had it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Slot(pub u16);

/// Bits of [`Issue::flags`]; the same as in `WriteEntry.flags` of the protocol.
pub mod flags {
    /// The write is stable when it completes.
    pub const FUA: u32 = 1;
    /// The device flushes its cache before this write.
    pub const PREFLUSH: u32 = 2;
    /// A secure erase; reads back as zeroes.
    pub const SECURE_ERASE: u32 = 4;
}

/// One event with its place in the ring.
#[derive(Debug, Clone, Copy)]
pub struct Unit<'a> {
    /// Ring byte position of its first record. Records of other units may lie between `start` and `end`.
    pub start: u64,
    /// Ring byte position after its last record. Units come in the order of `end`; that order is the capture order.
    pub end: u64,
    /// The kernel's generation when the unit's program began.
    pub generation: u32,
    /// What happened.
    pub event: Event<'a>,
}

/// What happened to a request.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A write is about to be handed to the hardware, captured whole.
    Issue(Issue<'a>),
    /// A request finished, whether its issue was captured or not.
    Complete {
        /// The request's address: its identity from issue to completion.
        request: u64,
        /// Its disk.
        slot: Slot,
        /// What it was.
        kind: WriteKind,
        /// First sector.
        start_sector: u64,
        /// Length in sectors when it completed; 0 for a flush.
        sectors: u32,
        /// The device reported an error.
        failed: bool,
        /// Bytes completed; fewer than the request has means a short write.
        bytes: u64,
    },
    /// The driver gave the request back to the block layer; it will be issued again, perhaps grown by a merge.
    Requeue {
        /// The request's address.
        request: u64,
    },
    /// The reader had to give up a unit of several parts whose end record never came (another unit of the same CPU
    /// began). The write went to the hardware and was not captured.
    Voided {
        /// The request's address.
        request: u64,
        /// Its disk.
        slot: Slot,
        /// First sector.
        start_sector: u64,
        /// Length in sectors.
        sectors: u32,
    },
}

/// A captured write.
#[derive(Debug, Clone, Copy)]
pub struct Issue<'a> {
    /// The request's address: its identity until its completion.
    pub request: u64,
    /// Its disk.
    pub slot: Slot,
    /// Data, zeroes, discard or flush.
    pub kind: WriteKind,
    /// First sector; 0 for a flush.
    pub start_sector: u64,
    /// Length in sectors; 0 for a flush.
    pub sectors: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Guest boot time (`CLOCK_BOOTTIME`) in nanoseconds.
    pub boottime_ns: u64,
    /// The content: `sectors * 512` bytes for data, nothing for the other kinds.
    pub parts: Parts<'a>,
}

/// A slice of the ring's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset into the memory that [`Parts::new`] takes.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
}

/// The content of a write: pieces of the ring's own memory, in the order of the sectors. Valid until the next call
/// to the ring.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    memory: &'a [u8],
    pieces: &'a [Piece],
}

impl<'a> Parts<'a> {
    /// Content without a byte.
    pub const EMPTY: Self = Self { memory: &[], pieces: &[] };

    /// Content made of `pieces` of `memory`. A piece outside the memory reads as empty, which the engine notices as
    /// a length that does not fit the write.
    #[must_use]
    pub fn new(memory: &'a [u8], pieces: &'a [Piece]) -> Self {
        Self { memory, pieces }
    }

    /// The slices in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let memory = self.memory;
        self.pieces.iter().map(move |piece| {
            piece
                .offset
                .checked_add(piece.length)
                .and_then(|end| memory.get(piece.offset..end))
                .unwrap_or_default()
        })
    }

    /// Bytes in all slices.
    #[must_use]
    pub fn length(&self) -> usize {
        self.iter().map(<[u8]>::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_order_and_one_outside_the_memory_is_empty() {
        let memory = [1, 2, 3, 4, 5];
        let pieces = [
            Piece { offset: 3, length: 2 },
            Piece { offset: 0, length: 1 },
            Piece { offset: 4, length: 2 },
            Piece { offset: usize::MAX, length: 2 },
        ];
        let parts = Parts::new(&memory, &pieces);
        assert_eq!(parts.iter().flatten().copied().collect::<Vec<_>>(), [4, 5, 1]);
        assert_eq!(parts.length(), 3);
        assert_eq!(Parts::EMPTY.length(), 0);
    }
}
