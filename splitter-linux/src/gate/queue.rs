//! The one thread that serves a gate's requests.
//!
//! It passes each request to the private mapping and completes it when that has completed; a write only when, besides,
//! everything that had happened by then is acknowledged ([`Sampler`], [`Page`]). It never logs, opens or allocates
//! once it runs, and its memory is locked: the kernel may be waiting for it to free memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use io_uring::{IoUring, opcode, squeue, types};

use super::abi;
use super::buffers::Buffers;
use super::page::{Page, wake};
use super::sampler::{Sample, Sampler};
use crate::capture::sys::Mapping;
use crate::daemon::now_us;

/// Requests at a time. A held write keeps its place, so this bounds the writes in flight to the appliance; beyond it
/// the block layer queues.
pub(super) const DEPTH: u16 = 64;
/// Bytes of one request at most, a buffer of this size for each: 16 MiB locked. The block layer splits larger ones.
pub(super) const IO_BYTES_MAX: u32 = 256 << 10;

/// Registered files.
const CHARACTER: types::Fixed = types::Fixed(0);
const BACKING: types::Fixed = types::Fixed(1);
const NOTICE: types::Fixed = types::Fixed(2);

/// What a completion is about, above the tag.
const OF_DRIVER: u64 = 0;
const OF_BACKING: u64 = 1 << 32;
const OF_NOTICE: u64 = 2 << 32;

/// A discard or zeroing: done by a thread of its own, for these have no portable asynchronous call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slow {
    pub(super) tag: u16,
    pub(super) discard: bool,
    pub(super) start_bytes: u64,
    pub(super) bytes: u64,
}

/// What the thread is given.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) character: File,
    pub(super) backing: File,
    /// An eventfd: written to when there is something to look at.
    pub(super) notice: Arc<File>,
    pub(super) page: Arc<Page>,
    pub(super) sampler: Sampler,
    /// Where the capture is pinned, should it be another one later.
    pub(super) pins: PathBuf,
    pub(super) slow: SyncSender<Slow>,
    pub(super) slow_done: Receiver<(u16, i32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    /// With the driver: free, or a request on its way here.
    Driver,
    /// Came while a barrier holds; nothing was done yet.
    Parked,
    /// At the volume.
    Backing,
    /// At the volume it is complete; it waits for the acknowledgement.
    Held,
    /// Complete while a barrier holds.
    Finished(i32),
    /// The device is going away.
    Dead,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    tag: u16,
    result: i32,
    at: Sample,
    since_us: u64,
}

pub(super) struct Queue {
    ring: IoUring,
    requests: Mapping,
    buffers: Buffers,
    tags: Vec<Tag>,
    held: VecDeque<Held>,
    newly_held: bool,
    barrier: u64,
    /// A barrier that was released at its deadline, or begun before this process: not held again.
    refused_barrier: u64,
    notice_bytes: Box<u64>,
    page: Arc<Page>,
    sampler: Sampler,
    pins: PathBuf,
    slow: SyncSender<Slow>,
    slow_done: Receiver<(u16, i32)>,
}

impl Queue {
    /// Fetches all tags. The device can be started, or taken over, when this has returned.
    pub(super) fn begin(parts: Parts) -> io::Result<Self> {
        let Parts { character, backing, notice, page, sampler, pins, slow, slow_done } = parts;
        let bytes = (usize::from(DEPTH) * size_of::<abi::Request>()).next_multiple_of(4096);
        let requests = Mapping::new(character.as_fd(), bytes, 0, false)?;
        let buffers = Buffers::new(usize::from(DEPTH), IO_BYTES_MAX as usize)?;
        let ring =
            IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(u32::from(DEPTH) * 4)?;
        // The ring alone holds the files from here on: they are given up when its last request has ended, so a successor
        // that may take over the device knows that nothing of this process can reach the volume any more.
        ring.submitter().register_files(&[character.as_raw_fd(), backing.as_raw_fd(), notice.as_raw_fd()])?;
        drop((character, backing));
        let refused_barrier = page.words().barrier.load(Ordering::Acquire);
        page.words().barrier_broken.store(refused_barrier, Ordering::Release);
        page.words().barrier_held.store(0, Ordering::Release);
        page.words().held_now.store(0, Ordering::Release);
        let mut queue = Self {
            ring,
            requests,
            buffers,
            tags: vec![Tag::Driver; usize::from(DEPTH)],
            held: VecDeque::with_capacity(usize::from(DEPTH)),
            newly_held: false,
            barrier: 0,
            refused_barrier,
            notice_bytes: Box::new(0),
            page,
            sampler,
            pins,
            slow,
            slow_done,
        };
        for tag in 0..DEPTH {
            let body = abi::request(tag, 0, queue.buffers.of(tag).addr() as u64);
            queue.push(
                &opcode::UringCmd16::new(CHARACTER, abi::IO_FETCH)
                    .cmd(body)
                    .build()
                    .user_data(u64::from(tag)),
            )?;
        }
        queue.await_notice()?;
        queue.ring.submit()?;
        Ok(queue)
    }

    /// Serves until the device is stopped.
    pub(super) fn serve(mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => return Err(error),
            }
            loop {
                let next = self.ring.completion().next();
                let Some(entry) = next else { break };
                self.take(entry.user_data(), entry.result())?;
            }
            if self.newly_held {
                self.newly_held = false;
                self.show_held();
                let word = &self.page.words().waiting;
                word.fetch_add(1, Ordering::AcqRel);
                wake(word);
            }
            if self.tags.iter().all(|tag| *tag == Tag::Dead) {
                return Ok(());
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: buffers and files of every entry belong to `self`, which outlives the ring's requests: the ring is
            // the first field to be dropped, and closing it waits for or cancels them.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    fn await_notice(&mut self) -> io::Result<()> {
        let into: *mut u64 = &raw mut *self.notice_bytes;
        self.push(&opcode::Read::new(NOTICE, into.cast(), 8).build().user_data(OF_NOTICE))
    }

    fn take(&mut self, about: u64, result: i32) -> io::Result<()> {
        let tag = u16::try_from(about & 0xffff).unwrap_or(0);
        match about & (0xffff << 32) {
            OF_DRIVER if result == 0 => self.arrived(tag),
            OF_DRIVER => {
                // -ENODEV: the device stops. Whatever else the driver minds, this tag is not served any more.
                self.set(tag, Tag::Dead);
                Ok(())
            }
            OF_BACKING => self.backing_done(tag, result),
            _ => {
                self.await_notice()?;
                self.look()
            }
        }
    }

    fn set(&mut self, tag: u16, state: Tag) {
        if let Some(entry) = self.tags.get_mut(usize::from(tag)) {
            *entry = state;
        }
    }

    fn request(&self, tag: u16) -> (u32, u64, u64) {
        let Some(request) = self.requests.at::<abi::Request>(usize::from(tag) * size_of::<abi::Request>())
        else {
            return (0xff, 0, 0);
        };
        let sectors = request.sectors.load(Ordering::Acquire);
        let start = request.start_sector.load(Ordering::Acquire);
        (request.operation.load(Ordering::Acquire), start.saturating_mul(512), u64::from(sectors) * 512)
    }

    fn arrived(&mut self, tag: u16) -> io::Result<()> {
        if self.barrier != 0 {
            self.set(tag, Tag::Parked);
            return Ok(());
        }
        self.set(tag, Tag::Backing);
        let (operation, start, bytes) = self.request(tag);
        let about = OF_BACKING | u64::from(tag);
        let buffer = self.buffers.of(tag);
        let length = u32::try_from(bytes).unwrap_or(u32::MAX);
        let fits = length <= IO_BYTES_MAX;
        let entry = match operation.to_le_bytes()[0] {
            abi::OP_READ if fits => opcode::Read::new(BACKING, buffer, length).offset(start).build(),
            abi::OP_WRITE if fits => {
                let flags = if operation & abi::IO_F_FUA != 0 { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(BACKING, buffer, length).offset(start).rw_flags(flags).build()
            }
            abi::OP_FLUSH => opcode::Fsync::new(BACKING).flags(types::FsyncFlags::DATASYNC).build(),
            kind @ (abi::OP_DISCARD | abi::OP_WRITE_ZEROES) => {
                let slow = Slow { tag, discard: kind == abi::OP_DISCARD, start_bytes: start, bytes };
                // It has room for every tag.
                return match self.slow.try_send(slow) {
                    Ok(()) => Ok(()),
                    Err(_) => self.backing_done(tag, -libc::EIO),
                };
            }
            _ => return self.backing_done(tag, -libc::EOPNOTSUPP),
        };
        self.push(&entry.user_data(about))
    }

    fn backing_done(&mut self, tag: u16, result: i32) -> io::Result<()> {
        let (operation, _, bytes) = self.request(tag);
        let kind = operation.to_le_bytes()[0];
        let result = match kind {
            // Part of a request is only done when the medium fails.
            abi::OP_READ | abi::OP_WRITE if result >= 0 && u64::try_from(result) != Ok(bytes) => -libc::EIO,
            _ => result,
        };
        if kind == abi::OP_READ || result < 0 || self.page.promise_us() == 0 {
            return self.finish(tag, result);
        }
        let at = self.sampler.sample();
        if self.acknowledged(at) {
            return self.finish(tag, result);
        }
        self.set(tag, Tag::Held);
        self.held.push_back(Held { tag, result, at, since_us: now_us() });
        self.newly_held = true;
        Ok(())
    }

    fn acknowledged(&self, at: Sample) -> bool {
        // The capture is compared before and after: between them it was the same.
        self.page.capture() == self.sampler.capture
            && self.page.covers(at.generation, at.position)
            && self.page.capture() == self.sampler.capture
    }

    fn finish(&mut self, tag: u16, result: i32) -> io::Result<()> {
        if self.barrier != 0 {
            self.set(tag, Tag::Finished(result));
            return Ok(());
        }
        self.set(tag, Tag::Driver);
        let body = abi::request(tag, result, self.buffers.of(tag).addr() as u64);
        self.push(
            &opcode::UringCmd16::new(CHARACTER, abi::IO_COMMIT_AND_FETCH)
                .cmd(body)
                .build()
                .user_data(u64::from(tag)),
        )
    }

    /// Something changed on the page, or time went by.
    fn look(&mut self) -> io::Result<()> {
        while let Ok((tag, result)) = self.slow_done.try_recv() {
            self.backing_done(tag, result)?;
        }
        self.follow_capture();
        self.follow_barrier()?;
        self.release_held()
    }

    /// The splitter loaded another capture: what was sampled in the old one is sampled again.
    fn follow_capture(&mut self) {
        let capture = self.page.capture();
        if capture == self.sampler.capture || capture[0] == 0 {
            return;
        }
        if let Ok(sampler) = Sampler::open(&self.pins)
            && sampler.capture == capture
        {
            self.sampler = sampler;
            let at = self.sampler.sample();
            for held in &mut self.held {
                held.at = at;
            }
        }
    }

    fn release_held(&mut self) -> io::Result<()> {
        let now = now_us();
        let words = self.page.words();
        let promised = words.promise_us.load(Ordering::Acquire) != 0;
        let over = self.page.lapse(now, words.hold_us.load(Ordering::Acquire));
        if promised && over {
            words.lapses.fetch_add(1, Ordering::AcqRel);
            words.lapsed_us.store(now, Ordering::Release);
        }
        let mut released = false;
        while let Some(first) = self.held.front().copied() {
            let acknowledged = self.acknowledged(first.at);
            if !acknowledged && !over {
                break;
            }
            self.held.pop_front();
            released = true;
            let waited = now.saturating_sub(first.since_us);
            let words = self.page.words();
            words.held.fetch_add(1, Ordering::Relaxed);
            words.held_us.fetch_add(waited, Ordering::Relaxed);
            words.held_max_us.fetch_max(waited, Ordering::Relaxed);
            if !acknowledged {
                words.unreplicated.fetch_add(1, Ordering::Relaxed);
            }
            self.finish(first.tag, first.result)?;
        }
        if released {
            self.show_held();
        }
        Ok(())
    }

    fn show_held(&self) {
        self.page.words().held_now.store(self.held.len() as u64, Ordering::Release);
    }

    fn follow_barrier(&mut self) -> io::Result<()> {
        let words = self.page.words();
        let wanted = words.barrier.load(Ordering::Acquire);
        let passed = wanted != 0 && now_us() >= wanted;
        if passed && wanted != self.refused_barrier {
            self.refused_barrier = wanted;
            words.barrier_broken.store(wanted, Ordering::Release);
        }
        let holds = if wanted == self.refused_barrier { 0 } else { wanted };
        if holds == self.barrier {
            return Ok(());
        }
        if holds != 0 && self.barrier == 0 {
            self.barrier = holds;
            words.barrier_began_us.store(now_us(), Ordering::Release);
            words.barrier_held.store(holds, Ordering::Release);
            return Ok(());
        }
        // Released; one that follows at once begins anew with the next look.
        words.barrier_held.store(0, Ordering::Release);
        self.barrier = 0;
        for tag in 0..DEPTH {
            match self.tags.get(usize::from(tag)) {
                Some(Tag::Parked) => self.arrived(tag)?,
                Some(Tag::Finished(result)) => self.finish(tag, *result)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Does discards and zeroings, one after the other, until the queue is gone.
pub(super) fn serve_slow(device: &Path, work: &Receiver<Slow>, done: &SyncSender<(u16, i32)>, notice: &File) {
    /// `_IO(0x12, 119)` and `_IO(0x12, 127)`.
    const BLKDISCARD: u64 = 0x1277;
    const BLKZEROOUT: u64 = 0x127f;
    let Ok(file) = File::options().read(true).write(true).open(device) else { return };
    while let Ok(slow) = work.recv() {
        let range = [slow.start_bytes, slow.bytes];
        let code = if slow.discard { BLKDISCARD } else { BLKZEROOUT };
        // SAFETY: the call reads two numbers from a live array.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), code, range.as_ptr()) };
        let result =
            if result < 0 { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { 0 };
        if done.send((slow.tag, result)).is_err() {
            return;
        }
        let mut notice = notice;
        // An eventfd takes eight bytes; it is full only when it was not looked at 2^64 times.
        let _ = io::Write::write_all(&mut notice, &1_u64.to_ne_bytes());
    }
}
