//! What keeps points from being folded away: pins, and the cutoff above which everything stays.

use tidemark_proto::ids::Lsn;

use super::{Journal, lock};
use crate::error::RetentionError;
use crate::manifest::{Keep, Record, State};
use crate::options::limits::{NOTE_KEY_MAX_BYTES, PINS_MAX};
use crate::records::{Pin, PinKind};

/// Whether a pin holds at a time.
fn holds(pin: &Pin, now_us: u64) -> bool {
    pin.until_us.is_none_or(|until| now_us < until)
}

/// Whether a snapshot of its point is all that the pin asks for.
fn keeps_a_point(pin: &Pin) -> bool {
    matches!(pin.kind, PinKind::Bookmark | PinKind::Lock | PinKind::Clone)
}

/// The pin that keeps a snapshot at a time, if any.
pub(super) fn keeper(state: &State, lsn: Lsn, now_us: u64) -> Option<&Pin> {
    let mut pins = state.pins.values();
    pins.find(|pin| pin.lsn == lsn && keeps_a_point(pin) && holds(pin, now_us))
}

/// The lock of that name, if it still stands.
fn standing_lock<'a>(state: &'a State, name: &str, now_us: u64) -> Option<(&'a Pin, u64)> {
    let pin = state.pins.get(name).filter(|pin| pin.kind == PinKind::Lock && holds(pin, now_us))?;
    pin.until_us.map(|until| (pin, until))
}

impl Journal {
    /// Sets a pin, durably. From then on no cutoff passes its LSN while it holds. `now_us` is the caller's time, which
    /// counts only as far as it does not go back.
    ///
    /// # Errors
    /// [`RetentionError::Gone`] below the cutoff; [`RetentionError::Locked`] when it would weaken a lock that stands.
    pub fn put_pin(&self, pin: Pin, now_us: u64) -> Result<(), RetentionError> {
        if pin.name.is_empty() || pin.name.len() > NOTE_KEY_MAX_BYTES || pin.until_us == Some(0) {
            return Err(RetentionError::Invalid("the pin has no name, a long one, or ends at 0".to_owned()));
        }
        if pin.kind == PinKind::Lock && pin.until_us.is_none() {
            return Err(RetentionError::Invalid("a retention lock needs a time at which it ends".to_owned()));
        }
        let _syncing = lock(&self.syncing);
        let now_us = {
            let manifest = lock(&self.manifest);
            let state = manifest.state();
            let now_us = now_us.max(state.clock_us);
            if let Some((locked, until_us)) = standing_lock(state, &pin.name, now_us) {
                let weaker =
                    pin.kind != PinKind::Lock || pin.lsn > locked.lsn || pin.until_us < Some(until_us);
                if weaker {
                    return Err(RetentionError::Locked { name: pin.name, until_us });
                }
            }
            let kept = keeps_a_point(&pin) && state.kept.contains_key(&pin.lsn);
            if pin.lsn < state.cutoff && !kept {
                return Err(RetentionError::Gone { cutoff: state.cutoff });
            }
            if state.pins.len() >= PINS_MAX && !state.pins.contains_key(&pin.name) {
                return Err(RetentionError::Invalid(format!("the journal has {PINS_MAX} pins already")));
            }
            now_us
        };
        Ok(self.put_record(&Record::Keep(now_us, Keep::Pin(pin)))?)
    }

    /// Takes a pin away, durably. One that is not there is no error.
    ///
    /// # Errors
    /// [`RetentionError::Locked`] for a lock that stands.
    pub fn revoke_pin(&self, name: &str, now_us: u64) -> Result<(), RetentionError> {
        let _syncing = lock(&self.syncing);
        let now_us = {
            let manifest = lock(&self.manifest);
            let state = manifest.state();
            let now_us = now_us.max(state.clock_us);
            if let Some((_, until_us)) = standing_lock(state, name, now_us) {
                return Err(RetentionError::Locked { name: name.to_owned(), until_us });
            }
            if !state.pins.contains_key(name) {
                return Ok(());
            }
            now_us
        };
        Ok(self.put_record(&Record::Keep(now_us, Keep::Revoked(name.to_owned())))?)
    }

    /// All pins that were not revoked, by name. They may have ended.
    #[must_use]
    pub fn pins(&self) -> Vec<Pin> {
        lock(&self.manifest).state().pins.values().cloned().collect()
    }

    /// Points below are given up: they may be folded away at any time, and no pin can be set there.
    #[must_use]
    pub fn cutoff(&self) -> Lsn {
        lock(&self.manifest).state().cutoff
    }

    /// Gives up the points below `policy`, as far as every pin allows and they are durable. The new cutoff is durable
    /// when this returns it; it never goes back. Pins that have ended are removed.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn advance_cutoff(&self, policy: Lsn, now_us: u64) -> Result<Lsn, RetentionError> {
        let durable = self.durable().lsn;
        let _syncing = lock(&self.syncing);
        let (now_us, cutoff, before, ended) = {
            let manifest = lock(&self.manifest);
            let state = manifest.state();
            let now_us = now_us.max(state.clock_us);
            let (held, ended): (Vec<_>, Vec<_>) = state.pins.values().partition(|pin| holds(pin, now_us));
            let needs_log = |pin: &&&Pin| !(keeps_a_point(pin) && state.kept.contains_key(&pin.lsn));
            let pinned = held.iter().filter(needs_log).map(|pin| pin.lsn).min().unwrap_or(policy);
            let cutoff = policy.min(pinned).min(durable).max(state.cutoff);
            let ended: Vec<String> = ended.iter().map(|pin| pin.name.clone()).collect();
            (now_us, cutoff, state.cutoff, ended)
        };
        for name in ended {
            self.put_record(&Record::Keep(now_us, Keep::Revoked(name)))?;
        }
        if cutoff > before {
            self.put_record(&Record::Keep(now_us, Keep::Cutoff(cutoff)))?;
        }
        Ok(cutoff)
    }
}
