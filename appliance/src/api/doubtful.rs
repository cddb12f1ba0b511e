//! Warnings of points that a later verify has cast doubt on.

use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};
use tonic::Status;

use super::catalog;
use crate::catalog::{VerifyRow, doubts_of};
use crate::core::Core;
use crate::fleet::Vm;

/// Warnings of one point at most; the others say the same of other places.
const WARNINGS_MAX: usize = 16;

/// Clones of clones that are followed at most: what lies deeper is not warned of.
const DEPTH_MAX: usize = 32;

/// What verifies found of a VM, and, of a clone, of what it was made from, as far down as that is still there.
#[derive(Debug)]
pub(super) struct History {
    /// The VM, then what each was made from.
    verified: Vec<(Arc<Vm>, Vec<VerifyRow>)>,
}

impl History {
    /// Looks the verifies up.
    pub(super) async fn of(core: &Core, vm: &Arc<Vm>) -> Result<Self, Status> {
        let mut verified = Vec::new();
        let mut next = Some(Arc::clone(vm));
        while let Some(vm) = next.filter(|_| verified.len() < DEPTH_MAX) {
            let rows = core.catalog.verifies_of(vm.id).await.map_err(catalog)?;
            // Also of a clone that needs its origin no more: its content is from there.
            let point = vm.origin.and_then(|origin| origin.point);
            next = point.and_then(|point| core.fleet.get(point.parent));
            verified.push((vm, rows));
        }
        Ok(Self { verified })
    }

    /// A warning for each disk that a later verify found wrong and that may have been so at the point already, or at
    /// the one it was cloned from. Blocks until the journals answer; one that is down gives none.
    pub(super) fn doubtful(&self, lsn: Lsn, disk: Option<DiskId>) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut lsn = lsn;
        for (vm, rows) in &self.verified {
            if let Ok(journal) = vm.log.journal() {
                let concerns = |of: DiskId| disk.is_none_or(|disk| disk == of);
                let found = doubts_of(&journal.timeline(), rows).into_iter();
                let found = found.filter(|doubt| doubt.from <= lsn && lsn < doubt.to && concerns(doubt.disk));
                warnings.extend(found.map(|doubt| {
                    format!(
                        "{} of '{}' at lsn:{lsn} is in doubt: a verify found later that {}; from lsn:{} to lsn:{} \
                         nobody knows since when",
                        doubt.disk, vm.name, doubt.detail, doubt.from, doubt.to
                    )
                }));
            }
            let Some(point) = vm.origin.and_then(|origin| origin.point) else { break };
            lsn = point.lsn;
        }
        warnings.truncate(WARNINGS_MAX);
        warnings
    }
}
