//! All versions in one segment, for who wants more than the last.

use std::cmp::Reverse;

use tidemark_proto::ids::DiskId;

use super::source::Source;
use crate::error::ReadError;
use crate::index::{IndexEntry, Key};
use crate::journal::Run;
use crate::leaf;

/// Where a walk over the entries of one disk in one segment goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PlaceInRun {
    Start,
    /// At a page of a leaf.
    Page(usize),
    /// Behind an entry of an index in memory, which may grow meanwhile.
    Behind(Key),
}

impl Source {
    /// Calls `found` with a page of entries of a disk, all versions, in index order, from `place` on. Returns where the
    /// next page begins; `None` at the end, and for nodes, which do not have all versions.
    pub(crate) fn page(
        &self,
        run: &Run,
        disk: DiskId,
        place: PlaceInRun,
        found: &mut dyn FnMut(&IndexEntry),
    ) -> Result<Option<PlaceInRun>, ReadError> {
        let first: Key = (disk.0, 0, Reverse(u64::MAX), Reverse(u32::MAX));
        let sealed = match run {
            Run::Open(segment) => {
                let index = segment.index();
                let (from, behind) = match place {
                    PlaceInRun::Behind(key) => (key, true),
                    _ => (first, false),
                };
                let mut last = None;
                let entries = index.narrow_from(from).skip_while(|entry| behind && entry.key() == from);
                for entry in entries.take_while(|entry| entry.disk == disk).take(leaf::ENTRIES_PER_PAGE) {
                    found(entry);
                    last = Some(PlaceInRun::Behind(entry.key()));
                }
                return Ok(last);
            }
            Run::Sealed(sealed) => sealed,
            Run::Node(_) => return Ok(None),
        };
        let directory = self.directory(sealed)?;
        let number = match place {
            PlaceInRun::Page(number) => number,
            _ => directory.pages.partition_point(|page| page.first <= first).saturating_sub(1),
        };
        let within = directory.pages.get(number).is_some_and(|page| page.first.0 <= disk.0);
        if !within {
            return Ok(None);
        }
        let entries = self.entries(sealed.ordinal, &directory, Some(number))?;
        entries.iter().filter(|entry| entry.disk == disk).for_each(found);
        Ok(Some(PlaceInRun::Page(number + 1)))
    }

    /// Calls `found` with the long ranges of zeroes of a segment, of all disks and versions, in no order.
    pub(crate) fn wide(&self, run: &Run, found: &mut dyn FnMut(&IndexEntry)) -> Result<(), ReadError> {
        match run {
            Run::Open(segment) => segment.index().wide().iter().for_each(found),
            Run::Sealed(sealed) => {
                let directory = self.directory(sealed)?;
                if directory.wide.bytes > 0 {
                    self.entries(sealed.ordinal, &directory, None)?.iter().for_each(found);
                }
            }
            Run::Node(_) => {}
        }
        Ok(())
    }
}
