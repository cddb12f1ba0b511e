//! A guest that does with files what guests do, and what is hard to read back: everything at once, synced now and then.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Folders that files are spread over.
const FOLDERS: usize = 6;
/// Names per folder.
const NAMES: usize = 40;

/// The workload; it runs until it is stopped.
#[derive(Debug)]
pub struct FileWork {
    root: PathBuf,
    stop: AtomicBool,
    steps: AtomicUsize,
}

impl FileWork {
    /// In a mounted file system. Makes a folder that is long enough for an index, unless there is one.
    ///
    /// # Errors
    /// As the file system's.
    pub fn new(root: &Path) -> Result<Self> {
        for folder in 0..FOLDERS {
            fs::create_dir_all(root.join(format!("folder-{folder}")))?;
        }
        let long = root.join("long");
        if !long.exists() {
            fs::create_dir_all(&long)?;
            for number in 0..3000 {
                File::create(long.join(format!("a-name-that-is-not-short-{number:05}")))?;
            }
        }
        Ok(Self { root: root.to_owned(), stop: AtomicBool::new(false), steps: AtomicUsize::new(0) })
    }

    /// Steps done.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps.load(Ordering::SeqCst)
    }

    /// Ends [`FileWork::run`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Works until stopped.
    ///
    /// # Errors
    /// As the file system's.
    pub fn run(&self, seed: u64) -> Result<()> {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.stop.load(Ordering::SeqCst) {
            self.step(&mut random)?;
            let steps = self.steps.fetch_add(1, Ordering::SeqCst);
            if steps.is_multiple_of(31) {
                File::open(&self.root)?.sync_all()?;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn name(&self, random: &mut StdRng) -> PathBuf {
        let (folder, name) = (random.random_range(0..FOLDERS), random.random_range(0..NAMES));
        self.root.join(format!("folder-{folder}")).join(format!("name-{name}"))
    }

    fn step(&self, random: &mut StdRng) -> Result<()> {
        let (path, other) = (self.name(random), self.name(random));
        let exists = path.is_file();
        match random.random_range(0..17) {
            0..=2 => {
                remove(&path)?;
                fs::write(&path, content(random, 60_000))?;
            }
            // In place: data that reaches the disk before the time that tells of it.
            3..=5 if exists => {
                let file = OpenOptions::new().write(true).open(&path)?;
                let length = file.metadata()?.len().max(1);
                file.write_all_at(&content(random, 5000), random.random_range(0..length))?;
                if random.random_bool(0.3) {
                    file.sync_data()?;
                }
            }
            6 if exists => OpenOptions::new().append(true).open(&path)?.write_all(&content(random, 9000))?,
            7 if exists => {
                let file = OpenOptions::new().write(true).open(&path)?;
                file.set_len(random.random_range(0..80_000))?;
            }
            8 | 9 if exists => {
                remove(&other)?;
                fs::rename(&path, &other)?;
            }
            10 if exists && path != other => {
                remove(&other)?;
                fs::hard_link(&path, &other)?;
            }
            11 => {
                remove(&path)?;
                let target = if random.random_bool(0.5) { "name-1".to_owned() } else { "y/".repeat(60) };
                symlink(target, &path)?;
            }
            12 => remove(&path)?,
            13 => {
                remove(&path)?;
                let file = File::create(&path)?;
                for _ in 0..12 {
                    file.write_all_at(&content(random, 3000), random.random_range(0..4_000_000))?;
                }
            }
            14 => self.folders(random)?,
            15 => {
                let number = random.random_range(0..3300);
                let long = self.root.join("long").join(format!("a-name-that-is-not-short-{number:05}"));
                if random.random_bool(0.5) { remove(&long)? } else { fs::write(long, content(random, 300))? }
            }
            _ if exists => {
                let mode = 0o600 + random.random_range(0..0o100);
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Makes, moves and removes whole folders.
    fn folders(&self, random: &mut StdRng) -> Result<()> {
        let tree = self.root.join(format!("tree-{}", random.random_range(0..4)));
        let other = self.root.join(format!("folder-{}", random.random_range(0..FOLDERS))).join("moved");
        match random.random_range(0..3) {
            0 if !tree.exists() => {
                fs::create_dir_all(tree.join("below/further"))?;
                for number in 0..5 {
                    fs::write(tree.join(format!("below/file-{number}")), content(random, 2000))?;
                }
            }
            1 if tree.exists() => {
                let _ = fs::remove_dir_all(&other);
                fs::rename(&tree, &other)?;
            }
            _ => {
                let _ = fs::remove_dir_all(&tree);
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn content(random: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(1..most)];
    random.fill(bytes.as_mut_slice());
    bytes
}
