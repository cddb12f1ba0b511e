//! Writes whose completion somebody outside of the machine has seen: what synchronous mode must never lose.
//!
//! The workload writes numbered blocks, one at a time, and says each number over the network when its write has
//! completed. The machine is killed; whatever number was heard must be in what the appliance has.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Bytes of one block.
pub const BLOCK_BYTES: usize = 4096;

#[repr(align(4096))]
struct Aligned([u8; BLOCK_BYTES]);

/// Fills a block with its number.
fn fill(block: &mut [u8; BLOCK_BYTES], number: u64) {
    for word in block.as_chunks_mut::<8>().0 {
        *word = number.to_le_bytes();
    }
}

/// The number of a block; `None` when it is not of one piece.
fn number_of(block: &[u8]) -> Option<u64> {
    let words = block.as_chunks::<8>().0;
    let first = words.first()?;
    words.iter().all(|word| word == first).then(|| u64::from_le_bytes(*first))
}

/// What a run did.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Writes that completed.
    pub writes: u64,
    /// The median and the slowest, as the application saw them.
    pub median: Duration,
    /// The slowest.
    pub slowest: Duration,
}

/// Writes numbered blocks round and round, past the page cache and durably, one at a time, until `writes` are done.
///
/// # Errors
/// When a write fails, or the listener is gone.
pub fn run(device: &Path, listener: Option<&str>, slots: u64, writes: u64, durable: bool) -> Result<Run> {
    let flags = if durable { libc::O_DIRECT | libc::O_DSYNC } else { libc::O_DIRECT };
    let file = OpenOptions::new().write(true).custom_flags(flags).open(device).context("open the device")?;
    let mut listener = listener.map(TcpStream::connect).transpose().context("reach the listener")?;
    if let Some(stream) = &listener {
        stream.set_nodelay(true)?;
    }
    let mut block = Box::new(Aligned([0; BLOCK_BYTES]));
    let mut times = Vec::new();
    for number in 1..=writes {
        fill(&mut block.0, number);
        let began = Instant::now();
        write_all_at(&file, &block.0, number % slots * BLOCK_BYTES as u64)
            .with_context(|| format!("write number {number}"))?;
        times.push(began.elapsed());
        if let Some(stream) = &mut listener {
            stream.write_all(&number.to_le_bytes()).context("say it")?;
        }
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(Run { writes, median, slowest: times.last().copied().unwrap_or_default() })
}

/// Past the page cache a write is whole or has failed.
fn write_all_at(file: &File, block: &[u8], offset: u64) -> Result<()> {
    let written = file.write_at(block, offset)?;
    ensure!(written == block.len(), "only {written} bytes were written");
    Ok(())
}

/// Hears completions.
#[derive(Debug)]
pub struct Listener {
    port: u16,
    heard: Arc<AtomicU64>,
}

impl Listener {
    /// Listens on the loopback interface.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> Result<Self> {
        let socket = TcpListener::bind(("127.0.0.1", 0))?;
        let port = socket.local_addr()?.port();
        let heard = Arc::new(AtomicU64::new(0));
        let newest = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                let mut stream = stream;
                let mut word = [0; 8];
                while stream.read_exact(&mut word).is_ok() {
                    newest.fetch_max(u64::from_le_bytes(word), Ordering::SeqCst);
                }
            }
        });
        Ok(Self { port, heard })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The newest number that was said.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::SeqCst)
    }

    /// Waits until a number was said.
    ///
    /// # Errors
    /// When it was not in time.
    pub fn wait(&self, number: u64, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        while self.heard() < number {
            ensure!(Instant::now() < until, "only {} of {number} writes were said", self.heard());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// The numbers up to `heard` that are not in an image of `slots` blocks, though their writes had completed: a block may
/// hold its number, or a later one of the same place.
#[must_use]
pub fn missing(image: &[u8], slots: u64, heard: u64) -> Vec<u64> {
    let lost = |number: &u64| {
        let start = usize::try_from(number % slots).unwrap_or(0) * BLOCK_BYTES;
        let found = image.get(start..start + BLOCK_BYTES).and_then(number_of);
        !found.is_some_and(|found| found >= *number && found % slots == number % slots)
    };
    (heard.saturating_sub(slots - 1).max(1)..=heard).filter(lost).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_and_is_not_there_is_found() {
        let mut image = vec![0; 4 * BLOCK_BYTES];
        for number in 1..=6_u64 {
            let start = usize::try_from(number % 4).unwrap() * BLOCK_BYTES;
            let block: &mut [u8; BLOCK_BYTES] = (&mut image[start..start + BLOCK_BYTES]).try_into().unwrap();
            fill(block, number);
        }
        assert_eq!(missing(&image, 4, 6), Vec::<u64>::new());
        assert_eq!(missing(&image, 4, 5), Vec::<u64>::new(), "a write that nobody heard of may be there");
        assert_eq!(missing(&image, 4, 8), vec![7, 8]);
        image[2 * BLOCK_BYTES + 9] ^= 1;
        assert_eq!(missing(&image, 4, 6), vec![6], "a block in two pieces is none");
    }
}
