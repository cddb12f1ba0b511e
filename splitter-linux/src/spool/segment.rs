//! One file of the spool.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tidemark_splitter_core::engine::SpooledFrame;

use super::format::{
    self, FILE_HEADER_BYTES, FileHeader, FormatError, Key, RECORD_HEADER_BYTES, RecordHeader,
};
use super::limits::WRITE_OUT_BYTES;

/// A file with the frames `header.first_seq..=last_seq`.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: FileHeader,
    path: PathBuf,
    file: File,
    pub(super) last_seq: u64,
    pub(super) records: usize,
    /// Bytes up to the end of the last record.
    pub(super) bytes: u64,
    /// Bytes that the kernel was asked to write out.
    written_out: u64,
}

pub(super) fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}.spool"))
}

fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Segment {
    pub(super) fn create(folder: &Path, header: FileHeader) -> io::Result<Self> {
        let path = path_of(folder, header.number);
        let file = open_options().create_new(true).open(&path)?;
        let segment = Self {
            header,
            path,
            file,
            last_seq: header.first_seq.saturating_sub(1),
            records: 0,
            bytes: FILE_HEADER_BYTES as u64,
            written_out: 0,
        };
        if let Err(error) = segment.file.write_all_at(&header.encode(), 0) {
            segment.remove();
            return Err(error);
        }
        Ok(segment)
    }

    /// Opens a file; `None` when it is not one of this version.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = open_options().open(path)?;
        let mut bytes = [0; FILE_HEADER_BYTES];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            outcome => outcome?,
        }
        let Ok(header) = FileHeader::decode(&bytes) else { return Ok(None) };
        Ok(Some(Self {
            header,
            path: path.to_owned(),
            file,
            last_seq: header.first_seq.saturating_sub(1),
            records: 0,
            bytes: FILE_HEADER_BYTES as u64,
            written_out: 0,
        }))
    }

    /// The record at an offset, and its bytes. `None` at the end of what is whole.
    pub(super) fn read(&self, key: &Key, at: u64) -> io::Result<Option<(SpooledFrame, u64)>> {
        let mut head = [0; RECORD_HEADER_BYTES];
        if !self.fill(&mut head, at)? {
            return Ok(None);
        }
        let Ok(header) = RecordHeader::decode(&head) else { return Ok(None) };
        let mut sealed = vec![0; header.sealed_bytes as usize];
        if !self.fill(&mut sealed, at.saturating_add(RECORD_HEADER_BYTES as u64))? {
            return Ok(None);
        }
        match format::open(key, &self.header, &header, sealed) {
            Ok(frame) => Ok(Some((frame, header.record_bytes()))),
            Err(FormatError::Sealed | FormatError::Record | FormatError::File) => Ok(None),
        }
    }

    /// Bytes of the record at an offset and the number of its frame, without opening it.
    pub(super) fn skip(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let mut head = [0; RECORD_HEADER_BYTES];
        if !self.fill(&mut head, at)? {
            return Ok(None);
        }
        Ok(RecordHeader::decode(&head).ok().map(|header| (header.seq, header.record_bytes())))
    }

    /// Whether the file ends here.
    pub(super) fn ends_at(&self, at: u64) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.len() <= at)
    }

    fn fill(&self, bytes: &mut [u8], at: u64) -> io::Result<bool> {
        match self.file.read_exact_at(bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    /// Takes a record that was found whole behind the last one.
    pub(super) fn count(&mut self, seq: u64, bytes: u64) {
        self.last_seq = seq;
        self.records += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Appends a record. A failed write leaves the file as it was, or with a torn end that counts for nothing.
    pub(super) fn append(&mut self, seq: u64, record: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(record, self.bytes) {
            let _ = self.cut();
            return Err(error);
        }
        self.count(seq, record.len() as u64);
        if self.bytes.saturating_sub(self.written_out) >= WRITE_OUT_BYTES {
            self.write_out();
        }
        Ok(())
    }

    /// Cuts off what lies behind the last whole record.
    pub(super) fn cut(&self) -> io::Result<()> {
        self.file.set_len(self.bytes)
    }

    /// Has the kernel begin to write out what is new, and drop what it has written out before.
    fn write_out(&mut self) {
        let (from, until) = (self.written_out, self.bytes);
        self.written_out = until;
        let number = |bytes: u64| libc::off64_t::try_from(bytes).unwrap_or(0);
        let fd = self.file.as_raw_fd();
        // Both are advice; that a file system does not take it is no harm.
        // SAFETY: neither call has memory effects; the descriptor is open.
        unsafe {
            libc::sync_file_range(fd, number(from), number(until - from), libc::SYNC_FILE_RANGE_WRITE);
            libc::posix_fadvise(fd, 0, number(from), libc::POSIX_FADV_DONTNEED);
        }
    }

    /// Removes the file. One that cannot be removed is of no use to anybody, and removed at the next start.
    pub(super) fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
