//! Points of a set that somebody in the guest asks for: the appliance knows the set and takes them.

use std::collections::{HashMap, VecDeque};

use tidemark_proto::v1::{SetBookmarkDone, SetBookmarkRequest};
use tidemark_proto::version::BARRIER;

use super::super::command::Answer;
use super::Worker;
use crate::control::Bookmark;

/// Requests without an answer at most; further ones are refused.
const WAITING_MAX: usize = 16;

/// Requests under way.
#[derive(Debug, Default)]
pub(super) struct SetBookmarks {
    next_id: u64,
    to_send: VecDeque<SetBookmarkRequest>,
    waiting: HashMap<u64, (SetBookmarkRequest, Answer<Bookmark>)>,
}

impl SetBookmarks {
    /// The next one to send.
    pub(super) fn next(&mut self) -> Option<SetBookmarkRequest> {
        self.to_send.pop_front()
    }

    /// The appliance answered.
    pub(super) fn done(&mut self, done: &SetBookmarkDone) {
        let Some((request, reply)) = self.waiting.remove(&done.id) else { return };
        let outcome = if done.reason.is_empty() {
            Ok(Bookmark {
                lsn: done.lsn,
                requested: request.consistency().or_crash().word().to_owned(),
                achieved: done.achieved().or_crash().word().to_owned(),
                name: request.name,
                hold_us: done.hold_us,
                reason: done.warnings.join("; "),
            })
        } else {
            Err(done.reason.clone())
        };
        let _ = reply.send(outcome);
    }

    /// The session ended.
    pub(super) fn disconnected(&mut self) {
        self.to_send.clear();
        for (_, (request, reply)) in self.waiting.drain() {
            let _ = reply.send(Err(format!(
                "the connection was lost before the appliance answered: `point list --set {}` of the console shows whether \
                 the point exists",
                request.set
            )));
        }
    }
}

impl Worker {
    /// Somebody in the guest asks for a point of a set.
    pub(super) fn set_bookmark(&mut self, mut request: SetBookmarkRequest, reply: Answer<Bookmark>) {
        let refusal = if self.session.is_none() {
            Some("not connected to the appliance: try again when `status` says connected")
        } else if self.protocol < BARRIER {
            Some("the appliance is of an older version, which knows no points of sets: upgrade it")
        } else if self.set_bookmarks.waiting.len() >= WAITING_MAX {
            Some("too many points of sets are being taken: try again")
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let _ = reply.send(Err(refusal.to_owned()));
            return;
        }
        self.set_bookmarks.next_id += 1;
        request.id = self.set_bookmarks.next_id;
        self.set_bookmarks.to_send.push_back(request.clone());
        self.set_bookmarks.waiting.insert(request.id, (request, reply));
    }
}
