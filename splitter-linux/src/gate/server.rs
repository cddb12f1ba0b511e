//! The gate's process: `tidemark-splitter gate`, started by the splitter and outliving it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::device::Control;
use super::error::GateError;
use super::launch::SPARED_NAME;
use super::mapper::Mapper;
use super::page::{self, Page};
use super::queue::{self, DEPTH, IO_BYTES_MAX, Parts, Queue};
use super::sampler::{self, Sampler};
use super::volume::{self, Volume};
use crate::capture::sys;
use crate::disks::procfs;

/// How long a dead predecessor may take to be gone: its requests to the volume have to end. Beyond it this process
/// gives up and the splitter starts another.
const TAKE_OVER_MAX: Duration = Duration::from_secs(60);
/// How often a gate looks at deadlines while somebody waits, and otherwise.
const LOOK_BUSY: Duration = Duration::from_millis(20);
const LOOK_IDLE: Duration = Duration::from_millis(250);

const PR_SET_IO_FLUSHER: libc::c_int = 57;
const PR_GET_IO_FLUSHER: libc::c_int = 58;

/// Serves the gate of one volume until it is told to stop. Prints `ready NUMBER` when the device is there, and says so
/// to the service manager.
///
/// # Errors
/// One line that says what to do; it is left in the gate's folder, too.
pub fn run(capture: &str, volume: &str) -> Result<(), GateError> {
    spare();
    noted(capture, volume, serve(capture, volume))
}

/// Removes the device of a gate whose process was killed and that no volume lies on. Ends as [`run`] begins.
///
/// # Errors
/// As [`run`].
pub fn clear(capture: &str, volume: &str) -> Result<(), GateError> {
    let clear = || {
        let folder = page::folder(capture, volume);
        let _lock = lock(&folder)?;
        remove_left(&mut Control::open()?, &folder)?;
        ready(0)
    };
    noted(capture, volume, clear())
}

/// The service manager does not hand on what was said.
fn noted(capture: &str, volume: &str, done: Result<(), GateError>) -> Result<(), GateError> {
    if let Err(error) = &done {
        let _ = std::fs::write(page::folder(capture, volume).join(page::FAILURE), error.to_string());
    }
    done
}

/// Takes the name that systemd-shutdown spares, where it was not started by it. The process stays the same one; without
/// the name it serves all the same.
fn spare() {
    let spared = |name: OsString| name.as_encoded_bytes().starts_with(b"@");
    if !std::env::args_os().next().is_some_and(spared) {
        let _ = Command::new("/proc/self/exe").arg0(SPARED_NAME).args(std::env::args_os().skip(1)).exec();
    }
}

fn serve(capture: &str, volume_name: &str) -> Result<(), GateError> {
    let folder = page::folder(capture, volume_name);
    let page = Arc::new(Page::open(&folder)?);
    // Held until the process has ended: the splitter tells by it that the gate is gone.
    let _lock = lock(&folder)?;
    harden()?;
    let mapper = Mapper::open()?;
    let missing = |what: &str| GateError::NotStarted(format!("{what} {volume_name} is not active"));
    let volume = Volume::named(&mapper, volume_name)?.ok_or_else(|| missing("volume"))?;
    let private =
        Volume::named(&mapper, &volume.private_name())?.ok_or_else(|| missing("the private mapping of"))?;
    leave_mounts(&volume)?;
    let node = node(&private)?;
    let pins = sampler::pins(capture)?;
    let sampler = Sampler::open(&pins)?;
    let mut control = Control::open()?;
    let device = match volume.gated_by {
        Some(device) => {
            take_over(&mut control, device)?;
            device
        }
        None => add(&mut control, &folder, &private)?,
    };
    page.words().stop.store(0, Ordering::Release);
    page.words().process.store(u64::from(std::process::id()), Ordering::Release);
    let notice = Arc::new(eventfd()?);
    let serving = start_queue(device, &node, &page, sampler, &pins, &notice)?;
    if volume.gated_by.is_some() {
        control.end_recovery(device)?;
    } else {
        control.start(device)?;
        let _ = std::fs::write(format!("/sys/block/ublkb{device}/queue/scheduler"), "none");
    }
    ready(device)?;
    watch(&page, &notice, &serving);
    if page.words().stop.load(Ordering::Acquire) != 0 {
        control.stop(device)?;
        let _ = serving.join();
        control.delete(device)?;
        let _ = std::fs::remove_file(folder.join("device"));
    }
    Ok(())
}

/// Passes time and changes of the page on to the queue, until it is told to stop or the queue has ended.
fn watch(page: &Page, notice: &File, serving: &std::thread::JoinHandle<()>) {
    let words = page.words();
    while words.stop.load(Ordering::Acquire) == 0 && !serving.is_finished() {
        let seen = words.published.load(Ordering::Acquire);
        let mut notice = notice;
        let _ = notice.write_all(&1_u64.to_ne_bytes());
        let waited_for =
            words.held_now.load(Ordering::Acquire) != 0 || words.barrier.load(Ordering::Acquire) != 0;
        if words.held_now.load(Ordering::Acquire) != 0 {
            // A heartbeat that was not clean covers nothing: the splitter tries another.
            words.waiting.fetch_add(1, Ordering::AcqRel);
            page::wake(&words.waiting);
        }
        page::wait(&words.published, seen, if waited_for { LOOK_BUSY } else { LOOK_IDLE });
    }
}

fn start_queue(
    device: u32,
    node: &Path,
    page: &Arc<Page>,
    sampler: Sampler,
    pins: &Path,
    notice: &Arc<File>,
) -> Result<std::thread::JoinHandle<()>, GateError> {
    let character = open_character(device)?;
    let backing = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_EXCL)
        .open(node)
        .map_err(GateError::os("open the private mapping"))?;
    let (slow, work) = sync_channel(usize::from(DEPTH));
    let (done, slow_done) = sync_channel(usize::from(DEPTH));
    let (begun, beginning) = sync_channel(1);
    let parts = Parts {
        character,
        backing,
        notice: Arc::clone(notice),
        page: Arc::clone(page),
        sampler,
        pins: pins.to_owned(),
        slow,
        slow_done,
    };
    let (slow_node, slow_notice) = (node.to_owned(), Arc::clone(notice));
    std::thread::Builder::new()
        .name("gate-discard".into())
        .spawn(move || {
            if assert_flusher().is_ok() {
                queue::serve_slow(&slow_node, &work, &done, &slow_notice);
            }
        })
        .map_err(GateError::os("start a thread"))?;
    let serving = std::thread::Builder::new()
        .name("gate-queue".into())
        .spawn(move || match assert_flusher().and_then(|()| Queue::begin(parts)) {
            Err(error) => drop(begun.send(Err(error))),
            Ok(queue) => {
                let _ = begun.send(Ok(()));
                if let Err(error) = queue.serve() {
                    complain(&format!("the gate's queue ended: {error}; another process takes over"));
                }
                // Not a return: with recovery the driver keeps the requests for the next process only when this one is gone.
            }
        })
        .map_err(GateError::os("start a thread"))?;
    match beginning.recv() {
        Ok(Ok(())) => Ok(serving),
        Ok(Err(source)) => Err(GateError::Os { action: "serve the ublk device", source }),
        Err(_) => Err(GateError::NotStarted("its queue ended".into())),
    }
}

/// Adds a device, after removing what a killed start left.
fn add(control: &mut Control, folder: &Path, private: &Volume) -> Result<u32, GateError> {
    remove_left(control, folder)?;
    let info = control.add(DEPTH, IO_BYTES_MAX)?;
    std::fs::write(folder.join("device"), info.device.to_string())
        .map_err(GateError::os("note the device's number"))?;
    if info.depth != DEPTH || info.io_bytes_max != IO_BYTES_MAX {
        control.delete(info.device)?;
        return Err(GateError::NotStarted("the ublk driver gives other queues than were asked for".into()));
    }
    control.set_limits(&info, &volume::limits(&private.folder()))?;
    Ok(info.device)
}

/// Removes the device that a killed process noted.
fn remove_left(control: &mut Control, folder: &Path) -> Result<(), GateError> {
    let note = folder.join("device");
    if let Some(old) = std::fs::read_to_string(&note).ok().and_then(|text| text.trim().parse().ok()) {
        let _ = control.stop(old);
        control.delete(old)?;
        let _ = std::fs::remove_file(&note);
    }
    Ok(())
}

fn take_over(control: &mut Control, device: u32) -> Result<(), GateError> {
    let until = Instant::now() + TAKE_OVER_MAX;
    loop {
        match control.start_recovery(device) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(source) => return Err(GateError::Ublk { action: "take over a ublk device", source }),
        }
    }
}

/// udev may still be giving the node its permissions.
fn open_character(device: u32) -> Result<File, GateError> {
    let path = format!("/dev/ublkc{device}");
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => return Ok(file),
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err(source) => return Err(GateError::Os { action: "open the ublk character device", source }),
        }
    }
}

/// The kernel makes the node of every mapped device itself.
fn node(private: &Volume) -> Result<PathBuf, GateError> {
    let path = PathBuf::from(format!("/dev/dm-{}", private.mapped.minor));
    let kind =
        std::fs::metadata(&path).map_err(GateError::os("find the private mapping in /dev"))?.file_type();
    if kind.is_block_device() {
        Ok(path)
    } else {
        Err(GateError::NotStarted(format!("{} is not a block device", path.display())))
    }
}

fn lock(folder: &Path) -> Result<File, GateError> {
    File::create(folder.join("lock"))
        .and_then(|_| sys::lock(&folder.join("lock")))
        .map_err(GateError::os("take the gate's lock (another gate of this volume runs)"))
}

/// Whether a gate's process runs.
pub(super) fn runs(folder: &Path) -> bool {
    matches!(sys::lock(&folder.join("lock")), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn eventfd() -> Result<File, GateError> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(GateError::os("make an eventfd")(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just returned this descriptor to us and nothing else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// The kernel may need this process to write out memory: it must not wait for memory that waits for it, page from a
/// disk, or be killed for memory. All of it is inherited by threads started later.
fn harden() -> Result<(), GateError> {
    // SAFETY: these calls take numbers, and a name that is copied, and change this process alone.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"tidemark-gate".as_ptr());
        // The splitter yields to the guest's programs; the gate is in their way and does not.
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        if libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0 {
            return Err(
                GateError::os("become an I/O flusher (CAP_SYS_RESOURCE)")(io::Error::last_os_error()),
            );
        }
        if libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) != 0 {
            return Err(GateError::os("lock memory (CAP_IPC_LOCK)")(io::Error::last_os_error()));
        }
    }
    std::fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(GateError::os("lower the out-of-memory score"))?;
    std::env::set_current_dir("/").map_err(GateError::os("leave the working folder"))
}

fn assert_flusher() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    let set = unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) };
    if set == 1 { Ok(()) } else { Err(io::Error::other("the thread is no I/O flusher")) }
}

/// A mount namespace of its own, without the file systems on the volume: a process that sees them keeps them busy after
/// somebody unmounted them. Unmounting elsewhere goes on to have effect here.
fn leave_mounts(volume: &Volume) -> Result<(), GateError> {
    let failed = |error: nix::Error| GateError::Os { action: "make a mount namespace", source: error.into() };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(failed)?;
    let none: Option<&str> = None;
    // An initramfs root cannot change its propagation on some kernels; then nothing propagates anyway.
    let _ = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none);
    let number = format!("{}:{}", volume.mapped.major, volume.mapped.minor);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        if fields.nth(2) == Some(&number)
            && let Some(point) = fields.nth(1)
        {
            let _ = umount2(procfs::unescape(point).as_str(), MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

/// Tells the splitter and the service manager, and lets go of everything that could block: a log file may lie on the volume.
fn ready(device: u32) -> Result<(), GateError> {
    let mut out = io::stdout();
    let _ = writeln!(out, "ready {device}").and_then(|()| out.flush());
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(GateError::os("open /dev/null"))?;
    for descriptor in 0..3 {
        // SAFETY: replaces the standard descriptors, which nothing here owns.
        unsafe { libc::dup2(null.as_raw_fd(), descriptor) };
    }
    Ok(())
}

/// To the kernel's log: it never blocks.
fn complain(text: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = writeln!(log, "tidemark-gate: {text}");
    }
}
