//! `tidemark policy`.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tidemark_proto::v1::{
    ApplyPoliciesRequest, AssignPolicyRequest, Empty, PauseRetentionRequest, PoliciesReply, PolicyInfo,
    RunRetentionReply, RunRetentionRequest,
};

use crate::appliance::{RetentionClient, refused};
use crate::cli::{CreatePolicyArguments, PolicyCommand};
use crate::output::{self, Table};
use crate::{moment, size};

pub(super) async fn run(mut client: RetentionClient, command: PolicyCommand, json: bool) -> Result<()> {
    match command {
        PolicyCommand::Create(arguments) => {
            let toml = to_toml(&arguments)?;
            let reply = client.apply_policies(ApplyPoliciesRequest { toml, create: true }).await;
            let policies = reply.map_err(|status| refused(&status))?.into_inner().policies;
            let made = policies.into_iter().filter(|policy| policy.name == arguments.name);
            list(&PoliciesReply { policies: made.collect() }, json)
        }
        PolicyCommand::List => list(&all(&mut client).await?, json),
        PolicyCommand::Show { name } => {
            let reply = all(&mut client).await?;
            let Some(policy) = reply.policies.iter().find(|policy| policy.name == name) else {
                bail!("there is no policy named '{name}'; `tidemark policy list` shows those there are");
            };
            if json { output::json(&to_json(policy)) } else { output::line(policy.toml.trim_end()) }
        }
        PolicyCommand::Apply { file } => {
            let toml = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            let reply = client.apply_policies(ApplyPoliciesRequest { toml, create: false }).await;
            list(&reply.map_err(|status| refused(&status))?.into_inner(), json)
        }
        PolicyCommand::Assign { policy, vm } => {
            let request = AssignPolicyRequest { policy: policy.clone(), vm: vm.clone() };
            client.assign_policy(request).await.map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "vm": vm, "policy": policy }))
            } else {
                output::line(&format!("{vm} has policy {policy} now."))
            }
        }
        PolicyCommand::Run { vm } => {
            let request = RunRetentionRequest { vm: vm.unwrap_or_default() };
            let reply = client.run_retention(request).await.map_err(|status| refused(&status))?.into_inner();
            ran(&reply, json)
        }
        PolicyCommand::Pause => pause(&mut client, true, json).await,
        PolicyCommand::Resume => pause(&mut client, false, json).await,
    }
}

async fn all(client: &mut RetentionClient) -> Result<PoliciesReply> {
    Ok(client.list_policies(Empty {}).await.map_err(|status| refused(&status))?.into_inner())
}

async fn pause(client: &mut RetentionClient, paused: bool, json: bool) -> Result<()> {
    client.pause_retention(PauseRetentionRequest { paused }).await.map_err(|status| refused(&status))?;
    if json {
        output::json(&json!({ "paused": paused }))
    } else if paused {
        output::line("Folding is paused: journals grow until `tidemark policy resume`.")
    } else {
        output::line("Folding goes on.")
    }
}

/// The appliance reads TOML, so that a file and a command line mean the same.
fn to_toml(arguments: &CreatePolicyArguments) -> Result<String> {
    let CreatePolicyArguments { name, window, window_min, window_size, lock, .. } = arguments;
    let quoted = [Some(name), Some(window), window_min.as_ref(), window_size.as_ref(), lock.as_ref()];
    if quoted.into_iter().flatten().any(|text| text.contains(['"', '\\']) || text.contains(char::is_control))
    {
        bail!(crate::cli::UsageError(
            "names, times and sizes have no quotes and no control characters".into()
        ));
    }
    let mut toml = format!("[policy.\"{name}\"]\nwindow = \"{window}\"\n");
    for (key, value) in [("window-min", window_min), ("window-size", window_size), ("lock", lock)] {
        if let Some(value) = value {
            writeln!(toml, "{key} = \"{value}\"")?;
        }
    }
    for (key, count) in [
        ("hourly", arguments.hourly),
        ("daily", arguments.daily),
        ("weekly", arguments.weekly),
        ("monthly", arguments.monthly),
        ("yearly", arguments.yearly),
    ] {
        writeln!(toml, "{key} = {count}")?;
    }
    Ok(toml)
}

fn to_json(policy: &PolicyInfo) -> Value {
    json!({
        "name": policy.name,
        "window_seconds": policy.window_us / 1_000_000,
        "window_min_seconds": policy.window_min_us / 1_000_000,
        "window_bytes": (policy.window_bytes > 0).then_some(policy.window_bytes),
        "hourly": policy.hourly, "daily": policy.daily, "weekly": policy.weekly,
        "monthly": policy.monthly, "yearly": policy.yearly,
        "lock_seconds": (policy.lock_us > 0).then_some(policy.lock_us / 1_000_000),
        "vms": policy.vms,
    })
}

fn list(reply: &PoliciesReply, json: bool) -> Result<()> {
    if json {
        return output::json(&reply.policies.iter().map(to_json).collect::<Vec<_>>());
    }
    let mut table =
        Table::new(["POLICY", "WINDOW", "AT LEAST", "SIZE", "HOURS/DAYS/WEEKS/MONTHS/YEARS", "LOCK", "VMS"]);
    for policy in &reply.policies {
        let length = |us: u64| moment::length(us / 1000);
        let some = |value: u64, shown: String| if value > 0 { shown } else { "-".to_owned() };
        table.row([
            policy.name.clone(),
            length(policy.window_us),
            length(policy.window_min_us),
            some(policy.window_bytes, size::show(policy.window_bytes)),
            format!(
                "{}/{}/{}/{}/{}",
                policy.hourly, policy.daily, policy.weekly, policy.monthly, policy.yearly
            ),
            some(policy.lock_us, length(policy.lock_us)),
            policy.vms.join(" "),
        ]);
    }
    table.print()
}

fn ran(reply: &RunRetentionReply, json: bool) -> Result<()> {
    if json {
        let shown = reply.vms.iter().map(|vm| {
            json!({
                "vm": vm.vm, "base_lsn": vm.base_lsn, "folded_bytes": vm.folded_bytes,
                "snapshots_made": vm.snapshots_made, "snapshots_given_up": vm.snapshots_given_up,
                "segments_dropped": vm.segments_dropped,
                "problem": (!vm.problem.is_empty()).then_some(&vm.problem),
            })
        });
        output::json(&shown.collect::<Vec<_>>())?;
    } else {
        let mut table = Table::new(["VM", "LOG FROM", "FOLDED", "SNAPSHOTS", "SEGMENTS", ""]);
        for vm in &reply.vms {
            table.row([
                vm.vm.clone(),
                if vm.base_lsn > 0 { format!("lsn:{}", vm.base_lsn) } else { "the first write".to_owned() },
                size::show(vm.folded_bytes),
                format!("+{} -{}", vm.snapshots_made, vm.snapshots_given_up),
                format!("-{}", vm.segments_dropped),
                vm.problem.clone(),
            ]);
        }
        table.print()?;
    }
    match reply.vms.iter().find(|vm| !vm.problem.is_empty()) {
        Some(vm) => bail!("{}: {}", vm.vm, vm.problem),
        None => Ok(()),
    }
}
