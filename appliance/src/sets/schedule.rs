//! Automatic points: each set at its interval, by one task for all.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limits::Limits;
use super::point::{NotTaken, Wish, take};
use super::thin::thin;
use super::{Set, all, candidates};
use crate::core::Core;

/// How often the sets are looked at though nobody said that they changed, and after a catalog that does not answer.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Points of one appliance that are taken at the same time at most: each looks at all VMs. Others wait for their next turn.
const PARALLEL_MAX: usize = 64;

/// What the points of sets share.
#[derive(Debug, Default)]
pub struct Points {
    /// How often they may be asked for.
    pub limits: Limits,
    /// Sets changed.
    changed: Notify,
    /// Sets of which an automatic point is being taken.
    running: Mutex<HashSet<String>>,
}

/// Ends a set's turn when dropped.
struct Turn {
    core: Arc<Core>,
    set: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Ok(mut running) = self.core.points.running.lock() {
            running.remove(&self.set);
        }
    }
}

impl Points {
    /// Has the task look at the sets again.
    pub fn sets_changed(&self) {
        self.changed.notify_one();
    }

    /// Begins a set's turn; `None` while the one before goes on, or too many others do.
    fn begin(core: &Arc<Core>, set: &str) -> Option<Turn> {
        let mut running = core.points.running.lock().ok()?;
        let free = running.len() < PARALLEL_MAX && running.insert(set.to_owned());
        free.then(|| Turn { core: Arc::clone(core), set: set.to_owned() })
    }

    /// Takes automatic points and thins them, until `ending`.
    pub async fn work(core: Arc<Core>, ending: CancellationToken) {
        let (mut due, mut sets) = (Due::default(), Vec::new());
        let mut look = Instant::now();
        let mut thinning = tokio::spawn(async {});
        loop {
            if Instant::now() >= look {
                look = Instant::now() + LOOK_INTERVAL;
                match all(&core.catalog).await {
                    Ok(found) => sets = found,
                    Err(error) => {
                        tracing::error!(%error, "cannot look at the sets: points are taken as before")
                    }
                }
                due.set(&sets, Instant::now());
                if thinning.is_finished() {
                    thinning = tokio::spawn(thin(Arc::clone(&core), sets.clone()));
                }
            }
            for name in due.take(Instant::now()) {
                if let Some(set) = sets.iter().find(|set| set.name == name)
                    && let Some(turn) = Self::begin(&core, &name)
                {
                    core.tasks.spawn(automatic(Arc::clone(&core), set.clone(), turn));
                }
            }
            let next = due.next().map_or(look, |next| next.min(look));
            tokio::select! {
                () = ending.cancelled() => return,
                () = core.stopping.cancelled() => return,
                () = core.points.changed.notified() => look = Instant::now(),
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

/// One automatic point, unless nobody is there.
async fn automatic(core: Arc<Core>, set: Set, _turn: Turn) {
    let name = set.name.clone();
    match candidates(&core.catalog, &core.fleet).await {
        Ok(vms) if vms.iter().any(|vm| set.has(vm) && vm.vm.session().is_some()) => {}
        Ok(_) => return,
        Err(error) => return tracing::error!(set = name, %error, "cannot look at the members of a set"),
    }
    match take(&core, &Wish::automatic(set)).await {
        Ok(point) => {
            tracing::debug!(set = name, cut = point.cut, hold_us = point.hold_us(), "automatic point")
        }
        Err(NotTaken::Catalog(error)) => {
            tracing::error!(set = name, %error, "cannot store an automatic point")
        }
        Err(error) => tracing::debug!(set = name, %error, "no automatic point"),
    }
}

/// When each set's next point is due.
#[derive(Debug, Default)]
struct Due(HashMap<String, (Duration, Instant)>);

impl Due {
    /// Keeps the rhythm of sets whose interval stays.
    fn set(&mut self, sets: &[Set], now: Instant) {
        let before = std::mem::take(&mut self.0);
        for set in sets.iter().filter(|set| !set.every.is_zero()) {
            let kept = before.get(&set.name).filter(|(every, _)| *every == set.every).map(|(_, next)| *next);
            let next = kept.unwrap_or(now + set.every);
            self.0.insert(set.name.clone(), (set.every, next));
        }
    }

    /// The sets that are due. What was missed is not made up for, and the rhythm stays.
    fn take(&mut self, now: Instant) -> Vec<String> {
        let mut names = Vec::new();
        for (name, (every, next)) in self.0.iter_mut().filter(|(_, (_, next))| *next <= now) {
            let late = now.duration_since(*next).as_micros();
            let turns = late / every.as_micros().max(1) + 1;
            *next += every.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX));
            names.push(name.clone());
        }
        names
    }

    fn next(&self) -> Option<Instant> {
        self.0.values().map(|(_, next)| *next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Pointing, SetRow};

    fn set(name: &str, every_us: u64) -> Set {
        let pointing = Pointing { every_us, hold: "free".into(), order: Vec::new() };
        Set::of(&SetRow::new(name.into(), &[], String::new(), 1, &pointing))
    }

    #[test]
    fn the_rhythm_stays_whatever_was_missed_and_zero_is_never() {
        let (mut due, start) = (Due::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        due.set(&[set("a", 100_000), set("never", 0)], start);
        assert!(due.take(at(99)).is_empty());
        assert_eq!((due.take(at(103)), due.next()), (vec!["a".to_owned()], Some(at(200))));
        assert_eq!(
            (due.take(at(555)), due.next()),
            (vec!["a".to_owned()], Some(at(600))),
            "once, not four times"
        );
        due.set(&[set("a", 100_000), set("b", 50_000)], at(560));
        assert_eq!(due.next(), Some(at(600)), "another look changes nothing");
        due.set(&[set("a", 70_000)], at(570));
        assert_eq!(due.next(), Some(at(640)));
        due.set(&[], at(580));
        assert!(due.next().is_none());
    }
}
