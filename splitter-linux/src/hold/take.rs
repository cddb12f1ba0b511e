//! One hold, from the first look to the last thaw hook.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemark_proto::limits::{HOLD_MAX_MS, QUIESCE_MAX_MS, TEXT_MAX_BYTES};
use tidemark_proto::v1::{Consistency, HoldMethod};
use tidemark_splitter_core::engine::{Achieved, Place};

use super::guard::{Guard, Watched};
use super::hooks::{self, Hooks};
use super::plan::{Means, Plan, plan};
use super::things::{Held, Things};
use crate::disks::Disk;
use crate::gate::Page;

/// A gate that may hold.
#[derive(Debug, Clone)]
pub struct Gated {
    /// Device-mapper's name of its volume.
    pub volume: String,
    pub(crate) page: Arc<Page>,
}

impl Gated {
    pub(crate) fn new(volume: String, page: &Arc<Page>) -> Self {
        Self { volume, page: Arc::clone(page) }
    }
}

/// What is to be held.
#[derive(Debug)]
pub struct Hold {
    /// The protected disks.
    pub disks: Vec<Disk>,
    /// The level that is asked for. Above crash, file systems are frozen; for crash whatever holds for the shortest time.
    pub wanted: Consistency,
    /// A lower level will do: file systems are frozen also where hooks fail.
    pub allow_lower: bool,
    /// For crash: file systems may be frozen where nothing better holds.
    pub freeze: bool,
    /// The volumes that have a gate.
    pub gates: Vec<Gated>,
    /// How long it may last; [`HOLD_MAX_MS`] at most.
    pub at_most: Duration,
    /// The folder of hooks.
    pub hooks: PathBuf,
}

/// Who takes a hold: what is to happen at each of its steps. Called on the hold's own thread.
pub trait Conduct {
    /// The freeze hooks are done with, and what of them failed. Returns when everything is to be held.
    ///
    /// # Errors
    /// Why nothing is to be held.
    fn quiesced(&mut self, problem: Option<&str>) -> Result<(), String>;

    /// Asked right before anything is held.
    ///
    /// # Errors
    /// Why nothing is to be held after all.
    fn still_wanted(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Everything stands still. Returns when it is to be let go, with the place in the stream that was reserved meanwhile.
    /// Writers wait for it: it takes a moment, and neither opens, writes nor logs anything.
    ///
    /// # Errors
    /// Why there is no place.
    fn held(&mut self, method: HoldMethod) -> Result<Place, String>;

    /// Everything was let go, and this came of it.
    fn settled(&mut self, taken: Taken);

    /// The hold was whole. Returns when the thaw hooks are to run.
    fn thaws(&mut self) {}
}

/// What came of it.
#[derive(Debug)]
pub struct Taken {
    /// The place in the stream where everything stood still, or was meant to.
    pub place: Option<Place>,
    /// Everything stood still there without a break.
    pub whole: bool,
    /// How: the weakest of all means that were used.
    pub method: HoldMethod,
    /// What was achieved there.
    pub achieved: Achieved,
}

impl Hold {
    /// Holds, reserves, lets go, and tells what came of it as soon as that is known; then the thaw hooks run.
    /// Returns what of them failed, for the log. Takes up to a minute, of which writers are held for [`HOLD_MAX_MS`] at
    /// most.
    pub fn take(self, conduct: &mut impl Conduct) -> Vec<String> {
        let planned = plan(&self.disks, &self.means());
        let opened = if planned.obstacles.is_empty() {
            Things::open(&planned, &self.gates)
        } else {
            Err(planned.obstacles.clone())
        };
        let things = match opened {
            Ok(things) => things,
            Err(reasons) => {
                conduct.settled(taken(Consistency::Crash, Held { reasons, ..Held::default() }));
                return Vec::new();
            }
        };
        let at_most = self.at_most.min(Duration::from_millis(HOLD_MAX_MS.into()));
        // A gate lets go by itself.
        let guard = (self.wanted > Consistency::Crash || things.need_watchdog())
            .then(|| Guard::start(Duration::from_millis(QUIESCE_MAX_MS.into()), at_most))
            .transpose();
        let guard = match guard {
            Ok(guard) => guard,
            Err(reason) => {
                conduct.settled(taken(Consistency::Crash, Held { reasons: vec![reason], ..Held::default() }));
                return Vec::new();
            }
        };
        let watchdog = guard.as_ref().map(Guard::pid);
        tracing::debug!(watchdog, things = things.count(), "holding still for a bookmark");
        self.guarded(&planned, &things, guard, at_most, conduct)
    }

    fn guarded(
        &self,
        planned: &Plan,
        things: &Things<'_>,
        guard: Option<Guard>,
        at_most: Duration,
        conduct: &mut impl Conduct,
    ) -> Vec<String> {
        let mut owed = Vec::new();
        let quiesced = match (self.wanted, &guard) {
            (Consistency::Application, Some(guard)) => quiesce(&hooks::find(&self.hooks), guard, &mut owed),
            _ => Ok(()),
        };
        let mut held = match &quiesced {
            // Nobody waits in vain.
            Err(_) if !self.allow_lower => Held::default(),
            quiesced => match conduct.quiesced(quiesced.as_ref().err().map(String::as_str)) {
                Err(reason) => Held { reasons: vec![reason], ..Held::default() },
                Ok(()) => things.hold(guard.as_ref(), at_most, conduct),
            },
        };
        // Asked before the level is told: a watchdog that fired let writers or applications go.
        let watched = guard.as_ref().map_or(Watched::Kept, Guard::thawed);
        if watched != Watched::Kept && held.reasons.is_empty() {
            held.reasons.push(match watched {
                Watched::Silent => "the watchdog did not answer: what it let go is not known".to_owned(),
                _ => "the watchdog let go: the hold took too long".to_owned(),
            });
        }
        // Hooks and other machines may have taken a minute since the first look.
        if held.is_whole() && !plan(&self.disks, &self.means()).is_as(planned) {
            held.reasons.push("what writes to the disks changed meanwhile".to_owned());
        }
        let whole = held.is_whole();
        let level = match (whole, &quiesced) {
            (false, _) => Consistency::Crash,
            // Nothing but file systems was held, so all of them are clean.
            (true, Err(_)) => Consistency::Filesystem,
            (true, Ok(())) if things.are_file_systems() => self.wanted.max(Consistency::Filesystem),
            (true, Ok(())) => Consistency::Crash,
        };
        held.reasons.extend(quiesced.err());
        conduct.settled(Taken { whole, ..taken(level, held) });
        if whole && !owed.is_empty() {
            conduct.thaws();
        }
        // A hook may thaw twice, never not at all.
        let failed = if watched == Watched::Fired { Vec::new() } else { hooks::thaw(&owed) };
        if let Some(guard) = guard {
            guard.disarm();
        }
        failed
    }

    fn means(&self) -> Means {
        if self.wanted > Consistency::Crash {
            return Means::freezing();
        }
        let gates = self.gates.iter().map(|gate| gate.volume.clone()).collect();
        Means { freeze: self.freeze, suspend: true, gates }
    }
}

fn taken(consistency: Consistency, held: Held) -> Taken {
    let mut reason = held.reasons.join("; ");
    while reason.len() > TEXT_MAX_BYTES {
        reason.pop();
    }
    let achieved = Achieved { consistency, hold_us: held.hold_us, reason };
    Taken { place: held.place, whole: false, method: held.method, achieved }
}

/// Runs the freeze hooks. `owed` are those whose thaw must follow.
fn quiesce(found: &Hooks, guard: &Guard, owed: &mut Vec<PathBuf>) -> Result<(), String> {
    if !found.refused.is_empty() {
        return Err(found.refused.join("; "));
    }
    if found.run.is_empty() {
        return Err("no freeze hook is installed".to_owned());
    }
    hooks::freeze(&found.run, |hook| {
        guard.owe(hook)?;
        owed.push(hook.to_owned());
        Ok(())
    })
}
