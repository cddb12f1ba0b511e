//! Ingest of many VMs at once, made durable together on a tick, against plain files that are written the same way.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::{Goal, Table};
use super::Sizes;
use super::stream::{Kind, MIB, Stream, as_f64, quantile, sorted};

/// As the appliance commits: see `COMMIT_TICK_MS` and `COMMIT_PARALLEL` there.
const TICK: Duration = Duration::from_millis(10);
const PARALLEL: usize = 8;

/// Small enough for a thousand VMs to share a gigabyte, large enough to be a frame.
const FRAME_BYTES: u64 = 256 << 10;

/// The usual block of a file system.
const WRITE_BYTES: u64 = 4096;

/// Rounds of a stream whose every frame is waited for.
const SYNC_ROUNDS: u64 = 300;

/// Something that takes frames and makes them durable.
trait Sink: Send + Sync {
    fn write(&mut self) -> Result<()>;
    fn sync(&self) -> Result<()>;
}

impl Sink for Stream {
    fn write(&mut self) -> Result<()> {
        Self::write(self)
    }
    fn sync(&self) -> Result<()> {
        self.journal.sync()?;
        Ok(())
    }
}

struct Plain {
    file: File,
    bytes: Vec<u8>,
}

impl Sink for Plain {
    fn write(&mut self) -> Result<()> {
        Ok(self.file.write_all(&self.bytes)?)
    }
    fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }
}

struct Measured {
    mib_per_second: f64,
    /// Seconds for which a tick's commit took, sorted.
    commits: Vec<f64>,
}

pub(super) fn measure(sizes: &Sizes, folder: &Path, table: &mut Table) -> Result<()> {
    for vms in sizes.vms {
        let plain = {
            let folder = tempfile::tempdir_in(folder)?;
            run(plain(folder.path(), *vms, FRAME_BYTES)?, sizes.ingest_bytes)?
        };
        let journal = {
            let folder = tempfile::tempdir_in(folder)?;
            let sinks = (0..*vms)
                .map(|vm| {
                    let folder = folder.path().join(vm.to_string());
                    Ok(Box::new(Stream::create(&folder, 1 << 40, WRITE_BYTES, FRAME_BYTES, Kind::Encrypted)?)
                        as Box<dyn Sink>)
                })
                .collect::<Result<Vec<_>>>()?;
            run(sinks, sizes.ingest_bytes)?
        };
        let name = |what: &str| format!("journal, {vms} VMs, 10 ms tick: {what}");
        let baseline = Some(("plain files", plain.mib_per_second));
        table.add(&name("rate"), "MiB/s", journal.mib_per_second, baseline, Goal::None);
        for (what, share) in [("commit p50", 0.5), ("commit p99", 0.99)] {
            let baseline = Some(("plain files", quantile(&plain.commits, share)? * 1000.0));
            table.add(&name(what), "ms", quantile(&journal.commits, share)? * 1000.0, baseline, Goal::None);
        }
    }
    let folder = tempfile::tempdir_in(folder)?;
    let mut plain = plain(folder.path(), 1, WRITE_BYTES)?;
    let mut journal: Vec<Box<dyn Sink>> = vec![Box::new(Stream::create(
        &folder.path().join("journal"),
        1 << 40,
        WRITE_BYTES,
        WRITE_BYTES,
        Kind::Encrypted,
    )?)];
    let (plain, journal) = (each_waited_for(&mut plain)?, each_waited_for(&mut journal)?);
    for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
        let baseline = Some(("plain file", quantile(&plain, share)? * 1e6));
        let name = format!("journal, each write waited for: {what}");
        table.add(&name, "us", quantile(&journal, share)? * 1e6, baseline, Goal::None);
    }
    Ok(())
}

fn plain(folder: &Path, count: usize, bytes: u64) -> Result<Vec<Box<dyn Sink>>> {
    (0..count)
        .map(|number| {
            let file = File::create_new(folder.join(format!("plain-{number}")))?;
            let bytes = vec![0x5a; usize::try_from(bytes)?];
            Ok(Box::new(Plain { file, bytes }) as Box<dyn Sink>)
        })
        .collect()
}

/// Writes round robin as fast as it goes, and commits on the tick what was written since.
fn run(mut sinks: Vec<Box<dyn Sink>>, bytes: u64) -> Result<Measured> {
    let frames = bytes / FRAME_BYTES;
    let started = Instant::now();
    let (mut written, mut commits) = (0, Vec::new());
    while written < frames {
        let tick = Instant::now();
        let first = written;
        while written < frames && tick.elapsed() < TICK {
            let place = usize::try_from(written)? % sinks.len();
            if let Some(sink) = sinks.get_mut(place) {
                sink.write()?;
            }
            written += 1;
        }
        let dirty = usize::try_from(written - first)?.min(sinks.len());
        let commit = Instant::now();
        commit_all(&sinks, usize::try_from(first)?, dirty)?;
        commits.push(commit.elapsed().as_secs_f64());
    }
    let mib_per_second = as_f64(bytes / MIB) / started.elapsed().as_secs_f64();
    Ok(Measured { mib_per_second, commits: sorted(commits) })
}

/// Makes `count` sinks from the one at `first` on durable, some at a time.
fn commit_all(sinks: &[Box<dyn Sink>], first: usize, count: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..PARALLEL.min(count))
            .map(|worker| {
                scope.spawn(move || -> Result<()> {
                    for number in (worker..count).step_by(PARALLEL) {
                        if let Some(sink) = sinks.get((first + number) % sinks.len()) {
                            sink.sync()?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a committing thread panicked")))
        })
    })
}

fn each_waited_for(sinks: &mut [Box<dyn Sink>]) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..SYNC_ROUNDS {
        for sink in sinks.iter_mut() {
            let started = Instant::now();
            sink.write()?;
            sink.sync()?;
            times.push(started.elapsed().as_secs_f64());
        }
    }
    Ok(sorted(times))
}
