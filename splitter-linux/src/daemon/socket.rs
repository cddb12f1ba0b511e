//! The control socket: local commands, each on a thread of its own.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tidemark_proto::v1::{Consistency, SetBookmarkRequest};
use tokio::sync::oneshot;

use super::command::Command;
use super::handle::Handle;
use crate::control::{LINE_MAX_BYTES, Reply, Request};
use crate::gate::Order;
use crate::state::StateDir;

/// How long a client may take to send its line. Beyond it the connection is closed, so that it blocks nobody.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Commands at work at a time. A bookmark waits for the appliance, a status must not wait for it; further clients are
/// turned away at once.
const CLIENTS_MAX: usize = 16;

/// Starts answering. The thread ends with the process.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn serve(state: &StateDir, worker: Handle, gates: mpsc::SyncSender<Order>) -> Result<()> {
    let path = state.control_socket();
    // The state folder is locked: a socket that is there belongs to nobody.
    let _ = fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    let accept = move || {
        let clients = Arc::new(());
        for stream in listener.incoming().flatten() {
            // Counts this thread and the clients at work.
            if Arc::strong_count(&clients) > CLIENTS_MAX {
                continue;
            }
            let (place, worker, gates) = (Arc::clone(&clients), worker.clone(), gates.clone());
            let client = move || {
                // A client that hangs up early is no concern of ours.
                let _ = answer(&stream, &worker, &gates);
                drop(place);
            };
            let _ = thread::Builder::new().name("control-client".into()).spawn(client);
        }
    };
    thread::Builder::new().name("control".into()).spawn(accept).context("cannot start the control thread")?;
    Ok(())
}

fn answer(stream: &UnixStream, worker: &Handle, gates: &mpsc::SyncSender<Order>) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX_BYTES)).read_line(&mut line)?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => execute(request, worker, gates),
        Err(error) => Reply::Failed { message: format!("not a request of this version ({error})") },
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    let mut stream = stream;
    stream.write_all(&text)
}

fn execute(request: Request, worker: &Handle, gates: &mpsc::SyncSender<Order>) -> Reply {
    match request {
        Request::Mode { path, sync, on_lapse, hold_max_s } => {
            let (reply, answer) = oneshot::channel();
            let order = if sync {
                Order::Sync { path, on_lapse, hold_max_s, reply }
            } else {
                Order::Async { path, reply }
            };
            let sent = gates.try_send(order).is_ok();
            let waiting = "other volumes are being switched: try again when they are done".to_owned();
            done(
                answer.blocking_recv().unwrap_or_else(|_| {
                    Err(if sent { "the splitter is stopping".to_owned() } else { waiting })
                }),
            )
        }
        Request::Protect { paths } => done(ask(worker, |reply| Command::Protect { paths, reply })),
        Request::Unprotect { path } => done(ask(worker, |reply| Command::Unprotect { path, reply })),
        Request::ProtectAll { except } => done(ask(worker, |reply| Command::ProtectAll { except, reply })),
        Request::UnprotectAll => done(ask(worker, |reply| Command::UnprotectAll { reply })),
        Request::Bookmark { name, set, consistency, allow_lower } => {
            bookmark(worker, name, set, &consistency, allow_lower)
        }
        Request::Status => {
            let (reply, answer) = oneshot::channel();
            worker.send(Command::Status { reply });
            match answer.blocking_recv() {
                Ok(status) => Reply::Status(status),
                Err(_) => Reply::Failed { message: "the splitter is stopping".to_owned() },
            }
        }
    }
}

fn bookmark(worker: &Handle, name: String, set: String, consistency: &str, allow_lower: bool) -> Reply {
    let wanted =
        if consistency.is_empty() { Some(Consistency::Crash) } else { Consistency::of_word(consistency) };
    let Some(wanted) = wanted else {
        return Reply::Failed { message: format!("'{consistency}' is no consistency level of this version") };
    };
    let command = |reply| {
        if set.is_empty() {
            return Command::Bookmark { name, wanted, allow_lower, reply };
        }
        let request = SetBookmarkRequest { id: 0, set, name, consistency: wanted.into(), allow_lower };
        Command::SetBookmark { request, reply }
    };
    match ask(worker, command) {
        Ok(bookmark) => Reply::Bookmark(bookmark),
        Err(message) => Reply::Failed { message },
    }
}

fn ask<T>(
    worker: &Handle,
    command: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Command,
) -> Result<T, String> {
    let (reply, answer) = oneshot::channel();
    worker.send(command(reply));
    answer.blocking_recv().unwrap_or_else(|_| Err("the splitter is stopping".to_owned()))
}

fn done(outcome: Result<(), String>) -> Reply {
    match outcome {
        Ok(()) => Reply::Done,
        Err(message) => Reply::Failed { message },
    }
}
