//! `tidemark status`: one screen.

use anyhow::Result;
use serde_json::json;
use tidemark_proto::v1::{Empty, StatusReply};

use super::{job, vm};
use crate::appliance::{Client, refused};
use crate::output::{self, Table};
use crate::{moment, size};

pub(super) async fn run(mut client: Client, json: bool) -> Result<()> {
    let reply = client.status(Empty {}).await.map_err(|status| refused(&status))?.into_inner();
    if json {
        let alarms: Vec<_> = reply
            .alarms
            .iter()
            .map(|alarm| json!({ "vm": alarm.vm, "severity": alarm.severity, "text": alarm.text }))
            .collect();
        return output::json(&json!({
            "version": reply.version, "time": moment::json(reply.appliance_time_us),
            "data_free_bytes": reply.data_free_bytes, "vms": reply.vms.iter().map(vm::to_json).collect::<Vec<_>>(),
            "alarms": alarms,
        }));
    }
    show(reply)
}

fn show(reply: StatusReply) -> Result<()> {
    let protected = reply.vms.iter().filter(|vm| vm.state == "protected").count();
    output::line(&format!(
        "Tidemark {} · {} · {protected} of {} VMs protected · {} free for journals",
        reply.version,
        moment::local(reply.appliance_time_us),
        reply.vms.len(),
        size::show(reply.data_free_bytes)
    ))?;
    if reply.vms.is_empty() {
        return output::line("No VMs yet: make a token with `tidemark token create --vm NAME`.");
    }
    let mut table = Table::new(["VM", "STATE", "NOW", "STILL TO READ", "LATEST POINT", ""]);
    for vm in reply.vms {
        let to_read = vm::to_read(&vm.disks);
        let now = format!("would lose {}", vm::would_lose(&vm));
        let latest = if vm.latest_lsn > 0 { format!("lsn:{}", vm.latest_lsn) } else { "none yet".to_owned() };
        let verify = vm.verify.as_ref().map(|job| format!("verify: {}", job::done_of(job)));
        let note = [vm.reason, verify.unwrap_or_default()].join(" ").trim().to_owned();
        table.row([vm.name, vm.state, now, to_read, latest, note]);
    }
    table.print()?;
    for alarm in reply.alarms {
        let of = if alarm.vm.is_empty() { String::new() } else { format!("{}: ", alarm.vm) };
        output::line(&format!("{}: {of}{}", alarm.severity.to_uppercase(), alarm.text).replace('\n', " "))?;
    }
    Ok(())
}
