//! What the spool keeps in kernel memory: its key, and whether the ring leans on it.
//!
//! A pinned map beside the capture's others: it outlives the process, goes with the capture, and is lost with it at a
//! reboot, as the spool's content should be. Only root can read it.
//!
//! | word (8 bytes) | field |
//! |---|---|
//! | 0 | `TIDESPL\0` |
//! | 1 | version, 1 |
//! | 2 | 1: the ring may have been released on the strength of the spool |
//! | 3 to 6 | key |

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::rand;

use super::sys::{self, Mapping};

const NAME: &str = "spool";
const MAGIC: u64 = u64::from_le_bytes(*b"TIDESPL\0");
const VERSION: u64 = 1;

#[repr(C)]
struct Page {
    magic: AtomicU64,
    version: AtomicU64,
    in_use: AtomicU64,
    key: [AtomicU64; 4],
}

/// The spool's memory of one capture.
#[derive(Debug)]
pub struct SpoolMemory {
    page: Mapping,
}

impl SpoolMemory {
    /// Finds it in a pin folder; `None` when this capture never had a spool.
    pub(super) fn find(folder: &Path) -> io::Result<Option<Self>> {
        let map = match sys::open_pinned(&folder.join(NAME)) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let memory = Self { page: Mapping::new(map.as_fd(), 4096, 0, true)? };
        let page = memory.page()?;
        let known = (page.magic.load(Ordering::Acquire), page.version.load(Ordering::Acquire));
        if known == (MAGIC, VERSION) { Ok(Some(memory)) } else { Err(io::Error::other("of another version")) }
    }

    /// Finds it, or makes one with a new random key.
    pub(super) fn find_or_make(folder: &Path) -> io::Result<Self> {
        if let Some(memory) = Self::find(folder)? {
            return Ok(memory);
        }
        let map = sys::create_array("tide_spool", 4096, 1, false)?;
        let memory = Self { page: Mapping::new(map.as_fd(), 4096, 0, true)? };
        let mut key = [0; 32];
        rand::fill(&mut key).map_err(|_| io::Error::other("no random numbers"))?;
        let page = memory.page()?;
        for (word, bytes) in page.key.iter().zip(key.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Release);
        }
        page.version.store(VERSION, Ordering::Release);
        page.magic.store(MAGIC, Ordering::Release);
        // Last: what is pinned is complete.
        sys::pin(map.as_fd(), &folder.join(NAME))?;
        Ok(memory)
    }

    fn page(&self) -> io::Result<&Page> {
        self.page.at(0).ok_or_else(|| io::Error::other("too short"))
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        if let Ok(page) = self.page() {
            for (to, from) in key.chunks_exact_mut(8).zip(&page.key) {
                to.copy_from_slice(&from.load(Ordering::Acquire).to_le_bytes());
            }
        }
        key
    }

    /// Whether the ring may have been released on the strength of the spool.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.page().is_ok_and(|page| page.in_use.load(Ordering::Acquire) != 0)
    }

    /// Notes it: before the first write, and when everything is acknowledged.
    pub fn set_in_use(&self, in_use: bool) {
        if let Ok(page) = self.page() {
            page.in_use.store(u64::from(in_use), Ordering::Release);
        }
    }
}
