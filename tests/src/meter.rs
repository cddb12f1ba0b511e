//! A relay in front of an appliance that counts what passes, and lets no more of it pass than it is told to.

#![expect(clippy::cast_precision_loss, reason = "bytes a second of a relay")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Bytes moved at once.
const BUFFER_BYTES: usize = 256 << 10;

/// How often a dropped relay is noticed.
const POLL: Duration = Duration::from_millis(20);

/// A relay on the loopback interface. It ends when dropped, with every connection through it.
#[derive(Debug)]
pub struct Meter {
    address: String,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    /// Bytes a second that pass to the target; 0: all.
    up_rate: AtomicU64,
    ended: AtomicBool,
}

impl Meter {
    /// Relays connections to `target`; each direction is held back by `delay`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(target: &str, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listen for a relay")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let (counts, target) = (Arc::<Counts>::default(), target.to_owned());
        let shared = Arc::clone(&counts);
        thread::spawn(move || {
            while !shared.ended.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((client, _)) => relay(client, &target, delay, &shared),
                    Err(_) => thread::sleep(POLL),
                }
            }
        });
        Ok(Self { address, counts })
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on so many bytes a second pass to the target, of all connections one; 0: all.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.counts.up_rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Bytes that passed so far, both directions together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counts.up_bytes.load(Ordering::SeqCst) + self.counts.down_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.counts.ended.store(true, Ordering::SeqCst);
    }
}

fn relay(client: TcpStream, target: &str, delay: Duration, counts: &Arc<Counts>) {
    let Ok(server) = TcpStream::connect(target) else { return };
    let _ = client.set_nonblocking(false);
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
    }
    for up in [true, false] {
        let (Ok(client), Ok(server)) = (client.try_clone(), server.try_clone()) else { return };
        let counts = Arc::clone(counts);
        thread::spawn(move || {
            let (from, to) = if up { (client, server) } else { (server, client) };
            pump(&from, &to, up, delay, &counts);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

fn pump(mut from: &TcpStream, to: &TcpStream, up: bool, delay: Duration, counts: &Arc<Counts>) {
    let (sender, receiver) = std::sync::mpsc::channel::<(std::time::Instant, Vec<u8>)>();
    let Ok(mut to) = to.try_clone() else { return };
    // A line with a delay is as wide as one without: what waits is queued, not held up.
    let writer = thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(std::time::Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; BUFFER_BYTES];
    while !counts.ended.load(Ordering::SeqCst) && !writer.is_finished() {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                continue;
            }
            Err(_) => break,
        };
        let counter = if up { &counts.up_bytes } else { &counts.down_bytes };
        counter.fetch_add(count as u64, Ordering::SeqCst);
        let rate = if up { counts.up_rate.load(Ordering::SeqCst) } else { 0 };
        if rate > 0 {
            // What is not read waits with the sender.
            thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        let bytes = buffer.get(..count).unwrap_or_default().to_vec();
        if sender.send((std::time::Instant::now() + delay, bytes)).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = writer.join();
}
