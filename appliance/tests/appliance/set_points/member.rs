//! Members of sets: splitters that hold, and such that do not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_proto::v1::{
    BarrierAnswer, BarrierOrder, BarrierStep, Consistency, GapCause, HoldMethod, SetBookmarkDone,
    SetBookmarkRequest, appliance_message, splitter_message,
};
use tokio::sync::mpsc;

use crate::site::{Guest, Site, Stream};

const DISK_BYTES: u64 = 1 << 20;

/// What a splitter does at a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// All it should, at this level.
    Good(Consistency),
    /// It cannot hold.
    Fails,
    /// It does not answer PREPARE.
    Silent,
    /// It holds and vanishes.
    Leaves,
    /// It answers RELEASE a second later.
    Late,
    /// Its hold breaks, though its marker was placed.
    Breaks,
    /// A gap begins before its place.
    Gap,
    /// It tells of an LSN that it never sent.
    Forges,
}

/// A splitter that runs by itself.
pub(crate) struct Member {
    /// The orders that it got.
    pub(crate) orders: Arc<Mutex<Vec<BarrierOrder>>>,
    asks: mpsc::Sender<SetBookmarkRequest>,
    pub(crate) answers: mpsc::Receiver<SetBookmarkDone>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Member {
    /// Enrols a VM, protects its disk, and goes on by itself; its clock may be wrong by so much.
    pub(crate) async fn start(site: &Site, name: &str, manner: Manner, clock_error_us: u64) -> Self {
        Self::of_version(site, name, manner, clock_error_us, 5).await
    }

    pub(crate) async fn of_version(
        site: &Site,
        name: &str,
        manner: Manner,
        clock_error_us: u64,
        protocol_max: u32,
    ) -> Self {
        let mut guest = site.guest(name, DISK_BYTES).await;
        (guest.clock_error_us, guest.protocol_max) = (clock_error_us, protocol_max);
        let mut stream = guest.connect(site).await.unwrap();
        guest.protect(&mut stream).await;
        let frame = guest.write(0, vec![1; 4096]);
        stream.frame(frame).await;
        let ((asks, asked), (answer, answers)) = (mpsc::channel(8), mpsc::channel(8));
        let orders = Arc::<Mutex<Vec<BarrierOrder>>>::default();
        let splitter =
            Splitter { guest, stream, manner, orders: Arc::clone(&orders), first: BarrierOrder::default() };
        Self { orders, asks, answers, task: tokio::spawn(splitter.run(asked, answer)) }
    }

    /// Asks for a point of a set from inside, and waits for what came of it.
    pub(crate) async fn ask(&mut self, set: &str, name: &str) -> SetBookmarkDone {
        let request = SetBookmarkRequest { id: 9, set: set.into(), name: name.into(), ..<_>::default() };
        self.asks.send(request).await.unwrap();
        tokio::time::timeout(crate::site::PATIENCE, self.answers.recv()).await.unwrap().unwrap()
    }

    pub(crate) fn steps(&self) -> Vec<BarrierStep> {
        self.orders.lock().unwrap().iter().map(BarrierOrder::step).collect()
    }
}

struct Splitter {
    guest: Guest,
    stream: Stream,
    manner: Manner,
    orders: Arc<Mutex<Vec<BarrierOrder>>>,
    /// What is wanted, as the first order said.
    first: BarrierOrder,
}

impl Splitter {
    async fn run(
        mut self,
        mut asked: mpsc::Receiver<SetBookmarkRequest>,
        done: mpsc::Sender<SetBookmarkDone>,
    ) {
        let mut beat = tokio::time::interval(Duration::from_millis(50));
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    for frame in [self.guest.write(8, vec![2; 512]), self.guest.heartbeat()] {
                        self.stream.frame(frame).await;
                    }
                }
                Some(request) = asked.recv() => {
                    self.stream.send(splitter_message::Body::SetBookmark(request)).await;
                }
                message = self.stream.receiver.message() => match message {
                    Ok(Some(message)) => match message.body {
                        Some(appliance_message::Body::BarrierOrder(order)) => {
                            self.orders.lock().unwrap().push(order.clone());
                            if !self.obey(order).await {
                                return;
                            }
                        }
                        Some(appliance_message::Body::SetBookmarkDone(answer)) => {
                            let _ = done.send(answer).await;
                        }
                        _ => {}
                    },
                    _ => return,
                },
            }
        }
    }

    /// False when it leaves.
    async fn obey(&mut self, order: BarrierOrder) -> bool {
        let step = order.step();
        if order.hold_ms > 0 {
            self.first = order.clone();
        }
        match (step, self.manner) {
            (BarrierStep::Prepare, Manner::Silent) => {}
            (BarrierStep::Prepare, Manner::Fails) => self.fail(&order, "swap is in use").await,
            (BarrierStep::Mark, Manner::Leaves) => return false,
            (BarrierStep::GiveUp, _) => self.fail(&order, "given up").await,
            (BarrierStep::Release, _) => self.release(&order).await,
            _ => self.answer(&order, BarrierAnswer { step: step.into(), ..<_>::default() }).await,
        }
        true
    }

    async fn release(&mut self, order: &BarrierOrder) {
        if self.manner == Manner::Gap {
            let line = self.guest.line_start(GapCause::RingFull);
            self.stream.frame(line).await;
        }
        let (name, id) = (self.first.name.clone(), self.first.bookmark_id.clone());
        let marker = self.guest.marker(&name, &id, order.request_id);
        self.stream.frame(marker).await;
        let mut lsn = self.guest.lsn;
        match self.manner {
            Manner::Late => tokio::time::sleep(Duration::from_secs(1)).await,
            Manner::Breaks => return self.fail(order, "the hold broke").await,
            Manner::Forges => lsn += 1_000_000,
            _ => {}
        }
        let level = if let Manner::Good(level) = self.manner { level } else { Consistency::Crash };
        let answer = BarrierAnswer {
            step: BarrierStep::Release.into(),
            lsn,
            hold_us: 1234,
            method: HoldMethod::Gate.into(),
            consistency: level.into(),
            ..BarrierAnswer::default()
        };
        self.answer(order, answer).await;
    }

    async fn fail(&mut self, order: &BarrierOrder, reason: &str) {
        let step = BarrierStep::Failed.into();
        self.answer(order, BarrierAnswer { step, reason: reason.into(), ..<_>::default() }).await;
    }

    async fn answer(&mut self, order: &BarrierOrder, answer: BarrierAnswer) {
        let answer = BarrierAnswer { request_id: order.request_id, ..answer };
        self.stream.send(splitter_message::Body::BarrierAnswer(answer)).await;
    }
}
