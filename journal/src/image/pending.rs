//! What delta tables say about one chunk.

use crate::store::ChunkId;

/// Where a run's sectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Zero,
    /// In a delta chunk, from a sector of it on.
    Data {
        id: ChunkId,
        offset: u16,
    },
}

/// Sectors of a chunk, within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub start: u8,
    pub sectors: u8,
    pub source: Source,
}

/// What one table says about a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub chunk: u64,
    /// Older tables say nothing more about it.
    pub reset: bool,
    /// Ascending and apart.
    pub runs: Vec<Run>,
}

impl Entry {
    pub(crate) fn sources(&self) -> impl Iterator<Item = ChunkId> {
        self.runs.iter().filter_map(|run| match run.source {
            Source::Zero => None,
            Source::Data { id, .. } => Some(id),
        })
    }
}

/// The newest source of each sector of a chunk, filled from the newest table on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slots {
    slots: [Option<Source>; 128],
    /// No older table matters.
    pub reset: bool,
}

impl Slots {
    pub(crate) fn new() -> Self {
        Self { slots: [None; 128], reset: false }
    }

    /// Takes an older table's entry.
    pub(crate) fn add_older(&mut self, entry: &Entry) {
        if self.reset {
            return;
        }
        self.reset = entry.reset;
        for run in &entry.runs {
            let from = usize::from(run.start);
            for (skipped, slot) in
                (0_u16..).zip(self.slots.iter_mut().skip(from).take(usize::from(run.sectors)))
            {
                if slot.is_none() {
                    *slot = Some(match run.source {
                        Source::Zero => Source::Zero,
                        Source::Data { id, offset } => Source::Data { id, offset: offset + skipped },
                    });
                }
            }
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.slots.iter().all(Option::is_some)
    }

    pub(crate) fn sectors(&self) -> impl Iterator<Item = &Option<Source>> {
        self.slots.iter()
    }

    /// As runs.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (start, slot) in (0_u8..).zip(&self.slots) {
            let Some(source) = *slot else { continue };
            if let Some(last) = runs.last_mut()
                && last.start + last.sectors == start
                && follows(&last.source, last.sectors, &source)
            {
                last.sectors += 1;
                continue;
            }
            runs.push(Run { start, sectors: 1, source });
        }
        runs
    }
}

fn follows(first: &Source, sectors: u8, next: &Source) -> bool {
    match (first, next) {
        (Source::Zero, Source::Zero) => true,
        (Source::Data { id: a, offset: from }, Source::Data { id: b, offset }) => {
            a == b && from + u16::from(sectors) == *offset
        }
        _ => false,
    }
}
