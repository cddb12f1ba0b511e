//! The agent's end of the watchdog.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;

use super::message::{
    self, ARMED, DISARM, FIRED, GO, HOOK, HOOK_NOTED, KEPT, Kind, PACKET_MAX_BYTES, THAWED,
};

/// How long the watchdog may take to answer. Beyond it the hold is given up.
const ANSWER_TIMEOUT_S: i64 = 5;

/// A running watchdog. When it is dropped (or its process dies) the watchdog lets everything go and runs what is owed.
#[derive(Debug)]
pub(super) struct Guard {
    socket: OwnedFd,
    child: Child,
}

impl Guard {
    /// Starts the watchdog, which counts `quiesce` from now on.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn start(quiesce: Duration, deadline: Duration) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("the watchdog cannot be started: {error}");
        let (socket, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|error| failed(&error))?;
        let patience = TimeVal::new(ANSWER_TIMEOUT_S, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(|error| failed(&error))?;
        setsockopt(&socket, sockopt::SendTimeout, &patience).map_err(|error| failed(&error))?;
        let child = Command::new("/proc/self/exe")
            .arg("hold-watchdog")
            .arg(quiesce.as_millis().to_string())
            .arg(deadline.as_millis().to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(other))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(&error))?;
        Ok(Self { socket, child })
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells that a hook is about to run: its thaw is owed from now on.
    ///
    /// # Errors
    /// The watchdog does not answer: the hook must not run.
    pub(super) fn owe(&self, hook: &Path) -> Result<(), String> {
        use std::os::unix::ffi::OsStrExt;
        let packet = [&[HOOK], hook.as_os_str().as_bytes()].concat();
        match self.ask(&packet, &[])?.first() {
            Some(&HOOK_NOTED) => Ok(()),
            _ => Err(format!("the watchdog does not take {}", hook.display())),
        }
    }

    /// Arms it for things that are about to be held.
    ///
    /// # Errors
    /// Why it is not armed: nothing may be held then.
    pub(super) fn arm(&self, held: &[(Kind, BorrowedFd<'_>)]) -> Result<(), String> {
        let files: Vec<_> = held.iter().map(|(_, file)| file.as_raw_fd()).collect();
        let answer = self.ask(&message::arm(held.iter().map(|(kind, _)| *kind)), &files)?;
        match answer.split_first() {
            Some((&ARMED, _)) => Ok(()),
            Some((_, why)) => Err(format!("the watchdog is not armed: {}", String::from_utf8_lossy(why))),
            None => Err("the watchdog ended".to_owned()),
        }
    }

    /// Something is about to be held: from now on the deadline counts.
    ///
    /// # Errors
    /// The watchdog is gone, or not armed: nothing may be held then.
    pub(super) fn begin(&self) -> Result<(), String> {
        match self.ask(&[GO], &[])?.first() {
            Some(&ARMED) => Ok(()),
            _ => Err("the watchdog is not armed".to_owned()),
        }
    }

    /// Everything was let go. What the watchdog had done before.
    pub(super) fn thawed(&self) -> Watched {
        match self.ask(&[THAWED], &[]).as_deref() {
            Ok([KEPT, ..]) => Watched::Kept,
            Ok([FIRED, ..]) => Watched::Fired,
            _ => Watched::Silent,
        }
    }

    /// Nothing is owed any more. Whether the watchdog had never fired.
    pub(super) fn disarm(self) -> bool {
        let kept = self.ask(&[DISARM], &[]).is_ok_and(|answer| answer.first() == Some(&KEPT));
        drop(self.socket);
        // It may be stopped, or wait for a thaw that does not return: nobody waits for it here.
        let mut child = self.child;
        let _ = std::thread::Builder::new().name("watchdog-end".into()).spawn(move || child.wait());
        kept
    }

    fn ask(&self, packet: &[u8], files: &[i32]) -> Result<Vec<u8>, String> {
        let silent = |error: nix::Error| format!("the watchdog does not answer: {error}");
        message::send(self.socket.as_fd(), packet, files).map_err(silent)?;
        let mut answer = [0; PACKET_MAX_BYTES];
        let (length, _) = message::receive(self.socket.as_fd(), &mut answer).map_err(silent)?;
        Ok(answer.get(..length).unwrap_or_default().to_vec())
    }
}

/// What a watchdog did while something was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// Nothing.
    Kept,
    /// It let everything go, and runs the thaw hooks that are owed.
    Fired,
    /// It does not answer: nobody else runs what is owed.
    Silent,
}
