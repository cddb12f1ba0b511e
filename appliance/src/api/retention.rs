//! The retention service: the same callers and rights as the console's.

use std::sync::Arc;

use tidemark_journal::retention::SNAPSHOT_LOCK;
use tidemark_journal::{Pin, PinKind, RetentionError};
use tidemark_proto::v1::retention_server::Retention as RetentionCalls;
use tidemark_proto::v1::{
    ApplyPoliciesRequest, AssignPolicyRequest, Empty, HoldBookmarkRequest, HoldInfo, ListHoldsReply,
    ListHoldsRequest, PauseRetentionRequest, PoliciesReply, PolicyInfo, ReleaseBookmarkRequest,
    RunRetentionReply, RunRetentionRequest, RunRetentionVm,
};
use tonic::{Request, Response, Status};

use super::{blocking, caller, catalog, vm_named};
use crate::clock::now_us;
use crate::core::Core;
use crate::fleet::Vm;
use crate::recovery::rfc3339;
use crate::retention::{
    HOLD, LOCK, NamedPolicy, Ran, Retention, all, bookmark_of, defined, effective_of, parse,
};
use crate::sets;
use crate::transport::Peer;

/// Serves what concerns retention.
#[derive(Debug)]
pub struct RetentionService {
    core: Arc<Core>,
}

/// That a policy of this name exists.
pub(super) async fn has_policy(core: &Core, name: &str) -> Result<(), Status> {
    let known = all(&core.catalog.policies().await.map_err(catalog)?);
    if known.iter().any(|named| named.name == name) {
        return Ok(());
    }
    Err(Status::not_found(format!(
        "there is no policy named '{name}'; `tidemark policy list` shows those there are"
    )))
}

impl RetentionService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    async fn policies(&self) -> Result<PoliciesReply, Status> {
        let core = Arc::clone(&self.core);
        let rows = core.catalog.policies().await.map_err(catalog)?;
        let (all, defined) = (all(&rows), defined(&rows));
        let assignments = sets::assignments(&core).await.map_err(catalog)?;
        blocking(move || {
            let having: Vec<(String, String)> = core
                .fleet
                .with_clones()
                .iter()
                .map(|vm| (effective_of(&core, vm, &defined, &assignments).name, vm.name.clone()))
                .collect();
            let vms = |name: &str| {
                having.iter().filter(|(policy, _)| policy == name).map(|(_, vm)| vm.clone()).collect()
            };
            Ok(PoliciesReply { policies: all.iter().map(|named| info(named, vms(&named.name))).collect() })
        })
        .await
    }

    async fn apply(&self, caller: &Peer, request: ApplyPoliciesRequest) -> Result<PoliciesReply, Status> {
        let named = parse(&request.toml).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if named.is_empty() {
            return Err(Status::invalid_argument("there is no [policy.NAME] table in the file"));
        }
        let known = self.core.catalog.policies().await.map_err(catalog)?;
        if request.create
            && let Some(taken) = named.iter().find(|new| known.iter().any(|row| row.name == new.name))
        {
            return Err(Status::already_exists(format!(
                "a policy named '{}' exists: change it with `tidemark policy apply`",
                taken.name
            )));
        }
        for policy in &named {
            let body = policy.to_toml();
            if known.iter().any(|row| row.name == policy.name && row.body == body) {
                continue;
            }
            self.core.catalog.put_policy(&policy.name, &body, now_us()).await.map_err(catalog)?;
            self.core.audit(&caller.role.uri(), "set policy", &policy.name, &body).await;
        }
        self.core.retention.wake();
        self.policies().await
    }

    async fn assign(&self, caller: &Peer, request: AssignPolicyRequest) -> Result<Empty, Status> {
        let vm = vm_named(&self.core, &request.vm)?;
        has_policy(&self.core, &request.policy).await?;
        self.core.catalog.assign_policy(vm.id, &request.policy).await.map_err(catalog)?;
        self.core.audit(&caller.role.uri(), "assign policy", &vm.name, &request.policy).await;
        self.core.retention.wake();
        Ok(Empty {})
    }

    async fn hold(&self, caller: &Peer, request: HoldBookmarkRequest) -> Result<HoldInfo, Status> {
        let vm = vm_named(&self.core, &request.vm)?;
        let found = self.core.catalog.bookmark(vm.id, &request.bookmark).await.map_err(catalog)?;
        let bookmark = found.ok_or_else(|| {
            Status::not_found(format!("there is no bookmark named '{}' of '{}'", request.bookmark, vm.name))
        })?;
        let until_us = Some(request.until_us).filter(|until| *until > 0);
        let now_us = self.core.retention.now().locks_us;
        if until_us.is_some_and(|until| until <= now_us) {
            return Err(Status::invalid_argument(format!(
                "the bookmark cannot be kept until a time that is past: name one after {}",
                rfc3339(now_us)
            )));
        }
        let (prefix, kind) = if request.lock { (LOCK, PinKind::Lock) } else { (HOLD, PinKind::Bookmark) };
        let name = format!("{prefix}{}", request.bookmark);
        let pin = Pin { name, kind, lsn: bookmark.lsn(), until_us };
        let (core, held, target) = (Arc::clone(&self.core), pin.clone(), Arc::clone(&vm));
        blocking(move || {
            let journal = target.log.writable().map_err(|down| Status::unavailable(down.to_string()))?;
            journal.timeline().check(held.lsn, &[]).map_err(|error| {
                Status::failed_precondition(format!("the bookmark cannot be kept: {error}"))
            })?;
            journal.put_pin(held, core.retention.now().locks_us).map_err(refused)
        })
        .await?;
        let action = if request.lock { "lock bookmark" } else { "hold bookmark" };
        let until = until_us.map_or_else(|| "no end".to_owned(), rfc3339);
        self.core
            .audit(&caller.role.uri(), action, &vm.name, &format!("{} until {until}", request.bookmark))
            .await;
        Ok(hold_info(&pin))
    }

    async fn release(&self, caller: &Peer, request: ReleaseBookmarkRequest) -> Result<Empty, Status> {
        let vm = vm_named(&self.core, &request.vm)?;
        let (core, target) = (Arc::clone(&self.core), Arc::clone(&vm));
        let name = request.bookmark.clone();
        blocking(move || {
            let journal = target.log.writable().map_err(|down| Status::unavailable(down.to_string()))?;
            let now_us = core.retention.now().locks_us;
            let pins = journal.pins();
            let pinned = |prefix: &str| pins.iter().find(|pin| pin.name == format!("{prefix}{name}"));
            let (hold, lock) = (pinned(HOLD), pinned(LOCK));
            if hold.is_none() && lock.is_none() {
                return Err(Status::not_found(format!("nothing holds bookmark '{name}'")));
            }
            // The lock first: who is told that it stands has lost nothing.
            for pin in [lock, hold].into_iter().flatten() {
                journal.revoke_pin(&pin.name, now_us).map_err(refused)?;
            }
            Ok(())
        })
        .await?;
        self.core.audit(&caller.role.uri(), "release bookmark", &vm.name, &request.bookmark).await;
        self.core.retention.wake();
        Ok(Empty {})
    }

    fn holds(&self, vm: &Vm) -> Result<ListHoldsReply, Status> {
        let journal = vm.log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
        let now_us = self.core.retention.now().locks_us.max(journal.retention_clock());
        let mut pins = journal.pins();
        pins.retain(|pin| {
            matches!(pin.kind, PinKind::Bookmark | PinKind::Lock)
                && pin.until_us.is_none_or(|until| now_us < until)
        });
        Ok(ListHoldsReply { holds: pins.iter().map(hold_info).collect() })
    }
}

fn refused(error: RetentionError) -> Status {
    match error {
        RetentionError::Locked { name, until_us } => Status::failed_precondition(format!(
            "{name} is locked until {}: nobody can release or shorten it",
            rfc3339(until_us)
        )),
        RetentionError::Gone { .. } => Status::failed_precondition(
            "the bookmark's point was given up already: it is older than the window",
        ),
        RetentionError::Invalid(problem) => Status::invalid_argument(problem),
        error => Status::unavailable(error.to_string()),
    }
}

fn hold_info(pin: &Pin) -> HoldInfo {
    let name = match bookmark_of(pin) {
        Some(bookmark) => format!("bookmark:{bookmark}"),
        None => pin.name.strip_prefix(SNAPSHOT_LOCK).map_or(pin.name.clone(), |lsn| format!("lsn:{lsn}")),
    };
    let kind = if pin.kind == PinKind::Lock { "lock" } else { "hold" };
    HoldInfo { name, kind: kind.into(), lsn: pin.lsn.0, until_us: pin.until_us.unwrap_or(0) }
}

fn info(named: &NamedPolicy, vms: Vec<String>) -> PolicyInfo {
    let (policy, schedule) = (&named.policy, &named.policy.schedule);
    PolicyInfo {
        name: named.name.clone(),
        toml: named.to_toml(),
        window_us: policy.window_us,
        window_min_us: policy.window_min_us,
        window_bytes: policy.window_bytes.unwrap_or(0),
        hourly: schedule.hourly,
        daily: schedule.daily,
        weekly: schedule.weekly,
        monthly: schedule.monthly,
        yearly: schedule.yearly,
        lock_us: policy.lock_us,
        vms,
    }
}

fn ran(ran: Ran) -> RunRetentionVm {
    let (done, problem) = match ran.outcome {
        Ok(done) if done.held_back => (done, "a view, clone or replica keeps more".to_owned()),
        Ok(done) => (done, String::new()),
        Err(problem) => (tidemark_journal::retention::Advanced::default(), problem),
    };
    RunRetentionVm {
        vm: ran.vm,
        base_lsn: done.base.map_or(0, |lsn| lsn.0),
        folded_bytes: done.folded_bytes,
        snapshots_made: done.made,
        snapshots_given_up: done.given_up,
        segments_dropped: done.segments,
        problem,
    }
}

#[tonic::async_trait]
impl RetentionCalls for RetentionService {
    async fn apply_policies(
        &self,
        request: Request<ApplyPoliciesRequest>,
    ) -> Result<Response<PoliciesReply>, Status> {
        let caller = caller(&request)?;
        self.apply(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_policies(&self, _: Request<Empty>) -> Result<Response<PoliciesReply>, Status> {
        self.policies().await.map(Response::new)
    }

    async fn assign_policy(&self, request: Request<AssignPolicyRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        self.assign(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn run_retention(
        &self,
        request: Request<RunRetentionRequest>,
    ) -> Result<Response<RunRetentionReply>, Status> {
        let caller = caller(&request)?;
        let name = request.into_inner().vm;
        let only = if name.is_empty() { None } else { Some(vm_named(&self.core, &name)?) };
        self.core.audit(&caller.role.uri(), "run retention", &name, "").await;
        let (sender, done) = tokio::sync::oneshot::channel();
        let core = Arc::clone(&self.core);
        // It goes on when the caller leaves, and shutdown waits for it.
        self.core.tasks.spawn(async move {
            let _ = sender.send(Retention::run(&core, only.as_ref(), true).await);
        });
        let vms = done.await.map_err(|_| Status::unavailable("the run ended early"))?;
        Ok(Response::new(RunRetentionReply { vms: vms.into_iter().map(ran).collect() }))
    }

    async fn pause_retention(
        &self,
        request: Request<PauseRetentionRequest>,
    ) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        let paused = request.into_inner().paused;
        self.core.retention.pause(paused);
        let action = if paused { "pause retention" } else { "resume retention" };
        self.core.audit(&caller.role.uri(), action, "", "").await;
        Ok(Response::new(Empty {}))
    }

    async fn hold_bookmark(
        &self,
        request: Request<HoldBookmarkRequest>,
    ) -> Result<Response<HoldInfo>, Status> {
        let caller = caller(&request)?;
        self.hold(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn release_bookmark(
        &self,
        request: Request<ReleaseBookmarkRequest>,
    ) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        self.release(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_holds(
        &self,
        request: Request<ListHoldsRequest>,
    ) -> Result<Response<ListHoldsReply>, Status> {
        let vm = vm_named(&self.core, &request.into_inner().vm)?;
        self.holds(&vm).map(Response::new)
    }
}
