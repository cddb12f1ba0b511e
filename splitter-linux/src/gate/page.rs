//! The page that the splitter and a gate share: what is acknowledged, what is promised, who waits.
//!
//! It is a file of one page on a tmpfs (`/run/tidemark-gate/CAPTURE/VOLUME/page`), so it outlives both processes and
//! ends with the machine. Everything in it is an atomic; nothing is ever waited for with a lock held.
//!
//! **Acknowledged.** The splitter publishes pairs (generation, position): every write that had completed when the
//! kernel's generation and the ring's end were at most these is durable at the appliance. Both only grow, so a reader
//! that sees parts of two publications sees less than the newer one, which is safe.
//!
//! **Promise.** One word, boot time in microseconds: until then the gate completes no write that is not acknowledged.
//! 0 means that it holds nothing. The splitter extends it only from a value that is not 0; the gate lapses only from a
//! value that has passed: both by compare-and-swap, so a promise that was told to the appliance is never broken by a
//! lapse at the same moment. The clock is `CLOCK_BOOTTIME`, which goes on during suspend and is set by nobody.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::error::GateError;
use crate::capture::sys::Mapping;

const MAGIC: u64 = u64::from_le_bytes(*b"TIDEGATE");
const VERSION: u64 = 1;
/// Everything about gates that ends with the machine.
const ROOT: &str = "/run/tidemark-gate";

/// The file in a gate's folder that says why its process ended.
pub(super) const FAILURE: &str = "failure";

/// The folder of a volume's gate.
pub(super) fn folder(capture: &str, volume: &str) -> PathBuf {
    Path::new(ROOT).join(capture).join(volume.replace('/', "!"))
}

/// What happens to held writes when a promise has ended and was not renewed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum OnLapse {
    /// They complete: the guest comes first.
    #[default]
    Async,
    /// They wait on, up to a bound.
    Hold,
}

/// The layout.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Words {
    magic: AtomicU64,
    version: AtomicU64,
    /// The capture whose ring the positions belong to.
    pub(super) capture: [AtomicU64; 2],
    pub(super) position: AtomicU64,
    pub(super) generation: AtomicU64,
    pub(super) promise_us: AtomicU64,
    /// Microseconds that held writes wait beyond the promise.
    pub(super) hold_us: AtomicU64,
    /// Counts publications; futex.
    pub(super) published: AtomicU32,
    /// Counts writes that began to wait; futex.
    pub(super) waiting: AtomicU32,
    /// Lapses, and when the last one was.
    pub(super) lapses: AtomicU64,
    pub(super) lapsed_us: AtomicU64,
    /// Writes that completed while they were not acknowledged, since the gate's beginning.
    pub(super) unreplicated: AtomicU64,
    /// Writes that were held, and how long altogether and at most.
    pub(super) held: AtomicU64,
    pub(super) held_us: AtomicU64,
    pub(super) held_max_us: AtomicU64,
    pub(super) held_now: AtomicU64,
    /// Not 0: end, and remove the device.
    pub(super) stop: AtomicU64,
    /// A barrier: deadline in boot time; 0 when there is none. Set by the splitter.
    pub(super) barrier: AtomicU64,
    /// The barrier that holds everything now, by its deadline. Set by the gate.
    pub(super) barrier_held: AtomicU64,
    /// When it began to hold.
    pub(super) barrier_began_us: AtomicU64,
    /// The last barrier that the gate released by itself, at its deadline.
    pub(super) barrier_broken: AtomicU64,
    /// The gate's process, for people.
    pub(super) process: AtomicU64,
}

/// The mapped page.
#[derive(Debug)]
pub(crate) struct Page {
    memory: Mapping,
}

impl Page {
    /// Opens the page of a volume, or makes it.
    pub(crate) fn open(folder: &Path) -> Result<Self, GateError> {
        std::fs::create_dir_all(folder).map_err(GateError::os("make the gate's folder in /run"))?;
        let kind = nix::sys::statfs::statfs(folder)
            .map_err(io::Error::from)
            .map_err(GateError::os("look at /run"))?
            .filesystem_type();
        if kind != nix::sys::statfs::TMPFS_MAGIC && kind.0 != RAMFS_MAGIC {
            let source = io::Error::other("/run is not in memory (tmpfs): mount a tmpfs there");
            return Err(GateError::Os { action: "share memory with the gate", source });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join("page"))
            .map_err(GateError::os("open the gate's page"))?;
        file.set_len(4096).map_err(GateError::os("size the gate's page"))?;
        let memory =
            Mapping::new(file.as_fd(), 4096, 0, true).map_err(GateError::os("map the gate's page"))?;
        let page = Self { memory };
        let words = page.words();
        if words.magic.load(Ordering::Acquire) == 0 {
            words.version.store(VERSION, Ordering::Release);
            words.magic.store(MAGIC, Ordering::Release);
        }
        if words.magic.load(Ordering::Acquire) != MAGIC || words.version.load(Ordering::Acquire) != VERSION {
            let source = io::Error::other(
                "the gate that runs is of another version: switch the volume to async with that version first",
            );
            return Err(GateError::Os { action: "share memory with the gate", source });
        }
        Ok(page)
    }

    pub(super) fn words(&self) -> &Words {
        static NONE: Words = Words::zero();
        // A page holds the words: the layout has 200 bytes.
        self.memory.at::<Words>(0).unwrap_or(&NONE)
    }

    /// Everything is acknowledged up to here; see the module.
    pub(crate) fn publish(&self, capture: [u64; 2], generation: u64, position: u64) {
        let words = self.words();
        if self.capture() != capture {
            words.capture[0].store(0, Ordering::SeqCst);
            words.position.store(0, Ordering::SeqCst);
            words.generation.store(0, Ordering::SeqCst);
            words.capture[1].store(capture[1], Ordering::SeqCst);
            words.capture[0].store(capture[0], Ordering::SeqCst);
        }
        let before = words.position.fetch_max(position, Ordering::AcqRel);
        let known = words.generation.fetch_max(generation, Ordering::AcqRel);
        if before < position || known < generation {
            self.wake_gate();
        }
    }

    pub(super) fn capture(&self) -> [u64; 2] {
        let words = self.words();
        [words.capture[0].load(Ordering::SeqCst), words.capture[1].load(Ordering::SeqCst)]
    }

    /// Whether everything sampled as (generation, position) is acknowledged.
    pub(crate) fn covers(&self, generation: u64, position: u64) -> bool {
        let words = self.words();
        words.generation.load(Ordering::Acquire) >= generation
            && words.position.load(Ordering::Acquire) >= position
    }

    /// Makes the gate look at the page.
    pub(super) fn wake_gate(&self) {
        let word = &self.words().published;
        word.fetch_add(1, Ordering::AcqRel);
        wake(word);
    }

    /// Extends a promise that holds; false when it has lapsed, or none was made.
    pub(crate) fn extend(&self, until_us: u64) -> bool {
        let word = &self.words().promise_us;
        let mut seen = word.load(Ordering::Acquire);
        while seen != 0 {
            match word.compare_exchange(seen, seen.max(until_us), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Ends a promise whose time has passed. Whether it is over.
    pub(crate) fn lapse(&self, now_us: u64, beyond_us: u64) -> bool {
        let word = &self.words().promise_us;
        let mut seen = word.load(Ordering::Acquire);
        while seen != 0 {
            if now_us <= seen.saturating_add(beyond_us) {
                return false;
            }
            match word.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        true
    }

    /// Until when nothing unacknowledged completes; 0 when the gate holds nothing.
    pub(crate) fn promise_us(&self) -> u64 {
        self.words().promise_us.load(Ordering::Acquire)
    }
}

/// What `statfs` says of the root of an initramfs, which is in memory as well.
const RAMFS_MAGIC: i64 = 0x8584_58f6;

impl Words {
    const fn zero() -> Self {
        #[expect(
            clippy::declare_interior_mutable_const,
            reason = "each use is a word of its own, which is meant"
        )]
        const Z: AtomicU64 = AtomicU64::new(0);
        Self {
            magic: Z,
            version: Z,
            capture: [Z, Z],
            position: Z,
            generation: Z,
            promise_us: Z,
            hold_us: Z,
            published: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            lapses: Z,
            lapsed_us: Z,
            unreplicated: Z,
            held: Z,
            held_us: Z,
            held_max_us: Z,
            held_now: Z,
            stop: Z,
            barrier: Z,
            barrier_held: Z,
            barrier_began_us: Z,
            barrier_broken: Z,
            process: Z,
        }
    }
}

/// Wakes every process that waits on a word of shared memory.
pub(super) fn wake(word: &AtomicU32) {
    // SAFETY: the address is that of a live word; the call reads and writes nothing but the kernel's queues.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0_usize, 0_usize, 0);
    }
}

/// Waits until a word of shared memory is no longer `seen`, at most `timeout`.
pub(super) fn wait(word: &AtomicU32, seen: u32, timeout: Duration) {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(1),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: both addresses are of live values; the word is only read.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            seen,
            std::ptr::from_ref(&time),
            0_usize,
            0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> (tempfile::TempDir, Page) {
        let root = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
        let page = Page::open(&root.path().join("vg-lv")).unwrap();
        (root, page)
    }

    #[test]
    fn a_write_is_covered_when_generation_and_position_are() {
        let (_root, page) = page();
        page.publish([1, 2], 4, 1000);
        assert!(page.covers(4, 1000) && page.covers(3, 1000));
        assert!(!page.covers(5, 10), "a miss raised the generation");
        assert!(!page.covers(4, 1001));
        page.publish([1, 2], 3, 900);
        assert!(page.covers(4, 1000), "it only grows");
        page.publish([7, 7], 1, 8);
        assert!(!page.covers(4, 1000), "another capture begins anew");
    }

    #[test]
    fn a_promise_lapses_only_when_it_has_passed_and_is_extended_only_while_it_holds() {
        let (_root, page) = page();
        assert!(!page.extend(100), "none was made");
        page.words().promise_us.store(100, Ordering::Release);
        assert!(!page.lapse(100, 0));
        assert!(page.extend(200) && page.promise_us() == 200);
        assert!(page.extend(150) && page.promise_us() == 200, "a promise is not shortened");
        assert!(!page.lapse(201, 50));
        assert!(page.lapse(251, 50) && page.promise_us() == 0);
        assert!(!page.extend(900), "a lapsed promise is made anew, not extended");
    }

    #[test]
    fn two_processes_see_one_page() {
        let (root, page) = page();
        let other = Page::open(&root.path().join("vg-lv")).unwrap();
        page.publish([1, 2], 4, 1000);
        assert!(other.covers(4, 1000));
        let waiter = std::thread::spawn(move || {
            let word = &other.words().waiting;
            while word.load(Ordering::Acquire) == 0 {
                wait(word, 0, Duration::from_secs(5));
            }
        });
        page.words().waiting.fetch_add(1, Ordering::AcqRel);
        wake(&page.words().waiting);
        waiter.join().unwrap();
    }
}
