//! `tidemark role`.

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tidemark_proto::v1::{IssueCertificateRequest, ListRightsRequest, RightInfo, RightRequest};

use crate::appliance::{RolesClient, refused};
use crate::cli::{ContextArguments, RightArguments, RoleCommand};
use crate::context::Context;
use crate::moment;
use crate::output::{self, Table};

pub(super) async fn run(
    mut client: RolesClient,
    context: Option<&Path>,
    command: RoleCommand,
    json: bool,
) -> Result<()> {
    match command {
        RoleCommand::Grant(arguments) => {
            let request = request(&arguments);
            client.grant_right(request.clone()).await.map_err(|status| refused(&status))?;
            told(&request, "may from now on", json)
        }
        RoleCommand::Revoke(arguments) => {
            let request = request(&arguments);
            client.revoke_right(request.clone()).await.map_err(|status| refused(&status))?;
            told(&request, "may no longer", json)
        }
        RoleCommand::List { name } => {
            let request = ListRightsRequest { person: name.unwrap_or_default() };
            let reply = client.list_rights(request).await.map_err(|status| refused(&status))?;
            list(&reply.into_inner().rights, json)
        }
        RoleCommand::Context(arguments) => make_context(client, context, &arguments, json).await,
    }
}

fn request(arguments: &RightArguments) -> RightRequest {
    RightRequest {
        person: arguments.name.clone(),
        right: arguments.right.word().to_owned(),
        set: arguments.target.set.clone().unwrap_or_default(),
        vm: arguments.target.vm.clone().unwrap_or_default(),
    }
}

fn told(right: &RightRequest, may: &str, json: bool) -> Result<()> {
    let RightRequest { person, right, set, vm } = right;
    if json {
        return output::json(&json!({ "person": person, "right": right, "set": set, "vm": vm }));
    }
    let target = if set.is_empty() { format!("the VM {vm}") } else { format!("the set {set}") };
    output::line(&format!("{person} {may} {right} {target}."))
}

fn list(rights: &[RightInfo], json: bool) -> Result<()> {
    if json {
        return output::json(&rights.iter().map(to_json).collect::<Vec<_>>());
    }
    if rights.is_empty() {
        return output::line("No rights: `tidemark role grant NAME bookmark --set SET` grants one.");
    }
    let mut table = Table::new(["PERSON", "RIGHT", "SET", "VM", "SINCE", "BY"]);
    let or_none = |name: &str| if name.is_empty() { "-".to_owned() } else { name.to_owned() };
    for one in rights {
        table.row([
            one.person.clone(),
            one.right.clone(),
            or_none(&one.set),
            or_none(&one.vm),
            moment::local(one.granted_us),
            one.granted_by.clone(),
        ]);
    }
    table.print()
}

fn to_json(right: &RightInfo) -> Value {
    json!({
        "person": right.person, "right": right.right, "set": right.set, "vm": right.vm,
        "granted": moment::json(right.granted_us), "granted_by": right.granted_by,
    })
}

async fn make_context(
    mut client: RolesClient,
    own: Option<&Path>,
    arguments: &ContextArguments,
    json: bool,
) -> Result<()> {
    let (out, person) = (&arguments.out, arguments.name.clone());
    // Before a certificate is issued that nobody gets.
    if out.try_exists().with_context(|| format!("look at {}", out.display()))? {
        bail!("{} exists: name another file, or remove it", out.display());
    }
    let address = Context::load(own)?.address;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")?;
    // The appliance takes nothing but the key from a request.
    let csr = CertificateParams::default().serialize_request(&key).context("make a request")?;
    let csr_pem = csr.pem().context("make a request")?;
    let validity_seconds = arguments.valid.as_secs();
    let request = IssueCertificateRequest { person: person.clone(), csr_pem, validity_seconds };
    let reply = client.issue_certificate(request).await.map_err(|status| refused(&status))?.into_inner();
    let table = toml::Table::from_iter([
        ("address".to_owned(), address.into()),
        ("ca_pem".to_owned(), reply.ca_pem.into()),
        ("certificate_pem".to_owned(), reply.certificate_pem.into()),
        ("key_pem".to_owned(), key.serialize_pem().into()),
    ]);
    let text = toml::to_string(&table).context("encode the context")?;
    write_new(out, &text).with_context(|| {
        format!("the certificate is issued and of no use (`tidemark cert revoke {}`)", reply.serial)
    })?;
    if json {
        return output::json(&json!({
            "person": person, "file": out, "serial": reply.serial, "expires": moment::json(reply.not_after_us),
        }));
    }
    output::line(&format!(
        "The context of {person} is in {}, valid until {}: give it to nobody else. It is used with --context FILE.",
        out.display(),
        moment::local(reply.not_after_us)
    ))
}

/// Writes a file of mode 0600 that does not exist yet: all of it or none.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Its mode is 0600 from the beginning.
    let mut new = tempfile::Builder::new().prefix(".context-").tempfile_in(folder).with_context(failed)?;
    new.write_all(text.as_bytes()).and_then(|()| new.as_file().sync_all()).with_context(failed)?;
    match new.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
            Err(anyhow!("{} exists: name another file, or remove it", path.display()))
        }
        Err(error) => Err(error.error).with_context(failed),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_context_is_private_and_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anna.context");
        write_new(&path, "a secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = write_new(&path, "another").unwrap_err().to_string();
        assert!(again.contains("exists"), "{again}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a secret");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}
