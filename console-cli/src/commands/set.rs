//! `tidemark set`.

use anyhow::Result;
use serde_json::{Value, json};
use tidemark_proto::v1::{
    ChangeSetRequest, CreateSetRequest, Empty, PreviewSetRequest, RemoveSetRequest, SetInfo, SetPointing,
    ShowSetRequest,
};

use super::set_point;
use crate::appliance::{SetsClient, refused};
use crate::cli::{PointsArguments, SetCommand};
use crate::moment;
use crate::output::{self, Table};

pub(super) async fn run(mut client: SetsClient, command: SetCommand, json: bool) -> Result<()> {
    let reply = match command {
        SetCommand::List => {
            let reply = client.list_sets(Empty {}).await.map_err(|status| refused(&status))?.into_inner();
            return list(&reply.sets, json);
        }
        SetCommand::Remove { name } => {
            let request = RemoveSetRequest { name: name.clone() };
            client.remove_set(request).await.map_err(|status| refused(&status))?;
            return if json {
                output::json(&json!({ "name": name }))
            } else {
                output::line(&format!(
                    "The set {name} and its points are removed; its VMs and their history stay."
                ))
            };
        }
        SetCommand::Diverged { name, at, vm } => {
            return set_point::diverged(&mut client, name, &at, vm, json).await;
        }
        SetCommand::Create { name, rules, policy, points } => {
            let (policy, points) = (policy.unwrap_or_default(), Some(pointing(points, false)));
            client.create_set(CreateSetRequest { name, rules: rules.rules, policy, points }).await
        }
        SetCommand::Change { name, rules, policy, no_policy, points, no_order } => {
            let policy = policy.or_else(|| no_policy.then(String::new));
            let points = Some(pointing(points, no_order));
            client.change_set(ChangeSetRequest { name, rules, policy, points }).await
        }
        SetCommand::Preview { rules } => client.preview_set(PreviewSetRequest { rules: rules.rules }).await,
        SetCommand::Show { name } => client.show_set(ShowSetRequest { name }).await,
    };
    show(&reply.map_err(|status| refused(&status))?.into_inner(), json)
}

fn pointing(arguments: PointsArguments, no_order: bool) -> SetPointing {
    let every = arguments.every.map(|every| u64::try_from(every.as_micros()).unwrap_or(u64::MAX));
    let hold = arguments.hold.map(|hold| hold.word().to_owned()).unwrap_or_default();
    SetPointing { every_us: every, hold, order: arguments.order, no_order }
}

/// How points are taken, for people.
fn points(set: &SetInfo) -> String {
    let points = set.points.clone().unwrap_or_default();
    let order =
        if points.order.is_empty() { String::new() } else { format!(", order {}", points.order.join(",")) };
    match points.every_us.unwrap_or(0) {
        0 => format!("no automatic points{order}"),
        every_us => format!("a point every {}, hold {}{order}", moment::length(every_us / 1000), points.hold),
    }
}

fn list(sets: &[SetInfo], json: bool) -> Result<()> {
    if json {
        return output::json(&sets.iter().map(to_json).collect::<Vec<_>>());
    }
    if sets.is_empty() {
        return output::line("No sets: `tidemark set create NAME --match RULE` makes one.");
    }
    let mut table = Table::new(["NAME", "RULES", "POLICY", "MEMBERS", "RPO"]);
    for set in sets {
        let rules = set.rules.join(" or ");
        table.row([set.name.clone(), rules, policy(set), set.members.len().to_string(), rpo(set.rpo_ms)]);
    }
    table.print()
}

fn policy(set: &SetInfo) -> String {
    if set.policy.is_empty() { "-".to_owned() } else { set.policy.clone() }
}

fn rpo(rpo_ms: Option<u64>) -> String {
    rpo_ms.map_or_else(|| "-".to_owned(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100))
}

fn show(set: &SetInfo, json: bool) -> Result<()> {
    if json {
        return output::json(&to_json(set));
    }
    if !set.name.is_empty() {
        let (rules, policy, points) = (set.rules.join(" or "), policy(set), points(set));
        output::line(&format!("{}: {rules}; policy {policy}; {points}", set.name))?;
    }
    if set.members.is_empty() {
        output::line("No VM matches now.")?;
    } else {
        let mut table = Table::new(["VM", "STATE", "RPO", "SINCE", "BY", "POLICY", "ALSO IN"]);
        for member in &set.members {
            let since = if member.since_us == 0 { "-".to_owned() } else { moment::local(member.since_us) };
            table.row([
                member.vm.clone(),
                member.state.clone(),
                rpo(member.rpo_ms),
                since,
                member.rules.join(" or "),
                format!("{} ({})", member.policy, member.policy_by),
                member.other_sets.join(" "),
            ]);
        }
        table.print()?;
    }
    for change in &set.changes {
        let (time, what) = (moment::local(change.at_us), if change.joined { "joined" } else { "left" });
        output::line(&format!("{time}  {} {what}: {}", change.vm, change.cause))?;
    }
    Ok(())
}

fn to_json(set: &SetInfo) -> Value {
    let members: Vec<Value> = set
        .members
        .iter()
        .map(|member| {
            json!({
                "vm": member.vm, "state": member.state, "rpo_ms": member.rpo_ms, "since": moment::json(member.since_us),
                "rules": member.rules, "other_sets": member.other_sets, "policy": member.policy,
                "policy_by": member.policy_by,
            })
        })
        .collect();
    let changes: Vec<Value> = set
        .changes
        .iter()
        .map(|change| {
            let what = if change.joined { "joined" } else { "left" };
            json!({ "vm": change.vm, "time": moment::json(change.at_us), "change": what, "cause": change.cause })
        })
        .collect();
    let points = set.points.clone().unwrap_or_default();
    json!({
        "name": set.name, "rules": set.rules, "policy": set.policy, "created": moment::json(set.created_us),
        "rpo_ms": set.rpo_ms, "members": members, "changes": changes,
        "every_us": points.every_us, "hold": points.hold, "order": points.order,
        "newest": set.newest.as_ref().map(set_point::to_json),
    })
}
