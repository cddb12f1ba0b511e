//! Bookmarks: placed in the stream, kept in the journal, copied to the catalog.

use tidemark_journal::timeline::Timeline;
use tidemark_proto::ids::{Lsn, VmId};
use tidemark_proto::limits::NAME_MAX_CHARS;
use tidemark_proto::v1::Consistency;

use super::appender::MarkerPlaced;
use super::level;
use crate::catalog::{BookmarkRow, Catalog, CatalogError};
use crate::core::Core;
use crate::fleet::{PlacedMarker, Vm};

/// Names tried for a bookmark placed in a guest whose name is taken, at most; beyond it the bookmark keeps its id as name.
const RENAMES_MAX: u32 = 100;

/// The level that needs nothing.
pub(crate) const CRASH: &str = "crash";

/// Whether people may name a bookmark so: 1 to [`NAME_MAX_CHARS`] printable characters and no blank at its ends.
#[must_use]
pub fn is_bookmark_name(name: &str) -> bool {
    (1..=NAME_MAX_CHARS).contains(&name.chars().count())
        && !name.chars().any(char::is_control)
        && name.trim() == name
}

/// A bookmark as its marker tells.
#[derive(Debug, Clone, Copy)]
pub struct NewBookmark<'a> {
    /// UUID.
    pub id: &'a str,
    /// As asked for.
    pub name: &'a str,
    /// Its point.
    pub lsn: Lsn,
    /// Appliance time, microseconds since 1970.
    pub time_us: u64,
    /// The level achieved.
    pub achieved: Consistency,
}

/// Copies a bookmark to the catalog. A taken name gets `~2`, `~3` … appended: the guest cannot know which are taken, and
/// its bookmark must not be lost. Returns the name it got.
///
/// # Errors
/// When the catalog fails; the bookmark is then copied when the appliance starts again.
pub async fn store_bookmark(
    catalog: &Catalog,
    vm: VmId,
    bookmark: NewBookmark<'_>,
) -> Result<String, CatalogError> {
    let NewBookmark { id, name, lsn, time_us, achieved } = bookmark;
    for attempt in 1..=RENAMES_MAX {
        let tried = match attempt {
            1 => name.to_owned(),
            RENAMES_MAX => id.to_owned(),
            attempt => format!("{name}~{attempt}"),
        };
        let row = BookmarkRow::new(id.to_owned(), vm, tried.clone(), lsn, time_us, achieved.word());
        match catalog.add_bookmark(&row).await {
            Err(CatalogError::Taken(_)) => {}
            other => return other.map(|()| tried),
        }
    }
    Err(CatalogError::Taken(format!("a bookmark with the id of '{name}' exists")))
}

/// A marker is durable: copies its bookmark to the catalog, unless that is not wanted any more, and tells who waits for it.
pub(super) async fn keep_marker(core: &Core, vm: &Vm, marker: MarkerPlaced) {
    let MarkerPlaced { lsn, time_us, name, bookmark_id, request_id, achieved, hold_us, reason } = marker;
    let bookmark = NewBookmark { id: &bookmark_id, name: &name, lsn, time_us, achieved };
    let outcome = match &name[..] {
        // A place alone is nobody's bookmark.
        "" => Ok(String::new()),
        _ => store_bookmark(&core.catalog, vm.id, bookmark).await,
    };
    if let Err(error) = &outcome {
        tracing::error!(vm = %vm.name, name, %error, "cannot copy a bookmark to the catalog");
    }
    if request_id != 0 {
        let placed = |name| PlacedMarker { lsn, time_us, name, achieved, hold_us, reason };
        vm.marker_done(request_id, outcome.map(placed).map_err(|error| error.to_string()));
    }
    if vm.forgets_bookmark(&bookmark_id)
        && let Err(error) = core.catalog.remove_bookmark(&bookmark_id).await
    {
        tracing::error!(vm = %vm.name, name, %error, "cannot remove a bookmark of a point that was not achieved");
    }
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
                && !known.iter().any(|row| row.id == level::read(&marker.bookmark_id).0)
                && (marker.request_id == 0 || timeline.gap_around(marker.point.lsn).is_none())
        })
        .collect();
    for marker in &missing {
        let (id, achieved) = level::read(&marker.bookmark_id);
        let (lsn, time_us) = (marker.point.lsn, marker.point.time_us);
        store_bookmark(catalog, vm, NewBookmark { id, name: &marker.name, lsn, time_us, achieved }).await?;
    }
    Ok(missing.len())
}
