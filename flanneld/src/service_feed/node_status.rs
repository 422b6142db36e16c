//! What a node tells all others of its Services: one key in etcd, on a lease that dies with the daemon.

use std::sync::Arc;
use std::time::Duration;

use flannel_model::NodeServices;
use flannel_store::{Kept, LeasedKey, Store, StoreError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::account::is_in_use;
use crate::overlay::Facts;
use crate::said::Said;

/// Seconds for which a node is shown that does not tell of itself any more.
const TTL: u32 = 60;
/// The key is renewed this often, so that two renewals may fail.
const RENEW: Duration = Duration::from_secs(20);
/// A node tells of changes at most this often…
const AT_MOST: Duration = Duration::from_secs(2);
/// … and in large clusters all nodes together some fifty times a second.
const EACH_NODE: Duration = Duration::from_millis(20);

/// Keeps the key up to date until the feed ends.
pub(super) async fn publish<S: Store>(
    store: S,
    key: String,
    mut summary: watch::Receiver<NodeServices>,
    facts: watch::Receiver<Option<Arc<Facts>>>,
) {
    if !in_use(&mut summary).await {
        return;
    }
    let mut publisher = Publisher {
        key: LeasedKey::new(store, key, TTL),
        troubles: Said::default(),
    };
    let mut due = Instant::now();
    let mut renewal = due + RENEW;
    let mut changed = true;
    loop {
        tokio::select! {
            news = summary.changed(), if !changed => match news {
                Ok(()) => changed = true,
                Err(_) => return,
            },
            () = sleep_until(due), if changed => {
                let now = summary.borrow_and_update().clone();
                changed = !publisher.write(&now).await;
                due = Instant::now() + pause(nodes(&facts));
            }
            () = sleep_until(renewal) => {
                changed |= publisher.renew().await;
                renewal = Instant::now() + RENEW;
            }
        }
    }
}

/// Waits until there is something to tell; `false` when that never comes.
async fn in_use(summary: &mut watch::Receiver<NodeServices>) -> bool {
    summary.wait_for(is_in_use).await.is_ok()
}

fn nodes(facts: &watch::Receiver<Option<Arc<Facts>>>) -> usize {
    facts.borrow().as_deref().map_or(0, |facts| facts.nodes.len())
}

/// How long a node waits between two tellings, by the number of nodes.
fn pause(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    EACH_NODE.saturating_mul(nodes).max(AT_MOST)
}

struct Publisher<S> {
    key: LeasedKey<S>,
    troubles: Said,
}

impl<S: Store> Publisher<S> {
    /// Whether it was written.
    async fn write(&mut self, summary: &NodeServices) -> bool {
        let text = match serde_json::to_string(summary) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(%error, "the state of the Services is no JSON");
                return true;
            }
        };
        let written = self.key.write(&text).await;
        self.told(written).unwrap_or(false)
    }

    /// Whether the key has to be written again.
    async fn renew(&mut self) -> bool {
        let kept = self.key.keep().await;
        self.told(kept) != Some(Kept::Alive)
    }

    fn told<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(value) => {
                self.troubles.clear();
                Some(value)
            }
            Err(error) => {
                if self.troubles.is_news(&error.to_string()) {
                    tracing::warn!(%error, "`flannelctl services` elsewhere does not see this node");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::memory::MemoryStore;

    const KEY: &str = "/n/services/nodes/n1";

    async fn value(store: &MemoryStore) -> Option<NodeServices> {
        let kv = store.get(KEY).await.unwrap().0?;
        Some(serde_json::from_slice(&kv.value).unwrap())
    }

    fn summary(revision: u64, frontends: usize) -> NodeServices {
        NodeServices {
            revision,
            frontends,
            ..NodeServices::default()
        }
    }

    #[test]
    fn large_clusters_are_told_more_slowly() {
        assert_eq!(pause(3), AT_MOST);
        assert_eq!(pause(5000), Duration::from_secs(100));
    }

    #[tokio::test(start_paused = true)]
    async fn the_key_follows_the_node_and_dies_with_it() {
        let store = MemoryStore::new();
        let (sender, receiver) = watch::channel(summary(1, 0));
        let (_facts, facts) = watch::channel(None);
        let task = tokio::spawn(publish(store.clone(), KEY.to_owned(), receiver, facts));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(value(&store).await.is_none(), "a node without Services is silent");
        sender.send_replace(summary(2, 1));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(value(&store).await, Some(summary(2, 1)));
        for revision in 3..100 {
            sender.send_replace(summary(revision, 1));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let kv = store.get(KEY).await.unwrap().0.unwrap();
        assert!(
            kv.mod_revision < 12,
            "some {} writes for 97 changes",
            kv.mod_revision
        );
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(value(&store).await, Some(summary(99, 1)), "it is renewed");
        store.delete(KEY).await.unwrap();
        tokio::time::sleep(RENEW * 2).await;
        assert!(value(&store).await.is_some(), "it is written again");
        task.abort();
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(value(&store).await.is_none(), "its lease died");
    }
}
