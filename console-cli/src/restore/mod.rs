//! Restoring a disk of a view into a file or onto a block device.
//!
//! An interrupted restore never passes for a complete one: beside a file lies a marker until the last byte is durable,
//! and a device gets its first megabyte last.

mod copy;
mod device;
mod direct;
mod file;
mod marker;
mod writeback;

use std::io;

pub(crate) use copy::restore;
pub(crate) use device::DeviceTarget;
pub(crate) use file::FileTarget;
pub(crate) use marker::Identity;

/// Where a restore writes. Offsets are bytes; ranges of concurrent calls do not overlap, and a
/// checkpoint may run beside writes behind it. Blocking.
pub(crate) trait Target: Send + Sync {
    /// The prefix that an earlier, interrupted run has made durable.
    fn done_bytes(&self) -> u64;
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes the range read as zeroes, whatever it held before.
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Starts to make what was written in the range durable, without waiting for it.
    fn start_writeback(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Makes all bytes before `done_bytes` durable and remembers that.
    fn checkpoint(&self, done_bytes: u64) -> anyhow::Result<()>;
    /// Makes everything durable, checks the length and ends the state "incomplete".
    fn finish(&self) -> anyhow::Result<()>;
}
