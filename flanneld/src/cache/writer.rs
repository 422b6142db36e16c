//! Keeps the file up to date, off the daemon's loop.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Cache, file};
use crate::said::Said;

/// Changes come in bursts; the file is written at most this often.
const INTERVAL: Duration = Duration::from_secs(2);

/// Writes the cache when it changed. One write is under way at a time, so a later one never loses to an earlier one.
pub struct CacheWriter {
    folder: PathBuf,
    changed: bool,
    next: Instant,
    task: Option<JoinHandle<Option<String>>>,
    said: Said,
}

impl CacheWriter {
    /// For the state folder.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            changed: false,
            next: Instant::now(),
            task: None,
            said: Said::default(),
        }
    }

    /// Notes that there is something to write.
    pub fn changed(&mut self) {
        self.changed = true;
    }

    /// Returns when [`write`](Self::write) has something to do.
    pub async fn due(&self) {
        match self.changed {
            true => tokio::time::sleep_until(self.next).await,
            false => std::future::pending().await,
        }
    }

    /// Begins to write what `cache` makes, aside. Without one there is nothing yet that is worth it.
    pub async fn write(&mut self, cache: Option<impl FnOnce() -> Cache + Send + 'static>) {
        self.next = Instant::now() + INTERVAL;
        if self.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        if let Some(task) = self.task.take() {
            let ended = task.await;
            self.tell(ended.unwrap_or_else(|error| Some(error.to_string())));
        }
        self.changed = false;
        if let Some(cache) = cache {
            let folder = self.folder.clone();
            let write = move || {
                file::store(&folder, &cache())
                    .err()
                    .map(|error| error.to_string())
            };
            self.task = Some(tokio::task::spawn_blocking(write));
        }
    }

    fn tell(&mut self, problem: Option<String>) {
        let Some(problem) = problem else {
            self.said.clear();
            return;
        };
        if self.said.is_news(&problem) {
            tracing::warn!(
                folder = %self.folder.display(), problem,
                "the peers cannot be kept on disk; a boot while etcd is away will have no connectivity"
            );
        }
    }
}
