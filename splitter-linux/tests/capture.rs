//! The tap on real loop devices: what the ring says, applied in order, is the disk.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise and says what it skips"
)]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::*;
use tidemark_proto::v1::WriteKind;
use tidemark_splitter::capture::{ConstantSource, LinuxCapture, Origin, Settings, unload};
use tidemark_splitter_core::capture::{Control, DirtyMaps, Event, Mode, Ring, Slot, Witness};

const MIB: u64 = 1 << 20;

#[test]
fn every_size_kind_and_alignment_is_captured_exactly() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(64 * MIB);
    let mut test = TestCapture::new(64 * MIB);
    let capture = test.get();
    let mut replica = Replica::default();
    follow(capture, &disk, &mut replica);
    start(capture);
    let file = disk.direct();
    let mut at = 0;
    for (seed, size) in
        (1..).zip([512, 1024, 4096, 4608, 8192, 16384, 20480, 65536, 131_072, 1 << 20, 4 << 20])
    {
        write_at(&file, pattern(size, seed).as_slice(), at);
        at += size as u64;
    }
    // Scattered vectors: pages from all over, odd sectors, and vectors that end inside a sector.
    let memory = pattern(4 << 20, 77);
    let memory = memory.as_slice();
    let pages: Vec<&[u8]> = (0..256).map(|n| &memory[(255 - n) * 8192..(255 - n) * 8192 + 4096]).collect();
    gathered(&file, &pages, 16 * MIB);
    let odd: Vec<&[u8]> = (0..64).map(|n| &memory[n * 9000 / 512 * 512..][..1536]).collect();
    gathered(&file, &odd, 20 * MIB);
    let split: Vec<&[u8]> =
        (0..16).map(|n| &memory[n * 8192 + 4..][..if n % 2 == 0 { 1500 } else { 548 }]).collect();
    let vectors: Vec<std::io::IoSlice<'_>> = split.iter().map(|piece| std::io::IoSlice::new(piece)).collect();
    let fine = nix::sys::uio::pwritev(&file, &vectors, i64::try_from(24 * MIB).unwrap());
    eprintln!("vectors that end inside a sector: {fine:?}");
    range_ioctl(&file, BLKZEROOUT, 3 * MIB, MIB).unwrap();
    range_ioctl(&file, BLKDISCARD, 17 * MIB, MIB / 2).unwrap();
    file.sync_data().unwrap();
    replica.consume(&mut capture.ring);
    let image = &replica.images[&Slot(0)];
    assert_eq!(difference(image, &disk.content()), None);
    assert!(replica.kinds[&(WriteKind::Zeroes as i32)] > 0);
    assert!(replica.kinds[&(WriteKind::Discard as i32)] > 0);
    assert!(replica.kinds[&(WriteKind::Flush as i32)] > 0);
    assert_eq!(replica.unseen, 0);
    assert_eq!(capture.control.status().drops, 0);
    assert_witness(capture, &replica);
    if capture.control.witness().unwrap() == Witness::Clean {
        assert!(replica.in_flight.is_empty(), "{:?}", replica.in_flight);
    }
}

#[test]
fn both_ways_to_the_page_constant_where_the_kernel_offers_them() {
    if !can_run() {
        return;
    }
    for source in [ConstantSource::BufferHead, ConstantSource::Variables] {
        let name = format!("constant-{}-{source:?}", std::process::id());
        let settings = Settings { name, ring_bytes: 16 * MIB, constant_from: Some(source) };
        match LinuxCapture::open(&settings) {
            Ok((_, origin)) => assert_eq!(origin, Origin::Loaded { constant_from: source }),
            Err(error) => {
                assert_eq!(source, ConstantSource::Variables, "{error}");
                eprintln!("skipped: {error}");
            }
        }
        unload(&settings.name).unwrap();
    }
}

/// Writes random places of all disks until the time is up, while the ring is applied.
fn replicate(disks: &[&LoopDisk], capture: &mut LinuxCapture, replica: &mut Replica, jobs: &[&str]) {
    let mut children: Vec<_> = disks.iter().map(|disk| fio(&disk.path, jobs)).collect();
    loop {
        let finished = children.iter_mut().all(|child| child.try_wait().unwrap().is_some());
        if replica.consume(&mut capture.ring) == 0 {
            if finished {
                break;
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    replica.consume(&mut capture.ring);
}

#[test]
fn two_raw_disks_under_deep_queues_are_replicated_in_one_order() {
    if !can_run() {
        return;
    }
    let (one, two) = (LoopDisk::new(64 * MIB), LoopDisk::new(48 * MIB));
    let mut test = TestCapture::new(256 * MIB);
    let capture = test.get();
    let mut replica = Replica::default();
    let slots = [follow(capture, &one, &mut replica), follow(capture, &two, &mut replica)];
    start(capture);
    // `norandommap` would let two writes of one place be in flight at once, which no order can tell apart.
    let jobs =
        ["--rw=randwrite", "--bsrange=512-256k", "--iodepth=16", "--runtime=3", "--time_based", "--rate=60m"];
    let seen = Instant::now();
    replicate(&[&one, &two], capture, &mut replica, &jobs);
    assert_eq!(capture.control.status().drops, 0, "{:?}", capture.control.status());
    assert_eq!(difference(&replica.images[&slots[0]], &one.content()), None);
    assert_eq!(difference(&replica.images[&slots[1]], &two.content()), None);
    let changes = replica.order.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
    assert!(changes > 100, "the disks alternate in one order, {changes} times");
    eprintln!(
        "{} writes, {} MiB, {} overlaps in {:?}",
        replica.issues,
        replica.bytes / MIB,
        replica.overlaps,
        seen.elapsed()
    );
    assert_witness(capture, &replica);
}

#[test]
fn a_mounted_ext4_is_replicated() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(128 * MIB);
    let mut test = TestCapture::new(256 * MIB);
    let capture = test.get();
    let mut replica = Replica::default();
    let mounted = Mounted::ext4(&disk);
    run("sync", &["-f", mounted.folder.path().to_str().unwrap()]);
    let slot = follow(capture, &disk, &mut replica);
    start(capture);
    let folder = mounted.folder.path().to_owned();
    let writer = thread::spawn(move || {
        let mut random = Random(42);
        for number in 0..400_u64 {
            let path = folder.join(format!("file-{}", random.next(60)));
            let length = random.next(300_000) as usize + 1;
            std::fs::write(&path, &pattern(length.next_multiple_of(8), number).as_slice()[..length]).unwrap();
            match random.next(4) {
                0 => std::fs::File::open(&path).unwrap().sync_all().unwrap(),
                1 => std::fs::remove_file(&path).unwrap(),
                _ => {}
            }
        }
        run("sync", &["-f", folder.to_str().unwrap()]);
    });
    while !writer.is_finished() {
        replica.consume(&mut capture.ring);
        thread::sleep(Duration::from_micros(500));
    }
    writer.join().unwrap();
    drop(mounted);
    replica.consume(&mut capture.ring);
    assert_eq!(capture.control.status().drops, 0);
    assert_eq!(difference(&replica.images[&slot], &disk.content()), None);
    assert!(replica.kinds[&(WriteKind::Flush as i32)] > 10, "{:?}", replica.kinds);
    assert_witness(capture, &replica);
}

#[test]
fn a_killed_reader_loses_nothing_and_a_second_one_is_refused() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(16 * MIB);
    let mut test = TestCapture::new(64 * MIB);
    let mut replica = Replica::default();
    let slot = follow(test.get(), &disk, &mut replica);
    let generation = start(test.get());
    let id = test.get().capture_id();
    let file = disk.direct();
    write_at(&file, pattern(8192, 1).as_slice(), 0);
    replica.consume(&mut test.get().ring);
    // A unit that was read and not released is read again by the next reader.
    write_at(&file, pattern(4096, 2).as_slice(), 8192);
    assert!(matches!(test.get().ring.next().unwrap().unwrap().event, Event::Issue(_)));
    let range = tidemark_splitter_core::capture::BlockRange { start: 7, end: 9 };
    test.get().maps.mark(slot, range).unwrap();
    let settings = test.settings.clone();
    assert!(LinuxCapture::open(&settings).unwrap_err().to_string().contains("another splitter"));
    assert!(unload(&settings.name).unwrap_err().to_string().contains("another splitter"));
    test.capture = None;
    write_at(&file, pattern(12288, 3).as_slice(), 65536);
    let (capture, origin) = LinuxCapture::open(&settings).unwrap();
    test.capture = Some(capture);
    assert_eq!(origin, Origin::Reattached);
    let capture = test.get();
    assert_eq!(capture.capture_id(), id);
    assert_eq!(capture.control.status().generation, generation);
    assert_eq!(capture.control.status().mode, Mode::Full);
    let found = tidemark_splitter::disks::Disk::inspect(&disk.path).unwrap();
    assert_eq!(capture.add_disk(&found).unwrap(), (slot, false));
    assert_eq!(capture.maps.pending_blocks(slot), 2);
    assert_eq!(capture.maps.next_pending(slot, 0, 100), Some(range));
    replica.consume(&mut capture.ring);
    assert_eq!(difference(&replica.images[&slot], &disk.content()), None);
    assert_eq!(replica.unseen, 0);
    assert_witness(capture, &replica);
}

#[test]
fn attaching_to_a_busy_disk_shows_what_was_in_flight_as_unseen() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(64 * MIB);
    let mut test = TestCapture::new(256 * MIB);
    let capture = test.get();
    let mut writer =
        fio(&disk.path, &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--runtime=3", "--time_based"]);
    thread::sleep(Duration::from_millis(1000));
    let found = tidemark_splitter::disks::Disk::inspect(&disk.path).unwrap();
    let (slot, new) = capture.add_disk(&found).unwrap();
    assert!(new);
    assert_eq!(capture.maps.pending_blocks(slot), capture.maps.blocks(slot));
    thread::sleep(Duration::from_millis(50));
    start(capture);
    let mut replica = Replica::default();
    replica.images.insert(slot, vec![0; usize::try_from(64 * MIB).unwrap()]);
    while writer.try_wait().unwrap().is_none() {
        replica.consume(&mut capture.ring);
        thread::sleep(Duration::from_micros(200));
    }
    replica.consume(&mut capture.ring);
    eprintln!("{} completions of writes issued before", replica.unseen);
    assert!(replica.unseen <= 32);
    // `add_disk` waits; the dirty-only time before `start` marked what completed in it.
    let mut dirty = 0;
    capture.maps.take(slot, &mut |range| dirty += range.blocks()).unwrap();
    assert!(dirty > 0);
    assert_witness(capture, &replica);
}

#[test]
fn overload_raises_the_generation_and_the_dirty_map_covers_what_was_missed() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(96 * MIB);
    let mut test = TestCapture::new(16 * MIB);
    let capture = test.get();
    let mut replica = Replica::default();
    let slot = follow(capture, &disk, &mut replica);
    let first = start(capture);
    let mut random = Random(7);
    let file = disk.direct();
    let mut control = None;
    let mut hidden = Vec::new();
    for round in 0..4_u64 {
        // Fills the ring without a reader, then writes on: these are only marked.
        for number in 0..400_u64 {
            let sectors = 1 + random.next(200);
            let place = random.next(96 * MIB / 512 - sectors);
            write_at(&file, pattern(sectors as usize * 512, round << 16 | number).as_slice(), place * 512);
        }
        range_ioctl(&file, BLKDISCARD, random.next(64) * MIB, 3 * MIB).unwrap();
        let status = capture.control.status();
        assert_eq!(status.mode, Mode::DirtyOnly);
        assert_eq!(status.cause, tidemark_proto::v1::GapCause::RingFull);
        assert!(status.generation > first && status.drops > 0);
        replica.consume(&mut capture.ring);
        assert_eq!(capture.ring.position(), capture.ring.producer());
        control = Some(replica.images[&slot].clone());
        let generation = capture.control.restart().unwrap();
        assert!(generation > status.generation);
        // Resync: bits first, then the reads.
        capture.maps.take(slot, &mut |_| {}).unwrap();
        let content = disk.content();
        let image = replica.images.get_mut(&slot).unwrap();
        let mut blocks = 0;
        while let Some(range) = capture.maps.next_pending(slot, 0, 256) {
            let bytes = (range.start * 4096) as usize..((range.end * 4096) as usize).min(content.len());
            image[bytes.clone()].copy_from_slice(&content[bytes]);
            capture.maps.clear(slot, range).unwrap();
            blocks += range.blocks();
        }
        assert!(blocks > 0 && capture.maps.pending_blocks(slot) == 0);
        assert_eq!(difference(image, &content), None, "round {round}");
        // Completions of writes that were only marked count as well. Which one the kernel showed to no program cannot
        // be told here: that happens to single ones, a wrong count would show in every round.
        if let witness @ Witness::Mismatch { .. } = capture.control.witness().unwrap() {
            hidden.push((round, witness));
            capture.control.accept_witness().unwrap();
        }
    }
    assert!(hidden.len() <= 2, "{hidden:?}");
    replica.in_flight.clear();
    // Negative control: without the dirty map the replica is not the disk.
    assert!(difference(&control.unwrap(), &disk.content()).is_some());
    write_at(&file, pattern(4096, 5).as_slice(), 4096);
    replica.consume(&mut capture.ring);
    assert_eq!(difference(&replica.images[&slot], &disk.content()), None);
    assert_eq!(replica.unseen, 0);
    assert_witness(capture, &replica);
}

#[test]
fn a_forced_miss_stops_capture_and_marks() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(8 * MIB);
    let mut test = TestCapture::new(16 * MIB);
    let capture = test.get();
    let slot = follow(capture, &disk, &mut Replica::default());
    start(capture);
    let cause = tidemark_proto::v1::GapCause::OverlappingWrites;
    capture.control.force_miss(cause).unwrap();
    let before = capture.ring.producer();
    write_at(&disk.direct(), pattern(8192, 1).as_slice(), 4096 - 512);
    assert_eq!(capture.ring.producer(), before);
    assert_eq!((capture.control.status().mode, capture.control.status().cause), (Mode::DirtyOnly, cause));
    let mut moved = Vec::new();
    capture.maps.take(slot, &mut |range| moved.push(range)).unwrap();
    assert_eq!(moved, [tidemark_splitter_core::capture::BlockRange { start: 0, end: 3 }]);
    capture.remove_disk(slot).unwrap();
    assert!(capture.disks().is_empty());
}

#[test]
fn a_resized_disk_keeps_its_bits() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(8 * MIB);
    let mut test = TestCapture::new(16 * MIB);
    let capture = test.get();
    let slot = follow(capture, &disk, &mut Replica::default());
    write_at(&disk.direct(), pattern(4096, 1).as_slice(), 4 * MIB);
    let range = tidemark_splitter_core::capture::BlockRange { start: 3, end: 4 };
    capture.maps.mark(slot, range).unwrap();
    capture.resize_disk(slot, 1024 * MIB / 512).unwrap();
    assert_eq!(capture.maps.blocks(slot), 1024 * MIB / 4096);
    // What is new is pending with it, and so is what was the last block.
    let new = 1016 * MIB / 4096 + 1;
    assert_eq!(capture.maps.pending_blocks(slot), 1 + new);
    let last = tidemark_splitter_core::capture::BlockRange { start: 2047, end: 1024 * MIB / 4096 };
    capture.maps.clear(slot, last).unwrap();
    let mut moved = Vec::new();
    capture.maps.take(slot, &mut |range| moved.push(range)).unwrap();
    assert_eq!(moved, [tidemark_splitter_core::capture::BlockRange { start: 1024, end: 1025 }]);
    // Smaller: what lay beyond the new end counts no longer, in the same word of the map too.
    capture.maps.mark(slot, tidemark_splitter_core::capture::BlockRange { start: 30, end: 50 }).unwrap();
    capture.resize_disk(slot, 40 * 8).unwrap();
    assert_eq!((capture.maps.blocks(slot), capture.maps.pending_blocks(slot)), (40, 11));
    capture.maps.clear(slot, tidemark_splitter_core::capture::BlockRange { start: 0, end: 40 }).unwrap();
    assert_eq!(capture.maps.pending_blocks(slot), 0);
}
