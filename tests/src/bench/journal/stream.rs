//! A stream of writes as a splitter numbers them, straight into a journal.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tidemark_journal::attest::{Signer, SigningKey};
use tidemark_journal::frame::{Body, Entry, EntryKind, Frame};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::store::MasterKey;
use tidemark_journal::{DiskRecord, Encryption, Journal, Options, Position};
use tidemark_proto::ids::{DiskId, VmId};
use tidemark_proto::limits::SECTOR_BYTES;

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

const DISK: DiskId = DiskId(1);

/// A figure to be shown.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a figure to be shown")]
pub const fn as_f64(value: u64) -> f64 {
    value as f64
}

/// What is written into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As the appliance does: encrypted and signed.
    Encrypted,
    /// As it is, signed: for comparison.
    Plain,
}

/// One VM with one disk that is written at random.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) journal: Arc<Journal>,
    position: Position,
    entries: Vec<Entry>,
    payload: Vec<u8>,
    crc32c: Vec<u32>,
    places: u64,
    random: u64,
}

impl Stream {
    /// A journal in `folder` for a disk of `disk_bytes`. Each frame has `frame_bytes` in writes of `write_bytes`.
    pub(super) fn create(
        folder: &Path,
        disk_bytes: u64,
        write_bytes: u64,
        frame_bytes: u64,
        kind: Kind,
    ) -> Result<Self> {
        let storage = Arc::new(OsStorage::create(folder)?);
        let signer: Arc<dyn Signer> = Arc::new(SigningKey::from_seed(&[5; 32])?);
        let encryption = match kind {
            Kind::Encrypted => Some(Encryption { master: MasterKey::from_bytes(&[9; 32])?, seed: [3; 32] }),
            Kind::Plain => None,
        };
        let options = Options { key: [7; 32], signer: Some(signer), encryption, ..Options::default() };
        let journal = Journal::create(storage, VmId(uuid_of(folder)), options)?;
        let identity = "bench".to_owned();
        journal.put_disk(DiskRecord { id: DISK, identity, path: String::new(), size_bytes: disk_bytes })?;
        let payload: Vec<u8> = (0..frame_bytes).map(|byte| byte.to_le_bytes()[0] ^ 0x5a).collect();
        let entry = Entry {
            disk: DISK,
            kind: EntryKind::Data,
            start_sector: 0,
            sectors: u32::try_from(write_bytes / SECTOR_BYTES)?,
            flags: 0,
            time_delta_us: 0,
        };
        let mut stream = Self {
            journal: Arc::new(journal),
            position: Position::default(),
            entries: vec![entry; usize::try_from(frame_bytes / write_bytes)?],
            crc32c: payload.chunks(4096).map(crc32c::crc32c).collect(),
            payload,
            places: disk_bytes / write_bytes,
            random: 1,
        };
        stream.event(|lsn| Body::LineStart {
            lsn,
            gap_from_lsn: lsn,
            cause: 1,
            detail: "",
            disks: &[DISK],
            dirty_bytes: 0,
        })?;
        stream.event(|lsn| Body::LineEnd { lsn, disks: &[DISK] })?;
        Ok(stream)
    }

    fn event<'a>(&mut self, body: impl FnOnce(tidemark_proto::ids::Lsn) -> Body<'a>) -> Result<()> {
        self.position.seq += 1;
        self.position.lsn = self.position.lsn.next();
        self.append(body(self.position.lsn))
    }

    fn append(&self, body: Body<'_>) -> Result<()> {
        // A second for every thousand frames: times must rise.
        let appliance_time_us = 1_000_000 + self.position.seq * 1000;
        Ok(self.journal.append(&Frame {
            position: self.position,
            appliance_time_us,
            clock_error_us: 0,
            body,
        })?)
    }

    /// Appends one frame of writes at random places.
    pub(super) fn write(&mut self) -> Result<()> {
        for entry in &mut self.entries {
            // Knuth's linear congruential generator: its high bits are random enough to scatter writes.
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            entry.start_sector = (self.random >> 20) % self.places * u64::from(entry.sectors);
        }
        let first_lsn = self.position.lsn.next();
        self.position.seq += 1;
        self.position.lsn = self.position.lsn.plus(self.entries.len() as u64);
        self.append(Body::Writes {
            first_lsn,
            entries: &self.entries,
            payload: &self.payload,
            crc32c: &self.crc32c,
        })
    }

    /// Says that everything so far is exact, and makes it durable and indexed.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.position.seq += 1;
        let lsn = self.position.lsn;
        self.append(Body::Heartbeat { lsn, time_us: 1_000_000 + self.position.seq * 1000, clean: true })?;
        self.journal.sync()?;
        self.journal.maintain()?;
        Ok(())
    }

    /// The last LSN.
    pub(super) fn end(&self) -> u64 {
        self.position.lsn.0
    }

    /// What each frame carries.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }
}

fn uuid_of(folder: &Path) -> uuid::Uuid {
    let hash = blake3::hash(folder.as_os_str().as_encoded_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(hash.as_bytes().first_chunk::<16>().unwrap_or(&[1; 16]));
    uuid::Uuid::from_bytes(bytes)
}

/// The value below which a share of `sorted` lies.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Result<f64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list of thousands at most"
    )]
    let place = (as_f64(sorted.len() as u64) * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().context("nothing was measured")
}

/// Sorts measurements.
pub(super) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}
