//! Loop devices, captures and replicas for the tests of the tap.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise and says what it skips"
)]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tidemark_proto::v1::WriteKind;
use tidemark_splitter::capture::{LinuxCapture, Settings, unload};
use tidemark_splitter::disks::Disk;
use tidemark_splitter_core::capture::{Control, DirtyMaps, Event, Ring, Slot, Witness};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Whether the tests can run; says why not.
pub(crate) fn can_run() -> bool {
    match tidemark_splitter::disks::check_machine() {
        Ok(()) => true,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            false
        }
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A loop device on a file in memory, removed with the value.
#[derive(Debug)]
pub(crate) struct LoopDisk {
    pub(crate) path: PathBuf,
    file: PathBuf,
}

impl LoopDisk {
    pub(crate) fn new(bytes: u64) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = PathBuf::from(format!("/dev/shm/tidemark-tap-{}-{number}.img", std::process::id()));
        File::create(&file).unwrap().set_len(bytes).unwrap();
        let output = Command::new("losetup").args(["--show", "-f"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        let disk = Self { path, file };
        disk.complete_on("0");
        disk
    }

    /// Where completions are handled: 0 by the worker that has done the write, 2 on the processor that submitted, by an
    /// interrupt of whatever runs there. Some kernels show what interrupts their first process to no program.
    pub(crate) fn complete_on(&self, affinity: &str) {
        let name = self.path.file_name().unwrap();
        let attribute = Path::new("/sys/block").join(name).join("queue/rq_affinity");
        std::fs::write(attribute, affinity).unwrap();
    }

    pub(crate) fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub(crate) fn direct(&self) -> File {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&self.path).unwrap()
    }

    /// What is on the disk, by what the loop driver wrote to its file.
    pub(crate) fn content(&self) -> Vec<u8> {
        std::fs::read(&self.file).unwrap()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // The device is used again by others, with what is set here: the kernel's own value.
        self.complete_on("1");
        let _ = Command::new("losetup").arg("-d").arg(&self.path).output();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A mounted ext4 on a disk.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) folder: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn ext4(disk: &LoopDisk) -> Self {
        run("mkfs.ext4", &["-q", "-F", disk.text()]);
        let folder = tempfile::tempdir().unwrap();
        run("mount", &[disk.text(), folder.path().to_str().unwrap()]);
        Self { folder }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).output();
    }
}

/// A capture that is unloaded with the value.
#[derive(Debug)]
pub(crate) struct TestCapture {
    pub(crate) capture: Option<LinuxCapture>,
    pub(crate) settings: Settings,
}

impl TestCapture {
    pub(crate) fn new(ring_bytes: u64) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        let settings = Settings { name, ring_bytes, constant_from: None };
        let (capture, _) = LinuxCapture::open(&settings).unwrap();
        Self { capture: Some(capture), settings }
    }

    pub(crate) fn get(&mut self) -> &mut LinuxCapture {
        self.capture.as_mut().unwrap()
    }
}

impl Drop for TestCapture {
    fn drop(&mut self) {
        self.capture = None;
        if let Err(error) = unload(&self.settings.name) {
            eprintln!("cannot unload: {error}");
        }
    }
}

/// Starts capture of a disk at once: its present content is the replica, nothing is pending.
pub(crate) fn follow(capture: &mut LinuxCapture, disk: &LoopDisk, replica: &mut Replica) -> Slot {
    let found = Disk::inspect(&disk.path).unwrap();
    let (slot, _) = capture.add_disk(&found).unwrap();
    let blocks = capture.maps.blocks(slot);
    assert_eq!(capture.maps.pending_blocks(slot), blocks);
    capture.maps.clear(slot, tidemark_splitter_core::capture::BlockRange { start: 0, end: blocks }).unwrap();
    replica.images.insert(slot, disk.content());
    slot
}

/// What one sees who applies the ring in order.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    pub(crate) images: HashMap<Slot, Vec<u8>>,
    pub(crate) in_flight: HashMap<u64, (Slot, u64, u32)>,
    pub(crate) issues: u64,
    pub(crate) bytes: u64,
    pub(crate) completions: u64,
    pub(crate) unseen: u64,
    /// Issues of a request that had not completed: no tap saw its completion.
    pub(crate) replaced: u64,
    pub(crate) kinds: HashMap<i32, u64>,
    pub(crate) flags: u32,
    pub(crate) overlaps: u64,
    pub(crate) order: Vec<(Slot, u64)>,
    pub(crate) generations: Vec<u32>,
}

impl Replica {
    /// Applies everything that is in the ring now; releases it as it goes.
    pub(crate) fn consume(&mut self, ring: &mut impl Ring) -> u64 {
        let mut units = 0;
        loop {
            let end = match ring.next().unwrap() {
                None => return units,
                Some(unit) => {
                    if self.generations.last() != Some(&unit.generation) {
                        self.generations.push(unit.generation);
                    }
                    self.apply(&unit.event);
                    unit.end
                }
            };
            units += 1;
            ring.release(end);
        }
    }

    fn apply(&mut self, event: &Event<'_>) {
        match event {
            Event::Issue(issue) => {
                self.issues += 1;
                *self.kinds.entry(issue.kind as i32).or_default() += 1;
                self.flags |= issue.flags;
                self.order.push((issue.slot, issue.start_sector));
                let range = (issue.slot, issue.start_sector, issue.sectors);
                let touches = |other: &&(Slot, u64, u32)| {
                    other.0 == range.0
                        && other.1 < range.1 + u64::from(range.2)
                        && range.1 < other.1 + u64::from(other.2)
                };
                self.overlaps += self.in_flight.values().filter(touches).count() as u64;
                if self.in_flight.insert(issue.request, range).is_some() {
                    self.replaced += 1;
                }
                let Some(image) = self.images.get_mut(&issue.slot) else { return };
                let start = issue.start_sector as usize * 512;
                let place = &mut image[start..start + issue.sectors as usize * 512];
                if issue.kind == WriteKind::Data {
                    let content: Vec<u8> = issue.parts.iter().flatten().copied().collect();
                    self.bytes += content.len() as u64;
                    place.copy_from_slice(&content);
                } else {
                    place.fill(0);
                }
            }
            Event::Complete { request, failed, kind, .. } => {
                // The loop driver learns at the first attempt that memory cannot be zeroed.
                assert!(!failed || *kind == WriteKind::Zeroes);
                self.completions += 1;
                if self.in_flight.remove(request).is_none() {
                    self.unseen += 1;
                }
            }
            Event::Requeue { request } => drop(self.in_flight.remove(request)),
            Event::Voided { .. } => panic!("voided"),
        }
    }
}

/// Sixteen-byte aligned content that differs everywhere.
pub(crate) fn pattern(length: usize, seed: u64) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::new(length);
    for (word, index) in buffer.as_mut_slice().chunks_exact_mut(8).zip(0_u64..) {
        word.copy_from_slice(&((seed << 40) ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    buffer
}

pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    pub(crate) fn new(length: usize) -> Self {
        let memory = vec![0; length + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, length }
    }
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

pub(crate) fn gathered(file: &File, pieces: &[&[u8]], offset: u64) {
    let vectors: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
    let written = nix::sys::uio::pwritev(file, &vectors, i64::try_from(offset).unwrap()).unwrap();
    assert_eq!(written, wanted);
}

pub(crate) fn range_ioctl(file: &File, command: libc::Ioctl, offset: u64, bytes: u64) -> io::Result<()> {
    let range = [offset, bytes];
    // SAFETY: BLKDISCARD and BLKZEROOUT read two u64.
    if unsafe { libc::ioctl(file.as_raw_fd(), command, range.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(crate) const BLKDISCARD: libc::Ioctl = 0x1277;
pub(crate) const BLKZEROOUT: libc::Ioctl = 0x127F;

/// A small fixed-seed generator.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

pub(crate) fn fio(disk: &Path, arguments: &[&str]) -> std::process::Child {
    Command::new("fio")
        .args(["--name=w", "--direct=1", "--ioengine=libaio", "--randrepeat=0", "--minimal"])
        .arg(format!("--filename={}", disk.display()))
        .args(arguments)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// The first place where two images differ, without printing them.
pub(crate) fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a.len() != b.len() {
        return Some(a.len().min(b.len()));
    }
    a.iter().zip(b).position(|(a, b)| a != b)
}

/// The witness agrees with what was seen: it is clean unless a completion is missing, which a kernel that ran no
/// program at that moment may do to every tap.
pub(crate) fn assert_witness(capture: &mut LinuxCapture, replica: &Replica) {
    let witness = capture.control.witness().unwrap();
    if witness != Witness::Clean {
        let missing = replica.in_flight.len() as u64 + replica.replaced;
        assert!(missing > 0, "every completion was seen: {witness:?}");
        eprintln!("{missing} completions were shown to no program: {witness:?}");
    }
}

pub(crate) fn start(capture: &mut LinuxCapture) -> u32 {
    capture.control.restart().unwrap()
}

pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) {
    file.write_all_at(bytes, offset).unwrap();
}
