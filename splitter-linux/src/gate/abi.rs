//! The part of the kernel's ublk interface that the gate uses (include/uapi/linux/ublk_cmd.h), as bytes.
//!
//! Commands are passed in submission entries of io_uring: control commands (32 bytes) to `/dev/ublk-control`, commands
//! about requests (16 bytes) to `/dev/ublkcN`. Structures are encoded by hand: every field has a fixed place, and no
//! generated binding is needed at build time.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// What a driver must offer: recovery after the death of the server, with requests issued again.
pub(super) const F_USER_RECOVERY: u64 = 1 << 3;
pub(super) const F_USER_RECOVERY_REISSUE: u64 = 1 << 4;

pub(super) const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
pub(super) const ATTR_FUA: u32 = 1 << 3;
pub(super) const ATTR_ROTATIONAL: u32 = 1 << 1;

pub(super) const OP_READ: u8 = 0;
pub(super) const OP_WRITE: u8 = 1;
pub(super) const OP_FLUSH: u8 = 2;
pub(super) const OP_DISCARD: u8 = 3;
pub(super) const OP_WRITE_ZEROES: u8 = 5;
/// Flag of a request: durable on the medium when it completes.
pub(super) const IO_F_FUA: u32 = 1 << 13;

/// `_IOC` numbers: direction, size of the command's structure, type 'u', number.
const fn code(direction: u32, size: u32, number: u32) -> u32 {
    direction << 30 | size << 16 | (b'u' as u32) << 8 | number
}
const READ: u32 = 2;
const READ_WRITE: u32 = 3;

pub(super) const CTRL_ADD_DEV: u32 = code(READ_WRITE, 32, 0x04);
pub(super) const CTRL_DEL_DEV: u32 = code(READ_WRITE, 32, 0x05);
pub(super) const CTRL_START_DEV: u32 = code(READ_WRITE, 32, 0x06);
pub(super) const CTRL_STOP_DEV: u32 = code(READ_WRITE, 32, 0x07);
pub(super) const CTRL_SET_PARAMS: u32 = code(READ_WRITE, 32, 0x08);
pub(super) const CTRL_START_USER_RECOVERY: u32 = code(READ_WRITE, 32, 0x10);
pub(super) const CTRL_END_USER_RECOVERY: u32 = code(READ_WRITE, 32, 0x11);
pub(super) const CTRL_GET_FEATURES: u32 = code(READ, 32, 0x13);
pub(super) const IO_FETCH: u32 = code(READ_WRITE, 16, 0x20);
pub(super) const IO_COMMIT_AND_FETCH: u32 = code(READ_WRITE, 16, 0x21);

/// `struct ublksrv_ctrl_cmd`, in the 80 bytes of a large submission entry.
pub(super) fn control(device: u32, buffer: u64, bytes: u16, data: u64) -> [u8; 80] {
    let mut out = [0; 80];
    out[0..4].copy_from_slice(&device.to_le_bytes());
    // No queue in particular.
    out[4..6].copy_from_slice(&u16::MAX.to_le_bytes());
    out[6..8].copy_from_slice(&bytes.to_le_bytes());
    out[8..16].copy_from_slice(&buffer.to_le_bytes());
    out[16..24].copy_from_slice(&data.to_le_bytes());
    out
}

/// `struct ublksrv_io_cmd` for queue 0.
pub(super) fn request(tag: u16, result: i32, buffer: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[2..4].copy_from_slice(&tag.to_le_bytes());
    out[4..8].copy_from_slice(&result.to_le_bytes());
    out[8..16].copy_from_slice(&buffer.to_le_bytes());
    out
}

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DeviceInfo {
    pub(super) depth: u16,
    pub(super) state: u16,
    pub(super) io_bytes_max: u32,
    pub(super) device: u32,
    pub(super) flags: u64,
}

pub(super) const DEVICE_INFO_BYTES: usize = 64;

impl DeviceInfo {
    pub(super) fn encode(self) -> [u8; DEVICE_INFO_BYTES] {
        let mut out = [0; DEVICE_INFO_BYTES];
        out[0..2].copy_from_slice(&1_u16.to_le_bytes());
        out[2..4].copy_from_slice(&self.depth.to_le_bytes());
        out[4..6].copy_from_slice(&self.state.to_le_bytes());
        out[8..12].copy_from_slice(&self.io_bytes_max.to_le_bytes());
        out[12..16].copy_from_slice(&self.device.to_le_bytes());
        out[24..32].copy_from_slice(&self.flags.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; DEVICE_INFO_BYTES]) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        Self {
            depth: half(2),
            state: half(4),
            io_bytes_max: word(8),
            device: word(12),
            flags: u64::from(word(24)) | u64::from(word(28)) << 32,
        }
    }
}

/// What a device offers to those above it, in `struct ublk_params`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) sectors: u64,
    pub(super) logical_block_bytes: u32,
    pub(super) physical_block_bytes: u32,
    pub(super) io_min_bytes: u32,
    pub(super) io_opt_bytes: u32,
    pub(super) write_back: bool,
    pub(super) fua: bool,
    pub(super) rotational: bool,
    /// Bytes; 0 when the volume takes no discards.
    pub(super) discard_granularity: u32,
    pub(super) discard_max_sectors: u32,
    pub(super) write_zeroes_max_sectors: u32,
}

pub(super) const PARAMS_BYTES: usize = 64;
const TYPE_BASIC: u32 = 1;
const TYPE_DISCARD: u32 = 2;

/// The exponent of a power of two; of anything else, that of the largest power below it.
fn shift(bytes: u32) -> u8 {
    u8::try_from(bytes.max(1).ilog2()).unwrap_or(0)
}

impl Limits {
    pub(super) fn encode(&self, io_bytes_max: u32) -> [u8; PARAMS_BYTES] {
        let mut out = [0; PARAMS_BYTES];
        let discards = self.discard_max_sectors > 0 || self.write_zeroes_max_sectors > 0;
        let types = if discards { TYPE_BASIC | TYPE_DISCARD } else { TYPE_BASIC };
        let mut attributes = 0;
        for (set, bit) in [
            (self.write_back, ATTR_VOLATILE_CACHE),
            (self.write_back && self.fua, ATTR_FUA),
            (self.rotational, ATTR_ROTATIONAL),
        ] {
            attributes |= if set { bit } else { 0 };
        }
        out[0..4].copy_from_slice(&64_u32.to_le_bytes());
        out[4..8].copy_from_slice(&types.to_le_bytes());
        out[8..12].copy_from_slice(&attributes.to_le_bytes());
        out[12] = shift(self.logical_block_bytes);
        out[13] = shift(self.physical_block_bytes.max(self.logical_block_bytes));
        out[14] = if self.io_opt_bytes == 0 { 0 } else { shift(self.io_opt_bytes) };
        out[15] = shift(self.io_min_bytes.max(self.logical_block_bytes));
        out[16..20].copy_from_slice(&(io_bytes_max >> 9).to_le_bytes());
        out[24..32].copy_from_slice(&self.sectors.to_le_bytes());
        if discards {
            let granularity = self.discard_granularity.max(self.logical_block_bytes);
            out[44..48].copy_from_slice(&granularity.to_le_bytes());
            out[48..52].copy_from_slice(&self.discard_max_sectors.to_le_bytes());
            out[52..56].copy_from_slice(&self.write_zeroes_max_sectors.to_le_bytes());
            out[56..58].copy_from_slice(&1_u16.to_le_bytes());
        }
        out
    }
}

/// `struct ublksrv_io_desc`: a request as the driver describes it, in memory shared with it.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Request {
    pub(super) operation: AtomicU32,
    pub(super) sectors: AtomicU32,
    pub(super) start_sector: AtomicU64,
    pub(super) address: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_header() {
        // _IOWR('u', 0x20, struct ublksrv_io_cmd) and _IOWR('u', 0x04, struct ublksrv_ctrl_cmd).
        assert_eq!(IO_FETCH, 0xc010_7520);
        assert_eq!(CTRL_ADD_DEV, 0xc020_7504);
        assert_eq!(CTRL_GET_FEATURES, 0x8020_7513);
        assert_eq!(size_of::<Request>(), 24);
    }

    #[test]
    fn a_device_description_comes_back_as_it_was() {
        let info = DeviceInfo { depth: 64, state: 2, io_bytes_max: 1 << 18, device: 7, flags: 3 << 33 };
        let back = DeviceInfo::decode(&info.encode());
        assert_eq!(
            (back.depth, back.state, back.io_bytes_max, back.device, back.flags),
            (64, 2, 1 << 18, 7, 3 << 33)
        );
    }

    #[test]
    fn limits_lie_where_the_driver_looks() {
        let limits = Limits {
            sectors: 0x1122,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            write_back: true,
            discard_granularity: 4096,
            discard_max_sectors: 9,
            write_zeroes_max_sectors: 10,
            ..Limits::default()
        };
        let bytes = limits.encode(1 << 18);
        assert_eq!(bytes[4], 3, "basic and discard");
        assert_eq!(bytes[8], 4, "a volatile cache, no FUA");
        assert_eq!((bytes[12], bytes[13]), (9, 12));
        assert_eq!(bytes[16..18], 512_u16.to_le_bytes());
        assert_eq!(bytes[24..26], [0x22, 0x11]);
        assert_eq!((bytes[48], bytes[52], bytes[56]), (9, 10, 1));
    }
}
