//! The pins by which bookmarks are held and locked. Their names keep the bookmarks' names, also without a catalog.

use tidemark_journal::timeline::TimelineError;
use tidemark_journal::{Journal, Pin, PinKind};
use tidemark_proto::ids::VmId;

use crate::catalog::{BookmarkRow, Catalog, CatalogError};
use crate::ingest::CRASH;

/// What the pin of a held bookmark is named by, with the bookmark's name behind it.
pub(crate) const HOLD: &str = "hold:";

/// What the pin of a locked bookmark is named by.
pub(crate) const LOCK: &str = "lock:";

/// The name of the bookmark that a pin keeps; `None`: it keeps something else.
pub(crate) fn bookmark_of(pin: &Pin) -> Option<&str> {
    let of_bookmark = matches!(pin.kind, PinKind::Bookmark | PinKind::Lock);
    [HOLD, LOCK].into_iter().find_map(|prefix| pin.name.strip_prefix(prefix)).filter(|_| of_bookmark)
}

/// Gives held bookmarks back to a catalog that lacks them: the marker of one that outlived its window is in no log any
/// more. Not those whose hold has ended by `now_us`, the clock of locks, nor those whose point is gone. How many.
///
/// # Errors
/// When the catalog fails.
pub(crate) async fn rebuild_held(
    catalog: &Catalog,
    vm: VmId,
    journal: &Journal,
    now_us: u64,
) -> Result<usize, CatalogError> {
    let known = catalog.bookmarks(vm).await?;
    let mut rebuilt = std::collections::BTreeSet::new();
    let now_us = now_us.max(journal.retention_clock());
    let timeline = journal.timeline();
    for pin in journal.pins() {
        let Some(name) = bookmark_of(&pin) else { continue };
        if known.iter().any(|row| row.name == name) || rebuilt.contains(name) {
            continue;
        }
        let ended = pin.until_us.is_some_and(|until_us| until_us <= now_us);
        if ended || matches!(timeline.check(pin.lsn, &[]), Err(TimelineError::Refused(_))) {
            continue;
        }
        let snapshots = journal.snapshots();
        let kept = snapshots.iter().find(|kept| kept.lsn == pin.lsn).map(|kept| kept.time_us);
        let time_us = kept.or_else(|| timeline.time_of(pin.lsn).ok()).unwrap_or(0);
        let id = uuid::Uuid::new_v4().to_string();
        let row = BookmarkRow::new(id, vm, name.to_owned(), pin.lsn, time_us, CRASH);
        match catalog.add_bookmark(&row).await {
            Ok(()) => drop(rebuilt.insert(name.to_owned())),
            Err(CatalogError::Taken(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rebuilt.len())
}
