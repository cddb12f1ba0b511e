//! Placing bookmarks.

use std::sync::Arc;
use std::time::Duration;

use tidemark_journal::timeline::Timeline;
use tidemark_proto::ids::Lsn;
use tidemark_proto::limits::{NAME_MAX_CHARS, QUIESCE_MAX_MS};
use tidemark_proto::v1::{BookmarkPoint, BookmarkReply, Consistency, CreateBookmarkRequest};
use tidemark_proto::version::CONSISTENCY;
use tokio::time::Instant;
use tonic::Status;

use super::{blocking, catalog, vm_named};
use crate::core::Core;
use crate::fleet::{Command, MarkerAsk, PlacedMarker, Vm};
use crate::ingest::is_bookmark_name;
use crate::transport::Peer;

/// How long the splitter may take to place a marker and the appliance to make it durable. A splitter that catches up
/// after an overload has its ring, 256 MiB, ahead of it.
const MARKER_TIMEOUT: Duration = Duration::from_secs(30);

/// As above, where the splitter is to hold writers first: its freeze hooks, the hold and the thaw hooks may take that long.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30 + QUIESCE_MAX_MS as u64 / 1000);

/// How long to wait for the heartbeat that makes the bookmark recoverable: ten of them.
const HORIZON_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a gap may still last for a bookmark to be placed after it: what a resync of some gigabytes takes. A longer
/// one refuses the bookmark.
const GAP_PATIENCE: Duration = Duration::from_secs(10);

/// Between looks at the horizon.
const HORIZON_INTERVAL: Duration = Duration::from_millis(20);

pub(super) async fn create(
    core: &Arc<Core>,
    caller: &Peer,
    request: CreateBookmarkRequest,
) -> Result<BookmarkReply, Status> {
    let vm = vm_named(core, &request.vm)?;
    if vm.origin.is_some() {
        return Err(Status::failed_precondition(format!(
            "'{}' is a clone: name its points by LSN (`tidemark point list {}`)",
            vm.name, vm.name
        )));
    }
    check_name(&request.name)?;
    let level = Level { wanted: level_named(&request.consistency)?, allow_lower: request.allow_lower };
    if core.catalog.bookmark(vm.id, &request.name).await.map_err(catalog)?.is_some() {
        let text =
            format!("a bookmark named '{}' exists for '{}': choose another name", request.name, vm.name);
        return Err(Status::already_exists(text));
    }
    let (id, placed) = place_recoverable(core, &vm, &request.name, level).await?;
    core.audit(&caller.role.uri(), "create bookmark", &vm.name, &request.name).await;
    let PlacedMarker { lsn, time_us, achieved, hold_us, reason, .. } = placed;
    let point = BookmarkPoint { vm: vm.name.clone(), branch: String::new(), lsn: lsn.0, time_us };
    Ok(BookmarkReply {
        name: request.name,
        id,
        requested: level.wanted.word().into(),
        achieved: achieved.word().into(),
        hold_us,
        points: vec![point],
        reason,
    })
}

fn check_name(name: &str) -> Result<(), Status> {
    if !is_bookmark_name(name) {
        let text = format!(
            "a bookmark's name has 1 to {NAME_MAX_CHARS} printable characters and no space at its ends"
        );
        return Err(Status::invalid_argument(text));
    }
    Ok(())
}

/// What is asked for besides the name.
#[derive(Debug, Clone, Copy)]
struct Level {
    wanted: Consistency,
    allow_lower: bool,
}

/// The level that a word asks for; empty: crash.
pub(super) fn level_named(word: &str) -> Result<Consistency, Status> {
    match word {
        "" => Ok(Consistency::Crash),
        word => Consistency::of_word(word).ok_or_else(|| {
            Status::invalid_argument(format!(
                "'{word}' is no consistency level: use crash, filesystem or application"
            ))
        }),
    }
}

/// Has the splitter place a marker.
async fn place(vm: &Arc<Vm>, name: &str, bookmark_id: &str, level: Level) -> Result<PlacedMarker, Status> {
    let not_connected = || {
        Status::unavailable(format!(
            "the splitter of '{}' is not connected: a bookmark needs a live stream",
            vm.name
        ))
    };
    let session = vm.session().ok_or_else(not_connected)?;
    let older = (level.wanted > Consistency::Crash && session.protocol < CONSISTENCY).then(|| {
        format!("the splitter of '{}' is of an older version, which holds nothing still: upgrade it", vm.name)
    });
    if let Some(older) = older.as_ref().filter(|_| !level.allow_lower) {
        let text = format!(
            "consistency '{}' cannot be achieved: {older}, or use --allow-lower",
            level.wanted.word()
        );
        return Err(Status::failed_precondition(text));
    }
    let (request_id, outcome) = vm.expect_marker().map_err(Status::resource_exhausted)?;
    let ask = MarkerAsk {
        request_id,
        name: name.to_owned(),
        bookmark_id: bookmark_id.to_owned(),
        wanted: if older.is_some() { Consistency::Unspecified } else { level.wanted },
        allow_lower: level.allow_lower,
    };
    session.commands.try_send(Command::Marker(ask)).map_err(|_| not_connected())?;
    let patience = if level.wanted > Consistency::Crash { HOLD_TIMEOUT } else { MARKER_TIMEOUT };
    match tokio::time::timeout(patience, outcome).await {
        Ok(Ok(Ok(placed))) => Ok(PlacedMarker { reason: older.unwrap_or(placed.reason), ..placed }),
        Ok(Ok(Err(reason))) => Err(Status::aborted(format!("the bookmark was not placed: {reason}"))),
        Ok(Err(_)) => Err(Status::aborted("the bookmark was not placed: the stream ended")),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "the splitter of '{}' did not place the bookmark in {} s: it may still appear; `tidemark point list` shows it",
            vm.name,
            patience.as_secs()
        ))),
    }
}

/// Places markers until one can be recovered: one that fell into a short gap is forgotten, and the next comes after it.
async fn place_recoverable(
    core: &Core,
    vm: &Arc<Vm>,
    name: &str,
    level: Level,
) -> Result<(String, PlacedMarker), Status> {
    let patience = Instant::now() + GAP_PATIENCE;
    loop {
        let id = uuid::Uuid::new_v4().to_string();
        let placed = place(vm, name, &id, level).await?;
        let (lsn, stored) = (placed.lsn, &placed.name);
        if stored != name {
            // Whoever asked must not go on with the name of another point, to hold it for instance.
            return Err(Status::already_exists(format!(
                "a bookmark named '{name}' was made meanwhile, so this one is '{stored}' at lsn:{lsn}"
            )));
        }
        let reason = match wait_judged(vm, lsn).await? {
            Judged::Recoverable => return Ok((id, placed)),
            Judged::Refused(reason) => reason,
        };
        if timeline(vm, move |timeline| timeline.gap_around(lsn).is_none()).await? {
            return Err(Status::deadline_exceeded(format!(
                "bookmark '{name}' was placed at lsn:{lsn} and is not confirmed yet ({reason}): `tidemark point list {}` shows \
                 it",
                vm.name
            )));
        }
        // The name stays free for another try.
        core.catalog.remove_bookmark(&id).await.map_err(catalog)?;
        if !gap_ends(vm, lsn, patience).await? {
            return Err(Status::aborted(format!(
                "bookmark '{name}' was placed at lsn:{lsn} and cannot be recovered: {reason}; ask again once `tidemark \
                 vm wait {} --state protected` returns",
                vm.name
            )));
        }
    }
}

enum Judged {
    Recoverable,
    Refused(String),
}

/// Waits until it is known whether an LSN can be recovered.
async fn wait_judged(vm: &Arc<Vm>, lsn: Lsn) -> Result<Judged, Status> {
    let deadline = Instant::now() + HORIZON_TIMEOUT;
    loop {
        let (behind, refused) = timeline(vm, move |timeline| {
            let behind = timeline.horizon().is_none_or(|horizon| horizon.lsn < lsn);
            (behind, timeline.check(lsn, &[]).err().map(|error| error.to_string()))
        })
        .await?;
        match refused {
            None => return Ok(Judged::Recoverable),
            Some(reason) if !behind || Instant::now() >= deadline => return Ok(Judged::Refused(reason)),
            Some(_) => tokio::time::sleep(HORIZON_INTERVAL).await,
        }
    }
}

/// Waits for the end of the gap that an LSN lies in. False when it lasts longer, or the LSN lies in none.
async fn gap_ends(vm: &Arc<Vm>, lsn: Lsn, deadline: Instant) -> Result<bool, Status> {
    while Instant::now() < deadline {
        let gap = timeline(vm, move |timeline| timeline.gap_around(lsn).cloned()).await?;
        match gap {
            None => return Ok(false),
            Some(gap) if gap.to.is_some() => return Ok(true),
            Some(_) => tokio::time::sleep(HORIZON_INTERVAL).await,
        }
    }
    Ok(false)
}

async fn timeline<T: Send + 'static>(
    vm: &Arc<Vm>,
    ask: impl FnOnce(&Timeline) -> T + Send + 'static,
) -> Result<T, Status> {
    let log = Arc::clone(&vm.log);
    blocking(move || {
        let journal = log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
        Ok(ask(&journal.timeline()))
    })
    .await
}
