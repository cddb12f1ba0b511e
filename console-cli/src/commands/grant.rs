//! `tidemark grant`.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tidemark_proto::v1::{CreateGrantRequest, Empty, GrantInfo, RevokeGrantRequest};

use crate::appliance::{GrantsClient, refused};
use crate::cli::{GrantArguments, GrantCommand};
use crate::output::{self, Table};
use crate::{moment, size};

pub(super) async fn run(mut client: GrantsClient, command: GrantCommand, json: bool) -> Result<()> {
    match command {
        GrantCommand::Create(arguments) => create(client, arguments, json).await,
        GrantCommand::List => {
            let reply = client.list_grants(Empty {}).await.map_err(|status| refused(&status))?.into_inner();
            if json {
                return output::json(&reply.grants.iter().map(to_json).collect::<Vec<_>>());
            }
            let mut table = Table::new(["ID", "VM", "DISK", "POINT", "TIME", "STATE", "EXPIRES"]);
            for grant in reply.grants {
                let (point, time) = (format!("lsn:{}", grant.lsn), moment::local(grant.time_us));
                let expires = moment::local(grant.expires_us);
                table.row([grant.id, grant.vm, grant.disk, point, time, grant.state, expires]);
            }
            table.print()
        }
        GrantCommand::Revoke { id } => {
            let request = RevokeGrantRequest { id: id.clone() };
            client.revoke_grant(request).await.map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "id": id }))
            } else {
                output::line(&format!("Grant {id} is revoked."))
            }
        }
    }
}

async fn create(mut client: GrantsClient, arguments: GrantArguments, json: bool) -> Result<()> {
    let request = CreateGrantRequest {
        vm: arguments.vm,
        at: Some(arguments.at.to_proto()),
        disk: arguments.disk.to_string(),
        ttl_seconds: arguments.ttl.as_secs(),
    };
    let reply = client.create_grant(request).await.map_err(|status| refused(&status))?.into_inner();
    let info = reply.info.context("the appliance is of another version: upgrade `tidemark`")?;
    for warning in &reply.warnings {
        output::warning(warning);
    }
    if json {
        let mut value = to_json(&info);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("grant".to_owned(), reply.grant.into());
        }
        return output::json(&value);
    }
    // Scripts take the last word.
    output::line(&format!(
        "Grant {} restores {} of {} ({}) as of {}, lsn:{}; it can be used until {}:\n{}",
        info.id,
        info.disk,
        info.vm,
        size::show(info.size_bytes),
        moment::local(info.time_us),
        info.lsn,
        moment::local(info.expires_us),
        reply.grant
    ))
}

fn to_json(grant: &GrantInfo) -> Value {
    json!({
        "id": grant.id, "vm": grant.vm, "disk": grant.disk, "lsn": grant.lsn, "time": moment::json(grant.time_us),
        "size_bytes": grant.size_bytes, "created": moment::json(grant.created_us),
        "expires": moment::json(grant.expires_us), "state": grant.state, "used": moment::json(grant.used_us),
    })
}
