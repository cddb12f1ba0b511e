//! The few device-mapper commands that the gate needs, by ioctl: no program is started and no library locks up while
//! a volume is suspended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::error::GateError;

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl` without its inline data, padded.
const HEADER_BYTES: usize = 312;
const SPEC_BYTES: usize = 40;
/// Bytes of a reply at most: a table of 64 segments takes 5 KiB. A larger one is refused.
const REPLY_BYTES: usize = 32 << 10;
const NAME_BYTES: usize = 128;
const UUID_BYTES: usize = 129;

const DEV_CREATE: u32 = 3;
const DEV_REMOVE: u32 = 4;
const DEV_SUSPEND: u32 = 6;
const DEV_STATUS: u32 = 7;
const TABLE_LOAD: u32 = 9;
const TABLE_CLEAR: u32 = 10;
const TABLE_STATUS: u32 = 12;

const FLAG_SUSPEND: u32 = 1 << 1;
const FLAG_STATUS_TABLE: u32 = 1 << 4;
const FLAG_INACTIVE_PRESENT: u32 = 1 << 6;
const FLAG_BUFFER_FULL: u32 = 1 << 8;
const FLAG_SKIP_LOCKFS: u32 = 1 << 10;
const FLAG_NOFLUSH: u32 = 1 << 11;

/// In the upper half of a cookie (libdevmapper.h): no subsystem, disk or other rules, low priority, no fallback, and
/// that this is the say of who made the device. So udev neither scans a private mapping nor names it by the file system
/// inside.
const UDEV_QUIET: u32 = (0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0020 | 0x0040) << 16;

/// A segment of a mapped device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) start: u64,
    pub(crate) sectors: u64,
    pub(crate) kind: String,
    pub(crate) parameters: String,
}

/// A mapped device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) suspended: bool,
}

/// How a mapped device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) suspended: bool,
    /// A table is loaded that is not in use yet: somebody is about to change it.
    pub(crate) changing: bool,
}

/// The control device.
#[derive(Debug)]
pub(crate) struct Mapper {
    file: File,
}

impl From<OwnedFd> for Mapper {
    fn from(file: OwnedFd) -> Self {
        Self { file: file.into() }
    }
}

impl AsFd for Mapper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kernel's packed form of a device's number: minor's low byte, twelve bits of major, the rest of the minor.
fn packed(major: u64, minor: u64) -> u64 {
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

struct Command<B = Vec<u8>> {
    bytes: B,
}

impl Command {
    fn new(name: &str, size: usize) -> Self {
        let mut command = Self { bytes: vec![0; size] };
        command.begin();
        put_text(&mut command.bytes[48..48 + NAME_BYTES], name);
        command
    }
}

impl Command<[u8; HEADER_BYTES]> {
    /// Without a heap: nothing is allocated while something is held.
    fn of_device(major: u64, minor: u64) -> Self {
        let mut command = Self { bytes: [0; HEADER_BYTES] };
        command.begin();
        command.bytes[40..48].copy_from_slice(&packed(major, minor).to_le_bytes());
        command
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Command<B> {
    fn begin(&mut self) {
        let bytes = self.bytes.as_mut();
        let size = u32::try_from(bytes.len()).unwrap_or(0);
        bytes[0..4].copy_from_slice(&4_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&size.to_le_bytes());
        bytes[16..20].copy_from_slice(&u32::try_from(HEADER_BYTES).unwrap_or(0).to_le_bytes());
    }

    fn word(&self, at: usize) -> u32 {
        self.bytes.as_ref().get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_le_bytes)
    }

    fn long(&self, at: usize) -> u64 {
        self.bytes.as_ref().get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u64::from_le_bytes)
    }

    fn set_flags(&mut self, flags: u32) {
        self.bytes.as_mut()[28..32].copy_from_slice(&flags.to_le_bytes());
    }

    fn quiet_udev(&mut self) {
        self.bytes.as_mut()[32..36].copy_from_slice(&UDEV_QUIET.to_le_bytes());
    }

    fn text(&self, at: usize, bytes: usize) -> String {
        let end = at.saturating_add(bytes).min(self.bytes.as_ref().len());
        let field = self.bytes.as_ref().get(at..end).unwrap_or_default();
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    }
}

/// Copies text and ends it with a zero byte, cut to the field.
fn put_text(field: &mut [u8], text: &str) {
    let room = field.len().saturating_sub(1);
    for (to, from) in field.iter_mut().zip(text.bytes().take(room)) {
        *to = from;
    }
}

impl Mapper {
    /// Opens the control device.
    pub(crate) fn open() -> Result<Self, GateError> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(GateError::os(
            "open /dev/mapper/control (synchronous mode works on LVM volumes; load dm_mod and activate the volume)",
        ))?;
        Ok(Self { file })
    }

    fn run<B: AsMut<[u8]>>(&self, number: u32, command: &mut Command<B>) -> io::Result<()> {
        let code = 3_u64 << 30 | (HEADER_BYTES as u64) << 16 | 0xfd << 8 | u64::from(number);
        // SAFETY: the buffer is as long as its header says, lives through the call, and holds no pointers.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), code, command.bytes.as_mut().as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A mapped device by its name; `None` when there is none.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Mapped>, GateError> {
        self.look(Command::new(name, HEADER_BYTES), name)
    }

    /// A mapped device by its number.
    pub(crate) fn find_number(&self, major: u64, minor: u64) -> Result<Option<Mapped>, GateError> {
        self.look(Command::of_device(major, minor), &format!("{major}:{minor}"))
    }

    /// Holds back what comes to a device and waits for what is under way below it. Its file systems are not frozen and
    /// nothing is flushed: the order of what was written is what counts.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn suspend(&self, (major, minor): (u64, u64)) -> io::Result<()> {
        let mut command = Command::of_device(major, minor);
        command.set_flags(FLAG_SUSPEND | FLAG_SKIP_LOCKFS | FLAG_NOFLUSH);
        self.run(DEV_SUSPEND, &mut command)
    }

    /// Lets a suspended device go on. A table that was loaded and is not in use yet would come into use by it, so this is for
    /// devices that are known to be suspended by us.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn resume(&self, (major, minor): (u64, u64)) -> io::Result<()> {
        self.run(DEV_SUSPEND, &mut Command::of_device(major, minor))
    }

    /// How a device stands.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn standing(&self, (major, minor): (u64, u64)) -> io::Result<Standing> {
        let mut command = Command::of_device(major, minor);
        self.run(DEV_STATUS, &mut command)?;
        let flags = command.word(28);
        let (suspended, changing) = (flags & FLAG_SUSPEND != 0, flags & FLAG_INACTIVE_PRESENT != 0);
        Ok(Standing { suspended, changing })
    }

    fn look<B>(&self, mut command: Command<B>, name: &str) -> Result<Option<Mapped>, GateError>
    where
        B: AsRef<[u8]> + AsMut<[u8]>,
    {
        match self.run(DEV_STATUS, &mut command) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(source) => Err(GateError::Mapper { action: "look at", name: name.to_owned(), source }),
            Ok(()) => {
                let packed = command.long(40);
                Ok(Some(Mapped {
                    name: command.text(48, NAME_BYTES),
                    uuid: command.text(48 + NAME_BYTES, UUID_BYTES),
                    major: packed >> 8 & 0xfff,
                    minor: packed & 0xff | packed >> 12 & 0xf_ff00,
                    suspended: command.word(28) & FLAG_SUSPEND != 0,
                }))
            }
        }
    }

    /// The table that a device works with.
    pub(crate) fn table(&self, name: &str) -> Result<Vec<Target>, GateError> {
        let mut command = Command::new(name, REPLY_BYTES);
        command.set_flags(FLAG_STATUS_TABLE);
        let failed =
            |source| GateError::Mapper { action: "read the table of", name: name.to_owned(), source };
        self.run(TABLE_STATUS, &mut command).map_err(failed)?;
        if command.word(28) & FLAG_BUFFER_FULL != 0 {
            return Err(failed(io::Error::other("it has too many segments")));
        }
        let start = command.word(16) as usize;
        let mut at = start;
        let mut targets = Vec::new();
        for _ in 0..command.word(20) {
            targets.push(Target {
                start: command.long(at),
                sectors: command.long(at + 8),
                kind: command.text(at + 24, 16),
                parameters: command.text(at + SPEC_BYTES, REPLY_BYTES),
            });
            at = start + command.word(at + 20) as usize;
        }
        Ok(targets)
    }

    /// Makes a device without a table; udev is to leave it alone.
    pub(crate) fn create(&self, name: &str, uuid: &str) -> Result<(), GateError> {
        let mut command = Command::new(name, HEADER_BYTES);
        put_text(&mut command.bytes[48 + NAME_BYTES..48 + NAME_BYTES + UUID_BYTES], uuid);
        command.quiet_udev();
        self.run(DEV_CREATE, &mut command).map_err(|source| GateError::Mapper {
            action: "create",
            name: name.to_owned(),
            source,
        })
    }

    /// Loads a table, to be used from the next [`Mapper::swap`] on.
    pub(crate) fn load(&self, name: &str, table: &[Target]) -> Result<(), GateError> {
        let mut command = Command::new(name, HEADER_BYTES);
        for target in table {
            let mut spec = vec![0; (SPEC_BYTES + target.parameters.len() + 1).next_multiple_of(8)];
            let next = u32::try_from(spec.len()).unwrap_or(0);
            spec[0..8].copy_from_slice(&target.start.to_le_bytes());
            spec[8..16].copy_from_slice(&target.sectors.to_le_bytes());
            spec[20..24].copy_from_slice(&next.to_le_bytes());
            put_text(&mut spec[24..40], &target.kind);
            put_text(&mut spec[40..], &target.parameters);
            command.bytes.extend_from_slice(&spec);
        }
        let (size, count) = (command.bytes.len(), table.len());
        command.bytes[12..16].copy_from_slice(&u32::try_from(size).unwrap_or(0).to_le_bytes());
        command.bytes[20..24].copy_from_slice(&u32::try_from(count).unwrap_or(0).to_le_bytes());
        self.run(TABLE_LOAD, &mut command).map_err(|source| GateError::Mapper {
            action: "load a table for",
            name: name.to_owned(),
            source,
        })
    }

    /// Takes back a loaded table that is not in use yet.
    pub(crate) fn clear(&self, name: &str) -> Result<(), GateError> {
        self.run(TABLE_CLEAR, &mut Command::new(name, HEADER_BYTES)).map_err(|source| GateError::Mapper {
            action: "clear the table of",
            name: name.to_owned(),
            source,
        })
    }

    /// Puts the loaded table into use. One call: the kernel waits for what is in flight, holds what comes, swaps and
    /// goes on, so nothing that dies in user space can leave the volume suspended. File systems are not frozen: that
    /// would wait for their writeback, and the data does not move.
    ///
    /// For a volume of somebody else, udev keeps the flags it has; for `own` devices it is told to leave them alone.
    pub(crate) fn swap(&self, name: &str, own: bool) -> Result<(), GateError> {
        let mut command = Command::new(name, HEADER_BYTES);
        command.set_flags(FLAG_SKIP_LOCKFS);
        if own {
            command.quiet_udev();
        }
        self.run(DEV_SUSPEND, &mut command).map_err(|source| GateError::Mapper {
            action: "swap the table of",
            name: name.to_owned(),
            source,
        })
    }

    /// Removes a device; one that is gone is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), GateError> {
        let mut command = Command::new(name, HEADER_BYTES);
        command.quiet_udev();
        match self.run(DEV_REMOVE, &mut command) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            other => {
                other.map_err(|source| GateError::Mapper { action: "remove", name: name.to_owned(), source })
            }
        }
    }
}
