//! Points of sets on demand, named: from consoles and from inside guests.

use std::sync::Arc;

use thiserror::Error;
use tidemark_proto::limits::{NAME_MAX_CHARS, TEXT_MAX_BYTES};
use tidemark_proto::v1::{Consistency, SetBookmarkDone, SetBookmarkRequest};
use tokio::time::Instant;

use super::point::{BY_CLOCK, NotTaken, Wish, take};
use super::{Set, all, candidates};
use crate::catalog::{CatalogError, SetPointRow};
use crate::core::Core;
use crate::fleet::Vm;
use crate::ingest::is_bookmark_name;

/// Why there is no bookmark.
#[derive(Debug, Error)]
pub enum BookmarkRefused {
    /// No such set.
    #[error("there is no set named '{0}'; `tidemark set list` shows those there are")]
    NoSet(String),
    /// The name is none.
    #[error(
        "a bookmark's name has 1 to {NAME_MAX_CHARS} characters, none of them control characters, and no blanks around it"
    )]
    Name,
    /// The name is taken.
    #[error("a bookmark named '{0}' exists for the set '{1}': choose another name")]
    Exists(String, String),
    /// Too often.
    #[error("{0}")]
    TooOften(String),
    /// There is no point.
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
}

impl From<CatalogError> for BookmarkRefused {
    fn from(error: CatalogError) -> Self {
        Self::NotTaken(error.into())
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The set's name.
    pub set: String,
    /// The bookmark's name.
    pub name: String,
    /// What it must be good for.
    pub level: Consistency,
    /// A lower level will do.
    pub allow_lower: bool,
}

/// Takes a point of a set and names it.
///
/// # Errors
/// When there is none.
pub async fn bookmark(core: &Arc<Core>, actor: &str, asked: Asked) -> Result<SetPointRow, BookmarkRefused> {
    let sets = all(&core.catalog).await?;
    let Some(set) = sets.into_iter().find(|set| set.name == asked.set) else {
        return Err(BookmarkRefused::NoSet(asked.set));
    };
    check_name(&asked.name)?;
    if core.catalog.set_bookmark(&set.name, &asked.name).await?.is_some() {
        return Err(BookmarkRefused::Exists(asked.name, set.name));
    }
    core.points.limits.admit_caller(actor, Instant::now()).map_err(BookmarkRefused::TooOften)?;
    named(core, actor, set, asked).await
}

/// Takes it, of a set that there is.
async fn named(
    core: &Arc<Core>,
    actor: &str,
    set: Set,
    asked: Asked,
) -> Result<SetPointRow, BookmarkRefused> {
    core.points.limits.admit_set(&set.name, Instant::now()).map_err(BookmarkRefused::TooOften)?;
    let (target, detail) = (set.name.clone(), asked.name.clone());
    let wish = Wish { set, name: asked.name, level: asked.level, allow_lower: asked.allow_lower };
    let row = take(core, &wish).await.map_err(|error| match error {
        NotTaken::Catalog(CatalogError::Taken(_)) => {
            BookmarkRefused::Exists(wish.name.clone(), wish.set.name.clone())
        }
        error => error.into(),
    })?;
    core.audit(actor, "create bookmark of a set", &target, &detail).await;
    Ok(row)
}

fn check_name(name: &str) -> Result<(), BookmarkRefused> {
    if is_bookmark_name(name) { Ok(()) } else { Err(BookmarkRefused::Name) }
}

/// The sentences that a person should know of a point.
#[must_use]
pub fn warnings(point: &SetPointRow) -> Vec<String> {
    let (members, missing) = (point.members(), point.missing());
    let mut warnings: Vec<String> = missing
        .iter()
        .map(|member| format!("{} is not in the point: {}", member.name, member.reason))
        .collect();
    for member in members.iter().filter(|member| member.method == BY_CLOCK) {
        let (name, reason) = (&member.name, &member.reason);
        let error_ms = member.error_us.div_ceil(1000);
        warnings.push(format!("{name} is there by its clock, which is right to {error_ms} ms: {reason}"));
    }
    let lower = members.iter().filter(|member| member.method != BY_CLOCK && !member.reason.is_empty());
    warnings
        .extend(lower.map(|member| {
            format!("{} is {} consistent: {}", member.name, member.consistency, member.reason)
        }));
    warnings
}

/// Takes a point of a set for somebody inside a member.
pub async fn bookmark_for_guest(
    core: &Arc<Core>,
    vm: &Arc<Vm>,
    request: SetBookmarkRequest,
) -> SetBookmarkDone {
    let id = request.id;
    match asked_in_guest(core, vm, request).await {
        Err(reason) => {
            SetBookmarkDone { id, reason: shortened(reason.to_string()), ..SetBookmarkDone::default() }
        }
        Ok(point) => {
            let members = point.members();
            let own = members.iter().find(|member| member.vm() == Some(vm.id));
            SetBookmarkDone {
                id,
                reason: String::new(),
                achieved: Consistency::of_word(&point.consistency).unwrap_or(Consistency::Crash).into(),
                hold_us: point.hold_us(),
                lsn: own.map_or(0, |member| member.lsn),
                warnings: warnings(&point).into_iter().map(shortened).collect(),
            }
        }
    }
}

/// A guest learns of no set but those that it is in: not even whether there is one of a name.
async fn asked_in_guest(
    core: &Arc<Core>,
    vm: &Arc<Vm>,
    request: SetBookmarkRequest,
) -> Result<SetPointRow, BookmarkRefused> {
    let actor = format!("vm {}", vm.id);
    // Before anything is looked up: a guest can ask as fast as it likes.
    core.points.limits.admit_caller(&actor, Instant::now()).map_err(BookmarkRefused::TooOften)?;
    let level = request.consistency().or_crash();
    let SetBookmarkRequest { set, name, allow_lower, .. } = request;
    let found = all(&core.catalog).await?.into_iter().find(|known| known.name == set);
    let vms = candidates(&core.catalog, &core.fleet).await?;
    let own = vms.iter().find(|tagged| tagged.vm.id == vm.id);
    let Some(found) = found.filter(|found| own.is_some_and(|own| found.has(own))) else {
        return Err(BookmarkRefused::NoSet(set));
    };
    check_name(&name)?;
    if core.catalog.set_bookmark(&set, &name).await?.is_some() {
        return Err(BookmarkRefused::Exists(name, set));
    }
    named(core, &actor, found, Asked { set, name, level, allow_lower }).await
}

/// A text as messages to splitters may carry it.
fn shortened(mut text: String) -> String {
    while text.len() > TEXT_MAX_BYTES {
        text.pop();
    }
    text
}
