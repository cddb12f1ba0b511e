//! Disks that come, go and change their size while the splitter runs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::TEXT_MAX_BYTES;
use tidemark_proto::v1::{self, MissingDisk, Welcome};
use tidemark_splitter_core::engine::EngineError;

use super::super::protection::Protection;
use super::Worker;
use crate::control::RefusedDisk;
use crate::disks::{self, Disk};

/// How often the disks are looked at: as often as a heartbeat. Before a look that found a disk gone no heartbeat is
/// clean, because its counters cannot be read.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks after a change at which all disks are identified again: some attributes of a new disk appear a moment later.
const LOOKS_AFTER_CHANGE: u32 = 3;

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Presence {
    looked: Option<Instant>,
    fingerprint: Vec<(String, u64, bool)>,
    /// How many more looks identify all disks.
    looks_left: u32,
    /// Protected disks that are not captured.
    pub(super) missing: Vec<MissingDisk>,
    /// Disks that `protect --all` means and that cannot be protected.
    pub(super) refused: Vec<RefusedDisk>,
    /// The appliance's ids by identity, of every disk that was named in this process.
    pub(super) ids: HashMap<String, DiskId>,
}

impl Presence {
    /// The next round looks at everything.
    pub(super) fn look_again(&mut self) {
        self.looked = None;
        self.looks_left = LOOKS_AFTER_CHANGE;
    }
}

impl Worker {
    /// Once a second: takes out disks that are gone, takes in those that are back or that `protect --all` means, and
    /// follows sizes.
    pub(super) fn look_at_disks(&mut self) -> Result<(), EngineError> {
        if self.presence.looked.is_some_and(|at| at.elapsed() < INTERVAL) {
            return Ok(());
        }
        self.presence.looked = Some(Instant::now());
        self.take_out_gone();
        let fingerprint = disks::fingerprint();
        if fingerprint != self.presence.fingerprint {
            self.presence.fingerprint = fingerprint;
            self.presence.looks_left = LOOKS_AFTER_CHANGE;
        }
        // While writers are held the set of disks stays; the next look is a second away.
        if self.presence.looks_left > 0 && self.refuse_while_held().is_ok() {
            self.presence.looks_left -= 1;
            self.take_in_returned();
            self.take_in_new();
        }
        self.follow_sizes()
    }

    fn take_out_gone(&mut self) {
        let Some(protection) = &mut self.protection else { return };
        let gone = protection.gone();
        for (slot, disk) in &gone {
            let path = disk.path.display();
            tracing::warn!(disk = %path, identity = disk.identity, "a protected disk is gone from the machine");
            let (engine, detail) = (&mut self.engine, format!("{path} was removed from the machine"));
            self.kernel.lend(&mut protection.capture, &mut |kernel| {
                engine.lose_disk(kernel, *slot, detail.clone());
            });
            if let Err(error) = protection.remove(&disk.identity, &self.reads) {
                tracing::warn!(disk = %path, %error, "the capture of a disk that is gone cannot be taken down");
            }
        }
        if !gone.is_empty() {
            self.follow_spool();
            self.presence.looks_left = LOOKS_AFTER_CHANGE;
            self.begin_session_anew();
        }
    }

    /// Protected disks that are not captured: found again by identity, or listed as missing.
    fn take_in_returned(&mut self) {
        let mut missing = Vec::new();
        let mut returned = Vec::new();
        let mut present = self.protection.as_ref().map(Protection::disks).unwrap_or_default();
        for known in &self.wanted.disks {
            if present.iter().any(|disk| disk.identity == known.identity) {
                continue;
            }
            let found = disks::find(&known.identity)
                .and_then(|disk| disks::refuse_nested(&disk, &present).map(|()| disk));
            match found {
                Ok(disk) => {
                    present.push(disk.clone());
                    returned.push(disk);
                }
                Err(error) => {
                    let mut reason = error.to_string();
                    reason.truncate(reason.floor_char_boundary(TEXT_MAX_BYTES));
                    let path = known.path.display().to_string();
                    missing.push(MissingDisk { identity: known.identity.clone(), path, reason });
                }
            }
        }
        self.presence.missing = missing;
        // The heartbeat tells of them at once.
        self.measured = None;
        if returned.is_empty() {
            return;
        }
        for disk in &returned {
            tracing::info!(disk = %disk.path.display(), identity = disk.identity, "a protected disk is back");
        }
        if let Err(error) = self.take_in(returned) {
            tracing::warn!(error = format!("{error:#}"), "a disk that is back cannot be captured");
        }
    }

    /// Disks that `protect --all` means and that are not protected yet.
    fn take_in_new(&mut self) {
        let Some(all) = self.wanted.all.clone() else {
            self.presence.refused.clear();
            return;
        };
        let held = self.protection.as_ref().map(Protection::disks).unwrap_or_default();
        // One that looks like a disk which is captured is not that disk: it is refused below, with the reason. One that
        // is captured may have another name by now.
        let known = |disk: &Disk| {
            held.iter().any(|held| held.is_same_device(disk))
                || self.wanted.disks.iter().any(|known| disk.answers_to(&known.identity))
                    && held.iter().all(|held| !disk.answers_to(&held.identity))
        };
        let new = disks::list()
            .into_iter()
            .filter(|disk| disk.is_of_the_machine() && !disk.matches(&all.except) && !known(disk));
        let mut refused = Vec::new();
        for disk in new.collect::<Vec<_>>() {
            let path = disk.path.clone();
            match self.protect(std::slice::from_ref(&path)) {
                Ok(()) => tracing::info!(
                    disk = %path.display(), identity = disk.identity, "a disk is protected as `protect --all` wants it"
                ),
                Err(error) => refused.push(RefusedDisk { path, reason: format!("{error:#}") }),
            }
        }
        for disk in refused.iter().filter(|disk| !self.presence.refused.contains(disk)) {
            tracing::warn!(disk = %disk.path.display(), reason = disk.reason, "a disk cannot be protected");
        }
        self.presence.refused = refused;
    }

    /// A disk that grew or shrank is said in the stream, while there is one: a hello tells the size otherwise.
    fn follow_sizes(&mut self) -> Result<(), EngineError> {
        let Some(protection) = &mut self.protection else { return Ok(()) };
        if self.session.is_none() {
            return Ok(());
        }
        let changed = protection.follow_sizes().unwrap_or_else(|error| {
            tracing::warn!(%error, "a disk's new size cannot be followed yet");
            Vec::new()
        });
        let engine = &mut self.engine;
        let mut outcome = Ok(());
        for (slot, size_bytes) in changed {
            self.kernel.lend(&mut protection.capture, &mut |kernel| {
                outcome = engine.resize_disk(kernel, slot, size_bytes);
            });
            outcome?;
            outcome = Ok(());
        }
        Ok(())
    }

    /// The missing disks as a hello names them: with the size they had.
    pub(super) fn missing_in_hello(&self) -> impl Iterator<Item = v1::Disk> {
        let held = |identity: &str| {
            self.protection
                .iter()
                .flat_map(|protection| &protection.held)
                .any(|held| held.disk.identity == identity)
        };
        self.wanted.disks.iter().filter(move |known| known.size_bytes > 0 && !held(&known.identity)).map(
            |known| v1::Disk {
                identity: known.identity.clone(),
                path: known.path.display().to_string(),
                size_bytes: known.size_bytes,
                disk_id: 0,
            },
        )
    }

    /// Notes the ids of the welcome, and has the stream say which disks are not there.
    pub(super) fn welcomed_missing(&mut self, welcome: &Welcome) {
        for disk in welcome.disks.iter().filter(|disk| disk.disk_id > 0) {
            self.presence.ids.insert(disk.identity.clone(), DiskId(disk.disk_id));
        }
        let missing: Vec<v1::Disk> = self.missing_in_hello().collect();
        let Some(protection) = &mut self.protection else { return };
        let engine = &mut self.engine;
        for disk in missing {
            let Some(id) = self.presence.ids.get(&disk.identity).copied() else { continue };
            let detail = format!("{} is not in the machine", disk.path);
            self.kernel.lend(&mut protection.capture, &mut |kernel| {
                engine.disk_missing(kernel, welcome, id, detail.clone());
            });
        }
    }
}
