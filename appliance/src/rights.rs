//! What persons may do who are no administrators: each call that the gate lets them make asks here for its target.
//!
//! A right of a set to recover or mount is one of the VMs that are in the set when something is opened. What was opened stays
//! open until the right to it is revoked, also when its VM leaves the set.

use std::collections::{HashMap, HashSet};

use tidemark_proto::ids::VmId;
use tonic::Status;

use crate::catalog::{CatalogError, RightRow, SetPointRow};
use crate::core::Core;
use crate::sets;
use crate::transport::Peer;

/// What a person may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Create and list points and bookmarks of a set, and learn what was written since one.
    Bookmark,
    /// Read the disks of a VM as of a point, to recover them.
    Recover,
    /// Read them to mount or export them.
    Mount,
}

impl Right {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Bookmark, Self::Recover, Self::Mount];

    /// `bookmark`, `recover` or `mount`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bookmark => "bookmark",
            Self::Recover => "recover",
            Self::Mount => "mount",
        }
    }

    /// The reverse of [`Right::word`].
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.word() == word)
    }
}

/// What somebody wants to do something with, by the name that it was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A set.
    Set(&'a str),
    /// A VM or clone.
    Vm(&'a str),
}

/// The rights of one person, and who is in their sets now.
#[derive(Debug)]
pub struct Held {
    rows: Vec<RightRow>,
    members: HashMap<String, HashSet<VmId>>,
}

impl Held {
    /// The rights of a person as of now.
    ///
    /// # Errors
    /// What the database says.
    pub async fn of(core: &Core, person: &str) -> Result<Self, CatalogError> {
        let rows = core.catalog.rights_of(person).await?;
        let of_set = |row: &RightRow| row.set().is_some() && row.word != Right::Bookmark.word();
        let mut held = Self { rows, members: HashMap::new() };
        // Who is in which set takes a look at all tags: only where it matters.
        if held.rows.iter().any(of_set) {
            let vms = sets::candidates(&core.catalog, &core.fleet).await?;
            for set in sets::all(&core.catalog).await? {
                if held.rows.iter().any(|row| row.set() == Some(&set.name)) {
                    let members = vms.iter().filter(|vm| set.has(vm)).map(|vm| vm.vm.id).collect();
                    held.members.insert(set.name, members);
                }
            }
        }
        Ok(held)
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn rows(&self, right: Right) -> impl Iterator<Item = &RightRow> {
        self.rows.iter().filter(move |row| row.word == right.word())
    }

    /// Whether a right to a set itself is among them.
    #[must_use]
    pub fn of_set(&self, right: Right, set: &str) -> bool {
        self.rows(right).any(|row| row.set() == Some(set))
    }

    /// Whether a right to a VM is among them, of its own or by a set.
    #[must_use]
    pub fn of_vm(&self, right: Right, vm: VmId) -> bool {
        let by_set = |row: &RightRow| {
            row.set().and_then(|set| self.members.get(set)).is_some_and(|members| members.contains(&vm))
        };
        right != Right::Bookmark && self.rows(right).any(|row| row.vm() == Some(vm) || by_set(row))
    }

    /// Whether one of the rights is there to each of these VMs, of which there are some.
    fn of_each(&self, any_of: &[Right], vms: &[VmId]) -> bool {
        let to_each = |right: &Right| vms.iter().all(|vm| self.of_vm(*right, *vm));
        !vms.is_empty() && any_of.iter().any(to_each)
    }
}

fn failed(error: &CatalogError) -> Status {
    Status::unavailable(error.to_string())
}

/// The rights of a caller that has to have one; `None` for an administrator.
async fn held(core: &Core, caller: &Peer) -> Result<Option<Held>, Status> {
    match caller.person()? {
        None => Ok(None),
        Some(person) => Held::of(core, person).await.map(Some).map_err(|error| failed(&error)),
    }
}

/// That the caller has any of these rights to a target. A person gets the same answer for a target that it has no right to
/// and for one that does not exist.
///
/// # Errors
/// `PERMISSION_DENIED` if not.
pub async fn require(core: &Core, caller: &Peer, any_of: &[Right], target: Target<'_>) -> Result<(), Status> {
    let Some(held) = held(core, caller).await? else { return Ok(()) };
    let has = match target {
        Target::Set(name) => any_of.iter().any(|right| held.of_set(*right, name)),
        Target::Vm(name) => {
            let vm = core.fleet.by_name(name);
            vm.is_some_and(|vm| any_of.iter().any(|right| held.of_vm(*right, vm.id)))
        }
    };
    if has { Ok(()) } else { Err(refusal(core, caller, any_of, target)) }
}

/// That the caller still has a right to what it has just opened by a name: the name may be another's meanwhile, or the right
/// revoked.
///
/// # Errors
/// As [`require`].
pub async fn require_still(
    core: &Core,
    caller: &Peer,
    right: Right,
    vm: VmId,
    name: &str,
) -> Result<(), Status> {
    match held(core, caller).await? {
        Some(held) if !held.of_vm(right, vm) => Err(refusal(core, caller, &[right], Target::Vm(name))),
        _ => Ok(()),
    }
}

/// Who may find points of a set: who has any right to it, and who may recover or mount each of its members.
const FINDING: [Right; 3] = Right::ALL;

/// That the caller may look for points of a set at all.
///
/// # Errors
/// As [`require`].
pub async fn require_finding(core: &Core, caller: &Peer, set: &str) -> Result<(), Status> {
    let Some(held) = held(core, caller).await? else { return Ok(()) };
    if FINDING.iter().any(|right| held.of_set(*right, set)) {
        return Ok(());
    }
    let sets = sets::all(&core.catalog).await.map_err(|error| failed(&error))?;
    let vms = sets::candidates(&core.catalog, &core.fleet).await.map_err(|error| failed(&error))?;
    let found = sets.iter().find(|known| known.name == set);
    let members: Vec<VmId> =
        vms.iter().filter(|vm| found.is_some_and(|set| set.has(vm))).map(|vm| vm.vm.id).collect();
    if held.of_each(&FINDING, &members) {
        Ok(())
    } else {
        Err(refusal(core, caller, &FINDING, Target::Set(set)))
    }
}

/// That the caller may see a point that it found: without a right to the set itself, all VMs in it must be its own, those that
/// have left the set as well.
///
/// # Errors
/// As [`require`].
pub async fn require_found(core: &Core, caller: &Peer, point: &SetPointRow) -> Result<(), Status> {
    let Some(held) = held(core, caller).await? else { return Ok(()) };
    let set = point.set_name.as_str();
    // One whose id cannot be read is nobody's.
    let (members, missing) = (point.members(), point.missing());
    let members = members.iter().map(|member| member.vm());
    let all: Option<Vec<VmId>> = members.chain(missing.iter().map(|member| member.vm.parse().ok())).collect();
    let own = all.is_some_and(|all| held.of_each(&FINDING, &all));
    if own || FINDING.iter().any(|right| held.of_set(*right, set)) {
        return Ok(());
    }
    Err(refusal(core, caller, &FINDING, Target::Set(set)))
}

/// That a person has some right: without, it gets no certificate.
///
/// # Errors
/// `FAILED_PRECONDITION` if not.
pub async fn require_any(core: &Core, person: &str) -> Result<(), Status> {
    if !Held::of(core, person).await.map_err(|error| failed(&error))?.is_empty() {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "'{person}' has no right, so a certificate is of no use: grant one first with `tidemark role grant {person}`"
    )))
}

fn refusal(core: &Core, caller: &Peer, any_of: &[Right], target: Target<'_>) -> Status {
    core.metrics.rejected("right");
    let name = caller.name().unwrap_or_default();
    let words: Vec<&str> = any_of.iter().map(|right| right.word()).collect();
    let (what, option) = match target {
        Target::Set(set) => (format!("the set '{set}'"), "--set"),
        Target::Vm(vm) => (format!("the VM '{vm}'"), "--vm"),
    };
    let (first, words) = (words.first().copied().unwrap_or_default(), words.join(" or "));
    Status::permission_denied(format!(
        "'{name}' has no right to {words} {what}: an administrator grants it with `tidemark role grant {name} {first} {option}`"
    ))
}

/// Ends views and exports of persons that no right covers any more.
///
/// # Errors
/// What the database says.
pub async fn end_uncovered(core: &Core) -> Result<(), CatalogError> {
    let mut persons: HashSet<String> = core.leases.persons();
    persons.extend(core.exports.persons().await);
    for person in persons {
        let held = Held::of(core, &person).await?;
        core.leases.end_unless(&person, |right, vm| held.of_vm(right, vm));
        core.exports.end_unless(&person, |vm| held.of_vm(Right::Mount, vm)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_of_what_they_name_and_nothing_else() {
        let [own, member, other] = [VmId::random(), VmId::random(), VmId::random()];
        let row = |right: Right, set: &str| RightRow::of_set("anna", right.word(), set, 1, String::new());
        let held = Held {
            rows: vec![
                row(Right::Bookmark, "shop"),
                row(Right::Mount, "shop"),
                row(Right::Recover, "gone"),
                RightRow::of_vm("anna", Right::Recover.word(), own, 1, String::new()),
            ],
            members: HashMap::from([("shop".to_owned(), HashSet::from([member]))]),
        };
        assert!(held.of_vm(Right::Recover, own) && held.of_vm(Right::Mount, member));
        assert!(!held.of_vm(Right::Mount, own) && !held.of_vm(Right::Recover, member));
        assert!(!held.of_vm(Right::Bookmark, member), "a bookmark is of the set, not of its VMs");
        assert!(Right::ALL.iter().all(|right| !held.of_vm(*right, other)));
        assert!(held.of_set(Right::Bookmark, "shop") && !held.of_set(Right::Recover, "shop"));
        assert!(!held.of_set(Right::Bookmark, ""), "rights of VMs name no set");
        // Several VMs need one right for all of them.
        assert!(held.of_each(&[Right::Recover], &[own]) && !held.of_each(&[Right::Recover], &[]));
        assert!(!held.of_each(&[Right::Recover, Right::Mount], &[own, member]));
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for right in Right::ALL {
            assert_eq!(Right::of_word(right.word()), Some(right));
        }
        assert_eq!(Right::of_word("Recover"), None);
        assert_eq!(Right::of_word(""), None);
    }
}
