//! Takes messages off one connection. It stops reading when too much waits, so that the connection's flow control
//! holds the splitter; it answers pings at once, because the splitter measures its clock with them.

use std::sync::Arc;

use prost::Message as _;
use tidemark_proto::limits::{
    DISKS_MAX, MESSAGE_MAX_BYTES, SYNC_LEASE_US, SYNC_VOLUMES_MAX, TEXT_MAX_BYTES, VERIFY_RANGES_MAX,
    WINDOW_BYTES,
};
use tidemark_proto::v1::{
    ApplianceMessage, BarrierAnswer, BarrierStep, Consistency, Frame, HashQuestion, HoldMethod, MarkerFailed,
    Ping, Pong, SetBookmarkRequest, SplitterMessage, VerifyQuestion, VerifyReport, appliance_message, frame,
    splitter_message,
};
use tidemark_proto::version::BARRIER;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Code, Status, Streaming};

use super::session::Outbound;
use crate::clock::now_us;
use crate::fleet::SessionHandle;

/// Messages decoded and not yet appended at most; beyond it the reader waits.
const INBOUND_MAX: usize = 1024;

/// Bytes of frames decoded and not yet appended at most: the window that the splitter was granted. Beyond it the
/// reader waits.
const INBOUND_MAX_BYTES: u64 = WINDOW_BYTES;

/// Bytes that one permit stands for.
const PERMIT_BYTES: usize = 1024;

/// Bytes that a frame counts besides what it carries.
const FRAME_OVERHEAD_BYTES: usize = 1024;

/// Bytes that one of a frame's entries takes in memory at most, and the state of one disk.
const REPEATED_BYTES: usize = 64;

/// Bytes that a report of a verify counts at least: what an empty one takes besides its content.
const REPORT_MIN_BYTES: usize = 1024;

/// What came in.
pub(super) enum Inbound {
    Frame(Frame, OwnedSemaphorePermit),
    NonceSaved,
    MarkerFailed(MarkerFailed),
    Question(HashQuestion, OwnedSemaphorePermit),
    VerifyQuestion(VerifyQuestion, OwnedSemaphorePermit),
    VerifyReport(VerifyReport, OwnedSemaphorePermit),
    /// What is promised of volumes in synchronous mode.
    Sync(Ping),
    /// A step of a barrier was done, or why not.
    Barrier(BarrierAnswer),
    /// Somebody in the guest asks for a point of a set.
    SetBookmark(SetBookmarkRequest),
    /// The splitter broke a rule of the protocol.
    Broken(String),
    /// The connection is gone.
    Lost(String),
    /// The splitter will send no more.
    Closed,
}

/// Ends the reader when dropped.
#[derive(Debug)]
pub(super) struct Reader(tokio::task::JoinHandle<()>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts reading.
pub(super) fn spawn(
    inbound: Streaming<SplitterMessage>,
    outbound: Outbound,
    handle: SessionHandle,
) -> (mpsc::Receiver<Inbound>, Reader) {
    let (sender, receiver) = mpsc::channel(INBOUND_MAX);
    (receiver, Reader(tokio::spawn(read(inbound, outbound, handle, sender))))
}

/// A ping whose promises are within the limits: a lease is never longer than that of the protocol.
fn checked(mut ping: Ping) -> Result<Ping, String> {
    if ping.sync.len() > SYNC_VOLUMES_MAX {
        return Err(format!("{} volumes in synchronous mode, at most {SYNC_VOLUMES_MAX}", ping.sync.len()));
    }
    let latest = (ping.boottime_ns / 1000).saturating_add(SYNC_LEASE_US);
    for said in &mut ping.sync {
        if said.volume.len() > TEXT_MAX_BYTES || said.cause.len() > TEXT_MAX_BYTES {
            return Err("a text about synchronous mode is too long".into());
        }
        said.promised_until_us = said.promised_until_us.min(latest);
    }
    Ok(ping)
}

/// That an answer to a barrier's order is one.
///
/// # Errors
/// When it is beyond a limit, or of a kind that this version does not know; the stream must end.
fn answer_fits(answer: &BarrierAnswer, protocol: u32) -> Result<(), String> {
    let step = BarrierStep::try_from(answer.step).unwrap_or_default();
    if protocol < BARRIER || matches!(step, BarrierStep::Unspecified | BarrierStep::GiveUp) {
        return Err(format!("an answer to a step {} of a barrier in version {protocol}", answer.step));
    }
    if HoldMethod::try_from(answer.method).is_err() || Consistency::try_from(answer.consistency).is_err() {
        return Err("an answer to a barrier with an unknown hold or level".into());
    }
    if answer.reason.len().max(answer.lower_reason.len()) > TEXT_MAX_BYTES {
        return Err(format!("an answer to a barrier with a text of more than {TEXT_MAX_BYTES} bytes"));
    }
    Ok(())
}

/// The same of a guest's request for a point of a set.
///
/// # Errors
/// As [`answer_fits`].
fn request_fits(request: &SetBookmarkRequest, protocol: u32) -> Result<(), String> {
    if protocol < BARRIER || Consistency::try_from(request.consistency).is_err() {
        return Err(format!("a request for a point of a set in version {protocol}, or of an unknown level"));
    }
    if request.set.len().max(request.name.len()) > TEXT_MAX_BYTES {
        return Err(format!(
            "a request for a point of a set with a text of more than {TEXT_MAX_BYTES} bytes"
        ));
    }
    Ok(())
}

async fn read(
    mut inbound: Streaming<SplitterMessage>,
    outbound: Outbound,
    handle: SessionHandle,
    sender: mpsc::Sender<Inbound>,
) {
    let units = usize::try_from(INBOUND_MAX_BYTES).unwrap_or(usize::MAX) / PERMIT_BYTES;
    let budget = Arc::new(Semaphore::new(units));
    // Volumes were named: that none is named any more is said, too.
    let mut synced = false;
    loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => message,
            Ok(None) => {
                let _ = sender.send(Inbound::Closed).await;
                return;
            }
            Err(status) => {
                let _ = sender.send(lost(&status)).await;
                return;
            }
        };
        handle.touch();
        let message = match message.body {
            Some(splitter_message::Body::Frame(frame)) => {
                let units = u32::try_from(bytes(&frame).div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
                let Ok(permit) = Arc::clone(&budget).acquire_many_owned(units).await else { return };
                Inbound::Frame(frame, permit)
            }
            Some(splitter_message::Body::Ping(ping)) => {
                let pong = Pong { boottime_ns: ping.boottime_ns, appliance_time_us: now_us() };
                let body = Some(appliance_message::Body::Pong(pong));
                // A splitter that does not read its messages gets no pongs; the session notices.
                let _ = outbound.try_send(Ok(ApplianceMessage { body }));
                if ping.sync.is_empty() && !synced {
                    continue;
                }
                synced = !ping.sync.is_empty();
                match checked(ping) {
                    Ok(ping) => Inbound::Sync(ping),
                    Err(problem) => Inbound::Broken(problem),
                }
            }
            Some(splitter_message::Body::HashQuestion(question)) => {
                let units =
                    u32::try_from(question_bytes(&question).div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
                let Ok(permit) = Arc::clone(&budget).acquire_many_owned(units).await else { return };
                Inbound::Question(question, permit)
            }
            Some(splitter_message::Body::VerifyQuestion(verify)) => {
                let bytes = verify.question.as_ref().map_or(0, question_bytes);
                let units = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
                let Ok(permit) = Arc::clone(&budget).acquire_many_owned(units).await else { return };
                Inbound::VerifyQuestion(verify, permit)
            }
            Some(splitter_message::Body::VerifyReport(report)) => match report_bytes(&report) {
                Ok(bytes) => {
                    let units = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
                    let Ok(permit) = Arc::clone(&budget).acquire_many_owned(units).await else { return };
                    Inbound::VerifyReport(report, permit)
                }
                Err(problem) => Inbound::Broken(problem),
            },
            Some(splitter_message::Body::BarrierAnswer(answer)) => {
                match answer_fits(&answer, handle.protocol) {
                    Ok(()) => Inbound::Barrier(answer),
                    Err(problem) => Inbound::Broken(problem),
                }
            }
            Some(splitter_message::Body::SetBookmark(request)) => {
                match request_fits(&request, handle.protocol) {
                    Ok(()) => Inbound::SetBookmark(request),
                    Err(problem) => Inbound::Broken(problem),
                }
            }
            Some(splitter_message::Body::NonceSaved(_)) => Inbound::NonceSaved,
            Some(splitter_message::Body::MarkerFailed(failed)) => Inbound::MarkerFailed(failed),
            Some(splitter_message::Body::Hello(_)) => Inbound::Broken("a second Hello".into()),
            None => Inbound::Broken("a message of unknown kind".into()),
        };
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

fn lost(status: &Status) -> Inbound {
    match status.code() {
        // The decoder refuses oversized and malformed messages with these.
        Code::OutOfRange | Code::ResourceExhausted | Code::Internal if status.source_is_local() => {
            Inbound::Broken(status.message().to_owned())
        }
        _ => Inbound::Lost(status.message().to_owned()),
    }
}

trait LocalSource {
    fn source_is_local(&self) -> bool;
}

impl LocalSource for Status {
    /// Errors of the transport carry their cause; those of the decoder do not.
    fn source_is_local(&self) -> bool {
        std::error::Error::source(self).is_none()
    }
}

/// What a frame counts against the budget: all that it holds decoded, never more than the budget, which a message cannot
/// exceed. What is repeated is larger in memory than on the wire.
fn bytes(frame: &Frame) -> usize {
    let repeated = match &frame.body {
        Some(frame::Body::Writes(writes)) => writes.entries.len(),
        Some(frame::Body::Base(base)) => base.entries.len(),
        Some(frame::Body::Heartbeat(heartbeat)) => heartbeat.disks.len(),
        _ => 0,
    };
    let table = repeated.saturating_mul(REPEATED_BYTES);
    frame.encoded_len().saturating_add(table).saturating_add(FRAME_OVERHEAD_BYTES).min(MESSAGE_MAX_BYTES)
}

/// The same for a question.
fn question_bytes(question: &HashQuestion) -> usize {
    let numbers = question.start_sectors.len().saturating_mul(8);
    let lengths = question.sectors.len().saturating_mul(4);
    question.hashes.len().saturating_add(numbers).saturating_add(lengths).min(MESSAGE_MAX_BYTES)
}

/// The same for a report of a verify: never more than its limits allow.
///
/// # Errors
/// When it is beyond a limit; the stream must end.
fn report_bytes(report: &VerifyReport) -> Result<usize, String> {
    if report.disks.len() > DISKS_MAX {
        return Err(format!("a report of a verify of more than {DISKS_MAX} disks"));
    }
    if report.disks.iter().any(|disk| disk.differing.len() > VERIFY_RANGES_MAX) {
        return Err(format!(
            "a report of a verify that names more than {VERIFY_RANGES_MAX} places of a disk"
        ));
    }
    if report.job_id.len() > TEXT_MAX_BYTES || report.reason.len() > TEXT_MAX_BYTES {
        return Err(format!("a report of a verify with a text of more than {TEXT_MAX_BYTES} bytes"));
    }
    Ok(report.encoded_len().max(REPORT_MIN_BYTES))
}

#[cfg(test)]
mod tests {
    use tidemark_proto::v1::{BaseBlocks, Heartbeat, LineStart};

    use super::*;

    #[test]
    fn whatever_a_frame_holds_counts() {
        let of = |body| bytes(&Frame { body: Some(body), ..Frame::default() });
        let hashes = BaseBlocks { hashes: vec![1; 1 << 20].into(), ..BaseBlocks::default() };
        assert!(of(frame::Body::Base(hashes)) > 1 << 20);
        let sums = BaseBlocks { crc32c: vec![1; 1 << 18], ..BaseBlocks::default() };
        assert!(of(frame::Body::Base(sums)) > 1 << 20);
        let text = LineStart { detail: "x".repeat(1 << 20), ..LineStart::default() };
        assert!(of(frame::Body::LineStart(text)) > 1 << 20);
        let disks = Heartbeat { disks: vec![<_>::default(); 1 << 14], ..Heartbeat::default() };
        assert!(of(frame::Body::Heartbeat(disks)) > 1 << 20);
        let huge = BaseBlocks { hashes: vec![1; 2 * MESSAGE_MAX_BYTES].into(), ..BaseBlocks::default() };
        assert_eq!(of(frame::Body::Base(huge)), MESSAGE_MAX_BYTES);
        assert!(size_of::<tidemark_proto::v1::WriteEntry>() <= REPEATED_BYTES);
        assert!(size_of::<tidemark_proto::v1::DiskStatus>() <= REPEATED_BYTES);
    }
}
