//! The oracle: every point outside gaps against what was really on the disks.

use std::collections::HashMap;

use tidemark_proto::pieces::Piece;
use tidemark_proto::v1::{Frame, WriteEntry, frame::Body};

use super::kernel::{DISKS, SECTORS, Write};

pub(super) type Image = Vec<Vec<u64>>;

/// The truth when a captured write was appended to the ring.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    /// Order of appending.
    pub(super) index: u64,
    pub(super) disks: Image,
    /// The same as if nothing had been corrupted.
    pub(super) believed: Image,
    /// Writes on their way to the disk, this one included.
    pub(super) in_flight: Vec<Write>,
}

impl Moment {
    fn legal(&self, slot: usize, sector: usize, value: u64) -> bool {
        self.holds(&self.disks, slot, sector, value)
    }

    fn holds(&self, disks: &Image, slot: usize, sector: usize, value: u64) -> bool {
        disks[slot][sector] == value
            || self.in_flight.iter().any(|write| {
                write.slot == slot
                    && (write.start..write.start + write.sectors).contains(&sector)
                    && write.value() == value
            })
    }
}

struct Layer<'a> {
    entry: &'a WriteEntry,
    payload: &'a [u8],
}

impl Layer<'_> {
    fn apply(&self, image: &mut Image) {
        let slot = self.entry.disk_id as usize - 1;
        for offset in 0..self.entry.sectors as usize {
            let value = self.payload.get(offset * 512..offset * 512 + 8);
            let value = value.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
            image[slot][self.entry.start_sector as usize + offset] = value;
        }
    }
}

fn layers<'a>(entries: &'a [WriteEntry], payload: &'a [u8]) -> Vec<Layer<'a>> {
    let mut at = 0;
    let layer = |entry: &'a WriteEntry| {
        let length = if entry.kind == 1 { entry.sectors as usize * 512 } else { 0 };
        at += length;
        Layer { entry, payload: &payload[at - length..at] }
    };
    entries.iter().map(layer).collect()
}

/// What the journal holds, by LSN.
#[derive(Default)]
struct Journal<'a> {
    /// LSN → the write's id and content.
    writes: HashMap<u64, (u64, Layer<'a>)>,
    /// Line LSN → base blocks in order of arrival.
    base: HashMap<u64, Vec<Layer<'a>>>,
    /// Per disk, half-open.
    gaps: Vec<Vec<(u64, u64)>>,
    /// LSN → disk and its size in sectors from there on.
    resizes: HashMap<u64, (usize, usize)>,
    last_lsn: u64,
}

impl<'a> Journal<'a> {
    fn read(frames: &'a [(Frame, Vec<u8>)]) -> Self {
        let mut journal = Self { gaps: vec![Vec::new(); DISKS], ..Self::default() };
        let mut open: Vec<Option<u64>> = vec![None; DISKS];
        for (frame, _) in frames {
            journal.last_lsn = super::appliance::last_lsn(frame).unwrap_or(journal.last_lsn);
            match frame.body.as_ref().unwrap() {
                Body::Writes(writes) => {
                    for (index, layer) in layers(&writes.entries, &writes.payload).into_iter().enumerate() {
                        let id = writes.boottime_us + layer.entry.time_delta_us;
                        journal.writes.insert(writes.first_lsn + index as u64, (id, layer));
                    }
                }
                Body::Base(base) => {
                    let blocks = layers(&base.entries, &base.payload);
                    journal.base.entry(base.line_lsn).or_default().extend(blocks);
                }
                Body::Resize(resize) => {
                    let sectors = resize.size_bytes as usize / 512;
                    journal.resizes.insert(resize.lsn, (resize.disk_id as usize - 1, sectors));
                }
                Body::LineStart(line) => {
                    for id in &line.disk_ids {
                        let from = &mut open[*id as usize - 1];
                        *from = Some(from.unwrap_or(u64::MAX).min(line.gap_from_lsn));
                    }
                }
                Body::LineEnd(line) => {
                    for id in &line.disk_ids {
                        let slot = *id as usize - 1;
                        if let Some(from) = open[slot].take() {
                            journal.gaps[slot].push((from, line.lsn));
                        }
                    }
                }
                _ => {}
            }
        }
        for (slot, from) in open.into_iter().enumerate() {
            if let Some(from) = from {
                journal.gaps[slot].push((from, u64::MAX));
            }
        }
        journal
    }

    /// Whether something above the LSN lies over the sector.
    fn covered_later(&self, lsn: u64, slot: usize, sector: usize) -> bool {
        let covers = |layer: &Layer<'_>| {
            let (start, sectors) = (layer.entry.start_sector as usize, layer.entry.sectors as usize);
            layer.entry.disk_id as usize - 1 == slot && (start..start + sectors).contains(&sector)
        };
        self.base.iter().any(|(line, layers)| *line > lsn && layers.iter().any(covers))
            || self.writes.iter().any(|(other, (_, layer))| *other > lsn && covers(layer))
    }

    fn in_gap(&self, slot: usize, lsn: u64) -> bool {
        self.gaps[slot].iter().any(|(from, to)| (*from..*to).contains(&lsn))
    }
}

/// What the disks hold at an LSN: every layer up to it, base blocks directly above the line they name.
pub(super) fn below(frames: &[(Frame, Vec<u8>)], lsn: u64) -> Image {
    let journal = Journal::read(frames);
    let mut image: Image = vec![vec![0; SECTORS]; DISKS];
    for lsn in 1..=lsn.min(journal.last_lsn) {
        let write = journal.writes.get(&lsn).map(|(_, layer)| layer);
        for layer in write.into_iter().chain(journal.base.get(&lsn).into_iter().flatten()) {
            layer.apply(&mut image);
        }
    }
    image
}

/// The bytes of a sector.
pub(super) fn sector(value: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes
}

/// The content of a piece.
pub(super) fn bytes_of(disk: &[u64], piece: &Piece) -> Vec<u8> {
    let start = piece.start_sector as usize;
    let mut bytes: Vec<u8> =
        disk[start..].iter().take(piece.sectors as usize).flat_map(|value| sector(*value)).collect();
    bytes.resize(piece.sectors as usize * 512, 0);
    bytes
}

/// Checks every point; `quiet` is the final state of the disks. Returns the number of points checked.
pub(super) fn check(
    frames: &[(Frame, Vec<u8>)],
    moments: &HashMap<u64, Moment>,
    quiet: &Image,
    first_sectors: usize,
) -> Result<u64, String> {
    let journal = Journal::read(frames);
    let mut image: Image = vec![vec![0; SECTORS]; DISKS];
    let mut checked = 0;
    let mut last_index = 0;
    let mut sizes = [first_sectors; DISKS];
    for lsn in 1..=journal.last_lsn {
        let write = journal.writes.get(&lsn);
        if let Some((_, layer)) = write {
            layer.apply(&mut image);
        }
        for layer in journal.base.get(&lsn).into_iter().flatten() {
            layer.apply(&mut image);
        }
        if let Some((slot, sectors)) = journal.resizes.get(&lsn) {
            sizes[*slot] = *sectors;
        }
        let Some((id, _)) = write else { continue };
        let moment =
            moments.get(id).ok_or_else(|| format!("LSN {lsn} is write {id}, which was never captured"))?;
        if moment.index <= last_index {
            return Err(format!("LSN {lsn} is out of capture order"));
        }
        last_index = moment.index;
        for (slot, sectors) in image.iter().enumerate() {
            if journal.in_gap(slot, lsn) {
                continue;
            }
            checked += 1;
            // What was corrupted unseen is in points as it was before, until it is found or written over.
            let excused = |sector: usize| {
                moment.holds(&moment.believed, slot, sector, sectors[sector])
                    && journal.covered_later(lsn, slot, sector)
            };
            let wrong = |sector: &usize| !moment.legal(slot, *sector, sectors[*sector]) && !excused(*sector);
            if let Some(sector) = (0..sizes[slot]).find(wrong) {
                return Err(format!(
                    "LSN {lsn} (write {id}), disk {slot}, sector {sector}: the view holds {}, the disk {}",
                    sectors[sector], moment.disks[slot][sector]
                ));
            }
        }
    }
    for slot in 0..DISKS {
        if journal.in_gap(slot, journal.last_lsn) {
            return Err(format!("disk {slot}: the gap never ended"));
        }
        if sizes[slot] != SECTORS {
            return Err(format!("disk {slot}: the journal never heard that it grew"));
        }
        if let Some(sector) = (0..SECTORS).find(|sector| image[slot][*sector] != quiet[slot][*sector]) {
            return Err(format!(
                "disk {slot}, sector {sector}: the newest view holds {}, the quiet disk {}",
                image[slot][sector], quiet[slot][sector]
            ));
        }
    }
    Ok(checked)
}
