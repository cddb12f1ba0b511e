//! The appliance: verifies every frame as the protocol demands, makes frames durable, answers.

use tidemark_proto::chain;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::v1::{Disk, Frame, LineStart, StreamPosition, Welcome, frame::Body};

use super::kernel::DISKS;

#[derive(Debug, Default)]
pub(super) struct Appliance {
    /// Frames with the capture they came from; the first `durable` survive a crash.
    pub(super) frames: Vec<(Frame, Vec<u8>)>,
    durable: usize,
    lsn: u64,
    check_chain: bool,
    /// Size of each disk in the first hello.
    first_bytes: u64,
}

impl Appliance {
    pub(super) fn new(check_chain: bool, first_bytes: u64) -> Self {
        Self { check_chain, first_bytes, ..Self::default() }
    }

    /// Bytes of a disk as the journal knows it.
    pub(super) fn size_of(&self, disk_id: u32) -> u64 {
        let resized = |frame: &Frame| match &frame.body {
            Some(Body::Resize(resize)) if resize.disk_id == disk_id => Some(resize.size_bytes),
            _ => None,
        };
        self.frames.iter().rev().find_map(|(frame, _)| resized(frame)).unwrap_or(self.first_bytes)
    }

    fn position(&self, count: usize) -> StreamPosition {
        let Some((frame, capture)) = count.checked_sub(1).and_then(|last| self.frames.get(last)) else {
            return StreamPosition { chain: vec![0; 32].into(), ..StreamPosition::default() };
        };
        StreamPosition {
            seq: frame.seq,
            lsn: self.frames.iter().take(count).filter_map(|(frame, _)| last_lsn(frame)).max().unwrap_or(0),
            capture_id: capture.clone().into(),
            ring_position: frame.ring_position,
            chain: frame.chain.clone(),
        }
    }

    pub(super) fn commit(&mut self) -> StreamPosition {
        self.durable = self.frames.len();
        self.position(self.durable)
    }

    pub(super) fn crash(&mut self) {
        self.frames.truncate(self.durable);
        self.lsn = self.position(self.durable).lsn;
    }

    pub(super) fn clean_lsn(&self) -> u64 {
        let clean = |frame: &Frame| match &frame.body {
            Some(Body::Heartbeat(beat)) if beat.clean => Some(beat.lsn),
            _ => None,
        };
        self.frames.iter().rev().find_map(|(frame, _)| clean(frame)).unwrap_or(0)
    }

    pub(super) fn welcome(&mut self, window_bytes: u64) -> Welcome {
        self.crash();
        let mut open = [false; DISKS];
        for (frame, _) in &self.frames {
            let (ids, value) = match &frame.body {
                Some(Body::LineStart(line)) => (&line.disk_ids, true),
                Some(Body::LineEnd(line)) => (&line.disk_ids, false),
                _ => continue,
            };
            for id in ids {
                open[*id as usize - 1] = value;
            }
        }
        Welcome {
            durable: Some(self.position(self.durable)),
            generation: self.frames.last().map_or(0, |(frame, _)| frame.generation),
            window_bytes,
            heartbeat_ms: 5,
            open_gap_disks: (1..=DISKS as u32).filter(|id| open[*id as usize - 1]).collect(),
            clean_lsn: self.clean_lsn(),
            disks: (1..=DISKS as u32)
                .map(|disk_id| Disk { disk_id, size_bytes: self.size_of(disk_id), ..Disk::default() })
                .collect(),
            ..Welcome::default()
        }
    }

    pub(super) fn receive(&mut self, frame: Frame, capture: &[u8]) -> Result<(), String> {
        let last = self.frames.last();
        let seq = last.map_or(0, |(frame, _)| frame.seq) + 1;
        if frame.seq != seq {
            return Err(format!("frame {} instead of {seq}", frame.seq));
        }
        if let Some((before, from)) = last {
            if from == capture && frame.ring_position < before.ring_position {
                return Err("the ring position went back".into());
            }
            if from != capture && frame.generation <= before.generation {
                return Err("a new capture without a new generation".into());
            }
            let line = matches!(frame.body, Some(Body::LineStart(_)));
            if frame.generation > before.generation && !line {
                return Err("a new generation that does not begin with a line".into());
            }
            if frame.generation < before.generation {
                return Err("the generation went back".into());
            }
        }
        let before = last.map_or_else(ChainHash::default, |(frame, _)| {
            ChainHash(frame.chain.as_ref().try_into().unwrap_or_default())
        });
        if self.check_chain && chain::next(&before, &frame).0 != frame.chain.as_ref() {
            return Err("the chain does not fit".into());
        }
        self.check_body(&frame)?;
        if let Some(lsn) = last_lsn(&frame) {
            self.lsn = lsn;
        }
        self.frames.push((frame, capture.to_vec()));
        Ok(())
    }

    fn check_body(&self, frame: &Frame) -> Result<(), String> {
        let (entries, payload, crcs) = match &frame.body {
            Some(Body::Writes(writes)) => {
                if writes.first_lsn != self.lsn + 1 {
                    return Err(format!("writes from LSN {} after {}", writes.first_lsn, self.lsn));
                }
                (&writes.entries, &writes.payload, &writes.crc32c)
            }
            Some(Body::Base(base)) => (&base.entries, &base.payload, &base.crc32c),
            Some(Body::LineStart(line)) => return self.check_line(line),
            Some(Body::Heartbeat(beat)) if beat.lsn != self.lsn => {
                return Err("a heartbeat's LSN is not the last".into());
            }
            Some(Body::Heartbeat(_)) => return Ok(()),
            _ if last_lsn(frame) != Some(self.lsn + 1) => return Err("LSNs are not dense".into()),
            _ => return Ok(()),
        };
        let bytes: usize =
            entries.iter().filter(|entry| entry.kind == 1).map(|entry| entry.sectors as usize * 512).sum();
        let sums: Vec<u32> = payload.chunks(4096).map(crc32c::crc32c).collect();
        if bytes != payload.len() || sums != *crcs || entries.is_empty() {
            return Err("payload, table and checksums do not fit".into());
        }
        for entry in entries {
            let end = (entry.start_sector + u64::from(entry.sectors)) * 512;
            if entry.disk_id == 0 || end > self.size_of(entry.disk_id) {
                return Err(format!("{entry:?} is beyond the disk"));
            }
        }
        Ok(())
    }

    fn check_line(&self, line: &LineStart) -> Result<(), String> {
        if line.lsn != self.lsn + 1 || line.gap_from_lsn > line.lsn || line.disk_ids.is_empty() {
            return Err(format!("line start {line:?} after LSN {}", self.lsn));
        }
        if line.gap_from_lsn <= self.clean_lsn() {
            return Err(format!(
                "points offered already are withdrawn: {line:?}, clean {}",
                self.clean_lsn()
            ));
        }
        Ok(())
    }
}

pub(super) fn last_lsn(frame: &Frame) -> Option<u64> {
    match frame.body.as_ref()? {
        Body::Writes(writes) => Some(writes.first_lsn + writes.entries.len() as u64 - 1),
        Body::LineStart(line) => Some(line.lsn),
        Body::LineEnd(line) => Some(line.lsn),
        Body::Marker(marker) => Some(marker.lsn),
        Body::Resize(resize) => Some(resize.lsn),
        Body::Base(_) | Body::Heartbeat(_) => None,
    }
}
