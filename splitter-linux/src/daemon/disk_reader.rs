//! Reads of initial copy and resync, and hashes of what was read, on a thread of their own: neither a slow disk nor the
//! hashing may stop the ring's reader.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use tidemark_splitter_core::capture::Slot;
use tidemark_splitter_core::engine::ReadRequest;

use super::command::Command;
use super::handle::Handle;
use crate::disks::DiskSet;

/// What the reader is asked to do.
#[derive(Debug)]
pub(super) enum Task {
    /// Have this disk open for this slot.
    Open { slot: Slot, path: PathBuf, logical_block_bytes: u32 },
    /// Close the slot's disk.
    Close(Slot),
    /// Read a range and hand it to the worker.
    Read(ReadRequest),
}

/// Starts the thread; it ends when the sender is dropped.
pub(super) fn start(worker: Handle, reader: Box<dyn DiskSet>) -> std::io::Result<mpsc::Sender<Task>> {
    let (tasks, queue) = mpsc::channel();
    thread::Builder::new().name("disk-reader".into()).spawn(move || serve(&queue, &worker, reader))?;
    Ok(tasks)
}

fn serve(queue: &mpsc::Receiver<Task>, worker: &Handle, mut reader: Box<dyn DiskSet>) {
    // Used again where only hashes of the content are wanted.
    let mut memory = Vec::new();
    while let Ok(task) = queue.recv() {
        match task {
            Task::Open { slot, path, logical_block_bytes } => {
                if let Err(error) = reader.open(slot, &path, logical_block_bytes) {
                    tracing::warn!(disk = %path.display(), %error, "cannot open the disk for reading");
                }
            }
            Task::Close(slot) => reader.close(slot),
            Task::Read(request) => {
                if memory.len() != request.length_bytes {
                    memory = vec![0; request.length_bytes];
                }
                let content = match reader.read(request.slot, request.start_sector, &mut memory) {
                    Ok(()) => Some(request.content(&mut memory)),
                    Err(error) => {
                        tracing::debug!(%error, "read failed");
                        None
                    }
                };
                worker.send(Command::ReadDone { token: request.token, content });
            }
        }
    }
}
