//! Bookmarks: placed in the stream, kept in the journal, copied to the catalog.

use tidemark_journal::timeline::Timeline;
use tidemark_proto::ids::{Lsn, VmId};

use crate::catalog::{BookmarkRow, Catalog, CatalogError};

/// Names tried for a bookmark placed in a guest whose name is taken, at most; beyond it the bookmark keeps its id as name.
const RENAMES_MAX: u32 = 100;

/// The only level this build achieves.
pub(crate) const CRASH: &str = "crash";

/// Copies a bookmark to the catalog. A taken name gets `~2`, `~3` … appended: the guest cannot know which are taken, and
/// its bookmark must not be lost. Returns the name it got.
///
/// # Errors
/// When the catalog fails; the bookmark is then copied when the appliance starts again.
pub async fn store_bookmark(
    catalog: &Catalog,
    vm: VmId,
    bookmark_id: &str,
    name: &str,
    lsn: Lsn,
    time_us: u64,
) -> Result<String, CatalogError> {
    for attempt in 1..=RENAMES_MAX {
        let tried = match attempt {
            1 => name.to_owned(),
            RENAMES_MAX => bookmark_id.to_owned(),
            attempt => format!("{name}~{attempt}"),
        };
        let row = BookmarkRow::new(bookmark_id.to_owned(), vm, tried.clone(), lsn, time_us, CRASH);
        match catalog.add_bookmark(&row).await {
            Err(CatalogError::Taken(_)) => {}
            other => return other.map(|()| tried),
        }
    }
    Err(CatalogError::Taken(format!("a bookmark with the id of '{name}' exists")))
}

/// Copies bookmarks that the journal has and the catalog lacks: a killed appliance, or a new catalog. What the
/// administrator asked for and a gap made unrecoverable was forgotten on purpose and stays so.
///
/// # Errors
/// When the catalog fails.
pub async fn rebuild_bookmarks(
    catalog: &Catalog,
    vm: VmId,
    timeline: &Timeline,
) -> Result<usize, CatalogError> {
    let known = catalog.bookmarks(vm).await?;
    let missing: Vec<_> = timeline
        .markers()
        .iter()
        .filter(|marker| {
            !marker.bookmark_id.is_empty()
                && !known.iter().any(|row| row.id == marker.bookmark_id)
                && (marker.request_id == 0 || timeline.gap_around(marker.point.lsn).is_none())
        })
        .collect();
    for marker in &missing {
        let point = marker.point;
        store_bookmark(catalog, vm, &marker.bookmark_id, &marker.name, point.lsn, point.time_us).await?;
    }
    Ok(missing.len())
}
