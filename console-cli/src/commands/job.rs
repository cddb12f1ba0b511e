//! `tidemark job`, and `tidemark vm verify`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tidemark_proto::v1::{CancelJobRequest, JobDisk, JobInfo, ListJobsRequest, VerifyVmRequest};

use crate::appliance::{JobsClient, refused};
use crate::cli::{JobCommand, VerifyArguments};
use crate::output::{self, Table};
use crate::{moment, progress, size};

/// How often a job that is waited for is asked about.
const WAIT_INTERVAL: Duration = Duration::from_millis(250);

pub(super) async fn run(mut client: JobsClient, command: JobCommand, json: bool) -> Result<()> {
    match command {
        JobCommand::List => {
            let jobs = list(&mut client, "").await?;
            if json {
                return output::json(&jobs.iter().map(to_json).collect::<Vec<_>>());
            }
            show(jobs)
        }
        JobCommand::Cancel { id } => {
            let request = CancelJobRequest { id };
            let job = client.cancel_job(request).await.map_err(|status| refused(&status))?.into_inner();
            if json {
                return output::json(&to_json(&job));
            }
            output::line(&format!(
                "The {} of {} has ended: {} were compared.",
                job.kind,
                job.vm,
                done_of(&job)
            ))
        }
        JobCommand::Wait { id, timeout } => ended(&wait(&mut client, &id, timeout).await?, json),
    }
}

/// `tidemark vm verify`.
pub(super) async fn verify(mut client: JobsClient, arguments: VerifyArguments, json: bool) -> Result<()> {
    let disk = arguments.disk.map(|disk| disk.to_string()).unwrap_or_default();
    let request = VerifyVmRequest { vm: arguments.name, disk };
    let job = client.verify_vm(request).await.map_err(|status| refused(&status))?.into_inner();
    if arguments.wait {
        return ended(&wait(&mut client, &job.id, None).await?, json);
    }
    if json {
        return output::json(&to_json(&job));
    }
    output::line(&format!("The verify of {} has begun: tidemark job wait {}", job.vm, job.id))
}

async fn list(client: &mut JobsClient, id: &str) -> Result<Vec<JobInfo>> {
    let request = ListJobsRequest { id: id.to_owned(), vm: String::new() };
    Ok(client.list_jobs(request).await.map_err(|status| refused(&status))?.into_inner().jobs)
}

async fn wait(client: &mut JobsClient, id: &str, timeout: Option<Duration>) -> Result<JobInfo> {
    let (started, mut bar) = (Instant::now(), None);
    loop {
        let job = list(client, id).await?.pop().with_context(|| format!("there is no job '{id}'"))?;
        follow(&mut bar, &job);
        if job.state != "running" {
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            return Ok(job);
        }
        if timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            bail!(
                "the job is still running after {} s ({}): see `tidemark job list`",
                started.elapsed().as_secs(),
                done_of(&job)
            );
        }
        tokio::time::sleep(WAIT_INTERVAL).await;
    }
}

fn follow(bar: &mut Option<ProgressBar>, job: &JobInfo) {
    let total = sum(job, |disk| disk.total_bytes);
    if total > 0 {
        let bar = bar.get_or_insert_with(|| progress::bytes(total, &job.vm));
        bar.set_length(total);
        bar.set_position(compared(job));
    }
}

fn sum(job: &JobInfo, of: impl Fn(&JobDisk) -> u64) -> u64 {
    job.disks.iter().map(of).fold(0, u64::saturating_add)
}

/// Bytes that the job is done with.
fn compared(job: &JobInfo) -> u64 {
    // What differed before the splitter began a disk anew is compared again.
    let done = |disk: &JobDisk| {
        let compared = disk.equal_bytes.saturating_add(disk.differing_bytes);
        compared.saturating_add(disk.skipped_bytes).min(disk.total_bytes)
    };
    sum(job, done)
}

/// "1.2 GB of 4.3 GB".
pub(super) fn done_of(job: &JobInfo) -> String {
    format!("{} of {}", size::show(compared(job)), size::show(sum(job, |disk| disk.total_bytes)))
}

pub(super) fn to_json(job: &JobInfo) -> Value {
    let disks: Vec<_> = job
        .disks
        .iter()
        .map(|disk| {
            let places: Vec<_> = disk
                .differing
                .iter()
                .map(|range| json!({ "offset": range.offset, "bytes": range.bytes }))
                .collect();
            json!({
                "id": disk.id, "total_bytes": disk.total_bytes,
                "compared_bytes": disk.equal_bytes.saturating_add(disk.differing_bytes),
                "equal_bytes": disk.equal_bytes, "differing_bytes": disk.differing_bytes,
                "skipped_bytes": disk.skipped_bytes, "begin_lsn": disk.begin_lsn, "differing": places,
            })
        })
        .collect();
    json!({
        "id": job.id, "kind": job.kind, "vm": job.vm, "state": job.state, "reason": job.reason,
        "begun": moment::json(job.begun_us), "ended": moment::json(job.ended_us), "disks": disks,
    })
}

fn show(jobs: Vec<JobInfo>) -> Result<()> {
    if jobs.is_empty() {
        return output::line("No jobs: `tidemark vm verify NAME` begins one.");
    }
    let mut table = Table::new(["ID", "KIND", "VM", "STATE", "BEGUN", "DONE", "DIFFERING", ""]);
    for job in jobs {
        let (done, differing) = (done_of(&job), size::show(sum(&job, |disk| disk.differing_bytes)));
        let begun = moment::local(job.begun_us);
        table.row([job.id, job.kind, job.vm, job.state, begun, done, differing, job.reason]);
    }
    table.print()
}

/// Prints the outcome. What differed is a failure: a script must not take it for none.
fn ended(job: &JobInfo, json: bool) -> Result<()> {
    if json {
        output::json(&to_json(job))?;
    } else {
        let mut table = Table::new(["DISK", "COMPARED", "EQUAL", "DIFFERING", "SKIPPED", "PLACES"]);
        for disk in &job.disks {
            let places: Vec<_> =
                disk.differing.iter().map(|range| format!("{}+{}", range.offset, range.bytes)).collect();
            table.row([
                disk.id.clone(),
                size::show(disk.equal_bytes.saturating_add(disk.differing_bytes)),
                size::show(disk.equal_bytes),
                size::show(disk.differing_bytes),
                size::show(disk.skipped_bytes),
                places.join(" "),
            ]);
        }
        table.print()?;
    }
    let skipped = sum(job, |disk| disk.skipped_bytes);
    if skipped > 0 {
        output::warning(&format!(
            "{} of {} were not compared: they were written all the time, or their disk is not protected any more; run `tidemark \
             vm verify {}` again",
            size::show(skipped),
            job.vm,
            job.vm
        ));
    }
    if job.state == "failed" {
        bail!("the verify of {} failed: {}", job.vm, job.reason);
    }
    let differing = sum(job, |disk| disk.differing_bytes);
    if differing > 0 {
        bail!(
            "{} of {} were not as in the journal, and were read again: `tidemark point list {}` shows which points are \
             in doubt",
            size::show(differing),
            job.vm,
            job.vm
        );
    }
    Ok(())
}
