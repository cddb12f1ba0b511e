//! Runs the stamp workload against a block device or a file.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::history::{History, Kind, Operation};
use super::sector::{SECTOR_BYTES, Stamp};

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::c_ulong = 0x1277;
/// `_IO(0x12, 127)` of `linux/fs.h`.
const BLKZEROOUT: libc::c_ulong = 0x127f;
/// Alignment that O_DIRECT needs at most on the disks of the tests, in bytes.
const DIRECT_ALIGNMENT_BYTES: usize = 4096;

/// What the workload does.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides every choice but the interleaving of threads.
    pub seed: u64,
    /// Number of operations in flight: one thread each.
    pub queue_depth: usize,
    /// Most operations; the run may be stopped before.
    pub operations: u64,
    /// Longest run.
    pub duration: Duration,
    /// Largest operation, in sectors; sizes are spread evenly over the powers of two up to it.
    pub largest_sectors: u64,
    /// Of 100 operations, this many zero their range and as many discard it.
    pub zeroes_percent: u32,
    /// Zeroings and discards begin and end at multiples of this many sectors. A discard that is not aligned to the
    /// disk's granularity becomes two requests, which is fine unless requests are counted.
    pub zeroes_alignment_sectors: u64,
    /// Most operations per second over all threads; 0: as fast as the disk takes them.
    pub rate: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            queue_depth: 1,
            operations: u64::MAX,
            duration: Duration::from_secs(10),
            largest_sectors: 2048,
            zeroes_percent: 2,
            zeroes_alignment_sectors: 1,
            rate: 0,
        }
    }
}

/// What a finished run did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The log.
    pub history: History,
    /// Longest time a single operation took.
    pub slowest: Duration,
    /// Errors the disk returned, with the operation's number.
    pub errors: Vec<(u64, String)>,
    /// Wall-clock length of the run.
    pub elapsed: Duration,
}

/// A buffer that O_DIRECT takes.
#[derive(Debug)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// A zeroed buffer of `length` bytes whose start is aligned for direct I/O.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let bytes = vec![0; length + DIRECT_ALIGNMENT_BYTES];
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGNMENT_BYTES);
        Self { bytes, start, length }
    }

    /// The buffer.
    pub fn slice_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// A workload bound to an open disk. It keeps the disk open, because closing a block device flushes it, and a flush
/// takes an LSN of its own.
#[derive(Debug)]
pub struct Workload {
    disk: File,
    is_device: bool,
    disk_sectors: u64,
    options: Options,
    clock: AtomicU64,
    stop: AtomicBool,
    plan: Mutex<Plan>,
    freed: Condvar,
}

#[derive(Debug)]
struct Plan {
    random: StdRng,
    operations: Vec<Operation>,
    in_flight: Vec<(u64, u64)>,
    errors: Vec<(u64, String)>,
    slowest: Duration,
    /// Nothing is submitted while this is set: since when.
    paused: Option<Instant>,
    /// How long all pauses took that are over: writes of that time are not made up for.
    rested: Duration,
}

impl Workload {
    /// Opens `disk`, which must hold zeroes only, with O_DIRECT.
    ///
    /// # Errors
    /// When the disk cannot be opened or is smaller than the largest operation.
    pub fn open(disk: &Path, options: Options) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(disk)
            .with_context(|| format!("open {}", disk.display()))?;
        let is_device = file.metadata()?.file_type().is_block_device();
        let bytes = size_bytes(&file)?;
        let disk_sectors = bytes / SECTOR_BYTES as u64;
        ensure!(
            disk_sectors >= options.largest_sectors,
            "{} has {disk_sectors} sectors only",
            disk.display()
        );
        let plan = Plan {
            random: StdRng::seed_from_u64(options.seed),
            operations: Vec::new(),
            in_flight: Vec::new(),
            errors: Vec::new(),
            slowest: Duration::ZERO,
            paused: None,
            rested: Duration::ZERO,
        };
        Ok(Self {
            disk: file,
            is_device,
            disk_sectors,
            options,
            clock: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            plan: Mutex::new(plan),
            freed: Condvar::new(),
        })
    }

    /// Asks a running workload to end after the operations in flight.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.freed.notify_all();
    }

    /// Holds new submissions back and waits until nothing is in flight; [`Workload::resume`] goes on.
    pub fn pause(&self) {
        let mut plan = self.lock();
        plan.paused = plan.paused.or_else(|| Some(Instant::now()));
        while !plan.in_flight.is_empty() {
            plan = self.freed.wait(plan).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends a [`Workload::pause`].
    pub fn resume(&self) {
        let mut plan = self.lock();
        if let Some(since) = plan.paused.take() {
            plan.rested += since.elapsed();
        }
        drop(plan);
        self.freed.notify_all();
    }

    /// Stops the workload when the guard is dropped: a failed test must not wait for the end of its load.
    #[must_use]
    pub fn stop_on_drop(&self) -> StopOnDrop<'_> {
        StopOnDrop(self)
    }

    /// The clock of the log now: what completed before has a lower tick.
    #[must_use]
    pub fn tick(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// Operations planned until now.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.lock().operations.len() as u64
    }

    /// The log until now; operations in flight have no completion.
    #[must_use]
    pub fn history(&self) -> History {
        History {
            run: self.options.seed,
            disk_sectors: self.disk_sectors,
            operations: self.lock().operations.clone(),
        }
    }

    /// Longest operation so far; starts a new measurement.
    #[must_use]
    pub fn take_slowest(&self) -> Duration {
        std::mem::take(&mut self.lock().slowest)
    }

    /// Runs to the end of the options, or until [`Workload::stop`]. May be called again to go on.
    ///
    /// # Errors
    /// None of the disk's: those are in the report.
    pub fn run(&self) -> Result<Report> {
        self.stop.store(false, Ordering::SeqCst);
        let began = Instant::now();
        let first = self.progress();
        self.lock().rested = Duration::ZERO;
        std::thread::scope(|scope| {
            for _ in 0..self.options.queue_depth.max(1) {
                scope.spawn(|| self.work(began, first));
            }
        });
        let plan = self.lock();
        Ok(Report {
            history: History {
                run: self.options.seed,
                disk_sectors: self.disk_sectors,
                operations: plan.operations.clone(),
            },
            slowest: plan.slowest,
            errors: plan.errors.clone(),
            elapsed: began.elapsed(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, began: Instant, first: u64) {
        let largest_bytes = usize::try_from(self.options.largest_sectors).unwrap_or(1) * SECTOR_BYTES;
        let mut buffer = AlignedBuffer::new(largest_bytes + 8 * SECTOR_BYTES);
        while let Some((operation, shift)) = self.next(began, first) {
            let time_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let length = usize::try_from(operation.sectors).unwrap_or(0) * SECTOR_BYTES;
            // Another start within the page each time: the parts of a request are then of uneven sizes.
            let bytes = &mut buffer.slice_mut()[shift * SECTOR_BYTES..shift * SECTOR_BYTES + length];
            if operation.kind == Kind::Data {
                for (sector, bytes) in (operation.start_sector..).zip(bytes.as_chunks_mut::<SECTOR_BYTES>().0)
                {
                    Stamp { run: self.options.seed, sequence: operation.sequence, sector, time_us }
                        .encode(bytes);
                }
            }
            let submitted = self.clock.fetch_add(1, Ordering::SeqCst);
            let start = Instant::now();
            let result = self.submit(&operation, bytes);
            let took = start.elapsed();
            let completed = self.clock.fetch_add(1, Ordering::SeqCst);
            self.finish(&operation, submitted, result.map(|()| completed), took);
        }
    }

    /// Plans the next operation, once its range is free; `None` at the end.
    fn next(&self, began: Instant, first: u64) -> Option<(Operation, usize)> {
        let mut plan = self.lock();
        let (kind, start_sector, sectors, shift) = self.choose(&mut plan.random);
        loop {
            let planned = plan.operations.len() as u64;
            if self.stop.load(Ordering::SeqCst)
                || planned - first >= self.options.operations
                || began.elapsed() >= self.options.duration
            {
                return None;
            }
            let due = match (planned - first).checked_div(self.options.rate) {
                None => Duration::ZERO,
                Some(_) => Duration::from_micros((planned - first) * 1_000_000 / self.options.rate),
            };
            let overlaps = |range: &(u64, u64)| range.0 < start_sector + sectors && start_sector < range.1;
            if plan.paused.is_some() || plan.in_flight.iter().any(overlaps) {
                plan = self.freed.wait(plan).unwrap_or_else(PoisonError::into_inner);
            } else if let Some(early) =
                (due + plan.rested).checked_sub(began.elapsed()).filter(|early| !early.is_zero())
            {
                plan = self.freed.wait_timeout(plan, early).unwrap_or_else(PoisonError::into_inner).0;
            } else {
                break;
            }
        }
        let sequence = plan.operations.len() as u64;
        let operation = Operation { sequence, kind, start_sector, sectors, submitted: None, completed: None };
        // In flight from here on: a log read in the middle must count the write as possibly submitted.
        let planned = Operation { submitted: Some(self.clock.load(Ordering::SeqCst)), ..operation };
        plan.operations.push(planned);
        plan.in_flight.push((start_sector, start_sector + sectors));
        Some((operation, shift))
    }

    fn choose(&self, random: &mut StdRng) -> (Kind, u64, u64, usize) {
        let bits = self.options.largest_sectors.max(1).ilog2();
        let upper = 1_u64 << random.random_range(0..=bits);
        let sectors = random.random_range(upper.div_ceil(2)..=upper).min(self.options.largest_sectors);
        // Half of the writes fall on a tenth of the disk, so that sectors have histories.
        let reach = self.disk_sectors - sectors;
        let reach = if random.random_bool(0.5) { reach / 10 } else { reach };
        let start_sector = random.random_range(0..=reach);
        let kind = match random.random_range(0..100) {
            roll if roll < self.options.zeroes_percent => Kind::Zeroes,
            roll if roll < 2 * self.options.zeroes_percent => Kind::Discard,
            _ => Kind::Data,
        };
        let unit = self.options.zeroes_alignment_sectors.max(1);
        if kind != Kind::Data && unit > 1 {
            let start_sector = start_sector / unit * unit;
            let sectors =
                sectors.next_multiple_of(unit).min((self.disk_sectors - start_sector) / unit * unit);
            return (kind, start_sector, sectors, 0);
        }
        (kind, start_sector, sectors, random.random_range(0..8))
    }

    fn finish(&self, operation: &Operation, submitted: u64, result: Result<u64>, took: Duration) {
        let mut plan = self.lock();
        let start = operation.start_sector;
        plan.in_flight.retain(|range| range.0 != start || range.1 != start + operation.sectors);
        let completed = match result {
            Ok(completed) => Some(completed),
            Err(error) => {
                plan.errors.push((operation.sequence, format!("{error:#}")));
                None
            }
        };
        plan.slowest = plan.slowest.max(took);
        let index = usize::try_from(operation.sequence).unwrap_or(usize::MAX);
        if let Some(logged) = plan.operations.get_mut(index) {
            (logged.submitted, logged.completed) = (Some(submitted), completed);
        }
        drop(plan);
        self.freed.notify_all();
    }

    fn submit(&self, operation: &Operation, bytes: &[u8]) -> Result<()> {
        let offset_bytes = operation.start_sector * SECTOR_BYTES as u64;
        let length_bytes = operation.sectors * SECTOR_BYTES as u64;
        let request = match operation.kind {
            Kind::Data => return self.disk.write_all_at(bytes, offset_bytes).context("write"),
            Kind::Zeroes => BLKZEROOUT,
            Kind::Discard => BLKDISCARD,
        };
        if self.is_device {
            let range = [offset_bytes, length_bytes];
            // SAFETY: both requests read a pair of u64, which `range` is and which outlives the call.
            let code = unsafe { libc::ioctl(self.disk.as_raw_fd(), request, range.as_ptr()) };
            return if code == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error()).context("zero a range")
            };
        }
        let zeroes = AlignedBuffer::new(bytes.len());
        self.disk.write_all_at(&zeroes.bytes[zeroes.start..zeroes.start + zeroes.length], offset_bytes)?;
        Ok(())
    }
}

/// See [`Workload::stop_on_drop`].
#[derive(Debug)]
pub struct StopOnDrop<'a>(&'a Workload);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Opens the disk, runs the workload to its end and closes the disk.
///
/// # Errors
/// When the disk cannot be opened.
pub fn run(disk: &Path, options: Options) -> Result<Report> {
    Workload::open(disk, options)?.run()
}

fn size_bytes(file: &File) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0)).context("find the size of the disk")
}
