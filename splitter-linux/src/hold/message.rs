//! What agent and watchdog say to each other, a packet each, on a pair of sockets. Descriptors travel with [`ARM`].
//!
//! | packet | from | meaning |
//! |---|---|---|
//! | `H` path | agent | this hook is about to run: its thaw is owed. Answered `h` |
//! | `A` kind… | agent | these things are to be held: one byte each, with its descriptor. Answered `a`, or `e` and why not |
//! | `G` | agent | now they are about to be held: the deadline counts. Answered `a` |
//! | `T` | agent | all of them were let go. Answered `k` (nothing was let go before) or `f` (the watchdog fired) |
//! | `D` | agent | nothing is owed any more. Answered like `T`; the watchdog ends |

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

pub(super) const HOOK: u8 = b'H';
pub(super) const ARM: u8 = b'A';
pub(super) const GO: u8 = b'G';
pub(super) const THAWED: u8 = b'T';
pub(super) const DISARM: u8 = b'D';
pub(super) const HOOK_NOTED: u8 = b'h';
pub(super) const ARMED: u8 = b'a';
pub(super) const REFUSED: u8 = b'e';
pub(super) const KEPT: u8 = b'k';
pub(super) const FIRED: u8 = b'f';

/// Things held at a time at most: what one packet carries. More file systems than that are not frozen.
pub(super) const HELD_MAX: usize = 128;

/// Bytes of a packet at most: a path of a hook.
pub(super) const PACKET_MAX_BYTES: usize = 4200;

/// How a held thing is let go. Suspended device-mapper volumes and the gate come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A frozen file system: FITHAW on any file of it.
    FileSystem,
}

impl Kind {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::FileSystem => 1,
        }
    }

    pub(super) fn of(code: u8) -> Option<Self> {
        (code == 1).then_some(Self::FileSystem)
    }
}

/// Sends a packet with descriptors.
pub(super) fn send(socket: BorrowedFd<'_>, packet: &[u8], files: &[RawFd]) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(files)];
    let control = if files.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(packet)], control, flags, None).map(drop)
}

/// Takes a packet and its descriptors; an empty packet is the end.
pub(super) fn receive(socket: BorrowedFd<'_>, packet: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; HELD_MAX]);
    let mut parts = [IoSliceMut::new(packet)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for this process; nothing else owns them.
            files.extend(received.into_iter().map(|file| unsafe { OwnedFd::from_raw_fd(file) }));
        }
    }
    Ok((message.bytes, files))
}
