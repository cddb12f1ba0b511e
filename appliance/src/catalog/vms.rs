//! VMs as enrolled, with their nonces and platform.

use tidemark_proto::ids::VmId;

use super::pool::{execute, fetch_all, transaction};
use super::{Catalog, CatalogError, to_db};

/// A VM's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct VmRow {
    id: String,
    /// Unique.
    pub name: String,
    /// Why nothing is accepted from it; `None` while all is well.
    pub quarantine: Option<String>,
    /// Hash of the nonce that the next hello must carry; `None` right after enrolment.
    pub nonce_hash: Option<String>,
    /// Hash of the nonce issued and not yet known to be saved.
    pub pending_nonce_hash: Option<String>,
    /// Platform as first seen.
    pub dmi_uuid: Option<String>,
    /// Platform as first seen.
    pub machine_id: Option<String>,
    /// Host name as last seen, for people.
    pub hostname: String,
    /// Version of its splitter as last seen.
    pub software: String,
}

impl VmRow {
    /// The VM's id. A damaged row reads as the nil id, which no certificate carries.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.id.parse().unwrap_or(VmId(uuid::Uuid::nil()))
    }
}

/// A certificate to be recorded.
#[derive(Debug, Clone)]
pub struct NewCertificate {
    /// Hexadecimal serial number.
    pub serial: String,
    /// "vm", "admin" or "person".
    pub role: &'static str,
    /// The VM, for its splitter's certificates.
    pub vm: Option<VmId>,
    /// Name of the VM or the administrator.
    pub subject: String,
    /// Microseconds since 1970.
    pub issued_us: u64,
    /// Microseconds since 1970.
    pub not_after_us: u64,
}

const INSERT_CERTIFICATE: &str = "INSERT INTO certificates (serial, role, vm_id, subject, issued_us, not_after_us) \
     VALUES ($1, $2, $3, $4, $5, $6)";

impl Catalog {
    /// All VMs by name.
    ///
    /// # Errors
    /// What the database says.
    pub async fn vms(&self) -> Result<Vec<VmRow>, CatalogError> {
        Ok(fetch_all!(self.pool, VmRow, "SELECT * FROM vms ORDER BY name")?)
    }

    /// One VM.
    ///
    /// # Errors
    /// What the database says.
    pub async fn vm(&self, vm: VmId) -> Result<Option<VmRow>, CatalogError> {
        Ok(fetch_all!(self.pool, VmRow, "SELECT * FROM vms WHERE id = $1", vm.to_string())?
            .into_iter()
            .next())
    }

    /// One VM by name.
    ///
    /// # Errors
    /// What the database says.
    pub async fn vm_by_name(&self, name: &str) -> Result<Option<VmRow>, CatalogError> {
        Ok(fetch_all!(self.pool, VmRow, "SELECT * FROM vms WHERE name = $1", name)?.into_iter().next())
    }

    /// Uses token `token` up and records the new VM and its certificate, all or nothing. Returns false, changing
    /// nothing, when the token has been used or revoked meanwhile.
    ///
    /// # Errors
    /// [`CatalogError::Taken`] when the name has been enrolled meanwhile.
    pub async fn enrol(
        &self,
        token: &str,
        name: &str,
        software: &str,
        certificate: &NewCertificate,
        now_us: u64,
    ) -> Result<bool, CatalogError> {
        let c = certificate;
        let vm = c.vm.map(|vm| vm.to_string());
        transaction!(self.pool, tx, {
            let used = sqlx::query(
                "UPDATE tokens SET used_us = $1 WHERE id = $2 AND used_us IS NULL AND revoked_us IS NULL",
            );
            if used.bind(to_db(now_us)).bind(token).execute(&mut *tx).await?.rows_affected() != 1 {
                return Ok(false);
            }
            sqlx::query(
                "INSERT INTO vms (id, name, hostname, software, created_us) VALUES ($1, $2, '', $3, $4)",
            )
            .bind(vm.as_deref())
            .bind(name)
            .bind(software)
            .bind(to_db(now_us))
            .execute(&mut *tx)
            .await
            .map_err(|error| {
                CatalogError::taken(error, || {
                    format!("a VM named '{name}' exists: use `tidemark token create --vm {name} --replace`")
                })
            })?;
            sqlx::query(INSERT_CERTIFICATE)
                .bind(&c.serial)
                .bind(c.role)
                .bind(vm.as_deref())
                .bind(&c.subject)
                .bind(to_db(c.issued_us))
                .bind(to_db(c.not_after_us))
                .execute(&mut *tx)
                .await?;
        });
        Ok(true)
    }

    /// Uses token `token` up and replaces the credentials of an enrolled VM, all or nothing: revokes its certificates,
    /// ends a quarantine, forgets nonce and platform. Returns false, changing nothing, when the token has been used or
    /// revoked meanwhile.
    ///
    /// # Errors
    /// What the database says.
    pub async fn enrol_again(
        &self,
        token: &str,
        certificate: &NewCertificate,
        now_us: u64,
    ) -> Result<bool, CatalogError> {
        let c = certificate;
        let vm = c.vm.map(|vm| vm.to_string());
        transaction!(self.pool, tx, {
            let used = sqlx::query(
                "UPDATE tokens SET used_us = $1 WHERE id = $2 AND used_us IS NULL AND revoked_us IS NULL",
            );
            if used.bind(to_db(now_us)).bind(token).execute(&mut *tx).await?.rows_affected() != 1 {
                return Ok(false);
            }
            sqlx::query("UPDATE certificates SET revoked_us = $1 WHERE vm_id = $2 AND revoked_us IS NULL")
                .bind(to_db(now_us))
                .bind(vm.as_deref())
                .execute(&mut *tx)
                .await?;
            sqlx::query(
                "UPDATE vms SET quarantine = NULL, nonce_hash = NULL, pending_nonce_hash = NULL, dmi_uuid = NULL, \
                 machine_id = NULL WHERE id = $1",
            )
            .bind(vm.as_deref())
            .execute(&mut *tx)
            .await?;
            sqlx::query(INSERT_CERTIFICATE)
                .bind(&c.serial)
                .bind(c.role)
                .bind(vm.as_deref())
                .bind(&c.subject)
                .bind(to_db(c.issued_us))
                .bind(to_db(c.not_after_us))
                .execute(&mut *tx)
                .await?;
        });
        Ok(true)
    }

    /// Lists a VM that a journal knows and the catalog does not, quarantined until it is enrolled again.
    ///
    /// # Errors
    /// [`CatalogError::Taken`] when another VM has the name.
    pub async fn rebuild_vm(
        &self,
        vm: VmId,
        name: &str,
        reason: &str,
        now_us: u64,
    ) -> Result<(), CatalogError> {
        execute!(
            self.pool,
            "INSERT INTO vms (id, name, quarantine, hostname, software, created_us) VALUES ($1, $2, $3, '', '', $4)",
            vm.to_string(),
            name,
            reason,
            to_db(now_us),
        )
        .map_err(|error| CatalogError::taken(error, || format!("two VMs are named '{name}'")))?;
        Ok(())
    }

    /// Accepts nothing more from a VM until it is enrolled again. The first reason stays.
    ///
    /// # Errors
    /// What the database says.
    pub async fn quarantine(&self, vm: VmId, reason: &str) -> Result<(), CatalogError> {
        let sql = "UPDATE vms SET quarantine = $1 WHERE id = $2 AND quarantine IS NULL";
        execute!(self.pool, sql, reason, vm.to_string())?;
        Ok(())
    }

    /// Records a hello: the nonce it proved (promoted to the one expected), the next one issued, and what the guest
    /// says about itself. Platform fields are only set once.
    ///
    /// # Errors
    /// What the database says.
    pub async fn record_hello(&self, vm: VmId, hello: &HelloRecord<'_>) -> Result<(), CatalogError> {
        execute!(
            self.pool,
            "UPDATE vms SET nonce_hash = $1, pending_nonce_hash = $2, dmi_uuid = COALESCE(dmi_uuid, $3), \
             machine_id = COALESCE(machine_id, $4), hostname = $5, software = $6 WHERE id = $7",
            hello.nonce_hash,
            hello.pending_nonce_hash,
            hello.dmi_uuid,
            hello.machine_id,
            hello.hostname,
            hello.software,
            vm.to_string(),
        )?;
        Ok(())
    }

    /// The splitter has saved the pending nonce: only that one is accepted from now on.
    ///
    /// # Errors
    /// What the database says.
    pub async fn nonce_saved(&self, vm: VmId, pending_nonce_hash: &str) -> Result<(), CatalogError> {
        execute!(
            self.pool,
            "UPDATE vms SET nonce_hash = pending_nonce_hash, pending_nonce_hash = NULL \
             WHERE id = $1 AND pending_nonce_hash = $2",
            vm.to_string(),
            pending_nonce_hash,
        )?;
        Ok(())
    }

    /// Forgets a VM: its row and bookmarks go, its certificates are revoked and stay listed.
    ///
    /// # Errors
    /// What the database says.
    pub async fn remove_vm(&self, vm: VmId, now_us: u64) -> Result<(), CatalogError> {
        let vm = vm.to_string();
        transaction!(self.pool, tx, {
            sqlx::query("UPDATE certificates SET revoked_us = $1 WHERE vm_id = $2 AND revoked_us IS NULL")
                .bind(to_db(now_us))
                .bind(&vm)
                .execute(&mut *tx)
                .await?;
            sqlx::query("DELETE FROM bookmarks WHERE vm_id = $1").bind(&vm).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM vm_tags WHERE vm_id = $1").bind(&vm).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM spools WHERE vm_id = $1").bind(&vm).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM grants WHERE vm_id = $1").bind(&vm).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM rights WHERE vm_id = $1").bind(&vm).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM verifications WHERE vm_id = $1").bind(&vm).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM vms WHERE id = $1").bind(&vm).execute(&mut *tx).await?;
        });
        Ok(())
    }
}

/// What a hello changes in a VM's row.
#[derive(Debug, Clone)]
pub struct HelloRecord<'a> {
    /// Hash of the nonce proved by this hello; `None` for the first after enrolment.
    pub nonce_hash: Option<&'a str>,
    /// Hash of the nonce issued in answer.
    pub pending_nonce_hash: &'a str,
    /// Platform, `None` when the guest has none.
    pub dmi_uuid: Option<&'a str>,
    /// Platform, `None` when the guest has none.
    pub machine_id: Option<&'a str>,
    /// For people.
    pub hostname: &'a str,
    /// For people.
    pub software: &'a str,
}
