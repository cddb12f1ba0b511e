//! Debian's cloud kernels, unpacked into a cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::leftovers::base;
use crate::process::output_of;

/// A kernel line to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Debian 12's own: the floor of what the splitter supports.
    V6_1,
    /// Debian 12's backport, the kernel of Debian 13.
    V6_12,
}

impl Kernel {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// What `uname -r` begins with.
    #[must_use]
    pub fn release_prefix(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1.",
            Self::V6_12 => "6.12.",
        }
    }

    /// The package that depends on the newest build of this line.
    fn meta_package(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-cloud-amd64",
            Self::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }

    /// The kernel's files, from the cache, or downloaded by `apt-get download`; nothing is installed.
    ///
    /// # Errors
    /// When the package cannot be found, downloaded or unpacked.
    pub fn files(self) -> Result<KernelFiles> {
        let cache = base().join("kernels");
        fs::create_dir_all(&cache)?;
        // Several test processes may come here at once.
        let lock = fs::File::create(cache.join("lock"))?;
        lock.lock().context("lock the kernel cache")?;
        let home = cache.join(format!("line{}", self.release_prefix()));
        if !home.join("complete").exists() {
            self.download(&home)?;
        }
        KernelFiles::find(&home)
    }

    fn download(self, home: &Path) -> Result<()> {
        if home.exists() {
            fs::remove_dir_all(home)?;
        }
        fs::create_dir_all(home)?;
        let depends = output_of(Command::new("apt-cache").args(["depends", self.meta_package()]))?;
        let package = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|package| package.starts_with("linux-image-6"))
            .with_context(|| format!("{} depends on no kernel; run apt-get update", self.meta_package()))?;
        output_of(Command::new("apt-get").current_dir(home).args(["download", "-qq", package]))?;
        let archive = fs::read_dir(home)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get downloaded no package")?;
        output_of(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(home))?;
        fs::remove_file(archive)?;
        let files = KernelFiles::find(home)?;
        output_of(Command::new("depmod").arg("-b").arg(home).arg(&files.release))?;
        fs::write(home.join("complete"), &files.release)?;
        Ok(())
    }
}

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct KernelFiles {
    /// Folder that holds `lib/modules`.
    pub root: PathBuf,
    /// The kernel image.
    pub image: PathBuf,
    /// As `uname -r`.
    pub release: String,
}

impl KernelFiles {
    fn find(root: &Path) -> Result<Self> {
        let image = fs::read_dir(root.join("boot"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
            .with_context(|| format!("no kernel in {}", root.display()))?;
        let name = image.file_name().context("a file has a name")?.to_string_lossy();
        let release = name.trim_start_matches("vmlinuz-").to_owned();
        Ok(Self { root: root.to_owned(), image, release })
    }

    /// The files of a module and of all it needs, in the order of loading; empty for a module that is built in.
    ///
    /// # Errors
    /// When there is no such module.
    pub fn module(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("-d").arg(&self.root).arg("-S").arg(&self.release).args(["--show-depends", name]);
        let listing = output_of(&mut modprobe)?;
        let files: Vec<PathBuf> = listing
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
            .map(|line| PathBuf::from(line.split_whitespace().next().unwrap_or_default()))
            .collect();
        for file in &files {
            ensure!(file.exists(), "{} of module {name} is missing", file.display());
        }
        Ok(files)
    }
}
