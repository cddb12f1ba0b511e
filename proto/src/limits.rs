//! Limits of the protocol. Each says its unit, its reason and what happens beyond it.

/// Bytes in a sector: the unit of every position and length on a disk.
pub const SECTOR_BYTES: u64 = 512;

/// Bytes of payload at which a splitter closes a frame. Large enough that per-frame cost vanishes, small enough for a
/// frame to leave in a few milliseconds on a slow link. A single larger write still travels whole.
pub const FRAME_TARGET_BYTES: usize = 1 << 20;

/// Bytes of payload in one frame at most: one request of the block layer, which is never cut. A larger request is not
/// captured: it is a miss with the cause `WRITE_TOO_LARGE`, and its range is read again.
pub const FRAME_MAX_BYTES: usize = 8 << 20;

/// Entries in one frame at most: 1 MiB of sector-sized writes. The splitter closes the frame; the appliance refuses more.
pub const FRAME_MAX_ENTRIES: usize = 2048;

/// Bytes of one encoded gRPC message at most: the largest frame with its table. Larger messages are refused by the
/// transport and end the stream.
pub const MESSAGE_MAX_BYTES: usize = FRAME_MAX_BYTES + (1 << 20);

/// Bytes of payload that one checksum covers. A 4 KiB read verifies 4 KiB.
pub const CHECKSUM_PIECE_BYTES: usize = 4096;

/// Bytes of frames on the way, sent and not acknowledged, that the appliance grants by default. 32 MiB covers 400 MB/s
/// at a commit every 50 ms with room; beyond it the splitter waits and its ring holds the rest.
pub const WINDOW_BYTES: u64 = 32 << 20;

/// Bytes of a piece of a disk that one hash stands for at most, and to whose multiples pieces are cut: the journal's
/// chunk. Of pieces that read as zeroes one may be as long as a whole question.
pub const PIECE_BYTES: u64 = 64 << 10;

/// Bytes of a piece where the larger one is not known: the smallest that guests usually write.
pub const PIECE_FINE_BYTES: u64 = 4096;

/// Bytes that one question covers at most: what an answer may make the appliance read. Beyond it the stream ends.
pub const QUESTION_MAX_BYTES: u64 = 1 << 20;

/// Pieces of one question at most: [`QUESTION_MAX_BYTES`] in fine ones. Beyond it the stream ends.
pub const QUESTION_MAX_PIECES: usize = 256;

/// Questions without an answer at most: 64 MiB of a disk in the largest. By computation, not by measurement, that is 1.3 GB/s
/// at a round trip of 50 ms, more than hashing and comparing do: the wait for answers is not what decides. The splitter waits
/// with the next; the appliance ends a stream that asks more.
pub const QUESTIONS_MAX: usize = 64;

/// Questions of a verify without an answer at most: a verify is in no hurry, and 4 MiB of a disk read and compared at once
/// keep both sides busy on a link of a few milliseconds. The splitter waits with the next; the appliance ends a stream
/// that asks more.
pub const VERIFY_QUESTIONS_MAX: usize = 4;

/// Differing places of a disk that a report of a verify names at most; the bytes count all.
pub const VERIFY_RANGES_MAX: usize = 16;

/// Milliseconds between heartbeats: a fifth of the RPO goal of one second.
pub const HEARTBEAT_MS: u32 = 200;

/// Microseconds for which a splitter in synchronous mode promises, at each renewal (a ping, once a second), that no write
/// completes before it is durable at the appliance. It is how long a guest may have to wait when the appliance dies, and
/// it bridges a restart of splitter or appliance, which takes a second or two.
pub const SYNC_LEASE_US: u64 = 5_000_000;

/// Volumes of one VM in synchronous mode at most; a further one is refused by the splitter, and the appliance ends a
/// stream that says more.
pub const SYNC_VOLUMES_MAX: usize = 16;

/// Disks of one VM at most; the tap's tables are of this size. Further disks are refused at `protect`.
pub const DISKS_MAX: usize = 64;

/// Characters in a VM's or bookmark's name at most. Longer names are refused.
pub const NAME_MAX_CHARS: usize = 128;

/// How long a splitter holds the writers of its disks still for a bookmark at most. Beyond it a watchdog lets them go and the
/// level is not achieved: databases and clusters commonly bear a stall of ten seconds, not of a minute.
pub const HOLD_MAX_MS: u32 = 10_000;

/// How long freeze hooks, the hold and thaw hooks of one bookmark may take together before the watchdog runs the thaw hooks
/// itself: an application must not stay quiesced for longer.
pub const QUIESCE_MAX_MS: u32 = 60_000;

/// Bytes of `detail`, `reason` and other texts for people in messages at most; longer ones are refused.
pub const TEXT_MAX_BYTES: usize = 1024;

/// Bytes of one `ReadView` call at most. Clients split longer reads.
pub const READ_MAX_BYTES: u64 = 64 << 20;

/// Questions of a restore without an answer at most: 16 MiB of a disk, more than 100 MB/s at a round trip of 100 ms. The restoring
/// side waits with the next.
pub const RESTORE_QUESTIONS_MAX: usize = 16;

/// Pieces in one question of a restore at most: [`QUESTION_MAX_BYTES`] of a disk. More are refused.
pub const RESTORE_PIECES_MAX: usize = 16;

/// Bytes of one message of an object's content at most: large enough that its cost vanishes. Larger ones are refused.
pub const OBJECT_PIECE_BYTES: usize = 1 << 20;

/// Tags of one object at most; more are refused.
pub const OBJECT_TAGS_MAX: usize = 64;
