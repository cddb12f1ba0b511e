//! `tidemark token`.

use anyhow::Result;
use serde_json::json;
use tidemark_proto::v1::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};

use crate::appliance::{Client, refused};
use crate::cli::TokenCommand;
use crate::moment;
use crate::output::{self, Table};

pub(super) async fn run(mut client: Client, command: TokenCommand, json: bool) -> Result<()> {
    match command {
        TokenCommand::Create { vm, ttl, replace } => {
            let request = CreateTokenRequest { vm_name: vm.clone(), ttl_seconds: ttl.as_secs(), replace };
            let reply = client.create_token(request).await.map_err(|status| refused(&status))?.into_inner();
            if json {
                return output::json(&json!({
                    "id": reply.id, "vm": vm, "token": reply.token, "expires": moment::json(reply.expires_us),
                }));
            }
            // Scripts take the last word.
            output::line(&format!(
                "Token {} enrols {vm} once, until {}:\n{}",
                reply.id,
                moment::local(reply.expires_us),
                reply.token
            ))
        }
        TokenCommand::List => {
            let reply = client
                .list_tokens(ListTokensRequest {})
                .await
                .map_err(|status| refused(&status))?
                .into_inner();
            if json {
                let tokens: Vec<_> = reply
                    .tokens
                    .iter()
                    .map(|token| {
                        json!({
                            "id": token.id, "vm": token.vm_name, "state": token.state,
                            "created": moment::json(token.created_us), "expires": moment::json(token.expires_us),
                        })
                    })
                    .collect();
                return output::json(&tokens);
            }
            let mut table = Table::new(["ID", "VM", "STATE", "EXPIRES"]);
            for token in reply.tokens {
                table.row([token.id, token.vm_name, token.state, moment::local(token.expires_us)]);
            }
            table.print()
        }
        TokenCommand::Revoke { id } => {
            client
                .revoke_token(RevokeTokenRequest { id: id.clone() })
                .await
                .map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "id": id }))
            } else {
                output::line(&format!("Token {id} is revoked."))
            }
        }
    }
}
