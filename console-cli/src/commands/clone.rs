//! `tidemark clone`.

use anyhow::Result;
use serde_json::{Value, json};
use tidemark_proto::v1::{CloneInfo, CloneName, CreateCloneRequest, Empty};

use crate::appliance::{ClonesClient, refused};
use crate::cli::CloneCommand;
use crate::output::{self, Table};
use crate::{moment, size};

pub(super) async fn run(mut client: ClonesClient, command: CloneCommand, json: bool) -> Result<()> {
    match command {
        CloneCommand::Create { vm, at, template, name } => {
            let request = CreateCloneRequest {
                vm: vm.unwrap_or_default(),
                at: at.map(|at| at.to_proto()),
                name,
                template: template.unwrap_or_default(),
            };
            let clone = client.create_clone(request).await.map_err(|status| refused(&status))?.into_inner();
            clone.warnings.iter().for_each(|warning| output::warning(warning));
            if json { output::json(&to_json(&clone)) } else { created(&clone) }
        }
        CloneCommand::List => {
            let clones =
                client.list_clones(Empty {}).await.map_err(|status| refused(&status))?.into_inner().clones;
            if json {
                return output::json(&clones.iter().map(to_json).collect::<Vec<_>>());
            }
            list(clones)
        }
        CloneCommand::Remove { name } => {
            client.remove_clone(CloneName { name: name.clone() }).await.map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "name": name }))
            } else {
                output::line(&format!("Clone '{name}' is removed."))
            }
        }
    }
}

fn created(clone: &CloneInfo) -> Result<()> {
    output::line(&if clone.template.is_empty() {
        let CloneInfo { name, parent, lsn, .. } = clone;
        format!("Clone '{name}' of '{parent}' as of {} (lsn:{lsn}) is made.", moment::local(clone.time_us))
    } else {
        format!("Clone '{}' of template '{}' is made.", clone.name, clone.template)
    })?;
    output::line(&format!("Write into it with: tidemark export {} --writable", clone.name))
}

fn list(clones: Vec<CloneInfo>) -> Result<()> {
    if clones.is_empty() {
        return output::line("No clones: `tidemark clone create VM --at WHEN --name NAME` makes one.");
    }
    let count = clones.len();
    let mut table = Table::new(["NAME", "OF", "POINT", "TIME", "LATEST", "STORED", ""]);
    for clone in clones {
        let mut note = match (clone.problem.is_empty(), clone.clones.len()) {
            (false, _) => clone.problem,
            (true, 0) => String::new(),
            (true, 1) => "1 clone of it".to_owned(),
            (true, more) => format!("{more} clones of it"),
        };
        if clone.held_back_bytes > 0 {
            let comma = if note.is_empty() { "" } else { ", " };
            note +=
                &format!("{comma}keeps {} of the log of {}", size::show(clone.held_back_bytes), clone.parent);
        }
        // Its own history was folded: nothing is below it any more.
        let independent = clone.parent.is_empty() && clone.template.is_empty();
        let of =
            if clone.template.is_empty() { clone.parent } else { format!("template {}", clone.template) };
        table.row([
            clone.name,
            if independent { "-".to_owned() } else { of },
            if independent { "-".to_owned() } else { format!("lsn:{}", clone.lsn) },
            moment::local(clone.time_us),
            format!("lsn:{}", clone.latest_lsn),
            size::show(clone.stored_bytes),
            note,
        ]);
    }
    table.print()?;
    output::line(&format!("{count} {}", if count == 1 { "clone" } else { "clones" }))
}

fn to_json(clone: &CloneInfo) -> Value {
    let disks: Vec<_> = clone
        .disks
        .iter()
        .map(|disk| json!({ "id": disk.id, "path": disk.path, "size_bytes": disk.size_bytes }))
        .collect();
    json!({
        "name": clone.name, "id": clone.id, "parent": clone.parent, "lsn": clone.lsn,
        "time": moment::json(clone.time_us), "latest_lsn": clone.latest_lsn,
        "latest_time": moment::json(clone.latest_time_us), "created": moment::json(clone.created_us),
        "stored_bytes": clone.stored_bytes, "held_back_bytes": clone.held_back_bytes, "disks": disks, "clones": clone.clones,
        "template": (!clone.template.is_empty()).then_some(&clone.template),
        "problem": (!clone.problem.is_empty()).then_some(&clone.problem),
    })
}
