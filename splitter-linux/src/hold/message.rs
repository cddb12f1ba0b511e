//! What agent and watchdog say to each other, a packet each, on a pair of sockets. Descriptors travel with [`ARM`].
//!
//! | packet | from | meaning |
//! |---|---|---|
//! | `H` path | agent | this hook is about to run: its thaw is owed. Answered `h` |
//! | `A` thing… | agent | these are to be held: of each its kind (a byte), its number (u64, little-endian) and a descriptor. Answered `a`, or `e` and why not |
//! | `G` | agent | now they are about to be held: the deadline counts. Answered `a` |
//! | `T` | agent | all of them were let go. Answered `k` (nothing was let go before) or `f` (the watchdog fired) |
//! | `D` | agent | nothing is owed any more. Answered like `T`; the watchdog ends |

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::mounts::Number;

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

/// Things held at a time at most: what one packet carries. Where there are more, nothing is held.
pub(super) const HELD_MAX: usize = 128;

/// Bytes of a packet at most: a path of a hook.
pub(super) const PACKET_MAX_BYTES: usize = 4200;

/// Bytes of a thing in [`ARM`].
const THING_BYTES: usize = 9;

/// How a held thing is let go. A gate lets go by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A frozen file system: FITHAW on any file of it, which is the descriptor.
    FileSystem,
    /// A suspended device-mapper volume of this number; the descriptor is device-mapper's control.
    Volume(Number),
}

impl Kind {
    fn encode(self) -> [u8; THING_BYTES] {
        let (code, number) = match self {
            Self::FileSystem => (1, 0),
            Self::Volume((major, minor)) => (2, major << 32 | minor),
        };
        let mut bytes = [code; THING_BYTES];
        bytes[1..].copy_from_slice(&u64::to_le_bytes(number));
        bytes
    }

    fn decode(bytes: [u8; THING_BYTES]) -> Option<Self> {
        let [code, number @ ..] = bytes;
        let number = u64::from_le_bytes(number);
        match code {
            1 => Some(Self::FileSystem),
            2 => Some(Self::Volume((number >> 32, number & 0xffff_ffff))),
            _ => None,
        }
    }
}

/// The packet [`ARM`] without its descriptors.
pub(super) fn arm(things: impl IntoIterator<Item = Kind>) -> Vec<u8> {
    let mut packet = vec![ARM];
    things.into_iter().for_each(|kind| packet.extend(kind.encode()));
    packet
}

/// What an [`ARM`] names; `None` when it is none.
pub(super) fn armed(packet: &[u8]) -> Option<Vec<Kind>> {
    let (things, rest) = packet.as_chunks::<THING_BYTES>();
    rest.is_empty().then(|| things.iter().map(|thing| Kind::decode(*thing)).collect())?
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_come_over_as_they_were_told() {
        let things = [Kind::FileSystem, Kind::Volume((253, 7)), Kind::Volume((4095, 1 << 20))];
        let packet = arm(things);
        assert_eq!(armed(packet.strip_prefix(&[ARM]).unwrap()).unwrap(), things);
        assert_eq!(armed(&packet), None, "bytes too many");
        assert_eq!(armed(&[3; THING_BYTES]), None, "a kind that is not known");
    }
}
