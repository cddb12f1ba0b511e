//! Which restores run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// Restores at once at most: each reads and hashes as fast as it can. Further ones are refused.
const RESTORES_MAX: usize = 16;

/// The restores that run, by their grants. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Restores(Arc<Mutex<HashMap<String, CancellationToken>>>);

/// Why no restore begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum NotBegun {
    #[error("a restore with this grant is running: wait for it, or end it with `tidemark grant revoke`")]
    Used,
    #[error("{RESTORES_MAX} restores are running, which is the most: try again when one has ended")]
    TooMany,
}

impl Restores {
    /// Begins one; it counts until the guard is dropped.
    pub(super) fn begin(&self, grant: &str) -> Result<Running, NotBegun> {
        let Ok(mut running) = self.0.lock() else { return Err(NotBegun::TooMany) };
        if running.contains_key(grant) {
            return Err(NotBegun::Used);
        }
        if running.len() >= RESTORES_MAX {
            return Err(NotBegun::TooMany);
        }
        let revoked = CancellationToken::new();
        running.insert(grant.to_owned(), revoked.clone());
        Ok(Running { grant: grant.to_owned(), revoked, all: self.clone() })
    }

    /// Ends the restore of a grant. Returns whether there was one.
    #[must_use]
    pub fn end(&self, grant: &str) -> bool {
        let running = self.0.lock().ok().and_then(|running| running.get(grant).cloned());
        running.inspect(CancellationToken::cancel).is_some()
    }
}

/// A restore that runs.
#[derive(Debug)]
pub(super) struct Running {
    grant: String,
    /// Cancelled when its grant is revoked.
    pub(super) revoked: CancellationToken,
    all: Restores,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(mut running) = self.all.0.lock() {
            running.remove(&self.grant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_used_once_at_a_time_and_its_end_reaches_who_uses_it() {
        let restores = Restores::default();
        let running = restores.begin("a").unwrap();
        assert_eq!(restores.begin("a").unwrap_err(), NotBegun::Used);
        assert!(!restores.end("b"));
        assert!(restores.end("a") && running.revoked.is_cancelled());
        drop(running);
        assert!(!restores.begin("a").unwrap().revoked.is_cancelled());
        let all: Vec<_> = (0..RESTORES_MAX).map(|n| restores.begin(&n.to_string()).unwrap()).collect();
        assert_eq!(restores.begin("more").unwrap_err(), NotBegun::TooMany);
        drop(all);
        restores.begin("more").unwrap();
    }
}
