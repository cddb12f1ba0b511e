//! Commands that change which disks are protected.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tidemark_splitter_core::engine::Engine;

use super::super::protection::{self, NoteError, Protection};
use super::Worker;
use crate::capture;
use crate::disks::{self, Disk};
use crate::gate;
use crate::state::{All, ProtectedDisk};

impl Worker {
    pub(super) fn protect(&mut self, paths: &[PathBuf]) -> Result<()> {
        self.refuse_while_held()?;
        let mut found = Vec::with_capacity(paths.len());
        let mut present = self.protection.as_ref().map(Protection::disks).unwrap_or_default();
        for path in paths {
            let mut disk = Disk::inspect(path)?;
            disks::refuse_nested(&disk, &present)?;
            // What is captured already goes on under its name, whatever was written to it since.
            if let Some(held) = present.iter().find(|held| held.is_same_device(&disk)) {
                disk.identity.clone_from(&held.identity);
            }
            present.push(disk.clone());
            found.push(disk);
        }
        self.take_in(found)
    }

    /// Captures disks that were looked at, and stores that they are wanted.
    pub(super) fn take_in(&mut self, mut found: Vec<Disk>) -> Result<()> {
        let mut wanted = self.wanted.clone();
        for disk in &mut found {
            disk.identity = protection::remember(&mut wanted, disk)?;
        }
        if let Some(protection) = &mut self.protection {
            for disk in found {
                protection.add(disk, &self.reads)?;
            }
            self.follow_spool();
        } else {
            self.protection = Some(Protection::open(&self.state, self.ring_bytes, &wanted, &self.reads)?);
            self.open_spool();
        }
        self.state.store_disks(&wanted)?;
        self.wanted = wanted;
        self.begin_session_anew();
        Ok(())
    }

    /// Every disk from now on. What cannot be protected is in the status.
    pub(super) fn protect_all(&mut self, except: Vec<String>) -> Result<()> {
        let mut wanted = self.wanted.clone();
        wanted.all = Some(All { except });
        self.state.store_disks(&wanted)?;
        self.wanted = wanted;
        self.presence.look_again();
        Ok(())
    }

    pub(super) fn unprotect(&mut self, path: &Path) -> Result<()> {
        self.refuse_while_held()?;
        let captured = self.protection.as_ref().map(Protection::disks).unwrap_or_default();
        let index = protection::position(&self.wanted, path, &captured)
            .ok_or_else(|| NoteError::NotProtected(path.to_owned()))?;
        self.refuse_under_gate(path)?;
        let mut wanted = self.wanted.clone();
        let removed = wanted.disks.remove(index);
        protection::leave_out(&mut wanted, removed.identity.clone(), path);
        self.state.store_disks(&wanted)?;
        self.wanted = wanted;
        self.let_go(&removed)?;
        self.after_removal()
    }

    pub(super) fn unprotect_all(&mut self) -> Result<()> {
        self.refuse_while_held()?;
        for disk in self.protection.as_ref().map(Protection::disks).unwrap_or_default() {
            self.refuse_under_gate(&disk.path)?;
        }
        let mut wanted = self.wanted.clone();
        let removed = std::mem::take(&mut wanted.disks);
        wanted.all = None;
        self.state.store_disks(&wanted)?;
        self.wanted = wanted;
        for disk in &removed {
            self.let_go(disk)?;
        }
        self.after_removal()
    }

    fn refuse_under_gate(&self, path: &Path) -> Result<()> {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Some(volume) = gate::on_disk(&self.gates, &real) {
            let volume = volume.display();
            bail!("{volume} lies on it and is in synchronous mode: switch it to async first");
        }
        Ok(())
    }

    /// Ends the protection of a disk in the stream, then its capture.
    fn let_go(&mut self, removed: &ProtectedDisk) -> Result<()> {
        let id = self.presence.ids.get(&removed.identity).copied();
        let Some(protection) = &mut self.protection else { return Ok(()) };
        let slot = protection.slot_of(&removed.identity);
        let engine = &mut self.engine;
        self.kernel.lend(&mut protection.capture, &mut |kernel| match (slot, id) {
            (Some(slot), _) => engine.remove_disk(kernel, slot),
            (None, Some(id)) => engine.remove_missing_disk(kernel, id),
            (None, None) => {}
        });
        protection.remove(&removed.identity, &self.reads)?;
        self.presence.look_again();
        Ok(())
    }

    fn after_removal(&mut self) -> Result<()> {
        if self.wanted.disks.is_empty() {
            self.session = None;
            self.engine = Engine::new();
            self.protection = None;
            self.spooler.close();
            capture::unload(&capture::name_for(self.state.root()))?;
        }
        self.follow_spool();
        self.begin_session_anew();
        Ok(())
    }
}
