//! `tidemark export`.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tidemark_proto::v1::{Empty, ExportCloneRequest, ExportInfo, StartExportRequest, StopExportRequest};

use super::set_point;
use crate::appliance::{Client, ClonesClient, SetsClient, refused};
use crate::cli::{ExportArguments, ExportCommand, UsageError};
use crate::context::configuration_folder;
use crate::output::{self, Table};
use crate::when::When;

pub(super) async fn run(
    mut client: Client,
    clones: ClonesClient,
    sets: SetsClient,
    arguments: ExportArguments,
    json: bool,
) -> Result<()> {
    match arguments.command {
        Some(ExportCommand::List) => {
            let exports =
                client.list_exports(Empty {}).await.map_err(|status| refused(&status))?.into_inner().exports;
            if json {
                return output::json(&exports.iter().map(|export| to_json(export, None)).collect::<Vec<_>>());
            }
            let mut table = Table::new(["ID", "VM", "DISK", "POINT", "URI"]);
            for export in exports {
                table.row([export.id, export.vm, export.disk, format!("lsn:{}", export.lsn), export.uri]);
            }
            table.print()
        }
        Some(ExportCommand::Stop { id }) => {
            client
                .stop_export(StopExportRequest { id: id.clone() })
                .await
                .map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "id": id }))
            } else {
                output::line(&format!("Export {id} is stopped."))
            }
        }
        None => start(client, clones, sets, arguments, json).await,
    }
}

/// Starts the exports that the arguments ask for.
async fn ask(
    client: &mut Client,
    mut clones: ClonesClient,
    sets: SetsClient,
    arguments: &ExportArguments,
) -> Result<Vec<ExportInfo>> {
    let disk = arguments.disk.map(|disk| disk.to_string()).unwrap_or_default();
    let tls_addr = arguments.tls.clone().unwrap_or_default();
    if let (Some(set), Some(at)) = (&arguments.set, &arguments.at) {
        return ask_set(client, sets, set, at, &tls_addr).await;
    }
    let reply = match (arguments.vm.clone(), &arguments.at, arguments.writable) {
        (Some(name), None | Some(When::Latest), true) => {
            clones.export_clone(ExportCloneRequest { name, disk, tls_addr }).await
        }
        (Some(_), Some(_), true) => bail!(UsageError(
            "a clone is written at its end: leave --at out, or make a clone of that point".to_owned()
        )),
        (Some(vm), Some(at), false) => {
            let at = Some(at.to_proto());
            client.start_export(StartExportRequest { vm, at, disk, tls_addr }).await
        }
        _ => bail!(UsageError("name a VM and a point: tidemark export VM --at WHEN".to_owned())),
    };
    Ok(reply.map_err(|status| refused(&status))?.into_inner().exports)
}

/// Starts exports of all members of a set at one of its points: of all, or of none.
async fn ask_set(
    client: &mut Client,
    mut sets: SetsClient,
    set: &str,
    at: &When,
    tls_addr: &str,
) -> Result<Vec<ExportInfo>> {
    let point = set_point::find(&mut sets, set, at).await?;
    let mut exports: Vec<ExportInfo> = Vec::new();
    for member in point.members {
        let at = Some(When::Lsn(member.lsn).to_proto());
        let tls_addr = tls_addr.to_owned();
        let request = StartExportRequest { vm: member.vm, at, disk: String::new(), tls_addr };
        match client.start_export(request).await {
            Ok(reply) => exports.extend(reply.into_inner().exports),
            Err(status) => {
                for export in &exports {
                    let _ = client.stop_export(StopExportRequest { id: export.id.clone() }).await;
                }
                return Err(refused(&status));
            }
        }
    }
    Ok(exports)
}

async fn start(
    mut client: Client,
    clones: ClonesClient,
    sets: SetsClient,
    arguments: ExportArguments,
    json: bool,
) -> Result<()> {
    let exports = ask(&mut client, clones, sets, &arguments).await?;
    exports.iter().flat_map(|export| &export.warnings).for_each(|warning| output::warning(warning));
    let mut shown = Vec::new();
    for export in &exports {
        let credentials = if arguments.tls.is_some() {
            let folder =
                arguments.credentials.clone().map_or_else(|| Ok(configuration_folder()?.join("exports")), Ok);
            match folder.and_then(|folder: PathBuf| write_credentials(&folder, export)) {
                Ok(folder) => Some(folder),
                Err(error) => {
                    // Nobody could use these exports: the keys were sent this once.
                    for export in &exports {
                        let _ = client.stop_export(StopExportRequest { id: export.id.clone() }).await;
                    }
                    return Err(error);
                }
            }
        } else {
            None
        };
        if !json {
            output::line(&format!(
                "{}  {}  {}  lsn:{}  {}",
                export.id,
                export.vm,
                export.disk,
                export.lsn,
                uri(export, credentials.as_deref())
            ))?;
            if let Some(folder) = &credentials {
                output::line(&format!("    client credentials: {}", folder.display()))?;
            }
        }
        shown.push(to_json(export, credentials.as_deref()));
    }
    if json { output::json(&shown) } else { Ok(()) }
}

/// With TLS, libnbd finds the credentials by the URI's `tls-certificates`.
fn uri(export: &ExportInfo, credentials: Option<&Path>) -> String {
    match credentials {
        None => export.uri.clone(),
        Some(folder) => format!("{}?tls-certificates={}", export.uri, escape(&folder.to_string_lossy())),
    }
}

/// Percent-encodes what a URI's query may not hold.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn to_json(export: &ExportInfo, credentials: Option<&Path>) -> Value {
    json!({
        "id": export.id, "vm": export.vm, "disk": export.disk, "uri": uri(export, credentials), "lsn": export.lsn,
        "tls_certificates": credentials,
    })
}

/// Writes the names that libnbd and QEMU's `tls-creds-x509` look for into a folder of its own.
fn write_credentials(parent: &Path, export: &ExportInfo) -> Result<PathBuf> {
    if export.id.is_empty() || !export.id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        bail!("the appliance sent an export id that cannot name a folder");
    }
    let parent = std::path::absolute(parent).with_context(|| format!("find folder {}", parent.display()))?;
    let folder = parent.join(&export.id);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .and_then(|()| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("make folder {}", folder.display()))?;
    for (name, content) in [
        ("ca-cert.pem", &export.ca_pem),
        ("client-cert.pem", &export.client_certificate_pem),
        ("client-key.pem", &export.client_key_pem),
    ] {
        let path = folder.join(name);
        File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_for_their_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let export =
            ExportInfo { id: "7c1f".to_owned(), client_key_pem: "KEY".to_owned(), ..Default::default() };
        let folder = write_credentials(&parent.path().join("a b"), &export).unwrap();
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let key = folder.join("client-key.pem");
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(key).unwrap(), "KEY");
        assert!(uri(&export, Some(&folder)).contains("a%20b/7c1f"));
        for bad in ["", "../x", "a/b"] {
            let export = ExportInfo { id: bad.to_owned(), ..Default::default() };
            assert!(write_credentials(parent.path(), &export).is_err(), "{bad}");
        }
    }
}
