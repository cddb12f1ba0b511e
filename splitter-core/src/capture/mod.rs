//! Contracts between the engine and the operating system's capture.

mod control;
mod dirty;
mod disk;
mod event;
mod ring;

pub use control::{Control, ControlError, KernelStatus, Mode, Witness};
pub use dirty::{BLOCK_BYTES, BLOCK_SECTORS, BlockRange, DirtyMaps, MapError};
pub use disk::{DiskReader, ReadError};
pub use event::{Event, Issue, Parts, Piece, Slot, Unit, flags};
pub use ring::{Ring, RingError};
