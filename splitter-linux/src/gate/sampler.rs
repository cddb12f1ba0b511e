//! The gate's look at the tap: where the ring ends, and in which generation.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::GateError;
use crate::capture::layout::{ControlPage, META_MAGIC, MetaPage};
use crate::capture::sys::{self, Mapping};
use std::os::fd::AsFd;

/// A moment of the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sample {
    pub(super) generation: u64,
    pub(super) position: u64,
}

/// The pinned maps of a capture, mapped for reading.
#[derive(Debug)]
pub(super) struct Sampler {
    producer: Mapping,
    control: Mapping,
    pub(super) capture: [u64; 2],
}

impl Sampler {
    /// Opens what the splitter of this name pins now.
    pub(super) fn of(capture: &str) -> Result<Self, GateError> {
        Self::open(&pins(capture)?)
    }

    /// Opens what the splitter pinned under this name.
    pub(super) fn open(folder: &std::path::Path) -> Result<Self, GateError> {
        let open = |name: &str, bytes: usize, offset: u64| -> std::io::Result<Mapping> {
            let fd = sys::open_pinned(&folder.join(name))?;
            Mapping::new(fd.as_fd(), bytes, offset, false)
        };
        let action = "open the tap (is the splitter running, with a protected disk?)";
        let meta =
            open("meta", size_of::<MetaPage>().next_multiple_of(4096), 0).map_err(GateError::os(action))?;
        let word = |at: usize| meta.at::<AtomicU64>(at).map_or(0, |word| word.load(Ordering::Acquire));
        if word(0) != META_MAGIC {
            return Err(GateError::Os {
                action,
                source: std::io::Error::other("the tap is of another version"),
            });
        }
        Ok(Self {
            // The second page of a ring is its producer position.
            producer: open("ring", 4096, 4096).map_err(GateError::os(action))?,
            control: open("control", 4096, 0).map_err(GateError::os(action))?,
            capture: [word(16), word(24)],
        })
    }

    /// Taken after a write has completed: its record, or the raised generation of its miss, lies at or before it.
    pub(super) fn sample(&self) -> Sample {
        let position = self.producer.at::<AtomicU64>(0).map_or(u64::MAX, |word| word.load(Ordering::SeqCst));
        let state =
            self.control.at::<ControlPage>(0).map_or(u64::MAX, |page| page.state.load(Ordering::SeqCst));
        Sample { generation: state >> 1, position }
    }
}

/// Where the splitter of this name pins its capture.
pub(super) fn pins(capture: &str) -> Result<PathBuf, GateError> {
    crate::capture::bpffs::folder().map(|folder| folder.join(capture)).map_err(|error| GateError::Os {
        action: "find the tap",
        source: std::io::Error::other(error.to_string()),
    })
}
