//! The folder of the spool: appends at one end, gives up at the other, reads in between.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use nix::sys::statvfs::statvfs;
use thiserror::Error;
use tidemark_proto::ids::CaptureId;
use tidemark_splitter_core::engine::{SpoolFact, SpooledFrame};

use super::format::{self, FILE_HEADER_BYTES, FileHeader, Key};
use super::limits::{
    FREE_MAX_BYTES, FREE_MIN_BYTES, FREE_PART, RECORD_MAX_BYTES, RECORDS_MAX, SEGMENT_BYTES,
};
use super::segment::Segment;

/// The spool cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A write before failed.
    #[error("an earlier write failed")]
    Failed,
    /// The frame does not follow the last one.
    #[error("frame {seq} does not follow frame {last}")]
    Order {
        /// Its number.
        seq: u64,
        /// The last one's.
        last: u64,
    },
    /// What was written is not there any more.
    #[error("frame {0} is missing or damaged in the spool")]
    Missing(u64),
    /// It cannot be encrypted.
    #[error("a frame cannot be encrypted")]
    Seal,
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, source }
}

/// How full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes on the disk.
    pub used_bytes: u64,
    /// Bytes that may be added.
    pub room_bytes: u64,
}

/// The spool of one capture.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    capture_id: CaptureId,
    key: Key,
    limit_bytes: u64,
    segments: VecDeque<Segment>,
    next_number: u64,
    /// Where the frame after this number lies: number of the file and offset.
    cursor: Option<(u64, u64, u64)>,
    failed: bool,
}

impl Store {
    /// Opens the spool of a capture in a folder (mode 0700, made if need be), and says what is in it. Files of another
    /// capture are removed. The last result says what was found damaged, if anything.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(
        folder: &Path,
        capture_id: CaptureId,
        key: Key,
        limit_bytes: u64,
    ) -> Result<(Self, Vec<SpoolFact>, Option<String>), StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("make the folder of the spool"))?;
        let mut found: Vec<Segment> = Vec::new();
        let read = failed("read the folder of the spool");
        for path in spool_files(folder).map_err(read)? {
            match Segment::open(&path) {
                Ok(Some(segment)) if segment.header.capture_id == capture_id => found.push(segment),
                // Of another capture or version, or torn before its first record: it holds nothing that can be used.
                Ok(_) => std::fs::remove_file(&path).map_err(failed("remove an old file of the spool"))?,
                Err(source) => return Err(StoreError::Io { action: "open a file of the spool", source }),
            }
        }
        found.sort_by_key(|segment| segment.header.number);
        let mut store = Self {
            folder: folder.to_owned(),
            capture_id,
            key,
            limit_bytes,
            segments: VecDeque::new(),
            next_number: found.last().map_or(1, |segment| segment.header.number.saturating_add(1)),
            cursor: None,
            failed: false,
        };
        let (facts, damage) = store.scan(found);
        Ok((store, facts, damage))
    }

    /// Takes over the files up to the first record that is not whole.
    fn scan(&mut self, found: Vec<Segment>) -> (Vec<SpoolFact>, Option<String>) {
        let mut facts: Vec<SpoolFact> = Vec::new();
        let mut damage = None;
        for mut segment in found {
            let expected = facts.last().map_or(segment.header.first_seq, |fact| fact.seq().saturating_add(1));
            if damage.is_some() || segment.header.first_seq != expected {
                damage.get_or_insert(format!("frame {expected} is missing"));
                segment.remove();
                continue;
            }
            damage = self.scan_segment(&mut segment, &mut facts);
            if segment.records == 0 {
                segment.remove();
            } else {
                let _ = segment.cut();
                self.segments.push_back(segment);
            }
        }
        (facts, damage)
    }

    fn scan_segment(&self, segment: &mut Segment, facts: &mut Vec<SpoolFact>) -> Option<String> {
        loop {
            let at = segment.bytes;
            let next = segment.last_seq.saturating_add(1);
            let frame = match segment.read(&self.key, at) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    // The regular end of a file, or a torn record.
                    return (!segment.ends_at(at)).then(|| format!("frame {next} is not whole"));
                }
                Err(error) => return Some(format!("frame {next} cannot be read: {error}")),
            };
            let (frame, bytes) = frame;
            match frame.fact() {
                Some(fact) if fact.seq() == next && facts.len() < RECORDS_MAX => {
                    segment.count(next, bytes);
                    facts.push(fact);
                }
                _ => return Some(format!("frame {next} is not where it belongs")),
            }
        }
    }

    /// Changes what it may hold.
    pub fn set_limit(&mut self, limit_bytes: u64) {
        self.limit_bytes = limit_bytes;
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// How full it is: by its own limit, and by what is free on the disk.
    #[must_use]
    pub fn room(&self) -> Room {
        let used_bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        let records: usize = self.segments.iter().map(|segment| segment.records).sum();
        // One record may go beyond what was asked for.
        let mut room_bytes = self
            .limit_bytes
            .saturating_sub(used_bytes)
            .saturating_sub(RECORD_MAX_BYTES)
            .min(self.free_bytes());
        // As many as are on their way when this is told.
        if records.saturating_add(RECORDS_MAX / 8) > RECORDS_MAX || self.failed {
            room_bytes = 0;
        }
        Room { used_bytes, room_bytes }
    }

    /// Bytes free on the disk beyond what is left alone.
    fn free_bytes(&self) -> u64 {
        let Ok(space) = statvfs(&self.folder) else { return 0 };
        let unit = space.fragment_size();
        let reserve = (space.blocks().saturating_mul(unit) / FREE_PART).clamp(FREE_MIN_BYTES, FREE_MAX_BYTES);
        space.blocks_available().saturating_mul(unit).saturating_sub(reserve)
    }

    /// Appends a frame; it survives this process when this returns. After a failure nothing is appended until the spool is
    /// empty.
    ///
    /// # Errors
    /// When it cannot be written. What was written before stays.
    pub fn append(&mut self, frame: &SpooledFrame) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Failed);
        }
        let outcome = self.try_append(frame);
        self.failed = outcome.is_err();
        outcome
    }

    fn try_append(&mut self, frame: &SpooledFrame) -> Result<(), StoreError> {
        let seq = frame.frame.seq;
        if let Some(last) = self.segments.back().map(|segment| segment.last_seq)
            && last.saturating_add(1) != seq
        {
            return Err(StoreError::Order { seq, last });
        }
        if self.segments.back().is_none_or(|segment| segment.bytes >= SEGMENT_BYTES) {
            let header = FileHeader { capture_id: self.capture_id, number: self.next_number, first_seq: seq };
            self.next_number = self.next_number.saturating_add(1);
            let segment =
                Segment::create(&self.folder, header).map_err(failed("make a file of the spool"))?;
            self.segments.push_back(segment);
        }
        let Some(segment) = self.segments.back_mut() else { return Err(StoreError::Missing(seq)) };
        let mut salt = [0; 32];
        rand::fill(&mut salt).map_err(|_| StoreError::Seal)?;
        let record = format::seal(&self.key, &segment.header, frame, salt).map_err(|_| StoreError::Seal)?;
        segment.append(seq, &record).map_err(failed("write to the spool"))
    }

    /// Frames after a number, in order: at least one, and not many more than so many bytes.
    ///
    /// # Errors
    /// When the next one cannot be read, or is not as it was written.
    pub fn read(&mut self, after_seq: u64, max_bytes: u64) -> Result<Vec<SpooledFrame>, StoreError> {
        let mut frames = Vec::new();
        let (mut bytes, mut seq) = (0, after_seq);
        while frames.is_empty() || bytes < max_bytes {
            match self.read_one(seq) {
                Ok((frame, length)) => {
                    bytes += length;
                    seq = frame.frame.seq;
                    frames.push(frame);
                }
                Err(error) if frames.is_empty() => return Err(error),
                // The next call says so; until then what is good is sent.
                Err(_) => break,
            }
        }
        Ok(frames)
    }

    fn read_one(&mut self, after_seq: u64) -> Result<(SpooledFrame, u64), StoreError> {
        let next = after_seq.saturating_add(1);
        let holds = |segment: &&Segment| segment.header.first_seq <= next && next <= segment.last_seq;
        let segment = self.segments.iter().find(holds).ok_or(StoreError::Missing(next))?;
        let at = match self.cursor {
            Some((known, number, at)) if known == after_seq && number == segment.header.number => at,
            _ => find(segment, next)?,
        };
        let (frame, length) = segment
            .read(&self.key, at)
            .map_err(failed("read from the spool"))?
            .filter(|(frame, _)| frame.frame.seq == next)
            .ok_or(StoreError::Missing(next))?;
        self.cursor = Some((next, segment.header.number, at.saturating_add(length)));
        Ok((frame, length))
    }

    /// Gives up the files whose frames all have this number or a lower one.
    pub fn give_up(&mut self, seq: u64) {
        while let Some(segment) = self.segments.pop_front_if(|segment| segment.last_seq <= seq) {
            segment.remove();
        }
        if self.segments.is_empty() {
            self.failed = false;
        }
    }

    /// Gives up everything.
    pub fn clear(&mut self) {
        self.give_up(u64::MAX);
        self.cursor = None;
    }
}

/// Offset of a frame in its file.
fn find(segment: &Segment, seq: u64) -> Result<u64, StoreError> {
    let mut at = FILE_HEADER_BYTES as u64;
    loop {
        match segment.skip(at).map_err(failed("read from the spool"))? {
            Some((found, _)) if found == seq => return Ok(at),
            Some((found, bytes)) if found < seq => at = at.saturating_add(bytes),
            _ => return Err(StoreError::Missing(seq)),
        }
    }
}

fn spool_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "spool") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Removes the spool of whatever capture from a folder.
///
/// # Errors
/// As `unlink(2)`.
pub fn destroy(folder: &Path) -> io::Result<()> {
    match spool_files(folder) {
        Ok(files) => files.into_iter().try_for_each(std::fs::remove_file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
