//! What a server must do before packs are trusted to it, tried at each start. A server that answers a conditional write
//! with success and overwrites would lose packs silently, so it is refused.

use bytes::Bytes;
use tidemark_journal::storage::{StorageError, StorageErrorKind};

use super::{PacksError, Remote};

const FOLDER: &str = "probes";
const FIRST: &[u8] = b"the first content of a probe";
const SECOND: &[u8] = b"another one, that must not get in";

/// Tries every kind of call. Changes nothing but a probe of its own, which it removes.
pub(super) fn self_test(remote: &Remote) -> Result<(), PacksError> {
    let name = format!("{FOLDER}/{}", uuid::Uuid::new_v4().simple());
    let tried = try_all(remote, &name);
    let removed = remote.delete(&name);
    tried?;
    removed?;
    if remote.list(FOLDER)?.contains_key(name.rsplit('/').next().unwrap_or_default()) {
        return Err(unfit(remote, "a deleted object is still listed: it must list what is there"));
    }
    Ok(())
}

/// Removes probes that killed starts left. Only the owner of the place calls it.
pub(super) fn remove_leftovers(remote: &Remote) -> Result<(), StorageError> {
    for name in remote.list(FOLDER)?.into_keys() {
        remote.delete(&format!("{FOLDER}/{name}"))?;
    }
    Ok(())
}

fn unfit(remote: &Remote, problem: &str) -> PacksError {
    PacksError::Unfit { place: remote.place().to_owned(), problem: problem.to_owned() }
}

fn try_all(remote: &Remote, name: &str) -> Result<(), PacksError> {
    const IGNORED: &str = "it ignores conditional writes (If-None-Match: *), so a pack could be overwritten: \
                           use a server or a version that honours them";
    remote.put_new(name, Bytes::from_static(FIRST)).map_err(|error| {
        if error.to_string().contains("501 ") { unfit(remote, IGNORED) } else { error.into() }
    })?;
    match remote.put_new(name, Bytes::from_static(SECOND)) {
        Err(error) if error.kind() == StorageErrorKind::Exists => {}
        Ok(()) => return Err(unfit(remote, IGNORED)),
        Err(error) => return Err(error.into()),
    }
    if remote.get(name)? != FIRST {
        return Err(unfit(
            remote,
            "it refused a conditional write and made it all the same: use another server",
        ));
    }
    if remote.get_range(name, 4..9)? != FIRST.get(4..9).unwrap_or_default() {
        return Err(unfit(remote, "it does not answer reads of ranges as asked: use another server"));
    }
    let listed = remote.list(FOLDER)?;
    let short = name.rsplit('/').next().unwrap_or_default();
    if listed.get(short).copied() != Some(FIRST.len() as u64) {
        return Err(unfit(remote, "a new object is not listed at once: it must list what is there"));
    }
    Ok(())
}
