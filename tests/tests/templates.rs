//! VMs made from one published template: what their first copies put on the wire, and that they are exact.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_tests::disks::{LoopDisk, Mounted, read_direct};
use tidemark_tests::meter::Meter;
use tidemark_tests::site::{Site, skipped};

const MIB: usize = 1 << 20;
const DISK_MIB: usize = 128;
const BLOCK_BYTES: usize = 4096;
const VMS: usize = 10;

/// Copies files of this system, in order, until there are so many bytes of them.
fn gather(from: &[&str], to: &Path, bytes: usize) {
    let mut taken = 0;
    for folder in from {
        let mut files: Vec<PathBuf> =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let length =
                fs::symlink_metadata(&file).map_or(0, |found| if found.is_file() { found.len() } else { 0 });
            if length == 0 || length as usize > 8 * MIB || taken + length as usize > bytes {
                continue;
            }
            fs::copy(&file, to.join(format!("{taken}-{}", file.file_name().unwrap().to_string_lossy())))
                .unwrap();
            taken += length as usize;
        }
    }
    assert!(taken > bytes / 2, "only {taken} bytes of files were found");
}

/// A raw image with ext4 and real files on it.
fn golden(site: &Site) -> PathBuf {
    let (folder, image) = (site.path().join("files"), site.path().join("golden.raw"));
    fs::create_dir(&folder).unwrap();
    gather(&["/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu"], &folder, 72 * MIB);
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096", "-d"])
        .args([&folder, &image])
        .arg(format!("{DISK_MIB}M"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    image
}

/// What makes a machine its own: new files, and old ones changed in the middle.
fn live(device: &Path, at: &Path, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    fs::create_dir_all(at).unwrap();
    let mounted = Mounted::mount(device, at, "noatime").unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir(mounted.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    let mut block = vec![0; BLOCK_BYTES];
    for _ in 0..200 {
        let path = &files[random.random_range(0..files.len())];
        let length = fs::metadata(path).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        random.fill(&mut block[..]);
        let last = (length / BLOCK_BYTES as u64).max(1);
        std::os::unix::fs::FileExt::write_all_at(
            &file,
            &block,
            random.random_range(0..last) * BLOCK_BYTES as u64,
        )
        .unwrap();
    }
    let mut own = vec![0; MIB / 2];
    random.fill(&mut own[..]);
    fs::write(mounted.path().join("own"), own).unwrap();
}

fn blocks(image: &[u8]) -> impl Iterator<Item = &[u8]> {
    image.chunks(BLOCK_BYTES)
}

/// Bytes in blocks that are not zeroes.
fn content_bytes(image: &[u8]) -> u64 {
    let used = blocks(image).filter(|block| block.iter().any(|byte| *byte != 0)).count();
    (used * BLOCK_BYTES) as u64
}

/// Bytes in blocks that differ.
fn changed_bytes(a: &[u8], b: &[u8]) -> u64 {
    (blocks(a).zip(blocks(b)).filter(|(a, b)| a != b).count() * BLOCK_BYTES) as u64
}

/// Waits until the appliance has indexed what is published: a file beside the key says so.
fn wait_known(site: &Site) {
    let began = Instant::now();
    while fs::read_dir(site.data().join("templates")).unwrap().flatten().count() < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "the template never became known");
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Copied {
    travelled: u64,
    changed: u64,
    content: u64,
}

/// Protects a disk made from the image, compares what arrived with it, and ends the protection.
fn copy(site: &mut Site, vm: &str, image: &Path, seed: u64) -> Copied {
    let backing = site.path().join(vm);
    fs::copy(image, &backing).unwrap();
    let disk = LoopDisk::attach(&backing, &[]).unwrap();
    live(disk.device(), &site.path().join(format!("{vm}-mounted")), seed);
    let golden = fs::read(image).unwrap();
    let truth = read_direct(disk.device()).unwrap();
    let (content, changed) = (content_bytes(&truth), changed_bytes(&golden, &truth));
    let meter = Meter::start(site.address(), Duration::ZERO).unwrap();
    let splitter = site.add_splitter_at(vm, meter.address(), &["--ring-mib", "16"]).unwrap();
    let before = meter.bytes();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(vm, "protected", Duration::from_secs(90)).unwrap();
    let travelled = meter.bytes() - before;
    site.bookmark(vm, "copied").unwrap();
    assert!(site.image(vm, 0, "bookmark:copied").unwrap() == truth, "{vm}: the copy is exact");
    let splitter = site.splitter(splitter).unwrap();
    splitter.kill().unwrap();
    splitter.command(&["unload"]).unwrap();
    fs::remove_file(&backing).unwrap();
    Copied { travelled, changed, content }
}

/// Protects a disk of which every second half mebibyte is random and the others are zeroes. Its size, and how much of it the
/// first copy read.
fn read_once(site: &mut Site, vm: &str, seed: u64) -> (u64, u64) {
    let backing = site.path().join(vm);
    let mut image = vec![0; 64 * MIB];
    let mut random = StdRng::seed_from_u64(seed);
    image.chunks_mut(MIB).for_each(|part| random.fill(&mut part[..MIB / 2]));
    fs::write(&backing, &image).unwrap();
    let disk = LoopDisk::attach(&backing, &[]).unwrap();
    let splitter = site.add_splitter(vm, &["--ring-mib", "16"]).unwrap();
    let before = sectors_read(disk.device());
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(vm, "protected", Duration::from_secs(90)).unwrap();
    let read = (sectors_read(disk.device()) - before) * 512;
    site.bookmark(vm, "copied").unwrap();
    assert!(site.image(vm, 0, "bookmark:copied").unwrap() == image, "{vm}: the copy is exact");
    let splitter = site.splitter(splitter).unwrap();
    splitter.kill().unwrap();
    splitter.command(&["unload"]).unwrap();
    fs::remove_file(&backing).unwrap();
    (image.len() as u64, read)
}

/// Sectors read from the device since it exists.
fn sectors_read(device: &Path) -> u64 {
    let stat = Path::new("/sys/class/block").join(device.file_name().unwrap()).join("stat");
    fs::read_to_string(stat).unwrap().split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn the_tenth_vm_of_one_template_costs_a_few_per_cent_of_its_content_on_the_wire() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("templates").unwrap();
    let image = golden(&site);
    let path = image.to_str().unwrap().to_owned();
    site.cli(&["object", "put", &path, "--name", "web-template", "--kind", "template"]).unwrap();
    let share = |part: u64, of: u64| part as f64 * 100.0 / of as f64;
    // The control: while the template is not published, everything travels.
    let alone = copy(&mut site, "web-0", &image, 0);
    println!("not published: {} of {} bytes travelled", alone.travelled, alone.content);
    assert!(alone.travelled > alone.content / 100 * 95 && alone.travelled < alone.content / 100 * 110);
    site.cli(&["object", "set", "web-template", "--publish"]).unwrap();
    wait_known(&site);
    for number in 1..=VMS {
        let copied = copy(&mut site, &format!("web-{number}"), &image, number as u64);
        let Copied { travelled, changed, content } = copied;
        println!(
            "VM {number}: {travelled} of {content} bytes travelled, {:.2} %; {:.2} % had changed",
            share(travelled, content),
            share(changed, content)
        );
        assert!(changed > content / 100 && changed < content / 20, "{changed} of {content} bytes changed");
        assert!(travelled >= changed / 2, "{changed} changed bytes cannot travel in {travelled}");
        assert!(travelled < changed + content / 50, "{travelled} bytes for {changed} changed of {content}");
    }
    // A disk that shares nothing with the template is read once, though half of it reads as an empty journal does.
    let (size, read) = read_once(&mut site, "other", 0);
    println!("a half empty disk of {size} bytes: {read} bytes were read");
    assert!(read >= size && read < size / 4 * 5, "{read} bytes read of a disk of {size}");
    // Unpublished, everything travels again.
    site.cli(&["object", "set", "web-template", "--unpublish"]).unwrap();
    let last = copy(&mut site, "web-last", &image, 99);
    assert!(last.travelled > last.content / 100 * 95, "{} of {}", last.travelled, last.content);
    site.finish(&["connection", "not connected", "broke", "transport", "session", "stream"]).unwrap();
}
