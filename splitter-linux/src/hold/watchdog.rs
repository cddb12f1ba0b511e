//! The watchdog: a process of its own that lets go what is held when the deadline comes or the agent dies.
//!
//! Before it says that it is armed, all its memory is present and locked and its threads wait, one per held thing: a thaw
//! that waits for another (a file system in a file of another one) holds up none. From then on it opens, writes and
//! allocates nothing until everything was let go. It ignores the signals by which services are stopped, is never chosen
//! for lack of memory, and leaves the control group of the service, so that what ends that group does not end it.
//!
//! Once it has fired it goes on letting go until the agent says that it holds nothing, or is gone: an agent that was stopped
//! between two freezes and goes on cannot hold anything for longer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::message::{
    self, ARM, ARMED, DISARM, FIRED, GO, HELD_MAX, HOOK, HOOK_NOTED, KEPT, Kind, PACKET_MAX_BYTES, REFUSED,
    THAWED,
};
use super::mounts::Number;
use super::{freeze, hooks};
use crate::gate::Mapper;

/// Between two attempts to let go after it fired.
const AGAIN: Duration = Duration::from_millis(50);

/// How long the hooks wait for a thaw that does not return: the kernel is still about to freeze that file system. Beyond it
/// the hooks run first.
const THAW_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a thread's stack: it makes one system call in a loop. All of them are locked in memory.
const STACK_BYTES: usize = 64 << 10;

/// Freeze hooks whose thaw may be owed at most; further ones do not run.
const HOOKS_MAX: usize = 256;

/// Control groups are told apart by this file; version 2 only, where services lie.
const CGROUP_ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The watchdog's whole life; the agent is at standard input.
pub fn run(quiesce: Duration, deadline: Duration) {
    settle();
    let stdin = std::io::stdin();
    Watchdog {
        agent: stdin.as_fd(),
        quiesced_until: Instant::now() + quiesce,
        deadline,
        held_until: None,
        releasers: Vec::with_capacity(HELD_MAX),
        owed: Vec::with_capacity(HOOKS_MAX),
        fired: false,
    }
    .serve();
}

/// Makes the process hard to end and easy to schedule. What is refused is done without, but for the locked memory, which
/// is checked when it is armed.
fn settle() {
    for stop in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: the handler does nothing. A handler, unlike an ignored signal, is not handed down to hooks.
        let _ = unsafe { signal(stop, SigHandler::Handler(unmoved)) };
    }
    let _ = nix::unistd::setsid();
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    leave_group();
    freeze::be_io_flusher(true);
    // SAFETY: the call takes numbers only. The agent's nice level is inherited and would delay the deadline.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
}

extern "C" fn unmoved(_: libc::c_int) {}

/// Moves this process to the root of control groups (version 2): a unit is stopped, killed and frozen by its group.
fn leave_group() {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let inside = own.lines().any(|line| line.starts_with("0::") && line != "0::/");
    if inside {
        // Only where version 2 is mounted does this file exist together with the controllers' list.
        let root =
            CGROUP_ROOTS.iter().map(PathBuf::from).find(|root| root.join("cgroup.controllers").exists());
        if let Some(root) = root {
            let _ = std::fs::write(root.join("cgroup.procs"), "0");
        }
    }
}

fn lock_memory() -> bool {
    // SAFETY: the call takes no pointer and changes only this process' memory policy.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) == 0 }
}

/// What a releasing thread is told, and what it says.
#[derive(Debug, Default)]
struct Shared {
    /// Raised for each wish to let go.
    wanted: AtomicU32,
    /// The last wish that was carried out.
    done: AtomicU32,
}

/// A thing that is held.
#[derive(Debug)]
enum Held {
    FileSystem(OwnedFd),
    Volume(Mapper, Number),
}

impl Held {
    fn new(kind: Kind, file: OwnedFd) -> Self {
        match kind {
            Kind::FileSystem => Self::FileSystem(file),
            Kind::Volume(number) => Self::Volume(file.into(), number),
        }
    }

    fn let_go(&self) {
        // One that is not held (any more) says so, or stays as it is, which is fine.
        match self {
            Self::FileSystem(file) => drop(freeze::thaw(file.as_fd())),
            // To resume one that is not suspended could bring a table into use that somebody else has loaded.
            Self::Volume(mapper, number) => {
                if mapper.standing(*number).is_ok_and(|standing| standing.suspended) {
                    drop(mapper.resume(*number));
                }
            }
        }
    }
}

#[derive(Debug)]
struct Releaser {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Releaser {
    fn start(kind: Kind, file: OwnedFd) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let held = Held::new(kind, file);
        let handle = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            freeze::be_io_flusher(true);
            loop {
                let wanted = theirs.wanted.load(Ordering::Acquire);
                if wanted == theirs.done.load(Ordering::Acquire) {
                    thread::park();
                    continue;
                }
                held.let_go();
                theirs.done.store(wanted, Ordering::Release);
            }
        })?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    fn release(&self) {
        self.shared.wanted.fetch_add(1, Ordering::AcqRel);
        self.thread.unpark();
    }

    fn is_done(&self) -> bool {
        self.shared.done.load(Ordering::Acquire) == self.shared.wanted.load(Ordering::Acquire)
    }
}

struct Watchdog<'a> {
    agent: BorrowedFd<'a>,
    /// When hooks must be over.
    quiesced_until: Instant,
    /// How long things may be held.
    deadline: Duration,
    /// When what is held must be let go; `None` while nothing is.
    held_until: Option<Instant>,
    releasers: Vec<Releaser>,
    /// Hooks that ran, in their order.
    owed: Vec<PathBuf>,
    fired: bool,
}

impl Watchdog<'_> {
    fn serve(mut self) {
        let mut packet = [0; PACKET_MAX_BYTES];
        loop {
            let now = Instant::now();
            if self.expired(now) {
                self.fire();
            }
            if !self.wait(now) {
                continue;
            }
            match message::receive(self.agent, &mut packet) {
                Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
                Err(_) | Ok((0, _)) => return self.bereaved(),
                Ok((length, files)) => {
                    let said = packet.get(..length).unwrap_or_default();
                    if self.answer(said, files) {
                        return;
                    }
                }
            }
        }
    }

    fn expired(&self, now: Instant) -> bool {
        let held = self.held_until.is_some_and(|until| now >= until);
        held || (now >= self.quiesced_until && !self.owed.is_empty())
    }

    /// Waits for the agent, until something expires. Whether there is something to receive.
    fn wait(&self, now: Instant) -> bool {
        let next = match self.held_until {
            // After it fired: the agent may still be about to hold something.
            Some(_) if self.fired => now + AGAIN,
            Some(until) => until,
            None => self.quiesced_until.max(now + AGAIN),
        };
        let timeout = PollTimeout::try_from(next.saturating_duration_since(now) + Duration::from_millis(1));
        let mut agent = [PollFd::new(self.agent, PollFlags::POLLIN)];
        poll(&mut agent, timeout.unwrap_or(PollTimeout::MAX)).is_ok_and(|ready| ready > 0)
    }

    /// Takes what the agent says. True at the end.
    fn answer(&mut self, said: &[u8], files: Vec<OwnedFd>) -> bool {
        use std::os::unix::ffi::OsStrExt;
        match said.split_first() {
            Some((&HOOK, path)) if self.owed.len() < HOOKS_MAX => {
                self.owed.push(PathBuf::from(std::ffi::OsStr::from_bytes(path)));
                self.say(&[HOOK_NOTED]);
            }
            Some((&ARM, things)) => match self.arm(things, files) {
                Ok(()) => self.say(&[ARMED]),
                Err(why) => self.say(&[&[REFUSED], why.as_bytes()].concat()),
            },
            Some((&GO, _)) if !self.releasers.is_empty() => {
                self.held_until = Some(Instant::now() + self.deadline);
                self.say(&[ARMED]);
            }
            Some((&THAWED, _)) => {
                self.held_until = None;
                self.say(&[if self.fired { FIRED } else { KEPT }]);
            }
            Some((&DISARM, _)) => {
                self.say(&[if self.fired { FIRED } else { KEPT }]);
                return true;
            }
            _ => self.say(&[REFUSED]),
        }
        false
    }

    fn say(&self, packet: &[u8]) {
        // An agent that is gone shows at the next receive.
        let _ = message::send(self.agent, packet, &[]);
    }

    fn arm(&mut self, things: &[u8], files: Vec<OwnedFd>) -> Result<(), String> {
        let things = message::armed(things).ok_or("it does not know what is to be held")?;
        if things.len() != files.len() || things.is_empty() || !self.releasers.is_empty() {
            return Err("it was asked for the impossible".to_owned());
        }
        for (kind, file) in things.into_iter().zip(files) {
            let releaser = Releaser::start(kind, file).map_err(|error| error.to_string())?;
            self.releasers.push(releaser);
        }
        if !lock_memory() {
            return Err(format!("its memory cannot be locked: {}", std::io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Lets everything go, and does what the hooks owe, once.
    fn fire(&mut self) {
        self.fired = true;
        self.releasers.iter().for_each(Releaser::release);
        if self.owed.is_empty() {
            return;
        }
        self.wait_released(THAW_PATIENCE);
        for hook in std::mem::take(&mut self.owed).iter().rev() {
            hooks::thaw_quietly(hook);
        }
    }

    fn wait_released(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while Instant::now() < until && !self.releasers.iter().all(Releaser::is_done) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The agent is gone, and with it whatever it was about to hold: letting go once is enough, however long it takes.
    fn bereaved(mut self) {
        self.fire();
        while !self.releasers.iter().all(Releaser::is_done) {
            self.wait_released(THAW_PATIENCE);
        }
    }
}
