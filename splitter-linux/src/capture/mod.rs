//! Capture of writes with an eBPF tap (`src/bpf/tap.bpf.c`).
//!
//! [`LinuxCapture`] loads the programs, or finds them running from before, and implements the contracts of
//! [`tidemark_splitter_core::capture`]: [`TapRing`], [`TapControl`], [`TapMaps`]. The reader of disks is
//! [`crate::disks::DirectReader`].
//!
//! What keeps the order legal and what happens at a miss is explained at the top of the program's source; the shared
//! memory in `layout.rs`.

pub(crate) mod bpffs;
mod calibrate;
mod control;
mod dirty;
mod error;
pub(crate) mod layout;
mod load;
mod pinned;
mod ring;
mod scratch;
mod scratch_fs;
mod self_test;
mod spool_memory;
pub(crate) mod sys;
mod tap;
mod witness;

pub use bpffs::name_for;
pub use calibrate::{Source as ConstantSource, note_page_constant};
pub use control::TapControl;
pub use dirty::TapMaps;
pub use error::CaptureError;
pub use layout::SLOTS;
pub use ring::TapRing;
pub use spool_memory::SpoolMemory;
pub use tap::{CapturedDisk, LinuxCapture, Origin, RING_BYTES_MAX, RING_BYTES_MIN, Settings, unload};
