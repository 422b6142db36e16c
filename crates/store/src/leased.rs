//! One key that lives as long as its owner: it hangs on a lease that the owner renews.

use crate::{Created, KeptAlive, LeaseId, NewLease, Renewal, Replaced, Revision, Store, StoreError};

/// Attempts at a key that others write at the same moment.
const ATTEMPTS: usize = 5;

/// A key on a lease of its own. Nothing is written before [`Self::write`]; whoever stops renewing loses the key when the time to
/// live has passed, and [`Self::remove`] ends it at once.
#[derive(Debug)]
pub struct LeasedKey<S> {
    store: S,
    key: String,
    ttl_secs: u32,
    held: Option<Held>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    lease: LeaseId,
    revision: Revision,
}

/// How a renewal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The key is ours for another time to live.
    Alive,
    /// The key is gone: it expired, or somebody deleted it. [`LeasedKey::write`] makes it anew.
    Gone,
    /// Somebody else wrote the key since.
    Taken,
}

impl<S: Store> LeasedKey<S> {
    /// For `key`, with a time to live in seconds, at least 1.
    pub fn new(store: S, key: String, ttl_secs: u32) -> Self {
        Self {
            store,
            key,
            ttl_secs: ttl_secs.max(1),
            held: None,
        }
    }

    /// Writes the key, whatever stands there, and keeps the lease if there is one. `false` when others wrote it at the same
    /// moment, several times in a row.
    ///
    /// # Errors
    /// As those of the store; the key may have been written when the outcome is unknown. Written again, it hangs on a lease
    /// that is ours.
    pub async fn write(&mut self, value: &str) -> Result<bool, StoreError> {
        for _ in 0..ATTEMPTS {
            if let Some(held) = self.attempt(value).await? {
                self.held = Some(held);
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn attempt(&mut self, value: &str) -> Result<Option<Held>, StoreError> {
        let fresh = NewLease::any(self.ttl_secs);
        let (present, _) = self.store.get(&self.key).await?;
        let held = self.held.take();
        let Some(present) = present else {
            let created = self.store.create(&self.key, value, fresh, &[]).await?;
            return Ok(match created {
                Created::Won { lease, revision } => Some(Held { lease, revision }),
                Created::Lost => None,
            });
        };
        let ours = held.filter(|held| held.revision == present.mod_revision);
        let lease = ours.map_or(Renewal::Grant(fresh), |held| Renewal::Keep(held.lease));
        let replaced = self
            .store
            .replace(&self.key, value, present.mod_revision, lease)
            .await?;
        Ok(match replaced {
            Replaced::Won { lease, revision } => Some(Held { lease, revision }),
            Replaced::Lost => None,
        })
    }

    /// Renews the lease and looks whether the key still is ours.
    ///
    /// # Errors
    /// As those of the store; nothing is lost then before the time to live has passed.
    pub async fn keep(&mut self) -> Result<Kept, StoreError> {
        let Some(held) = self.held else {
            return Ok(Kept::Gone);
        };
        let kept = match self.store.keep_alive(held.lease).await? {
            KeptAlive::Expired => Kept::Gone,
            KeptAlive::Alive { .. } => match self.store.get(&self.key).await?.0 {
                Some(present) if present.mod_revision == held.revision => Kept::Alive,
                Some(_) => Kept::Taken,
                None => Kept::Gone,
            },
        };
        if kept != Kept::Alive {
            self.held = None;
        }
        Ok(kept)
    }

    /// Deletes the key, unless somebody else wrote it since.
    ///
    /// # Errors
    /// As those of the store; the key goes by itself then when the time to live has passed.
    pub async fn remove(&mut self) -> Result<(), StoreError> {
        match self.held.take() {
            Some(held) => self.store.delete_if(&self.key, held.revision).await.map(drop),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use std::time::Duration;
    use tokio::time::sleep;

    async fn value(store: &MemoryStore) -> Option<Vec<u8>> {
        store.get("/n/x").await.unwrap().0.map(|kv| kv.value)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_dies_with_its_owner() {
        let store = MemoryStore::new();
        let mut key = LeasedKey::new(store.clone(), "/n/x".to_owned(), 9);
        assert_eq!(key.keep().await.unwrap(), Kept::Gone);
        assert!(key.write("a").await.unwrap());
        sleep(Duration::from_secs(5)).await;
        assert!(key.write("b").await.unwrap(), "on the same lease");
        assert_eq!(key.keep().await.unwrap(), Kept::Alive);
        sleep(Duration::from_secs(8)).await;
        assert_eq!(value(&store).await.unwrap(), b"b");
        sleep(Duration::from_secs(8)).await;
        assert!(value(&store).await.is_none(), "nobody renewed it");
        assert_eq!(key.keep().await.unwrap(), Kept::Gone);
        assert!(key.write("c").await.unwrap());
        key.remove().await.unwrap();
        assert!(value(&store).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_write_is_noticed_and_left_to_them() {
        let store = MemoryStore::new();
        let mut key = LeasedKey::new(store.clone(), "/n/x".to_owned(), 9);
        key.write("a").await.unwrap();
        store.put("/n/x", "theirs").await.unwrap();
        assert_eq!(key.keep().await.unwrap(), Kept::Taken);
        key.remove().await.unwrap();
        assert_eq!(value(&store).await.unwrap(), b"theirs");
        assert!(key.write("ours").await.unwrap(), "asked for, it is taken over");
        sleep(Duration::from_secs(20)).await;
        assert!(value(&store).await.is_none(), "with a lease");
    }
}
