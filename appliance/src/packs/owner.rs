//! Which appliance a place belongs to. The object `owner` is written under a free name, so of two appliances one wins.
//! Each start of the same appliance replaces it with a session of its own: a copy of the data folder that still runs
//! elsewhere finds out before it writes or deletes anything again.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemark_journal::storage::{StorageError, StorageErrorKind};

use super::error::refused;
use super::{PacksError, Remote, limits};

const OBJECT: &str = "owner";
const VERSION: u32 = 1;

/// Bytes of the object at most; a longer one is not ours.
const CLAIM_MAX_BYTES: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    version: u32,
    /// Hexadecimal SHA-256 of the CA.
    appliance: String,
    /// Random, fresh for every start.
    session: String,
    /// For people.
    host: String,
    /// Microseconds since 1970.
    claimed_us: u64,
}

/// The right to write and to delete below a prefix.
#[derive(Debug)]
pub(super) struct Owner {
    session: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    checked: Instant,
    lost: bool,
}

fn read(remote: &Remote) -> Result<Claim, PacksError> {
    let foreign = || PacksError::Foreign(OBJECT.to_owned());
    let bytes = remote.get(OBJECT)?;
    if bytes.len() > CLAIM_MAX_BYTES {
        return Err(foreign());
    }
    serde_json::from_slice::<Claim>(&bytes).ok().filter(|claim| claim.version == VERSION).ok_or_else(foreign)
}

impl Owner {
    /// Takes the place for the appliance with this id.
    pub(super) fn claim(
        remote: &Remote,
        appliance: &str,
        host: &str,
        now_us: u64,
    ) -> Result<Self, PacksError> {
        let claim = Claim {
            version: VERSION,
            appliance: appliance.to_owned(),
            session: uuid::Uuid::new_v4().to_string(),
            host: host.to_owned(),
            claimed_us: now_us,
        };
        let bytes = Bytes::from(
            serde_json::to_vec(&claim)
                .map_err(|error| refused(StorageErrorKind::Failed, "encode", OBJECT, error.to_string()))?,
        );
        match remote.put_new(OBJECT, bytes.clone()) {
            Ok(()) => {}
            Err(error) if error.kind() == StorageErrorKind::Exists => {
                let found = read(remote)?;
                if found.appliance != appliance {
                    return Err(PacksError::Owned {
                        place: remote.place().to_owned(),
                        host: found.host,
                        appliance: found.appliance.chars().take(16).collect(),
                        object: OBJECT.to_owned(),
                    });
                }
                remote.put_over(OBJECT, bytes)?;
            }
            Err(error) => return Err(error.into()),
        }
        let state = State { checked: Instant::now(), lost: false };
        Ok(Self { session: claim.session, state: Mutex::new(state) })
    }

    /// Whether the place is still ours, as of [`limits::OWNER_CHECK`] ago or later.
    ///
    /// # Errors
    /// [`StorageErrorKind::Locked`] once it is not; when the storage fails.
    pub(super) fn check(&self, remote: &Remote) -> Result<(), StorageError> {
        let lost = || {
            let text = format!(
                "another start of this appliance, from a copy of its data folder, has taken {}: stop one of them",
                remote.place()
            );
            refused(StorageErrorKind::Locked, "check the owner of", OBJECT, text)
        };
        {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.lost {
                return Err(lost());
            }
            if state.checked.elapsed() < limits::OWNER_CHECK {
                return Ok(());
            }
        }
        let asked = Instant::now();
        let ours = match read(remote) {
            Ok(claim) => claim.session == self.session,
            Err(PacksError::Storage(error)) if error.kind() != StorageErrorKind::Missing => {
                return Err(error);
            }
            Err(_) => false,
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if ours {
            state.checked = state.checked.max(asked);
            Ok(())
        } else {
            state.lost = true;
            Err(lost())
        }
    }

    /// Makes the next check look.
    #[cfg(test)]
    pub(super) fn forget_check(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = Instant::now().checked_sub(limits::OWNER_CHECK) {
            state.checked = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::packs::ObjectPlace;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_first_appliance_wins_and_a_later_start_of_it_takes_over() {
        let objects = Arc::new(InMemory::new());
        let place = ObjectPlace { bucket: "bucket".to_owned(), prefix: "a".to_owned() };
        let remote = Remote::new(objects, tokio::runtime::Handle::current(), &place);
        tokio::task::spawn_blocking(move || {
            let first = Owner::claim(&remote, "one", "host-1", 7).unwrap();
            let other = Owner::claim(&remote, "two", "host-2", 8).unwrap_err().to_string();
            assert!(other.contains("host-1") && other.contains("another prefix"), "{other}");
            first.forget_check();
            first.check(&remote).unwrap();
            let second = Owner::claim(&remote, "one", "host-3", 9).unwrap();
            // Known a moment ago, then looked at.
            first.check(&remote).unwrap();
            first.forget_check();
            let error = first.check(&remote).unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::Locked);
            second.forget_check();
            second.check(&remote).unwrap();
            assert!(first.check(&remote).is_err(), "what is lost stays lost");
            remote.put_over(OBJECT, Bytes::from_static(b"{}")).unwrap();
            assert!(matches!(Owner::claim(&remote, "one", "h", 1), Err(PacksError::Foreign(_))));
            remote.delete(OBJECT).unwrap();
            second.forget_check();
            assert!(second.check(&remote).is_err(), "without an owner nobody may delete");
        })
        .await
        .unwrap();
    }
}
