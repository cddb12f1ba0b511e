//! Negative controls on real disks: two ways of copying a disk that look right and are not. Each builds an image as the
//! splitter would, once right and once wrong; the checkers of the end-to-end tests must pass the one and fail the other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use tidemark_tests::disks::{LoopDisk, Mounted, SlowDisk, read_direct};
use tidemark_tests::process::output_of;
use tidemark_tests::site::skipped;
use tidemark_tests::stamp::{AlignedBuffer, Checker, History, Kind, Options, SECTOR_BYTES, Stamp, Workload};

/// Blocks read by an initial copy: `tick` is the log's clock when the read began.
struct Block {
    tick: u64,
    start_sector: u64,
    bytes: Vec<u8>,
}

const BLOCK_BYTES: usize = 64 << 10;

/// The image after all captured writes and all blocks are laid down, a block at the place `stamp` gives it in the order
/// of submissions.
fn compose(history: &History, blocks: &[Block], stamp: impl Fn(&Block) -> u64) -> Vec<u8> {
    let mut image = vec![0; history.disk_sectors as usize * SECTOR_BYTES];
    let mut writes: Vec<_> = history.operations.iter().filter(|write| write.submitted.is_some()).collect();
    writes.sort_by_key(|write| write.submitted);
    let mut blocks: Vec<(u64, &Block)> = blocks.iter().map(|block| (stamp(block), block)).collect();
    blocks.sort_by_key(|(stamp, _)| *stamp);
    let mut blocks = blocks.into_iter().peekable();
    let lay = |image: &mut Vec<u8>, block: &Block| {
        let at = block.start_sector as usize * SECTOR_BYTES;
        image[at..at + block.bytes.len()].copy_from_slice(&block.bytes);
    };
    for write in writes {
        while let Some((_, block)) = blocks.next_if(|(stamp, _)| *stamp <= write.submitted.unwrap()) {
            lay(&mut image, block);
        }
        assert_eq!(write.kind, Kind::Data);
        for sector in write.start_sector..write.start_sector + write.sectors {
            let at = sector as usize * SECTOR_BYTES;
            let bytes = image[at..].first_chunk_mut::<SECTOR_BYTES>().unwrap();
            Stamp { run: history.run, sequence: write.sequence, sector, time_us: 0 }.encode(bytes);
        }
    }
    blocks.for_each(|(_, block)| lay(&mut image, block));
    image
}

/// Blocks stamped when their read began hide writes that were issued before and had not reached the disk yet.
#[test]
fn control_blocks_stamped_when_their_read_began() {
    if skipped("loop devices") {
        return;
    }
    if let Some(reason) = SlowDisk::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = SlowDisk::create(&folder.path().join("disk"), 4 << 20, 400).unwrap();
    let options = Options {
        seed: 17,
        queue_depth: 32,
        largest_sectors: 32,
        zeroes_percent: 0,
        duration: Duration::from_secs(60),
        ..Options::default()
    };
    let workload = Workload::open(disk.device(), options).unwrap();
    let reader = File::options().read(true).custom_flags(libc::O_DIRECT).open(disk.device()).unwrap();
    let mut blocks = Vec::new();
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| {
            let _slow = disk.enter().unwrap();
            workload.run().unwrap()
        });
        while workload.progress() < 300 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut buffer = AlignedBuffer::new(BLOCK_BYTES);
        for start_sector in (0..workload.history().disk_sectors).step_by(BLOCK_BYTES / SECTOR_BYTES) {
            let tick = workload.tick();
            reader.read_exact_at(buffer.slice_mut(), start_sector * SECTOR_BYTES as u64).unwrap();
            blocks.push(Block { tick, start_sector, bytes: buffer.slice_mut().to_vec() });
        }
        workload.stop();
        assert_eq!(run.join().unwrap().errors, []);
    });
    let history = workload.history();
    let checker = Checker::new(&history);
    // Capture began before the first write: the start line lies below all of them.
    checker.check(&compose(&history, &blocks, |_| 0), u64::MAX).unwrap();
    let naive = checker.check(&compose(&history, &blocks, |block| block.tick), u64::MAX);
    println!("stamped when the read began: {}", naive.as_ref().unwrap_err());
    assert!(naive.is_err(), "the control must fail");
}

/// Buffered reads return blocks of a transaction that the file system has not committed: a state that never was on the
/// disk. Direct reads do not.
#[test]
fn control_buffered_reads_see_what_never_was_on_the_disk() {
    if skipped("loop devices and mounts") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("disk");
    let disk = LoopDisk::create(&backing, 64 << 20).unwrap();
    output_of(std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.device())).unwrap();
    let mounted = Mounted::mount(disk.device(), &folder.path().join("mounted"), "commit=600").unwrap();
    output_of(std::process::Command::new("sync").arg("-f").arg(mounted.path())).unwrap();
    for number in 0..300 {
        std::fs::write(mounted.path().join(format!("file-{number}")), vec![7; 5000]).unwrap();
    }
    let buffered = std::fs::read(disk.device()).unwrap();
    let direct = read_direct(disk.device()).unwrap();
    // What the disk holds: the loop device writes it to this file.
    let truth = std::fs::read(&backing).unwrap();
    let differing = |image: &[u8]| image.chunks(4096).zip(truth.chunks(4096)).filter(|(a, b)| a != b).count();
    println!(
        "blocks that are not on the disk: {} buffered, {} direct",
        differing(&buffered),
        differing(&direct)
    );
    assert_eq!(differing(&direct), 0);
    assert!(differing(&buffered) > 0, "the control must fail");
}
