//! Watches of the store in memory.

use tokio::sync::watch as signal;
use tokio::time::{Instant, sleep_until};

use super::MemoryStore;
use crate::{Change, Revision, Watch, WatchEnd, WatchItem};

/// A watch of a [`MemoryStore`].
pub struct MemoryWatch {
    store: MemoryStore,
    changed: signal::Receiver<()>,
    prefix: String,
    next: Revision,
    generation: u64,
    started: bool,
    asked: bool,
}

impl MemoryWatch {
    pub(super) fn new(store: MemoryStore, prefix: &str, from: Revision) -> Self {
        let generation = store.state().watch_generation;
        Self {
            changed: store.shared.changed.subscribe(),
            store,
            prefix: prefix.to_owned(),
            next: from,
            generation,
            started: false,
            asked: false,
        }
    }

    /// What there is to say now, and when a lease may give more to say.
    fn poll(&mut self) -> Result<(Option<WatchItem>, Option<Instant>), WatchEnd> {
        let mut state = self.store.state();
        if state.frozen {
            return Ok((None, None));
        }
        state.expire();
        if state.watch_generation != self.generation {
            return Err(state.watch_end.clone());
        }
        if self.next < state.compacted {
            return Err(WatchEnd::Compacted);
        }
        let wake = state.next_expiry();
        if !self.started {
            self.started = true;
            return Ok((Some(WatchItem::Started(state.position)), wake));
        }
        let news = state.history.iter().filter(|change| {
            let key = match change {
                Change::Put(kv) => &kv.key,
                Change::Delete { key, .. } => key,
            };
            change.revision() >= self.next && key.starts_with(&self.prefix)
        });
        let news: Vec<Change> = news.cloned().collect();
        self.next = self.next.max(state.position.revision + 1);
        if !news.is_empty() {
            return Ok((Some(WatchItem::Changes(news)), wake));
        }
        let alive = std::mem::take(&mut self.asked).then_some(WatchItem::Alive(state.position));
        Ok((alive, wake))
    }
}

impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<WatchItem, WatchEnd> {
        loop {
            self.changed.mark_unchanged();
            let (item, wake) = self.poll()?;
            if let Some(item) = item {
                return Ok(item);
            }
            let expiry = async {
                match wake {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.changed.changed() => {}
                () = expiry => {}
            }
        }
    }

    async fn request_progress(&mut self) -> Result<(), WatchEnd> {
        self.asked = true;
        Ok(())
    }
}
