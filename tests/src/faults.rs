//! Splitters that lie: the product's own daemon around a ring that loses or swaps writes. The oracles must notice.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tidemark_proto::ids::CaptureId;
use tidemark_proto::v1::WriteKind;
use tidemark_splitter::capture::LinuxCapture;
use tidemark_splitter::daemon::KernelSide;
use tidemark_splitter_core::capture::{Event, Issue, Parts, Piece, Ring, RingError, Unit};
use tidemark_splitter_core::engine::Kernel;

/// Says to `tidemark-splitter-faulty` what is to be wrong with it.
pub const FAULT_VARIABLE: &str = "TIDEMARK_FAULT";

/// Names the file that stops a stuck splitter.
pub const STUCK_VARIABLE: &str = "TIDEMARK_STUCK";

/// One write in so many is lost or swapped: often enough for a short run, seldom enough that most of it is right.
const EVERY: u64 = 8;

/// How long the first of two writes that are to change places is held back for the second.
const SECOND_WRITE: Duration = Duration::from_millis(100);

/// What is wrong with the splitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// A write and its completion never come out of the ring.
    Omit,
    /// Two writes of one length change places, although the second was submitted after the first had completed.
    Swap,
    /// The worker stands still while the file named by [`STUCK_VARIABLE`] exists.
    Stuck,
}

/// Lends the engine a ring with a fault.
#[derive(Debug)]
pub struct FaultyKernel {
    fault: Fault,
    writes: u64,
    /// Of the write that is being omitted.
    omitted: Option<u64>,
    /// Read ahead, to be given out next.
    ahead: VecDeque<Copied>,
    current: Option<Copied>,
    stuck_by: Option<PathBuf>,
}

impl FaultyKernel {
    /// Nothing was lost yet.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        let stuck_by = std::env::var_os(STUCK_VARIABLE).map(PathBuf::from);
        Self { fault, writes: 0, omitted: None, ahead: VecDeque::new(), current: None, stuck_by }
    }

    /// Counts data writes; true for the one to be lost or swapped.
    fn strikes(&mut self, event: &Event<'_>) -> bool {
        let data = matches!(event, Event::Issue(issue) if issue.kind == WriteKind::Data);
        self.writes += u64::from(data);
        data && self.writes.is_multiple_of(EVERY)
    }

    fn omits(&mut self, event: &Event<'_>) -> bool {
        match event {
            Event::Complete { request, .. } if self.omitted == Some(*request) => {
                self.omitted = None;
                true
            }
            Event::Issue(issue) if self.omitted.is_none() && self.strikes(event) => {
                self.omitted = Some(issue.request);
                true
            }
            _ => false,
        }
    }

    /// Reads on from the issue `first` to the next one of its length and lets the two change places, if one comes in time.
    fn swap(&mut self, first: Copied, inner: &mut dyn Ring) -> Result<(), RingError> {
        let first_at = self.ahead.len();
        self.ahead.push_back(first);
        let began = Instant::now();
        loop {
            let Some(unit) = inner.next()? else {
                if began.elapsed() > SECOND_WRITE {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            self.ahead.push_back(Copied::of(&unit));
            let second_at = self.ahead.len() - 1;
            if let (Some(a), Some(b)) = (self.ahead.get(first_at), self.ahead.get(second_at))
                && let (Event::Issue(first), Event::Issue(second)) = (a.event, b.event)
                && second.kind == WriteKind::Data
                && second.slot == first.slot
                && second.sectors == first.sectors
            {
                // Each keeps its place, its request and its time, and has the other's content.
                let (a, b) = (a.with_content_of(b), b.with_content_of(a));
                for (at, copied) in [(first_at, a), (second_at, b)] {
                    if let Some(place) = self.ahead.get_mut(at) {
                        *place = copied;
                    }
                }
                return Ok(());
            }
        }
    }
}

impl KernelSide for FaultyKernel {
    fn lend(&mut self, capture: &mut LinuxCapture, work: &mut dyn FnMut(&mut Kernel<'_>)) {
        while self.stuck_by.as_ref().is_some_and(|file| file.exists()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut ring = FaultyRing { faulty: self, inner: &mut capture.ring };
        work(&mut Kernel { ring: &mut ring, control: &mut capture.control, dirty: &mut capture.maps });
    }
}

/// A unit with memory of its own.
#[derive(Debug, Clone)]
struct Copied {
    start: u64,
    end: u64,
    generation: u32,
    /// Of an issue, without its content.
    event: Event<'static>,
    memory: Vec<u8>,
    pieces: [Piece; 1],
}

impl Copied {
    fn of(unit: &Unit<'_>) -> Self {
        let mut memory = Vec::new();
        let event = match unit.event {
            Event::Issue(issue) => {
                memory = issue.parts.iter().flatten().copied().collect();
                Event::Issue(Issue { parts: Parts::EMPTY, ..issue })
            }
            Event::Complete { request, slot, kind, start_sector, sectors, failed, bytes } => {
                Event::Complete { request, slot, kind, start_sector, sectors, failed, bytes }
            }
            Event::Requeue { request } => Event::Requeue { request },
            Event::Voided { request, slot, start_sector, sectors } => {
                Event::Voided { request, slot, start_sector, sectors }
            }
        };
        let pieces = [Piece { offset: 0, length: memory.len() }];
        Self { start: unit.start, end: unit.end, generation: unit.generation, event, memory, pieces }
    }

    fn with_content_of(&self, other: &Self) -> Self {
        let event = match (self.event, other.event) {
            (Event::Issue(own), Event::Issue(theirs)) => {
                Event::Issue(Issue { start_sector: theirs.start_sector, ..own })
            }
            (own, _) => own,
        };
        Self { event, memory: other.memory.clone(), pieces: other.pieces, ..*self }
    }

    fn unit(&self) -> Unit<'_> {
        let event = match self.event {
            Event::Issue(issue) => {
                Event::Issue(Issue { parts: Parts::new(&self.memory, &self.pieces), ..issue })
            }
            other => other,
        };
        Unit { start: self.start, end: self.end, generation: self.generation, event }
    }
}

struct FaultyRing<'a> {
    faulty: &'a mut FaultyKernel,
    inner: &'a mut dyn Ring,
}

impl Ring for FaultyRing<'_> {
    fn capture_id(&self) -> CaptureId {
        self.inner.capture_id()
    }
    fn producer(&self) -> u64 {
        self.inner.producer()
    }
    fn consumer(&self) -> u64 {
        self.inner.consumer()
    }
    fn position(&self) -> u64 {
        self.faulty.ahead.front().map_or_else(|| self.inner.position(), |next| next.start)
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn oldest_open(&self) -> Option<u64> {
        self.inner.oldest_open()
    }
    fn abandon_open(&mut self) {
        self.inner.abandon_open();
    }
    fn seek(&mut self, position: u64) -> Result<(), RingError> {
        self.faulty.ahead.clear();
        self.inner.seek(position)
    }

    fn next(&mut self) -> Result<Option<Unit<'_>>, RingError> {
        while self.faulty.ahead.is_empty() {
            let Some(unit) = self.inner.next()? else { return Ok(None) };
            let fault = self.faulty.fault;
            match fault {
                Fault::Omit if self.faulty.omits(&unit.event) => {}
                Fault::Swap if self.faulty.strikes(&unit.event) => {
                    let first = Copied::of(&unit);
                    self.faulty.swap(first, self.inner)?;
                }
                _ => self.faulty.ahead.push_back(Copied::of(&unit)),
            }
        }
        self.faulty.current = self.faulty.ahead.pop_front();
        Ok(self.faulty.current.as_ref().map(Copied::unit))
    }

    fn release(&mut self, position: u64) {
        self.inner.release(position);
    }
}
