//! Ten disks of the same system, a little different each, in the chunk store: space and time beside restic and borg on
//! the same files in the same run. A program that is not installed is left out, and the table says so.
//!
//! The disks are ext4 with real files of this machine; then each gets files of its own and loses some.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tidemark_journal::image::{ImageBuilder, ImageReader};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::store::{ChunkStore, KeyDomain, LocalFolder, MasterKey, MasterSecret, StoreOptions};
use tidemark_proto::ids::{DiskId, Lsn};

use super::super::{Goal, Table, folder_bytes};
use super::Sizes;
use super::stream::{MIB, as_f64};
use crate::process::output_of;

const DISKS: u32 = 10;
const DOMAIN: KeyDomain = KeyDomain([1; 16]);
/// Where the files come from, in this order, until there are enough.
const SOURCES: [&str; 3] = ["/usr/bin", "/usr/share", "/usr/lib"];
/// Larger files would be most of a small disk.
const FILE_MAX_BYTES: u64 = 16 << 20;
/// Files that each disk has for itself: a twentieth of its content, half of it noise and half text.
const OWN_FILES: u64 = 40;

struct Measured {
    seconds: f64,
    stored_mib: f64,
}

pub(super) fn measure(sizes: &Sizes, folder: &Path, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir_in(folder)?;
    let disks = make_disks(folder.path(), sizes.dedupe_bytes)?;
    let ours = ours(&disks, &folder.path().join("ours"))?;
    let restic = Other {
        program: "restic",
        init: &["init"],
        backup: |disk, _| vec!["backup".to_owned(), disk.to_owned()],
    };
    let borg = Other {
        program: "borg",
        init: &["init", "--encryption=repokey-blake2"],
        backup: |disk, number| {
            ["create", "--compression", "zstd,3", &format!("::disk-{number}"), disk]
                .map(str::to_owned)
                .to_vec()
        },
    };
    for other in [restic, borg] {
        let theirs = other.run(&disks, &folder.path().join(other.program))?;
        let name = |what: &str| match &theirs {
            Some(_) => format!("ten similar disks, beside {}: {what}", other.program),
            None => format!("ten similar disks, {} is not installed: {what}", other.program),
        };
        let baseline =
            |value: fn(&Measured) -> f64| theirs.as_ref().map(|theirs| (other.program, value(theirs)));
        let stored = baseline(|measured| measured.stored_mib);
        let goal = |limit| if theirs.is_some() { Goal::RatioAtMost(limit) } else { Goal::None };
        table.add(&name("stored"), "MiB", ours.stored_mib, stored, goal(1.1));
        table.add(&name("time"), "s", ours.seconds, baseline(|measured| measured.seconds), goal(1.0));
    }
    Ok(())
}

fn make_disks(folder: &Path, bytes: u64) -> Result<Vec<PathBuf>> {
    let files = folder.join("files");
    let mut left = bytes;
    for (number, source) in SOURCES.iter().enumerate() {
        // Each in a folder of its own: one's file may have the name of another's folder.
        copy_files(Path::new(source), &files.join(number.to_string()), &mut left)?;
    }
    let first = folder.join("disk-0");
    File::create_new(&first)?.set_len((bytes + bytes / 2).next_multiple_of(MIB) + 16 * MIB)?;
    // A fixed identity and hash seed: what differs between the disks is what is made different below.
    let id = "3f8b0c1e-5a75-4c1b-9d52-0d7a6b1c9e01";
    let extended = format!("hash_seed={id},lazy_itable_init=0,root_owner=0:0");
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-U", id, "-E", &extended, "-d"]).arg(&files).arg(&first);
    output_of(&mut mkfs).context("make a file system with files")?;
    let mut disks = vec![first.clone()];
    for number in 1..DISKS {
        let disk = folder.join(format!("disk-{number}"));
        std::fs::copy(&first, &disk)?;
        disks.push(disk);
    }
    for (number, disk) in (0_u64..).zip(&disks) {
        change(folder, disk, number, bytes)?;
    }
    std::fs::remove_dir_all(&files)?;
    Ok(disks)
}

/// Copies files in the order of their names until `left` bytes were copied.
fn copy_files(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    std::fs::create_dir_all(to)?;
    let mut entries = std::fs::read_dir(from)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        if *left == 0 {
            return Ok(());
        }
        if kind.is_dir() {
            copy_files(&entry.path(), &to.join(entry.file_name()), left)?;
        } else if kind.is_file() {
            let bytes = entry.metadata()?.len();
            if bytes <= FILE_MAX_BYTES.min(*left) {
                std::fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
            *left = left.saturating_sub(bytes);
        }
    }
    Ok(())
}

/// Gives a disk files of its own and removes a folder that all had.
fn change(folder: &Path, disk: &Path, number: u64, bytes: u64) -> Result<()> {
    let own = folder.join("own");
    let mut commands = String::new();
    for file in 0..OWN_FILES {
        let seed = number * OWN_FILES + file + 1;
        let path = folder.join(format!("own-{file}"));
        std::fs::write(&path, content(seed, usize::try_from(bytes / 20 / OWN_FILES)?))?;
        writeln!(commands, "write {} own-{number}-{file}", path.display())?;
    }
    std::fs::write(&own, commands)?;
    output_of(Command::new("debugfs").args(["-w", "-f"]).arg(&own).arg(disk)).context("change a disk")?;
    Ok(())
}

/// Text of few words, or noise.
fn content(seed: u64, bytes: usize) -> Vec<u8> {
    const WORDS: [&str; 8] =
        ["kernel ", "error: ", "/usr/lib/", "0x00ff ", "\n", "return ", "10.0.0.1 ", "true;"];
    let mut out = Vec::with_capacity(bytes + 16);
    let mut hasher = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut noise = [0; 64];
    while out.len() < bytes {
        hasher.fill(&mut noise);
        if seed.is_multiple_of(2) {
            out.extend_from_slice(&noise);
        } else {
            let words = noise.iter().filter_map(|byte| WORDS.get(usize::from(byte % 8)));
            words.for_each(|word| out.extend_from_slice(word.as_bytes()));
        }
    }
    out.truncate(bytes);
    out
}

/// Stores all disks, and reads the last one back and compares it.
fn ours(disks: &[PathBuf], place: &Path) -> Result<Measured> {
    let storage = Arc::new(OsStorage::create(place)?);
    let folder = Arc::new(LocalFolder::new(storage.clone()));
    let secret = MasterSecret::Key(MasterKey::from_bytes(&[1; 32])?);
    let options = StoreOptions { seed: [1; 32], ..StoreOptions::default() };
    let store = Arc::new(ChunkStore::create(storage, folder, &secret, options)?);
    store.add_domain(DOMAIN)?;
    let started = Instant::now();
    let mut last = None;
    for (number, disk) in (1..).zip(disks) {
        let mut input = File::open(disk)?;
        let size = input.metadata()?.len();
        let session = store.session(DOMAIN)?;
        let mut builder = ImageBuilder::new(&session, None, DiskId(number), Lsn(1), size)?;
        let mut buffer = vec![0; usize::try_from(MIB)?];
        for at in (0..size / MIB).map(|place| place * MIB) {
            input.read_exact(&mut buffer)?;
            builder.write(at / 512, &buffer)?;
        }
        last = Some((builder.finish()?, disk));
        store.flush()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let (image, disk) = last.context("no disk was made")?;
    let wanted = std::fs::read(disk)?;
    let mut found = vec![0; wanted.len()];
    ImageReader::new(store, image).read_at(0, &mut found)?;
    ensure!(found == wanted, "the last disk does not read back");
    Ok(Measured { seconds, stored_mib: folder_bytes(place)? / as_f64(MIB) })
}

/// A program for backups, with encryption and compression as ours.
struct Other {
    program: &'static str,
    init: &'static [&'static str],
    backup: fn(&str, usize) -> Vec<String>,
}

impl Other {
    /// Runs it for each disk. `None`: it is not installed.
    fn run(&self, disks: &[PathBuf], place: &Path) -> Result<Option<Measured>> {
        let home = place.with_extension("home");
        std::fs::create_dir_all(&home)?;
        let command = |arguments: &[String]| {
            let mut command = Command::new(self.program);
            command.args(arguments).stdin(Stdio::null());
            command.env("HOME", &home).env("RESTIC_PASSWORD", "measure").env("BORG_PASSPHRASE", "measure");
            command.env("RESTIC_REPOSITORY", place).env("BORG_REPO", place);
            command
        };
        if Command::new(self.program)
            .arg("--help")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            return Ok(None);
        }
        let init: Vec<String> = self.init.iter().map(|argument| (*argument).to_owned()).collect();
        output_of(&mut command(&init))?;
        let started = Instant::now();
        for (number, disk) in disks.iter().enumerate() {
            output_of(&mut command(&(self.backup)(&disk.display().to_string(), number)))?;
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(Some(Measured { seconds, stored_mib: folder_bytes(place)? / as_f64(MIB) }))
    }
}
