//! A restore into a sparse raw file. It continues where an interrupted run of the same restore stopped.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};
use tidemark_proto::pieces::is_zero;

use super::Target;
use super::direct::DirectFile;
use super::marker::{Identity, Marker};
use super::writeback;

/// Data is looked through for zeroes in pieces of this many bytes, the usual block of a file system: finer holes would
/// not save anything.
const HOLE_BYTES: usize = 4096;

#[derive(Debug)]
pub(crate) struct FileTarget {
    path: PathBuf,
    file: DirectFile,
    marker: Marker,
    done_bytes: AtomicU64,
}

impl FileTarget {
    /// Creates or continues `path`. An existing file is refused unless it is an incomplete restore, empty, or
    /// `overwrite` is set.
    pub(crate) fn open(path: &Path, identity: Identity, overwrite: bool) -> Result<Self> {
        let shown = path.display();
        let marker = Marker::beside(path, identity);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // A disk holds secrets.
            .mode(0o600)
            .open(path)
            .with_context(|| format!("create {shown}"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another restore writes {shown} now: wait for it, or name another file")
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {shown}")),
        }
        let present_bytes = file.metadata().with_context(|| format!("look at {shown}"))?.len();
        if present_bytes > 0 && !marker.exists() && !overwrite {
            bail!("{shown} exists: name another file, delete it, or replace it with --overwrite");
        }
        let size_bytes = marker.identity().size_bytes;
        let done_bytes = marker.done_bytes().filter(|_| present_bytes == size_bytes).unwrap_or(0);
        marker.write(done_bytes).with_context(|| format!("write {}", marker.path().display()))?;
        // What lies beyond was not checkpointed and may be anything; holes read as zeroes.
        file.set_len(done_bytes)
            .and_then(|()| file.set_len(size_bytes))
            .with_context(|| format!("make {shown} {size_bytes} bytes long"))?;
        let file = DirectFile::new(file);
        Ok(Self { path: path.to_owned(), file, marker, done_bytes: done_bytes.into() })
    }
}

impl Target for FileTarget {
    fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let zeroes = run_length(rest, true);
            let (_, after) = rest.split_at(zeroes);
            at += zeroes as u64;
            let (run, after) = after.split_at(run_length(after, false));
            self.file.write_all_at(run, at)?;
            at += run.len() as u64;
            rest = after;
        }
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64) -> io::Result<()> {
        // The file has no content beyond its checkpoint: it is a hole already.
        Ok(())
    }

    fn start_writeback(&self, offset: u64, length: u64) -> io::Result<()> {
        writeback::start(self.file.file(), offset, length)
    }

    fn checkpoint(&self, done_bytes: u64) -> Result<()> {
        self.file.file().sync_data().with_context(|| format!("make {} durable", self.path.display()))?;
        self.marker.write(done_bytes).with_context(|| format!("write {}", self.marker.path().display()))?;
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let shown = self.path.display();
        self.file.file().sync_all().with_context(|| format!("make {shown} durable"))?;
        let length = self.file.file().metadata().with_context(|| format!("look at {shown}"))?.len();
        let expected = self.marker.identity().size_bytes;
        if length != expected {
            bail!(
                "{shown} has {length} bytes instead of {expected}: somebody else changed it, restore again"
            );
        }
        self.marker.remove().with_context(|| format!("remove {}", self.marker.path().display()))
    }
}

/// Length of the leading run of pieces that are all zero, or that are not.
fn run_length(data: &[u8], zero: bool) -> usize {
    data.chunks(HOLE_BYTES).take_while(|piece| is_zero(piece) == zero).map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn identity(lsn: u64) -> Identity {
        Identity { vm: "web-1".to_owned(), disk: "disk-1".to_owned(), lsn, size_bytes: 1 << 20 }
    }

    #[test]
    fn a_finished_file_is_sparse_and_unmarked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk-1.raw");
        let target = FileTarget::open(&path, identity(7), false).unwrap();
        let mut data = vec![0; 256 << 10];
        data[100_000..100_100].fill(7);
        target.write_at(512 << 10, &data).unwrap();
        assert!(target.marker.exists());
        target.finish().unwrap();
        assert!(!target.marker.exists());
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 <= 64 << 10, "{} blocks", metadata.blocks());
        let mut expected = vec![0; 1 << 20];
        expected[512 << 10..768 << 10].copy_from_slice(&data);
        assert!(std::fs::read(&path).unwrap() == expected);
        assert!(
            FileTarget::open(&path, identity(7), true).is_err(),
            "the first restore still holds its lock"
        );
        drop(target);
        assert!(FileTarget::open(&path, identity(7), false).unwrap_err().to_string().contains("--overwrite"));
        FileTarget::open(&path, identity(7), true).unwrap();
    }

    #[test]
    fn only_the_same_restore_continues_and_only_what_was_durable_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk-1.raw");
        let target = FileTarget::open(&path, identity(7), false).unwrap();
        target.write_at(0, &[1; 8192]).unwrap();
        target.checkpoint(4096).unwrap();
        drop(target);
        let target = FileTarget::open(&path, identity(7), false).unwrap();
        assert_eq!(target.done_bytes(), 4096);
        let content = std::fs::read(&path).unwrap();
        assert!(content[..4096] == [1; 4096] && is_zero(&content[4096..]));
        drop(target);
        let target = FileTarget::open(&path, identity(8), false).unwrap();
        assert_eq!(target.done_bytes(), 0, "another point starts anew");
        assert!(is_zero(&std::fs::read(&path).unwrap()));
    }

    #[test]
    fn a_damaged_marker_starts_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk-1.raw");
        std::fs::write(&path, [1; 100]).unwrap();
        std::fs::write(folder.path().join("disk-1.raw.tidemark-incomplete"), "{").unwrap();
        let target = FileTarget::open(&path, identity(7), false).unwrap();
        assert_eq!(target.done_bytes(), 0);
        target.finish().unwrap();
        assert!(is_zero(&std::fs::read(&path).unwrap()));
    }
}
