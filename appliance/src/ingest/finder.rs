//! Finding what a session asks about in published templates.
//!
//! Whole chunks are found wherever they lie, by their hashes. Smaller pieces are in no index; they are compared with the
//! places of templates where they would lie if the disk went on as it did: at the distances at which whole chunks were found
//! lately, or at the same place.

use std::sync::{Arc, Weak};

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::{PIECE_BYTES, QUESTION_MAX_BYTES, SECTOR_BYTES};
use tidemark_proto::pieces::{HashKey, Piece, ZEROES};

use crate::templates::{Source, Template, Templates};

/// Distances of a disk that are remembered, and so places that a small piece is compared with, at most. Each costs reading and
/// hashing what is asked about once more.
const DISTANCES_MAX: usize = 4;

/// From a place of a disk to one of a template.
#[derive(Debug, Clone)]
struct Distance {
    disk: DiskId,
    /// It goes when it is not published any more, whoever is connected.
    template: Weak<Template>,
    bytes: i64,
}

impl Distance {
    fn is(&self, other: &Self) -> bool {
        self.template.ptr_eq(&other.template) && (self.disk, self.bytes) == (other.disk, other.bytes)
    }
}

/// One session's way to templates.
#[derive(Debug)]
pub(super) struct Finder {
    templates: Arc<Templates>,
    /// The best of each disk first.
    distances: Vec<Distance>,
}

impl Finder {
    pub(super) fn new(templates: Arc<Templates>) -> Self {
        Self { templates, distances: Vec::new() }
    }

    /// Where templates have what is asked about and not known. Everything found was read and verified.
    pub(super) fn find(
        &mut self,
        key: &HashKey,
        disk: DiskId,
        asked: &[Piece],
        known: &[bool],
    ) -> Vec<Option<Source>> {
        let mut found: Vec<Option<Source>> = vec![None; asked.len()];
        let mut last: Option<Distance> = None;
        for (place, (piece, known)) in found.iter_mut().zip(asked.iter().zip(known)) {
            if *known || piece.hash == ZEROES || piece.bytes() != PIECE_BYTES {
                continue;
            }
            *place = self.templates.find(&piece.hash);
            let distance = place.as_ref().and_then(|source| distance(disk, piece, source));
            if let Some(distance) = &distance {
                let again = last.as_ref().is_some_and(|last| last.is(distance));
                self.remember(distance, again);
            }
            last = distance;
        }
        self.find_small(key, disk, asked, known, &mut found);
        found
    }

    /// A distance that was met twice in a row is believed; once may be a chance, as of content that lies in many places.
    fn remember(&mut self, distance: &Distance, again: bool) {
        let at = self.distances.iter().position(|known| known.is(distance));
        if again {
            let kept = at.map_or_else(|| distance.clone(), |at| self.distances.remove(at));
            self.distances.insert(0, kept);
        } else if at.is_none() {
            self.distances.push(distance.clone());
        }
        let mut left = DISTANCES_MAX;
        self.distances.retain(|known| {
            let stays = known.disk != distance.disk || left > 0;
            left = left.saturating_sub(usize::from(known.disk == distance.disk));
            stays
        });
    }

    /// Where smaller pieces of a disk may lie.
    fn candidates(&self, disk: DiskId) -> Vec<Distance> {
        let mut found: Vec<_> = self.distances.iter().filter(|known| known.disk == disk).cloned().collect();
        for template in self.templates.known() {
            let same_place = Distance { disk, template: Arc::downgrade(&template), bytes: 0 };
            if found.len() < DISTANCES_MAX && !found.iter().any(|known| known.is(&same_place)) {
                found.push(same_place);
            }
        }
        found
    }

    fn find_small(
        &self,
        key: &HashKey,
        disk: DiskId,
        asked: &[Piece],
        known: &[bool],
        found: &mut [Option<Source>],
    ) {
        let open = |index: &usize| {
            let piece = asked.get(*index).filter(|piece| piece.hash != ZEROES && piece.bytes() < PIECE_BYTES);
            piece.is_some() && known.get(*index) == Some(&false)
        };
        let indexes: Vec<usize> = (0..asked.len()).filter(open).collect();
        if indexes.is_empty() {
            return;
        }
        let follows = |a: &usize, b: &usize| match (asked.get(*a), asked.get(*b)) {
            (Some(a), Some(b)) => a.end_sector() == b.start_sector,
            _ => false,
        };
        let candidates = self.candidates(disk);
        for run in indexes.chunk_by(follows) {
            for candidate in &candidates {
                if run.iter().all(|index| found.get(*index).is_some_and(Option::is_some)) {
                    break;
                }
                self.compare(key, candidate, asked, run, found);
            }
        }
    }

    /// Compares neighbours with what a template has at a distance.
    fn compare(
        &self,
        key: &HashKey,
        at: &Distance,
        asked: &[Piece],
        run: &[usize],
        found: &mut [Option<Source>],
    ) {
        let pieces = || run.iter().filter_map(|index| Some((*index, asked.get(*index)?)));
        let bytes: u64 = pieces().map(|(_, piece)| piece.bytes()).sum();
        let first = pieces().next().map_or(0, |(_, piece)| piece.start_sector).saturating_mul(SECTOR_BYTES);
        let Some(mut offset) = first.checked_add_signed(at.bytes).filter(|_| bytes <= QUESTION_MAX_BYTES)
        else {
            return;
        };
        let mut content = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let Some(template) = at.template.upgrade().filter(|template| template.read(offset, &mut content))
        else {
            return;
        };
        let mut rest = content.as_slice();
        for (index, piece) in pieces() {
            let length = usize::try_from(piece.bytes()).unwrap_or(usize::MAX).min(rest.len());
            let (here, after) = rest.split_at(length);
            rest = after;
            if let Some(place) = found.get_mut(index).filter(|place| place.is_none())
                && key.hash(here) == piece.hash
            {
                *place = Some(self.templates.source(&template, offset, &piece.hash));
            }
            offset = offset.saturating_add(piece.bytes());
        }
    }
}

fn distance(disk: DiskId, piece: &Piece, source: &Source) -> Option<Distance> {
    let (template, offset) = source.place();
    let place = i64::try_from(piece.start_sector.checked_mul(SECTOR_BYTES)?).ok()?;
    let bytes = i64::try_from(offset).ok()?.checked_sub(place)?;
    Some(Distance { disk, template: Weak::clone(template), bytes })
}
