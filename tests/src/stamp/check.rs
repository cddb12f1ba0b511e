//! The checker: is this image a state that the history allows?
//!
//! An image stands for a set of contained writes. It is allowed when every write that completed before the submission
//! of any contained write is contained too, and each sector shows the newest contained write that touches it. A write
//! larger than one request may be contained in part, so the rule is applied sector by sector.
//!
//! A stamped sector names its write. A zero sector does not: it may show any zeroing of that sector or the untouched
//! disk. The checker takes the oldest reading that is not too old, and repeats until nothing changes; the set it ends
//! with is the smallest that explains the image, so an image is refused only if no set explains it.

use std::fmt;

use super::history::{History, Kind};
use super::sector::{SECTOR_BYTES, Sector, Stamp};

/// Why an image is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// The image is not of the disk's size.
    Size { expected_bytes: u64, found_bytes: u64 },
    /// A sector that no write of the run can have produced.
    Garbage { sector: u64 },
    /// A stamp of another run, of another address, of a write that never touched this sector or was never submitted.
    Foreign { sector: u64, stamp: Stamp },
    /// A completed write is missing although a later one is contained.
    Missing { sector: u64, missing: u64, shown: Option<u64>, because_of: Option<u64> },
    /// A sector does not show what the exact prefix demands.
    NotPrefix { sector: u64, prefix: u64, expected: Option<u64>, shown: Sector },
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { expected_bytes, found_bytes } => {
                write!(out, "the image has {found_bytes} bytes, the disk {expected_bytes}")
            }
            Self::Garbage { sector } => write!(out, "sector {sector} is neither a whole stamp nor zeroes"),
            Self::Foreign { sector, stamp } => {
                write!(out, "sector {sector} holds a stamp from elsewhere: {stamp:?}")
            }
            Self::Missing { sector, missing, shown, because_of: None } => {
                write!(out, "sector {sector} shows write {shown:?}, but write {missing} had completed")
            }
            Self::Missing { sector, missing, shown, because_of: Some(because_of) } => write!(
                out,
                "sector {sector} shows write {shown:?}, but write {missing} completed before write {because_of} was \
                 submitted, and that one is contained"
            ),
            Self::NotPrefix { sector, prefix, expected, shown } => write!(
                out,
                "of the first {prefix} writes, write {expected:?} is the newest on sector {sector}, which shows {shown:?}"
            ),
        }
    }
}

impl std::error::Error for Violation {}

/// What an allowed image contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Tick of the youngest submission that must be contained: every write completed before it is.
    pub frontier: u64,
    /// How many writes must be contained, those of the frontier itself left out.
    pub must_contain: u64,
    /// Highest sequence number of a stamp seen.
    pub newest: Option<u64>,
}

/// A write on one sector: the sector's chain is in order.
#[derive(Debug, Clone, Copy)]
struct Link {
    sequence: u64,
    submitted: u64,
    /// `u64::MAX`: not known to have completed.
    completed: u64,
    zeroes: bool,
}

/// A history, prepared for checking many images.
#[derive(Debug)]
pub struct Checker {
    run: u64,
    /// For each sector the writes that touch it, oldest first.
    chains: Vec<Vec<Link>>,
    /// Completion ticks, sorted.
    completions: Vec<u64>,
}

impl Checker {
    /// Prepares the history.
    #[must_use]
    pub fn new(history: &History) -> Self {
        let sectors = usize::try_from(history.disk_sectors).unwrap_or(usize::MAX);
        let mut chains = vec![Vec::new(); sectors];
        let mut completions = Vec::new();
        for operation in &history.operations {
            let Some(submitted) = operation.submitted else { continue };
            completions.extend(operation.completed);
            let link = Link {
                sequence: operation.sequence,
                submitted,
                completed: operation.completed.unwrap_or(u64::MAX),
                zeroes: operation.kind != Kind::Data,
            };
            let start = usize::try_from(operation.start_sector).unwrap_or(usize::MAX);
            let count = usize::try_from(operation.sectors).unwrap_or(usize::MAX);
            for chain in chains.iter_mut().skip(start).take(count) {
                chain.push(link);
            }
        }
        completions.sort_unstable();
        Self { run: history.run, chains, completions }
    }

    /// Judges an image. `floor` is a tick up to which writes are known to be contained: the frontier of an earlier
    /// point, or `u64::MAX` where every completed write must be there; 0 knows nothing.
    ///
    /// # Errors
    /// The first violation found.
    pub fn check(&self, image: &[u8], floor: u64) -> Result<Verdict, Violation> {
        let shown = self.decode(image)?;
        let mut frontier = floor;
        let mut cause = None;
        let mut newest = None;
        for (chain, shown) in self.chains.iter().zip(&shown) {
            if let Some(link) = shown.and_then(|position| chain.get(position)) {
                if frontier < link.submitted {
                    (frontier, cause) = (link.submitted, Some(link.sequence));
                }
                newest = newest.max(Some(link.sequence));
            }
        }
        loop {
            let before = frontier;
            for (sector, (chain, shown)) in self.chains.iter().zip(&shown).enumerate() {
                // The first `required` links completed before the frontier: the last of them, or one after, must show.
                let required = chain.partition_point(|link| link.completed < frontier);
                if required == 0 {
                    continue;
                }
                let missing = |shown: Option<usize>| Violation::Missing {
                    sector: sector as u64,
                    missing: chain[required - 1].sequence,
                    shown: shown.and_then(|position| chain.get(position)).map(|link| link.sequence),
                    because_of: cause,
                };
                match *shown {
                    Some(position) if position + 1 >= required => {}
                    Some(position) => return Err(missing(Some(position))),
                    None => {
                        let Some(zeroing) = chain[required - 1..].iter().find(|link| link.zeroes) else {
                            return Err(missing(None));
                        };
                        if frontier < zeroing.submitted {
                            (frontier, cause) = (zeroing.submitted, Some(zeroing.sequence));
                        }
                    }
                }
            }
            if frontier == before {
                break;
            }
        }
        let must_contain = self.completions.partition_point(|tick| *tick < frontier) as u64;
        Ok(Verdict { frontier, must_contain, newest })
    }

    /// Judges an image that must hold exactly the first `prefix` writes: for a history of queue depth 1.
    ///
    /// # Errors
    /// The first violation found.
    pub fn check_prefix(&self, image: &[u8], prefix: u64) -> Result<(), Violation> {
        let shown = self.decode(image)?;
        for (sector, (chain, shown)) in self.chains.iter().zip(&shown).enumerate() {
            let expected = chain[..chain.partition_point(|link| link.sequence < prefix)].last();
            let expected_zeroes = expected.is_none_or(|link| link.zeroes);
            let found = shown.and_then(|position| chain.get(position));
            let holds = match found {
                None => expected_zeroes,
                Some(found) => {
                    !expected_zeroes && expected.is_some_and(|link| link.sequence == found.sequence)
                }
            };
            if !holds {
                let bytes = &image[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES];
                return Err(Violation::NotPrefix {
                    sector: sector as u64,
                    prefix,
                    expected: expected.map(|link| link.sequence),
                    shown: Sector::decode(bytes),
                });
            }
        }
        Ok(())
    }

    /// For each sector the position in its chain of the write it shows; `None` for zeroes.
    fn decode(&self, image: &[u8]) -> Result<Vec<Option<usize>>, Violation> {
        if image.len() != self.chains.len() * SECTOR_BYTES {
            let expected_bytes = (self.chains.len() * SECTOR_BYTES) as u64;
            return Err(Violation::Size { expected_bytes, found_bytes: image.len() as u64 });
        }
        let mut shown = Vec::with_capacity(self.chains.len());
        for (sector, (chain, bytes)) in self.chains.iter().zip(image.chunks_exact(SECTOR_BYTES)).enumerate() {
            let sector = sector as u64;
            shown.push(match Sector::decode(bytes) {
                Sector::Zeroes => None,
                Sector::Garbage => return Err(Violation::Garbage { sector }),
                Sector::Stamped(stamp) => {
                    let position = chain.binary_search_by_key(&stamp.sequence, |link| link.sequence);
                    match position {
                        Ok(position)
                            if stamp.run == self.run && stamp.sector == sector && !chain[position].zeroes =>
                        {
                            Some(position)
                        }
                        _ => return Err(Violation::Foreign { sector, stamp }),
                    }
                }
            });
        }
        Ok(shown)
    }
}
