//! `admin.context`: what a console needs to reach this appliance as an administrator.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::catalog::{Catalog, CatalogError, NewCertificate};
use crate::clock::micros;
use crate::data_dir::{DataDir, FileError, read_text, write_private};
use crate::pki::{ADMIN_VALIDITY, Authority, AuthorityError, Role};

/// The administrator of the context that the appliance itself writes.
const LOCAL_ADMIN: &str = "local";

/// The file's content.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminContext {
    /// `HOST:PORT`.
    pub address: String,
    /// The authority's certificate.
    pub ca_pem: String,
    /// The administrator's certificate.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
}

/// The context could not be written.
#[derive(Debug, Error)]
pub enum AdminContextError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The certificate.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Listing the certificate.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Encoding.
    #[error("encoding the admin context: {0}")]
    Encode(#[from] toml::ser::Error),
}

/// Writes the context when it is missing, of another authority, revoked, or past two thirds of its validity; writes the
/// address when that changed.
///
/// # Errors
/// When a file, the authority or the catalog fails.
pub async fn refresh(
    data: &DataDir,
    authority: &Authority,
    catalog: &Catalog,
    address: String,
    now_us: u64,
) -> Result<(), AdminContextError> {
    let path = data.admin_context();
    let old: Option<AdminContext> = read_text(&path).ok().and_then(|text| toml::from_str(&text).ok());
    let keep = match &old {
        Some(context) if context.ca_pem == authority.pem() => usable(catalog, context, now_us).await?,
        _ => false,
    };
    let context = match old {
        Some(context) if keep && context.address == address => return save_mode(&path, &context),
        Some(context) if keep => AdminContext { address, ..context },
        _ => {
            let role = Role::Admin(LOCAL_ADMIN.into());
            let (issued, key_pem) = authority.make_client(&role, ADMIN_VALIDITY, now_us)?;
            let listed = NewCertificate {
                serial: issued.serial,
                role: role.word(),
                vm: None,
                subject: LOCAL_ADMIN.into(),
                issued_us: now_us,
                not_after_us: issued.not_after_us,
            };
            catalog.add_certificate(&listed).await?;
            AdminContext { address, ca_pem: authority.pem().to_owned(), certificate_pem: issued.pem, key_pem }
        }
    };
    write_private(&path, toml::to_string(&context)?.as_bytes())?;
    Ok(())
}

/// Someone may have opened the file's mode; it holds a key.
fn save_mode(path: &std::path::Path, context: &AdminContext) -> Result<(), AdminContextError> {
    use std::os::unix::fs::PermissionsExt;
    let private =
        std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode().trailing_zeros() >= 6);
    if !private {
        write_private(path, toml::to_string(context)?.as_bytes())?;
    }
    Ok(())
}

async fn usable(catalog: &Catalog, context: &AdminContext, now_us: u64) -> Result<bool, CatalogError> {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(context.certificate_pem.as_bytes()) else {
        return Ok(false);
    };
    let Ok(certificate) = pem.parse_x509() else { return Ok(false) };
    let serial: String = certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    let listed = catalog.certificates().await?.into_iter().find(|row| row.serial == serial);
    Ok(listed.is_some_and(|row| {
        let left_us = row.not_after_us().saturating_sub(now_us);
        !row.revoked() && left_us > micros(ADMIN_VALIDITY) / 3
    }))
}
