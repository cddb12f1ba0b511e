//! The worker and its spool.

use tidemark_splitter_core::engine::{Notice, SpoolEvent, StatusReport};

use super::Worker;
use crate::control::Status;
use crate::daemon::boottime::now_us;

impl Worker {
    /// Opens the spool of the capture that was opened.
    pub(super) fn open_spool(&mut self) {
        if let Some(protection) = &self.protection {
            self.spooler.open(&mut self.engine, &protection.capture, &protection.disks());
        }
    }

    /// Other disks are protected: the spool may lie on one of them now, or no longer.
    pub(super) fn follow_spool(&mut self) {
        if let Some(protection) = &self.protection {
            self.spooler.follow(&mut self.engine, &protection.capture, &protection.disks());
        }
    }

    pub(super) fn take_spool_event(&mut self, event: SpoolEvent) {
        self.engine.spool_event(event, now_us());
    }

    pub(super) fn take_spool_notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Spooling { begins: true } => {
                tracing::info!("spooling: writes come faster than the appliance takes them");
            }
            Notice::Spooling { begins: false } => {
                tracing::info!("not spooling any more: what waits fits into memory and the ring")
            }
            Notice::SpoolFailed { detail } => {
                tracing::warn!(
                    detail,
                    "the spool cannot be written; beyond the ring only changed blocks are noted"
                );
            }
            Notice::SpoolLost { detail } => self.spool_lost(detail),
            _ => {}
        }
    }

    /// What was placed behind the lost frames does not exist; the next session says from where on the stream goes on.
    fn spool_lost(&mut self, detail: &str) {
        tracing::error!(detail, "frames in the spool are lost; the disks are read again");
        self.bookmarks.lose_all("what waited in the spool was lost, this bookmark too: try again");
        self.session = None;
        self.begin_session_anew();
    }

    /// The part of `status` that tells of the ladder.
    pub(super) fn show_ladder(status: &mut Status, report: StatusReport) {
        report.ladder.word().clone_into(&mut status.ladder);
        status.spool_bytes_used = report.spool.used_bytes;
        status.spool_bytes = report.spool.limit_bytes;
        status.spool_waiting_bytes = report.spool.waiting_bytes;
        status.spool_off = report.spool.refused;
    }
}
