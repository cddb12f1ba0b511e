//! Control of ublk devices: each call is one command to `/dev/ublk-control`, waited for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::abi::{self, DeviceInfo, Limits};
use super::error::GateError;

const CONTROL: &str = "/dev/ublk-control";
/// Any free number.
const ANY_DEVICE: u32 = u32::MAX;

/// Sends control commands. Not for threads that serve requests: a command may wait for those.
pub(super) struct Control {
    file: File,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("file", &self.file).finish_non_exhaustive()
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> GateError {
    move |source| GateError::Ublk { action, source }
}

impl Control {
    /// Opens the control device of a kernel that has what the gate needs.
    ///
    /// # Errors
    /// [`GateError::NoUblk`], [`GateError::NoRecovery`], with what to do.
    pub(super) fn open() -> Result<Self, GateError> {
        let file = match OpenOptions::new().read(true).write(true).open(CONTROL) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(GateError::NoUblk),
            Err(source) => return Err(GateError::Ublk { action: "open /dev/ublk-control", source }),
        };
        let ring = IoUring::builder().build(4).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM) => GateError::NoIoUring,
            _ => GateError::Ublk { action: "set up io_uring", source },
        })?;
        let mut control = Self { file, ring };
        let features = control.features().map_err(|_| GateError::NoRecovery)?;
        let needed = abi::F_USER_RECOVERY | abi::F_USER_RECOVERY_REISSUE;
        if features & needed == needed { Ok(control) } else { Err(GateError::NoRecovery) }
    }

    fn command(&mut self, code: u32, body: [u8; 80]) -> io::Result<i32> {
        let entry =
            opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), code).cmd(body).build().user_data(1);
        // SAFETY: the buffers that `body` points to live in the callers below until the command has completed.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        loop {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    if let Some(entry) = self.ring.completion().next() {
                        let result = entry.result();
                        return if result < 0 {
                            Err(io::Error::from_raw_os_error(-result))
                        } else {
                            Ok(result)
                        };
                    }
                }
            }
        }
    }

    fn plain(&mut self, code: u32, device: u32, data: u64) -> io::Result<()> {
        self.command(code, abi::control(device, 0, 0, data)).map(|_| ())
    }

    fn features(&mut self) -> io::Result<u64> {
        let mut features = [0_u8; 8];
        let body = abi::control(0, features.as_mut_ptr().addr() as u64, 8, 0);
        self.command(abi::CTRL_GET_FEATURES, body)?;
        Ok(u64::from_le_bytes(features))
    }

    /// Adds a device that survives the death of its server. Returns its number.
    pub(super) fn add(&mut self, depth: u16, io_bytes_max: u32) -> Result<DeviceInfo, GateError> {
        let wanted = DeviceInfo {
            depth,
            io_bytes_max,
            device: ANY_DEVICE,
            flags: abi::F_USER_RECOVERY | abi::F_USER_RECOVERY_REISSUE,
            state: 0,
        };
        let mut bytes = wanted.encode();
        let body = abi::control(ANY_DEVICE, bytes.as_mut_ptr().addr() as u64, 64, 0);
        self.command(abi::CTRL_ADD_DEV, body).map_err(failed("add a ublk device"))?;
        Ok(DeviceInfo::decode(&bytes))
    }

    pub(super) fn set_limits(&mut self, info: &DeviceInfo, limits: &Limits) -> Result<(), GateError> {
        let mut bytes = limits.encode(info.io_bytes_max);
        let body = abi::control(info.device, bytes.as_mut_ptr().addr() as u64, 64, 0);
        self.command(abi::CTRL_SET_PARAMS, body)
            .map(|_| ())
            .map_err(failed("set the limits of a ublk device"))
    }

    /// Makes the block device appear. Waits until every tag was fetched by the queue's thread.
    pub(super) fn start(&mut self, device: u32) -> Result<(), GateError> {
        self.plain(abi::CTRL_START_DEV, device, u64::from(std::process::id()))
            .map_err(failed("start a ublk device"))
    }

    /// Begins to take over from a dead server. Succeeds only when nothing of it is left, its requests to the volume
    /// included: `EBUSY` until then.
    pub(super) fn start_recovery(&mut self, device: u32) -> io::Result<()> {
        self.plain(abi::CTRL_START_USER_RECOVERY, device, 0)
    }

    pub(super) fn end_recovery(&mut self, device: u32) -> Result<(), GateError> {
        self.plain(abi::CTRL_END_USER_RECOVERY, device, u64::from(std::process::id()))
            .map_err(failed("take over a ublk device"))
    }

    pub(super) fn stop(&mut self, device: u32) -> Result<(), GateError> {
        self.plain(abi::CTRL_STOP_DEV, device, 0).map_err(failed("stop a ublk device"))
    }

    /// Removes a stopped device; one that is gone is fine.
    pub(super) fn delete(&mut self, device: u32) -> Result<(), GateError> {
        match self.plain(abi::CTRL_DEL_DEV, device, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other.map_err(failed("remove a ublk device")),
        }
    }
}

/// Whether this machine can have a gate.
///
/// # Errors
/// The reason, and what to do.
pub(super) fn check() -> Result<(), GateError> {
    Control::open().map(|_| ())
}
