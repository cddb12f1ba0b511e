//! Tasks that shutdown waits for.

use std::future::Future;

use tokio::sync::watch;

/// Counts running tasks.
#[derive(Debug, Default)]
pub struct Tasks {
    running: watch::Sender<usize>,
}

struct Running(watch::Sender<usize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running = running.saturating_sub(1));
    }
}

impl Tasks {
    /// Spawns a task that counts until it ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.send_modify(|running| *running = running.saturating_add(1));
        let running = Running(self.running.clone());
        tokio::spawn(async move {
            let _running = running;
            task.await;
        });
    }

    /// Waits until no task runs.
    pub async fn wait(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }
}
