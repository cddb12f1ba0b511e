//! Frames that may have to be sent again.

use std::collections::VecDeque;

use tidemark_proto::chain;
use tidemark_proto::ids::{CaptureId, ChainHash};
use tidemark_proto::v1::{Frame, StreamPosition, frame::Body};

use super::limits::{FRAME_OVERHEAD_BYTES, WINDOW_MAX_BYTES};
use super::spool::Spool;

/// The end of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct End {
    pub(super) seq: u64,
    pub(super) lsn: u64,
    pub(super) ring_position: u64,
    pub(super) chain: ChainHash,
    /// Ring position from which a reader without memory rebuilds the state at this end.
    pub(super) floor: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) frame: Frame,
    pub(super) end: End,
    /// The chain before it.
    pub(super) before: ChainHash,
    pub(super) bytes: u64,
}

/// Bytes that a frame counts.
pub(super) fn frame_bytes(body: Option<&Body>) -> u64 {
    let payload = match body {
        Some(Body::Writes(writes)) => writes.payload.len() + 32 * writes.entries.len(),
        Some(Body::Base(base)) => base.payload.len() + 32 * base.entries.len(),
        _ => 0,
    };
    (payload as u64).saturating_add(FRAME_OVERHEAD_BYTES)
}

/// The retransmit window: frames in order, the first `sent` of them on the way, none of them acknowledged. Those behind
/// what memory holds are in the spool.
#[derive(Debug, Default)]
pub(super) struct Window {
    frames: VecDeque<Kept>,
    sent: usize,
    bytes: u64,
    unsent_bytes: u64,
    granted_bytes: u64,
    acked: End,
    last: End,
    pub(super) spool: Spool,
}

/// An acknowledgement of what was never sent, or with another content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mismatch;

impl Window {
    /// Starts after `end`, as the appliance reported it.
    pub(super) fn start_after(end: End, spool: Spool) -> Self {
        Self { acked: end, last: end, spool, ..Self::default() }
    }

    pub(super) fn grant(&mut self, bytes: u64) {
        self.granted_bytes = bytes.min(WINDOW_MAX_BYTES);
    }

    pub(super) fn granted(&self) -> u64 {
        self.granted_bytes
    }

    /// Bytes of frames that were not sent yet, wherever they are.
    pub(super) fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes.saturating_add(self.spool.waiting_bytes())
    }

    /// The frames in memory that may be sent.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Kept> {
        self.frames.iter()
    }

    /// Number of the last of them.
    pub(super) fn memory_seq(&self) -> u64 {
        self.acked.seq.saturating_add(self.frames.len() as u64)
    }

    /// Further frames come after this one.
    pub(super) fn ends_with(&mut self, end: End) {
        self.last = end;
    }

    /// Appends a frame to those in memory.
    pub(super) fn append(&mut self, kept: Kept) {
        self.bytes = self.bytes.saturating_add(kept.bytes);
        self.unsent_bytes = self.unsent_bytes.saturating_add(kept.bytes);
        self.frames.push_back(kept);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn acked(&self) -> End {
        self.acked
    }

    /// Number of the newest frame.
    pub(super) fn last_seq(&self) -> u64 {
        self.last.seq
    }

    /// Number of the last frame handed over for sending.
    pub(super) fn sent_seq(&self) -> u64 {
        self.acked.seq.saturating_add(self.sent as u64)
    }

    /// Appends a frame: gives it its number and chain.
    pub(super) fn push(
        &mut self,
        generation: u64,
        lsn: u64,
        ring_position: u64,
        floor: u64,
        body: Body,
    ) -> u64 {
        let bytes = frame_bytes(Some(&body));
        let seq = self.last.seq.saturating_add(1);
        let mut frame = Frame { seq, generation, ring_position, body: Some(body), ..Frame::default() };
        let before = self.last.chain;
        let chain = chain::next(&before, &frame);
        frame.chain = chain.0.to_vec().into();
        self.last = End { seq, lsn, ring_position, chain, floor };
        self.take_in(Kept { frame, end: self.last, before, bytes });
        seq
    }

    /// The next frame to send. The payload is shared, not copied; where hashes stand for it, it stays here.
    pub(super) fn next_to_send(&mut self) -> Option<Frame> {
        let kept = self.frames.get(self.sent)?;
        self.sent += 1;
        self.unsent_bytes = self.unsent_bytes.saturating_sub(kept.bytes);
        let mut frame = kept.frame.clone();
        if let Some(Body::Base(base)) = &mut frame.body
            && !base.hashes.is_empty()
        {
            base.payload.clear();
        }
        Some(frame)
    }

    /// Everything kept is to be sent again, to another session: what was offered in the last one travels whole.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
        self.unsent_bytes = self.bytes;
        for kept in self.frames.iter_mut().chain(self.spool.behind_mut()) {
            if let Some(Body::Base(base)) = &mut kept.frame.body {
                base.hashes.clear();
            }
        }
    }

    /// Drops frames up to the durable position.
    pub(super) fn ack(&mut self, seq: u64, chain: &[u8]) -> Result<(), Mismatch> {
        if seq == self.acked.seq {
            return if chain == self.acked.chain.0 { Ok(()) } else { Err(Mismatch) };
        }
        let count = seq.checked_sub(self.acked.seq).ok_or(Mismatch)?;
        let count = usize::try_from(count).map_err(|_| Mismatch)?;
        let end = self.frames.get(count - 1).ok_or(Mismatch)?.end;
        if end.seq != seq || chain != end.chain.0 {
            return Err(Mismatch);
        }
        for (index, kept) in self.frames.drain(..count).enumerate() {
            self.bytes = self.bytes.saturating_sub(kept.bytes);
            if index >= self.sent {
                // Acknowledged before it was sent again: the first copy had arrived.
                self.unsent_bytes = self.unsent_bytes.saturating_sub(kept.bytes);
            }
        }
        self.sent = self.sent.saturating_sub(count);
        self.acked = end;
        self.give_up();
        Ok(())
    }

    /// The acknowledged position as the protocol carries it.
    pub(super) fn position(&self, capture_id: CaptureId) -> StreamPosition {
        let capture_id = if self.acked.seq == 0 { Vec::new() } else { capture_id.0.to_vec() };
        StreamPosition {
            seq: self.acked.seq,
            lsn: self.acked.lsn,
            capture_id: capture_id.into(),
            ring_position: self.acked.ring_position,
            chain: self.acked.chain.0.to_vec().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_proto::v1::{BaseBlocks, Heartbeat};

    fn filled() -> Window {
        let mut window = Window::default();
        window.grant(u64::MAX);
        for lsn in 1..=4 {
            window.push(
                1,
                lsn,
                lsn * 100,
                lsn * 90,
                Body::Heartbeat(Heartbeat { lsn, ..Heartbeat::default() }),
            );
        }
        window
    }

    #[test]
    fn frames_leave_in_order_and_an_acknowledgement_must_match_the_chain() {
        let mut window = filled();
        let chains: Vec<_> = window.frames.iter().map(|kept| kept.end.chain).collect();
        assert_eq!(window.next_to_send().map(|frame| frame.seq), Some(1));
        assert_eq!(window.ack(2, &chains[0].0), Err(Mismatch));
        assert_eq!(window.ack(9, &chains[1].0), Err(Mismatch));
        assert_eq!(window.ack(2, &chains[1].0), Ok(()));
        assert_eq!(window.acked().floor, 180);
        assert_eq!(window.next_to_send().map(|frame| frame.seq), Some(3));
        assert_eq!(window.ack(1, &chains[0].0), Err(Mismatch), "going back is a fork");
        window.rewind();
        assert_eq!(window.next_to_send().map(|frame| frame.seq), Some(3));
        assert_eq!(window.ack(4, &chains[3].0), Ok(()));
        assert_eq!((window.bytes(), window.unsent_bytes()), (0, 0));
        assert!(window.next_to_send().is_none());
    }

    #[test]
    fn what_hashes_stand_for_stays_here_and_travels_whole_to_another_session() {
        let mut window = Window::default();
        window.grant(u64::MAX);
        let base = BaseBlocks {
            line_lsn: 1,
            payload: vec![7; 4096].into(),
            crc32c: vec![5],
            hashes: vec![1; 32].into(),
            ..BaseBlocks::default()
        };
        window.push(1, 1, 100, 90, Body::Base(base));
        let sent = |window: &mut Window| match window.next_to_send() {
            Some(Frame { body: Some(Body::Base(base)), chain, .. }) => {
                (base.payload.len(), base.hashes.len(), chain)
            }
            other => panic!("{other:?}"),
        };
        let first = sent(&mut window);
        window.rewind();
        let again = sent(&mut window);
        assert_eq!((first.0, first.1, again.0, again.1), (0, 32, 4096, 0));
        assert_eq!(first.2, again.2, "it is the same frame");
    }
}
