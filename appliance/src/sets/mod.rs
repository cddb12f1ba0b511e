//! Consistency sets: VMs that belong together, found by rules whenever something is done with them, so that VMs come and go
//! by themselves. Who is in a set is never stored but to see that it changed.

pub mod barrier;
mod bookmark;
mod copy;
mod hold_mode;
mod limits;
pub mod point;
mod reconcile;
mod rule;
mod schedule;
mod thin;

use std::sync::Arc;
use std::time::Duration;

pub use bookmark::{Asked, BookmarkRefused, bookmark, bookmark_for_guest, warnings};
pub use copy::restore as restore_copy;
pub use hold_mode::HoldMode;
pub use reconcile::{Reconciling, reconcile, take_back_from};
pub use rule::{InvalidRule, Rule};
pub use schedule::Points;
pub use thin::{AUTOMATIC_MAX, Floors};
use tidemark_proto::ids::VmId;

use crate::catalog::{AssignmentRow, Catalog, CatalogError, SetRow};
use crate::core::Core;
use crate::fleet::{Fleet, Vm};

/// A set.
#[derive(Debug, Clone)]
pub struct Set {
    /// Unique.
    pub name: String,
    /// Any of them makes a VM a member.
    pub rules: Vec<Rule>,
    /// The retention policy of its members.
    pub policy: Option<String>,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Between automatic points; zero: none.
    pub every: Duration,
    /// What automatic points may do.
    pub hold: HoldMode,
    /// Patterns of members' names, in which order freeze hooks run.
    pub order: Vec<String>,
}

/// Between automatic points of a set that says nothing else.
pub const EVERY_DEFAULT_US: u64 = 5_000_000;

/// A VM with its tags.
#[derive(Debug, Clone)]
pub struct Tagged {
    /// The VM.
    pub vm: Arc<Vm>,
    tags: Vec<(String, String)>,
}

impl Set {
    fn of(row: &SetRow) -> Self {
        let pointing = row.pointing();
        Self {
            name: row.name.clone(),
            // What is stored was checked when it came in.
            rules: row.rules().iter().filter_map(|rule| rule.parse().ok()).collect(),
            policy: row.policy().map(str::to_owned),
            created_us: row.created_us(),
            every: Duration::from_micros(pointing.every_us),
            hold: HoldMode::of_word(&pointing.hold).unwrap_or_default(),
            order: pointing.order,
        }
    }

    /// The rules that make a VM a member; empty if it is none.
    #[must_use]
    pub fn reasons(&self, vm: &Tagged) -> Vec<&Rule> {
        self.rules.iter().filter(|rule| rule.holds(&vm.vm.name, &vm.tags)).collect()
    }

    /// Whether a VM is a member.
    #[must_use]
    pub fn has(&self, vm: &Tagged) -> bool {
        !self.reasons(vm).is_empty()
    }
}

/// All sets, the oldest first.
///
/// # Errors
/// What the database says.
pub async fn all(catalog: &Catalog) -> Result<Vec<Set>, CatalogError> {
    Ok(catalog.sets().await?.iter().map(Set::of).collect())
}

/// All VMs that can be members, by name: clones are none.
///
/// # Errors
/// What the database says.
pub async fn candidates(catalog: &Catalog, fleet: &Fleet) -> Result<Vec<Tagged>, CatalogError> {
    let tags = catalog.all_tags().await?;
    let of = |vm: VmId| {
        let own = tags.iter().filter(|tag| tag.vm() == Some(vm));
        own.map(|tag| (tag.key.clone(), tag.value.clone())).collect()
    };
    Ok(fleet.all().into_iter().map(|vm| Tagged { tags: of(vm.id), vm }).collect())
}

/// Which policy each VM was given: by itself, else by the oldest of its sets that has one. So a new set changes nothing for
/// VMs that a set looks after already.
///
/// # Errors
/// What the database says.
pub async fn assignments(core: &Core) -> Result<Vec<AssignmentRow>, CatalogError> {
    let mut assignments = core.catalog.assignments().await?;
    let sets = all(&core.catalog).await?;
    if sets.iter().all(|set| set.policy.is_none()) {
        return Ok(assignments);
    }
    for vm in candidates(&core.catalog, &core.fleet).await? {
        if !assignments.iter().any(|row| row.is_of(vm.vm.id))
            && let Some((_, policy)) = policy_of(&sets, &vm)
        {
            assignments.push(AssignmentRow::new(vm.vm.id, policy.to_owned()));
        }
    }
    Ok(assignments)
}

/// The set that gives a VM its policy, and the policy; `sets` by age.
#[must_use]
pub fn policy_of<'a>(sets: &'a [Set], vm: &Tagged) -> Option<(&'a Set, &'a str)> {
    sets.iter().filter(|set| set.has(vm)).find_map(|set| Some((set, set.policy.as_deref()?)))
}
