//! `tidemark vm`.

use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tidemark_proto::v1::{ListVmsRequest, RemoveVmRequest, VmDisk, VmInfo};

use super::job;
use crate::appliance::{Client, refused};
use crate::cli::{VmCommand, VmState};
use crate::output::{self, Table};
use crate::{moment, size};

/// How often `vm wait` asks.
const WAIT_INTERVAL: Duration = Duration::from_millis(250);

pub(super) async fn run(mut client: Client, command: VmCommand, json: bool) -> Result<()> {
    match command {
        VmCommand::List => {
            let vms = list(&mut client, "").await?;
            if json {
                return output::json(&vms.iter().map(to_json).collect::<Vec<_>>());
            }
            let mut table = Table::new(["NAME", "STATE", "WOULD LOSE", "DISKS", "SIZE", "JOURNAL"]);
            for vm in vms {
                let total = vm.disks.iter().map(|disk| disk.size_bytes).fold(0, u64::saturating_add);
                let loss = would_lose(&vm);
                let (disks, journal) = (vm.disks.len().to_string(), size::show(vm.journal_bytes));
                table.row([vm.name, vm.state, loss, disks, size::show(total), journal]);
            }
            table.print()
        }
        // Done by the services that they are of.
        VmCommand::Tag { .. } | VmCommand::Verify(_) => Ok(()),
        VmCommand::Show { name } => {
            let vm = one(&mut client, &name).await?;
            if json { output::json(&to_json(&vm)) } else { show(&vm) }
        }
        VmCommand::Remove { name, yes } => {
            if !yes {
                confirm(&name)?;
            }
            client
                .remove_vm(RemoveVmRequest { name: name.clone() })
                .await
                .map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "name": name }))
            } else {
                output::line(&format!("{name} and its journal are removed."))
            }
        }
        VmCommand::Wait { name, state, timeout } => {
            let vm = wait(&mut client, &name, state, timeout).await?;
            if json { output::json(&to_json(&vm)) } else { output::line(&format!("{name} is {}.", vm.state)) }
        }
    }
}

/// The fields of the command line contract, and a few more.
pub(super) fn to_json(vm: &VmInfo) -> Value {
    let disks: Vec<_> = vm
        .disks
        .iter()
        .map(|disk| {
            json!({
                "id": disk.id, "path": disk.path, "size_bytes": disk.size_bytes, "identity": disk.identity,
                "state": disk.state, "dirty_bytes": disk.dirty_bytes, "copied_bytes": disk.copied_bytes,
                "sent_bytes": disk.sent_bytes, "left_ms": disk.left_ms,
            })
        })
        .collect();
    let sync: Vec<_> = vm
        .sync
        .iter()
        .map(|volume| {
            json!({
                "volume": volume.volume, "in_force": volume.in_force, "cause": volume.cause,
                "proven_until": volume.proven_until_us.and_then(moment::json),
            })
        })
        .collect();
    json!({
        "name": vm.name, "id": vm.id, "state": vm.state, "reason": vm.reason, "generation": vm.generation,
        "captured_lsn": vm.captured_lsn, "durable_lsn": vm.durable_lsn, "latest_lsn": vm.latest_lsn,
        "rpo_ms": vm.rpo_ms, "lag_bytes": vm.lag_bytes, "spool_bytes": vm.spool_bytes,
        "spool_limit_bytes": vm.spool_limit_bytes, "journal_bytes": vm.journal_bytes,
        "payload_bytes": vm.payload_bytes, "disks": disks, "verify": vm.verify.as_ref().map(job::to_json),
        "sync": sync,
    })
}

/// "0.7 s / 3.1 MB", or "everything" before the first recoverable point.
pub(super) fn would_lose(vm: &VmInfo) -> String {
    vm.rpo_ms.map_or_else(
        || "everything".to_owned(),
        |rpo_ms| format!("{} / {}", moment::length(rpo_ms), size::show(vm.lag_bytes)),
    )
}

/// "12.3 MB, 4.0 s" while something is read, else "-": the time of the disk that takes longest.
pub(super) fn to_read(disks: &[VmDisk]) -> String {
    let bytes = disks.iter().map(|disk| disk.dirty_bytes).fold(0, u64::saturating_add);
    let left_ms = disks.iter().filter_map(|disk| disk.left_ms).max();
    match (bytes, left_ms) {
        (0, _) => "-".to_owned(),
        (bytes, None) => size::show(bytes),
        (bytes, Some(left_ms)) => format!("{}, {}", size::show(bytes), moment::length(left_ms)),
    }
}

async fn list(client: &mut Client, name: &str) -> Result<Vec<VmInfo>> {
    let reply = client.list_vms(ListVmsRequest { name: name.to_owned() }).await;
    Ok(reply.map_err(|status| refused(&status))?.into_inner().vms)
}

async fn find(client: &mut Client, name: &str) -> Result<Option<VmInfo>> {
    let reply = client.list_vms(ListVmsRequest { name: name.to_owned() }).await;
    match reply {
        Ok(reply) => Ok(reply.into_inner().vms.into_iter().find(|vm| vm.name == name || vm.id == name)),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(refused(&status)),
    }
}

async fn one(client: &mut Client, name: &str) -> Result<VmInfo> {
    find(client, name).await?.with_context(|| format!("no VM named '{name}': see `tidemark vm list`"))
}

fn show(vm: &VmInfo) -> Result<()> {
    let mut lines = vec![format!("{}  {}", vm.name, vm.state)];
    if !vm.reason.is_empty() {
        lines.push(format!("  {}", vm.reason.replace(char::is_control, " ")));
    }
    lines.push(format!("  would lose    {}", would_lose(vm)));
    lines.push(format!("  latest point  lsn:{}", vm.latest_lsn));
    lines.push(format!("  durable       lsn:{} of {} captured", vm.durable_lsn, vm.captured_lsn));
    if vm.spool_bytes > 0 {
        let (waiting, limit) = (size::show(vm.spool_bytes), size::show(vm.spool_limit_bytes));
        lines.push(format!("  behind        {waiting} wait in the guest's spool of {limit}"));
    }
    if let Some(job) = &vm.verify {
        lines.push(format!("  verify        {} compared, job {}", job::done_of(job), job.id));
    }
    for volume in &vm.sync {
        let until = volume
            .proven_until_us
            .map_or_else(|| "never".to_owned(), |us| format!("until {}", moment::local(us)));
        let cause = if volume.in_force { String::new() } else { format!(", NOT IN FORCE: {}", volume.cause) };
        let text = format!("  sync          {} proven {until}{cause}", volume.volume);
        lines.push(text.replace(char::is_control, " "));
    }
    lines.push(format!("  generation    {}", vm.generation));
    lines.push(format!(
        "  journal       {} for {} written",
        size::show(vm.journal_bytes),
        size::show(vm.payload_bytes)
    ));
    output::line(&lines.join("\n"))?;
    let mut table = Table::new(["DISK", "PATH", "SIZE", "STATE", "STILL TO READ", "SENT"]);
    for disk in &vm.disks {
        let to_read = to_read(std::slice::from_ref(disk));
        let sent = if disk.dirty_bytes > 0 { size::show(disk.sent_bytes) } else { "-".to_owned() };
        table.row([
            disk.id.clone(),
            disk.path.clone(),
            size::show(disk.size_bytes),
            disk.state.clone(),
            to_read,
            sent,
        ]);
    }
    if table.is_empty() { Ok(()) } else { table.print() }
}

/// Nobody deletes history by a slip of the finger. Scripts, which have no terminal, are not asked.
fn confirm(name: &str) -> Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(());
    }
    let question = format!(
        "This deletes the journal of {name}; no point of it can be recovered afterwards. Type its name: "
    );
    std::io::stderr().write_all(question.as_bytes()).context("ask")?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("read the answer")?;
    if answer.trim() != name {
        bail!("not removed: the answer is not '{name}'");
    }
    Ok(())
}

async fn wait(client: &mut Client, name: &str, state: VmState, timeout: Duration) -> Result<VmInfo> {
    let started = Instant::now();
    loop {
        // A VM that is not enrolled yet may be soon.
        let vm = find(client, name).await?;
        match vm {
            Some(vm) if vm.state == state.word() => return Ok(vm),
            _ if started.elapsed() < timeout => tokio::time::sleep(WAIT_INTERVAL).await,
            None => bail!("no VM named '{name}' after {} s: is its splitter enrolled?", timeout.as_secs()),
            Some(vm) => {
                let reason = if vm.reason.is_empty() { String::new() } else { format!(" ({})", vm.reason) };
                bail!(
                    "{name} is {} instead of {} after {} s{reason}: see `tidemark vm show {name}`",
                    vm.state,
                    state.word(),
                    timeout.as_secs()
                );
            }
        }
    }
}
