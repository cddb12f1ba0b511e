//! Writes past the page cache.
//!
//! A restore writes each byte once and reads none back. Through the page cache that is a copy into pages which push out
//! what the machine was using, and one writer of a file at a time; past it several go to the disk at once, and the
//! processors are left to whoever decrypts. What is short or lies across a block still goes through the cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Alignment of place, length and memory that every file system and disk takes, bytes.
const ALIGNMENT: usize = 4096;
/// Shorter runs are gathered by the page cache into larger writes.
const RUN_MIN_BYTES: usize = 128 << 10;
/// One write at most. Longer runs are written in pieces, so that the buffers of all writers stay small.
const WRITE_MAX_BYTES: usize = 2 << 20;
/// Buffers kept for the next write; as many as there are writers in a restore.
const BUFFERS_KEPT: usize = 8;

/// A second way into an open file.
#[derive(Debug)]
pub(super) struct DirectFile {
    cached: File,
    /// `None` where the file system has no such writes.
    direct: Option<File>,
    /// Set once the file system has refused one.
    refused: AtomicBool,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl DirectFile {
    /// Takes `file`, which is open for writing. A file system that cannot write past its cache is no error.
    pub(super) fn new(file: File) -> Self {
        // The same inode, whatever has happened to its name meanwhile.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(again).ok();
        Self { cached: file, direct, refused: AtomicBool::new(false), buffers: Mutex::default() }
    }

    /// The file as it was given.
    pub(super) fn file(&self) -> &File {
        &self.cached
    }

    /// Writes all of `data` at byte `offset`.
    pub(super) fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let Some(direct) = self.direct.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed)) else {
            return self.cached.write_all_at(data, offset);
        };
        let into_block = usize::try_from(offset % ALIGNMENT as u64).unwrap_or(0);
        let head = (ALIGNMENT - into_block) % ALIGNMENT;
        let middle = data.len().saturating_sub(head) / ALIGNMENT * ALIGNMENT;
        if middle < RUN_MIN_BYTES {
            return self.cached.write_all_at(data, offset);
        }
        let (head, rest) = data.split_at(head);
        let (middle, tail) = rest.split_at(middle);
        self.cached.write_all_at(head, offset)?;
        let mut at = offset + head.len() as u64;
        for piece in middle.chunks(WRITE_MAX_BYTES) {
            if let Err(error) = self.write_aligned(direct, piece, at) {
                // The disk below may ask for more than is usual; the page cache can do everything.
                if error.raw_os_error() != Some(libc::EINVAL) {
                    return Err(error);
                }
                self.refused.store(true, Ordering::Relaxed);
                self.cached.write_all_at(piece, at)?;
            }
            at += piece.len() as u64;
        }
        self.cached.write_all_at(tail, at)
    }

    /// Writes whole blocks at the beginning of a block, from memory that is aligned, too.
    fn write_aligned(&self, direct: &File, piece: &[u8], offset: u64) -> io::Result<()> {
        let mut buffer = self.lock().pop().unwrap_or_default();
        buffer.resize(WRITE_MAX_BYTES + ALIGNMENT, 0);
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let written = match buffer.get_mut(start..start + piece.len()) {
            Some(aligned) => {
                aligned.copy_from_slice(piece);
                direct.write_all_at(aligned, offset)
            }
            // Memory that cannot be aligned is none of the usual kind.
            None => self.cached.write_all_at(piece, offset),
        };
        let mut buffers = self.lock();
        if buffers.len() < BUFFERS_KEPT {
            buffers.push(buffer);
        }
        written
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(at: u64, bytes: usize, refused: bool) {
        // Not in RAM, where nothing is direct.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        let target = DirectFile::new(file);
        target.refused.store(refused, Ordering::Relaxed);
        let data: Vec<u8> = (0..bytes).map(|byte| u8::try_from(byte * 7 % 251).unwrap()).collect();
        target.write_all_at(&data, at).unwrap();
        let mut expected = vec![0; 8 << 20];
        let at = usize::try_from(at).unwrap();
        expected[at..at + bytes].copy_from_slice(&data);
        assert!(std::fs::read(&path).unwrap() == expected, "{bytes} bytes at {at}");
    }

    #[test]
    fn every_alignment_writes_what_was_given() {
        for at in [0, 1, 511, 512, 4095, 4096, 1 << 20] {
            for bytes in [0, 1, 4096, RUN_MIN_BYTES - 1, RUN_MIN_BYTES, RUN_MIN_BYTES + 4097, 5 << 20] {
                written(at, bytes, false);
            }
        }
        written(1, 5 << 20, true);
    }
}
