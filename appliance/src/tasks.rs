//! Tasks that shutdown waits for.

use std::future::Future;

use tokio::sync::{oneshot, watch};

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

    /// Runs work to its end, even when whoever asked for it does not wait any more. `None`: it panicked, or this process
    /// ends.
    pub async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, wait) = oneshot::channel();
        self.spawn(async move {
            // Nobody may be there to hear it.
            let _ = done.send(work.await);
        });
        wait.await.ok()
    }

    /// Waits until no task runs.
    pub async fn wait(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn work_ends_even_when_nobody_waits() {
        let tasks = Tasks::default();
        let ended = Arc::new(AtomicBool::new(false));
        let note = Arc::clone(&ended);
        let work = async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            note.store(true, Ordering::Relaxed);
        };
        assert!(tokio::time::timeout(Duration::from_millis(1), tasks.to_the_end(work)).await.is_err());
        tasks.wait().await;
        assert!(ended.load(Ordering::Relaxed));
        assert_eq!(tasks.to_the_end(async { 7 }).await, Some(7));
    }
}
