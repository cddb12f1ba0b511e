//! The appliance: verifies every frame as the protocol demands, makes frames durable, answers.

use std::collections::HashMap;

use tidemark_proto::chain;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::limits::QUESTIONS_MAX;
use tidemark_proto::pieces::{self, HashKey, Piece, ZEROES};
use tidemark_proto::v1::{
    Disk, Frame, HashAnswer, HashQuestion, LineStart, StreamPosition, VerifyAnswer, Welcome, frame::Body,
};
use tidemark_proto::version::PROTOCOL_MAX;

use super::checker::{Image, below, bytes_of, sector};
use super::kernel::DISKS;
use super::world::Broken;

#[derive(Debug, Default)]
pub(super) struct Appliance {
    /// Frames with the capture they came from; the first `durable` survive a crash.
    pub(super) frames: Vec<(Frame, Vec<u8>)>,
    durable: usize,
    lsn: u64,
    check_chain: bool,
    /// Size of each disk in the first hello.
    first_bytes: u64,
    /// How questions are answered; otherwise it is whole.
    broken: Option<Broken>,
    sessions: u8,
    /// Pieces asked about in all sessions, and how many of them were known.
    pub(super) asked: u64,
    pub(super) known: u64,
    /// Contents of the published template, and whether it is published now.
    template: Vec<Vec<u8>>,
    pub(super) published: bool,
    pub(super) heartbeat_ms: u32,
    /// What this session was offered: by disk, first sector and sectors.
    offers: HashMap<(u32, u64, u32), Vec<u8>>,
    pub(super) offered: u64,
    /// Blocks that frames named instead of bringing them.
    pub(super) named: u64,
}

impl Appliance {
    /// The template has what the disks begin with.
    pub(super) fn new(broken: Broken, first_bytes: u64, disks: &Image) -> Self {
        let check_chain =
            !matches!(broken, Broken::BaseAtReadLsn | Broken::SwappedWrites | Broken::WrongTemplate);
        let cut = |disk: &Vec<u64>| {
            let bytes: Vec<u8> = disk.iter().flat_map(|value| sector(*value)).collect();
            [4096, 8192].map(|size| bytes.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>())
        };
        let template = disks.iter().flat_map(cut).flatten().collect();
        let (broken, published, heartbeat_ms) = (Some(broken), true, 5);
        Self { check_chain, first_bytes, broken, template, published, heartbeat_ms, ..Self::default() }
    }

    fn hash_key(&self) -> HashKey {
        HashKey([self.sessions; 32])
    }

    /// Answers from what came in before the question, as the real one does.
    pub(super) fn answer(&mut self, question: &HashQuestion, waiting: usize) -> Result<HashAnswer, String> {
        let asked = pieces::read(question).map_err(|error| error.to_string())?;
        if waiting > QUESTIONS_MAX {
            return Err(format!("{waiting} questions at once"));
        }
        let open = self.open_lines(question.disk_id).contains(&question.line_lsn);
        if !open {
            return Err(format!("a question below line {}, which is not open", question.line_lsn));
        }
        let disk = question.disk_id as usize - 1;
        let (key, images) = (self.hash_key(), self.compared_with(question.line_lsn));
        let same = |image: &Image, piece: &Piece| {
            let content = bytes_of(&image[disk], piece);
            piece.hash == if pieces::is_zero(&content) { ZEROES } else { key.hash(&content) }
        };
        let known: Vec<bool> =
            asked.iter().map(|piece| images.iter().any(|image| same(image, piece))).collect();
        self.asked += known.len() as u64;
        self.known += known.iter().filter(|known| **known).count() as u64;
        let contents: HashMap<_, _> = self.template.iter().map(|piece| (key.hash(piece), piece)).collect();
        let mut offered = vec![false; asked.len()];
        for (index, piece) in asked.iter().enumerate() {
            let content = contents.get(&piece.hash).filter(|_| self.published && !known[index]);
            if let Some(content) = content.filter(|content| content.len() as u64 == piece.bytes()) {
                let place = (question.disk_id, piece.start_sector, piece.sectors);
                self.offers.insert(place, content.to_vec());
                offered[index] = true;
            }
        }
        self.offered += offered.iter().filter(|offered| **offered).count() as u64;
        Ok(pieces::offer(pieces::answer(question.id, &known), &offered))
    }

    /// Puts the content of a template into a frame that names it. False: it is not published any more.
    pub(super) fn redeem(&mut self, frame: &mut Frame) -> Result<bool, String> {
        let Some(Body::Base(base)) = &mut frame.body else { return Ok(true) };
        if base.hashes.is_empty() {
            return Ok(true);
        }
        if !base.payload.is_empty() || base.hashes.len() != 32 * base.entries.len() {
            return Err("hashes and entries do not fit".into());
        }
        let mut payload = Vec::new();
        for (entry, hash) in base.entries.iter().zip(base.hashes.chunks(32)) {
            let place = (entry.disk_id, entry.start_sector, entry.sectors);
            let content = self.offers.remove(&place).ok_or("content was named that was not offered")?;
            if HashKey([self.sessions; 32]).hash(&content) != hash {
                return Err("content was named by another hash than it was offered by".into());
            }
            payload.extend_from_slice(&content);
        }
        if !self.published {
            return Ok(false);
        }
        self.named += base.entries.len() as u64;
        if self.broken == Some(Broken::WrongTemplate) {
            payload[0] ^= 1;
            base.crc32c = payload.chunks(4096).map(crc32c::crc32c).collect();
        }
        base.payload = payload.into();
        base.hashes.clear();
        Ok(true)
    }

    /// Compares for a verify with the journal as of the question's LSN.
    pub(super) fn compare(&self, question: &HashQuestion) -> Result<VerifyAnswer, String> {
        let asked = pieces::read(question).map_err(|error| error.to_string())?;
        if question.line_lsn > self.lsn {
            return Err(format!("a verify at LSN {}, which has not come", question.line_lsn));
        }
        let size_bytes = self.size_of(question.disk_id);
        if asked.iter().any(|piece| piece.end_sector() * 512 > size_bytes) {
            return Ok(VerifyAnswer {
                id: question.id,
                problem: "beyond the disk".into(),
                ..VerifyAnswer::default()
            });
        }
        let image = below(&self.frames, question.line_lsn);
        let (disk, key) = (&image[question.disk_id as usize - 1], self.hash_key());
        let same = |piece: &Piece| {
            let content = bytes_of(disk, piece);
            self.broken == Some(Broken::VerifyBlind)
                || piece.hash == if pieces::is_zero(&content) { ZEROES } else { key.hash(&content) }
        };
        let same: Vec<bool> = asked.iter().map(same).collect();
        let same = pieces::answer(question.id, &same).known;
        Ok(VerifyAnswer { id: question.id, same, problem: String::new() })
    }

    /// What a piece is compared with: one image, unless it is broken.
    fn compared_with(&self, line: u64) -> Vec<Image> {
        match self.broken {
            Some(Broken::KnownFromHistory) => {
                [1, 2, 3, 4].map(|part| below(&self.frames, line * part / 4)).into()
            }
            _ => vec![below(&self.frames, line)],
        }
    }

    /// Lines of a disk that began and whose gap did not end.
    fn open_lines(&self, disk_id: u32) -> Vec<u64> {
        let mut open = Vec::new();
        for (frame, _) in &self.frames {
            match &frame.body {
                Some(Body::LineStart(line)) if line.disk_ids.contains(&disk_id) => open.push(line.lsn),
                Some(Body::LineEnd(line)) if line.disk_ids.contains(&disk_id) => open.clear(),
                _ => {}
            }
        }
        open
    }

    /// Whether the first copy of a disk was ever completed.
    fn is_comparable(&self, disk_id: u32) -> bool {
        self.frames.iter().any(
            |(frame, _)| matches!(&frame.body, Some(Body::LineEnd(line)) if line.disk_ids.contains(&disk_id)),
        )
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

    /// The frame of this number, if it survives a crash.
    pub(super) fn durable_frame(&self, seq: u64) -> Option<&Frame> {
        let index = usize::try_from(seq.checked_sub(1)?).ok()?;
        self.frames.get(index).filter(|_| index < self.durable).map(|(frame, _)| frame)
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
        self.sessions = self.sessions.wrapping_add(1);
        self.offers.clear();
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
            protocol: PROTOCOL_MAX,
            hash_key: self.hash_key().0.to_vec().into(),
            // Also in a session that began before: whether anything is offered is another matter.
            templates: true,
            comparable_disks: (1..=DISKS as u32).filter(|id| self.is_comparable(*id)).collect(),
            generation: self.frames.last().map_or(0, |(frame, _)| frame.generation),
            window_bytes,
            heartbeat_ms: self.heartbeat_ms,
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
