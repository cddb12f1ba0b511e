//! The candidates of one segment, chunk by chunk.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};

use super::{Between, Candidate, sector_bits};
use crate::error::ReadError;
use crate::index::IndexEntry;
use crate::journal::Run;
use crate::view::{PlaceInRun, Source};

/// Walks over the versions of one disk in one segment. It keeps one index page's worth of chunks, not the page.
pub(crate) struct Cursor {
    source: Arc<Source>,
    run: Run,
    disk: DiskId,
    from: Lsn,
    to: Lsn,
    /// By chunk; all but the last are complete, that one only when nothing is left to read.
    queue: VecDeque<Candidate>,
    /// Where reading goes on; `None` at the end.
    place: Option<PlaceInRun>,
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("segment", &self.run.ordinal()).finish_non_exhaustive()
    }
}

impl Cursor {
    pub(crate) fn new(source: Arc<Source>, run: Run, between: &Between) -> Self {
        let Between { disk, from, to } = *between;
        Self { source, run, disk, from, to, queue: VecDeque::new(), place: Some(PlaceInRun::Start) }
    }

    /// The next chunk with candidates.
    pub(crate) fn peek(&mut self) -> Result<Option<u64>, ReadError> {
        while self.queue.len() < 2
            && let Some(place) = self.place
        {
            let (queue, between) =
                (&mut self.queue, Between { disk: self.disk, from: self.from, to: self.to });
            self.place = self.source.page(&self.run, self.disk, place, &mut |entry: &IndexEntry| {
                if between.holds(entry.lsn) {
                    push(queue, entry);
                }
            })?;
        }
        Ok(self.queue.front().map(|candidate| candidate.chunk))
    }

    /// The candidates in `chunk`, which is at most the next one; goes on behind it.
    pub(crate) fn take(&mut self, chunk: u64) -> u128 {
        match self.queue.front() {
            Some(candidate) if candidate.chunk == chunk => {
                self.queue.pop_front().map_or(0, |candidate| candidate.sectors)
            }
            _ => 0,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.queue.is_empty() && self.place.is_none()
    }
}

fn push(queue: &mut VecDeque<Candidate>, entry: &IndexEntry) {
    let chunk = entry.chunk();
    let sectors = sector_bits(chunk, entry.start, entry.end());
    match queue.back_mut() {
        Some(last) if last.chunk == chunk => last.sectors |= sectors,
        _ => queue.push_back(Candidate { chunk, sectors }),
    }
}
