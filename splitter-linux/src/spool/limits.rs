//! Limits of the spool. Each says its unit, its reason and what happens beyond it.

/// Bytes of a file after which a new one is begun: what is acknowledged is returned to the disk in such pieces.
pub const SEGMENT_BYTES: u64 = 16 << 20;

/// Bytes of a record at most: a frame of the largest message, and what the record adds. A longer one is damage.
pub const RECORD_MAX_BYTES: u64 = tidemark_proto::limits::MESSAGE_MAX_BYTES as u64 + 4096;

/// Records of the spool at most; some hundred bytes each while a process that was restarted takes them over. Beyond it
/// the spool counts as full. Frames of a busy guest are some 100 KiB to 1 MiB, so the bytes end first.
pub const RECORDS_MAX: usize = 65_536;

/// Part of the file system (one in this many) that the spool leaves free, between the two bounds below: the guest's own
/// programs must not meet a full disk because of it. Beyond it the spool counts as full.
pub const FREE_PART: u64 = 10;

/// Bytes left free at least.
pub const FREE_MIN_BYTES: u64 = 256 << 20;

/// Bytes left free at most.
pub const FREE_MAX_BYTES: u64 = 4 << 30;

/// Bytes after which the kernel is asked to begin writing out, and to drop what it wrote before: the spool must not push
/// the guest's files out of the page cache, nor pile up dirty pages that its programs then wait for.
pub const WRITE_OUT_BYTES: u64 = 4 << 20;

/// Smallest limit in MiB: a few files, so that something can be given up while something is written.
pub const LIMIT_MIN_MIB: u32 = 64;

/// Default limit in MiB: a minute and a half of writing 10 MB/s more than the link takes, or a pause of the
/// appliance a few times longer than the ring alone bridges.
pub const LIMIT_DEFAULT_MIB: u32 = 1024;

/// Largest limit in MiB, 1 TiB: what is in it must be sent before a gap can end.
pub const LIMIT_MAX_MIB: u32 = 1 << 20;
