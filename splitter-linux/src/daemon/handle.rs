//! How the other threads reach the worker.

use std::sync::mpsc;
use std::thread::Thread;

use tidemark_proto::v1::Welcome;
use tokio::sync::oneshot;

use super::command::{Command, HelloFacts};
use super::outbound::Outbound;

/// Sends commands to the worker.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    thread: Thread,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>, thread: Thread) -> Self {
        Self { commands, thread }
    }

    /// Sends a command; one to a worker that ended is dropped, and its answer with it.
    pub(super) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        self.thread.unpark();
    }

    /// Has the worker look at the ring now.
    pub(crate) fn kick(&self) {
        self.thread.unpark();
    }

    /// What to say in a hello; `None` while there is nothing to protect.
    pub(super) async fn hello(&self) -> Option<HelloFacts> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Hello { reply });
        answer.await.ok().flatten()
    }

    /// Begins a session.
    pub(super) async fn welcome(&self, welcome: Welcome, outbound: Outbound) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Welcome { welcome: Box::new(welcome), outbound, reply });
        answer.await.unwrap_or_else(|_| Err("the capture thread ended".to_owned()))
    }

    pub(super) fn disconnected(&self) {
        self.send(Command::Disconnected);
    }

    pub(super) fn stop(&self) {
        self.send(Command::Stop);
    }
}
