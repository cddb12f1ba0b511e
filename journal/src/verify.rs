//! Checks every byte of a journal's files against its hashes and against each other.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tidemark_proto::ids::Lsn;

use crate::attest::{Proof, PublicKey, Trail, WHOLE_SEGMENT};
use crate::encryption::{KEY_FILE, key_file_bytes, key_file_damage};
use crate::error::OpenError;
use crate::frame::Table;
use crate::index::MemoryIndex;
use crate::journal::{Run, Runs, is_listed, push_event, read_file, read_manifest};
use crate::leaf::{self, leaf_name};
use crate::manifest::{MANIFEST_FILE, Read, Sealed};
use crate::node::{self, Child, MergeError, Sink};
use crate::recovery::{Damage, RecoveryReport, replay, time_before};
use crate::segment::{Scanner, Stop, content_hash, segment_name};
use crate::storage::{Storage, StorageError, StorageErrorKind, StorageFile};
use crate::timeline::{Event, History, Horizon, What};

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Everything that is not as written, in file order. Empty: all is well.
    pub damage: Vec<Damage>,
    /// Unacknowledged bytes at an end of the log or manifest: no loss; the next opening for writing cuts them. On a
    /// journal that was closed in order, or never crashed, there are none, and these are damage too.
    pub torn_tail: Vec<Damage>,
    /// Files that the manifest does not name.
    pub unlisted: Vec<String>,
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Frames checked.
    pub frames: u64,
}

impl VerifyReport {
    /// Whether every byte is as written.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.torn_tail.is_empty()
    }
}

/// Checks every byte of every file that the manifest names. Changes nothing and needs no lock.
///
/// # Errors
/// When there is no journal, it is of a newer version, or the storage fails. Damage is no error but a finding.
pub fn verify(storage: &dyn Storage) -> Result<VerifyReport, OpenError> {
    verify_with(storage, None).map(|(report, _)| report)
}

/// The same, and what is proven by a key; nothing when the manifest cannot be read.
pub(crate) fn verify_with(
    storage: &dyn Storage,
    public_key: Option<PublicKey>,
) -> Result<(VerifyReport, Option<Proof>), OpenError> {
    let mut report = VerifyReport::default();
    let read = match read_manifest(storage) {
        Ok(read) => read,
        Err(OpenError::Damaged(damage)) => {
            report.damage.push(damage);
            return Ok((report, None));
        }
        Err(error) => return Err(error),
    };
    report.files += 1;
    report.bytes += storage.open(MANIFEST_FILE)?.len()?;
    report.damage.extend(read.damage.clone());
    report.torn_tail.extend(read.torn.clone());
    let trail = public_key.map(|public_key| Trail::new(&read, public_key));
    let mut walk = Walk {
        storage,
        read: &read,
        report,
        encrypted: false,
        trail,
        last_hash: [0; 32],
        floor_us: 0,
        horizon: None,
    };
    if let Some(base) = &read.state.base {
        (walk.last_hash, walk.floor_us) = (base.last_hash, base.floor_us);
        let horizons = base.events.iter().filter(|event| event.what == What::Horizon);
        walk.horizon = horizons.map(|event| Horizon { lsn: event.lsn, time_us: event.time_us }).next_back();
    }
    for sealed in read.state.sealed.values() {
        walk.sealed(sealed)?;
    }
    // What the open segments' ends mean is the decision table's business.
    let recovered = replay(storage, &read.key, &read.state)?;
    for ordinal in read.state.open.keys() {
        walk.open(*ordinal, recovered.damage.as_ref())?;
    }
    let (mut report, trail, encrypted) = (walk.report, walk.trail, walk.encrypted);
    if let Some(damage) = recovered.damage
        && !report.damage.iter().any(|known| known.file == damage.file)
    {
        report.damage.push(damage);
    }
    nodes(storage, &read, &mut report)?;
    keys(storage, encrypted, &mut report)?;
    let names = storage.list()?.into_iter();
    report.unlisted = names.filter(|name| name != MANIFEST_FILE && !is_listed(name, &read.state)).collect();
    Ok((report, trail.map(|trail| trail.finish(&read))))
}

struct Walk<'a> {
    storage: &'a dyn Storage,
    read: &'a Read,
    report: VerifyReport,
    /// Some segment needs the key file.
    encrypted: bool,
    trail: Option<Trail>,
    last_hash: [u8; 32],
    floor_us: u64,
    horizon: Option<Horizon>,
}

/// A segment as read from its frames.
struct Walked {
    index: MemoryIndex,
    events: Vec<Event>,
    stop: Stop,
    bytes: u64,
    last_hash: [u8; 32],
}

impl Walk<'_> {
    fn damage(&mut self, file: String, offset: u64, bytes: u64, problem: &str) {
        self.report.damage.push(Damage { file, offset, bytes, problem: problem.to_owned() });
    }

    /// Damage that the log cannot be followed beyond.
    fn log_damage(&mut self, file: String, offset: u64, bytes: u64, problem: &str) {
        self.damage(file, offset, bytes, problem);
        if let (Some(trail), Some(damage)) = (&mut self.trail, self.report.damage.last()) {
            trail.breaks(damage);
        }
    }

    /// Reads a segment to its end or first damage; `None` if it has no header.
    fn walk(&mut self, ordinal: u64) -> Result<Option<Walked>, OpenError> {
        let file = match self.storage.open(&segment_name(ordinal)) {
            Ok(file) => file,
            Err(error) if error.kind() == StorageErrorKind::Missing => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.report.files += 1;
        self.report.bytes += file.len()?;
        if self.trail.is_some() && self.read.state.hashed_from.is_none_or(|from| ordinal < from) {
            self.content(ordinal, file.as_ref())?;
        }
        let previous = Some(self.last_hash);
        let Some(mut scanner) = Scanner::open(file, ordinal, &self.read.key, previous)? else {
            return Ok(None);
        };
        self.encrypted |= scanner.data_key() > 0;
        let mut index = MemoryIndex::new(self.floor_us);
        let mut events = Vec::new();
        let mut history = History::default();
        if let Some(trail) = &mut self.trail {
            trail.reach((ordinal, 0), Lsn::ZERO, scanner.tail().1, scanner.offset());
        }
        let stop = loop {
            let scan = match scanner.next()? {
                Ok(scan) => scan,
                Err(stop) => break stop,
            };
            self.report.frames += 1;
            let (frames, hash) = scanner.tail();
            let is_footer = matches!(scan.frame.table, Table::Footer { .. });
            if let Some(trail) = &mut self.trail {
                let place = (ordinal, if is_footer { WHOLE_SEGMENT } else { frames });
                trail.reach(place, scan.frame.header.position.lsn, hash, scanner.offset());
            }
            index.add_decoded(&scan.frame, scan.offset);
            let horizon = self.horizon;
            if let Some(event) =
                Event::of(&scan.frame, index.floor_us(), |lsn| time_before(&index, horizon, lsn))
            {
                if event.what == What::Horizon {
                    self.horizon = history.apply(&event);
                }
                push_event(&mut events, event);
            }
        };
        let last_hash = scanner.tail().1;
        Ok(Some(Walked { index, events, stop, bytes: scanner.length(), last_hash }))
    }

    fn sealed(&mut self, sealed: &Sealed) -> Result<(), OpenError> {
        let name = segment_name(sealed.ordinal);
        let walked = self.walk(sealed.ordinal)?;
        match &walked {
            None => self.log_damage(
                name,
                0,
                crate::segment::SEGMENT_HEADER_BYTES as u64,
                "the header is not as written",
            ),
            Some(walked) => match &walked.stop {
                Stop::Invalid { offset, bytes, problem } => {
                    self.log_damage(name, *offset, *bytes, problem);
                }
                Stop::Clean => self.log_damage(name, walked.bytes, 0, "the footer is missing"),
                Stop::Footer if walked.bytes != sealed.bytes || walked.last_hash != sealed.last_hash => {
                    self.log_damage(name, 0, walked.bytes, "it is not the segment that the manifest names");
                }
                Stop::Footer => {}
            },
        }
        let walked = walked.filter(|walked| walked.stop == Stop::Footer);
        self.leaf(sealed, walked.as_ref())?;
        // Damage in one segment must not hide what the next holds.
        self.last_hash = sealed.last_hash;
        self.floor_us = self.floor_us.max(sealed.summary.last_time_us);
        self.horizon = sealed
            .events
            .iter()
            .rev()
            .find(|event| event.what == What::Horizon)
            .map_or(self.horizon, |event| Some(Horizon { lsn: event.lsn, time_us: event.time_us }));
        Ok(())
    }

    /// Frames of version 1 do not cover their payload: whether the segment is what was hashed later, if it was. Without
    /// a hash there is no damage, and no proof either.
    fn content(&mut self, ordinal: u64, file: &dyn StorageFile) -> Result<(), OpenError> {
        let (name, bytes) = (segment_name(ordinal), file.len()?);
        let problem = match self.read.state.contents.get(&ordinal) {
            Some(hash) if content_hash(file, &self.read.key)? == *hash => return Ok(()),
            Some(_) => "it is not the file that was hashed after an upgrade",
            None => "an older version wrote it, and it was not hashed since",
        };
        if let Some(trail) = &mut self.trail {
            trail.breaks(&Damage { file: name, offset: 0, bytes, problem: problem.to_owned() });
        }
        Ok(())
    }

    fn leaf(&mut self, sealed: &Sealed, walked: Option<&Walked>) -> Result<(), OpenError> {
        let name = leaf_name(sealed.ordinal);
        let bytes = match read_file(self.storage, &name) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == StorageErrorKind::Missing => {
                self.damage(name, 0, sealed.leaf_bytes, "the file is missing");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.report.files += 1;
        self.report.bytes += bytes.len() as u64;
        if let Err(error) = leaf::decode(&bytes, &self.read.key) {
            self.damage(name, error.offset, error.bytes, error.problem);
            return Ok(());
        }
        let Some(walked) = walked else { return Ok(()) };
        let (expected, hash) = leaf::encode(&walked.index, sealed.ordinal, &self.read.key);
        if expected != bytes || hash != sealed.leaf_hash {
            self.damage(name, 0, bytes.len() as u64, "it is not the index of its segment");
        }
        if walked.events != sealed.events || walked.index.summary() != sealed.summary {
            self.damage(
                MANIFEST_FILE.to_owned(),
                0,
                0,
                "its record of a segment is not what the segment says",
            );
        }
        Ok(())
    }

    fn open(&mut self, ordinal: u64, judged: Option<&Damage>) -> Result<(), OpenError> {
        let name = segment_name(ordinal);
        let Some(walked) = self.walk(ordinal)? else {
            let problem = "the file is missing or its header is not as written";
            let bytes = crate::segment::SEGMENT_HEADER_BYTES as u64;
            self.tail(Damage { file: name, offset: 0, bytes, problem: problem.to_owned() }, judged);
            return Ok(());
        };
        self.last_hash = walked.last_hash;
        self.floor_us = walked.index.floor_us();
        if let Stop::Invalid { offset, bytes, problem } = walked.stop {
            self.tail(Damage { file: name, offset, bytes, problem }, judged);
        }
        Ok(())
    }

    /// Damage, if recovery judges it so, else a torn tail.
    fn tail(&mut self, found: Damage, judged: Option<&Damage>) {
        if let Some(trail) = &mut self.trail
            && judged.is_some()
        {
            trail.breaks(&found);
        }
        if judged.is_some() { self.report.damage.push(found) } else { self.report.torn_tail.push(found) }
    }
}

/// The key file, as far as it can be checked without the master key.
fn keys(storage: &dyn Storage, needed: bool, report: &mut VerifyReport) -> Result<(), OpenError> {
    match key_file_bytes(storage)? {
        Some(bytes) => {
            report.files += 1;
            report.bytes += bytes;
            report.damage.extend(key_file_damage(storage)?);
        }
        None if needed => {
            let problem = "the file is missing: what is encrypted cannot be read".to_owned();
            report.damage.push(Damage { file: KEY_FILE.to_owned(), offset: 0, bytes: 0, problem });
        }
        None => {}
    }
    Ok(())
}

/// Compares each node with what its children merge to, or, if they are damaged themselves, with its own hashes.
fn nodes(storage: &dyn Storage, read: &Read, report: &mut VerifyReport) -> Result<(), OpenError> {
    let segments = read.state.sealed.values().cloned().map(Run::Sealed).collect();
    let runs = Runs::new(segments, read.state.nodes.values());
    for node in read.state.nodes.values() {
        let name = node.span.name();
        let mut damaged = |offset, bytes, problem: &str| {
            report.damage.push(Damage { file: name.clone(), offset, bytes, problem: problem.to_owned() });
        };
        let file = match storage.open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == StorageErrorKind::Missing => {
                damaged(0, node.bytes, "the file is missing");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let found = file.len()?;
        report.files += 1;
        report.bytes += found;
        if found != node.bytes {
            damaged(found.min(node.bytes), found.abs_diff(node.bytes), "the file's length is not as named");
            continue;
        }
        let children: Vec<Child> = runs.children(node.span).iter().filter_map(Run::child).collect();
        let mut same = Same { file, offset: 0, differs: None };
        let stop = AtomicBool::new(false);
        let merged = node::merge(storage, read.key, node.span, &children, &mut same, &stop);
        match (merged, same.differs) {
            (_, Some((offset, bytes))) => damaged(offset, bytes, "it is not what it was merged from"),
            (Ok(merged), None) if merged.hash == node.hash => {}
            (Ok(_), None) => damaged(0, found, "it is not the node that the manifest names"),
            (Err(MergeError::Read(error) | MergeError::Write(error)), None) => return Err(error.into()),
            (Err(MergeError::Damaged(..) | MergeError::Stopped), None) => {
                let child = Child::Node { span: node.span, bytes: node.bytes, hash: node.hash };
                if let Some(damage) = child.damage(storage, read.key)? {
                    report.damage.push(damage);
                }
            }
        }
    }
    Ok(())
}

/// Compares what is written with what a file holds.
struct Same {
    file: Arc<dyn StorageFile>,
    offset: u64,
    /// The first difference: byte, and bytes up to the end of the part it lies in.
    differs: Option<(u64, u64)>,
}

impl Sink for Same {
    fn put(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        if self.differs.is_none() {
            let mut found = vec![0; bytes.len()];
            let short = match self.file.read_at(self.offset, &mut found) {
                Err(error) if error.kind() == StorageErrorKind::Short => true,
                result => result.map(|()| false)?,
            };
            let differs = found.iter().zip(bytes).position(|(found, expected)| found != expected);
            let from = if short { Some(0) } else { differs };
            self.differs = from.map(|from| (self.offset + from as u64, (bytes.len() - from) as u64));
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

/// What opening would find, without changing anything.
///
/// # Errors
/// As [`verify`].
pub fn inspect(storage: &dyn Storage) -> Result<RecoveryReport, OpenError> {
    let read = read_manifest(storage)?;
    let recovered = replay(storage, &read.key, &read.state)?;
    let torn = read.torn.as_ref().map_or(0, |torn| torn.bytes);
    Ok(RecoveryReport {
        damage: read.damage.or(recovered.damage),
        cut_bytes: recovered.cut_bytes + torn,
        moved_aside: Vec::new(),
        frames_scanned: recovered.frames,
    })
}
