//! Money that passes between VMs: the workload and the checker of points that several VMs have in common.
//!
//! Each member keeps a ledger in one sector of a file, written durably before anybody learns of it: a member sends only what
//! its ledger says was sent, and passes on only what its ledger says was received. So at one moment across all members nobody
//! has received what its sender has not sent yet, and money in ledgers and under way is what there was at the beginning.
//! Tokens are passed on at once, so that whatever a disk writes depends on what another wrote a moment before.

mod ledger;
mod post;
mod set;

use std::fs::File;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
pub use ledger::{CAPITAL, Early, LEDGER_BYTES, Ledger, Passed, check};
pub use post::hub;
use post::{Message, Post, from_wire};
pub use set::{Point, Teller};

/// Members of a bank at most: what a sector has room for.
pub const MEMBERS_MAX: usize = 8;

const BLOCK_BYTES: usize = 4096;

/// A ledger's place on a disk.
#[derive(Debug)]
pub struct Branch {
    file: File,
    /// Where its sector lies on the disk that the file system is on, in bytes.
    pub disk_offset: u64,
}

impl Branch {
    /// Makes the file, in a file system right on the disk, and writes the first ledger.
    ///
    /// # Errors
    /// As the system's calls; root is needed to learn the place.
    pub fn create(path: &Path) -> Result<Self> {
        std::fs::write(path, vec![0; BLOCK_BYTES])?;
        let file =
            File::options().read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)?;
        file.sync_all()?;
        let mut block: libc::c_int = 0;
        // SAFETY: FIBMAP (linux/fs.h, `_IO(0x00, 1)`) reads and writes one int.
        let asked = unsafe { libc::ioctl(file.as_raw_fd(), 1, &raw mut block) };
        ensure!(asked == 0 && block > 0, "no place on the disk: {}", std::io::Error::last_os_error());
        let branch = Self { file, disk_offset: u64::try_from(block)? * BLOCK_BYTES as u64 };
        branch.write(&Ledger::default())?;
        Ok(branch)
    }

    fn write(&self, ledger: &Ledger) -> Result<()> {
        let mut buffer = vec![0_u8; 2 * LEDGER_BYTES];
        let at = buffer.as_ptr().align_offset(LEDGER_BYTES);
        let sector = buffer.get_mut(at..at + LEDGER_BYTES).context("an aligned sector")?;
        sector.copy_from_slice(&ledger.encode());
        Ok(self.file.write_all_at(sector, 0)?)
    }
}

/// Member `own` of a bank whose members reach each other through a [`hub`], until that is gone or `stop` is set.
///
/// # Errors
/// When the ledger cannot be written or the hub not be reached.
pub fn join(
    branch: &Branch,
    (own, members): (usize, usize),
    tokens: usize,
    hub: &str,
    stop: &AtomicBool,
    counts: &Counts,
) -> Result<()> {
    let mut stream = TcpStream::connect(hub).with_context(|| format!("connect to {hub}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(&(own as u64).to_le_bytes())?;
    let mut reading = stream.try_clone()?;
    let ending = stream.try_clone()?;
    let (sender, inbox) = mpsc::channel();
    let mut member = Member {
        own,
        members,
        branch,
        ledger: Ledger::default(),
        inbox,
        post: Post::Wire(stream),
        random: own as u64 + 1,
        counts,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while let Some([_, from, amount, sent_us]) = from_wire(&mut reading) {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let _ = sender.send(Message { from, amount, sent_us });
            }
            stop.store(true, Ordering::Relaxed);
        });
        let outcome = member.work(tokens, stop);
        // The thread above ends with it.
        let _ = ending.shutdown(Shutdown::Both);
        outcome
    })
}

/// Stops a bank when it is dropped, also by a test that fails while members work.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How the bank has done.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages received.
    pub messages: AtomicU64,
    /// The longest write of a ledger, microseconds.
    pub slowest_us: AtomicU64,
}

struct Member<'a> {
    own: usize,
    members: usize,
    branch: &'a Branch,
    ledger: Ledger,
    inbox: Receiver<Message>,
    post: Post,
    random: u64,
    counts: &'a Counts,
}

/// Microseconds since boot.
///
/// # Panics
/// Never: the clock is always there.
#[must_use]
pub fn boottime_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1000
}

/// Passes `tokens` tokens between the branches until `stop` is set. Each branch has a thread of its own here.
///
/// # Errors
/// When a ledger cannot be written.
pub fn run(branches: &[Branch], tokens: usize, stop: &AtomicBool, counts: &Counts) -> Result<()> {
    ensure!((2..=MEMBERS_MAX).contains(&branches.len()), "a bank has 2 to {MEMBERS_MAX} members");
    let (senders, inboxes): (Vec<_>, Vec<_>) = branches.iter().map(|_| mpsc::channel()).unzip();
    std::thread::scope(|scope| {
        let members = branches.iter().zip(inboxes).enumerate().map(|(own, (branch, inbox))| Member {
            own,
            members: branches.len(),
            branch,
            ledger: Ledger::default(),
            inbox,
            post: Post::Channels(senders.clone()),
            random: own as u64 + 1,
            counts,
        });
        let threads: Vec<_> = members
            .map(|mut member| {
                let own = if member.own < tokens % branches.len() { 1 } else { 0 } + tokens / branches.len();
                scope.spawn(move || member.work(own, stop))
            })
            .collect();
        drop(senders);
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| anyhow::anyhow!("a member of the bank ended unexpectedly"))?
        })
    })
}

impl Member<'_> {
    fn work(&mut self, tokens: usize, stop: &AtomicBool) -> Result<()> {
        for _ in 0..tokens {
            self.send(1)?;
        }
        while !stop.load(Ordering::Relaxed) {
            if let Ok(message) = self.inbox.recv_timeout(Duration::from_millis(5)) {
                self.receive(&message)?;
                self.send(message.amount)?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, message: &Message) -> Result<()> {
        self.ledger.balance += message.amount;
        let passed = self.ledger.received.get_mut(message.from).context("a member")?;
        *passed = Passed {
            count: passed.count + 1,
            amount: passed.amount + message.amount,
            sent_us: message.sent_us,
        };
        self.counts.messages.fetch_add(1, Ordering::Relaxed);
        self.write().map(drop)
    }

    fn send(&mut self, amount: u64) -> Result<()> {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let others = self.members as u64 - 1;
        let to = (self.own + 1 + usize::try_from(self.random % others)?) % self.members;
        self.ledger.balance -= amount;
        let passed = self.ledger.sent.get_mut(to).context("a member")?;
        passed.count += 1;
        passed.amount += amount;
        let sent_us = self.write()?;
        // Told only after it is durable.
        self.post.send(to, Message { from: self.own, amount, sent_us })
    }

    /// Writes the ledger durably. When that was begun.
    fn write(&mut self) -> Result<u64> {
        self.ledger.sequence += 1;
        self.ledger.written_us = boottime_us();
        self.branch.write(&self.ledger)?;
        let took_us = boottime_us().saturating_sub(self.ledger.written_us);
        self.counts.slowest_us.fetch_max(took_us, Ordering::Relaxed);
        Ok(self.ledger.written_us)
    }
}
