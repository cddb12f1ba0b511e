//! Files of a point, read at the appliance, against what the kernel shows of the same point.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tidemark_tests::disks::{LoopDisk, Mounted};
use tidemark_tests::filetree::{Tree, apply, differences, of_kernel, of_list};
use tidemark_tests::filework::FileWork;
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Site, large, skipped};

const VM: &str = "files";
const PROTECT_TIMEOUT: Duration = Duration::from_secs(90);
const POINT_TIMEOUT: Duration = Duration::from_secs(60);

fn run(program: &str, arguments: &[&str]) -> String {
    output_of(Command::new(program).args(arguments)).unwrap()
}

/// A site that protects a disk with an ext4 that is mounted.
struct Guest {
    live: Mounted,
    disk: LoopDisk,
    site: Site,
}

impl Guest {
    /// `options` are those of mkfs.ext4. The disk is protected when it is filled.
    fn start(name: &str, bytes: u64, options: &[&str], fill: impl FnOnce(&Path)) -> Self {
        Self::start_mounted(name, bytes, options, "rw", fill)
    }

    /// With options of mount, too.
    fn start_mounted(
        name: &str,
        bytes: u64,
        options: &[&str],
        mount: &str,
        fill: impl FnOnce(&Path),
    ) -> Self {
        let mut site = Site::start(name).unwrap();
        let disk = LoopDisk::create(&site.path().join("disk"), bytes).unwrap();
        let device = disk.device().to_string_lossy().into_owned();
        run("mkfs.ext4", &[&["-q", "-F"], options, &[&device]].concat());
        let live = Mounted::mount(disk.device(), &site.path().join("live"), mount).unwrap();
        fill(live.path());
        let splitter = site.add_splitter(VM, &["--ring-mib", "128"]).unwrap();
        site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
        site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
        Self { live, disk, site }
    }

    /// A bookmark that can be recovered; what was synced before it is in it.
    fn point(&self, name: &str) -> u64 {
        run("sync", &["-f", &self.live.path().to_string_lossy()]);
        self.mark(name)
    }

    fn mark(&self, name: &str) -> u64 {
        let lsn = self.site.bookmark(VM, name).unwrap();
        self.site.wait_point(VM, lsn, POINT_TIMEOUT).unwrap();
        lsn
    }

    fn list(&self, lsn: u64, options: &[&str]) -> Value {
        let at = format!("lsn:{lsn}");
        let words = [&["files", "list", VM, "--at", &at, "--recursive", "--blake3"], options].concat();
        self.site.cli_json(&words).unwrap()
    }

    fn diff(&self, from: u64, to: u64) -> Value {
        let (from, to) = (format!("lsn:{from}"), format!("lsn:{to}"));
        self.site.cli_json(&["files", "diff", VM, "--from", &from, "--to", &to]).unwrap()
    }

    /// Where the journal of a point begins: it goes back to the front when it wraps.
    fn journal_start(image: &Path) -> u64 {
        let said = run("dumpe2fs", &["-h", &image.to_string_lossy()]);
        let line = said.lines().find_map(|line| line.strip_prefix("Journal start:"));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("no start in {said}"))
    }

    /// What the kernel shows of a point.
    fn kernel(&self, lsn: u64) -> Tree {
        self.kernel_and_journal(lsn).0
    }

    fn kernel_and_journal(&self, lsn: u64) -> (Tree, u64) {
        // In memory: the disk is the appliance's.
        let image = tempfile::Builder::new().prefix("tidemark-files-").tempfile_in("/dev/shm").unwrap();
        fs::write(image.path(), self.site.image(VM, 0, &format!("lsn:{lsn}")).unwrap()).unwrap();
        let journal = Self::journal_start(image.path());
        (of_kernel(image.path(), &self.site.path().join("mounted")).unwrap(), journal)
    }

    fn get(&self, path: &str, lsn: u64, to: &Path) -> anyhow::Result<String> {
        let (at, to) = (format!("lsn:{lsn}"), to.to_string_lossy());
        self.site.cli(&["files", "get", VM, path, "--at", &at, "--to", &to, "--overwrite"])
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.9fZ").to_string()
}

fn random_points(guest: &Guest, count: usize, last: u64, random: &mut StdRng) -> Vec<u64> {
    let windows: Vec<(u64, u64)> = guest
        .site
        .points(VM)
        .unwrap()
        .windows
        .iter()
        .map(|window| (window.from_lsn, window.to_lsn.min(last)))
        .filter(|(from, to)| from < to)
        .collect();
    let mut points: Vec<u64> = Vec::new();
    while points.len() < count {
        let (from, to) = windows[random.random_range(0..windows.len())];
        let lsn = random.random_range(from..=to);
        // And a near one: data that was written in place, whose time is not committed, lies between such.
        points.extend([lsn, (lsn + random.random_range(1..=6)).min(to)]);
    }
    points.push(last);
    points.sort_unstable();
    points.dedup();
    points
}

/// What was compared, and how often the comparisons that must fail did.
#[derive(Debug, Default)]
struct Judged {
    points: usize,
    /// Without the journal.
    stale: usize,
    /// A list beside the tree of the point before.
    wrong_point: usize,
    /// Changes since another point.
    wrong_diff: usize,
    restored: usize,
    changes: usize,
    /// Groups that were searched for the owner of data written in place.
    searched: u64,
    /// How often the journal began further in front than at the point before.
    wrapped: usize,
}

/// Works with files, then compares random points with the kernel.
fn judge(guest: &Guest, seed: u64, steps: usize, points: usize) -> Judged {
    let work = FileWork::new(guest.live.path()).unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| work.run(seed));
        let began = Instant::now();
        while work.steps() < steps && !run.is_finished() && began.elapsed() < Duration::from_secs(240) {
            std::thread::sleep(Duration::from_millis(50));
        }
        work.stop();
        run.join().unwrap().unwrap();
    });
    let last = guest.mark("end");
    let mut random = StdRng::seed_from_u64(seed);
    let points = random_points(guest, points, last, &mut random);
    let mut judged = Judged::default();
    let mut before: Option<(u64, Tree, u64)> = None;
    for lsn in &points {
        let since = now();
        let (kernel, journal) = guest.kernel_and_journal(*lsn);
        let found = of_list(&guest.list(*lsn, &[])).unwrap();
        let wrong = differences(&kernel, &found, &since);
        assert!(wrong.is_empty(), "lsn:{lsn}: {} differ: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        let at = format!("lsn:{lsn}");
        let words = ["files", "list", VM, "--at", &at, "--recursive", "--blake3", "--ignore-journal"];
        let raw = guest.site.cli_json(&words).and_then(|printed| of_list(&printed));
        judged.stale += usize::from(raw.map_or(true, |raw| !differences(&kernel, &raw, &since).is_empty()));
        if let Some((earlier, tree, begun)) = &before {
            judged.wrong_point += usize::from(!differences(tree, &found, &since).is_empty());
            judged.wrapped += usize::from(journal < *begun);
            let changes = guest.diff(*earlier, *lsn);
            assert_eq!(changes["nameless"], 0, "{changes}");
            judged.searched += changes["searched_groups"].as_u64().unwrap();
            judged.changes += changes["changes"].as_array().unwrap().len();
            // Times come from our list, which was found to be the kernel's.
            let after = apply(tree, &changes, &found).unwrap();
            let wrong = differences(&found, &after, "9");
            let some = &wrong[..wrong.len().min(5)];
            assert!(wrong.is_empty(), "lsn:{earlier} to lsn:{lsn}: {} differ: {some:#?}", wrong.len());
            if *earlier != points[0] {
                let other = apply(tree, &guest.diff(points[0], *lsn), &found);
                judged.wrong_diff +=
                    usize::from(other.map_or(true, |other| !differences(&found, &other, "9").is_empty()));
            }
        }
        judged.restored += restore_some(guest, &found, *lsn, &mut random);
        judged.points += 1;
        before = Some((*lsn, found, journal));
    }
    println!("{judged:?}, {} steps, lsn:{} to lsn:{last}", work.steps(), points[0]);
    judged
}

/// At random points of a busy file system, which nobody prepared, lists, comparisons and restored files are what the
/// kernel shows after its replay. The journal is so small that it wraps all the time.
#[test]
fn files_are_what_the_kernel_shows_at_unquiesced_points() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let guest = Guest::start("files", 160 << 20, &["-b", "4096", "-J", "size=4"], |_| {});
    let (steps, points) = if large() { (20_000, 100) } else { (4_000, 24) };
    let judged = judge(&guest, 7, steps, points);
    assert!(judged.points >= 20 && judged.restored >= 20, "{judged:?}");
    // The comparisons that must fail do.
    let half = judged.points / 2;
    assert!(judged.stale >= half && judged.wrong_point >= half && judged.wrong_diff >= 5, "{judged:?}");
    assert!(judged.wrapped >= 2, "the journal did not wrap: {judged:?}");
    guest.site.finish(&[]).unwrap();
}

/// The same where data goes through the journal, and with small blocks.
#[test]
fn files_are_what_the_kernel_shows_when_data_is_journaled() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let options = ["-b", "1024", "-J", "size=8"];
    let guest = Guest::start_mounted("journaled", 160 << 20, &options, "rw,data=journal", |_| {});
    let judged = judge(&guest, 8, 2_500, 10);
    assert!(judged.points >= 8 && judged.stale >= judged.points / 2, "{judged:?}");
    guest.site.finish(&[]).unwrap();
}

/// Restores some files and compares them with a tree that is the kernel's.
fn restore_some(guest: &Guest, tree: &Tree, lsn: u64, random: &mut StdRng) -> usize {
    let files: Vec<_> = tree.iter().filter(|(_, node)| node.kind == "file" && node.size_bytes > 0).collect();
    if files.is_empty() {
        return 0;
    }
    for _ in 0..2 {
        let (path, node) = files[random.random_range(0..files.len())];
        let to = guest.site.path().join("restored");
        guest.get(path, lsn, &to).unwrap();
        let content = fs::read(&to).unwrap();
        assert_eq!(Some(blake3::hash(&content).to_hex().to_string()), node.hash, "{path} at lsn:{lsn}");
        let metadata = fs::metadata(&to).unwrap();
        assert_eq!(format!("{:04o}", metadata.mode() & 0o7777), node.mode);
        assert_eq!((u64::from(metadata.uid()), u64::from(metadata.gid())), node.owner);
        let time = jiff::Timestamp::new(metadata.mtime(), i32::try_from(metadata.mtime_nsec()).unwrap());
        assert_eq!(time.unwrap().strftime("%Y-%m-%dT%H:%M:%S%.9fZ").to_string(), node.mtime);
    }
    2
}

/// Each version of a file is found, from the very write on with which it appears.
#[test]
fn the_history_of_a_file_has_every_version_from_its_write_on() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let guest = Guest::start("versions", 64 << 20, &["-b", "4096"], |live| {
        fs::create_dir(live.join("folder")).unwrap();
    });
    let (folder, file) = (guest.live.path().join("folder"), guest.live.path().join("folder/report"));
    let sync = || fs::File::open(&folder).unwrap().sync_all().unwrap();
    let start = guest.point("start");
    let mut contents: Vec<Option<Vec<u8>>> = vec![None];
    for version in 0..8_u32 {
        let content = format!("version {version}\n").repeat(2000 + version as usize).into_bytes();
        match version % 4 {
            // As editors do, from scratch, in place, and gone and made anew.
            0 => {
                let new = folder.join(".report.new");
                fs::write(&new, &content).unwrap();
                fs::File::open(&new).unwrap().sync_all().unwrap();
                fs::rename(&new, &file).unwrap();
            }
            1 | 2 => fs::write(&file, &content).unwrap(),
            _ => {
                fs::remove_file(&file).unwrap();
                sync();
                contents.push(None);
                fs::write(&file, &content).unwrap();
            }
        }
        fs::File::open(&file).unwrap().sync_all().unwrap();
        sync();
        contents.push(Some(content));
        for other in 0..40 {
            fs::write(folder.join(format!("other-{other}")), [1; 3000]).unwrap();
        }
        sync();
    }
    let end = guest.point("end");
    let (from, to) = (format!("lsn:{start}"), format!("lsn:{end}"));
    let words = ["files", "history", VM, "folder/report", "--from", &from, "--to", &to];
    let printed = guest.site.cli_json(&words).unwrap();
    let versions = printed["versions"].as_array().unwrap();
    println!("{} looks, {} bytes read, {} versions", printed["looks"], printed["read_bytes"], versions.len());
    assert_eq!(printed["complete"], true);
    let hash = |content: &Vec<u8>| blake3::hash(content).to_hex().to_string();
    let found: Vec<Option<&str>> = versions.iter().map(|version| version["blake3"].as_str()).collect();
    // What was written with one name after another is there, in this order; between them lie states of a crash: a file
    // that was truncated, or data in place whose time was not committed.
    let mut at = 0;
    for (number, content) in contents.iter().enumerate() {
        let wanted = content.as_ref().map(hash);
        let place = found[at..].iter().position(|found| found.map(str::to_owned) == wanted);
        at += place.unwrap_or_else(|| panic!("version {number} is missing in {printed:#}"));
    }
    let empty = hash(&Vec::new());
    let known: Vec<String> = contents.iter().flatten().map(hash).chain([empty]).collect();
    let between = found.iter().flatten().filter(|found| !known.contains(&(**found).to_owned())).count();
    assert!(between <= contents.len(), "{between} versions that nobody wrote: {printed:#}");
    // At an exact boundary, and one write before it, the kernel agrees.
    let windows = guest.site.points(VM).unwrap().windows;
    let exact: Vec<&Value> = versions.iter().filter(|version| version["exact"] == true).collect();
    assert!(exact.len() + windows.len() >= versions.len(), "{printed:#}");
    for version in exact.iter().step_by(exact.len().div_ceil(6).max(1)) {
        let lsn = version["from_lsn"].as_u64().unwrap();
        let at = |lsn| guest.kernel(lsn).get("/folder/report").cloned();
        let (before, after) = (at(lsn - 1), at(lsn));
        assert_eq!(after.as_ref().and_then(|node| node.hash.as_deref()), version["blake3"].as_str());
        assert_ne!(before, after, "lsn:{lsn} is no boundary");
        assert_eq!(at(version["to_lsn"].as_u64().unwrap()), after);
    }
    // Fewer looks find less, and say so.
    let few = guest.site.cli_json(&[&words[..], &["--looks", "6"]].concat()).unwrap();
    assert_eq!(few["complete"], false);
    assert!(few["versions"].as_array().unwrap().len() < versions.len());
    guest.site.finish(&[]).unwrap();
}

/// A GPT with 8 MiB of LVM and 32 MiB of something else.
fn write_table(device: &Path) {
    const LVM: &[u8; 16] = b"\x79\xD3\xD6\xE6\x07\xF5\xC2\x44\xA2\x3C\x23\x8F\x2A\x3D\xF9\x28";
    let disk = fs::File::options().write(true).open(device).unwrap();
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[72..80].copy_from_slice(&2_u64.to_le_bytes());
    header[80..84].copy_from_slice(&128_u32.to_le_bytes());
    header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    disk.write_all_at(&header, 512).unwrap();
    for (place, kind, first, last) in [(0, LVM, 2048_u64, 18_431_u64), (1, &[7; 16], 18_432, 83_967)] {
        let mut entry = [0; 128];
        entry[..16].copy_from_slice(kind);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        disk.write_all_at(&entry, 1024 + place * 128).unwrap();
    }
    disk.sync_all().unwrap();
}

/// What a person sees and what is refused.
#[test]
fn names_partitions_and_refusals() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let mut site = Site::start("refusals").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 64 << 20).unwrap();
    write_table(disk.device());
    let options = ["--offset", "9437184", "--sizelimit", "33554432"];
    let part = LoopDisk::attach(disk.device(), &options).unwrap();
    run("mkfs.ext4", &["-q", "-F", &part.device().to_string_lossy()]);
    {
        let live = Mounted::mount(part.device(), &site.path().join("live"), "rw").unwrap();
        let at = |name: &str| live.path().join(name);
        fs::write(at("plain"), "content").unwrap();
        fs::write(at("bell\u{7}\nline"), "x").unwrap();
        symlink("/etc/shadow", at("link")).unwrap();
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("sub/below"), "y").unwrap();
        let sparse = fs::File::create(at("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.write_all_at(b"end", (1 << 30) - 3).unwrap();
    }
    drop(part);
    let splitter = site.add_splitter(VM, &[]).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
    let lsn = site.bookmark(VM, "point").unwrap();
    site.wait_point(VM, lsn, POINT_TIMEOUT).unwrap();
    let text = site.cli(&["files", "list", VM, "--at", "bookmark:point"]).unwrap();
    assert!(text.contains("/bell\\u{7}\\nline") && !text.contains('\u{7}'), "{text}");
    assert!(text.contains("/link -> /etc/shadow") && !text.contains("below"), "{text}");
    let sub = site.cli_json(&["files", "list", VM, "--at", "latest", "sub", "--partition", "2"]).unwrap();
    assert_eq!(
        (sub["entries"][0]["path"].as_str(), sub["partition"].as_u64()),
        (Some("/sub/below"), Some(2))
    );
    let to = site.path().join("out");
    let out = to.to_string_lossy().into_owned();
    let get = |path: &'static str| ["files", "get", VM, path, "--at", "bookmark:point", "--to"];
    site.cli(&[&get("/sparse")[..], &[&out]].concat()).unwrap();
    let metadata = fs::metadata(&to).unwrap();
    assert_eq!(metadata.len(), 1 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    let refused = |words: &[&str]| site.cli_refused(words).unwrap();
    assert!(refused(&[&get("plain")[..], &[&out]].concat()).contains("--overwrite"));
    site.cli(&[&get("plain")[..], &[&out, "--overwrite"]].concat()).unwrap();
    assert_eq!(fs::read_to_string(&to).unwrap(), "content");
    for (path, word) in
        [("link", "symbolic link to /etc/shadow"), ("sub", "folder"), ("none", "there is no /none")]
    {
        let to: PathBuf = site.path().join("nothing");
        assert!(refused(&[&get(path)[..], &[&to.to_string_lossy()]].concat()).contains(word), "{path}");
        assert!(!to.exists());
    }
    let between = ["--from", "bookmark:point", "--to", "latest"];
    for (path, word) in [("link/x", "/link is a symbolic link to /etc/shadow"), ("none", "there is no /none")]
    {
        assert!(refused(&[&["files", "diff", VM, path][..], &between].concat()).contains(word), "{path}");
    }
    let history = refused(&["files", "history", VM, "link/x"]);
    assert!(history.contains("/link is a symbolic link to /etc/shadow"), "{history}");
    // What is there can be compared, and a link as such.
    site.cli(&[&["files", "diff", VM, "link"][..], &between].concat()).unwrap();
    let got = site.cli_json(&[&get("plain")[..], &[&out, "--overwrite"]].concat()).unwrap();
    assert_eq!(got["to"].as_str(), Some(out.as_str()));
    let lvm = refused(&["files", "list", VM, "--at", "latest", "--partition", "1"]);
    assert!(lvm.contains("partition 1 of disk-1 holds LVM"), "{lvm}");
    let leftovers = fs::read_dir(site.path()).unwrap();
    let leftovers = leftovers
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tidemark-"));
    assert_eq!(leftovers.count(), 0, "no unnamed file stays");
    site.finish(&[]).unwrap();
}

/// A comparison costs what changed, not what is there.
#[test]
fn a_comparison_reads_little_of_a_large_file_system() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let (folders, changed) = if large() { (1000, 100) } else { (100, 20) };
    let path = |live: &Path, number: usize| {
        live.join(format!("folder-{}", number / 100)).join(format!("file-{number}"))
    };
    let bytes = if large() { 1500 << 20 } else { 256 << 20 };
    let guest = Guest::start("large-tree", bytes, &["-b", "4096", "-i", "8192"], |live| {
        for folder in 0..folders {
            fs::create_dir(live.join(format!("folder-{folder}"))).unwrap();
        }
        for number in 0..folders * 100 {
            fs::write(path(live, number), number.to_string()).unwrap();
        }
        run("sync", &["-f", &live.to_string_lossy()]);
    });
    let from = guest.point("before");
    for number in 0..changed {
        let file = path(guest.live.path(), number * folders * 100 / changed);
        fs::write(file, format!("another {number}")).unwrap();
    }
    let to = guest.point("after");
    let began = Instant::now();
    let printed = guest.diff(from, to);
    let seconds = began.elapsed().as_secs_f64();
    let changes = printed["changes"].as_array().unwrap();
    let all_files = changes.iter().all(|change| {
        change["kind"] == "changed" && change["path"].as_str().is_some_and(|path| path.contains("file-"))
    });
    assert!(all_files && changes.len() == changed, "{} changes: {changes:?}", changes.len());
    let read = printed["read_bytes"].as_u64().unwrap();
    let began = Instant::now();
    let listed = guest.list(to, &[]);
    println!(
        "{} files, {changed} changed: {seconds:.2} s, {read} bytes in {} reads, {} folders and {} tables searched; \
         a whole list takes {:.2} s",
        folders * 100,
        printed["reads"],
        printed["read_directories"],
        printed["searched_groups"],
        began.elapsed().as_secs_f64()
    );
    assert_eq!(listed["entries"].as_array().unwrap().len(), folders * 101 + 1);
    // Less than the inodes alone take at both points.
    let inodes = folders as u64 * 100 * 256 * 2;
    assert!(read < inodes + (12 << 20), "{read} bytes were read");
    // Data in place is on the disk before the time that tells of it; it is told in either case.
    let one = fs::File::options().write(true).open(path(guest.live.path(), 1)).unwrap();
    one.write_all_at(b"x", 0).unwrap();
    one.sync_data().unwrap();
    let printed = guest.diff(to, guest.mark("in place"));
    let change = &printed["changes"][0];
    println!("in place: {change}, {} tables searched", printed["searched_groups"]);
    assert_eq!((change["path"].as_str(), &change["what"][0]), (Some("/folder-0/file-1"), &"content".into()));
    assert_eq!(printed["changes"].as_array().unwrap().len(), 1);
    let _ = guest.disk.device();
    guest.site.finish(&[]).unwrap();
}
