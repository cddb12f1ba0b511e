//! Bookmarks: asked for by the appliance or in the guest, with or without a hold, until they are answered.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tidemark_proto::limits::HOLD_MAX_MS;
use tidemark_proto::v1::{Consistency, HoldMethod, MarkerFailed};
use tidemark_proto::version::CONSISTENCY;
use tidemark_splitter_core::engine::{Achieved, MarkerRequest, Place};
use uuid::Uuid;

use super::super::boottime::now_us;
use super::super::command::{Answer, Ask, Command};
use super::super::handle::Handle;
use super::super::hardening;
use super::super::protection::Protection;
use super::Worker;
use crate::control::Bookmark;
use crate::hold::{Conduct, Hold, Taken};

/// How long this thread may take to reserve a place while writers are held. It looks every few milliseconds; beyond the limit
/// something is wrong with it, and writers must not wait for it.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Holds that wait for the one under way at most; with its hooks one may take a minute. Further ones are refused.
const HOLDS_WAITING_MAX: usize = 16;

/// How long a hold waits for a short gap to end: writers must not wait for a point that will not be one. A longer gap refuses
/// the bookmark.
const GAP_PATIENCE: Duration = Duration::from_secs(10);

/// Bookmarks under way.
#[derive(Debug)]
pub(super) struct Bookmarks {
    /// The folder of freeze hooks.
    pub(super) hooks: PathBuf,
    /// Markers that failed, to be told to the appliance.
    pub(super) failed: VecDeque<MarkerFailed>,
    /// Asked for in the guest, not placed yet.
    asked: Vec<(String, Consistency, Answer<Bookmark>)>,
    /// Placed and not offered for recovery yet.
    placed: Vec<(Bookmark, Answer<Bookmark>)>,
    /// A hold is under way.
    pub(super) holding: bool,
    /// What is to be held for, each with how long it waits for the end of a gap.
    waiting: VecDeque<(Ask, Instant)>,
    /// The place that it reserved.
    reserved: Option<Place>,
}

impl Bookmarks {
    pub(super) fn new(hooks: PathBuf) -> Self {
        Self {
            hooks,
            failed: VecDeque::new(),
            asked: Vec::new(),
            placed: Vec::new(),
            holding: false,
            waiting: VecDeque::new(),
            reserved: None,
        }
    }

    pub(super) fn placed(&mut self, request: MarkerRequest, lsn: u64) {
        if let Some(index) = self.asked.iter().position(|(id, ..)| *id == request.bookmark_id) {
            let (_, wanted, reply) = self.asked.swap_remove(index);
            let Achieved { consistency, hold_us, reason } = request.achieved;
            let (requested, achieved) = (wanted.word().to_owned(), consistency.word().to_owned());
            let bookmark = Bookmark { name: request.name, lsn, requested, achieved, hold_us, reason };
            self.placed.push((bookmark, reply));
        }
    }

    pub(super) fn failed(&mut self, request: &MarkerRequest, reason: String) {
        if let Some(index) = self.asked.iter().position(|(id, ..)| *id == request.bookmark_id) {
            let (_, _, reply) = self.asked.swap_remove(index);
            let _ = reply.send(Err(reason));
        } else {
            self.failed.push_back(MarkerFailed { request_id: request.request_id, reason });
        }
    }

    /// The place that the hold under way reserved.
    pub(super) fn reserved(&self) -> Option<Place> {
        self.reserved
    }

    /// Answers those whose point is offered.
    pub(super) fn answer(&mut self, offered_lsn: u64) {
        for (bookmark, reply) in self.placed.extract_if(.., |(bookmark, _)| bookmark.lsn <= offered_lsn) {
            let _ = reply.send(Ok(bookmark));
        }
    }

    /// Frames are lost, and every marker that was placed behind them.
    pub(super) fn lose_all(&mut self, reason: &str) {
        let asked = self.asked.drain(..).map(|(_, _, reply)| reply);
        for reply in asked.chain(self.placed.drain(..).map(|(_, reply)| reply)) {
            let _ = reply.send(Err(reason.to_owned()));
        }
    }

    /// A gap opened: points in it are not offered.
    pub(super) fn lose(&mut self, gap_from: u64) {
        for (bookmark, reply) in self.placed.extract_if(.., |(bookmark, _)| bookmark.lsn >= gap_from) {
            let _ = reply.send(Err(format!(
                "the bookmark was placed at LSN {} and cannot be recovered, a gap opened there: try again when \
                 `status` says protected",
                bookmark.lsn
            )));
        }
    }
}

/// A hold of this VM alone: it goes on as soon as it can.
struct Alone {
    worker: Handle,
    /// `None` once it is settled.
    ask: Option<Ask>,
}

impl Conduct for Alone {
    fn quiesced(&mut self, _: Option<&str>) -> Result<(), String> {
        Ok(())
    }

    fn held(&mut self, _: HoldMethod) -> Result<Place, String> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.worker.send(Command::Reserve { reply });
        answer.recv_timeout(RESERVE_TIMEOUT).unwrap_or_else(|_| {
            Err(format!("the splitter could not place it within {} s", RESERVE_TIMEOUT.as_secs()))
        })
    }

    fn settled(&mut self, taken: Taken) {
        if let Some(ask) = self.ask.take() {
            self.worker.send(Command::Held { ask, taken });
        }
    }
}

impl Worker {
    /// While writers are held the protected disks stay the same.
    pub(super) fn refuse_while_held(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.bookmarks.holding, "a bookmark is being placed: try again in a moment");
        Ok(())
    }

    /// A bookmark that somebody in the guest asks for.
    pub(super) fn bookmark(
        &mut self,
        name: String,
        wanted: Consistency,
        allow_lower: bool,
        reply: Answer<Bookmark>,
    ) {
        if self.session.is_none() {
            let _ = reply
                .send(Err("not connected to the appliance: try again when `status` says connected".into()));
            return;
        }
        let bookmark_id = Uuid::new_v4().to_string();
        self.bookmarks.asked.push((bookmark_id.clone(), wanted, reply));
        let request = MarkerRequest { request_id: 0, bookmark_id, name, achieved: Achieved::default() };
        self.ask(Ask { request, wanted, allow_lower });
    }

    /// A bookmark that the appliance or somebody in the guest asks for.
    pub(super) fn ask(&mut self, ask: Ask) {
        if ask.wanted <= Consistency::Crash {
            return self.request_marker(ask.request);
        }
        if self.protocol < CONSISTENCY {
            return self.settle(
                ask,
                None,
                Achieved {
                    reason: "the appliance is of an older version, which knows no levels: upgrade it"
                        .to_owned(),
                    ..Achieved::default()
                },
            );
        }
        if self.bookmarks.waiting.len() >= HOLDS_WAITING_MAX {
            return self.bookmarks.failed(&ask.request, "too many bookmarks are waiting already".to_owned());
        }
        self.bookmarks.waiting.push_back((ask, Instant::now() + GAP_PATIENCE));
        self.hold_for_next();
    }

    /// Begins the next hold, if one is waited for, none is under way and its point would be recoverable.
    pub(super) fn hold_for_next(&mut self) {
        while !self.bookmarks.holding
            && let Some((_, until)) = self.bookmarks.waiting.front()
        {
            let patient = Instant::now() < *until;
            let obstacle = self.obstacle();
            if obstacle.is_some() && patient {
                return;
            }
            let Some((ask, _)) = self.bookmarks.waiting.pop_front() else { return };
            let begun = match obstacle {
                Some(reason) => Err(reason.to_owned()),
                None => self.start_hold(ask.clone()),
            };
            match begun {
                Ok(()) => self.bookmarks.holding = true,
                Err(reason) => self.bookmarks.failed(&ask.request, reason),
            }
        }
    }

    /// Why a marker placed now could not be recovered, if so.
    pub(super) fn obstacle(&mut self) -> Option<&'static str> {
        let mut obstacle = Some("no disk is protected");
        if let Some(protection) = &mut self.protection {
            let engine = &self.engine;
            self.kernel.lend(&mut protection.capture, &mut |kernel| obstacle = engine.unrecoverable(kernel));
        }
        obstacle
    }

    fn start_hold(&self, ask: Ask) -> Result<(), String> {
        let hold = Hold {
            disks: self.protection.as_ref().map(Protection::disks).unwrap_or_default(),
            wanted: ask.wanted,
            allow_lower: ask.allow_lower,
            freeze: true,
            gates: Vec::new(),
            at_most: Duration::from_millis(HOLD_MAX_MS.into()),
            hooks: self.bookmarks.hooks.clone(),
        };
        self.start_holder(hold, Alone { worker: self.handle.clone(), ask: Some(ask) })
    }

    /// Starts the thread that takes a hold.
    pub(super) fn start_holder(
        &self,
        hold: Hold,
        mut conduct: impl Conduct + Send + 'static,
    ) -> Result<(), String> {
        let worker = self.handle.clone();
        let work = move || {
            hardening::be_prompt();
            let failed = hold.take(&mut conduct);
            for problem in &failed {
                tracing::warn!(problem, "after a bookmark");
            }
            worker.send(Command::HoldOver { failed });
        };
        thread::Builder::new()
            .name("hold".into())
            .spawn(work)
            .map(drop)
            .map_err(|error| format!("a thread cannot be started: {error}"))
    }

    /// Writers are held: the end of the ring now is where the marker will be.
    pub(super) fn reserve(&mut self) -> Result<Place, String> {
        let Some(protection) = &mut self.protection else { return Err("no disk is protected".to_owned()) };
        let engine = &mut self.engine;
        let mut place = Err("the capture was not lent");
        self.kernel.lend(&mut protection.capture, &mut |kernel| {
            place = engine.reserve_place(kernel, now_us());
        });
        self.bookmarks.reserved = place.ok();
        place.map_err(str::to_owned)
    }

    /// A hold came to its end.
    pub(super) fn held(&mut self, ask: Ask, taken: Taken) {
        let Taken { place, achieved, .. } = taken;
        tracing::info!(
            name = ask.request.name,
            wanted = ask.wanted.word(),
            achieved = achieved.consistency.word(),
            hold_us = achieved.hold_us,
            reason = achieved.reason,
            "held for a bookmark"
        );
        self.give_back_all_but(place);
        self.settle(ask, place, achieved);
    }

    /// A place that came too late for its hold must not keep the ring waiting.
    pub(super) fn give_back_all_but(&mut self, place: Option<Place>) {
        if let Some(late) = self.bookmarks.reserved.take().filter(|late| Some(*late) != place) {
            self.engine.settle_place(late, None);
        }
    }

    pub(super) fn hold_over(&mut self, failed: &[String]) {
        self.bookmarks.holding = false;
        self.barrier_over(failed);
        self.hold_for_next();
    }

    /// Places the marker with its level, unless that is lower than will do.
    fn settle(&mut self, ask: Ask, place: Option<Place>, achieved: Achieved) {
        let Ask { mut request, wanted, allow_lower } = ask;
        if achieved.consistency < wanted && !allow_lower {
            if let Some(place) = place {
                self.engine.settle_place(place, None);
            }
            let reason = format!("consistency '{}' was not achieved: {}", wanted.word(), achieved.reason);
            return self.bookmarks.failed(&request, reason);
        }
        request.achieved = achieved;
        match place {
            Some(place) => self.engine.settle_place(place, Some(request)),
            None => self.request_marker(request),
        }
    }

    fn request_marker(&mut self, request: MarkerRequest) {
        if let Some(protection) = &mut self.protection {
            let engine = &mut self.engine;
            self.kernel.lend(&mut protection.capture, &mut |kernel| {
                engine.request_marker(kernel, now_us(), request.clone());
            });
        } else {
            self.bookmarks.failed(&request, "no disk is protected".to_owned());
        }
    }
}
