//! The versions of one file over the history: found by looking at points, and halving between two that differ.
//!
//! Two looks that agree are taken to mean that nothing happened between them. What they compare has the inode's change
//! time, which a kernel never sets back, those of the directories that the path leads through, and for a file that is not
//! there that of the directory it would be in; so a version is missed only where a guest's clock was set back just so, or where a file was made and removed within one
//! tick of the clock (some milliseconds).

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;

use super::partition::{NoFileSystem, choose};
use super::touched::Facts;
use crate::cli::UsageError;
use crate::ext4::{Damaged, FileSystem, Inode, Kind, Looked, Replay, Source, Unsupported};

/// Files up to this many bytes are told apart by their content, too; of larger ones by what the file system says, so that
/// a look does not read gigabytes.
const HASHED_MAX_BYTES: u64 = 64 << 20;
/// Looks that go to the widest interval first, so that a search that ends early has looked everywhere a little. After
/// them the oldest interval is halved to its end, which reads least.
const EVEN_LOOKS: usize = 64;

/// What a path led to at one point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Located {
    Present {
        facts: Facts,
        hash: Option<[u8; 32]>,
    },
    Absent,
    /// A part of the path before the last, by its number, is a symbolic link.
    Link {
        component: usize,
        target: Vec<u8>,
    },
    /// There was no file system to look into, or it was damaged.
    Unreadable(String),
}

/// A look, with what shows that something happened although the version is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    time_us: u64,
    located: Located,
    trace: [u8; 32],
    /// The same of the directories on the way: one of them may have been another in between.
    above: [u8; 32],
}

/// One version and where it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) located: Located,
    /// First and last point at which it is known to be, as (LSN, microseconds).
    pub(crate) from: (u64, u64),
    pub(crate) to: (u64, u64),
    /// The last point known to be before it; `None` at the start of what was searched.
    pub(crate) after_lsn: Option<u64>,
    /// Whether no point lies between that and the first.
    pub(crate) exact: bool,
}

#[derive(Debug)]
pub(crate) struct Versions {
    /// By LSN; points without the file are versions, too.
    pub(crate) versions: Vec<Version>,
    pub(crate) looks: usize,
    /// Whether the search ended before every interval was followed.
    pub(crate) cut_short: bool,
}

/// Moves through history. Blocking.
pub(crate) trait Moves {
    /// Makes what [`Moves::disk`] reads be that of a point; returns its time in microseconds.
    fn move_to(&mut self, lsn: u64) -> Result<u64>;
    /// The disk at the present point; `None` when there is none.
    fn disk(&self) -> Option<Arc<dyn Source>>;
}

/// What to search, and how far.
#[derive(Debug, Clone)]
pub(crate) struct Search<'a> {
    pub(crate) parts: Vec<&'a [u8]>,
    pub(crate) partition: Option<u32>,
    /// Ranges of points, both ends included, by LSN.
    pub(crate) windows: Vec<(u64, u64)>,
    /// Points to look at in any case.
    pub(crate) points: Vec<u64>,
    /// Looks at most.
    pub(crate) looks_max: usize,
}

/// Finds the versions.
///
/// # Errors
/// When a point cannot be read.
pub(crate) fn find(moves: &mut dyn Moves, search: &Search<'_>) -> Result<Versions> {
    let mut looks: BTreeMap<u64, Look> = BTreeMap::new();
    let mut open: Vec<(u64, u64)> = Vec::new();
    let mut cut_short = false;
    for (from, to) in &search.windows {
        let inside = search.points.iter().copied().filter(|lsn| from < lsn && lsn < to);
        let mut places: Vec<u64> = [*from, *to].into_iter().chain(inside).collect();
        places.sort_unstable();
        places.dedup();
        for lsn in &places {
            if looks.len() >= search.looks_max {
                cut_short = true;
                break;
            }
            if !looks.contains_key(lsn) {
                looks.insert(*lsn, look(moves, search, *lsn)?);
            }
        }
        open.extend(places.windows(2).filter_map(|pair| Some((*pair.first()?, *pair.last()?))));
    }
    // Intervals at whose ends the file is the same and a directory above it is not: most such changes are names of other
    // files, so these wait until the others are done.
    let mut doubtful: Vec<(u64, u64)> = Vec::new();
    loop {
        let first = next_interval(&open, looks.len()).map(|at| (open.swap_remove(at), true));
        let next = first
            .or_else(|| next_interval(&doubtful, looks.len()).map(|at| (doubtful.swap_remove(at), false)));
        let Some(((from, to), fresh)) = next else { break };
        let ends = looks.get(&from).zip(looks.get(&to));
        let same = ends.is_none_or(|(one, other)| one.trace == other.trace);
        let same_above = ends.is_none_or(|(one, other)| one.above == other.above);
        let middle = from + (to - from) / 2;
        if (same && same_above) || middle == from {
            continue;
        }
        if same && fresh {
            doubtful.push((from, to));
            continue;
        }
        if looks.len() >= search.looks_max {
            cut_short = true;
            break;
        }
        looks.insert(middle, look(moves, search, middle)?);
        open.extend([(from, middle), (middle, to)]);
    }
    Ok(Versions { versions: versions(&looks), looks: looks.len(), cut_short })
}

/// The widest interval at first, then the oldest.
fn next_interval(open: &[(u64, u64)], looks: usize) -> Option<usize> {
    let intervals = open.iter().enumerate();
    let chosen = if looks < EVEN_LOOKS {
        intervals.max_by_key(|(_, (from, to))| to - from)
    } else {
        intervals.min_by_key(|(_, (from, _))| *from)
    };
    chosen.map(|(at, _)| at)
}

fn versions(looks: &BTreeMap<u64, Look>) -> Vec<Version> {
    let mut versions: Vec<Version> = Vec::new();
    for (lsn, look) in looks {
        let point = (*lsn, look.time_us);
        let after_lsn = match versions.last_mut() {
            Some(last) if same_version(&last.located, &look.located) => {
                last.to = point;
                // Of a version that a change of names or links passed over, the newest is shown.
                last.located = look.located.clone();
                continue;
            }
            last => last.map(|last| last.to.0),
        };
        let exact = after_lsn.is_some_and(|after| after + 1 == *lsn);
        versions.push(Version { located: look.located.clone(), from: point, to: point, after_lsn, exact });
    }
    versions
}

/// Whether two looks show the same file with the same content and attributes. Links and the change time are none.
fn same_version(one: &Located, other: &Located) -> bool {
    match (one, other) {
        (Located::Present { facts, hash }, Located::Present { facts: other, hash: other_hash }) => {
            let told = |facts: &Facts| (facts.mode, facts.uid, facts.gid, facts.size_bytes, facts.modified);
            let change_counts = hash.is_none() && facts.kind == Kind::File;
            facts.same_file(other)
                && told(facts) == told(other)
                && hash == other_hash
                && (!change_counts || facts.changed == other.changed)
        }
        (Located::Absent, Located::Absent) => true,
        (Located::Link { .. }, Located::Link { .. }) => one == other,
        (Located::Unreadable(one), Located::Unreadable(other)) => one == other,
        _ => false,
    }
}

fn look(moves: &mut dyn Moves, search: &Search<'_>, lsn: u64) -> Result<Look> {
    let time_us = moves.move_to(lsn)?;
    let opened = moves.disk().map(|disk| {
        let chosen = choose(disk, "the disk", search.partition)?;
        FileSystem::open(chosen.source, Replay::Committed)
    });
    let (located, trace, above) = match opened {
        None => (Located::Absent, Trace::default(), Trace::default()),
        Some(opened) => match opened.and_then(|filesystem| locate(&filesystem, &search.parts)) {
            Ok(found) => found,
            // Anything else, such as a broken connection, is no state of the file.
            Err(error) if !tells_of_the_disk(&error) => return Err(error),
            Err(error) => {
                let said = format!("{error:#}");
                let mut trace = Trace::default();
                trace.0.update(said.as_bytes());
                (Located::Unreadable(said), trace, Trace::default())
            }
        },
    };
    Ok(Look { time_us, located, trace: trace.0.finalize().into(), above: above.0.finalize().into() })
}

fn tells_of_the_disk(error: &anyhow::Error) -> bool {
    error.is::<Damaged>()
        || error.is::<Unsupported>()
        || error.is::<NoFileSystem>()
        || error.is::<UsageError>()
}

/// Collects whatever changes with the file.
#[derive(Default)]
struct Trace(blake3::Hasher);

impl Trace {
    fn directory(&mut self, inode: &Inode) {
        for number in [inode.number, inode.generation, inode.changed.nanoseconds] {
            self.0.update(&number.to_le_bytes());
        }
        self.0.update(&inode.changed.seconds.to_le_bytes());
    }

    fn inode(&mut self, inode: &Inode) {
        let numbers = [inode.number, inode.generation, inode.uid, inode.gid, inode.changed.nanoseconds];
        for number in numbers {
            self.0.update(&number.to_le_bytes());
        }
        self.0.update(&inode.changed.seconds.to_le_bytes());
        self.0.update(&inode.modified.seconds.to_le_bytes());
        self.0.update(&inode.modified.nanoseconds.to_le_bytes());
        self.0.update(&inode.size_bytes.to_le_bytes());
        self.0.update(&inode.mode.to_le_bytes());
    }
}

/// What a path leads to, what changes with it, and what changes with the directories on the way.
fn locate(filesystem: &FileSystem, parts: &[&[u8]]) -> Result<(Located, Trace, Trace)> {
    let (mut trace, mut above) = (Trace::default(), Trace::default());
    let inode = match filesystem.look_through(parts, &mut |directory| above.directory(directory))? {
        Looked::Found(inode) => inode,
        Looked::Missing { deepest } => {
            trace.0.update(b"absent");
            trace.inode(&deepest);
            return Ok((Located::Absent, trace, above));
        }
        Looked::Link { component, target } => {
            trace.0.update(b"link").update(&target);
            return Ok((Located::Link { component, target }, trace, above));
        }
    };
    trace.inode(&inode);
    for run in filesystem.mapping(&inode)?.runs {
        for number in [run.logical, run.physical, run.blocks, u64::from(run.written)] {
            trace.0.update(&number.to_le_bytes());
        }
    }
    let hashed = matches!(inode.kind, Kind::File | Kind::Symlink) && inode.size_bytes <= HASHED_MAX_BYTES;
    let hash = if hashed && !(inode.kind == Kind::File && inode.is_encrypted()) {
        let hash = content_hash(filesystem, &inode)?;
        trace.0.update(&hash);
        Some(hash)
    } else {
        None
    };
    Ok((Located::Present { facts: Facts::of(&inode), hash }, trace, above))
}

/// BLAKE3 of a file's content, holes as zeroes, or of what a link holds.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn content_hash(filesystem: &FileSystem, inode: &Inode) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    if inode.kind == Kind::Symlink {
        return Ok(*hasher.update(&filesystem.target(inode)?).finalize().as_bytes());
    }
    let mut end = 0;
    filesystem.content(inode, &mut |offset, piece| {
        hash_zeroes(&mut hasher, offset.saturating_sub(end));
        hasher.update(piece);
        end = offset + piece.len() as u64;
        Ok(())
    })?;
    hash_zeroes(&mut hasher, inode.size_bytes.saturating_sub(end));
    Ok(*hasher.finalize().as_bytes())
}

fn hash_zeroes(hasher: &mut blake3::Hasher, bytes: u64) {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROES.len());
        hasher.update(ZEROES.get(..some).unwrap_or_default());
        left -= some as u64;
    }
}
