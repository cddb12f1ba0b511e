//! Limits of the engine. Each says its unit, its reason and what happens beyond it.

use tidemark_proto::limits::HOLD_MAX_MS;

/// Bytes of frames kept for retransmission at most, whatever the appliance grants. It keeps the splitter below 64 MiB
/// besides its ring; 24 MiB covers 400 MB/s at 60 ms from capture to acknowledgement. Beyond it the ring holds the rest.
pub const WINDOW_MAX_BYTES: u64 = 24 << 20;

/// Bytes that a frame counts in the window beyond its payload: message, table and bookkeeping of a small frame.
pub const FRAME_OVERHEAD_BYTES: u64 = 512;

/// Bytes of one read of initial copy or resync at most: the payload target of a frame.
pub const READ_MAX_BYTES: u64 = 1 << 20;

/// Bytes of initial copy and resync read or being read and not acknowledged at most. Two thirds of the window, so that
/// captured writes always find room; 16 MiB covers 400 MB/s at 40 ms from a read to its acknowledgement, of which a commit
/// takes the most. Beyond it no further read starts.
pub const COPY_OUTSTANDING_MAX_BYTES: u64 = 16 << 20;

/// Ranges of initial copy and resync on their way at most. What is known holds no bytes of content, but waits for an
/// acknowledgement like everything else, takes some hundred bytes here, and is looked at by every search for a range.
/// Beyond it no further read starts; the questions on their way may still add 16 ranges each.
pub const COPY_RANGES_MAX: usize = 4096;

/// Score (of [`ASKING_SURE`]) from which on ranges are asked about before they are sent. Below it asking costs more reads
/// and round trips than it saves bytes.
pub const ASKING_FROM: u32 = 64;

/// The score at which everything asked about was known.
pub const ASKING_SURE: u32 = 256;

/// Below [`ASKING_FROM`] one read in this many asks all the same, to notice when it pays again.
pub const ASKING_PROBE: u32 = 16;

/// Ranges that were asked about and not known, waiting to be read for sending, at most. Further ones are found again by
/// the search for pending blocks.
pub const REREADS_MAX: usize = 1024;

/// Ring fill (in parts of 256) above which no read of initial copy or resync starts: captured writes go first.
pub const COPY_RING_FILL_MAX: u64 = 64;

/// Captured bytes waiting to be sent above which no read starts.
pub const COPY_UNSENT_MAX_BYTES: u64 = 4 << 20;

/// Microseconds between two new lines of one disk that already has a gap open. A guest that overlaps its writes
/// without end then costs twenty small frames a second, not one per write.
pub const LINE_INTERVAL_US: u64 = 50_000;

/// Microseconds before a range that could not be read is tried again.
pub const READ_RETRY_US: u64 = 1_000_000;

/// Units read in one step at most, so that acknowledgements and heartbeats are not starved by a busy ring.
pub const STEP_UNITS_MAX: usize = 4096;

/// Part of the ring (one in this many) that a request without completion may hold back. Beyond it the ring is released
/// past its issue: a splitter restarted without memory then finds its completion unseen and reads the range again.
pub const STUCK_RING_PART: u64 = 2;

/// Markers waiting for their place in the ring at most; further ones are refused.
pub const MARKERS_WAITING_MAX: usize = 64;

/// Microseconds that a reserved place may keep the reader of the ring waiting: the longest hold, with room for its end.
/// Beyond it the ring is read on and no marker takes the place.
pub const PLACE_MAX_US: u64 = HOLD_MAX_MS as u64 * 1000 + 5_000_000;

/// Clean heartbeats sent and not acknowledged that are remembered at most: ten minutes of them. The oldest go beyond it; a
/// bookmark then waits for a later one.
pub const BEATS_MAX: usize = 3000;

/// Candidate ranges looked at in one search for a range to read. Beyond it the search goes on in the next step.
pub const READ_SEARCH_MAX: usize = 64;

/// Part of the ring (one in this many) that may wait for its acknowledgement when capture restarts after a miss. Beyond
/// it capture stays dirty-only until the appliance has caught up.
pub const RESTART_RING_PART: u64 = 2;

/// Attempts of a verify at blocks that are written whenever they are compared, at most: with its pauses half a minute.
/// Beyond it they are passed over, and counted as such.
pub const VERIFY_TRIES_MAX: u32 = 40;

/// Microseconds before the first further attempt; each waits twice as long as the one before.
pub const VERIFY_PAUSE_US: u64 = 10_000;

/// Microseconds between attempts at most.
pub const VERIFY_PAUSE_MAX_US: u64 = 1_000_000;

/// Ranges of a disk that wait for another attempt, about 56 bytes each, above which a verify reads on in none but them.
/// What is under comparison then may add a thousand more.
pub const VERIFY_RETRIES_MAX: usize = 4096;

/// Differing bytes of a disk beyond which a verify calls the whole disk in doubt: hashes of all of it are then compared
/// under one line, instead of a gap for each few blocks.
pub const VERIFY_WHOLE_BYTES: u64 = 16 << 20;

/// Microseconds between reports of a verify.
pub const VERIFY_REPORT_US: u64 = 500_000;

/// Part of the ring (one in this many) beyond which frames go to the spool, if the window is full; if it is not, because
/// the ring is smaller than the window, twice that part. Most of the ring stays free for what comes while frames are
/// written.
pub const SPOOL_ENTER_PART: u64 = 4;

/// Part of the ring (one in this many) below which spooling ends, once memory holds all that is not acknowledged. The
/// distance to [`SPOOL_ENTER_PART`] keeps it from beginning again at once.
pub const SPOOL_LEAVE_PART: u64 = 8;

/// Microseconds that spooling goes on at least once it began: with a ring smaller than the window it would otherwise end
/// as soon as the first frames are written.
pub const SPOOL_STAY_US: u64 = 500_000;

/// Bytes of frames handed to the spool and not written yet, beyond which no frame is made: memory, together with the
/// window. Beyond it the ring waits, as long as a slow disk takes.
pub const SPOOL_WRITING_MAX_BYTES: u64 = 8 << 20;

/// Distance to its limit, in bytes, within which a spool without room is called full; further below it is its disk that has
/// no room. As much as a record, and what is written between two looks at the space, may take.
pub const SPOOL_NEARLY_BYTES: u64 = 32 << 20;

/// Bytes of one read from the spool: a few frames, so that the link does not wait for each.
pub const SPOOL_READ_MAX_BYTES: u64 = 4 << 20;

/// Microseconds until captured writes become a frame while the spool is in use: frames of one write each would make many
/// small records of it.
pub const SPOOL_BATCH_US: u64 = 50_000;

/// Microseconds after a failed write before the spool is tried again.
pub const SPOOL_RETRY_US: u64 = 60_000_000;
