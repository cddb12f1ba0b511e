//! `tidemark cert`.

use anyhow::Result;
use serde_json::json;
use tidemark_proto::v1::{ListCertificatesRequest, RevokeCertificateRequest};

use crate::appliance::{Client, refused};
use crate::cli::CertCommand;
use crate::moment;
use crate::output::{self, Table};

pub(super) async fn run(mut client: Client, command: CertCommand, json: bool) -> Result<()> {
    match command {
        CertCommand::List => {
            let reply = client.list_certificates(ListCertificatesRequest {}).await;
            let certificates = reply.map_err(|status| refused(&status))?.into_inner().certificates;
            if json {
                let shown: Vec<_> = certificates
                    .iter()
                    .map(|one| {
                        json!({
                            "serial": one.serial, "role": one.role, "subject": one.subject, "revoked": one.revoked,
                            "issued": moment::json(one.issued_us), "expires": moment::json(one.not_after_us),
                        })
                    })
                    .collect();
                return output::json(&shown);
            }
            let mut table = Table::new(["SERIAL", "ROLE", "SUBJECT", "EXPIRES", "STATE"]);
            for one in certificates {
                let state = if one.revoked { "revoked" } else { "valid" }.to_owned();
                table.row([one.serial, one.role, one.subject, moment::local(one.not_after_us), state]);
            }
            table.print()
        }
        CertCommand::Revoke { serial } => {
            let request = RevokeCertificateRequest { serial: serial.clone() };
            client.revoke_certificate(request).await.map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "serial": serial }))
            } else {
                output::line(&format!("Certificate {serial} is refused from now on."))
            }
        }
    }
}
