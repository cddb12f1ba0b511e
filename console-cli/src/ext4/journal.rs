//! The journal (jbd2), replayed in memory: which block's newest committed copy lies where.
//!
//! Numbers are big-endian. From its start block on, a journal holds transactions: descriptor blocks, each followed by the
//! blocks that its tags name; revocations; and a commit block, without which none of the transaction counts. It is a
//! ring. A revocation at transaction T takes back every copy of a block up to and including T: the block was freed, and
//! may hold a file's data by now.
//!
//! Checksums of descriptors, revocations and commits are verified here; those of copies when a copy is read, so that
//! opening a point does not read the whole journal.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::bytes::{be16, be32, byte, crc32c_register, index, join, le16, le32};
use super::error::{damaged, unsupported};
use super::filesystem::FileSystem;
use super::mapping::{Mapping, Run};

const MAGIC: u32 = 0xC03B_3998;
const HEADER_BYTES: usize = 12;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOCATION: u32 = 5;

const FEATURE_WIDE: u32 = 0x2;
const FEATURE_ASYNCHRONOUS_COMMIT: u32 = 0x4;
const FEATURE_CHECKSUM_V2: u32 = 0x8;
const FEATURE_CHECKSUM_V3: u32 = 0x10;
const FEATURE_FAST_COMMIT: u32 = 0x20;
/// Revocations, 64 bit, asynchronous commits, both checksums, fast commits.
const FEATURES_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20;

const TAG_ESCAPED: u32 = 0x1;
const TAG_SAME_UUID: u32 = 0x2;
const TAG_LAST: u32 = 0x8;

const FAST_COMMIT_HEAD: u16 = 0x0009;
/// Blocks of the area of fast commits when the journal does not say.
const FAST_COMMIT_BLOCKS: u32 = 256;
/// A journal that fast commits would leave fewer blocks has no area for them.
const RING_BLOCKS_MIN: u32 = 1024;

/// Blocks of a journal at most, 4 GiB in blocks of 4 KiB; mke2fs makes 1 GiB at most by itself. It bounds the memory
/// that a replay takes (some 64 bytes each). Larger ones are refused.
const BLOCKS_MAX: u32 = 1 << 20;
/// Revocations at most: 64 MiB of memory. A journal with more is refused.
const REVOKED_MAX: usize = 2 << 20;

/// The newest committed copy of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Logged {
    /// The block of the file system that holds the copy.
    pub(crate) place: u64,
    pub(crate) sequence: u32,
    checksum: u32,
    escaped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Checksums {
    #[default]
    None,
    V2,
    V3,
}

/// What a replay would write, by the block it would write to.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    blocks: BTreeMap<u64, Logged>,
    /// The journal's own blocks.
    own: Mapping,
    checksums: Checksums,
    seed: u32,
}

impl Overlay {
    pub(crate) fn get(&self, block: u64) -> Option<Logged> {
        self.blocks.get(&block).copied()
    }

    /// The blocks in `[from, to)` that have a copy.
    pub(crate) fn numbers(&self, from: u64, to: u64) -> impl Iterator<Item = u64> + '_ {
        self.blocks.range(from..to.max(from)).map(|(number, _)| *number)
    }

    /// Where the journal itself lies.
    pub(crate) fn own(&self) -> &Mapping {
        &self.own
    }

    /// Verifies a copy and makes it the block that it stands for.
    pub(super) fn restore(&self, logged: &Logged, block: &mut [u8]) -> Result<()> {
        if self.checksums != Checksums::None {
            let register = crc32c_register(self.seed, &logged.sequence.to_be_bytes());
            let found = crc32c_register(register, block);
            let whole = self.checksums == Checksums::V3;
            if if whole { found != logged.checksum } else { found & 0xFFFF != logged.checksum } {
                return Err(damaged("a block in the journal has another checksum"));
            }
        }
        if logged.escaped
            && let Some(start) = block.get_mut(..4)
        {
            start.copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(())
    }

    /// Reads the journal of `filesystem`, whose own overlay is empty still.
    pub(super) fn load(filesystem: &FileSystem) -> Result<Self> {
        let number = filesystem.superblock().journal_inode;
        if number == 0 {
            return Err(unsupported("a journal on a device of its own"));
        }
        let own = filesystem.mapping(&filesystem.inode(number)?)?;
        let Some(mut log) = Log::open(filesystem, own)? else { return Ok(Self::default()) };
        let mut replay = Scan { sequence: log.sequence, ..Scan::default() };
        while log.left > 0 && replay.step(&mut log)? {}
        log.refuse_fast_commits(replay.sequence)?;
        let Scan { mut blocks, revoked, .. } = replay;
        // Sequence numbers wrap; the difference tells which is later.
        blocks.retain(|block, logged| {
            revoked.get(block).is_none_or(|sequence| after(logged.sequence, *sequence))
        });
        // A file system that was grown while mounted may have its new size in the journal only.
        let last = filesystem.device_blocks();
        if blocks.last_key_value().is_some_and(|(block, _)| *block >= last) {
            return Err(damaged("the journal has a copy of a block that is outside"));
        }
        Ok(Self { blocks, own: log.own, checksums: log.checksums, seed: log.seed })
    }
}

/// Whether transaction `one` came after `other`.
fn after(one: u32, other: u32) -> bool {
    let distance = one.wrapping_sub(other);
    distance != 0 && distance < 1 << 31
}

/// The ring of blocks, and the place in it.
struct Log<'a> {
    filesystem: &'a FileSystem,
    own: Mapping,
    checksums: Checksums,
    seed: u32,
    wide: bool,
    fast_commits: bool,
    first: u32,
    /// One past the last block of the ring.
    end: u32,
    at: u32,
    /// Blocks of the ring not yet passed.
    left: u32,
    sequence: u32,
}

impl<'a> Log<'a> {
    /// `None`: there is nothing to replay.
    fn open(filesystem: &'a FileSystem, own: Mapping) -> Result<Option<Self>> {
        let block_bytes = filesystem.superblock().block_bytes;
        let mut bytes = vec![0; index(block_bytes)];
        let place = physical(&own.runs, 0).ok_or_else(|| damaged("the journal has no beginning"))?;
        filesystem.read_raw(place, 0, &mut bytes)?;
        let kind = be32(&bytes, 4);
        let sane = be32(&bytes, 0) == MAGIC && u64::from(be32(&bytes, 0xc)) == block_bytes;
        if !sane || !(kind == SUPERBLOCK_V1 || kind == SUPERBLOCK_V2) {
            return Err(damaged("the journal has no superblock"));
        }
        let features = if kind == SUPERBLOCK_V2 { be32(&bytes, 0x28) } else { 0 };
        if features & !FEATURES_KNOWN != 0 {
            return Err(unsupported(format!("a journal with unknown features (0x{features:x})")));
        }
        let checksums = match features & (FEATURE_CHECKSUM_V2 | FEATURE_CHECKSUM_V3) {
            0 => Checksums::None,
            FEATURE_CHECKSUM_V2 => Checksums::V2,
            FEATURE_CHECKSUM_V3 => Checksums::V3,
            _ => return Err(damaged("the journal has two kinds of checksums")),
        };
        if checksums != Checksums::None && byte(&bytes, 0x50) != 4 {
            return Err(unsupported("a journal with checksums other than CRC32C"));
        }
        let (blocks, first, start) = (be32(&bytes, 0x10), be32(&bytes, 0x14), be32(&bytes, 0x1c));
        if start == 0 {
            return Ok(None);
        }
        if features & FEATURE_ASYNCHRONOUS_COMMIT != 0 && checksums == Checksums::None {
            // A commit may have reached the disk before what it commits, and nothing here would show it.
            return Err(unsupported("a journal with asynchronous commits and checksums of version 1"));
        }
        let fast_commits = features & FEATURE_FAST_COMMIT != 0;
        let fast_blocks = match be32(&bytes, 0x54) {
            _ if !fast_commits => 0,
            0 => FAST_COMMIT_BLOCKS,
            blocks => blocks,
        };
        if blocks > BLOCKS_MAX {
            return Err(unsupported(format!("a journal of more than {BLOCKS_MAX} blocks")));
        }
        let ring = blocks.checked_sub(fast_blocks).filter(|ring| *ring >= RING_BLOCKS_MIN);
        let end = ring.unwrap_or(blocks);
        if first == 0 || first >= end || !(first..end).contains(&start) {
            return Err(damaged("the journal's numbers contradict each other"));
        }
        let seed = crc32c_register(!0, bytes.get(0x30..0x40).unwrap_or_default());
        let (wide, sequence) = (features & FEATURE_WIDE != 0, be32(&bytes, 0x18));
        let left = end - first;
        Ok(Some(Self {
            filesystem,
            own,
            checksums,
            seed,
            wide,
            fast_commits,
            first,
            end,
            at: start,
            left,
            sequence,
        }))
    }

    /// Takes the next block of the ring; returns where it lies.
    fn take(&mut self) -> Result<u64> {
        let place =
            physical(&self.own.runs, self.at.into()).ok_or_else(|| damaged("the journal has a hole"))?;
        self.at = if self.at + 1 < self.end { self.at + 1 } else { self.first };
        self.left = self.left.saturating_sub(1);
        Ok(place)
    }

    /// Whether the checksum at the end of a descriptor or a revocation holds.
    fn tail_holds(&self, block: &[u8]) -> bool {
        self.checksums == Checksums::None || self.holds(block, block.len().saturating_sub(4))
    }

    /// Whether the checksum of a commit holds.
    fn commit_holds(&self, block: &[u8]) -> bool {
        self.checksums == Checksums::None || self.holds(block, 16)
    }

    fn holds(&self, block: &[u8], at: usize) -> bool {
        let (before, rest) = block.split_at(at.min(block.len()));
        let register = crc32c_register(crc32c_register(self.seed, before), &[0; 4]);
        crc32c_register(register, rest.get(4..).unwrap_or_default()) == be32(block, at)
    }

    fn tag_bytes(&self) -> usize {
        match (self.checksums, self.wide) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (Checksums::None, true) => 12,
            (Checksums::None, false) => 8,
        }
    }

    /// Fast commits change what the last full commit left in a way that is not read here.
    fn refuse_fast_commits(&self, next: u32) -> Result<()> {
        if !self.fast_commits {
            return Ok(());
        }
        // The block at the ring's end belongs to neither.
        let first = u64::from(self.end) + 1;
        let Some(place) = physical(&self.own.runs, first) else { return Ok(()) };
        let mut bytes = [0; 12];
        self.filesystem.read_raw(place, 0, &mut bytes)?;
        if le16(&bytes, 0) == FAST_COMMIT_HEAD && le32(&bytes, 8) == next {
            return Err(unsupported("fast commits, and some were not yet followed by a full one"));
        }
        Ok(())
    }
}

/// Where a journal's block lies.
fn physical(runs: &[Run], logical: u64) -> Option<u64> {
    let place = runs.partition_point(|run| run.logical + run.blocks <= logical);
    let run = runs.get(place).filter(|run| run.logical <= logical && run.written)?;
    Some(run.physical + (logical - run.logical))
}

/// What was found so far.
#[derive(Default)]
struct Scan {
    blocks: BTreeMap<u64, Logged>,
    revoked: HashMap<u64, u32>,
    /// Of the transaction whose commit was not seen yet.
    open_blocks: Vec<(u64, Logged)>,
    open_revoked: Vec<u64>,
    sequence: u32,
}

impl Scan {
    /// Takes one descriptor, revocation or commit; false at the journal's end.
    fn step(&mut self, log: &mut Log<'_>) -> Result<bool> {
        let mut block = vec![0; index(log.filesystem.superblock().block_bytes)];
        let place = log.take()?;
        log.filesystem.read_raw(place, 0, &mut block)?;
        if be32(&block, 0) != MAGIC || be32(&block, 8) != self.sequence {
            return Ok(false);
        }
        match be32(&block, 4) {
            DESCRIPTOR if log.tail_holds(&block) => self.descriptor(log, &block),
            REVOCATION if log.tail_holds(&block) => self.revocation(log, &block),
            COMMIT if log.commit_holds(&block) => {
                self.blocks.extend(self.open_blocks.drain(..));
                let sequence = self.sequence;
                self.revoked.extend(self.open_revoked.drain(..).map(|block| (block, sequence)));
                if self.revoked.len() > REVOKED_MAX {
                    return Err(unsupported(format!("a journal with more than {REVOKED_MAX} revocations")));
                }
                self.sequence = self.sequence.wrapping_add(1);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn descriptor(&mut self, log: &mut Log<'_>, block: &[u8]) -> Result<bool> {
        let size = log.tag_bytes();
        let tail = if log.checksums == Checksums::None { 0 } else { 4 };
        let end = block.len().saturating_sub(tail);
        let mut at = HEADER_BYTES;
        while at + size <= end && log.left > 0 {
            let (flags, checksum, high_at) = if log.checksums == Checksums::V3 {
                (be32(block, at + 4), be32(block, at + 12), at + 8)
            } else {
                (u32::from(be16(block, at + 6)), u32::from(be16(block, at + 4)), at + 8)
            };
            let high = if log.wide { be32(block, high_at) } else { 0 };
            let logged = Logged {
                place: log.take()?,
                sequence: self.sequence,
                checksum,
                escaped: flags & TAG_ESCAPED != 0,
            };
            self.open_blocks.push((join(high, be32(block, at)), logged));
            at += size + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(true)
    }

    fn revocation(&mut self, log: &Log<'_>, block: &[u8]) -> Result<bool> {
        let end = index(be32(block, 12).into()).min(block.len());
        let size = if log.wide { 8 } else { 4 };
        let mut at = HEADER_BYTES + 4;
        while at + size <= end {
            let number =
                if log.wide { join(be32(block, at), be32(block, at + 4)) } else { be32(block, at).into() };
            self.open_revoked.push(number);
            at += size;
        }
        if self.open_revoked.len() > REVOKED_MAX {
            return Err(unsupported(format!("a journal with more than {REVOKED_MAX} revocations")));
        }
        Ok(true)
    }
}
