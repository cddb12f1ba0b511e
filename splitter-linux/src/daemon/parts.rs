//! What the daemon is put together from.
//!
//! The product has one set of parts, [`Parts::default`], and no switch for another. A program of its own can pass
//! parts that lie, to show that a test notices: a ring that leaves out a write, a witness that never minds, a reader
//! that goes through the page cache. See [`cli::run`](crate::cli::run).

use tidemark_splitter_core::engine::Kernel;

use crate::capture::LinuxCapture;
use crate::disks::{DirectReader, DiskSet};

/// The parts of one daemon.
#[derive(Debug)]
pub struct Parts {
    /// What the engine sees of the capture.
    pub kernel: Box<dyn KernelSide>,
    /// What reads the disks for initial copy and resync.
    pub reader: Box<dyn DiskSet>,
}

impl Default for Parts {
    /// The capture as it is, and direct reads.
    fn default() -> Self {
        Self { kernel: Box::new(Plain), reader: Box::<DirectReader>::default() }
    }
}

/// Lends the kernel side of a capture to the engine. Used on the worker's thread only.
pub trait KernelSide: Send + std::fmt::Debug {
    /// Calls `work` exactly once, with a kernel made of the capture's ring, control and maps.
    fn lend(&mut self, capture: &mut LinuxCapture, work: &mut dyn FnMut(&mut Kernel<'_>));
}

/// Lends the capture itself.
#[derive(Debug)]
struct Plain;

impl KernelSide for Plain {
    fn lend(&mut self, capture: &mut LinuxCapture, work: &mut dyn FnMut(&mut Kernel<'_>)) {
        work(&mut Kernel {
            ring: &mut capture.ring,
            control: &mut capture.control,
            dirty: &mut capture.maps,
        });
    }
}
