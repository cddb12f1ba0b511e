//! Consistency sets: administrators make them; persons with a right to one have its points.

use std::sync::Arc;
use std::time::Duration;

use tidemark_proto::limits::{HEARTBEAT_MS, NAME_MAX_CHARS};
use tidemark_proto::v1::sets_server::Sets;
use tidemark_proto::v1::{
    ChangeSetRequest, CreateSetBookmarkRequest, CreateSetRequest, DivergedReply, DivergedRequest, Empty,
    FindSetPointRequest, ListSetPointsRequest, ListSetPointsResponse, ListSetsResponse, PreviewSetRequest,
    RemoveSetRequest, SetBookmarkReply, SetChange, SetInfo, SetMember, SetPoint, SetPointing, ShowSetRequest,
    VmInfo,
};
use tonic::{Request, Response, Status};

use super::retention::has_policy;
use super::{caller, catalog, describe_vms, set_points};
use crate::catalog::{AssignmentRow, MemberRow, Pointing, SetRow};
use crate::clock::now_us;
use crate::core::Core;
use crate::retention::DEFAULT_POLICY;
use crate::rights::{self, Right, Target};
use crate::sets::{self, EVERY_DEFAULT_US, HoldMode, Rule, Set, Tagged, reconcile, take_back_from};
use crate::transport::Peer;

/// Sets at most: each is looked at whenever a VM comes, goes or is tagged. More are refused.
const SETS_MAX: usize = 1000;

/// Rules of one set at most; more are refused.
const RULES_MAX: usize = 32;

/// The shortest interval between automatic points: a heartbeat, before which none is confirmed.
const EVERY_MIN_US: u64 = HEARTBEAT_MS as u64 * 1000;

/// The longest: a day.
const EVERY_MAX_US: u64 = 24 * 3600 * 1_000_000;

/// Patterns of the order of freeze hooks at most; more are refused.
const ORDER_MAX: usize = 32;

/// Changes shown with a set.
const CHANGES_SHOWN: u32 = 100;

/// Serves sets.
#[derive(Debug)]
pub struct SetsService {
    core: Arc<Core>,
}

impl SetsService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Sets for SetsService {
    async fn create_set(&self, request: Request<CreateSetRequest>) -> Result<Response<SetInfo>, Status> {
        let caller = caller(&request)?;
        create(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn change_set(&self, request: Request<ChangeSetRequest>) -> Result<Response<SetInfo>, Status> {
        let caller = caller(&request)?;
        change(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn preview_set(&self, request: Request<PreviewSetRequest>) -> Result<Response<SetInfo>, Status> {
        let rules = parse(&request.into_inner().rules)?;
        let set = Set {
            name: String::new(),
            rules,
            policy: None,
            created_us: 0,
            every: Duration::ZERO,
            hold: HoldMode::default(),
            order: Vec::new(),
        };
        let looked = Looked::at(&self.core).await?;
        Ok(Response::new(looked.info(&set)))
    }

    async fn list_sets(&self, _: Request<Empty>) -> Result<Response<ListSetsResponse>, Status> {
        let looked = Looked::at(&self.core).await?;
        let sets = looked.sets.iter().map(|set| looked.info(set)).collect();
        Ok(Response::new(ListSetsResponse { sets }))
    }

    async fn show_set(&self, request: Request<ShowSetRequest>) -> Result<Response<SetInfo>, Status> {
        show(&self.core, &request.into_inner().name).await.map(Response::new)
    }

    async fn remove_set(&self, request: Request<RemoveSetRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        remove(&self.core, &caller, &request.into_inner().name).await.map(Response::new)
    }

    async fn create_set_bookmark(
        &self,
        request: Request<CreateSetBookmarkRequest>,
    ) -> Result<Response<SetBookmarkReply>, Status> {
        let caller = caller(&request)?;
        let target = Target::Set(&request.get_ref().set);
        rights::require(&self.core, &caller, &[Right::Bookmark], target).await?;
        set_points::bookmark(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_set_points(
        &self,
        request: Request<ListSetPointsRequest>,
    ) -> Result<Response<ListSetPointsResponse>, Status> {
        let target = Target::Set(&request.get_ref().set);
        rights::require(&self.core, &caller(&request)?, &[Right::Bookmark], target).await?;
        set_points::list(&self.core, request.into_inner()).await.map(Response::new)
    }

    async fn find_set_point(
        &self,
        request: Request<FindSetPointRequest>,
    ) -> Result<Response<SetPoint>, Status> {
        let caller = caller(&request)?;
        let FindSetPointRequest { set, at } = request.into_inner();
        rights::require_finding(&self.core, &caller, &set).await?;
        let row = set_points::find(&self.core, &set, at.as_ref()).await?;
        rights::require_found(&self.core, &caller, &row).await?;
        Ok(Response::new(set_points::info(&self.core, &row)))
    }

    async fn diverged(&self, request: Request<DivergedRequest>) -> Result<Response<DivergedReply>, Status> {
        let caller = caller(&request)?;
        let target = Target::Set(&request.get_ref().set);
        rights::require(&self.core, &caller, &[Right::Bookmark], target).await?;
        set_points::diverged(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }
}

fn parse(rules: &[String]) -> Result<Vec<Rule>, Status> {
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(Status::invalid_argument(format!("a set has 1 to {RULES_MAX} rules")));
    }
    let parsed: Result<Vec<Rule>, _> = rules.iter().map(|rule| rule.parse::<Rule>()).collect();
    parsed.map_err(|error| Status::invalid_argument(error.to_string()))
}

fn check_name(name: &str) -> Result<(), Status> {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let characters = name.chars().count();
    if (1..=NAME_MAX_CHARS).contains(&characters) && name.chars().all(plain) && !name.starts_with('-') {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "a set's name has 1 to {NAME_MAX_CHARS} letters, digits and -_. and does not begin with '-'"
    )))
}

/// That a policy exists; empty means none.
async fn check_policy(core: &Core, policy: &str) -> Result<(), Status> {
    if policy.is_empty() { Ok(()) } else { has_policy(core, policy).await }
}

pub(super) fn no_set(name: &str) -> Status {
    Status::not_found(format!("there is no set named '{name}'; `tidemark set list` shows those there are"))
}

/// How points are to be taken: what is not said is as `before`.
fn pointing(asked: Option<SetPointing>, before: Pointing) -> Result<Pointing, Status> {
    let Some(asked) = asked else { return Ok(before) };
    let every_us = asked.every_us.unwrap_or(before.every_us);
    if every_us != 0 && !(EVERY_MIN_US..=EVERY_MAX_US).contains(&every_us) {
        return Err(Status::invalid_argument(format!(
            "automatic points come every {} ms to every day, or never with 0",
            EVERY_MIN_US / 1000
        )));
    }
    let hold = if asked.hold.is_empty() { before.hold } else { asked.hold };
    if HoldMode::of_word(&hold).is_none() {
        return Err(Status::invalid_argument(format!(
            "'{hold}' is no way to hold: write free, freeze or clock"
        )));
    }
    let fits = |pattern: &String| {
        (1..=NAME_MAX_CHARS).contains(&pattern.chars().count()) && !pattern.chars().any(char::is_control)
    };
    if asked.order.len() > ORDER_MAX || !asked.order.iter().all(fits) {
        return Err(Status::invalid_argument(format!(
            "the order of freeze hooks has at most {ORDER_MAX} patterns of names of 1 to {NAME_MAX_CHARS} characters"
        )));
    }
    let order = match (asked.order.is_empty(), asked.no_order) {
        (true, false) => before.order,
        _ => asked.order,
    };
    Ok(Pointing { every_us, hold, order })
}

async fn create(core: &Arc<Core>, caller: &Peer, request: CreateSetRequest) -> Result<SetInfo, Status> {
    check_name(&request.name)?;
    parse(&request.rules)?;
    check_policy(core, &request.policy).await?;
    let known = core.catalog.sets().await.map_err(catalog)?;
    if known.iter().any(|set| set.name == request.name) {
        let text =
            format!("a set named '{0}' exists: change it with `tidemark set change {0}`", request.name);
        return Err(Status::already_exists(text));
    }
    if known.len() >= SETS_MAX {
        return Err(Status::failed_precondition(format!("there are {SETS_MAX} sets, which is the most")));
    }
    let hold = HoldMode::default().word().to_owned();
    let defaults = Pointing { every_us: EVERY_DEFAULT_US, hold, order: Vec::new() };
    let pointing = pointing(request.points, defaults)?;
    // What was being taken or granted when a set of this name was removed may have come afterwards.
    core.catalog.forget_rights_of_set(&request.name).await.map_err(catalog)?;
    core.catalog.remove_set_points(&request.name).await.map_err(catalog)?;
    let row = SetRow::new(request.name, &request.rules, request.policy, now_us(), &pointing);
    store(core, caller, &row, "create set").await
}

async fn change(core: &Arc<Core>, caller: &Peer, request: ChangeSetRequest) -> Result<SetInfo, Status> {
    let known = core.catalog.sets().await.map_err(catalog)?;
    let old = known.iter().find(|set| set.name == request.name).ok_or_else(|| no_set(&request.name))?;
    let rules = if request.rules.is_empty() { old.rules() } else { request.rules };
    parse(&rules)?;
    let policy = request.policy.unwrap_or_else(|| old.policy().unwrap_or_default().to_owned());
    check_policy(core, &policy).await?;
    let pointing = pointing(request.points, old.pointing())?;
    let row = SetRow::new(request.name, &rules, policy, old.created_us(), &pointing);
    let changed = store(core, caller, &row, "change set").await?;
    if row.policy().is_none() {
        take_back_from(core, &row.name).await.map_err(catalog)?;
        core.retention.wake();
    }
    Ok(changed)
}

async fn store(core: &Arc<Core>, caller: &Peer, row: &SetRow, action: &str) -> Result<SetInfo, Status> {
    core.catalog.put_set(row).await.map_err(catalog)?;
    let (rules, pointing) = (row.rules().join(" or "), row.pointing());
    let detail = format!(
        "{rules}; policy {}; points every {} ms, hold {}, order {}",
        row.policy().unwrap_or("none"),
        pointing.every_us / 1000,
        pointing.hold,
        if pointing.order.is_empty() { "none".to_owned() } else { pointing.order.join(",") }
    );
    core.points.sets_changed();
    core.audit(&caller.role.uri(), action, &row.name, &detail).await;
    reconcile(core, action).await;
    core.retention.wake();
    show(core, &row.name).await
}

async fn remove(core: &Arc<Core>, caller: &Peer, name: &str) -> Result<Empty, Status> {
    if !core.catalog.remove_set(name).await.map_err(catalog)? {
        return Err(no_set(name));
    }
    let points = core.catalog.remove_set_points(name).await.map_err(catalog)?;
    core.points.sets_changed();
    rights::end_uncovered(core).await.map_err(catalog)?;
    core.audit(&caller.role.uri(), "remove set", name, &format!("and its {points} points")).await;
    reconcile(core, "remove set").await;
    Ok(Empty {})
}

async fn show(core: &Arc<Core>, name: &str) -> Result<SetInfo, Status> {
    let looked = Looked::at(core).await?;
    let set = looked.sets.iter().find(|set| set.name == name).ok_or_else(|| no_set(name))?;
    let changes = core.catalog.set_changes(name, CHANGES_SHOWN).await.map_err(catalog)?;
    let changes = changes.into_iter().map(|row| SetChange {
        at_us: row.at_us(),
        joined: row.joined(),
        vm: row.vm_name,
        cause: row.cause,
    });
    let newest = core.catalog.set_points(name, 0, u64::MAX, 1).await.map_err(catalog)?;
    let newest = newest.first().map(|row| set_points::info(core, row));
    Ok(SetInfo { changes: changes.collect(), newest, ..looked.info(set) })
}

/// All that is said of sets, as of one moment.
struct Looked {
    sets: Vec<Set>,
    vms: Vec<Tagged>,
    described: Vec<VmInfo>,
    noted: Vec<MemberRow>,
    assignments: Vec<AssignmentRow>,
}

impl Looked {
    async fn at(core: &Arc<Core>) -> Result<Self, Status> {
        Ok(Self {
            sets: sets::all(&core.catalog).await.map_err(catalog)?,
            vms: sets::candidates(&core.catalog, &core.fleet).await.map_err(catalog)?,
            described: describe_vms(core).await?,
            noted: core.catalog.set_members().await.map_err(catalog)?,
            assignments: core.catalog.assignments().await.map_err(catalog)?,
        })
    }

    fn info(&self, set: &Set) -> SetInfo {
        let members: Vec<SetMember> =
            self.vms.iter().filter(|vm| set.has(vm)).map(|vm| self.member(set, vm)).collect();
        let rpo_ms = members.iter().map(|member| member.rpo_ms).collect::<Option<Vec<_>>>();
        SetInfo {
            name: set.name.clone(),
            rules: set.rules.iter().map(ToString::to_string).collect(),
            policy: set.policy.clone().unwrap_or_default(),
            created_us: set.created_us,
            members,
            changes: Vec::new(),
            rpo_ms: rpo_ms.and_then(|all| all.into_iter().max()),
            points: Some(SetPointing {
                every_us: u64::try_from(set.every.as_micros()).ok(),
                hold: set.hold.word().to_owned(),
                order: set.order.clone(),
                no_order: set.order.is_empty(),
            }),
            newest: None,
        }
    }

    fn member(&self, set: &Set, vm: &Tagged) -> SetMember {
        let info = self.described.iter().find(|info| info.name == vm.vm.name);
        let noted = self.noted.iter().find(|row| row.set_name == set.name && row.vm() == Some(vm.vm.id));
        let others = self.sets.iter().filter(|other| other.name != set.name && other.has(vm));
        let own = self.assignments.iter().find(|row| row.is_of(vm.vm.id));
        let by_set = sets::policy_of(&self.sets, vm);
        let (policy, policy_by) = match (own, by_set) {
            (Some(own), _) => (own.policy.clone(), "own".to_owned()),
            (None, Some((set, policy))) => (policy.to_owned(), format!("set {}", set.name)),
            (None, None) => (DEFAULT_POLICY.to_owned(), DEFAULT_POLICY.to_owned()),
        };
        SetMember {
            vm: vm.vm.name.clone(),
            state: info.map(|info| info.state.clone()).unwrap_or_default(),
            rpo_ms: info.and_then(|info| info.rpo_ms),
            since_us: noted.map_or(0, MemberRow::since_us),
            rules: set.reasons(vm).iter().map(ToString::to_string).collect(),
            other_sets: others.map(|other| other.name.clone()).collect(),
            policy,
            policy_by,
        }
    }
}
