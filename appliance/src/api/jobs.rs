//! Long work that administrators start and watch: the verify of a VM.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_proto::v1::jobs_server::Jobs;
use tidemark_proto::v1::{CancelJobRequest, JobInfo, ListJobsRequest, ListJobsResponse, VerifyVmRequest};
use tidemark_proto::version;
use tokio::sync::mpsc::error::TrySendError;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::views::optional_disk;
use super::{caller, catalog, has_disk, vm_named};
use crate::clock::now_us;
use crate::core::Core;
use crate::fleet::{Command, VerifyJob, Vm};
use crate::transport::Peer;

/// How long a splitter has to end a job that is cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the job is looked at meanwhile.
const CANCEL_POLL: Duration = Duration::from_millis(20);

/// Serves jobs: the same callers and rights as the console's.
#[derive(Debug)]
pub struct JobsService {
    core: Arc<Core>,
}

impl JobsService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn verify_vm(&self, request: Request<VerifyVmRequest>) -> Result<Response<JobInfo>, Status> {
        let caller = caller(&request)?;
        verify(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        list(&self.core, request.into_inner()).await.map(Response::new)
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<JobInfo>, Status> {
        let caller = caller(&request)?;
        cancel(&self.core, &caller, &request.into_inner().id).await.map(Response::new)
    }
}

/// The disks to verify; empty for all.
fn disks_of(vm: &Vm, disk: &str) -> Result<Vec<u32>, Status> {
    let Some(disk) = optional_disk(disk)? else { return Ok(Vec::new()) };
    has_disk(vm, disk)?;
    Ok(vec![disk.0])
}

async fn verify(core: &Arc<Core>, caller: &Peer, request: VerifyVmRequest) -> Result<JobInfo, Status> {
    let vm = vm_named(core, &request.vm)?;
    let name = &vm.name;
    if vm.origin.is_some() {
        let text = format!("'{name}' is a clone: no disk in a guest stands behind it");
        return Err(Status::failed_precondition(text));
    }
    let disks = disks_of(&vm, &request.disk)?;
    let session = vm.session().ok_or_else(|| {
        let end = vm.live().last_end.map(|end| format!(" ({end})")).unwrap_or_default();
        Status::failed_precondition(format!(
            "the splitter of '{name}' is not connected{end}: a verify reads its disks; try again when \
             `tidemark vm show {name}` says protected"
        ))
    })?;
    if session.protocol < version::VERIFY {
        let software: String = session.software.chars().filter(|c| !c.is_control()).collect();
        return Err(Status::failed_precondition(format!(
            "the splitter of '{name}' ({software}) speaks protocol {}, a verify needs {}: upgrade it",
            session.protocol,
            version::VERIFY
        )));
    }
    let job = VerifyJob::new(Uuid::new_v4().to_string(), disks, now_us());
    vm.begin_verify(job.clone()).map_err(|running| {
        Status::failed_precondition(format!(
            "a verify of '{name}' is running already: wait for it with `tidemark job wait {running}`"
        ))
    })?;
    if let Err(error) = core.catalog.begin_verify(vm.id, &job).await {
        vm.fail_verify(&job.id, "it could not be noted".into(), now_us());
        return Err(catalog(error));
    }
    // A session that is ending takes nothing more; the next one finds the job with the VM. One that has too much to do
    // would not learn of the job, and no other verify could begin.
    if let Err(TrySendError::Full(_)) = session.commands.try_send(Command::Verify) {
        let reason = format!("the session of '{name}' has too much to do: try again");
        if let Some(job) = vm.fail_verify(&job.id, reason.clone(), now_us()) {
            core.catalog.keep_verify(&job).await.map_err(catalog)?;
        }
        return Err(Status::resource_exhausted(reason));
    }
    core.audit(&caller.role.uri(), "verify", name, &request.disk).await;
    Ok(job.info(name))
}

/// Ends a verify: by its splitter, which knows what it has found, or at once where none is connected.
async fn cancel(core: &Arc<Core>, caller: &Peer, id: &str) -> Result<JobInfo, Status> {
    let running = |vm: &Arc<Vm>| vm.verify().is_some_and(|job| job.is_running() && job.id == id);
    let Some(vm) = core.fleet.all().into_iter().find(running) else {
        let request = ListJobsRequest { id: id.to_owned(), ..ListJobsRequest::default() };
        let known = list(core, request).await?.jobs.pop();
        let state = known.map(|job| job.state).unwrap_or_default();
        return Err(Status::failed_precondition(format!("the job has ended already: it is {state}")));
    };
    core.audit(&caller.role.uri(), "cancel", &vm.name, id).await;
    if vm.session().is_some_and(|session| session.commands.try_send(Command::CancelVerify).is_ok()) {
        let until = Instant::now() + CANCEL_TIMEOUT;
        while running(&vm) {
            if Instant::now() >= until {
                return Err(Status::deadline_exceeded(format!(
                    "the splitter of '{}' has not ended the verify within {} s; `tidemark job list` shows when it does",
                    vm.name,
                    CANCEL_TIMEOUT.as_secs()
                )));
            }
            tokio::time::sleep(CANCEL_POLL).await;
        }
    }
    if let Some(job) = vm.fail_verify(id, "cancelled".into(), now_us()) {
        let journal = vm.log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
        core.catalog.keep_found(vm.id, &journal.timeline(), job).await.map_err(catalog)?;
    }
    let job = vm.verify().filter(|job| job.id == id);
    job.map(|job| job.info(&vm.name)).ok_or_else(super::interrupted)
}

async fn list(core: &Arc<Core>, request: ListJobsRequest) -> Result<ListJobsResponse, Status> {
    let rows = match request.vm.as_str() {
        "" => core.catalog.verifies().await,
        name => core.catalog.verifies_of(vm_named(core, name)?.id).await,
    };
    let vms = core.fleet.all();
    let live: HashMap<String, JobInfo> = vms
        .iter()
        .filter_map(|vm| Some((vm.verify()?, vm)))
        .map(|(job, vm)| (job.id.clone(), job.info(&vm.name)))
        .collect();
    let jobs: Vec<JobInfo> = rows
        .map_err(catalog)?
        .into_iter()
        .filter(|row| request.id.is_empty() || row.id == request.id)
        .filter_map(|row| {
            let vm = row.vm().and_then(|id| vms.iter().find(|vm| vm.id == id))?;
            Some(live.get(&row.id).cloned().unwrap_or_else(|| row.job().info(&vm.name)))
        })
        .collect();
    if jobs.is_empty() && !request.id.is_empty() {
        let text = format!("there is no job '{}'; `tidemark job list` shows those there are", request.id);
        return Err(Status::not_found(text));
    }
    Ok(ListJobsResponse { jobs, appliance_time_us: now_us() })
}
