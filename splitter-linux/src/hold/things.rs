//! Everything that is held at once: file systems frozen, volumes suspended, gates closed, in this order. What takes long comes
//! first, so that the others wait for it least; and to suspend a volume is to wait for I/O that a closed gate would keep.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_proto::v1::HoldMethod;
use tidemark_splitter_core::engine::Place;

use super::freeze;
use super::guard::Guard;
use super::message::Kind;
use super::plan::{FileSystem, Plan, Volume};
use super::resident;
use super::take::{Conduct, Gated};
use crate::gate::{self, GateError, Mapper, Page};

/// Times that what is dirty is written before a freeze is given up: writers outrun the disk.
const SYNCS_MAX: u32 = 3;

/// A file system and a descriptor of it.
struct Member<'a> {
    file_system: &'a FileSystem,
    file: File,
}

/// What is to be held, with all that is needed for it: nothing is opened once something is held.
pub(super) struct Things<'a> {
    file_systems: Vec<Member<'a>>,
    gates: Vec<Arc<Page>>,
    volumes: &'a [Volume],
    mapper: Option<Mapper>,
}

/// How far it came.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) place: Option<Place>,
    pub(super) hold_us: u64,
    pub(super) method: HoldMethod,
    pub(super) reasons: Vec<String>,
}

impl Held {
    /// There is a place, and everything stood still there without a break.
    pub(super) fn is_whole(&self) -> bool {
        self.place.is_some() && self.reasons.is_empty()
    }
}

/// Why something could not be held.
enum Refused<'a> {
    FileSystem(&'a FileSystem, io::Error),
    Volume(&'a Volume, io::Error),
    Gates(GateError),
}

/// What of it is held, to be let go in the reverse order.
#[derive(Default)]
struct Holding {
    frozen: usize,
    suspended: usize,
    gates: Option<gate::Hold>,
}

impl<'a> Things<'a> {
    /// Opens what the plan names.
    ///
    /// # Errors
    /// What cannot be reached.
    pub(super) fn open(plan: &'a Plan, gates: &[Gated]) -> Result<Self, Vec<String>> {
        let mut file_systems = Vec::with_capacity(plan.file_systems.len());
        let mut reasons = Vec::new();
        for file_system in &plan.file_systems {
            match open_one(file_system) {
                Some(file) => file_systems.push(Member { file_system, file }),
                None => reasons.push(format!("{} cannot be reached", file_system.path.display())),
            }
        }
        let wanted = gates.iter().filter(|gate| plan.gates.contains(&gate.volume));
        let gates = wanted.map(|gate| Arc::clone(&gate.page)).collect();
        let mapper = (!plan.volumes.is_empty()).then(Mapper::open).transpose();
        let mapper = mapper.unwrap_or_else(|error| {
            reasons.push(error.to_string());
            None
        });
        if reasons.is_empty() {
            Ok(Self { file_systems, gates, volumes: &plan.volumes, mapper })
        } else {
            Err(reasons)
        }
    }

    pub(super) fn count(&self) -> usize {
        self.file_systems.len() + self.gates.len() + self.volumes.len()
    }

    /// Nothing but file systems.
    pub(super) fn are_file_systems(&self) -> bool {
        self.gates.is_empty() && self.volumes.is_empty()
    }

    /// Something of it would stay held when this process dies.
    pub(super) fn need_watchdog(&self) -> bool {
        !self.file_systems.is_empty() || !self.volumes.is_empty()
    }

    fn method(&self) -> HoldMethod {
        if !self.file_systems.is_empty() {
            HoldMethod::Freeze
        } else if !self.volumes.is_empty() {
            HoldMethod::Suspend
        } else {
            HoldMethod::Gate
        }
    }

    /// Holds all, has `conduct` reserve the place, lets all go. From the first hold to the last release this thread makes no
    /// other call.
    pub(super) fn hold(&self, guard: Option<&Guard>, at_most: Duration, conduct: &mut impl Conduct) -> Held {
        let method = self.method();
        let mut held = Held { method, ..Held::default() };
        if let Err(reason) = self.arm(guard, at_most, conduct) {
            held.reasons.push(reason);
            return held;
        }
        freeze::be_io_flusher(true);
        let began = Instant::now();
        let mut holding = Holding::default();
        let refused = self.hold_all(&mut holding, began + at_most, at_most).err();
        let reserved = refused.is_none().then(|| conduct.held(method));
        let broken = self.let_go(holding);
        held.hold_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        freeze::be_io_flusher(false);
        held.reasons.extend(refused.map(|refused| refused.to_string()));
        held.reasons.extend(broken);
        match reserved {
            Some(Ok(place)) => held.place = Some(place),
            Some(Err(reason)) => held.reasons.push(reason),
            None => {}
        }
        held
    }

    /// Has the watchdog ready for all that does not let go by itself.
    fn arm(
        &self,
        guard: Option<&Guard>,
        at_most: Duration,
        conduct: &mut impl Conduct,
    ) -> Result<(), String> {
        let Some(guard) = guard.filter(|_| self.need_watchdog()) else { return Ok(()) };
        let file_systems = self.file_systems.iter().map(|one| (Kind::FileSystem, one.file.as_fd()));
        let mapper = self.mapper.as_ref();
        let volumes = self.volumes.iter().filter_map(|one| Some((Kind::Volume(one.number), mapper?.as_fd())));
        let things: Vec<(Kind, BorrowedFd<'_>)> = file_systems.chain(volumes).collect();
        guard.arm(&things)?;
        if !self.volumes.is_empty() {
            resident::make();
        }
        self.write_dirty(at_most)?;
        conduct.still_wanted()?;
        guard.begin()
    }

    /// What is dirty is written while nobody waits: a freeze stops writers first and then writes the rest, and no watchdog
    /// shortens that.
    fn write_dirty(&self, at_most: Duration) -> Result<(), String> {
        for _ in 0..SYNCS_MAX {
            let began = Instant::now();
            self.file_systems.iter().for_each(|one| freeze::sync(one.file.as_fd()));
            if began.elapsed() < at_most / 4 {
                return Ok(());
            }
        }
        Err(format!("more is written than could be frozen within {at_most:?}"))
    }

    fn hold_all(
        &self,
        holding: &mut Holding,
        deadline: Instant,
        at_most: Duration,
    ) -> Result<(), Refused<'a>> {
        let late = || -> io::Error { nix::Error::ETIMEDOUT.into() };
        for member in &self.file_systems {
            if Instant::now() >= deadline {
                return Err(Refused::FileSystem(member.file_system, late()));
            }
            freeze::freeze(member.file.as_fd())
                .map_err(|error| Refused::FileSystem(member.file_system, error))?;
            holding.frozen += 1;
        }
        for volume in self.volumes {
            let Some(mapper) = &self.mapper else { break };
            if Instant::now() >= deadline {
                return Err(Refused::Volume(volume, late()));
            }
            // Somebody else's: to let it go would be to end what they are about.
            let standing = mapper.standing(volume.number).map_err(|error| Refused::Volume(volume, error))?;
            if standing.suspended || standing.changing {
                return Err(Refused::Volume(volume, nix::Error::EBUSY.into()));
            }
            mapper.suspend(volume.number).map_err(|error| Refused::Volume(volume, error))?;
            holding.suspended += 1;
        }
        if !self.gates.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now()).min(at_most);
            holding.gates = Some(gate::Hold::begin(self.gates.clone(), left).map_err(Refused::Gates)?);
        }
        Ok(())
    }

    /// Lets go what is held. What was let go by somebody else before is named: nothing is proven then.
    fn let_go(&self, holding: Holding) -> Vec<String> {
        let gates = holding.gates.map(gate::Hold::release);
        let mut resumed = None;
        for volume in self.volumes.iter().take(holding.suspended).rev() {
            let Some(mapper) = &self.mapper else { break };
            let kept = mapper.standing(volume.number).is_ok_and(|now| now.suspended && !now.changing);
            if mapper.resume(volume.number).is_err() || !kept {
                resumed = Some(volume);
            }
        }
        let mut thawed = None;
        for member in self.file_systems.iter().take(holding.frozen).rev() {
            if freeze::thaw(member.file.as_fd()).is_err() {
                thawed = Some(member.file_system);
            }
        }
        // Written down only now, when nobody waits.
        let mut broken = Vec::new();
        broken.extend(resumed.map(|one| format!("somebody else resumed or changed {} meanwhile", one.name)));
        broken.extend(gates.and_then(Result::err).map(|error| error.to_string()));
        broken.extend(thawed.map(|one| format!("somebody else thawed {} meanwhile", one.path.display())));
        broken
    }
}

/// Another file system may be mounted over the place: the number tells.
fn open_one(file_system: &FileSystem) -> Option<File> {
    let same = |file: &File| {
        let Ok(found) = file.metadata() else { return false };
        let number = (nix::sys::stat::major(found.dev()), nix::sys::stat::minor(found.dev()));
        // Each subvolume of a btrfs has its own.
        number == file_system.number || file_system.kind == "btrfs"
    };
    let open =
        |path| File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok();
    file_system.reached_by.iter().filter_map(open).find(same)
}

impl std::fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FileSystem(one, error) => {
                let (path, kind) = (one.path.display(), &one.kind);
                match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP) => {
                        write!(f, "{path} cannot be frozen: {kind} does not support it")
                    }
                    Some(libc::EBUSY) => write!(f, "{path} is frozen by somebody else"),
                    Some(libc::ETIMEDOUT) => write!(f, "{path} could not be frozen in time"),
                    _ => write!(f, "{path} ({kind}) cannot be frozen: {error}"),
                }
            }
            Self::Volume(one, error) if error.raw_os_error() == Some(libc::EBUSY) => {
                write!(f, "the volume {} is suspended or being changed by somebody else", one.name)
            }
            Self::Volume(one, error) => write!(f, "the volume {} cannot be suspended: {error}", one.name),
            Self::Gates(error) => write!(f, "{error}"),
        }
    }
}
